//! The exponential and the logistic function, of single numbers, such that a loop over them is vectorised, and one
//! exponential of vectors.
//!
//! None branches, calls or converts between floats and integers. They are meant for code that
//! [`pulp::Arch::dispatch`] compiles for the processor at hand: elsewhere a fused multiply-add is a call. What
//! they are used for, and on how many numbers at a time, is not known here.

use pulp::{Scalar, Simd};

/// The sum of a float near zero and this is rounded to a whole number, which is in the lowest bits of the sum.
const ROUND: f32 = 12_582_912.0;
/// What is added to an exponent in the bits of a float.
const BIAS: f32 = 127.0;
/// ln 2 and what rounding it to f32 took away.
const LN_2: f32 = std::f32::consts::LN_2;
const LN_2_REST: f32 = -1.904_654_2e-9;
/// Minimax for `|r| ≤ ln 2 / 2`: the relative error is 3.2e-9 before rounding.
const C2: f32 = 0.499_999_94;
const C3: f32 = 0.166_665_21;
const C4: f32 = 0.041_668_292;
const C5: f32 = 0.008_368_716;
const C6: f32 = 0.001_381_869_8;
/// Minimax for `1 / x` from 1 to 2.
const R0: f32 = 210.0 / 99.0;
const R1: f32 = -144.0 / 99.0;
const R2: f32 = 32.0 / 99.0;

/// `eˣ`, at most 2 ulp off, 0 and infinity where f32 ends, NaN of NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Beyond these it is 0 and infinite. Written so that NaN, of which no comparison holds, stays.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    // 2ⁿ as two powers of about n / 2 each, as it may itself be beyond f32 where the result isn't.
    let (fraction, doubly_biased) = parts(Scalar::new(), x, ROUND + 2.0 * BIAS);
    let half = doubly_biased >> 1;
    let other_half = doubly_biased.wrapping_sub(half);
    fraction * f32::from_bits(half << 23) * f32::from_bits(other_half << 23)
}

/// [`exp`] of numbers that aren't above 0, in fewer instructions: 0 where it would be below the normal numbers, but
/// for the largest of those. A product that is one of them takes a processor longer than all the rest.
#[inline(always)]
pub fn exp_of_negative<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // At -88 the exponent is that of 0. A comparison, so that NaN stays.
    let least = simd.splat_f32s(-88.0);
    let x = simd.select_f32s(simd.less_than_f32s(x, least), least, x);
    let (fraction, biased) = parts(simd, x, ROUND + BIAS);
    let power = simd.wrapping_dyn_shl_u32s(biased, simd.splat_u32s(23));
    simd.mul_f32s(fraction, simd.transmute_f32s_u32s(power))
}

/// `eˣ⁻ⁿˡⁿ²`, where n is the whole number for which this is nearest to 1, and a number in whose lowest 9 bits is n
/// and what `round` has there.
#[inline(always)]
fn parts<S: Simd>(simd: S, x: S::f32s, round: f32) -> (S::f32s, S::u32s) {
    let round = simd.splat_f32s(round);
    let shifted = simd.mul_add_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), round);
    let n = simd.sub_f32s(shifted, round);
    let r = simd.mul_add_f32s(n, simd.splat_f32s(-LN_2), x);
    let r = simd.mul_add_f32s(n, simd.splat_f32s(-LN_2_REST), r);
    let mut p = simd.splat_f32s(C6);
    for c in [C5, C4, C3, C2, 1.0, 1.0] {
        p = simd.mul_add_f32s(p, r, simd.splat_f32s(c));
    }
    (p, simd.transmute_u32s_f32s(shifted))
}

/// `1 / (1 + e⁻ˣ)` and its derivative: 0 where they would be below the normal numbers.
///
/// Both are accurate on both sides, as 1 minus the value is not computed by subtraction.
#[inline(always)]
pub fn logistic(x: f32) -> (f32, f32) {
    let e = exp_of_negative(Scalar::new(), -x.abs());
    let larger = reciprocal(1.0 + e);
    let smaller = e * larger;
    (if x < 0.0 { smaller } else { larger }, larger * smaller)
}

/// `1 / x` for `1 ≤ x ≤ 2`, at most 1 ulp off: a division of vectors takes longer than all of this.
#[inline(always)]
fn reciprocal(x: f32) -> f32 {
    // Minimax, its relative error 1/99; Newton's steps square that twice.
    let mut reciprocal = x.mul_add(R2, R1).mul_add(x, R0);
    for _ in 0..2 {
        reciprocal = reciprocal.mul_add((-x).mul_add(reciprocal, 1.0), reciprocal);
    }
    reciprocal
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distance of `a` from `b` in ulp of `b`.
    fn ulp(a: f32, b: f64) -> f64 {
        let exponent = b.abs().log2().floor().max(-126.0);
        (f64::from(a) - b).abs() / (exponent - 23.0).exp2()
    }

    fn worst(numbers: impl Iterator<Item = f32>) -> f64 {
        pulp::Arch::new().dispatch(|| numbers.map(|x| ulp(exp(x), f64::from(x).exp())).fold(0.0, f64::max))
    }

    #[test]
    fn exp_over_the_whole_range() {
        let evenly = (0..1_000_000u32).map(|i| -104.5 + i as f32 * 2.0e-4).filter(|x| *x < 88.72);
        let worst_evenly = worst(evenly);
        // Every 1009th float of either sign up to 88.72, where the result is finite.
        let signs = [0u32, 1 << 31];
        let floats = signs
            .iter()
            .flat_map(|s| (0..88.72f32.to_bits()).step_by(1009).map(move |b| f32::from_bits(b | s)));
        let worst_floats = worst(floats);
        assert!(worst_evenly < 2.0 && worst_floats < 2.0, "{worst_evenly} {worst_floats}");
    }

    #[test]
    fn exp_at_the_ends() {
        for x in [-104.0, -105.0, -1e4, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp(x).to_bits(), 0, "{x}");
        }
        for x in [88.73, 89.0, 1e4, f32::MAX, f32::INFINITY] {
            assert_eq!(exp(x), f32::INFINITY, "{x}");
        }
        assert_eq!((exp(0.0), exp(-0.0)), (1.0, 1.0));
        assert!(exp(-103.9) > 0.0 && exp(88.72) < f32::INFINITY);
        assert!(exp(f32::NAN).is_nan() && exp(-f32::NAN).is_nan());
    }

    #[test]
    fn exp_of_vectors_is_that_of_numbers() {
        struct Vectors<'a>(&'a mut [f32]);
        impl pulp::WithSimd for Vectors<'_> {
            type Output = ();
            fn with_simd<S: Simd>(self, simd: S) {
                let (vectors, rest) = S::as_mut_simd_f32s(self.0);
                assert!(rest.is_empty());
                vectors.iter_mut().for_each(|x| *x = exp_of_negative(simd, *x));
            }
        }
        let numbers: Vec<f32> = (0..16 * 1000).map(|i| i as f32 * -0.0075).collect();
        let mut vectors = numbers.clone();
        vectors[7] = f32::NAN;
        vectors[8] = f32::NEG_INFINITY;
        pulp::Arch::new().dispatch(Vectors(&mut vectors));
        assert!(vectors[7].is_nan() && vectors[8].to_bits() == 0);
        for (x, ours) in numbers.into_iter().zip(vectors).skip(9) {
            let right = exp(x);
            let below = right < f32::MIN_POSITIVE && (0.0..=right).contains(&ours);
            assert!(ours == right || below, "{x}: {ours}, not {right}");
        }
    }

    #[test]
    fn reciprocals_between_1_and_2() {
        let floats = (1f32.to_bits()..=2f32.to_bits()).step_by(7).map(f32::from_bits);
        let worst = pulp::Arch::new()
            .dispatch(|| floats.map(|x| ulp(reciprocal(x), 1.0 / f64::from(x))).fold(0.0, f64::max));
        assert!(worst < 1.0, "{worst}");
        assert_eq!((reciprocal(1.0), reciprocal(2.0)), (1.0, 0.5));
        assert!(reciprocal(f32::NAN).is_nan());
    }

    #[test]
    fn logistic_and_its_derivative() {
        for i in -3490..3490 {
            let x = i as f32 * 0.025;
            let (value, slope) = logistic(x);
            let e = (-f64::from(x)).exp();
            let expected = 1.0 / (1.0 + e);
            assert!(ulp(value, expected) < 5.0, "{x}: {value}, not {expected}");
            let expected = expected * e * expected;
            assert!(ulp(slope, expected) < 7.0, "{x}: {slope}, not {expected}");
        }
        assert_eq!(logistic(f32::INFINITY), (1.0, 0.0));
        assert_eq!(logistic(f32::NEG_INFINITY), (0.0, 0.0));
        assert!(logistic(f32::NAN).0.is_nan() && logistic(f32::NAN).1.is_nan());
    }
}
