//! What a softmax over a vocabulary needs of a row of logits, or of parts of a row that come one after the other.
//!
//! Each function works on one row on the thread it is called on. What the loss is, and which logit is the
//! target's, is not known here.

use super::exp::exp;
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
    /// Of a part of a row, which may be empty.
    pub fn of(row: &[f32]) -> Self {
        blocks::dispatch(
            row,
            #[inline(always)]
            |row| {
                let max = reduce::max(row);
                let origin = origin(max);
                let sum = reduce::sum(
                    [row],
                    #[inline(always)]
                    |sum, [x]| sum + exp(x - origin),
                );
                Self { max, sum }
            },
        )
    }

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

/// Puts `exp(x - max)` in the place of each number.
pub fn exponentials(row: &mut [f32], max: f32) {
    blocks::dispatch(
        row,
        #[inline(always)]
        |row: &mut [f32]| row.iter_mut().for_each(|x| *x = exp(*x - max)),
    );
}

/// Multiplies each number.
pub fn rescale(row: &mut [f32], factor: f32) {
    blocks::dispatch(
        row,
        #[inline(always)]
        |row: &mut [f32]| row.iter_mut().for_each(|x| *x *= factor),
    );
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
    use super::super::testing::{close, numbers, wide};
    use super::*;

    fn logits(n: usize) -> Vec<f32> {
        numbers(n, 1).iter().map(|x| 20.0 * x).collect()
    }

    fn expected(row: &[f32]) -> f64 {
        row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln()
    }

    #[test]
    fn log_sum_exp_of_a_row_and_of_its_parts() {
        for n in [1, 3, 17, 64, 1000, 49_152] {
            let row = logits(n);
            for part in [1, 7, 100, 512] {
                let whole = row.chunks(part).map(Partial::of).fold(Partial::of(&[]), Partial::merge);
                assert!((whole.log_sum_exp() - expected(&row)).abs() < 3e-7, "{n} {part}");
            }
            assert!((Partial::of(&row).log_sum_exp() - expected(&row)).abs() < 3e-7, "{n}");
        }
    }

    #[test]
    fn large_numbers_stay_finite() {
        let row = [1e4, -1e4, 1e4, 0.0];
        assert_eq!(Partial::of(&row).log_sum_exp(), 1e4 + 2f64.ln());
        let merged = Partial::of(&row[1..2]).merge(Partial::of(&row[..1]));
        assert_eq!(merged.log_sum_exp(), 1e4);
    }

    #[test]
    fn nothing_is_nothing() {
        let masked = [f32::NEG_INFINITY; 70];
        for none in [Partial::of(&[]), Partial::of(&masked), Partial::of(&[]).merge(Partial::of(&masked))] {
            assert_eq!(none.log_sum_exp(), f64::NEG_INFINITY);
            assert_eq!(none.merge(Partial::of(&[1.5])).log_sum_exp(), 1.5);
        }
    }

    #[test]
    fn nan_stays() {
        for at in [0, 5, 64, 149] {
            let mut row = logits(150);
            row[at] = f32::NAN;
            let (nan, other) = (Partial::of(&row), Partial::of(&logits(9)));
            for partial in [nan, nan.merge(other), other.merge(nan)] {
                assert!(partial.log_sum_exp().is_nan(), "{at}");
            }
            let (first, value) = argmax(&row);
            assert!(first == at && value.is_nan());
            exponentials(&mut row, 20.0);
            rescale(&mut row, 0.5);
            assert!(row.iter().enumerate().all(|(i, x)| x.is_nan() == (i == at)));
        }
    }

    #[test]
    fn exponentials_and_their_multiples() {
        for n in [0, 1, 3, 17, 64, 1000] {
            let mut row = logits(n);
            let expected: Vec<f64> = wide(&row).iter().map(|x| (x - 20.0).exp() * 0.3).collect();
            exponentials(&mut row, 20.0);
            rescale(&mut row, 0.3);
            close(&row, &expected, 2e-6);
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
