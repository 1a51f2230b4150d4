//! Every weight of a model as something to be trained.

use std::ops::ControlFlow;

use super::TrainError;
use super::batch::Row;
use super::learner::{Learner, MicroBatch, Moment, Part, Trainable};
use super::score::{Score, score};
use super::weight_gradient::differentiate_weights;
use crate::model::decoder::Keep;
use crate::model::parameters::Parameters;
use crate::model::{Dropout, Gradients, ModelError, Precision};

/// Rows that are scored at a time.
const EVAL_BATCH: usize = 8;

/// How a pass through the model goes.
#[derive(Clone, Copy, Debug)]
pub struct Passes {
    /// What products are computed in.
    pub precision: Precision,
    /// What a pass keeps until it is gone back.
    pub keep: Keep,
    /// The seed of what is dropped; `None`: nothing is.
    pub dropout: Option<u64>,
}

/// A model's weights and their gradients.
pub struct AllWeights {
    parameters: Parameters,
    gradients: Gradients,
    passes: Passes,
    vocabulary: usize,
}

impl AllWeights {
    /// The weights of a model.
    ///
    /// # Errors
    /// None that is known of: the architecture has been built before.
    pub fn new(parameters: Parameters, passes: Passes) -> Result<Self, ModelError> {
        let vocabulary = parameters.model(passes.precision)?.shape().vocabulary;
        Ok(Self { gradients: parameters.gradients(), parameters, passes, vocabulary })
    }

    /// The weights as they are now.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

impl Learner for AllWeights {
    fn prefix(&self) -> usize {
        0
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn computes_with(&self) -> String {
        let Passes { precision, dropout, .. } = self.passes;
        match dropout {
            Some(seed) => format!("{precision:?}, dropout seeded {seed}"),
            None => format!("{precision:?}"),
        }
    }

    fn differentiate(&mut self, batch: &MicroBatch, at: Moment) -> Result<Part, TrainError> {
        let Passes { precision, keep, dropout } = self.passes;
        let model = self.parameters.model(precision)?;
        let dropout = dropout
            .map_or(Dropout::Off, |seed| Dropout::On { seed, pass: (at.step as u64) << 32 | at.pass as u64 });
        let MicroBatch { rows, longest, labels } = *batch;
        let pass = differentiate_weights(&model, rows, longest, labels, keep, dropout, &mut self.gradients)?;
        Ok(Part { loss: pass.loss, tokens: pass.tokens })
    }

    fn tensors(&mut self) -> Vec<Trainable<'_>> {
        let tensors = self.parameters.tensors_mut().iter_mut().zip(self.gradients.tensors_mut());
        tensors
            .map(|(parameter, gradient)| {
                let decays = parameter.decays();
                let (name, shape, numbers) = parameter.parts_mut();
                Trainable { name, shape, numbers, gradient, decays }
            })
            .collect()
    }

    fn score(
        &mut self,
        rows: &[Row],
        watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<Score>, TrainError> {
        score(&self.parameters.model(self.passes.precision)?, None, rows, EVAL_BATCH, watch)
    }
}
