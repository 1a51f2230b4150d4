//! Continues prompts, behind a soft prompt or without one.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::base::{self, Base, DType};
use super::prompt::{self, Prompt};
use crate::artifact::dataset::Dataset;
use crate::location::Location;
use crate::model::generate::{GenerateOptions, GenerateProgress, greedy};
use crate::stage::{ArtifactKind, Context, Fault, Lane, Output, Port, Source, Stage, StageError};

/// The configuration.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// The model; default: the one the adapter was trained on.
    #[serde(default)]
    pub model: Option<Location>,
    /// A folder with an adapter, instead of the port `adapter`.
    #[serde(default)]
    pub adapter: Option<Location>,
    /// The texts to continue.
    #[serde(default)]
    pub prompts: Vec<String>,
    /// The column of the dataset whose texts are continued, instead of `prompts`.
    #[serde(default)]
    pub column: Option<String>,
    /// The split of the dataset.
    #[serde(default = "train_split")]
    pub split: String,
    /// At most so many new tokens a prompt.
    #[serde(default = "twenty")]
    pub max_new_tokens: usize,
    /// A text ends with any of these token ids; default: the tokenizer's own end.
    #[serde(default)]
    pub eos_token_id: Option<Ids>,
    /// Prompts that are continued together; changes no result.
    #[serde(default = "eight")]
    pub batch_size: usize,
    /// What the model computes in.
    #[serde(default)]
    pub dtype: DType,
}

/// One id or several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Ids {
    /// One.
    One(u32),
    /// Several.
    Several(Vec<u32>),
}

fn train_split() -> String {
    "train".into()
}
/// transformers' default length.
fn twenty() -> usize {
    20
}
fn eight() -> usize {
    8
}

impl Stage for Generate {
    const KIND: &'static str = "generate";
    const VERSION: u32 = 2;
    const LANE: Lane = Lane::Device;
    const ABOUT: &'static str = "Continues prompts with a model or adapter, the likeliest token at a time.";
    const EXAMPLE: &'static str = "\
answers:
  uses: generate
  inputs: { adapter: prompt }
  with:
    prompts: [\"Tweet text : I have no water. Label : \"]
    max_new_tokens: 10
";
    const INPUTS: &'static [Port] = &[
        Port {
            name: "adapter",
            accepts: &[ArtifactKind::Adapter],
            required: false,
            about: "the prompt; its model comes along",
        },
        Port {
            name: "model",
            accepts: &[ArtifactKind::Model, ArtifactKind::Files],
            required: false,
            about: "the model, instead of the key `model`",
        },
        Port {
            name: "dataset",
            accepts: &[ArtifactKind::Dataset],
            required: false,
            about: "rows whose `column` is continued, instead of `prompts`",
        },
    ];

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("text", ArtifactKind::Text, &["generations.jsonl"])]
    }

    fn sources(&self) -> Vec<Source> {
        prompt::sources(self.model.as_ref(), self.adapter.as_ref())
    }

    fn check(&self, inputs: &[&str]) -> Vec<Fault> {
        let mut faults = prompt::check(self.adapter.as_ref(), inputs);
        faults.extend(base::check(self.model.as_ref(), inputs));
        match (self.prompts.is_empty(), inputs.contains(&"dataset"), &self.column) {
            (true, false, _) => faults.push(
                Fault::new("", "there is nothing to continue")
                    .help("give `prompts`, or connect `dataset` and name its `column`"),
            ),
            (true, true, None) => faults.push(
                Fault::new("", "which column of the dataset is to be continued?").help("name it: `column`"),
            ),
            (false, true, _) => faults.push(
                Fault::new("prompts", "`prompts` and a dataset can't both be given").help("keep one of them"),
            ),
            _ => {}
        }
        faults
    }

    fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
        let texts = self.texts(context)?;
        let base = Base::load(context, self.model.as_ref(), self.dtype.precision())?;
        let prompt = Prompt::load(context, self.adapter.as_ref(), &base)?;
        let rows = base.tokenizer.encode_all(&texts, true)?;
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0) + self.max_new_tokens;
        base.has_room(prompt.as_ref().map_or(0, Prompt::len), longest)?;
        let end = match &self.eos_token_id {
            Some(Ids::One(id)) => vec![*id],
            Some(Ids::Several(ids)) => ids.clone(),
            None => base.tokenizer.eos_id().into_iter().collect(),
        };
        let options = GenerateOptions {
            max_new_tokens: self.max_new_tokens,
            end: end.clone(),
            batch_size: self.batch_size,
        };
        let most = (rows.len() * self.max_new_tokens) as u64;
        let mut watch = |progress: GenerateProgress| {
            context.progress(progress.tokens as u64, most, "tokens", "");
            if context.cancel.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let ids = greedy(&base.model, prompt.as_ref().map(|p| &p.rows), &rows, &options, &mut watch)?;

        let path = context.out.join("generations.jsonl");
        let file = File::create(&path).map_err(|e| StageError::io(&path, &e))?;
        let mut file = BufWriter::new(file);
        for (prompt, ids) in texts.iter().zip(&ids) {
            let text = base.tokenizer.decode(ids, true)?;
            if texts.len() <= SHOWN {
                context.note(format!("{prompt}→ {text}"));
            }
            let line = json!({
                "prompt": prompt, "text": text, "ids": ids,
                "eos_token_id": end, "max_new_tokens": self.max_new_tokens,
            });
            writeln!(file, "{line}").map_err(|e| StageError::io(&path, &e))?;
        }
        file.flush().map_err(|e| StageError::io(&path, &e))
    }
}

/// With more prompts than this the texts are only in the file.
const SHOWN: usize = 5;

impl Generate {
    fn texts(&self, context: &Context<'_>) -> Result<Vec<String>, StageError> {
        let (Some(artifact), Some(column)) = (context.inputs.get("dataset"), &self.column) else {
            return Ok(self.prompts.clone());
        };
        let dataset = Dataset::load(&artifact.path)?;
        let split = dataset.split(&self.split)?;
        (0..split.rows())
            .map(|row| {
                split.text_at(column, row)?.ok_or_else(|| {
                    StageError::failed(format!("row {row} of split `{}` has no `{column}`", self.split))
                })
            })
            .collect()
    }
}
