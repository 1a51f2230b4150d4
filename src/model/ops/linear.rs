//! A linear map with a frozen weight and bias.
//!
//! Backward gives the input's gradient; the weight gets none, and no buffer of its size.

use super::matmul::{Precision, Start, Threads, Weight, backward, forward};
use crate::model::rows::Rows;

/// `x · Wᵀ + b` over a frozen `W` `[outputs, inputs]` and `b` `[outputs]`.
pub struct Linear {
    weight: Weight,
    bias: Option<Vec<f32>>,
    precision: Precision,
}

impl Linear {
    /// From its weight, and its bias if it has one; the weight is prepared for products of many rows.
    ///
    /// # Panics
    /// The bias has another length than the weight has outputs.
    pub fn new(weight: Weight, bias: Option<Vec<f32>>, precision: Precision) -> Self {
        let outputs = weight.outputs_len();
        assert!(bias.as_ref().is_none_or(|b| b.len() == outputs), "linear: {outputs} outputs, another bias");
        Self { weight: weight.prepared(precision), bias, precision }
    }

    /// A vocabulary head, of which some outputs are asked for at a time, for few rows: the weight stays as it
    /// lies, but is rounded once.
    pub fn head(weight: Weight, precision: Precision) -> Self {
        let weight = match precision {
            Precision::F32 => weight,
            Precision::BF16 => weight.to_bf16(),
        };
        Self { weight, bias: None, precision }
    }

    /// The weight.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// What the products are computed in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// `[rows, inputs]` → `[rows, outputs]`
    pub fn forward(&self, x: &Rows) -> Rows {
        let mut y = x.pool().rows(x.rows(), self.weight.outputs_len());
        let start = self.bias.as_deref().map_or(Start::Zero, Start::Bias);
        forward(&mut y, x, &self.weight, start, self.precision, Threads::All);
        y
    }

    /// The same, added to `residual` `[rows, outputs]`.
    pub fn forward_onto(&self, x: &Rows, residual: &Rows) -> Rows {
        let mut y = residual.like();
        let start = match self.bias.as_deref() {
            Some(bias) => Start::RowsAndBias { rows: residual, bias },
            None => Start::Rows(residual),
        };
        forward(&mut y, x, &self.weight, start, self.precision, Threads::All);
        y
    }

    /// From the output's gradient `[rows, outputs]` to the input's `[rows, inputs]`.
    pub fn backward(&self, dy: &Rows) -> Rows {
        let mut dx = dy.pool().rows(dy.rows(), self.weight.inputs_len());
        backward(&mut dx, dy, &self.weight, Start::Zero, self.precision, Threads::All);
        dx
    }

    /// [`Linear::backward`], added to `dx`.
    pub fn add_backward(&self, dy: &Rows, dx: &mut Rows) {
        backward(dx, dy, &self.weight, Start::Output, self.precision, Threads::All);
    }
}
