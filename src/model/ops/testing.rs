//! What the tests of these modules share: numbers to work on, and comparisons.

/// Numbers between -1 and 1 that look random, the same for the same seed.
pub fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// The same in f64.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// Fails where the values are further from the expected ones than `tolerance` times the largest of these.
pub fn close(values: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(values.len(), expected.len());
    let size = expected.iter().fold(1e-30, |size: f64, x| size.max(x.abs()));
    for (i, (value, expected)) in values.iter().zip(expected).enumerate() {
        let error = (f64::from(*value) - expected).abs() / size;
        assert!(error <= tolerance, "at {i}: {value}, not {expected}: off by {error:e}");
    }
}

/// The gradient at x of the sum of `value`, which is y of the same row, times dy, by central differences.
pub fn gradient(x: &[f64], dy: &[f64], value: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let total = |x: &[f64]| value(x).iter().zip(dy).map(|(y, dy)| y * dy).sum::<f64>();
    let shifted = |i: usize, by: f64| {
        let mut x = x.to_vec();
        x[i] += by;
        total(&x)
    };
    (0..x.len()).map(|i| (shifted(i, STEP) - shifted(i, -STEP)) / (2.0 * STEP)).collect()
}

/// Runs the test body in pools of 1 and of 4 threads, and fails unless the results have the same bits.
pub fn same_bits(run: impl Fn() -> Vec<f32> + Send + Sync) {
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(&run).into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    assert!(on(1) == on(4));
}
