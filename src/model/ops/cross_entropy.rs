//! Cross entropy behind the vocabulary head, whose logits never exist as a whole.
//!
//! The vocabulary goes by in pieces: a piece's logits are made, their exponentials added to each row's sum and, for
//! the gradient, multiplied with the piece of the head that they came from while both are still at hand. What was
//! summed under an earlier maximum is scaled down when a larger logit comes along. The pieces and the order in which
//! they are put together depend on the head alone, not on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::blocks;
use super::exp::exp;
use super::linear::Linear;
use super::matmul::{LONGEST, Lanes, Packed};
use super::softmax::{Partial, origin};
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
/// Rows that are side by side in memory.
const LANES: usize = size_of::<Lanes>() / size_of::<f32>();
/// Distance from the largest logit beyond which an exponential is nothing to a sum in f32: 1e-30 where the largest is
/// 1. Smaller ones, or what they are multiplied with, would become subnormal, which takes a hundred times as long.
const FARTHEST: f32 = -69.0;
/// Exponentials added in f32 before they are added in f64.
const RUN: usize = 16;

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
                let mixture = span.mixture.iter().skip(row).step_by(targets.len());
                for (gradient, mixture) in gradient.chunks_mut(LANES).zip(mixture) {
                    gradient.iter_mut().zip(mixture).for_each(|(g, m)| *g += factor * m);
                }
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
    /// `[panel of 32 numbers, rows, 32]`: the head's rows, each times the exponential of its logit's distance from the
    /// maximum.
    mixture: Vec<Lanes>,
}

/// What a row has seen of the vocabulary.
#[derive(Clone, Copy)]
struct Seen {
    partial: Partial,
    /// The first token with the largest logit.
    likeliest: u32,
    /// The target's logit, once it came by.
    target: Option<f32>,
}

impl Seen {
    const NOTHING: Self = Self { partial: EMPTY, likeliest: 0, target: None };

    fn and(self, next: Self) -> Self {
        Self {
            partial: self.partial.merge(next.partial),
            likeliest: if next.partial.max > self.partial.max { next.likeliest } else { self.likeliest },
            target: self.target.or(next.target),
        }
    }
}

fn spans(head: &Linear, states: &[f32], targets: &[u32], purpose: Purpose) -> Vec<Span> {
    let vocabulary = head.weight().outputs_len();
    let length = vocabulary.div_ceil(SPANS).next_multiple_of(LONGEST);
    let states = Packed::new(states, targets.len(), head.weight(), head.precision());
    (0..vocabulary.div_ceil(length))
        .into_par_iter()
        .with_max_len(1)
        .map(|i| span(head, &states, targets, i * length..((i + 1) * length).min(vocabulary), purpose))
        .collect()
}

fn span(head: &Linear, states: &Packed, targets: &[u32], tokens: Range<usize>, purpose: Purpose) -> Span {
    let mut rows = vec![Seen::NOTHING; targets.len()];
    let mut mixture = match purpose {
        Purpose::Judge => Vec::new(),
        Purpose::Differentiate => states.sums(),
    };
    let mut logits = vec![[0.0; LANES]; targets.len().div_ceil(LANES) * LONGEST];
    states.with_pieces(head.weight(), tokens, |piece| {
        let tokens = piece.outputs.clone();
        let logits = &mut logits[..targets.len().div_ceil(LANES) * tokens.len()];
        piece.forward(logits);
        for (row, (seen, &target)) in rows.iter_mut().zip(targets).enumerate() {
            if tokens.contains(&(target as usize)) {
                let logit = row / LANES * tokens.len() + target as usize - tokens.start;
                seen.target = Some(logits[logit][row % LANES]);
            }
        }
        let panels = rows.chunks_mut(LANES).zip(logits.chunks_exact_mut(tokens.len()));
        for (panel, (rows, logits)) in panels.enumerate() {
            for (row, factor) in
                see(rows, logits, tokens.start as u32).into_iter().enumerate().take(rows.len())
            {
                if factor != 1.0 {
                    for mixture in mixture.iter_mut().skip(panel * LANES + row).step_by(targets.len()) {
                        mixture.iter_mut().for_each(|m| *m *= factor);
                    }
                }
            }
        }
        if purpose == Purpose::Differentiate {
            piece.add_backward(logits, &mut mixture);
        }
    });
    Span { rows, mixture }
}

/// Adds the logits `[tokens, 32 rows]` of the tokens from `first` on to what at most 32 rows have seen, and puts their
/// exponentials in their place. What was summed of earlier ones is to be multiplied with the factors returned.
fn see(rows: &mut [Seen], logits: &mut [Lanes], first: u32) -> Lanes {
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut likeliest = [0; LANES];
    for (lane, row) in rows.iter().enumerate() {
        (max[lane], likeliest[lane]) = (row.partial.max, row.likeliest);
    }
    let mut sums = [0.0; LANES];
    blocks::dispatch(
        (logits, &mut max, &mut likeliest, &mut sums),
        #[inline(always)]
        |(logits, max, likeliest, sums): (&mut [Lanes], &mut Lanes, &mut [u32; LANES], &mut [f64; LANES])| {
            let (mut largest, mut tokens) = (*max, *likeliest);
            for (token, logits) in (first..).zip(logits.iter()) {
                for lane in 0..LANES {
                    // NaN, which is above nothing, will be in the sum.
                    let above = logits[lane] > largest[lane];
                    largest[lane] = if above { logits[lane] } else { largest[lane] };
                    tokens[lane] = if above { token } else { tokens[lane] };
                }
            }
            (*max, *likeliest) = (largest, tokens);
            let mut origins = largest;
            origins.iter_mut().for_each(|max| *max = origin(*max));
            for run in logits.chunks_mut(RUN) {
                let mut sum = [0.0; LANES];
                for logits in run {
                    for lane in 0..LANES {
                        let distance = logits[lane] - origins[lane];
                        let e = exp(if distance < FARTHEST { FARTHEST } else { distance });
                        logits[lane] = if distance < FARTHEST { 0.0 } else { e };
                        sum[lane] += logits[lane];
                    }
                }
                for lane in 0..LANES {
                    sums[lane] += f64::from(sum[lane]);
                }
            }
        },
    );
    let mut factors = [1.0; LANES];
    for (lane, row) in rows.iter_mut().enumerate() {
        let before = row.partial;
        if max[lane] > before.max {
            factors[lane] = (before.max - max[lane]).exp();
        }
        row.partial = Partial { max: max[lane], sum: before.sum * f64::from(factors[lane]) + sums[lane] };
        row.likeliest = likeliest[lane];
    }
    factors
}

fn judged(spans: &[Span]) -> Vec<Judged> {
    let rows = spans.first().map_or(0, |s| s.rows.len());
    let judge = |row: usize| {
        let seen = spans.iter().fold(Seen::NOTHING, |seen, span| seen.and(span.rows[row]));
        let target = f64::from(seen.target.unwrap_or(f32::NAN));
        Judged { nll: seen.partial.log_sum_exp() - target, likeliest: seen.likeliest }
    };
    (0..rows).map(judge).collect()
}

/// The sum of a row's exponentials over the whole vocabulary.
fn whole(spans: &[Span], row: usize) -> Partial {
    spans.iter().fold(EMPTY, |sum, span| sum.merge(span.rows[row].partial))
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::super::matmul::{Numbers, Precision, Weight};
    use super::super::testing::{close, numbers};
    use super::*;
    use crate::model::rows::Pool;

    const FORMATS: [fn(Vec<f32>) -> Numbers; 3] = [
        Numbers::from,
        |numbers| numbers.into_iter().map(f16::from_f32).collect::<Vec<_>>().into(),
        |numbers| numbers.into_iter().map(bf16::from_f32).collect::<Vec<_>>().into(),
    ];
    const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::BF16];

    fn scaled(n: usize, seed: u64, scale: f32) -> Vec<f32> {
        numbers(n, seed).iter().map(|x| x * scale).collect()
    }

    fn targets(rows: usize, vocabulary: usize) -> Vec<u32> {
        (0..rows).map(|i| (i * 7919 % vocabulary) as u32).collect()
    }

    /// Fails where the loss, the likeliest token or the gradient is another than by the formula in f64 of factors
    /// that are rounded alike; `weight` is `[vocabulary, hidden]`.
    fn check(head: &Linear, weight: &[f32], states: &[f32], rows: usize, what: &str) {
        let (hidden, vocabulary) = (states.len() / rows, head.weight().outputs_len());
        let (targets, pool) = (targets(rows, vocabulary), Pool::default());
        let packed = pool.copied(states, hidden);
        let (found, gradient) = judge_with_gradient(head, &packed, &targets, 0.5);
        assert_eq!(found, judge(head, &packed, &targets), "{what}");

        let rounded = |x: &f32| match head.precision() {
            Precision::F32 => f64::from(*x),
            Precision::BF16 => bf16::from_f32(*x).to_f64(),
        };
        let weight: Vec<f64> = weight.iter().map(rounded).collect();
        let states: Vec<f64> = states.iter().map(rounded).collect();
        let mut expected = Vec::new();
        for ((state, &target), found) in states.chunks(hidden).zip(&targets).zip(found) {
            let dot = |weight: &[f64]| state.iter().zip(weight).map(|(x, w)| x * w).sum::<f64>();
            let logits: Vec<f64> = weight.chunks(hidden).map(dot).collect();
            let likeliest = (0..vocabulary).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            let share = |logit: &f64| (logit - logits[likeliest]).exp();
            let sum: f64 = logits.iter().map(share).sum();
            let nll = sum.ln() + logits[likeliest] - logits[target as usize];
            assert!((found.nll - nll).abs() < 1e-5 * nll.max(1.0), "{what}: {} {nll}", found.nll);
            assert_eq!(found.likeliest as usize, likeliest, "{what}");
            for column in 0..hidden {
                let of_column = weight[column..].iter().step_by(hidden);
                let mean = logits.iter().zip(of_column).map(|(logit, w)| share(logit) / sum * w).sum::<f64>();
                expected.push(0.5 * (mean - weight[target as usize * hidden + column]));
            }
        }
        // The probabilities are rounded as well.
        let tolerance = if head.precision() == Precision::F32 { 1e-5 } else { 4e-3 };
        close(&gradient, &expected, tolerance);
    }

    #[test]
    fn loss_gradient_and_likeliest_token_over_rows_pieces_and_spans() {
        for (rows, hidden, vocabulary) in [
            (1, 5, 11),
            (3, 33, 700),
            (7, 13, 9001),
            (16, 32, 192),
            (31, 64, 1300),
            (32, 70, 1301),
            (33, 45, 400),
            (64, 96, 97),
            (65, 31, 250),
            (300, 4, 700),
        ] {
            let states = numbers(rows * hidden, 4);
            for (format, precision) in FORMATS.into_iter().flat_map(|f| PRECISIONS.map(|p| (f, p))) {
                let stored = format(scaled(vocabulary * hidden, 3, 4.0));
                let exact = stored.to_f32();
                let head =
                    Linear::head(Weight::from_outputs_by_inputs(stored, vocabulary, hidden), precision);
                check(&head, &exact, &states, rows, &format!("{rows}x{hidden}x{vocabulary} {precision:?}"));
            }
        }
    }

    #[test]
    fn a_head_of_several_matrices_of_any_orientation() {
        let (rows, hidden, vocabulary) = (5, 37, 500);
        let exact = scaled(vocabulary * hidden, 3, 4.0);
        let (upper, lower) = exact.split_at(201 * hidden);
        let lower: Vec<f32> = (0..lower.len()).map(|i| lower[i % 299 * hidden + i / 299]).collect();
        let upper = Weight::from_outputs_by_inputs(upper.to_vec().into(), 201, hidden);
        let lower = Weight::from_inputs_by_outputs(lower.into(), hidden, 299);
        for precision in PRECISIONS {
            let head = Linear::head(Weight::stacked(vec![upper.clone(), lower.clone()]), precision);
            check(&head, &exact, &numbers(rows * hidden, 4), rows, &format!("{precision:?}"));
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let (rows, hidden, vocabulary) = (35, 40, 7001);
        for precision in PRECISIONS {
            let weight = Numbers::from(numbers(vocabulary * hidden, 3));
            let head = Linear::head(Weight::from_outputs_by_inputs(weight, vocabulary, hidden), precision);
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let states = Pool::default().copied(&numbers(rows * hidden, 4), hidden);
                let (judged, gradient) =
                    pool.install(|| judge_with_gradient(&head, &states, &targets(rows, vocabulary), 1.0));
                let bits: Vec<u32> = gradient.iter().map(|x| x.to_bits()).collect();
                (judged.iter().map(|j| j.nll.to_bits()).collect::<Vec<_>>(), bits)
            };
            let one = on(1);
            assert!(one == on(2) && one == on(5), "{precision:?}");
        }
    }

    #[test]
    fn large_logits_stay_finite_and_nan_is_not_hidden() {
        let (rows, hidden, vocabulary) = (34, 3, 600);
        for precision in PRECISIONS {
            let weight = Numbers::from(scaled(vocabulary * hidden, 3, 1e4));
            let head = Linear::head(Weight::from_outputs_by_inputs(weight, vocabulary, hidden), precision);
            let (targets, pool) = (targets(rows, vocabulary), Pool::default());
            let mut states = pool.copied(&numbers(rows * hidden, 4), hidden);
            let (found, gradient) = judge_with_gradient(&head, &states, &targets, 1.0);
            assert!(found.iter().all(|j| j.nll.is_finite()) && gradient.iter().all(|g| g.is_finite()));
            for (row, bad) in [(1, f32::NAN), (33, f32::INFINITY)] {
                states[row * hidden + 1] = bad;
                let (found, gradient) = judge_with_gradient(&head, &states, &targets, 1.0);
                for (i, found) in found.iter().enumerate() {
                    let finite = found.nll.is_finite() || gradient.row(i).iter().any(|g| g.is_finite());
                    assert_eq!(finite, i != row, "{precision:?} {i}");
                }
                states[row * hidden + 1] = 0.0;
            }
        }
    }

    #[test]
    fn a_nan_of_the_head_makes_every_loss_nan() {
        let (rows, hidden, vocabulary) = (3, 8, 9000);
        for precision in PRECISIONS {
            let mut weight = numbers(vocabulary * hidden, 3);
            weight[8000 * hidden + 3] = f32::NAN;
            let weight = Weight::from_outputs_by_inputs(weight.into(), vocabulary, hidden);
            let states = Pool::default().copied(&numbers(rows * hidden, 4), hidden);
            let judged = judge(&Linear::head(weight, precision), &states, &targets(rows, vocabulary));
            assert!(judged.iter().all(|j| j.nll.is_nan()), "{precision:?}");
        }
    }
}
