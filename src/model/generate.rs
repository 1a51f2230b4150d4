//! Greedy generation: batched, with a cache, the virtual tokens computed once for all rows.
//!
//! Knows ids only; does not know text or tokenizers.

use std::ops::ControlFlow;

use candle_core::Tensor;

use super::cache::KvCache;
use super::layout::{CachedRow, Layout};
use super::ops::softmax::argmax;
use super::{Decoder, ModelError, Rows};

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
/// `prompt` `[n, hidden]` stands before every row. A row's result does not depend on the others. `watch` is
/// called after every token of a batch; `Break` stops.
///
/// # Errors
/// A row with nothing to continue, an id outside the vocabulary, too many positions, or an interruption.
pub fn greedy(
    model: &Decoder,
    prompt: Option<&Tensor>,
    rows: &[Vec<u32>],
    options: &GenerateOptions,
    watch: &mut dyn FnMut(GenerateProgress) -> ControlFlow<()>,
) -> Result<Vec<Vec<u32>>, ModelError> {
    let mut cache = KvCache::new(model.shape().layers, 0);
    let (prefix, first) = match prompt {
        Some(prompt) => run_prompt(model, prompt, &mut cache)?,
        None => (0, None),
    };
    let mut results = vec![Vec::new(); rows.len()];
    let mut progress = GenerateProgress { rows: 0, tokens: 0 };
    if options.max_new_tokens == 0 {
        return Ok(results);
    }
    let batch_size = options.batch_size.max(1);
    for (batch, results) in rows.chunks(batch_size).zip(results.chunks_mut(batch_size)) {
        cache.restart(batch.len());
        // What each row feeds next; a finished row feeds nothing.
        let mut pending = batch.to_vec();
        let mut past = vec![0; batch.len()];
        for (i, ids) in pending.iter_mut().enumerate().filter(|(_, ids)| ids.is_empty()) {
            let id = first.ok_or(ModelError::NothingToContinue { row: progress.rows + i })?;
            results[i].push(id);
            if !ended(&results[i], options) {
                ids.push(id);
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
            let states = model.forward(model.embed(&ids)?, &layout, &last, Some(&mut cache))?;
            for (&i, id) in active.iter().zip(likeliest(&model.logits(&states))) {
                past[i] += pending[i].len();
                pending[i].clear();
                results[i].push(id);
                if !ended(&results[i], options) {
                    pending[i].push(id);
                }
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

/// Puts the prompt's keys and values into the cache; gives its length and the token it would go on with.
fn run_prompt(
    model: &Decoder,
    prompt: &Tensor,
    cache: &mut KvCache,
) -> Result<(usize, Option<u32>), ModelError> {
    let rows = model.embed_behind(&model.prompt(prompt)?, &[])?;
    let n = rows.rows();
    if n == 0 {
        return Ok((0, None));
    }
    let states = model.forward(rows, &Layout::packed(n, &[]), &[n as u32 - 1], Some(cache))?;
    Ok((n, likeliest(&model.logits(&states)).first().copied()))
}

fn ended(ids: &[u32], options: &GenerateOptions) -> bool {
    ids.len() >= options.max_new_tokens || ids.last().is_some_and(|id| options.end.contains(id))
}

/// The id of the largest logit of each row; the first of equals.
fn likeliest(logits: &Rows) -> Vec<u32> {
    (0..logits.rows()).map(|row| argmax(logits.row(row)).0 as u32).collect()
}
