//! The base model of a stage that trains, scores or generates: found, loaded, held against the tokens.
//!
//! Does not know what the stage does with it.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::place;
use super::prompt;
use crate::artifact::tokens::Tokens;
use crate::device::Device;
use crate::hub::{Reads, Want};
use crate::location::Location;
use crate::model::decoder::DecoderShape;
use crate::model::{Model, Numbers, Numerics};
use crate::stage::{Context, Fault, Source, StageError};
use crate::tokenizer::Tokenizer;

pub(super) fn yes() -> bool {
    true
}

/// What a model computes in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DType {
    /// 32-bit floats.
    #[default]
    F32,
    /// Matrix products of bfloat16 numbers, summed in 32-bit floats; everything else in 32-bit floats.
    Bf16,
    /// The same with IEEE half precision: on GPUs alone.
    F16,
}

impl DType {
    /// What the model computes in.
    pub fn numerics(self, tf32: bool, deterministic: bool) -> Numerics {
        let numbers = match self {
            Self::F32 => Numbers::F32,
            Self::Bf16 => Numbers::BF16,
            Self::F16 => Numbers::F16,
        };
        Numerics { numbers, tf32, deterministic }
    }
}

/// The metric of the most bytes of a GPU's memory that were in use.
pub const PEAK: &str = "peak_device_memory";

/// What a stage's keys say of its model.
#[derive(Clone, Copy)]
pub struct Named<'a> {
    /// `model`
    pub location: Option<&'a Location>,
    /// `revision`
    pub revision: Option<&'a str>,
}

impl Named<'_> {
    /// What of a repository on the Hub is read.
    fn reads(&self) -> Reads {
        Reads { want: Want::Model, revision: self.revision.map(str::to_owned) }
    }

    /// The outside source, if there is one.
    pub fn source(&self) -> Option<Source> {
        self.location.map(|location| Source::repository("model", location.clone(), self.reads()))
    }
}

/// A loaded model with its tokenizer.
pub struct Base {
    /// The weights.
    pub model: Model,
    /// The tokenizer beside them.
    pub tokenizer: Tokenizer,
    /// The name under which an adapter remembers it. No part of a key where it is a path: of several paths to the same
    /// bytes a result in the cache says the one that it was made from.
    pub name: String,
}

impl Base {
    /// Loads what the port `model` or the key `model` names.
    pub fn load(context: &Context<'_>, named: Named<'_>, numerics: Numerics) -> Result<Self, StageError> {
        let (path, name) = find(context, named)?;
        context.progress(0, 0, "", "loading the model");
        let at = path.clone();
        let tokenizer = context.cancel.or_abandon(move || Tokenizer::open(&at))??;
        let model = match context.device {
            device @ Device::Cpu => {
                context.cancel.or_abandon(move || Model::open(&path, device, numerics))??
            }
            // What is left alone would still be on its way to a card that the next stage computes on.
            device => Model::open(&path, device, numerics)?,
        };
        Ok(Self { model, tokenizer, name })
    }

    /// The same, or what the adapter that is named was trained for.
    pub fn load_for(
        context: &Context<'_>,
        named: Named<'_>,
        adapter: prompt::Named<'_>,
        numerics: Numerics,
    ) -> Result<Self, StageError> {
        if named.location.is_some() || context.inputs.contains_key("model") {
            return Self::load(context, named, numerics);
        }
        let Some(base) = adapter.base_model(context)? else { return Self::load(context, named, numerics) };
        let named = Named { location: Some(&base.location), revision: base.revision.as_deref() };
        Self::load(context, named, numerics)
    }

    /// Puts the most memory that was in use on the device into the record, where it has its own.
    pub fn say_peak(&self, context: &Context<'_>) {
        if let Some(bytes) = self.model.peak_memory() {
            context.metric(PEAK, bytes as f64);
        }
    }

    /// Refuses tokens that another tokenizer made.
    pub fn belongs_to(&self, tokens: &Tokens) -> Result<(), StageError> {
        Ok(tokens.belong_to(&self.name, &self.tokenizer)?)
    }

    /// [`has_room`] in this model.
    pub fn has_room(&self, prompt: usize, longest: usize) -> Result<(), StageError> {
        has_room(self.model.decoder().shape(), &self.name, prompt, longest)
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
pub fn find(context: &Context<'_>, named: Named<'_>) -> Result<(PathBuf, String), StageError> {
    match (context.inputs.get("model"), named.location) {
        (Some(artifact), _) => Ok((artifact.path.clone(), artifact.from.clone())),
        (None, Some(location)) => {
            let path = place::local_or_fetched(context, location, &named.reads(), "model")?;
            Ok((path, location.text().to_string()))
        }
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
