//! What a training loop trains: tensors by name, and the gradient of a batch's loss for them.
//!
//! The seam between the loop and the numbers: the loop knows no model, a learner knows no optimizer, order or
//! checkpoint.

use std::ops::ControlFlow;

use super::TrainError;
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
    /// Sum of the labels' `-log p`, divided by the labels it is the mean over.
    pub loss: f64,
    /// Tokens that went through the model, virtual ones included.
    pub tokens: usize,
}

/// A tensor that is trained, with the gradient it has been given so far.
pub struct Trainable<'a> {
    /// What errors and checkpoints call it.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its numbers, row by row.
    pub numbers: &'a mut [f32],
    /// The loss's gradient for each of them.
    pub gradient: &'a mut [f32],
    /// Whether weight decay applies to it.
    pub decays: bool,
}

/// What is trained.
pub trait Learner {
    /// Tokens of its own that stand before every row, so that the row's first token can have a label.
    fn prefix(&self) -> usize;

    /// Number of tokens it knows.
    fn vocabulary(&self) -> usize;

    /// What its gradients depend on beside its tensors and the rows: a checkpoint made with something else does not fit.
    fn computes_with(&self) -> String;

    /// Adds the gradient of the rows' loss to what the tensors have.
    ///
    /// # Errors
    /// An id outside the vocabulary, or a position beyond the model's.
    fn differentiate(&mut self, batch: &MicroBatch, at: Moment) -> Result<Part, TrainError>;

    /// The tensors, always in the same order.
    fn tensors(&mut self) -> Vec<Trainable<'_>>;

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
