//! f32 numbers as sums of bf16 numbers, so that a unit that multiplies bf16 multiplies f32.
//!
//! A bf16 has 8 of the 24 binary digits of an f32: rounding to the nearest, and what that leaves once more, cuts a number
//! into three that add up to it exactly. Of the nine products of the parts of two numbers, the three smallest are left
//! out: together they are at most 2⁻²³ of the whole and mostly about 2⁻²⁷, less than what is rounded off when a product is
//! added to a sum in f32. Numbers of fewer digits have fewer parts: a bf16 one, an f16 two.
//! Below 2⁻¹¹⁰ a last part can be subnormal, which such units take for zero.
//!
//! Knows how numbers are cut. It does not know how parts are laid out, nor who multiplies them.

use rayon::prelude::*;

use super::pack::round_to_bf16;

#[cfg(target_arch = "x86_64")]
use {
    pulp::bytemuck::cast,
    pulp::x86::V4,
    std::arch::x86_64::{__m512i, _CMP_UNORD_Q},
};

/// Of how many bf16 numbers the factors `x` and `weight` of a product are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Parts {
    /// Both are rounded to one.
    Rounded,
    /// x of three, the weight of one.
    One,
    /// x of three, the weight of two.
    Two,
    /// Both of three.
    Three,
}

impl Parts {
    /// Parts of a number of x.
    pub fn of_x(self) -> usize {
        match self {
            Self::Rounded => 1,
            Self::One | Self::Two | Self::Three => 3,
        }
    }

    /// Parts of a number of the weight.
    pub fn of_weight(self) -> usize {
        match self {
            Self::Rounded | Self::One => 1,
            Self::Two => 2,
            Self::Three => 3,
        }
    }

    /// How many parts of a weight's add up to each of these numbers.
    pub fn needed(numbers: &[f32]) -> Self {
        let some_have = |bits: fn(f32) -> u32| {
            let below = move |numbers: &[f32]| numbers.iter().fold(0, |all, x| all | bits(*x)) & BELOW > 0;
            numbers.par_chunks(1 << 14).any(below)
        };
        if some_have(|x| (x - round_to_bf16(x)).to_bits()) {
            Self::Three
        } else if some_have(f32::to_bits) {
            Self::Two
        } else {
            Self::One
        }
    }
}

/// Bits of an f32 that a bf16 does not have.
const BELOW: u32 = 0xffff;

/// Sixteen numbers' parts, largest first, each in the upper halves of 32 bits; what the lower halves hold means nothing.
/// Where there is one part, it is the nearest number.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn parts<const PARTS: usize>(simd: V4, numbers: __m512i) -> [__m512i; PARTS] {
    let f = simd.avx512f;
    if PARTS == 1 {
        let numbers_are_nan = f._mm512_cmp_ps_mask::<_CMP_UNORD_Q>(cast(numbers), cast(numbers));
        let quiet_nan = f._mm512_or_si512(numbers, f._mm512_set1_epi32(0x0040_0000));
        return [f._mm512_mask_blend_epi32(numbers_are_nan, nearest_bits(simd, numbers), quiet_nan); PARTS];
    }
    // Of NaN and infinity NaN is left, and the last part is not rounded.
    let mut parts = [numbers; PARTS];
    for i in 1..PARTS {
        let all = parts[i - 1];
        parts[i - 1] = f._mm512_and_si512(nearest_bits(simd, all), f._mm512_set1_epi32(!(BELOW as i32)));
        parts[i] = cast(f._mm512_sub_ps(cast(all), cast(parts[i - 1])));
    }
    parts
}

/// The nearest bf16 in the upper halves, if these are no NaN.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn nearest_bits(simd: V4, numbers: __m512i) -> __m512i {
    let f = simd.avx512f;
    let odd = f._mm512_and_si512(f._mm512_srli_epi32::<16>(numbers), f._mm512_set1_epi32(1));
    f._mm512_add_epi32(numbers, f._mm512_add_epi32(odd, f._mm512_set1_epi32(0x7fff)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn formats_need_as_many_parts_as_they_have_digits() {
        let numbers: Vec<f32> =
            (1..40_000u32).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9) & 0x7fff_ffff)).collect();
        let numbers: Vec<f32> = numbers.into_iter().map(|x| x % 1000.0).filter(|x| *x > 1e-3).collect();
        let rounded = |f: fn(f32) -> f32| numbers.iter().map(|x| f(*x)).collect::<Vec<_>>();
        assert_eq!(Parts::needed(&numbers), Parts::Three);
        assert_eq!(Parts::needed(&rounded(|x| f16::from_f32(x).to_f32())), Parts::Two);
        assert_eq!(Parts::needed(&rounded(|x| bf16::from_f32(x).to_f32())), Parts::One);
        // One number that is not like the others is enough.
        let mut odd = vec![1.5; 100_000];
        assert_eq!(Parts::needed(&odd), Parts::One);
        odd[99_999] = 1.0 + 1.0 / 4096.0;
        assert_eq!(Parts::needed(&odd), Parts::Two);
        odd[70_000] = f32::NAN;
        odd[3] = 1.0 + f32::EPSILON;
        assert_eq!(Parts::needed(&odd), Parts::Two, "1 + 2^-23 is a sum of two");
        odd[3] += 1.0 / 4096.0;
        assert_eq!(Parts::needed(&odd), Parts::Three);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn parts_add_up_to_the_number_and_hide_no_nan() {
        let pulp::Arch::V4(simd) = pulp::Arch::new() else { return };
        let in_upper_half = |bits: u32| f32::from_bits(bits & !BELOW);
        let parts_of = |x: f32| {
            let bits: [__m512i; 3] = parts::<3>(simd, cast([x.to_bits(); 16]));
            bits.map(|part| in_upper_half(cast::<_, [u32; 16]>(part)[7]))
        };
        for i in 1..200_000u32 {
            let x = f32::from_bits(i.wrapping_mul(0x9e37_79b9));
            // Parts of what is nearly the smallest are subnormal; what is nearly the largest is rounded up to infinity.
            if x.is_nan() || !(1e-30..3e38).contains(&x.abs()) {
                continue;
            }
            let [first, second, third] = parts_of(x);
            assert_eq!(f64::from(first) + f64::from(second) + f64::from(third), f64::from(x), "{x}");
            assert!(second.abs() <= first.abs() / 256.0 && third.abs() <= first.abs() / 65536.0, "{x}");
        }
        for bits in [0x7fff_ffff, 0xffff_ffff, 0x7f80_0001, 0x7fc0_0000, 0x7f80_0000, 0xff80_0000] {
            assert!(parts_of(f32::from_bits(bits)).iter().any(|part| part.is_nan()), "{bits:x}");
        }
    }
}
