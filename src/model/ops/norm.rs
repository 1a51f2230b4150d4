//! Layer norm and RMS norm over frozen weights.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{slice, with_values};

/// A normalisation of each row.
#[derive(Clone)]
pub struct Norm(Arc<Frozen>);

struct Frozen {
    weight: Vec<f32>,
    /// Layer norm's bias; RMS norm has none, and takes no mean away.
    bias: Option<Vec<f32>>,
    eps: f32,
}

impl Norm {
    /// Layer norm: `(x - mean) / sqrt(variance + eps) · weight + bias`.
    ///
    /// # Errors
    /// The weights are not vectors of f32.
    pub fn layer(weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Self> {
        let bias = Some(bias.to_vec1()?);
        Ok(Self(Arc::new(Frozen { weight: weight.to_vec1()?, bias, eps: eps as f32 })))
    }

    /// RMS norm: `x / sqrt(mean(x²) + eps) · weight`.
    ///
    /// # Errors
    /// The weight is not a vector of f32.
    pub fn rms(weight: &Tensor, eps: f64) -> Result<Self> {
        Ok(Self(Arc::new(Frozen { weight: weight.to_vec1()?, bias: None, eps: eps as f32 })))
    }

    /// `[rows, width]` → the same.
    ///
    /// # Errors
    /// The input has another width.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1(Apply(self.0.clone()))
    }
}

impl Frozen {
    /// What is taken from each number of a row, and what it is then multiplied by.
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        let n = row.len() as f64;
        let mean = if self.bias.is_some() { (sum(row, |x| x) / n) as f32 } else { 0.0 };
        let variance = (sum(row, |x| (x - mean) * (x - mean)) / n) as f32;
        (mean, 1.0 / (variance + self.eps).sqrt())
    }

    fn forward(&self, x: &[f32], y: &mut [f32]) {
        let (mean, scale) = self.moments(x);
        for ((y, x), w) in y.iter_mut().zip(x).zip(&self.weight) {
            *y = (x - mean) * scale * w;
        }
        if let Some(bias) = &self.bias {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }

    fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        let n = x.len() as f64;
        let (mean, scale) = self.moments(x);
        let (mut sum, mut dot) = (0.0f64, 0.0f64);
        for ((x, dy), w) in x.iter().zip(dy).zip(&self.weight) {
            sum += f64::from(dy * w);
            dot += f64::from(dy * w * (x - mean) * scale);
        }
        let sum = if self.bias.is_some() { (sum / n) as f32 } else { 0.0 };
        let dot = (dot / n) as f32;
        for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(&self.weight) {
            *dx = scale * (dy * w - sum - (x - mean) * scale * dot);
        }
    }
}

/// A sum in f64: the rounding of every norm goes through all layers behind it.
fn sum(row: &[f32], term: impl Fn(f32) -> f32) -> f64 {
    row.iter().map(|x| f64::from(term(*x))).sum()
}

struct Apply(Arc<Frozen>);

impl CustomOp1 for Apply {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = layout.shape().dims2()?;
        if width != self.0.weight.len() {
            candle_core::bail!("norm: the input has width {width}, the weight {}", self.0.weight.len());
        }
        let x = slice(storage, layout)?;
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(width).zip(x.par_chunks(width)).for_each(|(y, x)| self.0.forward(x, y));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let width = self.0.weight.len();
        let mut dx = vec![0.0; x.elem_count()];
        with_values(x, |x| {
            with_values(gradient, |dy| {
                dx.par_chunks_mut(width)
                    .zip(x.par_chunks(width))
                    .zip(dy.par_chunks(width))
                    .for_each(|((dx, x), dy)| self.0.backward(x, dy, dx));
            })
        })??;
        Ok(Some(Tensor::from_vec(dx, x.dims(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType::F64};

    use super::super::testing::{check, numbers};
    use super::*;

    #[test]
    fn layer_norm_value_and_gradient() {
        for (rows, width) in [(1, 3), (5, 17), (9, 64)] {
            let (w, b) = (numbers(&[width], 2), numbers(&[width], 3));
            let norm = Norm::layer(&w, &b, 1e-5).unwrap();
            let (w, b) = (w.to_dtype(F64).unwrap(), b.to_dtype(F64).unwrap());
            check(
                &numbers(&[rows, width], 1),
                |x| norm.forward(x),
                |x| {
                    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
                    let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?;
                    x.broadcast_div(&deviation)?.broadcast_mul(&w)?.broadcast_add(&b)
                },
            );
        }
    }

    #[test]
    fn rms_norm_value_and_gradient() {
        for (rows, width) in [(1, 3), (5, 17), (9, 64)] {
            let w = numbers(&[width], 2);
            let norm = Norm::rms(&w, 1e-6).unwrap();
            let w = w.to_dtype(F64).unwrap();
            check(
                &numbers(&[rows, width], 1),
                |x| norm.forward(x),
                |x| {
                    let size = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
                    x.broadcast_div(&size)?.broadcast_mul(&w)
                },
            );
        }
    }
}
