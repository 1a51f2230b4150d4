//! The loss of rows behind a soft prompt, and its gradient for the prompt: one pass forward and one back.
//!
//! Where that is faster, the rows go through the model as two halves side by side: what a thread has written it reads
//! again itself, and none waits for the other behind every operation. Which rows are a half depends on them alone, not
//! on the number of threads.

use rayon::prelude::*;

use super::batch::{Batch, Row};
use crate::model::decoder::Keep;
use crate::model::layout::Slot;
use crate::model::ops::cross_entropy::judge_with_gradient;
use crate::model::ops::matmul::ROWS_AT_A_TIME;
use crate::model::{Decoder, ModelError, Rows};

/// What one pass gives.
pub struct Gradient {
    /// Sum of the labels' `-log p`, divided by the labels it is the mean over.
    pub loss: f64,
    /// The loss's gradient for the prompt, `[n, hidden]`.
    pub prompt: Rows,
    /// Tokens that went through the model, virtual ones included.
    pub tokens: usize,
}

/// Tokens of a half that are worth a pass of their own over the weights.
const LEAST: usize = 96;

/// At most one token of so many may go through the model a second time because both halves begin with it.
const BEGINNINGS: usize = 16;

/// Differentiates the loss of rows behind `prompt` (`[n, hidden]` end to end, at least one row).
///
/// `longest` has the longest row of the batch they are part of; `labels` is the number of labels the mean is
/// over, which is more than these rows have where a batch is worked off in parts.
///
/// # Errors
/// An id outside the vocabulary, or a position beyond the model's.
pub fn differentiate(
    model: &Decoder,
    prompt: &[f32],
    rows: &[&Row],
    longest: usize,
    labels: usize,
    keep: Keep,
) -> Result<Gradient, ModelError> {
    let pack = |rows: &[&Row]| Batch::new(rows, model, prompt.len() / model.shape().hidden, longest);
    let whole = pack(rows);
    // Elsewhere each half would have to pack all weights in both directions.
    let halves = if model.is_laid_out() { halves(rows, &whole) } else { None };
    let batches = halves.map_or_else(|| vec![whole], |halves| halves.map(|rows| pack(&rows)).into());
    differentiate_all(model, prompt, &batches, labels, keep)
}

/// The rows in two halves that take about as long, each in the rows' order, if that pays.
fn halves<'a>(rows: &[&'a Row], whole: &Batch) -> Option<[Vec<&'a Row>; 2]> {
    let (tokens, beginning) = (whole.tokens(), whole.layout.prefix());
    if tokens < 2 * LEAST || beginning * BEGINNINGS > tokens {
        return None;
    }
    // Rows without a label do not go through the model at all.
    let labelled = rows.iter().filter(|row| row.labels.iter().any(Option::is_some));
    let segments = whole.layout.segments().iter().filter(|segment| segment.slot != Slot::Prefix);
    let lengths: Vec<usize> = segments.map(|segment| segment.tokens.len()).collect();
    let is_first = first_half(&lengths, beginning)?;
    let mut halves = [Vec::new(), Vec::new()];
    for (row, is_first) in labelled.zip(is_first) {
        halves[usize::from(!is_first)].push(*row);
    }
    Some(halves)
}

/// Which of the rows of so many tokens make up the shorter half, if there are two, where both begin with some tokens more:
/// such that the longer one takes least of what products compute at a time, then both do, then they differ least.
fn first_half(lengths: &[usize], beginning: usize) -> Option<Vec<bool>> {
    let all: usize = lengths.iter().sum();
    // For each sum that some rows have, the last of them: rows before it have the rest.
    let mut last = vec![None; all / 2 + 1];
    for (row, &length) in lengths.iter().enumerate() {
        for sum in (length.max(1)..last.len()).rev() {
            if last[sum].is_none() && (sum == length || last[sum - length].is_some()) {
                last[sum] = Some(row);
            }
        }
    }
    let cost = |&first: &usize| {
        let [first, second] = [first, all - first].map(|own| (beginning + own).div_ceil(ROWS_AT_A_TIME));
        (first.max(second), first + second)
    };
    // From the longest on, as the first of equals is taken.
    let mut rest = (1..last.len()).rev().filter(|&sum| last[sum].is_some()).min_by_key(cost)?;
    let mut is_first = vec![false; lengths.len()];
    while let Some(row) = last[rest] {
        is_first[row] = true;
        rest -= lengths[row];
    }
    Some(is_first)
}

/// Differentiates the loss of all batches, of which there is one at least.
fn differentiate_all(
    model: &Decoder,
    prompt: &[f32],
    batches: &[Batch],
    labels: usize,
    keep: Keep,
) -> Result<Gradient, ModelError> {
    let (pool, hidden) = (model.pool(), model.shape().hidden);
    let traced = batches.par_iter().map(|batch| {
        let embedded = batch.embed(model, prompt)?;
        model.trace(embedded, &batch.layout, &batch.asked, keep)
    });
    let traced: Vec<_> = traced.collect::<Result<_, ModelError>>()?;
    // The head is read once for all of them.
    let states: Vec<f32> = traced.iter().flat_map(|(states, _)| states.iter().copied()).collect();
    let targets: Vec<u32> = batches.iter().flat_map(|batch| &batch.targets).copied().collect();
    let states = pool.copied(&states, hidden);
    let (judged, d_states) = judge_with_gradient(model.head(), &states, &targets, 1.0 / labels as f32);
    let loss = judged.iter().map(|j| j.nll).sum::<f64>() / labels as f64;

    let mut rest = &d_states[..];
    let back = traced.into_iter().map(|(states, trace)| {
        let (own, others) = rest.split_at(states.len());
        rest = others;
        (trace, pool.copied(own, hidden))
    });
    let back: Vec<_> = back.collect();
    let prompts: Vec<Rows> = back
        .into_par_iter()
        .map(|(trace, d_states)| model.backward(trace, &d_states, prompt.len() / hidden))
        .collect();
    let mut sum = pool.zeros(prompt.len() / hidden, hidden);
    for part in &prompts {
        sum.iter_mut().zip(part.iter()).for_each(|(sum, part)| *sum += part);
    }
    Ok(Gradient { loss, prompt: sum, tokens: batches.iter().map(Batch::tokens).sum() })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::{Precision, load};
    use crate::train::{Pads, init};

    /// Rows of so many tokens, the last two with labels.
    fn rows(lengths: &[usize]) -> Vec<Row> {
        let row = |(i, &length): (usize, &usize)| {
            let ids: Vec<u32> = (0..length).map(|at| ((i * 31 + at * 17 + 5) % 60) as u32).collect();
            let labels = ids.iter().enumerate().map(|(at, id)| (at + 2 >= length).then_some(*id)).collect();
            Row { ids, labels, pads: Pads::Before(i % 3) }
        };
        lengths.iter().enumerate().map(row).collect()
    }

    /// A model, its weights laid out where this processor would have it so.
    fn decoder(family: &str, precision: Precision) -> Decoder {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let mut decoder = load(&data.join(family), precision).unwrap();
        decoder.lay_out();
        decoder
    }

    fn differs(a: &[f32], b: &[f32]) -> f32 {
        let length = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
        length(&mut a.iter().zip(b).map(|(a, b)| a - b)) / length(&mut b.iter().copied())
    }

    #[test]
    fn halves_have_the_loss_and_gradient_of_the_whole() {
        for family in ["bloom", "gpt2", "llama"] {
            let exact = halves_are_the_whole(&decoder(family, Precision::F32), |_| 2e-6);
            // Each half rounds its share of what reaches the prompt, and not the sum: that may change as much as rounding
            // itself does.
            halves_are_the_whole(&decoder(family, Precision::BF16), |rounded| differs(rounded, &exact));
        }
    }

    /// The whole's gradient; the halves' may be off by what `tolerance` says of it.
    fn halves_are_the_whole(model: &Decoder, tolerance: impl Fn(&[f32]) -> f32) -> Vec<f32> {
        let rows = rows(&[42, 30, 41, 7, 40, 33, 25]);
        let all: Vec<&Row> = rows.iter().collect();
        let prompt = model.prompt(&init::text(model, &[5, 6, 7, 8], 4).unwrap()).unwrap();
        let whole = Batch::new(&all, model, 4, 42);
        let halves = halves(&all, &whole).unwrap().map(|rows| Batch::new(&rows, model, 4, 42));
        assert_eq!(halves[0].tokens() + halves[1].tokens(), whole.tokens() + 4);
        let pass =
            |batches: &[Batch]| differentiate_all(model, &prompt, batches, 14, Keep::Everything).unwrap();
        let (once, twice) = (pass(&[whole]), pass(&halves));
        assert!((once.loss - twice.loss).abs() < 1e-6 * once.loss, "{} {}", once.loss, twice.loss);
        let (error, tolerance) = (differs(&twice.prompt, &once.prompt), tolerance(&once.prompt));
        assert!(error < tolerance, "gradient off by {error}, not {tolerance}");
        // What is chosen is one of the two.
        let chosen = differentiate(model, &prompt, &all, 42, 14, Keep::Everything).unwrap();
        let same = if model.is_laid_out() { &twice } else { &once };
        assert_eq!((chosen.tokens, &chosen.prompt[..]), (same.tokens, &same.prompt[..]));
        once.prompt.to_vec()
    }

    #[test]
    fn halves_are_alike_and_keep_the_order() {
        let model = decoder("llama", Precision::F32);
        let halves = |lengths: &[usize], virtual_tokens| {
            let rows = rows(lengths);
            let all: Vec<&Row> = rows.iter().collect();
            let longest = lengths.iter().copied().max().unwrap();
            let halves = halves(&all, &Batch::new(&all, &model, virtual_tokens, longest))?;
            Some(halves.map(|half| half.iter().map(|row| row.ids.len()).collect::<Vec<_>>()))
        };
        let found = halves(&[42, 30, 41, 7, 40, 33, 25], 4);
        assert_eq!(found, Some([vec![42, 41, 25], vec![30, 7, 40, 33]]));
        // Halves of 131 and 132 tokens would both take as long as 144, where one of 128 takes no longer than that.
        assert_eq!(halves(&[61, 65, 68, 65], 4), Some([vec![61, 65], vec![68, 65]]));
        // One row can't be cut, few tokens are not worth it, and a long prompt would go through the model twice.
        assert_eq!(halves(&[250], 4), None);
        assert_eq!(halves(&[50, 50, 50], 4), None);
        assert_eq!(halves(&[42, 30, 41, 7, 40, 33, 25], 20), None);
    }
}
