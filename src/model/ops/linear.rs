//! A linear map with a weight and bias.
//!
//! Backward gives the input's gradient. The weight's and the bias's are added up where they are asked for and
//! trained; frozen ones get none, and no buffer of their size.

use std::ops::Range;

use super::gradients::{Gradients, Vector};
use super::matmul::{Left, Origin, Precision, Start, Threads, Weight, backward, forward, forward_both};
use crate::model::rows::{Pool, Rows};

/// `x · Wᵀ + b` over a `W` `[outputs, inputs]` and `b` `[outputs]`.
pub struct Linear {
    weight: Weight,
    bias: Option<Vector>,
    precision: Precision,
    /// Where the weight's gradient goes; `None`: it is frozen.
    origin: Option<Origin>,
}

/// What a linear map is given: rows that are there, or that are made where they are needed.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    rows: usize,
    left: Left<'a>,
    pool: &'a Pool,
}

impl<'a> From<&'a Rows> for Given<'a> {
    fn from(rows: &'a Rows) -> Self {
        Self { rows: rows.rows(), left: Left::There(rows), pool: rows.pool() }
    }
}

impl<'a> Given<'a> {
    /// What `make` writes for each row of a matrix, given its index; any thread may ask it for any row.
    pub fn made_of(matrix: &'a Rows, make: &'a (dyn Fn(usize, &mut [f32]) + Sync)) -> Self {
        Self { rows: matrix.rows(), left: Left::Made(make), pool: matrix.pool() }
    }
}

impl Linear {
    /// From its weight, and its bias if it has one; the weight is prepared for products of many rows.
    ///
    /// # Panics
    /// The bias has another length than the weight has outputs.
    pub fn new(weight: Weight, bias: Option<Vector>, precision: Precision) -> Self {
        let outputs = weight.outputs_len();
        assert!(bias.as_ref().is_none_or(|b| b.len() == outputs), "linear: {outputs} outputs, another bias");
        let origin = weight.origin();
        Self { weight: weight.prepared(precision), bias, precision, origin }
    }

    /// A vocabulary head, of which some outputs are asked for at a time, for few rows: the weight stays as it
    /// lies, but is rounded once.
    pub fn head(weight: Weight, precision: Precision) -> Self {
        let origin = weight.origin();
        let weight = match precision {
            Precision::F32 => weight,
            Precision::BF16 => weight.to_bf16(),
        };
        Self { weight, bias: None, precision, origin }
    }

    /// Lays the weight out for many products of many rows, if that makes them faster and takes no more memory.
    pub fn lay_out(&mut self) {
        if self.precision == Precision::F32 {
            self.weight = self.weight.clone().laid_out();
        }
    }

    /// The weight.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// The bias, if it has one.
    pub fn bias(&self) -> Option<&Vector> {
        self.bias.as_ref()
    }

    /// Where the weight's gradient goes; `None`: it is frozen.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// What the products are computed in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// `[rows, inputs]` → `[rows, outputs]`
    pub fn forward<'a>(&self, x: impl Into<Given<'a>>) -> Rows {
        let x = x.into();
        let mut y = x.pool.rows(x.rows, self.weight.outputs_len());
        forward(&mut y, x.left, &self.weight, self.start(), self.precision, Threads::All);
        y
    }

    /// The same of two maps of one precision.
    pub fn forward_both<'a>(maps: [&Self; 2], x: impl Into<Given<'a>>) -> [Rows; 2] {
        let x = x.into();
        let [mut y, mut z] = maps.map(|map| x.pool.rows(x.rows, map.weight.outputs_len()));
        let [first, second] = maps;
        let both = [(&mut y[..], &first.weight, first.start()), (&mut z[..], &second.weight, second.start())];
        forward_both(x.left, both, first.precision, Threads::All);
        [y, z]
    }

    /// What the product is added to.
    fn start(&self) -> Start<'_> {
        self.bias.as_deref().map_or(Start::Zero, Start::Bias)
    }

    /// The same, added to `residual` `[rows, outputs]`.
    pub fn forward_onto<'a>(&self, x: impl Into<Given<'a>>, residual: &Rows) -> Rows {
        let mut y = residual.like();
        let start = match self.bias.as_deref() {
            Some(bias) => Start::RowsAndBias { rows: residual, bias },
            None => Start::Rows(residual),
        };
        forward(&mut y, x.into().left, &self.weight, start, self.precision, Threads::All);
        y
    }

    /// From the output's gradient `[rows, outputs]` to the input's `[rows, inputs]`.
    pub fn backward<'a>(&self, dy: impl Into<Given<'a>>) -> Rows {
        let dy = dy.into();
        let mut dx = dy.pool.rows(dy.rows, self.weight.inputs_len());
        backward(&mut dx, dy.left, &self.weight, Start::Zero, self.precision, Threads::All);
        dx
    }

    /// [`Linear::backward`], added to `dx`.
    pub fn add_backward(&self, dy: &Rows, dx: &mut Rows) {
        backward(dx, Left::There(dy), &self.weight, Start::Output, self.precision, Threads::All);
    }

    /// Adds the gradients of weight and bias, from the input `[rows, inputs]` and the output's gradient
    /// `[rows, outputs]`.
    pub fn add_gradients(&self, x: &Rows, dy: &Rows, gradients: &mut Gradients) {
        if let Some(origin) = &self.origin {
            origin.add(x, dy, gradients);
        }
        if let Some(bias) = &self.bias {
            bias.add_sum(dy, gradients);
        }
    }

    /// Adds the weight's gradient for some of the outputs, of which `dy` `[rows, outputs]` has the gradient.
    pub(super) fn add_outputs_gradient(
        &self,
        outputs: Range<usize>,
        x: &[f32],
        dy: &[f32],
        gradients: &mut Gradients,
    ) {
        if let Some(origin) = &self.origin {
            origin.add_outputs(outputs, x, dy, gradients);
        }
    }
}
