//! Runs on disk: `.pipe/runs/<id>/` with its record, its events and its stages' folders.
//!
//! Knows where things stand and how to read them back; does not run anything.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::clock;
use crate::event::{Event, Listen, RunRecord};
use crate::files::write_atomically;
use crate::fingerprint::Fingerprint;

/// The folder of all state, `.pipe` or `PIPE_HOME`.
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

impl Home {
    /// In `PIPE_HOME`, else `.pipe` in the working directory.
    pub fn find() -> Self {
        Self(
            std::env::var_os("PIPE_HOME")
                .filter(|v| !v.is_empty())
                .map_or_else(|| ".pipe".into(), PathBuf::from),
        )
    }

    /// In this folder.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// Where results are kept by key.
    pub fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }

    fn runs(&self) -> PathBuf {
        self.0.join("runs")
    }

    /// The names of all runs, newest first.
    pub fn run_names(&self) -> Vec<String> {
        let Ok(folder) = fs::read_dir(self.runs()) else { return Vec::new() };
        let mut names: Vec<String> = folder
            .flatten()
            .filter(|f| f.file_type().is_ok_and(|t| t.is_dir()))
            .map(|f| f.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort_unstable_by(|a, b| b.cmp(a));
        names
    }

    /// The folder of a run: a name, the beginning of one that only one has, or `latest`.
    pub fn run(&self, name: &str) -> Result<PathBuf, HistoryError> {
        let names = self.run_names();
        let newest = || names.first().cloned();
        let found = match name {
            "latest" => newest().ok_or(HistoryError::NoRuns)?,
            _ if names.iter().any(|n| n == name) => name.to_string(),
            _ => {
                let mut matching = names.iter().filter(|n| n.starts_with(name));
                match (matching.next(), matching.next()) {
                    (Some(one), None) => one.clone(),
                    (Some(_), Some(_)) => return Err(HistoryError::Several(name.into())),
                    _ => return Err(HistoryError::NoSuchRun(name.into())),
                }
            }
        };
        Ok(self.runs().join(found))
    }

    /// The record of a run.
    pub fn record(&self, name: &str) -> Result<RunRecord, HistoryError> {
        let path = self.run(name)?.join("run.json");
        let bytes = fs::read(&path).map_err(|error| HistoryError::Io { path: path.clone(), error })?;
        serde_json::from_slice(&bytes).map_err(|e| HistoryError::Damaged { path, message: e.to_string() })
    }

    /// Records of all runs that can be read, newest first.
    pub fn records(&self) -> impl Iterator<Item = RunRecord> + '_ {
        self.run_names().into_iter().filter_map(|n| self.record(&n).ok())
    }

    /// The fingerprint with which a stage of a pipeline last had a result.
    pub fn last_fingerprint(&self, pipeline: &str, stage: &str) -> Option<Fingerprint> {
        use crate::event::Status::{Cached, Ran};
        self.records()
            .filter(|r| r.pipeline == pipeline)
            .flat_map(|r| r.stages)
            .find(|s| s.stage == stage && matches!(s.status, Ran | Cached))
            .and_then(|s| s.fingerprint)
    }
}

/// Why a run can't be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// None has been made here.
    #[error("there are no runs here yet")]
    NoRuns,
    /// No run of this name.
    #[error("there is no run `{0}`; `pipe runs` lists them")]
    NoSuchRun(String),
    /// More than one run begins so.
    #[error("several runs begin with `{0}`; `pipe runs` lists them")]
    Several(String),
    /// The disk said no.
    #[error("{}: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// A record that is not one.
    #[error("{}: not a run record: {message}", path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// The folder of a run that is being made.
pub struct RunFolder {
    /// The run's name.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    events: Mutex<File>,
}

impl RunFolder {
    /// A new folder, named by the time and the pipeline.
    pub fn create(home: &Home, pipeline: &str) -> io::Result<Self> {
        let runs = home.runs();
        fs::create_dir_all(&runs)?;
        let ignore = home.0.join(".gitignore");
        if !ignore.exists() {
            fs::write(ignore, "*\n")?;
        }
        let time = clock::name();
        let mut name = format!("{time}-{pipeline}");
        for more in 2.. {
            match fs::create_dir(runs.join(&name)) {
                Ok(()) => break,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    name = format!("{time}-{pipeline}-{more}")
                }
                Err(e) => return Err(e),
            }
        }
        let path = runs.join(&name);
        let events = Mutex::new(File::create(path.join("events.jsonl"))?);
        let folder = Self { name, path, events };
        folder.point_latest(&runs)?;
        Ok(folder)
    }

    /// Makes `runs/latest` point here, in one step.
    fn point_latest(&self, runs: &Path) -> io::Result<()> {
        let beside = runs.join(format!(".latest-{}", std::process::id()));
        let _ = fs::remove_file(&beside);
        std::os::unix::fs::symlink(&self.name, &beside)?;
        fs::rename(&beside, runs.join("latest"))
    }

    /// Where a stage's files are placed.
    pub fn stage(&self, stage: &str) -> PathBuf {
        self.path.join("stages").join(stage)
    }

    /// Writes the record, whole or not at all.
    pub fn write(&self, record: &RunRecord) -> io::Result<()> {
        write_atomically(&self.path.join("run.json"), &serde_json::to_vec_pretty(record)?)
    }
}

#[derive(Serialize)]
struct Stamped<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event,
}

/// An event as a line of JSON, with the time.
pub fn json_line(event: &Event) -> String {
    let stamped = Stamped { time: clock::timestamp(), event };
    serde_json::to_string(&stamped).unwrap_or_default()
}

impl Listen for RunFolder {
    fn on(&self, event: &Event) {
        let mut file = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk must not stop the work that is under way; the record's own write reports it.
        let _ = writeln!(file, "{}", json_line(event));
    }
}
