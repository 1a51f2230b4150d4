//! From the YAML text of a manifest to typed stages that are wired without fault.
//!
//! The way: `yaml` makes the spanned tree, `document` finds the stages in it, `params` and `scope`
//! say what `${…}` stands for, `wiring` and `matrix` which stages there are and what feeds them,
//! `build` and `typed` make them into their types. Every step reports all it finds and goes on. Knows no
//! keys, no cache and no earlier runs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::device::{Device, DeviceError, DeviceSpec};
use crate::diagnostic::{self, Diagnostic, Severity, Source, Span};
use crate::secrets::Secrets;
use crate::stage::{AnyStage, Kind};

mod build;
mod document;
mod matrix;
pub mod node;
mod params;
mod scope;
mod typed;
mod wiring;
mod yaml;

#[cfg(test)]
mod tests;

pub use params::Overrides;

/// A pipeline that can be planned: typed, wired, without circles.
pub struct Manifest {
    /// The path it was read from.
    pub path: PathBuf,
    /// The folder it is in.
    pub dir: PathBuf,
    /// Its text.
    pub source: Arc<Source>,
    /// What stands at `pipeline`.
    pub name: String,
    /// What stands at `description`.
    pub description: Option<String>,
    /// Every param with its value in this run, keys sorted, `${env.NAME}` left as it is.
    pub params: serde_json::Value,
    /// The stages in the order of the file, instances of a matrix side by side.
    pub stages: Vec<StageDecl>,
    /// What is worth a look.
    pub warnings: Vec<Diagnostic>,
    /// The environment's values that are in the stages: not to be shown.
    pub secrets: Secrets,
}

/// A stage as the manifest declares it.
#[derive(Clone)]
pub struct StageDecl {
    /// Its name.
    pub id: StageId,
    /// What stands at `uses`.
    pub kind: &'static Kind,
    /// What stands under `with`, in its type.
    pub stage: Arc<dyn AnyStage>,
    /// The same with all defaults and sorted keys, `${env.NAME}` left as it is.
    pub config: serde_json::Value,
    /// Where its outside sources are named, by their roles.
    pub places: BTreeMap<String, Span>,
    /// What it takes, in the order of its kind's ports.
    pub inputs: Vec<Edge>,
    /// Whether it runs.
    pub on: On,
    /// The longest it may run.
    pub timeout: Option<Duration>,
    /// How often it is tried again after it failed.
    pub retries: u32,
    /// The device it asks for.
    pub device: Option<DeviceSpec>,
    /// Where its name stands.
    pub span: Span,
}

impl StageDecl {
    /// The device it asks for, else this one.
    pub fn device_or(&self, default: Device) -> Result<Device, DeviceError> {
        self.device.map_or(Ok(default), DeviceSpec::open)
    }
}

/// The name of a stage; `stage[axis=value,…]` for an instance of a matrix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct StageId(String);

impl StageId {
    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name under `stages`: what all instances of a matrix share.
    pub fn base(&self) -> &str {
        self.0.split('[').next().unwrap_or_default()
    }
}

impl fmt::Display for StageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A result that a stage takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The port it comes in by.
    pub port: String,
    /// The stage it comes from.
    pub from: StageId,
    /// Which of that stage's outputs it is.
    pub output: String,
}

/// Whether a stage runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum On {
    /// It does.
    On,
    /// It does not, and why: `` `when` is false ``.
    Off(String),
}

/// All that is wrong with a manifest.
#[derive(Debug)]
pub struct Faults {
    /// The manifest's text; empty if it could not be read.
    pub source: Arc<Source>,
    /// The errors, at least one, and warnings.
    pub list: Vec<Diagnostic>,
    /// The environment's values that may be in their texts.
    pub secrets: Secrets,
}

impl std::error::Error for Faults {}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl Faults {
    /// How many errors there are.
    pub fn errors(&self) -> usize {
        self.list.iter().filter(|d| d.severity == Severity::Error).count()
    }

    /// All of them as they are shown; ends without a newline.
    pub fn render(&self, color: bool) -> String {
        diagnostic::render(&self.source, &self.list, &self.secrets, color)
    }
}

/// Reads and checks a manifest.
pub fn load(path: &Path, overrides: &Overrides, kinds: &'static [Kind]) -> Result<Manifest, Faults> {
    let (source, fault) = yaml::read(path);
    match fault {
        Some(fault) => {
            Err(Faults { source: Arc::new(source), list: vec![fault], secrets: Secrets::default() })
        }
        None => load_source(path, source, overrides, kinds),
    }
}

fn load_source(
    path: &Path,
    source: Source,
    overrides: &Overrides,
    kinds: &'static [Kind],
) -> Result<Manifest, Faults> {
    let source = Arc::new(source);
    let dir = match path.parent() {
        Some(dir) if dir != Path::new("") => dir.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let mut faults = Vec::new();
    let manifest = read(path, dir, &source, overrides, kinds, &mut faults);
    // Instances of one stage have the same faults.
    let mut seen = std::collections::HashSet::new();
    faults.retain(|fault| seen.insert(fault.clone()));
    let wrong = faults.iter().any(|fault| fault.severity == Severity::Error);
    match manifest {
        Some(manifest) if !wrong => Ok(Manifest { warnings: faults, ..manifest }),
        manifest => {
            let secrets = manifest.map(|m| m.secrets).unwrap_or_default();
            Err(Faults { source, list: faults, secrets })
        }
    }
}

fn read(
    path: &Path,
    dir: PathBuf,
    source: &Arc<Source>,
    overrides: &Overrides,
    kinds: &'static [Kind],
    faults: &mut Vec<Diagnostic>,
) -> Option<Manifest> {
    let root = yaml::parse(&source.text, &Arc::new(dir.clone()), faults)?;
    let mut document = document::read(root, kinds, faults)?;
    let params = params::apply(&mut document, overrides, faults);
    let mut scope = scope::Scope::new(source, &params, overrides.env);
    let wiring = wiring::connect(&document.stages, faults);
    let instances = matrix::expand(&document.stages, &wiring, &mut scope, faults);
    let stages = build::build(&document.stages, instances, &mut scope, faults);
    let traced: Vec<Diagnostic> = faults.drain(..).map(|fault| scope.trace(fault)).collect();
    faults.extend(traced);
    for unused in scope.unused() {
        let message = format!("the param `{}` is not used", unused.key.text);
        faults.push(Diagnostic::warning(message).at(unused.key.span));
    }
    let params = scope.masked_params();
    faults.append(&mut scope.faults);
    Some(Manifest {
        path: path.to_path_buf(),
        dir,
        source: source.clone(),
        name: document.name,
        description: document.description,
        params: params.into(),
        stages,
        warnings: Vec::new(),
        secrets: Secrets::new(scope.secrets),
    })
}
