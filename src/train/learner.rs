//! What a training loop trains: tensors by name, the gradient of a batch's loss for them, and a step along it.
//!
//! The seam between the loop and the numbers: the loop knows no model and no device, a learner knows no order, schedule
//! or checkpoint.

use std::ops::ControlFlow;

use super::TrainError;
use super::adamw::AdamWOptions;
use super::batch::Row;
use super::score::Score;

/// Which pass through the model is meant, in the whole of a training: what random masks are made from, so that a
/// resumed training draws the same ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The optimizer step, from 1.
    pub step: usize,
    /// The pass within the step, from 0.
    pub pass: usize,
}

/// Rows that go through the model at once.
pub struct MicroBatch<'a> {
    /// The rows.
    pub rows: &'a [&'a Row],
    /// Tokens of the longest row of the batch they are part of: what padding would fill up to.
    pub longest: usize,
    /// The labels that the loss is the mean over: those of the whole optimizer step.
    pub labels: usize,
}

/// What one pass gives beside gradients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Part {
    /// Sum of the labels' `-log p`, divided by the labels it is the mean over; `None`: it is in the step's [`Outcome`].
    pub loss: Option<f64>,
    /// Tokens that went through the model, virtual ones included.
    pub tokens: usize,
}

/// How tensors are moved along their gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// The optimizer's constants.
    pub optimizer: AdamWOptions,
    /// The learning rate.
    pub learning_rate: f64,
    /// A longer gradient is shortened to this length.
    pub max_norm: Option<f64>,
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The loss of its passes, where they did not say it themselves.
    pub loss: f64,
    /// Length of the whole gradient before clipping.
    pub norm: f64,
    /// The first tensor whose gradient may be wrong.
    pub trouble: Option<(String, Trouble)>,
}

/// What may be wrong with a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It is no number, or infinite.
    NotFinite,
    /// All of it is zero.
    Zero,
}

/// A tensor as it is now.
pub struct State<'a> {
    /// What errors and checkpoints call it.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its numbers, row by row.
    pub numbers: &'a [f32],
    /// The optimizer's first and second moment.
    pub moments: (&'a [f32], &'a [f32]),
}

/// What a tensor is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Restored {
    /// Its numbers.
    pub numbers: Vec<f32>,
    /// The optimizer's first and second moment.
    pub moments: (Vec<f32>, Vec<f32>),
}

/// What is trained.
pub trait Learner {
    /// Tokens of its own that stand before every row, so that the row's first token can have a label.
    fn prefix(&self) -> usize;

    /// Number of tokens it knows.
    fn vocabulary(&self) -> usize;

    /// What its gradients depend on beside its tensors and the rows: a checkpoint made with something else does not fit.
    fn computes_with(&self) -> String;

    /// Adds the gradient of the rows' loss to what was gathered since the last step.
    ///
    /// # Errors
    /// An id outside the vocabulary, a position beyond the model's, or a device that fails.
    fn differentiate(&mut self, batch: &MicroBatch, at: Moment) -> Result<Part, TrainError>;

    /// Takes a step along the gradient and begins a new one. `None`: what came of it is known later, by
    /// [`Learner::settle`].
    ///
    /// # Errors
    /// A device that fails.
    fn update(&mut self, update: &Update) -> Result<Option<Outcome>, TrainError>;

    /// Waits for all steps; what came of those of which [`Learner::update`] did not say it, in their order.
    ///
    /// # Errors
    /// A device that fails.
    fn settle(&mut self) -> Result<Vec<Outcome>, TrainError> {
        Ok(Vec::new())
    }

    /// After so many steps without one it is worth waiting for all of them.
    fn steps_ahead(&self) -> usize {
        1
    }

    /// What the user should know, said once.
    fn warnings(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// The tensors, always in the same order.
    ///
    /// # Errors
    /// A device that fails.
    fn states(&mut self) -> Result<Vec<State<'_>>, TrainError>;

    /// Goes on from other tensors, after so many steps.
    ///
    /// # Errors
    /// A device that fails.
    fn restore(&mut self, steps: usize, tensors: Vec<Restored>) -> Result<(), TrainError>;

    /// What it thinks of labelled rows as it is now; `watch` hears the number of rows done.
    ///
    /// # Errors
    /// Rows that do not fit the model, a failed forward pass, or an interruption.
    fn score(
        &mut self,
        rows: &[Row],
        watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<Score>, TrainError>;
}

impl<L: Learner + ?Sized> Learner for Box<L> {
    fn prefix(&self) -> usize {
        (**self).prefix()
    }
    fn vocabulary(&self) -> usize {
        (**self).vocabulary()
    }
    fn computes_with(&self) -> String {
        (**self).computes_with()
    }
    fn differentiate(&mut self, batch: &MicroBatch, at: Moment) -> Result<Part, TrainError> {
        (**self).differentiate(batch, at)
    }
    fn update(&mut self, update: &Update) -> Result<Option<Outcome>, TrainError> {
        (**self).update(update)
    }
    fn settle(&mut self) -> Result<Vec<Outcome>, TrainError> {
        (**self).settle()
    }
    fn steps_ahead(&self) -> usize {
        (**self).steps_ahead()
    }
    fn warnings(&mut self) -> Vec<String> {
        (**self).warnings()
    }
    fn states(&mut self) -> Result<Vec<State<'_>>, TrainError> {
        (**self).states()
    }
    fn restore(&mut self, steps: usize, tensors: Vec<Restored>) -> Result<(), TrainError> {
        (**self).restore(steps, tensors)
    }
    fn score(
        &mut self,
        rows: &[Row],
        watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<Score>, TrainError> {
        (**self).score(rows, watch)
    }
}
