//! The loss of rows behind a soft prompt, and its gradient for the prompt: one pass forward and one back.

use super::batch::{Batch, Row};
use crate::model::decoder::Keep;
use crate::model::ops::cross_entropy::judge_with_gradient;
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
    let batch = Batch::new(rows, model, prompt.len() / model.shape().hidden, longest);
    let embedded = batch.embed(model, prompt)?;
    let (states, trace) = model.trace(embedded, &batch.layout, &batch.asked, keep)?;
    let (judged, d_states) = judge_with_gradient(model.head(), &states, &batch.targets, 1.0 / labels as f32);
    let loss = judged.iter().map(|j| j.nll).sum::<f64>() / labels as f64;
    let prompt = model.backward(trace, &d_states, prompt.len() / model.shape().hidden);
    Ok(Gradient { loss, prompt, tokens: batch.tokens() })
}
