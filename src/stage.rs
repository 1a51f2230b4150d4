//! What a stage kind is: its typed configuration, its ports, and the work it does.
//!
//! Knows nothing of manifests' text, of the graph, of keys or of where results are kept.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::about::About;
pub use crate::cancel::Cancel;
use crate::cancel::Interrupted;
use crate::device::Device;
use crate::hub::{Hub, Reads};
use crate::location::Location;
use crate::manifest::node::{Node, NodeError};
use crate::secrets::Secrets;

/// What flows along an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactKind {
    /// Rows in named columns, in splits: parquet files.
    Dataset,
    /// Token ids with labels, in splits.
    Tokens,
    /// A model folder or file.
    Model,
    /// A trained soft prompt in PEFT's two files.
    Adapter,
    /// Numbers by name.
    Metrics,
    /// Generated or predicted text, a JSON object a line.
    Text,
    /// Any other files.
    Files,
}

impl ArtifactKind {
    /// The word a manifest and an error use.
    pub fn word(self) -> &'static str {
        match self {
            Self::Dataset => "dataset",
            Self::Tokens => "tokens",
            Self::Model => "model",
            Self::Adapter => "adapter",
            Self::Metrics => "metrics",
            Self::Text => "text",
            Self::Files => "files",
        }
    }
}

/// The name of a port that stands for inputs of any name.
pub const ANY_PORT: &str = "*";

/// A named input of a stage kind.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Its name under `inputs`.
    pub name: &'static str,
    /// The kinds it takes; empty: any.
    pub accepts: &'static [ArtifactKind],
    /// Whether the stage can't do without.
    pub required: bool,
    /// One line for `pipe stages KIND`.
    pub about: &'static str,
}

/// A named result of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The word behind the dot in `stage.output`.
    pub name: String,
    /// What it is.
    pub kind: ArtifactKind,
    /// Files or folders of the stage's folder that make it up; `.` is all of it.
    pub paths: Vec<String>,
}

impl Output {
    /// An output of one kind made of these files or folders.
    pub fn new(name: &str, kind: ArtifactKind, paths: &[&str]) -> Self {
        Self { name: name.into(), kind, paths: paths.iter().map(|p| p.to_string()).collect() }
    }
}

/// Where a stage's work runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Beside others, on the processor.
    Cpu,
    /// One at a time, on the model device.
    Device,
}

/// How a stage gets what comes in at its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It reads the result where it is, and is trusted not to write there.
    Shared,
    /// It has a copy of its own, with which it may do as it likes.
    Own,
}

/// Something wrong with a configuration that can be known without running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key under `with` it is about; empty for `with` as a whole.
    pub key: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl Fault {
    /// A fault at `key`.
    pub fn new(key: &'static str, message: impl Into<String>) -> Self {
        Self { key, message: message.into(), help: None }
    }

    /// The same with advice.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// A file, folder or name from outside the pipeline whose content is part of the key.
#[derive(Clone, Debug)]
pub struct Source {
    /// The key under `with` that names it (`model`, `files.train`).
    pub role: String,
    /// Where it is.
    pub location: Location,
    /// What is meant by it.
    pub content: Content,
}

/// What of a place outside counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The file or the folder's files; the place is on this machine.
    Files,
    /// Of a folder on this machine these files alone.
    Named(Vec<String>),
    /// The same as [`Content::Files`]; if the place is a name on the Hub, these of its files.
    Repository(Reads),
    /// The place is that of an adapter; what counts is the model that its configuration names.
    BaseModel {
        /// Of the adapter.
        revision: Option<String>,
    },
}

impl Source {
    /// A file or folder on this machine.
    pub fn files(role: impl Into<String>, location: Location) -> Self {
        Self { role: role.into(), location, content: Content::Files }
    }

    /// A file, a folder, or a name on the Hub of which `reads` counts.
    pub fn repository(role: impl Into<String>, location: Location, reads: Reads) -> Self {
        Self { role: role.into(), location, content: Content::Repository(reads) }
    }
}

/// One stage kind: the type is its configuration (the keys under `with`).
///
/// Doc comments on the fields are what `pipe stages KIND` and the JSON Schema show.
pub trait Stage: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The word after `uses:`.
    const KIND: &'static str;
    /// Raised whenever the same inputs would give another result than before.
    const VERSION: u32;
    /// Where it runs.
    const LANE: Lane;
    /// One sentence for `pipe stages`.
    const ABOUT: &'static str;
    /// A stage of this kind as it stands in a manifest (the lines below `stages:`).
    const EXAMPLE: &'static str;
    /// The ports, in the order they are shown.
    const INPUTS: &'static [Port];
    /// How it gets what comes in.
    const ACCESS: Access = Access::Shared;

    /// What it writes. The first is what a bare `stage` reference means when several fit.
    fn outputs(&self) -> Vec<Output>;

    /// What it reads from outside, so that its content goes into the key.
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    /// What can be known to be wrong without running; `inputs` are the ports that are connected.
    fn check(&self, inputs: &[&str]) -> Vec<Fault> {
        let _ = inputs;
        Vec::new()
    }

    /// Does the work: reads `context.input(…)`, writes below `context.out`.
    fn run(&self, context: &Context<'_>) -> Result<(), StageError>;
}

/// A [`Stage`] behind a pointer: what plan and scheduler handle.
pub trait AnyStage: Send + Sync {
    /// Its kind's description.
    fn kind(&self) -> &'static Kind;
    /// See [`Stage::outputs`].
    fn outputs(&self) -> Vec<Output>;
    /// See [`Stage::sources`].
    fn sources(&self) -> Vec<Source>;
    /// See [`Stage::check`].
    fn check(&self, inputs: &[&str]) -> Vec<Fault>;
    /// The configuration with every default filled in, keys sorted.
    fn canonical(&self) -> serde_json::Value;
    /// See [`Stage::run`].
    fn run(&self, context: &Context<'_>) -> Result<(), StageError>;
}

struct Erased<S>(S, &'static Kind);

impl<S: Stage> AnyStage for Erased<S> {
    fn kind(&self) -> &'static Kind {
        self.1
    }
    fn outputs(&self) -> Vec<Output> {
        self.0.outputs()
    }
    fn sources(&self) -> Vec<Source> {
        self.0.sources()
    }
    fn check(&self, inputs: &[&str]) -> Vec<Fault> {
        self.0.check(inputs)
    }
    fn canonical(&self) -> serde_json::Value {
        serde_json::to_value(&self.0).unwrap_or(serde_json::Value::Null)
    }
    fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
        self.0.run(context)
    }
}

/// Reads what stands under `with` of a stage of this kind.
pub type Parse = fn(&'static Kind, Node) -> Result<Arc<dyn AnyStage>, NodeError>;

/// The description of a stage kind, made from its [`Stage`] type alone.
pub struct Kind {
    /// [`Stage::KIND`]
    pub name: &'static str,
    /// [`Stage::VERSION`]
    pub version: u32,
    /// [`Stage::LANE`]
    pub lane: Lane,
    /// [`Stage::ABOUT`]
    pub about: &'static str,
    /// [`Stage::EXAMPLE`]
    pub example: &'static str,
    /// [`Stage::INPUTS`]
    pub inputs: &'static [Port],
    /// [`Stage::ACCESS`]
    pub access: Access,
    /// The JSON Schema of what stands under `with`.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Reads what stands under `with`.
    pub parse: Parse,
}

impl Kind {
    /// The description of `S`.
    pub const fn of<S: Stage>() -> Self {
        fn parse<S: Stage>(kind: &'static Kind, with: Node) -> Result<Arc<dyn AnyStage>, NodeError> {
            Ok(Arc::new(Erased(S::deserialize(with)?, kind)))
        }
        fn schema<S: Stage>(generator: &mut SchemaGenerator) -> Schema {
            S::json_schema(generator)
        }
        Self {
            name: S::KIND,
            version: S::VERSION,
            lane: S::LANE,
            about: S::ABOUT,
            example: S::EXAMPLE,
            inputs: S::INPUTS,
            access: S::ACCESS,
            schema: schema::<S>,
            parse: parse::<S>,
        }
    }

    /// The port of this name, or [`ANY_PORT`] where the kind has that.
    pub fn port(&self, name: &str) -> Option<&'static Port> {
        self.inputs
            .iter()
            .find(|p| p.name == name)
            .or_else(|| self.inputs.iter().find(|p| p.name == ANY_PORT))
    }
}

/// A result of an earlier stage, as files on disk. Read-only.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// What it is.
    pub kind: ArtifactKind,
    /// The file, where it is one file, else the folder it is in.
    pub path: PathBuf,
    /// `stage` or `stage.output`, for messages.
    pub from: String,
}

/// What a running stage says of itself.
#[derive(Clone, Debug)]
pub enum Saying {
    /// How far it is. `total` 0: not known.
    Progress {
        /// Units done.
        done: u64,
        /// Units in all.
        total: u64,
        /// What is counted: `rows`, `steps`, `tokens`.
        unit: &'static str,
        /// The running figures, such as `loss 1.234`.
        detail: String,
    },
    /// A line worth keeping.
    Note(String),
    /// A line the user should act on.
    Warning(String),
    /// A number that belongs to the record of this stage.
    Metric(String, f64),
}

/// All a stage has while it runs.
pub struct Context<'a> {
    /// The connected ports.
    pub inputs: &'a BTreeMap<String, Artifact>,
    /// An empty folder for the results.
    pub out: &'a Path,
    /// A folder that outlives a kill, for work to be gone on with by the next run of the same stage on the same
    /// inputs; made by whoever writes to it, gone once the stage is done.
    pub unfinished: &'a Path,
    /// The lock on the result. A program that the stage starts, or whoever watches it, holds it too: nobody else begins
    /// the same work while one is left.
    pub lock: Option<&'a File>,
    /// The device of the model lane; the processor for other stages.
    pub device: Device,
    /// Where names on the Hub become files.
    pub hub: &'a Hub,
    /// Takes what the stage says.
    pub say: &'a (dyn Fn(Saying) + Sync),
    /// Whether to stop.
    pub cancel: &'a Cancel,
    /// What must not get into a file that tells of the work; all that is said is cleared of it anyway.
    pub secrets: &'a Secrets,
    /// What may be told of the run to others.
    pub about: &'a About,
}

impl Context<'_> {
    /// The artifact at a port that is known to be connected.
    pub fn input(&self, port: &str) -> Result<&Artifact, StageError> {
        self.inputs.get(port).ok_or_else(|| StageError::failed(format!("nothing is connected to `{port}`")))
    }

    /// Says how far the work is.
    pub fn progress(&self, done: u64, total: u64, unit: &'static str, detail: impl Into<String>) {
        (self.say)(Saying::Progress { done, total, unit, detail: detail.into() });
    }

    /// Says a line worth keeping.
    pub fn note(&self, text: impl Into<String>) {
        (self.say)(Saying::Note(text.into()));
    }

    /// Says a line the user should act on.
    pub fn warn(&self, text: impl Into<String>) {
        (self.say)(Saying::Warning(text.into()));
    }

    /// Puts a number into the record.
    pub fn metric(&self, name: impl Into<String>, value: f64) {
        (self.say)(Saying::Metric(name.into(), value));
    }

    /// Ends the stage if somebody asked to stop; to be called often in long loops.
    pub fn go_on(&self) -> Result<(), StageError> {
        if self.cancel.is_set() { Err(StageError::Interrupted) } else { Ok(()) }
    }
}

/// Why a stage did not finish.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// It could not do its work.
    #[error("{message}")]
    Failed {
        /// What happened and where, in one sentence or a few lines.
        message: String,
        /// What to do.
        help: Option<String>,
    },
}

impl StageError {
    /// A failure without advice.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), help: None }
    }

    /// A failure with advice.
    pub fn with_help(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), help: Some(help.into()) }
    }

    /// A file that can't be read or written, or where reading was asked to stop.
    pub fn io(path: &Path, error: &std::io::Error) -> Self {
        match Interrupted::is(error) {
            true => Self::Interrupted,
            false => Self::failed(format!("{}: {error}", crate::files::shown(path))),
        }
    }
}

impl From<Interrupted> for StageError {
    fn from(_: Interrupted) -> Self {
        Self::Interrupted
    }
}
