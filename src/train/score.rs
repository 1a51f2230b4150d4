//! What a model thinks of labelled rows: negative log-likelihood and hits, row by row.

use std::ops::ControlFlow;

use candle_core::Tensor;

use super::TrainError;
use super::batch::{Row, check};
use super::branches::{Batch, Label, Plan};
use crate::model::cache::KvCache;
use crate::model::ops::cross_entropy::judge;
use crate::model::{Decoder, ModelError, Rows};

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
pub fn score(
    model: &Decoder,
    prompt: Option<&Tensor>,
    rows: &[Row],
    batch_size: usize,
    watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<Score>, TrainError> {
    check(rows, model.shape().vocabulary)?;
    let prompt = prompt.map(|p| model.prompt(p)).transpose()?.unwrap_or_default();
    let virtual_tokens = prompt.len() / model.shape().hidden;
    let plan = Plan::new(rows, virtual_tokens, model.counts_padding(virtual_tokens), batch_size);
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

/// What stands before all rows, computed once.
struct Prefix {
    cache: KvCache,
    /// The final states of its tokens.
    states: Rows,
}

impl Prefix {
    fn compute(model: &Decoder, prompt: &[f32], plan: &Plan) -> Result<Self, ModelError> {
        let mut cache = KvCache::new(model.shape().layers, 0);
        let layout = plan.prefix();
        let all: Vec<u32> = (0..layout.tokens() as u32).collect();
        let states = match all.is_empty() {
            true => model.pool().rows(0, model.shape().hidden),
            false => {
                model.forward(model.embed_behind(prompt, plan.shared)?, &layout, &all, Some(&mut cache))?
            }
        };
        Ok(Self { cache, states })
    }

    /// Adds the labels of a batch to the scores of their rows.
    fn score(&mut self, model: &Decoder, batch: &Batch, scores: &mut [Score]) -> Result<(), ModelError> {
        let (known, asked): (Vec<u32>, Vec<u32>) =
            (batch.behind_prefix.iter().map(|a| a.0).collect(), batch.asked.iter().map(|a| a.0).collect());
        let mut states = model.pool().rows(known.len() + asked.len(), model.shape().hidden);
        let (first, rest) = states.split_at_mut(known.len() * model.shape().hidden);
        first.copy_from_slice(&self.states.select(&known));
        if !asked.is_empty() {
            let tokens = model.embed(&batch.ids)?;
            rest.copy_from_slice(&model.forward(tokens, &batch.layout(), &asked, Some(&mut self.cache))?);
        }
        let labels: Vec<Label> = batch.behind_prefix.iter().chain(&batch.asked).map(|a| a.1).collect();
        let targets: Vec<u32> = labels.iter().map(|label| label.target).collect();
        for (judged, label) in judge(model.head(), &states, &targets).iter().zip(&labels) {
            let score = &mut scores[label.owner];
            score.nll += judged.nll;
            score.kept += 1;
            score.correct += usize::from(judged.likeliest == label.target);
        }
        Ok(())
    }
}
