//! What is asked of a row of logits over a vocabulary: how likely all are together, of parts of the row that come one
//! after the other, and which is the likeliest.
//!
//! What the loss is, and which logit is the target's, is not known here.

use super::{blocks, reduce};

/// Numbers a maximum is looked for in at a time.
const CHUNK: usize = 64;

/// The sum of the exponentials of a row, or of a part of it, safe for large numbers.
#[derive(Clone, Copy, Debug)]
pub struct Partial {
    /// The largest number; negative infinity of no numbers.
    pub max: f32,
    /// The sum of the exponentials of all numbers' distances from the largest.
    pub sum: f64,
}

impl Partial {
    /// Of both parts together.
    pub fn merge(self, other: Self) -> Self {
        let max = self.max.max(other.max);
        let scaled = |part: Self| part.sum * f64::from(part.max - origin(max)).exp();
        Self { max, sum: scaled(self) + scaled(other) }
    }

    /// The logarithm of the sum of the exponentials: negative infinity of no numbers.
    pub fn log_sum_exp(self) -> f64 {
        f64::from(self.max) + self.sum.ln()
    }
}

/// What distances are taken from: no number has a distance from negative infinity.
#[inline(always)]
pub fn origin(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// The first of the largest numbers and where it is: the first NaN if there is one.
///
/// # Panics
/// The row is empty.
pub fn argmax(row: &[f32]) -> (usize, f32) {
    assert!(!row.is_empty(), "argmax: the row is empty");
    blocks::dispatch(
        row,
        #[inline(always)]
        |row| {
            let max = reduce::max(row);
            // Without an early exit, a chunk is compared in a few instructions.
            let holds_max = |chunk: &[f32]| chunk.iter().fold(false, |any, x| any | is_max(*x, max));
            let start = row.chunks(CHUNK).position(holds_max).unwrap_or(0) * CHUNK;
            let at = start + row[start..].iter().position(|x| is_max(*x, max)).unwrap_or(0);
            (at, row[at])
        },
    )
}

/// Whether a number is the maximum of a row, or one of the NaN that make it NaN.
#[inline(always)]
fn is_max(x: f32, max: f32) -> bool {
    x == max || x.is_nan()
}

#[cfg(test)]
mod tests {
    use super::super::testing::numbers;
    use super::*;

    fn logits(n: usize) -> Vec<f32> {
        numbers(n, 1).iter().map(|x| 20.0 * x).collect()
    }

    fn partial(row: &[f32]) -> Partial {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Partial { max, sum: row.iter().map(|x| f64::from(*x - origin(max)).exp()).sum() }
    }

    fn expected(row: &[f32]) -> f64 {
        row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln()
    }

    #[test]
    fn log_sum_exp_of_a_rows_parts() {
        for n in [1, 3, 17, 64, 1000, 49_152] {
            let row = logits(n);
            for part in [1, 7, 100, 512] {
                let whole = row.chunks(part).map(partial).fold(partial(&[]), Partial::merge);
                assert!((whole.log_sum_exp() - expected(&row)).abs() < 3e-7, "{n} {part}");
            }
        }
    }

    #[test]
    fn large_numbers_stay_finite() {
        let merged = partial(&[-1e4, 1e4]).merge(partial(&[1e4, 0.0]));
        assert_eq!(merged.log_sum_exp(), 1e4 + 2f64.ln());
    }

    #[test]
    fn nothing_is_nothing() {
        let masked = [f32::NEG_INFINITY; 70];
        for none in [partial(&[]), partial(&masked), partial(&[]).merge(partial(&masked))] {
            assert_eq!(none.log_sum_exp(), f64::NEG_INFINITY);
            assert_eq!(none.merge(partial(&[1.5])).log_sum_exp(), 1.5);
        }
    }

    #[test]
    fn nan_stays() {
        for at in [0, 5, 64, 149] {
            let mut row = logits(150);
            row[at] = f32::NAN;
            let (nan, other) = (partial(&row), partial(&logits(9)));
            for partial in [nan, nan.merge(other), other.merge(nan)] {
                assert!(partial.log_sum_exp().is_nan(), "{at}");
            }
            let (first, value) = argmax(&row);
            assert!(first == at && value.is_nan());
        }
    }

    #[test]
    fn argmax_is_the_first_of_equals() {
        for n in [1, 3, 17, 64, 200] {
            for at in 0..n {
                let mut row = logits(n);
                row[at] = 30.0;
                row[n - 1] = 30.0;
                assert_eq!(argmax(&row), (at, 30.0));
            }
            assert_eq!(argmax(&vec![f32::NEG_INFINITY; n]), (0, f32::NEG_INFINITY));
        }
    }
}
