//! Dropout: which numbers become 0 depends on a key and on where they stand, so that the backward pass finds the
//! same ones again and nothing is kept of them.
//!
//! Does not know what the numbers are, nor where in a model dropout belongs.

use rayon::prelude::*;

use super::blocks;
use crate::model::random::Key;

/// Whether a pass drops numbers, and which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dropout {
    /// None.
    #[default]
    Off,
    /// As the model's configuration says; other ones for every pass.
    On {
        /// The seed of all passes.
        seed: u64,
        /// The number of this pass.
        pass: u64,
    },
}

/// Where in a model numbers are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// What the first block is given.
    Embedding,
    /// The attention's probabilities.
    Attention,
    /// What attention adds to the residual stream.
    AttentionOutput,
    /// What the MLP adds to it.
    MlpOutput,
}

/// Which numbers of a matrix are dropped.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    key: Key,
    /// Bits below this are dropped.
    threshold: u32,
    /// What the others are multiplied by.
    scale: f32,
}

impl Dropout {
    /// The mask for a site, of which a share of `rate` is dropped; `None` where that is nothing.
    pub fn mask(self, site: Site, layer: usize, rate: f32) -> Option<Mask> {
        match self {
            Self::On { seed, pass } if rate > 0.0 => Some(Mask {
                key: Key::new(seed).then(pass).then(layer as u64).then(site as u64),
                threshold: (f64::from(rate) * 4_294_967_296.0) as u32,
                scale: (1.0 / (1.0 - f64::from(rate))) as f32,
            }),
            _ => None,
        }
    }
}

impl Mask {
    /// The key's bits, below which bits a number is dropped, and what the others are multiplied by.
    pub fn parts(&self) -> (u64, u32, f32) {
        (self.key.bits_of_all(), self.threshold, self.scale)
    }

    /// Drops numbers of rows `[rows, width]` and scales up the others; the gradient goes through the same way.
    pub fn apply(&self, rows: &mut [f32], width: usize) {
        let each = rows.par_chunks_mut(width.max(1)).enumerate().with_min_len(8);
        each.for_each(|(row, numbers)| self.apply_row(row as u64, numbers));
    }

    /// The same for one row.
    pub fn apply_row(&self, row: u64, numbers: &mut [f32]) {
        let (key, threshold, scale) = (self.key.then(row), self.threshold, self.scale);
        blocks::dispatch(
            numbers,
            #[inline(always)]
            |numbers: &mut [f32]| {
                for (i, x) in numbers.iter_mut().enumerate() {
                    *x *= if key.bits(i as u32) >= threshold { scale } else { 0.0 };
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::same_bits;
    use super::*;

    fn dropped(pass: u64, site: Site, layer: usize) -> Vec<f32> {
        let mut rows = vec![1.0; 300 * 400];
        Dropout::On { seed: 5, pass }.mask(site, layer, 0.1).unwrap().apply(&mut rows, 400);
        rows
    }

    #[test]
    fn a_tenth_is_dropped_and_the_mean_stays() {
        let rows = dropped(1, Site::Attention, 0);
        assert!(rows.iter().all(|x| *x == 0.0 || *x == 1.0 / 0.9));
        let mean = rows.iter().sum::<f32>() / rows.len() as f32;
        assert!((mean - 1.0).abs() < 4e-3, "{mean}");
        // Neither rows nor columns have a share of their own.
        for i in 0..300 {
            let row: f32 = rows[400 * i..][..400].iter().sum();
            let column: f32 = rows.iter().skip(i).step_by(400).sum();
            assert!((row / 400.0 - 1.0).abs() < 0.1 && (column / 300.0 - 1.0).abs() < 0.1, "{i}");
        }
    }

    #[test]
    fn every_pass_layer_and_site_drops_others() {
        let first = dropped(1, Site::Attention, 0);
        assert_eq!(first, dropped(1, Site::Attention, 0));
        for other in
            [dropped(2, Site::Attention, 0), dropped(1, Site::MlpOutput, 0), dropped(1, Site::Attention, 1)]
        {
            let both = first.iter().zip(&other).filter(|(a, b)| **a == 0.0 && **b == 0.0).count();
            assert!((both as f64 / 1200.0 - 1.0).abs() < 0.12, "{both} dropped by both");
        }
    }

    #[test]
    fn threads_change_nothing() {
        same_bits(|| dropped(3, Site::Embedding, 2));
    }

    #[test]
    fn without_a_rate_or_switched_off_there_is_no_mask() {
        assert!(Dropout::Off.mask(Site::Embedding, 0, 0.5).is_none());
        assert!(Dropout::On { seed: 1, pass: 1 }.mask(Site::Embedding, 0, 0.0).is_none());
    }
}
