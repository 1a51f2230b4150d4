//! A soft prompt as something to be trained: the prompt is the only parameter, the model behind it frozen.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};

use super::TrainError;
use super::batch::Row;
use super::gradient::differentiate;
use super::learner::{Learner, MicroBatch, Moment, Part, Trainable};
use super::score::{Score, score};
use crate::model::Decoder;
use crate::model::decoder::Keep;

/// Rows that are scored at a time.
const EVAL_BATCH: usize = 16;

/// A prompt before a frozen model.
pub struct SoftPrompt<'a> {
    model: &'a Decoder,
    keep: Keep,
    shape: [usize; 2],
    numbers: Vec<f32>,
    gradient: Vec<f32>,
}

impl<'a> SoftPrompt<'a> {
    /// The prompt `init` `[n, hidden]` before a model; `keep` says what a pass keeps until it is gone back.
    ///
    /// # Errors
    /// A prompt of another width than the model, or without a virtual token.
    pub fn new(model: &'a Decoder, init: &Tensor, keep: Keep) -> Result<Self, TrainError> {
        let numbers = model.prompt(init)?;
        if numbers.is_empty() {
            return Err(TrainError::Option("a prompt needs at least one virtual token".into()));
        }
        let shape = [numbers.len() / model.shape().hidden, model.shape().hidden];
        Ok(Self { model, keep, shape, gradient: vec![0.0; numbers.len()], numbers })
    }

    /// The prompt `[n, hidden]` as it is now.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub fn tensor(&self) -> Result<Tensor, TrainError> {
        Ok(Tensor::from_slice(&self.numbers, &self.shape, &Device::Cpu)?)
    }
}

impl Learner for SoftPrompt<'_> {
    fn prefix(&self) -> usize {
        self.shape[0]
    }

    fn vocabulary(&self) -> usize {
        self.model.shape().vocabulary
    }

    fn computes_with(&self) -> String {
        format!("{:?}, {} frozen weights", self.model.head().precision(), self.model.parameters())
    }

    fn differentiate(&mut self, batch: &MicroBatch, _: Moment) -> Result<Part, TrainError> {
        let MicroBatch { rows, longest, labels } = *batch;
        let found = differentiate(self.model, &self.numbers, rows, longest, labels, self.keep)?;
        self.gradient.iter_mut().zip(found.prompt.iter()).for_each(|(sum, part)| *sum += part);
        Ok(Part { loss: found.loss, tokens: found.tokens })
    }

    fn tensors(&mut self) -> Vec<Trainable<'_>> {
        vec![Trainable {
            name: "prompt_embeddings",
            shape: &self.shape,
            numbers: &mut self.numbers,
            gradient: &mut self.gradient,
            // PEFT hands the prompt to AdamW like any other parameter.
            decays: true,
        }]
    }

    fn score(
        &mut self,
        rows: &[Row],
        watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<Score>, TrainError> {
        score(self.model, Some(&self.tensor()?), rows, EVAL_BATCH, watch)
    }
}
