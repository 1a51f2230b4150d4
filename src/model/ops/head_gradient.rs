//! Cross entropy behind a vocabulary head that is trained itself: the gradients of states and head.
//!
//! Unlike a prompt's, most tokens have a label here, and the head's gradient needs every logit once more when its
//! row's sum is known. So the logits of as many rows as fit in bounded memory are kept, in pieces of the vocabulary
//! that lie one behind the other, and become their own gradients.

use std::ops::Range;

use rayon::prelude::*;

use super::cross_entropy::Judged;
use super::gradients::Gradients;
use super::linear::Linear;
use super::matmul::{Left, Start, Threads, backward, forward};
use super::softmax::{Partial, argmax, exponentials, rescale};
use crate::model::rows::Rows;

/// Logits that exist at a time, 256 MiB of them.
const LOGITS: usize = 1 << 26;
/// Rows that are worked off together even if they have more.
const ROWS: usize = 64;
/// Tokens of a piece of the vocabulary.
const PIECE: usize = 8192;

/// Judges one target a row of states `[rows, hidden]`, adds the gradient of `scale` times the sum of all rows' `nll`
/// to the head's, and gives that of the states.
///
/// # Panics
/// There are not as many targets as rows.
pub fn judge_and_differentiate(
    head: &Linear,
    states: &Rows,
    targets: &[u32],
    scale: f32,
    gradients: &mut Gradients,
) -> (Vec<Judged>, Rows) {
    differentiate_by(
        ROWS.max(LOGITS / head.weight().outputs_len().max(1)),
        head,
        states,
        targets,
        scale,
        gradients,
    )
}

/// The same in groups of so many rows.
fn differentiate_by(
    rows: usize,
    head: &Linear,
    states: &Rows,
    targets: &[u32],
    scale: f32,
    gradients: &mut Gradients,
) -> (Vec<Judged>, Rows) {
    assert_eq!(states.rows(), targets.len(), "cross entropy: one target a row");
    let group = rows * states.width().max(1);
    let (mut judged, mut d_states) = (Vec::with_capacity(targets.len()), states.like());
    let mut logits = states.pool().rows(targets.len().min(rows), head.weight().outputs_len());
    for ((states, d_states), targets) in
        states.chunks(group).zip(d_states.chunks_mut(group)).zip(targets.chunks(rows))
    {
        let seen = seen(head, states, targets, &mut logits);
        judged.extend(seen.iter().map(Seen::judged));
        differentiate(head, (states, d_states), targets, (&mut logits, &seen), scale, gradients);
    }
    (judged, d_states)
}

/// What a row has seen of the vocabulary.
#[derive(Clone, Copy)]
struct Seen {
    partial: Partial,
    likeliest: (f32, u32),
    /// The target's logit, once it came by.
    target: Option<f32>,
}

impl Seen {
    fn of(logits: &[f32], first: usize, target: u32) -> Self {
        let (best, largest) = argmax(logits);
        let at = (target as usize).checked_sub(first);
        Self {
            partial: Partial::of(logits),
            likeliest: (largest, (first + best) as u32),
            target: at.and_then(|i| logits.get(i)).copied(),
        }
    }

    fn and(self, next: Self) -> Self {
        Self {
            partial: self.partial.merge(next.partial),
            likeliest: if next.likeliest.0 > self.likeliest.0 { next.likeliest } else { self.likeliest },
            target: self.target.or(next.target),
        }
    }

    fn judged(&self) -> Judged {
        let target = f64::from(self.target.unwrap_or(f32::NAN));
        Judged { nll: self.partial.log_sum_exp() - target, likeliest: self.likeliest.1 }
    }
}

/// The pieces of the vocabulary.
fn pieces(head: &Linear) -> impl Iterator<Item = Range<usize>> {
    let vocabulary = head.weight().outputs_len();
    (0..vocabulary).step_by(PIECE).map(move |first| first..vocabulary.min(first + PIECE))
}

/// Fills in the logits, `[rows, piece]` for every piece; gives what each row sees.
fn seen(head: &Linear, states: &[f32], targets: &[u32], mut logits: &mut [f32]) -> Vec<Seen> {
    let mut all: Vec<Seen> = Vec::new();
    for piece in pieces(head) {
        let (part, rest) = std::mem::take(&mut logits).split_at_mut(targets.len() * piece.len());
        logits = rest;
        let weight = head.weight().outputs(piece.clone());
        forward(part, Left::There(states), &weight, Start::Zero, head.precision(), Threads::All);
        let rows = part.par_chunks_exact(piece.len()).zip(targets);
        let here: Vec<Seen> = rows.map(|(logits, &target)| Seen::of(logits, piece.start, target)).collect();
        all = match all.is_empty() {
            true => here,
            false => all.into_iter().zip(here).map(|(all, here)| all.and(here)).collect(),
        };
    }
    all
}

/// Turns the logits into their gradients and goes back through the head with them.
fn differentiate(
    head: &Linear,
    (states, d_states): (&[f32], &mut [f32]),
    targets: &[u32],
    (mut logits, seen): (&mut [f32], &[Seen]),
    scale: f32,
    gradients: &mut Gradients,
) {
    for piece in pieces(head) {
        let (part, rest) = std::mem::take(&mut logits).split_at_mut(targets.len() * piece.len());
        logits = rest;
        let rows = part.par_chunks_exact_mut(piece.len()).zip(seen.par_iter().zip(targets));
        rows.for_each(|(logits, (Seen { partial, .. }, &target))| {
            exponentials(logits, partial.max);
            rescale(logits, (f64::from(scale) / partial.sum) as f32);
            if let Some(logit) = (target as usize).checked_sub(piece.start).and_then(|i| logits.get_mut(i)) {
                *logit -= scale;
            }
        });
        let weight = head.weight().outputs(piece.clone());
        let start = if piece.start == 0 { Start::Zero } else { Start::Output };
        backward(d_states, Left::There(part), &weight, start, head.precision(), Threads::All);
        head.add_outputs_gradient(piece, states, part, gradients);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::cross_entropy::judge_with_gradient;
    use super::super::matmul::{Numbers, Precision, Slice, Weight};
    use super::super::testing::{close, numbers, wide};
    use super::*;
    use crate::model::rows::Pool;

    fn trained(vocabulary: usize, hidden: usize) -> (Vec<f32>, Linear) {
        let numbers: Vec<f32> = numbers(vocabulary * hidden, 3).iter().map(|n| 3.0 * n).collect();
        let stored = Numbers::F32(Slice::trained(Arc::new(numbers.clone()), 0));
        let weight = Weight::from_outputs_by_inputs(stored, vocabulary, hidden);
        (numbers, Linear::head(weight, Precision::F32))
    }

    #[test]
    fn states_get_the_gradient_they_get_behind_a_frozen_head_and_the_head_gets_its_own() {
        for (rows, hidden, vocabulary, group) in [(5, 7, 23, 64), (9, 3, 8200, 4), (1, 2, 16_384, 1)] {
            let (weight, head) = trained(vocabulary, hidden);
            let states = Pool::default().copied(&numbers(rows * hidden, 4), hidden);
            let targets: Vec<u32> = (0..rows).map(|i| (i * 7919 % vocabulary) as u32).collect();
            let mut gradients = Gradients::zeros([weight.len()].into_iter());
            let (judged, d_states) = differentiate_by(group, &head, &states, &targets, 0.5, &mut gradients);
            let (expected, d_expected) = judge_with_gradient(&head, &states, &targets, 0.5);
            for (judged, expected) in judged.iter().zip(&expected) {
                assert!((judged.nll - expected.nll).abs() < 1e-6 && judged.likeliest == expected.likeliest);
            }
            close(&d_states, &wide(&d_expected), 1e-5);

            let mut d_weight = vec![0.0; weight.len()];
            for (state, &target) in wide(&states).chunks(hidden).zip(&targets) {
                let logit =
                    |row: &[f32]| row.iter().zip(state).map(|(w, s)| f64::from(*w) * s).sum::<f64>().exp();
                let sum: f64 = weight.chunks(hidden).map(logit).sum();
                for (token, (row, d_row)) in
                    weight.chunks(hidden).zip(d_weight.chunks_mut(hidden)).enumerate()
                {
                    let d = 0.5 * (logit(row) / sum - f64::from(u8::from(token == target as usize)));
                    d_row.iter_mut().zip(state).for_each(|(d_w, s)| *d_w += d * s);
                }
            }
            close(&gradients.tensors()[0], &d_weight, 1e-5);
        }
    }
}
