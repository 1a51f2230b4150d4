//! The loss of rows and its gradient for every weight of the model: one pass forward and one back.

use super::batch::{Batch, Row};
use crate::model::decoder::Keep;
use crate::model::ops::head_gradient::judge_and_differentiate;
use crate::model::{Decoder, Dropout, Gradients, ModelError};

/// What one pass gives beside the gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightPass {
    /// Sum of the labels' `-log p`, divided by the labels it is the mean over.
    pub loss: f64,
    /// Tokens that went through the model.
    pub tokens: usize,
}

/// Differentiates the loss of rows and adds the result to `gradients`; rows without a label add nothing.
///
/// `longest` has the longest row of the batch they are part of; `labels` is the number of labels the mean is
/// over, which is more than these rows have where a batch is worked off in parts. The model has to be built over the
/// parameters that the gradients belong to.
///
/// # Errors
/// An id outside the vocabulary, or a position beyond the model's.
pub fn differentiate_weights(
    model: &Decoder,
    rows: &[&Row],
    longest: usize,
    labels: usize,
    keep: Keep,
    dropout: Dropout,
    gradients: &mut Gradients,
) -> Result<WeightPass, ModelError> {
    let batch = match dropout {
        Dropout::Off => Batch::new(rows, model, 0, longest),
        Dropout::On { .. } => Batch::apart(rows, model, longest),
    };
    if batch.asked.is_empty() {
        return Ok(WeightPass { loss: 0.0, tokens: 0 });
    }
    let (states, trace) = model.trace_weights(&batch.ids, &batch.layout, &batch.asked, keep, dropout)?;
    let scale = 1.0 / labels as f32;
    let (judged, d_states) = judge_and_differentiate(model.head(), &states, &batch.targets, scale, gradients);
    let loss = judged.iter().map(|j| j.nll).sum::<f64>() / labels as f64;
    model.backward_weights(trace, &d_states, gradients);
    Ok(WeightPass { loss, tokens: batch.tokens() })
}
