//! Sums and maxima of rows in an order that is the same on every machine.
//!
//! To be called from code that [`pulp::Arch::dispatch`] compiles for the processor at hand.

/// Numbers that are reduced side by side: enough of them that no addition waits for the one before it.
const LANES: usize = 64;
/// Numbers a lane adds in f32 before it is added in f64: what rounding loses stays below that of a few numbers.
const RUN: usize = 16;

/// Sums over rows of the same length, whose numbers at one position `add` adds to a sum.
#[inline(always)]
pub fn sum<const N: usize>(rows: [&[f32]; N], add: impl Fn(f32, [f32; N]) -> f32) -> f64 {
    let split = rows.map(|row| row.as_chunks::<LANES>());
    let chunks = split.map(|(chunks, _)| chunks);
    let rest = split.map(|(_, rest)| rest);
    let mut totals = [0.0f64; LANES];
    let mut start = 0;
    while start < chunks[0].len() {
        let end = chunks[0].len().min(start + RUN);
        let runs = chunks.map(|chunks| &chunks[start..end]);
        let mut sums = [0.0f32; LANES];
        for c in 0..end - start {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = add(*sum, runs.map(|run| run[c][i]));
            }
        }
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total += f64::from(sum);
        }
        start = end;
    }
    let total = fold::<64, 32>(totals);
    let total = fold::<8, 4>(fold::<16, 8>(fold::<32, 16>(total)));
    let [total] = fold::<2, 1>(fold::<4, 2>(total));
    (0..rest[0].len()).fold(total, |total, i| total + f64::from(add(0.0, rest.map(|rest| rest[i]))))
}

/// The sums of the numbers of the first half with those of the second.
#[inline(always)]
fn fold<const ALL: usize, const HALF: usize>(numbers: [f64; ALL]) -> [f64; HALF] {
    let mut sums = [0.0; HALF];
    for (i, sum) in sums.iter_mut().enumerate() {
        *sum = numbers[i] + numbers[HALF + i];
    }
    sums
}

/// The largest number, NaN if there is one, and negative infinity of no numbers.
#[inline(always)]
pub fn max(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *x);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// Unlike [`f32::max`], NaN if either is.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_f64() {
        for n in [0, 1, 63, 64, 65, 1000, 5000, 250_880] {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin() + 0.5).collect();
            let y: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).cos()).collect();
            let expected: f64 = x.iter().map(|x| f64::from(*x)).sum();
            let close = |a: f64, b: f64| (a - b).abs() <= 3e-7 * b.abs();
            assert!(close(sum([&x], |sum, [x]| sum + x), expected), "{n}");
            let expected: f64 = x.iter().zip(&y).map(|(x, y)| f64::from(*x).powi(2) + f64::from(*y)).sum();
            assert!(close(sum([&x, &y], |sum, [x, y]| x.mul_add(x, sum + y)), expected), "{n}");
        }
    }

    #[test]
    fn max_of_every_position() {
        assert_eq!(max(&[]), f32::NEG_INFINITY);
        for n in [1, 64, 150] {
            for i in 0..n {
                let mut x: Vec<f32> = (0..n).map(|i| -1.0 - i as f32).collect();
                x[i] = 2.0;
                assert_eq!(max(&x), 2.0);
                x[i] = f32::NAN;
                assert!(max(&x).is_nan());
            }
        }
    }
}
