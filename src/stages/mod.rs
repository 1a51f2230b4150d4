//! The stage kinds: one file each, one line here.

pub mod command;
pub mod evaluate;
pub mod fine_tune;
pub mod generate;
pub mod group_texts;
pub mod load_dataset;
pub mod push_to_hub;
pub mod relabel;
pub mod split;
pub mod tokenize;
pub mod train_soft_prompt;
pub mod train_tokenizer;
pub mod transform;

pub mod base;
pub mod chat;
pub mod data_files;
pub mod place;
pub mod prompt;
mod publish;
pub mod rows;
pub mod slice;
pub mod template;
#[cfg(test)]
mod testing;
mod training;
mod uploads;

use crate::artifact::adapter::AdapterError;
use crate::artifact::dataset::DatasetError;
use crate::artifact::tokens::TokensError;
use crate::model::ModelError;
use crate::stage::{Kind, StageError};
use crate::tokenizer::TokenizerError;
use crate::train::TrainError;

/// Every stage kind there is.
pub static KINDS: &[Kind] = &[
    Kind::of::<load_dataset::LoadDataset>(),
    Kind::of::<relabel::Relabel>(),
    Kind::of::<split::SplitRows>(),
    Kind::of::<transform::Transform>(),
    Kind::of::<train_tokenizer::TrainTokenizer>(),
    Kind::of::<tokenize::Tokenize>(),
    Kind::of::<group_texts::GroupTexts>(),
    Kind::of::<train_soft_prompt::TrainSoftPrompt>(),
    Kind::of::<fine_tune::FineTune>(),
    Kind::of::<evaluate::Evaluate>(),
    Kind::of::<generate::Generate>(),
    Kind::of::<push_to_hub::PushToHub>(),
    Kind::of::<command::Command>(),
];

/// The kind of this name.
pub fn find(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.name == name)
}

impl From<DatasetError> for StageError {
    fn from(error: DatasetError) -> Self {
        match error {
            DatasetError::Interrupted(interrupted) => interrupted.into(),
            other => Self::failed(other.to_string()),
        }
    }
}

impl From<TokensError> for StageError {
    fn from(error: TokensError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<TokenizerError> for StageError {
    fn from(error: TokenizerError) -> Self {
        let help = error.help().map(str::to_owned);
        Self::Failed { message: error.to_string(), help }
    }
}

impl From<AdapterError> for StageError {
    fn from(error: AdapterError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<ModelError> for StageError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Interrupted => Self::Interrupted,
            other => Self::failed(other.to_string()),
        }
    }
}

impl From<TrainError> for StageError {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Interrupted | TrainError::Model(ModelError::Interrupted) => Self::Interrupted,
            error @ TrainError::Checkpoint { .. } => Self::with_help(
                error.to_string(),
                "name a folder `checkpoints/step-N` of a run with the same keys and rows, or leave `resume_from` out",
            ),
            other => Self::failed(other.to_string()),
        }
    }
}
