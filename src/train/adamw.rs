//! AdamW with decoupled weight decay, in the order of operations of `torch.optim.AdamW`.

use rayon::prelude::*;

use crate::model::ops::blocks::dispatch;

/// The optimizer's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the two moments.
    pub betas: (f64, f64),
    /// Added to the denominator.
    pub eps: f64,
    /// Share of a weight that a step at learning rate 1 takes away.
    pub weight_decay: f64,
}

impl Default for AdamWOptions {
    /// torch's defaults.
    fn default() -> Self {
        Self { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.01 }
    }
}

/// What a step multiplies and adds, rounded as torch rounds it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// What weight decay leaves of the parameter.
    pub keep: f32,
    /// Minus the learning rate over the first moment's correction.
    pub step: f32,
    /// Root of the second moment's correction.
    pub correction2: f32,
    /// Share of the gradient in the first moment.
    pub weight: f32,
    /// Share of the old second moment.
    pub beta2: f32,
    /// Share of the gradient's square in the second moment.
    pub weight2: f32,
    /// Added to the denominator.
    pub eps: f32,
}

impl AdamWOptions {
    /// Those of the step of this number, from 1.
    pub fn factors(&self, learning_rate: f64, step: i32) -> Factors {
        let Self { betas: (beta1, beta2), eps, weight_decay } = *self;
        Factors {
            keep: (1.0 - learning_rate * weight_decay) as f32,
            step: -(learning_rate / (1.0 - beta1.powi(step))) as f32,
            correction2: (1.0 - beta2.powi(step)).sqrt() as f32,
            weight: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            weight2: (1.0 - beta2) as f32,
            eps: eps as f32,
        }
    }
}

/// Numbers that a thread takes at a time.
const CHUNK: usize = 1 << 14;

/// The moments of one parameter; scalars are f64 and the state f32, as in torch.
#[derive(Clone, Debug)]
pub struct AdamW {
    steps: i32,
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl AdamW {
    /// For a parameter of so many numbers.
    pub fn new(len: usize) -> Self {
        Self { steps: 0, mean: vec![0.0; len], square: vec![0.0; len] }
    }

    /// Moves the parameter one step along a gradient, of which each number is first multiplied by `scale`.
    pub fn step(
        &mut self,
        options: &AdamWOptions,
        learning_rate: f64,
        parameter: &mut [f32],
        gradient: &[f32],
        scale: f32,
    ) {
        self.steps += 1;
        let Factors { keep, step, correction2, weight, beta2, weight2, eps } =
            options.factors(learning_rate, self.steps);
        let chunks = parameter
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK))
            .zip(self.mean.par_chunks_mut(CHUNK).zip(self.square.par_chunks_mut(CHUNK)));
        chunks.for_each(|slices| {
            dispatch(
                slices,
                #[inline(always)]
                |((parameter, gradient), (mean, square))| {
                    for (((p, g), m), v) in parameter.iter_mut().zip(gradient).zip(mean).zip(square) {
                        let g = g * scale;
                        *p *= keep;
                        *m += weight * (g - *m);
                        *v = *v * beta2 + weight2 * g * g;
                        let denominator = v.sqrt() / correction2 + eps;
                        *p += step * *m / denominator;
                    }
                },
            );
        });
    }

    /// The first and the second moment.
    pub fn moments(&self) -> (&[f32], &[f32]) {
        (&self.mean, &self.square)
    }

    /// Goes on from the moments after so many steps.
    pub fn restore(&mut self, steps: usize, mean: Vec<f32>, square: Vec<f32>) {
        (self.steps, self.mean, self.square) = (steps as i32, mean, square);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_steps_as_torch_takes_them() {
        let mut p = [1.0f32, -2.0, 0.5];
        let mut adamw = AdamW::new(3);
        let gradients = [[0.1f32, -0.2, 0.3], [0.05, 0.4, -0.1], [1.0, 0.0, 1e-9]];
        for (gradient, rate) in gradients.iter().zip([3e-2, 2e-2, 1e-2]) {
            adamw.step(&AdamWOptions::default(), rate, &mut p, gradient, 1.0);
        }
        for (p, expected) in p.iter().zip(TORCH) {
            assert!((p - expected).abs() <= 1.2e-7 * expected.abs(), "{p} {expected}");
        }
    }

    /// torch.optim.AdamW on the same numbers.
    const TORCH: [f32; 3] = [0.943_618_83, -1.978_960_6, 0.458_611_8];
}
