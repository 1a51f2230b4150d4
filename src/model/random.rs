//! Random numbers by key and counter: any of them can be computed at any time, in any order, on any thread.
//!
//! Does not know what they are drawn for; the numbers of torch's generator are not these.

use std::f64::consts::PI;

use rayon::prelude::*;

/// Numbers that are drawn with a key of their own.
const CHUNK: usize = 1 << 16;

/// What a sequence of random numbers depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// The key of a seed.
    pub fn new(seed: u64) -> Self {
        Self(0).then(seed)
    }

    /// The key for one of several things that are drawn under this one.
    pub fn then(self, number: u64) -> Self {
        Self(mix(self.0 ^ mix(number)))
    }

    /// What it is, for whoever computes the same numbers elsewhere.
    pub fn bits_of_all(self) -> u64 {
        self.0
    }

    /// The key that [`Key::bits_of_all`] was.
    #[cfg(test)]
    pub(super) fn of_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The random bits at a place of the sequence.
    #[inline(always)]
    pub fn bits(self, index: u32) -> u32 {
        mix_short(mix_short(index ^ self.0 as u32) ^ (self.0 >> 32) as u32)
    }

    /// Numbers from N(0, deviation²) by Box and Muller.
    pub fn normals(self, count: usize, deviation: f64) -> Vec<f32> {
        let mut numbers = vec![0.0; count];
        numbers.par_chunks_mut(CHUNK).enumerate().for_each(|(i, numbers)| {
            let key = self.then(i as u64);
            // In the middle of its 2⁻³² of the way from 0 to 1, so never 0.
            let uniform = |index: usize| (f64::from(key.bits(index as u32)) + 0.5) / 4_294_967_296.0;
            for (pair, numbers) in numbers.chunks_mut(2).enumerate() {
                let radius = deviation * (-2.0 * uniform(2 * pair).ln()).sqrt();
                let (sin, cos) = (2.0 * PI * uniform(2 * pair + 1)).sin_cos();
                numbers.iter_mut().zip([radius * cos, radius * sin]).for_each(|(n, x)| *n = x as f32);
            }
        });
        numbers
    }
}

/// The finaliser of SplitMix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The same kind of function for 32 bits, in instructions that work on whole vectors: Wellons' `lowbias32`.
#[inline(always)]
fn mix_short(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_their_moments_and_do_not_follow_each_other() {
        let numbers = Key::new(7).normals(100_001, 0.5);
        let n = numbers.len() as f64;
        let mean = numbers.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let moment = |power| numbers.iter().map(|x| (f64::from(*x) - mean).powi(power)).sum::<f64>() / n;
        let beside = numbers.windows(2).map(|w| f64::from(w[0] * w[1])).sum::<f64>() / n;
        assert!(mean.abs() < 0.006 && (moment(2) - 0.25).abs() < 0.004, "{mean} {}", moment(2));
        assert!((moment(4) / moment(2).powi(2) - 3.0).abs() < 0.06 && beside.abs() < 0.003);
        assert_eq!(Key::new(7).normals(70_000, 0.5), numbers[..70_000]);
        assert_ne!(Key::new(8).normals(4, 0.5), numbers[..4]);
    }
}
