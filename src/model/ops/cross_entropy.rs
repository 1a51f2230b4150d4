//! Cross entropy behind the vocabulary head, whose logits never exist as a whole.
//!
//! The vocabulary goes by in pieces: a piece's logits are made, their exponentials added to each row's sum and, for
//! the gradient, multiplied with the piece of the head that they came from while both are still at hand. What was
//! summed under an earlier maximum is scaled down when a larger logit comes along. The pieces and the order in which
//! they are put together depend on the vocabulary alone, not on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::linear::Linear;
use super::matmul::{Start, Threads, backward, forward};
use super::softmax::{Partial, argmax, exponentials, rescale};
use crate::model::rows::Rows;

/// What the head says about one row's target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// `-log p(target)` in nats.
    pub nll: f64,
    /// The token with the largest logit; the first of equals.
    pub likeliest: u32,
}

/// Rows that are worked off together: bounds the memory of what the spans have summed.
const ROWS: usize = 256;
/// Parts of the vocabulary that threads share out.
const SPANS: usize = 32;
/// Tokens of a span whose logits exist at a time.
const PIECE: usize = 256;

/// Judges one target a row of states `[rows, hidden]`.
///
/// # Panics
/// There are not as many targets as rows.
pub fn judge(head: &Linear, states: &Rows, targets: &[u32]) -> Vec<Judged> {
    assert_eq!(states.rows(), targets.len(), "cross entropy: one target a row");
    let groups = states.chunks(ROWS * states.width().max(1)).zip(targets.chunks(ROWS));
    groups.flat_map(|(states, targets)| judged(&spans(head, states, targets, Purpose::Judge))).collect()
}

/// The same, and the gradient `[rows, hidden]` of `scale` times the sum of all rows' `nll`.
///
/// # Panics
/// There are not as many targets as rows.
pub fn judge_with_gradient(head: &Linear, states: &Rows, targets: &[u32], scale: f32) -> (Vec<Judged>, Rows) {
    assert_eq!(states.rows(), targets.len(), "cross entropy: one target a row");
    let hidden = states.width();
    let (mut all, mut gradient) = (Vec::with_capacity(targets.len()), states.like());
    let group = ROWS * hidden.max(1);
    let groups = states.chunks(group).zip(targets.chunks(ROWS)).zip(gradient.chunks_mut(group));
    for ((states, targets), gradient) in groups {
        let spans = spans(head, states, targets, Purpose::Differentiate);
        all.extend(judged(&spans));
        gradient.par_chunks_mut(hidden).zip(targets).enumerate().for_each(|(row, (gradient, &target))| {
            // The target's own row of the head, then what the spans expect instead of it.
            head.weight().output_row(target as usize, gradient);
            gradient.iter_mut().for_each(|g| *g *= -scale);
            let whole = whole(&spans, row);
            for span in &spans {
                let share = f64::from(span.rows[row].partial.max - whole.max).exp() / whole.sum;
                let factor = (f64::from(scale) * share) as f32;
                let mixture = &span.mixture[row * hidden..][..hidden];
                gradient.iter_mut().zip(mixture).for_each(|(g, m)| *g += factor * m);
            }
        });
    }
    (all, gradient)
}

/// The sum over no logits.
const EMPTY: Partial = Partial { max: f32::NEG_INFINITY, sum: 0.0 };

#[derive(Clone, Copy, PartialEq)]
enum Purpose {
    Judge,
    Differentiate,
}

/// What a part of the vocabulary says.
struct Span {
    rows: Vec<Seen>,
    /// `[rows, hidden]`: the head's rows, each times the exponential of its logit's distance from the maximum.
    mixture: Vec<f32>,
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
    const NOTHING: Self = Self { partial: EMPTY, likeliest: (f32::NEG_INFINITY, 0), target: None };

    fn and(self, next: Self) -> Self {
        Self {
            partial: self.partial.merge(next.partial),
            likeliest: if next.likeliest.0 > self.likeliest.0 { next.likeliest } else { self.likeliest },
            target: self.target.or(next.target),
        }
    }
}

fn spans(head: &Linear, states: &[f32], targets: &[u32], purpose: Purpose) -> Vec<Span> {
    let vocabulary = head.weight().outputs_len();
    let length = vocabulary.div_ceil(SPANS).next_multiple_of(PIECE);
    (0..vocabulary.div_ceil(length))
        .into_par_iter()
        .map(|i| span(head, states, targets, i * length..((i + 1) * length).min(vocabulary), purpose))
        .collect()
}

fn span(head: &Linear, states: &[f32], targets: &[u32], tokens: Range<usize>, purpose: Purpose) -> Span {
    let mut rows = vec![Seen::NOTHING; targets.len()];
    let mut mixture = match purpose {
        Purpose::Judge => Vec::new(),
        Purpose::Differentiate => vec![0.0; states.len()],
    };
    let hidden = head.weight().inputs_len();
    let mut logits = vec![0.0; targets.len() * PIECE.min(tokens.len())];
    for first in tokens.clone().step_by(PIECE) {
        let piece = first..(first + PIECE).min(tokens.end);
        let weight = head.weight().outputs(piece.clone());
        let logits = &mut logits[..targets.len() * piece.len()];
        forward(logits, states, &weight, Start::Zero, head.precision(), Threads::One);
        for (row, logits) in logits.chunks_exact_mut(piece.len()).enumerate() {
            let (best, largest) = argmax(logits);
            let at = (targets[row] as usize).checked_sub(first);
            let here = Seen {
                partial: Partial::of(logits),
                likeliest: (largest, (first + best) as u32),
                target: at.and_then(|i| logits.get(i)).copied(),
            };
            let before = rows[row].partial.max;
            rows[row] = rows[row].and(here);
            if purpose == Purpose::Differentiate {
                let max = rows[row].partial.max;
                if max != before {
                    rescale(&mut mixture[row * hidden..][..hidden], (before - max).exp());
                }
                exponentials(logits, max);
            }
        }
        if purpose == Purpose::Differentiate {
            backward(&mut mixture, logits, &weight, Start::Output, head.precision(), Threads::One);
        }
    }
    Span { rows, mixture }
}

fn judged(spans: &[Span]) -> Vec<Judged> {
    let rows = spans.first().map_or(0, |s| s.rows.len());
    let judge = |row: usize| {
        let seen = spans.iter().fold(Seen::NOTHING, |seen, span| seen.and(span.rows[row]));
        let target = f64::from(seen.target.unwrap_or(f32::NAN));
        Judged { nll: seen.partial.log_sum_exp() - target, likeliest: seen.likeliest.1 }
    };
    (0..rows).map(judge).collect()
}

/// The sum of a row's exponentials over the whole vocabulary.
fn whole(spans: &[Span], row: usize) -> Partial {
    spans.iter().fold(EMPTY, |sum, span| sum.merge(span.rows[row].partial))
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType::F64, Device, Tensor};

    use super::super::matmul::{Numbers, Precision, Weight};
    use super::super::testing::{close, numbers};
    use super::*;
    use crate::model::rows::Pool;

    /// A head over the weight, states and their targets.
    fn case(rows: usize, hidden: usize, vocabulary: usize, scale: f32) -> (Linear, Tensor, Tensor, Vec<u32>) {
        let flat: Vec<f32> = numbers(vocabulary * hidden, 3).iter().map(|n| n * scale).collect();
        let weight = Tensor::from_slice(&flat, (vocabulary, hidden), &Device::Cpu).unwrap();
        let states = Tensor::from_vec(numbers(rows * hidden, 4), (rows, hidden), &Device::Cpu).unwrap();
        let head = Weight::from_outputs_by_inputs(Numbers::F32(flat.into()), vocabulary, hidden);
        let targets = (0..rows).map(|i| (i * 7919 % vocabulary) as u32).collect();
        (Linear::head(head, Precision::F32), weight, states, targets)
    }

    #[test]
    fn loss_gradient_and_likeliest_token_over_pieces_and_spans() {
        // One piece; several spans with an odd rest; more rows than a group.
        for (rows, hidden, vocabulary) in [(3, 5, 11), (7, 13, 9001), (300, 4, 700)] {
            let (head, weight, states, targets) = case(rows, hidden, vocabulary, 4.0);
            let pool = Pool::default();
            let (found, gradient) =
                judge_with_gradient(&head, &pool.from_tensor(&states).unwrap(), &targets, 0.5);
            assert_eq!(found, judge(&head, &pool.from_tensor(&states).unwrap(), &targets));

            let x = candle_core::Var::from_tensor(&states.to_dtype(F64).unwrap()).unwrap();
            let logits = x.matmul(&weight.to_dtype(F64).unwrap().t().unwrap()).unwrap();
            let max = logits.max_keepdim(1).unwrap().detach();
            let sum = logits.broadcast_sub(&max).unwrap().exp().unwrap().sum_keepdim(1).unwrap();
            let index = Tensor::from_vec(targets.clone(), (rows, 1), &Device::Cpu).unwrap();
            let nll = ((sum.log().unwrap() + max).unwrap() - logits.gather(&index, 1).unwrap()).unwrap();
            let expected = (nll.sum_all().unwrap() * 0.5).unwrap().backward().unwrap();
            close(&gradient, &expected.get(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap(), 1e-5);
            let likeliest = logits.argmax(D::Minus1).unwrap().to_vec1::<u32>().unwrap();
            let nll = nll.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            for (found, (nll, likeliest)) in found.iter().zip(nll.iter().zip(likeliest)) {
                assert!((found.nll - nll).abs() < 1e-5 * nll.max(1.0), "{} {nll}", found.nll);
                assert_eq!(found.likeliest, likeliest);
            }
        }
    }

    #[test]
    fn large_logits_stay_finite_and_nan_is_not_hidden() {
        let (head, _, states, targets) = case(2, 3, 600, 1e4);
        let pool = Pool::default();
        let mut states = pool.from_tensor(&states).unwrap();
        let (found, gradient) = judge_with_gradient(&head, &states, &targets, 1.0);
        assert!(found.iter().all(|j| j.nll.is_finite()) && gradient.iter().all(|g| g.is_finite()));
        states[4] = f32::NAN;
        let (found, gradient) = judge_with_gradient(&head, &states, &targets, 1.0);
        assert!(found[0].nll.is_finite() && found[1].nll.is_nan());
        assert!(gradient.row(1).iter().all(|g| g.is_nan()));
    }
}
