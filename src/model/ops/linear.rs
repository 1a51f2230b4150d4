//! A linear map with a frozen weight and bias.
//!
//! Backward gives the input's gradient; the weight gets none, and no buffer of its size.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::matmul::{Matrix, MatrixMut, Threads, add_product, product};
use super::{slice, with_values};

/// `x · W + b` over frozen `W` and `b`.
#[derive(Clone)]
pub struct Linear(Arc<Frozen>);

struct Frozen {
    weight: Tensor,
    bias: Option<Vec<f32>>,
    inputs: usize,
    outputs: usize,
    stored: Stored,
}

/// How the weight lies in memory; both directions read it as it is.
enum Stored {
    OutputsByInputs,
    InputsByOutputs,
}

impl Linear {
    /// From a weight `[outputs, inputs]`, as torch's `Linear` keeps it, and a bias `[outputs]`.
    ///
    /// # Errors
    /// The weight is not a matrix, or the bias has another length.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        Self::build(weight, bias, inputs, outputs, Stored::OutputsByInputs)
    }

    /// From a weight `[inputs, outputs]`, as GPT-2's `Conv1D` keeps it, and a bias `[outputs]`.
    ///
    /// # Errors
    /// The weight is not a matrix, or the bias has another length.
    pub fn from_conv1d(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (inputs, outputs) = weight.dims2()?;
        Self::build(weight, bias, inputs, outputs, Stored::InputsByOutputs)
    }

    fn build(
        weight: Tensor,
        bias: Option<Tensor>,
        inputs: usize,
        outputs: usize,
        stored: Stored,
    ) -> Result<Self> {
        let bias = bias.map(|b| b.reshape(outputs)?.to_vec1::<f32>()).transpose()?;
        let weight = weight.contiguous()?;
        Ok(Self(Arc::new(Frozen { weight, bias, inputs, outputs, stored })))
    }

    /// `[rows, inputs]` → `[rows, outputs]`.
    ///
    /// # Errors
    /// The input has another width.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1(Apply(self.0.clone()))
    }
}

impl Frozen {
    /// The weight as the matrix `[inputs, outputs]` that multiplies a row from the right.
    fn matrix<'a>(&self, values: &'a [f32]) -> Matrix<'a> {
        match self.stored {
            Stored::OutputsByInputs => {
                Matrix::new(values, self.outputs, self.inputs, self.inputs).transposed()
            }
            Stored::InputsByOutputs => Matrix::new(values, self.inputs, self.outputs, self.outputs),
        }
    }
}

struct Apply(Arc<Frozen>);

impl CustomOp1 for Apply {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Frozen { weight, bias, inputs, outputs, .. } = &*self.0;
        let (rows, width) = layout.shape().dims2()?;
        if width != *inputs {
            candle_core::bail!("linear: the input has width {width}, the weight needs {inputs}");
        }
        let x = Matrix::new(slice(storage, layout)?, rows, *inputs, *inputs);
        let mut y = Vec::with_capacity(rows * outputs);
        match bias {
            Some(bias) => (0..rows).for_each(|_| y.extend_from_slice(bias)),
            None => y.resize(rows * outputs, 0.0),
        }
        with_values(weight, |w| {
            let out = MatrixMut::new(&mut y, rows, *outputs, *outputs);
            match bias {
                Some(_) => add_product(out, 1.0, x, self.0.matrix(w), Threads::All),
                None => product(out, 1.0, x, self.0.matrix(w), Threads::All),
            }
        })?;
        Ok((CpuStorage::F32(y), Shape::from((rows, *outputs))))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let Frozen { weight, inputs, outputs, .. } = &*self.0;
        let rows = x.dim(0)?;
        let mut dx = vec![0.0; rows * inputs];
        with_values(gradient, |dy| {
            with_values(weight, |w| {
                let out = MatrixMut::new(&mut dx, rows, *inputs, *inputs);
                let dy = Matrix::new(dy, rows, *outputs, *outputs);
                product(out, 1.0, dy, self.0.matrix(w).transposed(), Threads::All);
            })
        })??;
        Ok(Some(Tensor::from_vec(dx, (rows, *inputs), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType::F64;

    use super::super::testing::{check, numbers};
    use super::*;

    #[test]
    fn value_and_gradient_with_and_without_bias() {
        for (rows, inputs, outputs) in [(1, 3, 5), (7, 13, 9), (33, 17, 31)] {
            let x = numbers(&[rows, inputs], 1);
            let (w, b) = (numbers(&[outputs, inputs], 2), numbers(&[outputs], 3));
            let (w64, b64) = (w.to_dtype(F64).unwrap(), b.to_dtype(F64).unwrap());
            let linear = Linear::new(w.clone(), Some(b.clone())).unwrap();
            let formula = |x: &Tensor| x.matmul(&w64.t()?)?.broadcast_add(&b64);
            check(&x, |x| linear.forward(x), formula);
            let conv = Linear::from_conv1d(w.t().unwrap(), Some(b)).unwrap();
            check(&x, |x| conv.forward(x), formula);
            let plain = Linear::new(w, None).unwrap();
            check(&x, |x| plain.forward(x), |x| x.matmul(&w64.t()?));
        }
    }

    #[test]
    fn an_input_of_another_width_is_refused() {
        let linear = Linear::new(numbers(&[4, 3], 1), None).unwrap();
        let error = linear.forward(&numbers(&[2, 5], 2)).unwrap_err();
        assert!(error.to_string().starts_with("linear: the input has width 5, the weight needs 3"));
    }
}
