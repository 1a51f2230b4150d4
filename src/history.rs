//! Runs on disk: `.pipe/runs/<id>/` with its record, its events and its stages' folders.
//!
//! Knows where things stand and how to read them back; does not run anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::clock;
use crate::event::{Event, Listen, RunRecord, Status};
use crate::files::{named, write_atomically};
use crate::fingerprint::{Fingerprint, Key};
use crate::sealed::{self, SealError};
use crate::secrets::Secrets;

/// The record in a run's folder.
const RECORD: &str = "run.json";
/// The events in a run's folder; locked as long as the run goes on.
const EVENTS: &str = "events.jsonl";
/// The link to the newest run.
const LATEST: &str = "latest";
/// The last version whose records have no seal.
const UNSEALED: &str = "0.1.0";

/// The folder of all state, `.pipe` or `PIPE_HOME`.
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

/// A run as it is found.
pub struct Found {
    /// Its folder.
    pub folder: PathBuf,
    /// Its record.
    pub record: RunRecord,
    /// Whether it is going on now.
    pub going: bool,
}

impl Found {
    /// The run in this folder.
    ///
    /// # Errors
    /// Its record can't be used.
    pub fn at(folder: PathBuf) -> Result<Self, HistoryError> {
        Ok(Self { record: read(&folder)?, going: is_going(&folder), folder })
    }
}

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

    /// The file with what is remembered of files outside of the pipelines.
    pub fn sources(&self) -> PathBuf {
        self.cache().join("sources.json")
    }

    fn runs(&self) -> PathBuf {
        self.0.join("runs")
    }

    /// Whether state can be here: what is in the way is named.
    ///
    /// # Errors
    /// [`HistoryError::NoFolder`] or [`HistoryError::Io`].
    pub fn check(&self) -> Result<(), HistoryError> {
        for folder in [&self.0, &self.runs(), &self.cache()] {
            let is_there = fs::symlink_metadata(folder).is_ok();
            match fs::metadata(folder) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => return Err(HistoryError::NoFolder(folder.clone())),
                Err(_) if !is_there => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(HistoryError::NoFolder(folder.clone()));
                }
                Err(error) => return Err(HistoryError::Io { path: folder.clone(), error }),
            }
        }
        match fs::read_dir(self.runs()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(HistoryError::Io { path: self.runs(), error })
            }
            _ => Ok(()),
        }
    }

    /// The names of the folders of all runs, the one that started last first.
    pub fn run_names(&self) -> Vec<String> {
        let Ok(folder) = fs::read_dir(self.runs()) else { return Vec::new() };
        let mut names: Vec<(String, String)> = folder
            .flatten()
            .filter(|f| f.file_type().is_ok_and(|t| t.is_dir()))
            .filter_map(|f| f.file_name().into_string().ok())
            .filter(|name| name != LATEST && !name.starts_with('.'))
            .map(|name| (began(&self.runs().join(&name)), name))
            .collect();
        names.sort_unstable_by(|a, b| b.cmp(a));
        names.into_iter().map(|(_, name)| name).collect()
    }

    /// The run that `runs/latest` points to; if that left no record, the last one that did.
    fn latest(&self) -> Option<String> {
        let runs = self.runs();
        let has_record = |name: &String| runs.join(name).join(RECORD).is_file();
        let pointed = fs::read_link(runs.join(LATEST)).ok();
        let pointed = pointed.and_then(|to| to.file_name()?.to_str().map(str::to_owned));
        pointed.filter(has_record).or_else(|| self.run_names().into_iter().find(has_record))
    }

    /// The folder of a run: a name, the beginning of one that only one has, or `latest`.
    ///
    /// # Errors
    /// There is none, or several begin so.
    pub fn run(&self, name: &str) -> Result<PathBuf, HistoryError> {
        if name == LATEST {
            return Ok(self.runs().join(self.latest().ok_or(HistoryError::NoRuns)?));
        }
        let names = self.run_names();
        let found = match names.iter().find(|n| *n == name) {
            Some(name) => name,
            None => {
                let mut matching = names.iter().filter(|n| n.starts_with(name));
                match (matching.next(), matching.next()) {
                    (Some(one), None) => one,
                    (Some(_), Some(_)) => return Err(HistoryError::Several(name.into())),
                    _ => return Err(HistoryError::NoSuchRun(name.into())),
                }
            }
        };
        Ok(self.runs().join(found))
    }

    /// The folders of all runs, the one that started last first.
    pub fn run_folders(&self) -> Vec<PathBuf> {
        self.run_names().into_iter().map(|name| self.runs().join(name)).collect()
    }

    /// A run with its record.
    ///
    /// # Errors
    /// There is none, or its record can't be used.
    pub fn found(&self, name: &str) -> Result<Found, HistoryError> {
        Found::at(self.run(name)?)
    }

    /// All runs whose records can be read, the one that started last first.
    pub fn all(&self) -> impl Iterator<Item = Found> + use<> {
        self.run_folders().into_iter().filter_map(|folder| Found::at(folder).ok())
    }

    /// The records that are there and can't be used, and what is wrong with each.
    pub fn damaged_records(&self) -> Vec<(PathBuf, String)> {
        let wrong = self.run_folders().into_iter().filter_map(|folder| match read(&folder).err()? {
            HistoryError::NoRecord(_) => None,
            HistoryError::Damaged { path, message } => Some((path, message)),
            other => Some((folder.join(RECORD), other.to_string())),
        });
        wrong.collect()
    }

    /// The keys of the results that runs use which are going on.
    pub fn keys_in_use(&self) -> BTreeSet<Key> {
        let going = self.all().filter(|found| found.going);
        going.flat_map(|found| found.record.stages).filter_map(|stage| stage.key).collect()
    }

    /// Puts records that can't be used out of the way, beside where they were; each with what is wrong with it.
    ///
    /// # Errors
    /// What the disk says; the error names the file.
    pub fn set_damaged_records_aside(&self) -> io::Result<Vec<(PathBuf, String)>> {
        let damaged = self.damaged_records();
        for (path, _) in &damaged {
            fs::rename(path, path.with_extension("json.damaged")).map_err(named(path))?;
        }
        Ok(damaged)
    }

    /// The fingerprints with which the stages of a pipeline last had a result.
    pub fn last_fingerprints(&self, pipeline: &str) -> LastFingerprints {
        LastFingerprints { home: self.clone(), pipeline: pipeline.into(), read: Mutex::default() }
    }

    /// Makes `runs/latest` point to a run, in one step; to nothing if there is none.
    pub fn point_latest(&self, name: Option<&str>) -> io::Result<()> {
        let link = self.runs().join(LATEST);
        let Some(name) = name else {
            return match fs::remove_file(&link) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(named(&link)(e)),
                _ => Ok(()),
            };
        };
        let beside = self.runs().join(format!(".latest-{}", std::process::id()));
        let _ = fs::remove_file(&beside);
        std::os::unix::fs::symlink(name, &beside).map_err(named(&beside))?;
        fs::rename(&beside, &link).map_err(named(&link))
    }

    /// Whether `runs/latest` points to a run that is there.
    pub fn has_latest(&self) -> bool {
        self.runs().join(LATEST).exists()
    }
}

/// Whether somebody is writing a run's events.
pub fn is_going(folder: &Path) -> bool {
    let events = File::open(folder.join(EVENTS));
    events.is_ok_and(|events| matches!(events.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Takes the lock of a run, unless it is going on; a run that has nothing to lock is over.
///
/// # Errors
/// What the disk says.
pub fn hold(folder: &Path) -> io::Result<Option<File>> {
    let path = folder.join(EVENTS);
    let events = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return File::open(folder).map(Some),
        other => other.map_err(named(&path))?,
    };
    match events.try_lock() {
        Ok(()) => Ok(Some(events)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(named(&path)(error)),
    }
}

/// The record in a run's folder.
fn read(folder: &Path) -> Result<RunRecord, HistoryError> {
    let path = folder.join(RECORD);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(HistoryError::NoRecord(folder.into()));
        }
        Err(error) => return Err(HistoryError::Io { path, error }),
    };
    match sealed::from_bytes::<RunRecord>(&bytes) {
        Ok(record) => Ok(record),
        Err(SealError::NoSeal) => match serde_json::from_slice::<RunRecord>(&bytes) {
            Ok(record) if record.pipe == UNSEALED => Ok(record),
            _ => Err(HistoryError::Damaged { path, message: SealError::NoSeal.to_string() }),
        },
        Err(error) => Err(HistoryError::Damaged { path, message: error.to_string() }),
    }
}

/// When a run began, in RFC 3339 as far as it is known.
pub fn began(folder: &Path) -> String {
    let name = folder.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    started(folder).unwrap_or_else(|| named_time(&name))
}

/// When a run began, from the first lines of its record, whether or not the rest can be read.
fn started(folder: &Path) -> Option<String> {
    const FIRST_LINES: u64 = 16 * 1024;
    let mut head = Vec::new();
    File::open(folder.join(RECORD)).ok()?.take(FIRST_LINES).read_to_end(&mut head).ok()?;
    let head = String::from_utf8_lossy(&head);
    // A text can't have a line break in it: this is the member, not something that looks like it.
    let (_, rest) = head.split_once("\n  \"started\": \"")?;
    rest.split_once('"').map(|(time, _)| time.to_owned())
}

/// What the name of a run says of when it began, as far as it does; comparable with [`started`].
fn named_time(name: &str) -> String {
    let digits = |from: usize, to: usize| {
        name.get(from..to).filter(|text| text.bytes().all(|b| b.is_ascii_digit())).unwrap_or_default()
    };
    let (date, time) = (digits(0, 8), digits(9, 15));
    if date.is_empty() || time.is_empty() {
        return String::new();
    }
    let (year, month, day) = (&date[..4], &date[4..6], &date[6..]);
    format!("{year}-{month}-{day}T{}:{}:{}", &time[..2], &time[2..4], &time[4..])
}

/// The fingerprints with which the stages of one pipeline last had a result; each record is read once at most.
pub struct LastFingerprints {
    home: Home,
    pipeline: String,
    read: Mutex<Option<ReadSoFar>>,
}

struct ReadSoFar {
    /// Runs that were not looked at yet, the newest last.
    left: Vec<PathBuf>,
    found: BTreeMap<String, Fingerprint>,
}

impl LastFingerprints {
    /// That of a stage, if it has had a result.
    pub fn of(&self, stage: &str) -> Option<Fingerprint> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let read = read.get_or_insert_with(|| {
            let mut left = self.home.run_folders();
            left.reverse();
            ReadSoFar { left, found: BTreeMap::new() }
        });
        while !read.found.contains_key(stage)
            && let Some(folder) = read.left.pop()
        {
            let Ok(Found { record, .. }) = Found::at(folder) else { continue };
            if record.pipeline != self.pipeline {
                continue;
            }
            let done = record.stages.into_iter().filter(|s| matches!(s.status, Status::Ran | Status::Cached));
            for stage in done {
                if let Some(fingerprint) = stage.fingerprint {
                    read.found.entry(stage.stage).or_insert(fingerprint);
                }
            }
        }
        read.found.get(stage).cloned()
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
    /// A folder that was made, and nothing more.
    #[error("{} has no {RECORD}: the run was ended before it wrote its record", .0.display())]
    NoRecord(PathBuf),
    /// Something else stands where state is kept.
    #[error("{} is no folder, and pipe keeps its state there", .0.display())]
    NoFolder(PathBuf),
    /// The disk said no.
    #[error("{}: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// A record that is not one.
    #[error("{}: not the record of a run: {message}", path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

impl HistoryError {
    /// What to do.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::NoFolder(_) => Some("move it away, or name another folder in PIPE_HOME".into()),
            Self::Damaged { .. } => {
                Some("its files are still beside it; `pipe runs rm RUN` removes it".into())
            }
            Self::NoRecord(_) => Some("`pipe runs` lists the others".into()),
            Self::Io { .. } | Self::NoRuns | Self::NoSuchRun(_) | Self::Several(_) => None,
        }
    }
}

/// The folder of a run that is being made.
pub struct RunFolder {
    /// The run's name.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// What its record must not show.
    secrets: Secrets,
    /// Locked: whoever finds it so knows that the run is going on.
    events: Mutex<File>,
}

impl RunFolder {
    /// A new folder, named by the time and the pipeline.
    ///
    /// # Errors
    /// What the disk says; the error names the file.
    pub fn create(home: &Home, pipeline: &str, secrets: Secrets) -> io::Result<Self> {
        let runs = home.runs();
        fs::create_dir_all(&runs).map_err(named(&runs))?;
        let ignore = home.0.join(".gitignore");
        if !ignore.exists() {
            fs::write(&ignore, "*\n").map_err(named(&ignore))?;
        }
        // Made beside, with its lock held, and renamed: whoever finds it finds a run that is going on.
        let beside = tempfile::Builder::new().prefix(".new-").tempdir_in(&runs).map_err(named(&runs))?;
        let events = beside.path().join(EVENTS);
        let file =
            File::create(&events).and_then(|file| file.lock().map(|()| file)).map_err(named(&events))?;
        fs::set_permissions(beside.path(), fs::metadata(&runs)?.permissions())
            .map_err(named(beside.path()))?;
        let begin = format!("{}-{}", clock::name(), in_file_name(pipeline));
        let mut name = begin.clone();
        for more in 2.. {
            let path = runs.join(&name);
            // A folder is renamed over an empty one, which is made here so that no two runs take one name.
            match fs::create_dir(&path).and_then(|()| fs::rename(beside.path(), &path)) {
                Ok(()) => break,
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
                    ) =>
                {
                    name = format!("{begin}-{more}");
                }
                Err(e) => return Err(named(&path)(e)),
            }
        }
        let path = runs.join(&name);
        home.point_latest(Some(&name))?;
        Ok(Self { name, path, secrets, events: Mutex::new(file) })
    }

    /// Where a stage's files are placed.
    pub fn stage(&self, stage: &str) -> PathBuf {
        self.path.join("stages").join(stage)
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// What the disk says; the error names the file.
    pub fn write(&self, record: &RunRecord) -> io::Result<()> {
        let path = self.path.join(RECORD);
        let record = record.with_texts(&|text| self.secrets.hide(text));
        write_atomically(&path, &sealed::to_bytes(&record)?).map_err(named(&path))
    }
}

/// A pipeline's name as part of a file's: letters, digits, `.`, `_` and `-` of it, and not too many.
fn in_file_name(pipeline: &str) -> String {
    const MOST_BYTES: usize = 100;
    let safe = |c: char| if c.is_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let mut name: String = pipeline.trim().chars().map(safe).collect();
    name.truncate(name.floor_char_boundary(MOST_BYTES));
    name
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_run_is_that_of_a_file() {
        for (pipeline, name) in
            [("a/b", "a-b"), ("../x y", "..-x-y"), ("물 é", "물-é"), ("a\u{202e}b", "a-b")]
        {
            assert_eq!(in_file_name(pipeline), name);
        }
        assert_eq!(in_file_name(&"é".repeat(200)).len(), 100);
    }

    #[test]
    fn a_name_tells_the_time_that_a_record_would() {
        assert_eq!(named_time("20261201-003940-zeta"), "2026-12-01T00:39:40");
        assert!(named_time("20261201-003940-zeta").as_str() < "2026-12-01T00:39:40.000001Z");
        for name in ["best", "20261201", "2026-12-01-003940-é", "20261201-00394é"] {
            assert_eq!(named_time(name), "");
        }
    }
}
