//! Why training stopped.

use std::path::PathBuf;

use crate::model::ModelError;

/// Why training or its preparation stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// There is nothing to train on.
    #[error("there are no rows to train on")]
    NoRows,
    /// A row whose ids and labels do not pair up.
    #[error("row {row} has {ids} ids and {labels} labels")]
    Labels {
        /// Index of the row, from 0.
        row: usize,
        /// Its ids.
        ids: usize,
        /// Its labels.
        labels: usize,
    },
    /// A label that is no token of the model.
    #[error(
        "row {row}: label {label} is outside the model's vocabulary of {vocabulary}: tokenizer and model do not belong together"
    )]
    LabelOutside {
        /// Index of the row, from 0.
        row: usize,
        /// The label.
        label: u32,
        /// Number of tokens the model knows.
        vocabulary: usize,
    },
    /// A batch in which no label is left.
    #[error(
        "step {step}: none of its rows ({}) has a label that is kept; were the labels cut off?",
        list(rows)
    )]
    NoLabels {
        /// The step, from 1.
        step: usize,
        /// Indices of its rows, from 0.
        rows: Vec<usize>,
    },
    /// The loss is NaN or infinite.
    #[error("step {step}: the loss is {loss} (rows {}); a smaller learning_rate may help", list(rows))]
    Loss {
        /// The step, from 1.
        step: usize,
        /// What came out.
        loss: f64,
        /// Indices of its rows, from 0.
        rows: Vec<usize>,
    },
    /// A tensor gets no gradient, or one that can't be used.
    #[error("step {step}: the gradient of {tensor} is {what} (rows {})", list(rows))]
    Gradient {
        /// The step, from 1.
        step: usize,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        what: &'static str,
        /// Indices of its rows, from 0.
        rows: Vec<usize>,
    },
    /// An option has a value that can't be.
    #[error("{0}")]
    Option(String),
    /// The file with the first prompt can't be used.
    #[error("{}: {reason}", path.display())]
    InitFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The best of several states is asked for, and nothing says which it is.
    #[error("`load_best` and `early_stopping` need an evaluation split with rows in it")]
    NothingToEvaluate,
    /// A checkpoint can't be gone on from.
    #[error("{}: {reason}", folder.display())]
    Checkpoint {
        /// Its folder.
        folder: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file can't be written.
    #[error("{}: {error}", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What the disk said.
        error: std::io::Error,
    },
    /// What listened to the training could not go on.
    #[error("{0}")]
    Observer(String),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl From<candle_core::Error> for TrainError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}

fn list(rows: &[usize]) -> String {
    rows.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}
