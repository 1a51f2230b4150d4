//! Steps of tensors that lie in the processor's memory: clipping and the optimizer.
//!
//! Does not know where the gradients come from.

use rayon::prelude::*;

use super::adamw::{AdamW, AdamWOptions};
use super::learner::{Outcome, Restored, State, Trouble, Update};
use crate::model::ops::blocks::dispatch;

/// A tensor that is trained, with the gradient it has been given so far.
pub struct Trainable<'a> {
    /// What errors and checkpoints call it.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its numbers, row by row.
    pub numbers: &'a mut [f32],
    /// The loss's gradient for each of them.
    pub gradient: &'a mut [f32],
    /// Whether weight decay applies to it.
    pub decays: bool,
}

/// The optimizer's state of each tensor.
#[derive(Default)]
pub struct Descent {
    optimizers: Vec<AdamW>,
}

/// Numbers that are added up before their sums are: the same however many threads there are.
const CHUNK: usize = 1 << 14;

impl Descent {
    /// For tensors of so many numbers.
    pub fn new(lengths: impl Iterator<Item = usize>) -> Self {
        Self { optimizers: lengths.map(AdamW::new).collect() }
    }

    /// Moves the tensors along their gradients, which are zero then.
    pub fn step(&mut self, tensors: Vec<Trainable>, update: &Update) -> Outcome {
        let squares: Vec<f64> = tensors.iter().map(|tensor| square(tensor.gradient)).collect();
        let norm = squares.iter().sum::<f64>().sqrt();
        let trouble = tensors.iter().zip(&squares).find_map(|(tensor, square)| {
            let trouble = if square.is_finite() { Trouble::Zero } else { Trouble::NotFinite };
            (!square.is_finite() || *square == 0.0).then(|| (tensor.name.to_owned(), trouble))
        });
        let scale = update.max_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0) as f32);
        for (tensor, optimizer) in tensors.into_iter().zip(&mut self.optimizers) {
            let weight_decay = if tensor.decays { update.optimizer.weight_decay } else { 0.0 };
            let options = AdamWOptions { weight_decay, ..update.optimizer };
            optimizer.step(&options, update.learning_rate, tensor.numbers, tensor.gradient, scale);
            tensor.gradient.par_chunks_mut(CHUNK).for_each(|chunk| chunk.fill(0.0));
        }
        // The loss is what the passes said.
        Outcome { loss: 0.0, norm, trouble }
    }

    /// The tensors with their moments.
    pub fn states<'a>(&'a self, tensors: impl Iterator<Item = Trainable<'a>>) -> Vec<State<'a>> {
        let state = |(tensor, optimizer): (Trainable<'a>, &'a AdamW)| {
            let Trainable { name, shape, numbers, .. } = tensor;
            State { name, shape, numbers, moments: optimizer.moments() }
        };
        tensors.zip(&self.optimizers).map(state).collect()
    }

    /// Goes on from other numbers and moments, after so many steps; no gradient is left.
    pub fn restore(&mut self, steps: usize, tensors: Vec<Trainable>, restored: Vec<Restored>) {
        for ((tensor, optimizer), restored) in tensors.into_iter().zip(&mut self.optimizers).zip(restored) {
            tensor.numbers.copy_from_slice(&restored.numbers);
            tensor.gradient.fill(0.0);
            let (mean, square) = restored.moments;
            optimizer.restore(steps, mean, square);
        }
    }
}

/// The sum of squares.
fn square(gradient: &[f32]) -> f64 {
    let sums: Vec<f64> = gradient.par_chunks(CHUNK).map(sum_of_chunk).collect();
    sums.iter().sum()
}

/// The sum of the squares, in several sums at a time.
fn sum_of_chunk(numbers: &[f32]) -> f64 {
    dispatch(
        numbers,
        #[inline(always)]
        |numbers: &[f32]| {
            let mut sums = [0.0; 32];
            let (parts, rest) = numbers.as_chunks::<32>();
            for part in parts {
                for (sum, number) in sums.iter_mut().zip(part) {
                    *sum += f64::from(*number) * f64::from(*number);
                }
            }
            sums.iter().sum::<f64>() + rest.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>()
        },
    )
}
