//! What a model thinks of labelled rows: negative log-likelihood and hits, row by row.

use std::ops::ControlFlow;

use candle_core::Tensor;

use super::TrainError;
use super::batch::{Row, check};
use super::branches::{Batch, Label, Plan};
use crate::model::compute::Compute;
use crate::model::{Model, ModelError};

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
/// The prompt goes through the model once, and so does what all rows begin with; rows of a batch that begin alike
/// (candidates for the end of the same text, say) share that. Each only where its positions are the same.
///
/// # Errors
/// Rows that do not fit the model, a failed forward pass, or an interruption.
pub fn score<M: Compute>(
    model: &M,
    prompt: Option<&Tensor>,
    rows: &[Row],
    batch_size: usize,
    watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<Score>, TrainError> {
    let decoder = model.decoder();
    check(rows, decoder.shape().vocabulary)?;
    let prompt = prompt.map(|p| decoder.prompt(p)).transpose()?.unwrap_or_default();
    let virtual_tokens = prompt.len() / decoder.shape().hidden;
    let plan = Plan::new(rows, virtual_tokens, decoder.counts_padding(virtual_tokens), batch_size);
    let mut scores = vec![Score::default(); rows.len()];
    let mut done = rows.len() - plan.rows();
    if plan.rows() > 0 {
        let mut prefix = Prefix::compute(model, &prompt, &plan)?;
        for batch in plan.batches() {
            prefix.score(model, &batch, &mut scores)?;
            done += batch.rows;
            if watch(done).is_break() {
                return Err(TrainError::Interrupted);
            }
        }
    }
    Ok(scores)
}

/// [`score`] on whatever device the model is; on a GPU that has no room in smaller batches.
///
/// # Errors
/// As [`score`].
pub fn score_on(
    model: &Model,
    prompt: Option<&Tensor>,
    rows: &[Row],
    batch_size: usize,
    watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<Score>, TrainError> {
    match model {
        Model::Processor(decoder) => score(&**decoder, prompt, rows, batch_size, watch),
        #[cfg(feature = "cuda")]
        Model::Card(engine) => {
            super::card::score_in_what_room_there_is(engine, prompt, rows, batch_size, watch)
        }
    }
}

/// What stands before all rows, computed once.
struct Prefix<M: Compute> {
    cache: M::Cache,
    /// The final states of its tokens, if it has any.
    states: Option<M::States>,
}

impl<M: Compute> Prefix<M> {
    fn compute(model: &M, prompt: &[f32], plan: &Plan) -> Result<Self, ModelError> {
        let mut cache = model.cache();
        let layout = plan.prefix();
        let all: Vec<u32> = (0..layout.tokens() as u32).collect();
        let states = match all.is_empty() {
            true => None,
            false => Some(model.forward(prompt, plan.shared, &layout, &all, Some(&mut cache))?),
        };
        Ok(Self { cache, states })
    }

    /// Adds the labels of a batch to the scores of their rows.
    fn score(&mut self, model: &M, batch: &Batch, scores: &mut [Score]) -> Result<(), ModelError> {
        let (known, asked): (Vec<u32>, Vec<u32>) =
            (batch.behind_prefix.iter().map(|a| a.0).collect(), batch.asked.iter().map(|a| a.0).collect());
        let states = match asked.is_empty() {
            true => None,
            false => Some(model.forward(&[], &batch.ids, &batch.layout(), &asked, Some(&mut self.cache))?),
        };
        let all: Vec<u32> = (0..asked.len() as u32).collect();
        let parts = self.states.iter().map(|states| (states, &known[..]));
        let parts: Vec<_> = parts.chain(states.iter().map(|states| (states, &all[..]))).collect();
        let labels: Vec<Label> = batch.behind_prefix.iter().chain(&batch.asked).map(|a| a.1).collect();
        let targets: Vec<u32> = labels.iter().map(|label| label.target).collect();
        for (judged, label) in model.judge(&parts, &targets)?.iter().zip(&labels) {
            let score = &mut scores[label.owner];
            score.nll += judged.nll;
            score.kept += 1;
            score.correct += usize::from(judged.likeliest == label.target);
        }
        Ok(())
    }
}
