//! Generation: batched, with a cache, the virtual tokens computed once for all rows.
//!
//! Knows when a sequence goes on and feeds it; how a token is chosen, [`super::sampling`] knows. Knows ids only, no text
//! and no tokenizer.

use std::ops::ControlFlow;

use candle_core::Tensor;

use super::compute::Compute;
use super::layout::{CachedRow, Layout};
use super::ops::softmax::argmax;
use super::sampling::{Sampling, Stream, forbid, penalise};
use super::{Model, ModelError};

/// When generation ends, and how many rows go together.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// At most so many new tokens a row.
    pub max_new_tokens: usize,
    /// A row ends with any of these ids.
    pub end: Vec<u32>,
    /// Rows that are continued together.
    pub batch_size: usize,
}

/// A sequence to be continued.
#[derive(Clone, Debug)]
pub struct Sequence<'a> {
    /// The tokens it begins with.
    pub ids: &'a [u32],
    /// At most so many new tokens.
    pub max_new_tokens: usize,
    /// What its random numbers depend on beside the seed.
    pub stream: Stream,
}

/// How each next token is chosen, when a sequence ends, and how many go together.
pub struct Decoding<'a> {
    /// How tokens are drawn; `None`: the likeliest one at a time.
    pub sampling: Option<Sampling>,
    /// What makes the tokens of a sequence less likely to come again; 1 changes nothing.
    pub repetition_penalty: f64,
    /// No end before so many new tokens.
    pub min_new_tokens: usize,
    /// A sequence ends with any of these ids.
    pub end: &'a [u32],
    /// Whether a sequence with these new ids is over.
    pub over: &'a dyn Fn(&[u32]) -> bool,
    /// Sequences that are continued together.
    pub batch_size: usize,
}

/// How far generation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerateProgress {
    /// Rows that are finished.
    pub rows: usize,
    /// New tokens so far.
    pub tokens: usize,
}

/// Continues each row by the likeliest token at a time; gives the new ids, the one that ended a row included.
///
/// # Errors
/// As [`generate`].
pub fn greedy<M: Compute>(
    model: &M,
    prompt: Option<&Tensor>,
    rows: &[Vec<u32>],
    options: &GenerateOptions,
    watch: &mut dyn FnMut(GenerateProgress) -> ControlFlow<()>,
) -> Result<Vec<Vec<u32>>, ModelError> {
    let sequences: Vec<Sequence> = rows
        .iter()
        .enumerate()
        .map(|(prompt, ids)| Sequence {
            ids,
            max_new_tokens: options.max_new_tokens,
            stream: Stream { prompt, sample: 0 },
        })
        .collect();
    let decoding = Decoding {
        sampling: None,
        repetition_penalty: 1.0,
        min_new_tokens: 0,
        end: &options.end,
        over: &|_| false,
        batch_size: options.batch_size,
    };
    generate(model, prompt, &sequences, &decoding, watch)
}

/// [`greedy`] on whatever device the model is.
///
/// # Errors
/// As [`generate`].
pub fn greedy_on(
    model: &Model,
    prompt: Option<&Tensor>,
    rows: &[Vec<u32>],
    options: &GenerateOptions,
    watch: &mut dyn FnMut(GenerateProgress) -> ControlFlow<()>,
) -> Result<Vec<Vec<u32>>, ModelError> {
    match model {
        Model::Processor(decoder) => greedy(&**decoder, prompt, rows, options, watch),
        #[cfg(feature = "cuda")]
        Model::Card(engine) => greedy(&**engine, prompt, rows, options, watch),
    }
}

/// [`generate`] on whatever device the model is.
///
/// # Errors
/// As [`generate`].
pub fn generate_on(
    model: &Model,
    prompt: Option<&Tensor>,
    sequences: &[Sequence],
    decoding: &Decoding,
    watch: &mut dyn FnMut(GenerateProgress) -> ControlFlow<()>,
) -> Result<Vec<Vec<u32>>, ModelError> {
    match model {
        Model::Processor(decoder) => generate(&**decoder, prompt, sequences, decoding, watch),
        #[cfg(feature = "cuda")]
        Model::Card(engine) => generate(&**engine, prompt, sequences, decoding, watch),
    }
}

/// Continues each sequence; gives the new ids, those that ended it included.
///
/// `prompt` `[n, hidden]` stands before every sequence. A sequence's result does not depend on the others. `watch` is
/// called after every token of a batch; `Break` stops.
///
/// # Errors
/// A sequence with nothing to continue, an id outside the vocabulary, too many positions, logits that are no numbers,
/// or an interruption.
pub fn generate<M: Compute>(
    model: &M,
    prompt: Option<&Tensor>,
    sequences: &[Sequence],
    decoding: &Decoding,
    watch: &mut dyn FnMut(GenerateProgress) -> ControlFlow<()>,
) -> Result<Vec<Vec<u32>>, ModelError> {
    let mut cache = model.cache();
    let (prefix, first) = match prompt {
        Some(prompt) => run_prompt(model, prompt, &mut cache)?,
        None => (0, None),
    };
    let plain = decoding.is_plain();
    let mut results = vec![Vec::new(); sequences.len()];
    let mut progress = GenerateProgress { rows: 0, tokens: 0 };
    let batch_size = decoding.batch_size.max(1);
    for (batch, results) in sequences.chunks(batch_size).zip(results.chunks_mut(batch_size)) {
        let most = |sequence: &Sequence| sequence.ids.len() + sequence.max_new_tokens;
        model.restart(&mut cache, batch.len(), batch.iter().map(most).max().unwrap_or(0))?;
        // What each sequence feeds next; a finished one feeds nothing.
        let mut pending: Vec<Vec<u32>> = batch.iter().map(|sequence| sequence.ids.to_vec()).collect();
        let mut past = vec![0; batch.len()];
        // Adds the next token.
        let go_on = |i: usize, id: Option<u32>, new: &mut Vec<u32>, pending: &mut Vec<u32>| {
            let row = batch[i].stream.prompt;
            let id = id.ok_or(ModelError::NothingToDraw { row })?;
            pending.clear();
            new.push(id);
            if !decoding.is_over(&batch[i], new) {
                pending.push(id);
            }
            Ok::<_, ModelError>(())
        };
        for (i, sequence) in batch.iter().enumerate() {
            if sequence.max_new_tokens == 0 {
                pending[i].clear();
            } else if sequence.ids.is_empty() {
                let row = sequence.stream.prompt;
                let mut logits = first.clone().ok_or(ModelError::NothingToContinue { row })?;
                let id = decoding.next(sequence, &results[i], &mut logits);
                go_on(i, id, &mut results[i], &mut pending[i])?;
            }
        }
        loop {
            let active: Vec<usize> = (0..batch.len()).filter(|&i| !pending[i].is_empty()).collect();
            if active.is_empty() {
                break;
            }
            let cached = |&row: &usize| CachedRow { row, past: past[row], tokens: pending[row].len() };
            let layout = Layout::cached(prefix, &active.iter().map(cached).collect::<Vec<_>>());
            let ids: Vec<u32> = active.iter().flat_map(|&i| pending[i].iter().copied()).collect();
            let last: Vec<u32> = layout.segments().iter().map(|s| (s.tokens.end - 1) as u32).collect();
            let states = model.forward(&[], &ids, &layout, &last, Some(&mut cache))?;
            let next: Vec<Option<u32>> = match plain {
                true => model.likeliest(&states)?.into_iter().map(Some).collect(),
                false => {
                    let mut logits = model.logits(&states)?;
                    let rows = logits.chunks_exact_mut(model.decoder().shape().vocabulary).zip(&active);
                    rows.map(|(logits, &i)| decoding.next(&batch[i], &results[i], logits)).collect()
                }
            };
            for (&i, id) in active.iter().zip(next) {
                past[i] += pending[i].len();
                go_on(i, id, &mut results[i], &mut pending[i])?;
            }
            progress.tokens += active.len();
            if watch(progress).is_break() {
                return Err(ModelError::Interrupted);
            }
        }
        progress.rows += batch.len();
        if watch(progress).is_break() {
            return Err(ModelError::Interrupted);
        }
    }
    Ok(results)
}

impl Decoding<'_> {
    /// Whether the next token is always the likeliest one, whatever came before.
    fn is_plain(&self) -> bool {
        self.sampling.is_none() && self.repetition_penalty == 1.0 && self.min_new_tokens == 0
    }

    /// The token that comes next; changes the logits. `None` if there is no such token.
    fn next(&self, sequence: &Sequence, new: &[u32], logits: &mut [f32]) -> Option<u32> {
        if self.repetition_penalty != 1.0 {
            penalise(logits, sequence.ids.iter().chain(new).copied(), self.repetition_penalty);
        }
        if new.len() < self.min_new_tokens {
            forbid(logits, self.end);
        }
        match &self.sampling {
            Some(sampling) => sampling.draw(logits, sequence.stream, new.len()),
            None => Some(argmax(logits).0 as u32),
        }
    }

    fn is_over(&self, sequence: &Sequence, new: &[u32]) -> bool {
        new.len() >= sequence.max_new_tokens
            || new.last().is_some_and(|id| self.end.contains(id))
            || (self.over)(new)
    }
}

/// Puts the prompt's keys and values into the cache; gives its length and the logits of what comes next.
fn run_prompt<M: Compute>(
    model: &M,
    prompt: &Tensor,
    cache: &mut M::Cache,
) -> Result<(usize, Option<Vec<f32>>), ModelError> {
    let decoder = model.decoder();
    let rows = decoder.prompt(prompt)?;
    let n = rows.len() / decoder.shape().hidden;
    if n == 0 {
        return Ok((0, None));
    }
    let states = model.forward(&rows, &[], &Layout::packed(n, &[]), &[n as u32 - 1], Some(cache))?;
    Ok((n, Some(model.logits(&states)?.to_vec())))
}
