//! What can go wrong between a model on disk and its logits.

use std::path::PathBuf;

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file can't be opened or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The place holds no model in a form that can be read.
    #[error("{}: {reason}", path.display())]
    NoModel {
        /// The folder or file.
        path: PathBuf,
        /// What was looked for, and why what is there will not do.
        reason: String,
    },
    /// The configuration lacks a key, or a value can't be used.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The architecture is not one of those in the table.
    #[error("{}: architecture `{found}` is not known; known are {known}", path.display())]
    Architecture {
        /// The configuration file.
        path: PathBuf,
        /// Its `model_type`.
        found: String,
        /// Those known, joined by commas.
        known: String,
    },
    /// A weights file is damaged.
    #[error("{}: damaged or cut off: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the reader found.
        reason: String,
    },
    /// A tensor that the architecture needs is not in the weights.
    #[error("{}: tensor `{name}` is missing", path.display())]
    MissingTensor {
        /// The weights file or folder.
        path: PathBuf,
        /// The tensor's name in Hugging Face's form.
        name: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{}: tensor `{name}` has shape {found:?}, the configuration needs {expected:?}", path.display())]
    WrongShape {
        /// The file that holds it.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// What the configuration needs.
        expected: Vec<usize>,
        /// What the file holds.
        found: Vec<usize>,
    },
    /// A tensor's numbers are of a kind that is not read.
    #[error("{}: tensor `{name}` is {found}; f32, f16 and bf16 can be read", path.display())]
    WrongDType {
        /// The file that holds it.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// Its number type.
        found: String,
    },
    /// The processor was asked to compute in numbers that only GPUs compute in.
    #[error("`dtype: f16` is for GPUs alone: on the processor use bf16 or f32")]
    OnlyOnCards,
    /// A card failed.
    #[cfg(any(feature = "cuda", test))]
    #[error(transparent)]
    Card(#[from] super::cuda::CardError),
    /// A token id that the model has no embedding for.
    #[error(
        "token id {id} is outside the model's vocabulary of {vocabulary}: tokenizer and model do not belong together"
    )]
    Vocabulary {
        /// The id.
        id: u32,
        /// Number of embedding rows.
        vocabulary: usize,
    },
    /// More positions than the model has embeddings for.
    #[error("position {position} is needed, and the model has {available} positions")]
    Positions {
        /// The highest position asked for, counted from 0.
        position: u32,
        /// How many there are.
        available: usize,
    },
    /// A soft prompt whose rows are not as wide as the model.
    #[error("the prompt has shape {found:?}, the model needs rows of {hidden} numbers")]
    PromptShape {
        /// The prompt's shape.
        found: Vec<usize>,
        /// The model's hidden size.
        hidden: usize,
    },
    /// There is nothing to continue: no token and no virtual token.
    #[error("row {row} has no tokens and there is no prompt before it: nothing to continue")]
    NothingToContinue {
        /// The row's index.
        row: usize,
    },
    /// Logits from which nothing can be drawn.
    #[error("row {row}: no next token can be drawn, the model's logits are not all numbers")]
    NothingToDraw {
        /// The row's index.
        row: usize,
    },
    /// A GGUF file that can't be used.
    #[error(transparent)]
    Gguf(#[from] super::gguf::GgufError),
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
