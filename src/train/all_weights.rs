//! Every weight of a model as something to be trained.

use std::ops::ControlFlow;

use super::TrainError;
use super::batch::Row;
use super::descent::{Descent, Trainable};
use super::learner::{Learner, MicroBatch, Moment, Outcome, Part, Restored, State, Update};
use super::score::{Score, score};
use super::weight_gradient::differentiate_weights;
use crate::device::Device;
use crate::model::decoder::Keep;
use crate::model::parameters::{Parameter, Parameters};
use crate::model::{Dropout, Gradients, ModelError, Numerics, Precision};

/// Weights that are trained, wherever they lie.
pub trait WeightsLearner: Learner {
    /// The weights as they are now.
    ///
    /// # Errors
    /// A device that fails.
    fn parameters(&mut self) -> Result<&Parameters, TrainError>;

    /// The most bytes of the device's memory that were in use, where it has its own.
    fn peak_memory(&self) -> Option<u64> {
        None
    }
}

/// The weights of a model, to be trained on a device.
///
/// # Errors
/// A device that has no room, or computes nothing in these numbers.
pub fn on(
    device: Device,
    parameters: Parameters,
    passes: Passes,
) -> Result<Box<dyn WeightsLearner>, TrainError> {
    match device {
        Device::Cpu => Ok(Box::new(AllWeights::new(parameters, passes)?)),
        #[cfg(feature = "cuda")]
        Device::Cuda(number) => {
            crate::model::cuda::release(number);
            let card = crate::model::cuda::open(number, passes.numerics)?;
            Ok(Box::new(super::card::CardWeights::new(card, parameters, passes)?))
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => Ok(Box::new(AllWeights::new(parameters, passes)?)),
    }
}

/// Rows that are scored at a time.
const EVAL_BATCH: usize = 8;

/// How a pass through the model goes.
#[derive(Clone, Copy, Debug)]
pub struct Passes {
    /// What products are computed in.
    pub numerics: Numerics,
    /// What a pass keeps until it is gone back.
    pub keep: Keep,
    /// The seed of what is dropped; `None`: nothing is.
    pub dropout: Option<u64>,
}

/// A model's weights and their gradients.
pub struct AllWeights {
    parameters: Parameters,
    gradients: Gradients,
    descent: Descent,
    passes: Passes,
    precision: Precision,
    vocabulary: usize,
}

impl AllWeights {
    /// The weights of a model.
    ///
    /// # Errors
    /// Numbers that the processor does not compute in.
    pub fn new(parameters: Parameters, passes: Passes) -> Result<Self, ModelError> {
        let precision = passes.numerics.precision()?;
        let vocabulary = parameters.model(precision)?.shape().vocabulary;
        let descent = Descent::new(parameters.tensors().iter().map(|tensor| tensor.numbers().len()));
        Ok(Self { gradients: parameters.gradients(), parameters, descent, passes, precision, vocabulary })
    }

    /// The weights as they are now.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn parts(&mut self) -> (&mut Descent, Vec<Trainable<'_>>) {
        let tensors = self.parameters.tensors_mut().iter_mut().zip(self.gradients.tensors_mut());
        let trainable = |(parameter, gradient): (_, _)| -> Trainable<'_> {
            let parameter: &mut Parameter = parameter;
            let gradient: &mut Vec<f32> = gradient;
            let decays = parameter.decays();
            let (name, shape, numbers) = parameter.parts_mut();
            Trainable { name, shape, numbers, gradient, decays }
        };
        (&mut self.descent, tensors.map(trainable).collect())
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
        let precision = self.precision;
        match self.passes.dropout {
            Some(seed) => format!("{precision:?}, dropout seeded {seed}"),
            None => format!("{precision:?}"),
        }
    }

    fn differentiate(&mut self, batch: &MicroBatch, at: Moment) -> Result<Part, TrainError> {
        let Passes { keep, dropout, .. } = self.passes;
        let model = self.parameters.model(self.precision)?;
        let dropout = dropout
            .map_or(Dropout::Off, |seed| Dropout::On { seed, pass: (at.step as u64) << 32 | at.pass as u64 });
        let MicroBatch { rows, longest, labels } = *batch;
        let pass = differentiate_weights(&model, rows, longest, labels, keep, dropout, &mut self.gradients)?;
        Ok(Part { loss: Some(pass.loss), tokens: pass.tokens })
    }

    fn update(&mut self, update: &Update) -> Result<Option<Outcome>, TrainError> {
        let (descent, trainables) = self.parts();
        Ok(Some(descent.step(trainables, update)))
    }

    fn states(&mut self) -> Result<Vec<State<'_>>, TrainError> {
        let (descent, trainables) = self.parts();
        Ok(descent.states(trainables.into_iter()))
    }

    fn restore(&mut self, steps: usize, tensors: Vec<Restored>) -> Result<(), TrainError> {
        let (descent, trainables) = self.parts();
        descent.restore(steps, trainables, tensors);
        Ok(())
    }

    fn score(
        &mut self,
        rows: &[Row],
        watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<Score>, TrainError> {
        score(&self.parameters.model(self.precision)?, None, rows, EVAL_BATCH, watch)
    }
}

impl WeightsLearner for AllWeights {
    fn parameters(&mut self) -> Result<&Parameters, TrainError> {
        Ok(&self.parameters)
    }
}
