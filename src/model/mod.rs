//! Decoder models and the operations they are made of.
//!
//! Knows which architectures there are and how one is loaded; knows nothing of training, datasets or stages.

pub mod block;
pub mod bloom;
pub mod cache;
pub mod compute;
pub mod config;
#[cfg(any(feature = "cuda", test))]
pub mod cuda;
pub mod decoder;
pub mod error;
pub mod generate;
pub mod gguf;
pub mod gpt2;
pub mod layout;
pub mod lined;
pub mod llama;
pub mod numerics;
pub mod ops;
pub mod parameters;
pub mod placed;
pub mod random;
pub mod rows;
pub mod sampling;
pub mod save;
pub mod weights;

use std::path::Path;

use config::Config;

pub use decoder::{Decoder, DecoderShape};
pub use error::ModelError;
pub use layout::Layout;
pub use numerics::{Numbers, Numerics};
pub use ops::dropout::Dropout;
pub use ops::gradients::Gradients;
pub use ops::matmul::Precision;
pub use parameters::{Parameter, Parameters};
pub use placed::Model;
pub use rows::Rows;
pub use save::Format;
pub use weights::Weights;

/// Builds a decoder from the weights and configuration of a model folder or file.
type Constructor = fn(&Weights, Precision) -> Result<Decoder, ModelError>;

/// An architecture.
struct Architecture {
    /// `model_type` in config.json.
    name: &'static str,
    /// transformers' class of it.
    class: &'static str,
    load: Constructor,
}

/// Those there are: one line each.
static ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "bloom", class: "BloomForCausalLM", load: bloom::load },
    Architecture { name: "gpt2", class: "GPT2LMHeadModel", load: gpt2::load },
    Architecture { name: "llama", class: "LlamaForCausalLM", load: llama::load },
];

/// Loads the model in a Hugging Face folder or a GGUF file, every weight frozen, to compute in this precision.
///
/// Large weights stay in their files as they are; those of a GGUF file are dequantised.
///
/// # Errors
/// Whatever is missing, damaged or not known, by file and tensor name.
pub fn load(path: &Path, precision: Precision) -> Result<Decoder, ModelError> {
    let weights = Weights::open(path)?;
    (architecture(weights.config())?.load)(&weights, precision)
}

/// The architecture that a configuration names.
fn architecture(config: &Config) -> Result<&'static Architecture, ModelError> {
    let name = config.text("model_type").ok_or_else(|| config.lacks("model_type"))?;
    ARCHITECTURES.iter().find(|known| known.name == name).ok_or_else(|| ModelError::Architecture {
        path: config.path().to_path_buf(),
        found: name.to_owned(),
        known: ARCHITECTURES.iter().map(|known| known.name).collect::<Vec<_>>().join(", "),
    })
}
