//! Rotary position embedding on the query and key columns of a packed `[queries | keys | values]` tensor.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::attention::Heads;
use super::{slice, with_values};

/// The rotation of every token of a batch: made once, used by every layer.
#[derive(Clone)]
pub struct Rotation(Arc<Angles>);

struct Angles {
    /// cos and sin by token and frequency, `[tokens, 2, dim / 2]`.
    turns: Vec<f32>,
    heads: Heads,
}

impl Rotation {
    /// Turns each token by its position times each of the `dim / 2` frequencies.
    pub fn new(positions: &[u32], frequencies: &[f32], heads: Heads) -> Self {
        let mut turns = Vec::with_capacity(positions.len() * frequencies.len() * 2);
        for &position in positions {
            turns.extend(frequencies.iter().map(|f| (position as f32 * f).cos()));
            turns.extend(frequencies.iter().map(|f| (position as f32 * f).sin()));
        }
        Self(Arc::new(Angles { turns, heads }))
    }

    /// Turns the queries and keys of `[tokens, queries | keys | values]`; values stay as they are.
    ///
    /// # Errors
    /// The tensor has another number of tokens or columns.
    pub fn forward(&self, qkv: &Tensor) -> Result<Tensor> {
        qkv.contiguous()?.apply_op1(Apply(self.0.clone()))
    }
}

impl Angles {
    /// `direction` 1 turns forward, -1 back: the transpose of a rotation is its inverse.
    fn turn(&self, x: &[f32], direction: f32) -> Vec<f32> {
        let (width, dim) = (self.heads.width(), self.heads.dim);
        let mut y = x.to_vec();
        y.par_chunks_mut(width).zip(self.turns.par_chunks(dim)).for_each(|(row, turns)| {
            let (cos, sin) = turns.split_at(dim / 2);
            let queries = (0..self.heads.count).map(|h| self.heads.query(h));
            let keys = (0..self.heads.kv_count).map(|h| self.heads.key(h));
            for start in queries.chain(keys) {
                let (a, b) = row[start..start + dim].split_at_mut(dim / 2);
                for i in 0..dim / 2 {
                    let (x, y, sin) = (a[i], b[i], direction * sin[i]);
                    a[i] = x * cos[i] - y * sin;
                    b[i] = y * cos[i] + x * sin;
                }
            }
        });
        y
    }
}

struct Apply(Arc<Angles>);

impl CustomOp1 for Apply {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, width) = layout.shape().dims2()?;
        let expected = (self.0.turns.len() / self.0.heads.dim, self.0.heads.width());
        if (tokens, width) != expected {
            candle_core::bail!("rotary: the input is [{tokens}, {width}], the rotation is for {expected:?}");
        }
        Ok((CpuStorage::F32(self.0.turn(slice(storage, layout)?, 1.0)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_values(gradient, |dy| self.0.turn(dy, -1.0))?;
        Ok(Some(Tensor::from_vec(dx, x.dims(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::testing::{check, numbers};
    use super::*;

    #[test]
    fn value_and_gradient() {
        let heads = Heads::stacked(3, 1, 6);
        let positions = [0u32, 5, 2, 117];
        let frequencies = [1.0f32, 0.3, 0.01];
        let rotation = Rotation::new(&positions, &frequencies, heads);
        let angle = |f: fn(f64) -> f64| {
            let angles = positions.iter().flat_map(|&p| frequencies.map(|w| f(f64::from(p as f32 * w))));
            Tensor::from_vec(angles.collect::<Vec<_>>(), (4, 1, 3), &Device::Cpu)
        };
        check(
            &numbers(&[4, heads.width()], 1),
            |x| rotation.forward(x),
            |x| {
                let (cos, sin) = (angle(f64::cos)?, angle(f64::sin)?);
                let turned = x.narrow(1, 0, 24)?.reshape((4, 4, 6))?;
                let (a, b) = (turned.narrow(2, 0, 3)?, turned.narrow(2, 3, 3)?);
                let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
                let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
                let turned = Tensor::cat(&[first, second], 2)?.reshape((4, 24))?;
                Tensor::cat(&[turned, x.narrow(1, 24, 6)?], 1)
            },
        );
    }
}
