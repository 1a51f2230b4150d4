//! The base model of a stage that trains, scores or generates: found, loaded, held against the tokens.
//!
//! Does not know what the stage does with it.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::place;
use crate::artifact::tokens::Tokens;
use crate::location::Location;
use crate::model::decoder::DecoderShape;
use crate::model::{self, Decoder, Precision};
use crate::stage::{Context, Fault, StageError};
use crate::tokenizer::Tokenizer;

/// What a model computes in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DType {
    /// 32-bit floats.
    #[default]
    F32,
    /// Matrix products of bfloat16 numbers, summed in 32-bit floats; everything else in 32-bit floats.
    Bf16,
}

impl DType {
    /// The precision of the model's products.
    pub fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::BF16,
        }
    }
}

/// A loaded model with its tokenizer.
pub struct Base {
    /// The weights.
    pub model: Decoder,
    /// The tokenizer beside them.
    pub tokenizer: Tokenizer,
    /// The name under which an adapter remembers it.
    pub name: String,
}

impl Base {
    /// Loads what the port `model` or the key `model` names.
    pub fn load(
        context: &Context<'_>,
        named: Option<&Location>,
        precision: Precision,
    ) -> Result<Self, StageError> {
        let (path, name) = find(context, named)?;
        context.progress(0, 0, "", "loading the model");
        let tokenizer = Tokenizer::open(&path)?;
        let model = model::load(&path, context.device, precision)?;
        Ok(Self { model, tokenizer, name })
    }

    /// Refuses tokens that another tokenizer made.
    pub fn belongs_to(&self, tokens: &Tokens) -> Result<(), StageError> {
        Ok(tokens.belong_to(&self.name, &self.tokenizer)?)
    }

    /// [`has_room`] in this model.
    pub fn has_room(&self, prompt: usize, longest: usize) -> Result<(), StageError> {
        has_room(self.model.shape(), &self.name, prompt, longest)
    }
}

/// Refuses rows that need more positions than the model called `name` has; `longest` counts padding.
pub fn has_room(shape: &DecoderShape, name: &str, prompt: usize, longest: usize) -> Result<(), StageError> {
    let Some(most) = shape.max_positions.filter(|most| prompt + longest > *most) else { return Ok(()) };
    let virtual_tokens = if prompt == 0 { String::new() } else { format!("{prompt} virtual tokens and ") };
    Err(StageError::with_help(
        format!(
            "{virtual_tokens}rows of {longest} tokens need {} positions, `{name}` has {most}",
            prompt + longest
        ),
        format!(
            "lower `max_length` of the tokenize stage, or `block_size` of group_texts, to {} or less",
            most.saturating_sub(prompt)
        ),
    ))
}

/// Where the model is that the port `model` or the key `model` names, and its name.
pub fn find(context: &Context<'_>, named: Option<&Location>) -> Result<(PathBuf, String), StageError> {
    match (context.inputs.get("model"), named) {
        (Some(artifact), _) => Ok((artifact.path.clone(), artifact.from.clone())),
        (None, Some(location)) => Ok((place::local(location, "model")?, location.text().to_string())),
        (None, None) => Err(StageError::with_help("no model is given", "name one under `with: model`")),
    }
}

/// The fault of a stage that is given no model, or two.
pub fn check(named: Option<&Location>, inputs: &[&str]) -> Option<Fault> {
    match (named.is_some(), inputs.contains(&"model")) {
        (true, true) => Some(
            Fault::new("model", "the model is given twice: by `model` and by the port `model`")
                .help("keep one of them"),
        ),
        (false, false) => Some(
            Fault::new("", "no model is given")
                .help("name a folder, a .gguf file or a Hub name under `model`, or connect the port `model`"),
        ),
        _ => None,
    }
}
