//! A soft prompt as something to be trained: the prompt is the only parameter, the model behind it frozen.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};

use super::TrainError;
use super::batch::Row;
use super::descent::{Descent, Trainable};
use super::gradient::differentiate;
use super::learner::{Learner, MicroBatch, Moment, Outcome, Part, Restored, State, Update};
use super::score::{Score, score};
use crate::model::decoder::Keep;
use crate::model::{Decoder, Model};

/// A prompt that is trained, wherever it lies.
pub trait PromptLearner: Learner {
    /// The prompt `[n, hidden]` as it is now.
    ///
    /// # Errors
    /// A device that fails.
    fn prompt(&mut self) -> Result<Tensor, TrainError>;
}

/// The prompt `init` `[n, hidden]` before a model, on the model's device; `keep` says what a pass keeps until it is gone
/// back.
///
/// # Errors
/// A prompt of another width than the model, or without a virtual token.
pub fn before<'a>(
    model: &'a Model,
    init: &Tensor,
    keep: Keep,
) -> Result<Box<dyn PromptLearner + 'a>, TrainError> {
    Ok(match model {
        Model::Processor(decoder) => Box::new(SoftPrompt::new(decoder, init, keep)?),
        #[cfg(feature = "cuda")]
        Model::Card(engine) => Box::new(super::card::CardPrompt::new(engine, init, keep)?),
    })
}

/// Rows that are scored at a time.
const EVAL_BATCH: usize = 16;

/// What checkpoints call the prompt.
pub(super) const NAME: &str = "prompt_embeddings";

/// A prompt before a frozen model.
pub struct SoftPrompt<'a> {
    model: &'a Decoder,
    keep: Keep,
    shape: [usize; 2],
    numbers: Vec<f32>,
    gradient: Vec<f32>,
    descent: Descent,
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
        let descent = Descent::new([numbers.len()].into_iter());
        Ok(Self { model, keep, shape, gradient: vec![0.0; numbers.len()], numbers, descent })
    }

    /// The prompt `[n, hidden]` as it is now.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub fn tensor(&self) -> Result<Tensor, TrainError> {
        Ok(Tensor::from_slice(&self.numbers, &self.shape, &Device::Cpu)?)
    }

    fn parts(&mut self) -> (&mut Descent, Trainable<'_>) {
        let trainable = Trainable {
            name: NAME,
            shape: &self.shape,
            numbers: &mut self.numbers,
            gradient: &mut self.gradient,
            // PEFT hands the prompt to AdamW like any other parameter.
            decays: true,
        };
        (&mut self.descent, trainable)
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
        Ok(Part { loss: Some(found.loss), tokens: found.tokens })
    }

    fn update(&mut self, update: &Update) -> Result<Option<Outcome>, TrainError> {
        let (descent, trainable) = self.parts();
        Ok(Some(descent.step(vec![trainable], update)))
    }

    fn states(&mut self) -> Result<Vec<State<'_>>, TrainError> {
        let (descent, trainable) = self.parts();
        Ok(descent.states(std::iter::once(trainable)))
    }

    fn restore(&mut self, steps: usize, tensors: Vec<Restored>) -> Result<(), TrainError> {
        let (descent, trainable) = self.parts();
        descent.restore(steps, vec![trainable], tensors);
        Ok(())
    }

    fn score(
        &mut self,
        rows: &[Row],
        watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<Score>, TrainError> {
        score(self.model, Some(&self.tensor()?), rows, EVAL_BATCH, watch)
    }
}

impl PromptLearner for SoftPrompt<'_> {
    fn prompt(&mut self) -> Result<Tensor, TrainError> {
        self.tensor()
    }
}
