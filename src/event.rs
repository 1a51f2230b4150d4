//! What happens in a run, as it happens, and what remains of it: the one stream that everything shown is made
//! from.
//!
//! Knows no screen and no file; says what happened, not how it looks.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use crate::cache::OutputRef;
use crate::fingerprint::{Change, Fingerprint, Key};
use crate::secrets::Secrets;

/// How a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It did its work.
    Ran,
    /// Its result was in the cache.
    Cached,
    /// It is off.
    Skipped,
    /// It could not do its work.
    Failed,
    /// Somebody stopped it.
    Interrupted,
    /// The run ended before it, or what it needs failed.
    NotReached,
}

impl Status {
    /// The word that is shown.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ran => "ran",
            Self::Cached => "cached",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::NotReached => "not reached",
        }
    }
}

/// Why a stage failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What happened and where.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub help: Option<String>,
}

impl Failure {
    fn with_texts(&self, new: &dyn Fn(&str) -> String) -> Self {
        Self { message: new(&self.message), help: self.help.as_deref().map(new) }
    }
}

/// What remains of a stage after a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StageRecord {
    /// Its name.
    pub stage: String,
    /// Its kind.
    pub kind: String,
    /// How it ended.
    pub status: Status,
    /// How long that took in this run.
    pub seconds: f64,
    /// Under which name its result is cached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Key>,
    /// The folder with its files, relative to the run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// Its outputs by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, OutputRef>,
    /// Numbers it said.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "numbers")]
    pub metrics: BTreeMap<String, f64>,
    /// Why it ran, or why it did not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
    /// Warnings it gave.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// What it needs, by port: `stage.output`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, String>,
    /// What its key was made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
}

impl StageRecord {
    /// The same with everything that was said of it in new words. Names, kinds and digests stay.
    pub fn with_texts(&self, new: &dyn Fn(&str) -> String) -> Self {
        Self {
            metrics: self.metrics.iter().map(|(name, value)| (new(name), *value)).collect(),
            why: self.why.iter().map(|text| new(text)).collect(),
            warnings: self.warnings.iter().map(|text| new(text)).collect(),
            error: self.error.as_ref().map(|error| error.with_texts(new)),
            ..self.clone()
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Not yet at its end, or killed.
    Running,
    /// All that was asked for is there.
    Succeeded,
    /// A stage failed.
    Failed,
    /// Somebody stopped it.
    Interrupted,
}

/// What remains of a run: `run.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunRecord {
    /// The run's name, which is its folder's.
    pub run: String,
    /// The manifest's `pipeline`.
    pub pipeline: String,
    /// The manifest's path as it was given.
    pub manifest: String,
    /// When it began, in RFC 3339.
    pub started: String,
    /// How long it took.
    pub seconds: f64,
    /// How it ended.
    pub status: RunStatus,
    /// The version of `pipe`.
    pub pipe: String,
    /// The device of model stages.
    pub device: String,
    /// The params after profiles and `--set`, environment values left as `${env.NAME}`.
    pub params: serde_json::Value,
    /// The profiles, in order.
    pub profiles: Vec<String>,
    /// Every stage in the manifest's order.
    pub stages: Vec<StageRecord>,
}

impl RunRecord {
    /// The same with everything that was said of its stages in new words.
    pub fn with_texts(&self, new: &dyn Fn(&str) -> String) -> Self {
        let stages = self.stages.iter().map(|stage| stage.with_texts(new)).collect();
        Self { stages, ..self.clone() }
    }
}

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A run began.
    RunStarted {
        /// Its name.
        run: String,
        /// The manifest's `pipeline`.
        pipeline: String,
        /// The names of all stages that take part, with their kinds.
        stages: Vec<(String, String)>,
    },
    /// Another process is making this result.
    StageWaiting {
        /// The stage.
        stage: String,
    },
    /// A stage's result is not in the cache and its work begins.
    StageStarted {
        /// The stage.
        stage: String,
        /// Its kind.
        kind: String,
        /// The device it runs on, if it is a model stage.
        #[serde(skip_serializing_if = "Option::is_none")]
        device: Option<String>,
        /// What changed since it last ran; empty: it never did.
        why: Vec<Change>,
    },
    /// How far a stage is.
    StageProgress {
        /// The stage.
        stage: String,
        /// Units done.
        done: u64,
        /// Units in all; 0: not known.
        total: u64,
        /// What is counted.
        unit: &'static str,
        /// Running figures.
        detail: String,
    },
    /// A line worth keeping.
    StageNote {
        /// The stage.
        stage: String,
        /// The line.
        text: String,
    },
    /// A line to act on.
    StageWarning {
        /// The stage.
        stage: String,
        /// The line.
        text: String,
    },
    /// A stage ended.
    StageFinished(StageRecord),
    /// A line that concerns the run as a whole.
    Note {
        /// The line.
        text: String,
    },
    /// Somebody asked to stop.
    Stopping,
    /// The run ended.
    RunFinished(RunRecord),
}

impl Event {
    /// The same with everything that was said in new words. Names and kinds stay.
    pub fn with_texts(&self, new: &dyn Fn(&str) -> String) -> Self {
        let mut event = self.clone();
        match &mut event {
            Self::RunStarted { .. } | Self::StageWaiting { .. } | Self::Stopping => {}
            Self::StageStarted { why, .. } => why.iter_mut().for_each(|Change(text)| *text = new(text)),
            Self::StageProgress { detail: text, .. }
            | Self::StageNote { text, .. }
            | Self::StageWarning { text, .. }
            | Self::Note { text } => *text = new(text),
            Self::StageFinished(record) => *record = record.with_texts(new),
            Self::RunFinished(record) => *record = record.with_texts(new),
        }
        event
    }
}

/// Takes events, in order, from any thread.
pub trait Listen: Send + Sync {
    /// One thing that happened.
    fn on(&self, event: &Event);
}

/// Passes events on without values that must not be shown.
pub struct Hiding {
    /// The values.
    pub secrets: Secrets,
    /// Who gets the events.
    pub to: Arc<dyn Listen>,
}

impl Listen for Hiding {
    fn on(&self, event: &Event) {
        match self.secrets.is_empty() {
            true => self.to.on(event),
            false => self.to.on(&event.with_texts(&|text| self.secrets.hide(text))),
        }
    }
}

/// Numbers by name as JSON has them: one that is none is `null` there, and comes back as NaN.
pub fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let numbers = BTreeMap::<String, Option<f64>>::deserialize(deserializer)?;
    Ok(numbers.into_iter().map(|(name, number)| (name, number.unwrap_or(f64::NAN))).collect())
}
