//! A frozen model on the device it is to compute on.
//!
//! The one place that decides where a model's weights go.

use std::path::Path;
#[cfg(feature = "cuda")]
use std::sync::Arc;

#[cfg(feature = "cuda")]
use super::compute::Compute;
use super::{Decoder, ModelError, Numerics, load};
use crate::device::Device;

/// A frozen model.
pub enum Model {
    /// In the processor's memory.
    Processor(Box<Decoder>),
    /// On a GPU, shared by the stages that follow each other there.
    #[cfg(feature = "cuda")]
    Card(Arc<super::cuda::Engine<super::cuda::Cuda>>),
}

impl Model {
    /// Loads the model in a Hugging Face folder or a GGUF file, every weight frozen, onto a device.
    ///
    /// # Errors
    /// As [`load`], numbers that the device does not compute in, or a GPU that fails or has no room.
    pub fn open(path: &Path, device: Device, numerics: Numerics) -> Result<Self, ModelError> {
        match device {
            Device::Cpu => Ok(Self::Processor(Box::new(load(path, numerics.precision()?)?))),
            #[cfg(feature = "cuda")]
            Device::Cuda(number) => Ok(Self::Card(super::cuda::resident(path, number, numerics)?)),
            // Nothing gives out such a device in a build without CUDA.
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Ok(Self::Processor(Box::new(load(path, numerics.precision()?)?))),
        }
    }

    /// Readies it for many passes of many tokens, such as training and scoring take.
    pub fn lay_out(&mut self) {
        match self {
            Self::Processor(decoder) => decoder.lay_out(),
            #[cfg(feature = "cuda")]
            Self::Card(_) => {}
        }
    }

    /// What it is made of.
    pub fn decoder(&self) -> &Decoder {
        match self {
            Self::Processor(decoder) => decoder,
            #[cfg(feature = "cuda")]
            Self::Card(engine) => engine.decoder(),
        }
    }

    /// The most bytes of the device's memory that were in use, where it has its own.
    pub fn peak_memory(&self) -> Option<u64> {
        match self {
            Self::Processor(_) => None,
            #[cfg(feature = "cuda")]
            Self::Card(engine) => Some(super::cuda::Card::peak(engine.card())),
        }
    }
}
