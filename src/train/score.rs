//! What a model thinks of labelled rows: negative log-likelihood and hits, row by row.

use std::ops::ControlFlow;

use candle_core::Tensor;

use super::TrainError;
use super::batch::{Batch, Row, check};
use crate::model::ops::cross_entropy::judge;
use crate::model::{Decoder, ModelError};

/// The score of one row, or of several added up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Sum of `-log p(label)` in nats.
    pub nll: f64,
    /// Labels that counted.
    pub kept: usize,
    /// Labels that were the likeliest token.
    pub correct: usize,
}

impl Score {
    /// Mean negative log-likelihood of a label; NaN without labels.
    pub fn loss(&self) -> f64 {
        self.nll / self.kept as f64
    }

    /// `exp` of the loss.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }

    /// Share of labels that were the likeliest token; NaN without labels.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.kept as f64
    }
}

impl std::iter::Sum for Score {
    fn sum<I: Iterator<Item = Self>>(scores: I) -> Self {
        scores.fold(Self::default(), |a, b| Self {
            nll: a.nll + b.nll,
            kept: a.kept + b.kept,
            correct: a.correct + b.correct,
        })
    }
}

/// Scores each row behind `prompt` `[n, hidden]` if there is one; `watch` hears the number of rows done.
///
/// # Errors
/// Rows that do not fit the model, a failed forward pass, or an interruption.
pub fn score(
    model: &Decoder,
    prompt: Option<&Tensor>,
    rows: &[Row],
    batch_size: usize,
    watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<Score>, TrainError> {
    check(rows, model.shape().vocabulary)?;
    let prompt = prompt.map(|p| model.prompt(p)).transpose()?.unwrap_or_default();
    let mut scores = Vec::with_capacity(rows.len());
    for chunk in rows.chunks(batch_size.max(1)) {
        scores.extend(score_batch(model, &prompt, chunk)?);
        if watch(scores.len()).is_break() {
            return Err(TrainError::Interrupted);
        }
    }
    Ok(scores)
}

fn score_batch(model: &Decoder, prompt: &[f32], rows: &[Row]) -> Result<Vec<Score>, ModelError> {
    let longest = rows.iter().map(|r| r.ids.len()).max().unwrap_or(0);
    let batch = Batch::new(&rows.iter().collect::<Vec<_>>(), model, prompt, longest);
    let mut scores = vec![Score::default(); rows.len()];
    if batch.asked.is_empty() {
        return Ok(scores);
    }
    let states = model.forward(batch.embed(model, prompt)?, &batch.layout, &batch.asked, None)?;
    let judged = judge(model.head(), &states, &batch.targets);
    for ((judged, &owner), &target) in judged.iter().zip(&batch.owners).zip(&batch.targets) {
        scores[owner].nll += judged.nll;
        scores[owner].kept += 1;
        scores[owner].correct += usize::from(judged.likeliest == target);
    }
    Ok(scores)
}
