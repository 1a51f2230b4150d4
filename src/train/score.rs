//! What a model thinks of labelled rows: negative log-likelihood and hits, row by row.

use std::ops::ControlFlow;

use candle_core::Tensor;
use rayon::prelude::*;

use super::TrainError;
use super::batch::{Batch, Row, check, prefix};
use crate::model::generate::argmax;
use crate::model::ops::cross_entropy::log_sum_exp;
use crate::model::ops::with_values;
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

/// Positions whose logits exist at a time: bounds memory where every token has a label.
const POSITIONS: usize = 128;

/// Scores each row behind `prompt` `[n, hidden]` if there is one; `watch` hears the number of rows done.
///
/// # Errors
/// Rows that do not fit the model, a failed forward pass, or an interruption.
pub fn score(
    model: &dyn Decoder,
    prompt: Option<&Tensor>,
    rows: &[Row],
    batch_size: usize,
    watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<Score>, TrainError> {
    check(rows, model.shape().vocabulary)?;
    let prefix = prefix(model, prompt)?;
    // Nothing is to be differentiated, whatever the prompt came from.
    let prompt = prompt.map(Tensor::detach);
    let mut scores = Vec::with_capacity(rows.len());
    for chunk in rows.chunks(batch_size.max(1)) {
        scores.extend(score_batch(model, prompt.as_ref(), chunk, prefix)?);
        if watch(scores.len()).is_break() {
            return Err(TrainError::Interrupted);
        }
    }
    Ok(scores)
}

fn score_batch(
    model: &dyn Decoder,
    prompt: Option<&Tensor>,
    rows: &[Row],
    prefix: usize,
) -> Result<Vec<Score>, ModelError> {
    let longest = rows.iter().map(|r| r.ids.len()).max().unwrap_or(0);
    let batch = Batch::new(rows.iter(), prefix, longest);
    let mut scores = vec![Score::default(); rows.len()];
    if batch.keep.is_empty() {
        return Ok(scores);
    }
    let states = batch.states(model, prompt)?;
    for first in (0..batch.keep.len()).step_by(POSITIONS) {
        let count = POSITIONS.min(batch.keep.len() - first);
        let logits = model.logits(&states.narrow(0, first, count)?)?;
        let (_, vocabulary) = logits.dims2()?;
        let judged: Vec<(f64, bool)> = with_values(&logits, |values| {
            let rows = values.par_chunks_exact(vocabulary).zip(&batch.targets[first..first + count]);
            rows.map(|(row, &target)| {
                (log_sum_exp(row) - f64::from(row[target as usize]), argmax(row) == target)
            })
            .collect()
        })?;
        for ((nll, hit), &owner) in judged.into_iter().zip(&batch.owners[first..]) {
            scores[owner].nll += nll;
            scores[owner].kept += 1;
            scores[owner].correct += usize::from(hit);
        }
    }
    Ok(scores)
}
