//! The activations of MLPs: GELU in its tanh form, and SwiGLU's gate.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{slice, with_values};

/// GELU as BLOOM and GPT-2 approximate it: `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`.
///
/// # Errors
/// The tensor is not f32 on the processor.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(GeluTanh)
}

/// `silu(gate) · up`, from `[rows, gate | up]` to half that width.
///
/// # Errors
/// The width is odd, or the tensor is not f32 on the processor.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    gate_up.contiguous()?.apply_op1(SwiGlu)
}

/// Numbers a thread takes at a time.
const CHUNK: usize = 4096;
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044715;

/// The argument of the tanh, doubled: 1 + tanh(u) = 2·logistic(2u) costs one exponential.
fn doubled(x: f32) -> f32 {
    2.0 * SQRT_2_OVER_PI * (x + CUBIC * x * x * x)
}

fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

struct GeluTanh;

impl CustomOp1 for GeluTanh {
    fn name(&self) -> &'static str {
        "gelu_tanh"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = slice(storage, layout)?
            .par_iter()
            .with_min_len(CHUNK)
            .map(|&x| x * logistic(doubled(x)))
            .collect::<Vec<_>>();
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let dx: Vec<f32> = with_values(x, |x| {
            with_values(gradient, |dy| {
                let derivative = |x: f32| {
                    let s = logistic(doubled(x));
                    s + x * s * (1.0 - s) * 2.0 * SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x)
                };
                let pairs = x.par_iter().with_min_len(CHUNK).zip(dy);
                pairs.map(|(&x, dy)| dy * derivative(x)).collect()
            })
        })??;
        Ok(Some(Tensor::from_vec(dx, x.dims(), x.device())?))
    }
}

struct SwiGlu;

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        if width % 2 != 0 {
            candle_core::bail!("swiglu: gate and up take an even width, this is {width}");
        }
        let half = width / 2;
        let mut y = vec![0.0; rows * half];
        let x = slice(storage, layout)?;
        y.par_chunks_mut(half).zip(x.par_chunks(width)).for_each(|(y, x)| {
            let (gate, up) = x.split_at(half);
            for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
                *y = g * logistic(*g) * u;
            }
        });
        Ok((CpuStorage::F32(y), Shape::from((rows, half))))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (rows, width) = x.dims2()?;
        let half = width / 2;
        let mut dx = vec![0.0; rows * width];
        with_values(x, |x| {
            with_values(gradient, |dy| {
                let rows = dx.par_chunks_mut(width).zip(x.par_chunks(width)).zip(dy.par_chunks(half));
                rows.for_each(|((dx, x), dy)| {
                    let (gate, up) = x.split_at(half);
                    let (d_gate, d_up) = dx.split_at_mut(half);
                    for i in 0..half {
                        let s = logistic(gate[i]);
                        d_gate[i] = dy[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
                        d_up[i] = dy[i] * gate[i] * s;
                    }
                });
            })
        })??;
        Ok(Some(Tensor::from_vec(dx, x.dims(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, numbers};
    use super::*;

    #[test]
    fn gelu_value_and_gradient() {
        for scale in [1.0, 4.0] {
            let x = (numbers(&[7, 13], 1) * scale).unwrap();
            check(&x, gelu_tanh, |x| {
                let inner = ((x + (x.powf(3.0)? * 0.044715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
                x * ((inner.tanh()? + 1.0)? * 0.5)?
            });
        }
    }

    #[test]
    fn gelu_of_large_numbers_is_finite() {
        let x = Tensor::new(&[[-1e4f32, -50.0, 0.0, 50.0, 1e4]], &candle_core::Device::Cpu).unwrap();
        assert_eq!(gelu_tanh(&x).unwrap().to_vec2::<f32>().unwrap(), [[0.0, 0.0, 0.0, 50.0, 1e4]]);
    }

    #[test]
    fn swiglu_value_and_gradient() {
        let x = (numbers(&[5, 14], 1) * 3.0).unwrap();
        check(&x, swiglu, |x| {
            let (gate, up) = (x.narrow(1, 0, 7)?, x.narrow(1, 7, 7)?);
            (&gate / ((gate.neg()?.exp()? + 1.0)?)) * up
        });
    }
}
