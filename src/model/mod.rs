//! Decoder models and the operations they are made of.
//!
//! Knows which architectures there are and how one is loaded; knows nothing of training, datasets or stages.

pub mod block;
pub mod bloom;
pub mod cache;
pub mod config;
pub mod decoder;
pub mod error;
pub mod generate;
pub mod gguf;
pub mod gpt2;
pub mod layout;
pub mod llama;
pub mod ops;
pub mod rows;
pub mod sampling;
pub mod weights;

use std::path::Path;

use candle_core::Device;

pub use decoder::{Decoder, DecoderShape};
pub use error::ModelError;
pub use layout::Layout;
pub use ops::matmul::Precision;
pub use rows::Rows;
pub use weights::Weights;

/// Builds a decoder from the weights and configuration of a model folder or file.
type Constructor = fn(&Weights, Precision) -> Result<Decoder, ModelError>;

/// `model_type` in config.json → the architecture: one line each.
static ARCHITECTURES: &[(&str, Constructor)] =
    &[("bloom", bloom::load), ("gpt2", gpt2::load), ("llama", llama::load)];

/// Loads the model in a Hugging Face folder or a GGUF file, every weight frozen, to compute in this precision.
///
/// Large weights stay in their files as they are; those of a GGUF file are dequantised.
///
/// # Errors
/// Whatever is missing, damaged or not known, by file and tensor name; a device other than the processor.
pub fn load(path: &Path, device: &Device, precision: Precision) -> Result<Decoder, ModelError> {
    if !device.is_cpu() {
        return Err(ModelError::Device(format!("{device:?}")));
    }
    let weights = Weights::open(path)?;
    let config = weights.config();
    let name = config.text("model_type").ok_or_else(|| config.lacks("model_type"))?;
    match ARCHITECTURES.iter().find(|(known, _)| *known == name) {
        Some((_, load)) => load(&weights, precision),
        None => Err(ModelError::Architecture {
            path: config.path().to_path_buf(),
            found: name.to_owned(),
            known: ARCHITECTURES.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", "),
        }),
    }
}
