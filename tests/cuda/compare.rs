//! Numbers to work on, and how far results are from what is expected.

use std::collections::BTreeMap;

use half::{bf16, f16};

use crate::emulated::{Argument, Emulated, write};

/// Numbers between -1 and 1 that look random, the same for the same seed.
pub fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// The same, times a factor.
pub fn scaled(n: usize, seed: u64, factor: f32) -> Vec<f32> {
    numbers(n, seed).iter().map(|x| x * factor).collect()
}

/// In f64.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// What stands in memory before a kernel writes it.
pub fn unwritten(n: usize) -> Vec<f32> {
    vec![f32::NAN; n]
}

/// The gradient at x of the sum of `value(x)` times dy, by central differences.
pub fn gradient(x: &[f64], dy: &[f64], value: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let total = |x: &[f64]| value(x).iter().zip(dy).map(|(y, dy)| y * dy).sum::<f64>();
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let at = x[i];
            x[i] = at + STEP;
            let above = total(&x);
            x[i] = at - STEP;
            let below = total(&x);
            x[i] = at;
            (above - below) / (2.0 * STEP)
        })
        .collect()
}

/// The largest errors of a test, by operation: printed in the end.
#[derive(Default)]
pub struct Errors(BTreeMap<String, f64>);

impl Errors {
    /// Fails where a value is further from the expected one than `tolerance` times the largest of these.
    pub fn check(&mut self, what: &str, values: &[f32], expected: &[f64], tolerance: f64) {
        assert_eq!(values.len(), expected.len(), "{what}");
        let size = expected.iter().fold(1e-30, |size: f64, x| size.max(x.abs()));
        let worst = self.0.entry(what.to_owned()).or_default();
        for (i, (value, expected)) in values.iter().zip(expected).enumerate() {
            let error = (f64::from(*value) - expected).abs() / size;
            assert!(error <= tolerance, "{what}, at {i}: {value}, not {expected}: off by {error:e}");
            *worst = worst.max(error);
        }
    }
}

impl Drop for Errors {
    fn drop(&mut self) {
        for (what, error) in &self.0 {
            println!("{what:<40} {error:.1e}");
        }
    }
}

/// Calls `launch` with the name of each format that products take and an array of it, and fails unless that then has
/// the numbers that it returns, rounded.
pub fn in_each_format(
    cuda: &mut Emulated,
    length: usize,
    mut launch: impl FnMut(&mut Emulated, &str, Argument) -> Vec<f32>,
) {
    let mut same = unwritten(length);
    let result = launch(cuda, "f32", write(&mut same));
    assert!(same.iter().zip(&result).all(|(a, b)| a.to_bits() == b.to_bits()), "f32");
    let mut rounded = vec![0u16; length];
    let result = launch(cuda, "bf16", write(&mut rounded));
    assert!(rounded.iter().zip(&result).all(|(a, b)| *a == bf16::from_f32(*b).to_bits()), "bf16");
    let result = launch(cuda, "f16", write(&mut rounded));
    assert!(rounded.iter().zip(&result).all(|(a, b)| *a == f16::from_f32(*b).to_bits()), "f16");
}
