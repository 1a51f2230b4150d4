//! Layer norm and RMS norm of rows. The weights' gradients are added up apart from the input's, if they are trained.
//!
//! Nothing is kept between forward and backward: the statistics of a row are cheaper to compute again than to
//! carry about.

use super::gradients::{Gradients, Vector};
use super::{blocks, reduce};
use crate::model::rows::Rows;

/// A normalisation of each row.
#[derive(Clone, Debug)]
pub struct Norm {
    weight: Vector,
    /// Layer norm's bias; RMS norm has none, and takes no mean away.
    bias: Option<Vector>,
    eps: f64,
}

impl Norm {
    /// Layer norm: `(x - mean) / sqrt(variance + eps) · weight + bias`.
    ///
    /// # Panics
    /// Weight and bias differ in length, or are empty.
    pub fn layer(weight: impl Into<Vector>, bias: impl Into<Vector>, eps: f64) -> Self {
        let (weight, bias) = (weight.into(), bias.into());
        assert_eq!(weight.len(), bias.len(), "norm: weight and bias differ in length");
        Self { bias: Some(bias), ..Self::rms(weight, eps) }
    }

    /// RMS norm: `x / sqrt(mean(x²) + eps) · weight`.
    ///
    /// # Panics
    /// The weight is empty.
    pub fn rms(weight: impl Into<Vector>, eps: f64) -> Self {
        let weight = weight.into();
        assert!(!weight.is_empty(), "norm: the weight is empty");
        Self { weight, bias: None, eps }
    }

    /// Its weight, its bias if it has one, and what is added to the variance.
    pub fn parts(&self) -> (&Vector, Option<&Vector>, f64) {
        (&self.weight, self.bias.as_ref(), self.eps)
    }

    /// `x: [rows, width]` → `y`, the same.
    ///
    /// # Panics
    /// The slices aren't rows of the weight's width, or differ in length.
    pub fn forward(&self, x: &[f32], y: &mut [f32]) {
        let width = self.weight.len();
        assert_eq!(x.len(), y.len(), "norm: input and output differ in length");
        blocks::each(
            blocks::count(x, width),
            width,
            (x, y),
            #[inline(always)]
            |(x, y)| self.forward_row(x, y),
        );
    }

    /// Adds the gradient of the input to `dx`, from `x` and the gradient of the output: all `[rows, width]`.
    ///
    /// # Panics
    /// The slices aren't rows of the weight's width, or differ in length.
    pub fn add_backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        let width = self.weight.len();
        assert!(x.len() == dy.len() && x.len() == dx.len(), "norm: input and gradients differ in length");
        blocks::each(
            blocks::count(x, width),
            width,
            ((x, dy), dx),
            #[inline(always)]
            |((x, dy), dx)| self.add_backward_row(x, dy, dx),
        );
    }

    /// Adds the gradients of weight and bias, from `x` and the gradient of the output: both `[rows, width]`.
    pub fn add_gradients(&self, x: &Rows, dy: &Rows, gradients: &mut Gradients) {
        let scaled = x.mapped(|x, scaled| {
            blocks::each(
                blocks::count(x, self.weight.len()),
                self.weight.len(),
                ((x, &dy[..]), scaled),
                #[inline(always)]
                |((x, dy), scaled): ((&[f32], &[f32]), &mut [f32])| {
                    let (mean, scale) = self.moments(x);
                    for ((scaled, x), dy) in scaled.iter_mut().zip(x).zip(dy) {
                        *scaled = dy * ((x - mean) * scale);
                    }
                },
            );
        });
        self.weight.add_sum(&scaled, gradients);
        if let Some(bias) = &self.bias {
            bias.add_sum(dy, gradients);
        }
    }

    /// [`Norm::forward`] of one row.
    pub fn row(&self, x: &[f32], y: &mut [f32]) {
        blocks::dispatch(
            (x, y),
            #[inline(always)]
            |(x, y)| self.forward_row(x, y),
        );
    }

    #[inline(always)]
    fn forward_row(&self, x: &[f32], y: &mut [f32]) {
        let (mean, scale) = self.moments(x);
        let scaled = y.iter_mut().zip(x).zip(&self.weight[..]);
        if let Some(bias) = &self.bias {
            for (((y, x), w), b) in scaled.zip(&bias[..]) {
                *y = ((x - mean) * scale).mul_add(*w, *b);
            }
        } else {
            for ((y, x), w) in scaled {
                *y = x * scale * w;
            }
        }
    }

    #[inline(always)]
    fn add_backward_row(&self, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        let n = x.len() as f64;
        let (mean, scale) = self.moments(x);
        let w = &self.weight[..];
        let shift = match self.bias {
            Some(_) => {
                (reduce::sum(
                    [dy, w],
                    #[inline(always)]
                    |sum, [dy, w]| dy.mul_add(w, sum),
                ) / n) as f32
            }
            None => 0.0,
        };
        let dot = reduce::sum(
            [x, dy, w],
            #[inline(always)]
            |sum, [x, dy, w]| (dy * w).mul_add(x - mean, sum),
        );
        let slope = (f64::from(scale).powi(2) * dot / n) as f32;
        for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(w) {
            let inner = (x - mean).mul_add(-slope, dy.mul_add(*w, -shift));
            *dx = scale.mul_add(inner, *dx);
        }
    }

    /// What is taken from each number of a row, and what it is then multiplied by.
    #[inline(always)]
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        let n = row.len() as f64;
        let mean = match self.bias {
            Some(_) => {
                (reduce::sum(
                    [row],
                    #[inline(always)]
                    |sum, [x]| sum + x,
                ) / n) as f32
            }
            None => 0.0,
        };
        let variance = reduce::sum(
            [row],
            #[inline(always)]
            |sum, [x]| (x - mean).mul_add(x - mean, sum),
        ) / n;
        (mean, (1.0 / (variance + self.eps).sqrt()) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, gradient, numbers, same_bits, wide};
    use super::*;
    use crate::model::rows::Pool;

    const EPS: f64 = 1e-5;

    fn norms(width: usize) -> [Norm; 2] {
        let (weight, bias) = (numbers(width, 2), numbers(width, 3));
        [Norm::layer(weight.clone(), bias, EPS), Norm::rms(weight, EPS)]
    }

    /// A row's norm by the formula.
    fn expected(norm: &Norm, x: &[f64]) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = if norm.bias.is_some() { x.iter().sum::<f64>() / n } else { 0.0 };
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let bias = norm.bias.as_deref().map_or(vec![0.0; x.len()], <[f32]>::to_vec);
        let weights = norm.weight.iter().zip(&bias).map(|(w, b)| (f64::from(*w), f64::from(*b)));
        x.iter().zip(weights).map(|(x, (w, b))| (x - mean) / (variance + EPS).sqrt() * w + b).collect()
    }

    #[test]
    fn values_and_gradients() {
        for (rows, width) in [(0, 3), (1, 1), (1, 64), (5, 3), (5, 17), (33, 64), (5, 200), (2, 1024)] {
            for norm in norms(width) {
                let x: Vec<f32> = numbers(rows * width, 1).iter().map(|x| 3.0 * x + 0.5).collect();
                let dy = numbers(rows * width, 4);
                let before = numbers(rows * width, 5);
                let (mut y, mut dx) = (vec![0.0; x.len()], before.clone());
                norm.forward(&x, &mut y);
                norm.add_backward(&x, &dy, &mut dx);
                for i in 0..rows {
                    let row = i * width..(i + 1) * width;
                    let (x, dy) = (wide(&x[row.clone()]), wide(&dy[row.clone()]));
                    close(&y[row.clone()], &expected(&norm, &x), 1e-6);
                    let mut expected = gradient(&x, &dy, |x| expected(&norm, x));
                    expected.iter_mut().zip(&before[row.clone()]).for_each(|(d, b)| *d += f64::from(*b));
                    // In narrow rows, what is added is next to nothing of what cancels.
                    close(&dx[row], &expected, if width < 17 { 2e-5 } else { 1e-6 });
                }
            }
        }
    }

    #[test]
    fn weight_and_bias_get_their_gradients() {
        let (rows, width) = (7, 70);
        let [weight, bias] = [2, 3].map(|seed| Vector::trained(numbers(width, seed), seed as usize - 2));
        let (x, dy) = (numbers(rows * width, 1), numbers(rows * width, 4));
        for norm in [Norm::layer(weight.clone(), bias, EPS), Norm::rms(weight, EPS)] {
            let pool = Pool::default();
            let mut gradients = Gradients::zeros([width, width].into_iter());
            norm.add_gradients(&pool.copied(&x, width), &pool.copied(&dy, width), &mut gradients);
            let (mut d_weight, mut d_bias) = (vec![0.0; width], vec![0.0; width]);
            let unit = Norm { weight: vec![1.0; width].into(), bias: norm.bias.clone(), eps: EPS };
            for (x, dy) in x.chunks(width).zip(dy.chunks(width)) {
                let bias = norm.bias.as_deref().map_or(vec![0.0; width], <[f32]>::to_vec);
                for (j, y) in expected(&unit, &wide(x)).iter().enumerate() {
                    d_weight[j] += f64::from(dy[j]) * (y - f64::from(bias[j]));
                    d_bias[j] += f64::from(dy[j]);
                }
            }
            close(&gradients.tensors()[0], &d_weight, 1e-6);
            match norm.bias {
                Some(_) => close(&gradients.tensors()[1], &d_bias, 1e-6),
                None => assert!(gradients.tensors()[1].iter().all(|g| *g == 0.0)),
            }
        }
    }

    #[test]
    fn a_mean_far_from_zero_costs_little() {
        for norm in norms(1024) {
            let x: Vec<f32> = numbers(1024, 1).iter().map(|x| x + 100.0).collect();
            let mut y = vec![0.0; x.len()];
            norm.forward(&x, &mut y);
            // Half an ulp of the mean, 4e-6, over the deviation.
            close(&y, &expected(&norm, &wide(&x)), 8e-6);
        }
    }

    #[test]
    fn nan_spreads_over_its_row_only() {
        for norm in norms(100) {
            let (mut x, dy) = (numbers(300, 1), numbers(300, 2));
            let (mut y, mut dx) = (vec![0.0; 300], vec![0.0; 300]);
            x[150] = f32::NAN;
            norm.forward(&x, &mut y);
            norm.add_backward(&x, &dy, &mut dx);
            for (i, (y, dx)) in y.iter().zip(&dx).enumerate() {
                assert_eq!((y.is_nan(), dx.is_nan()), (i / 100 == 1, i / 100 == 1), "{i}");
            }
        }
    }

    #[test]
    fn threads_change_nothing() {
        for norm in norms(1000) {
            let (x, dy) = (numbers(99_000, 1), numbers(99_000, 2));
            same_bits(|| {
                let (mut y, mut dx) = (vec![0.0; x.len()], vec![1.0; x.len()]);
                norm.forward(&x, &mut y);
                norm.add_backward(&x, &dy, &mut dx);
                [y, dx].concat()
            });
        }
    }

    #[test]
    #[should_panic(expected = "4 numbers aren't rows of 3")]
    fn another_width_is_refused() {
        norms(3)[0].forward(&[0.0; 4], &mut [0.0; 4]);
    }
}
