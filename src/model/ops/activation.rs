//! The activations of MLPs, between the products before and after: GELU in its tanh form, and SwiGLU.

use super::blocks;
use super::exp::logistic;

/// What an MLP does to the output `u` of its first product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU as BLOOM and GPT-2 approximate it: `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`.
    GeluTanh,
    /// `silu(gate) · up`, of rows `gate | up`.
    SwiGlu,
}

/// `2 √(2/π)`, and its product with GELU's cubic coefficient.
const LINEAR: f32 = WIDE_LINEAR as f32;
const CUBIC: f32 = (WIDE_LINEAR * 0.044715) as f32;
const WIDE_LINEAR: f64 = std::f64::consts::SQRT_2 * std::f64::consts::FRAC_2_SQRT_PI;

impl Activation {
    /// The width of `u` where that of `y` is `inner`.
    pub fn width(self, inner: usize) -> usize {
        match self {
            Self::GeluTanh => inner,
            Self::SwiGlu => 2 * inner,
        }
    }

    /// `u: [rows, width(inner)]` → `y: [rows, inner]`.
    ///
    /// # Panics
    /// The slices don't have these shapes.
    pub fn forward(self, u: &[f32], y: &mut [f32], inner: usize) {
        let rows = self.rows(u, y, inner);
        blocks::each(
            rows,
            inner,
            (u, y),
            #[inline(always)]
            |(u, y)| self.forward_row(u, y),
        );
    }

    /// The gradient of `u: [rows, width(inner)]`, `du`, from that of the output, `dy: [rows, inner]`.
    ///
    /// # Panics
    /// The slices don't have these shapes.
    pub fn backward(self, u: &[f32], dy: &[f32], du: &mut [f32], inner: usize) {
        let rows = self.rows(u, dy, inner);
        assert_eq!(u.len(), du.len(), "activation: input and gradient differ in length");
        blocks::each(
            rows,
            inner,
            ((u, dy), du),
            #[inline(always)]
            |((u, dy), du)| self.backward_row(u, dy, du),
        );
    }

    /// [`Activation::forward`] of one row.
    pub fn row(self, u: &[f32], y: &mut [f32]) {
        blocks::dispatch(
            (u, y),
            #[inline(always)]
            |(u, y)| self.forward_row(u, y),
        );
    }

    /// [`Activation::backward`] of one row.
    pub fn gradient_row(self, u: &[f32], dy: &[f32], du: &mut [f32]) {
        blocks::dispatch(
            (u, dy, du),
            #[inline(always)]
            |(u, dy, du)| self.backward_row(u, dy, du),
        );
    }

    #[inline(always)]
    fn forward_row(self, u: &[f32], y: &mut [f32]) {
        match self {
            Self::GeluTanh => {
                for (y, u) in y.iter_mut().zip(u) {
                    *y = gelu(*u).0;
                }
            }
            Self::SwiGlu => {
                let (gate, up) = u.split_at(y.len());
                for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                    *y = silu(*gate).0 * up;
                }
            }
        }
    }

    #[inline(always)]
    fn backward_row(self, u: &[f32], dy: &[f32], du: &mut [f32]) {
        match self {
            Self::GeluTanh => {
                for ((du, u), dy) in du.iter_mut().zip(u).zip(dy) {
                    *du = dy * gelu(*u).1;
                }
            }
            Self::SwiGlu => {
                let ((gate, up), (d_gate, d_up)) = (u.split_at(dy.len()), du.split_at_mut(dy.len()));
                for ((((d_gate, d_up), gate), up), dy) in
                    d_gate.iter_mut().zip(d_up).zip(gate).zip(up).zip(dy)
                {
                    let (value, slope) = silu(*gate);
                    (*d_gate, *d_up) = (dy * up * slope, dy * value);
                }
            }
        }
    }

    fn rows(self, u: &[f32], y: &[f32], inner: usize) -> usize {
        let rows = blocks::count(y, inner);
        assert_eq!(u.len(), rows * self.width(inner), "activation: input and output differ in rows");
        rows
    }
}

/// GELU and its derivative: `1 + tanh(z)` is `2 logistic(2z)`, which takes one exponential.
#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    let square = x * x;
    let (value, slope) = logistic(x * square.mul_add(CUBIC, LINEAR));
    (x * value, (x * slope).mul_add(square.mul_add(3.0 * CUBIC, LINEAR), value))
}

/// `x logistic(x)` and its derivative.
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let (value, slope) = logistic(x);
    (x * value, x.mul_add(slope, value))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, gradient, numbers, same_bits, wide};
    use super::*;

    const BOTH: [Activation; 2] = [Activation::GeluTanh, Activation::SwiGlu];

    /// A row's activation by the formula.
    fn expected(activation: Activation, u: &[f64]) -> Vec<f64> {
        let gelu = |x: f64| {
            let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + z.tanh())
        };
        match activation {
            Activation::GeluTanh => u.iter().map(|x| gelu(*x)).collect(),
            Activation::SwiGlu => {
                let (gate, up) = u.split_at(u.len() / 2);
                gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
            }
        }
    }

    #[test]
    fn values_and_gradients() {
        for (rows, inner) in [(0, 3), (1, 1), (1, 64), (5, 3), (5, 17), (33, 64), (1, 300)] {
            for (activation, scale) in BOTH.into_iter().flat_map(|a| [(a, 1.0), (a, 6.0)]) {
                let width = activation.width(inner);
                let u: Vec<f32> = numbers(rows * width, 1).iter().map(|x| scale * x).collect();
                let dy = numbers(rows * inner, 2);
                let (mut y, mut du) = (vec![f32::NAN; dy.len()], vec![f32::NAN; u.len()]);
                activation.forward(&u, &mut y, inner);
                activation.backward(&u, &dy, &mut du, inner);
                for i in 0..rows {
                    let (row, out) = (i * width..(i + 1) * width, i * inner..(i + 1) * inner);
                    let (u, dy) = (wide(&u[row.clone()]), wide(&dy[out.clone()]));
                    close(&y[out], &expected(activation, &u), 5e-7);
                    close(&du[row], &gradient(&u, &dy, |u| expected(activation, u)), 1e-6);
                }
            }
        }
    }

    #[test]
    fn gelu_of_large_numbers_is_finite() {
        let (u, mut y, mut du) = ([-1e4, -50.0, 0.0, 50.0, 1e4], [0.0; 5], [0.0; 5]);
        Activation::GeluTanh.forward(&u, &mut y, 5);
        assert_eq!(y, [0.0, 0.0, 0.0, 50.0, 1e4]);
        Activation::GeluTanh.backward(&u, &[1.0; 5], &mut du, 5);
        assert_eq!(du, [0.0, 0.0, 0.5, 1.0, 1.0]);
    }

    #[test]
    fn nan_stays() {
        for activation in BOTH {
            for at in 0..activation.width(70) {
                let (mut u, mut y) = (numbers(activation.width(70), 1), vec![0.0; 70]);
                u[at] = f32::NAN;
                let mut du = vec![0.0; u.len()];
                activation.forward(&u, &mut y, 70);
                activation.backward(&u, &numbers(70, 2), &mut du, 70);
                let gate = at % 70;
                assert!(y.iter().enumerate().all(|(i, y)| y.is_nan() == (i == gate)), "{activation:?} {at}");
                assert!(du[gate].is_nan() && (at < 70 || !du[at].is_nan()));
            }
            let (u, mut dy) = (numbers(activation.width(70), 1), numbers(70, 2));
            let mut du = vec![0.0; u.len()];
            dy[3] = f32::NAN;
            activation.backward(&u, &dy, &mut du, 70);
            assert!(du.iter().enumerate().all(|(i, du)| du.is_nan() == (i % 70 == 3)));
        }
    }

    #[test]
    fn threads_change_nothing() {
        for activation in BOTH {
            let (u, dy) = (numbers(33 * activation.width(1000), 1), numbers(33_000, 2));
            same_bits(|| {
                let (mut y, mut du) = (vec![0.0; dy.len()], vec![0.0; u.len()]);
                activation.forward(&u, &mut y, 1000);
                activation.backward(&u, &dy, &mut du, 1000);
                [y, du].concat()
            });
        }
    }
}
