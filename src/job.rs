//! One stage of one run: key, cache, work, commit, place.
//!
//! Runs on a lane's thread; knows nothing of the other stages but the digests and folders of its inputs.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::about::About;
use crate::cache::{Attempt, Cache, CacheError, Entry, Finished, Hit, Lookup, Miss, Placed};
use crate::device::Device;
use crate::event::{Event, Failure, Listen, Status};
use crate::files::shown;
use crate::fingerprint::{Change, Digest, Fingerprint, Key};
use crate::manifest::StageDecl;
use crate::plan::{Keyed, key_of};
use crate::secrets::Secrets;
use crate::sources::Sources;
use crate::stage::{Access, Artifact, ArtifactKind, Cancel, Context, Lane, Saying, StageError};

/// Gives the fingerprint with which a stage last had a result.
pub type LastFingerprint = Box<dyn Fn(&str) -> Option<Fingerprint> + Send + Sync>;

/// What the stages of a run share.
pub struct Shared {
    /// Results by key.
    pub cache: Cache,
    /// Digests of outside files.
    pub sources: Sources,
    /// The device of model stages that ask for none of their own.
    pub device: Device,
    /// Whether somebody asked to stop.
    pub cancel: Cancel,
    /// Takes the events.
    pub listen: Arc<dyn Listen>,
    /// Values of environment variables the manifest reads; never shown.
    pub secrets: Secrets,
    /// What stages may tell others of this run.
    pub about: About,
    /// The fingerprint a stage last ran with.
    pub last: LastFingerprint,
}

/// Whether a result in the cache is good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Take it from the cache.
    Cached,
    /// Make it anew.
    Forced,
}

/// What comes in at a port.
pub struct Input {
    /// What it is.
    pub kind: ArtifactKind,
    /// Over all that is in it: part of the key.
    pub digest: Digest,
    /// Its files.
    pub placed: Placed,
    /// `STAGE.OUTPUT`, for messages.
    pub from: String,
}

/// One stage, ready to start.
pub struct Task {
    /// The stage.
    pub decl: Arc<StageDecl>,
    /// Its inputs by port.
    pub inputs: BTreeMap<String, Input>,
    /// Where its files are placed.
    pub folder: PathBuf,
    /// Whether the cache may answer.
    pub freshness: Freshness,
}

/// How a task ended.
pub struct Ended {
    /// In one word.
    pub status: Status,
    /// How long it took here.
    pub seconds: f64,
    /// The result, if there is one.
    pub entry: Option<Entry>,
    /// The key, as soon as it was known.
    pub key: Option<(Key, Fingerprint)>,
    /// Why it ran.
    pub why: Vec<Change>,
    /// Why it failed.
    pub error: Option<Failure>,
}

/// Why a task has no result.
enum Stop {
    Interrupted,
    Failed(Failure),
}

impl From<StageError> for Stop {
    fn from(error: StageError) -> Self {
        match error {
            StageError::Interrupted => Self::Interrupted,
            StageError::Failed { message, help } => Self::Failed(Failure { message, help }),
        }
    }
}

impl From<CacheError> for Stop {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Interrupted => Self::Interrupted,
            other => Self::Failed(Failure { message: other.to_string(), help: other.help() }),
        }
    }
}

impl Task {
    /// Does the stage, or takes its result from the cache. Never panics.
    pub fn run(self, shared: &Shared) -> Ended {
        let start = Instant::now();
        let mut ended = Ended {
            status: Status::Failed,
            seconds: 0.0,
            entry: None,
            key: None,
            why: Vec::new(),
            error: None,
        };
        match self.result(shared, &mut ended) {
            Ok((status, entry)) => {
                ended.status = status;
                ended.entry = Some(entry);
            }
            Err(Stop::Interrupted) => ended.status = Status::Interrupted,
            Err(Stop::Failed(failure)) => {
                ended.error = Some(Failure {
                    message: shared.secrets.hide(&failure.message),
                    help: failure.help.map(|h| shared.secrets.hide(&h)),
                });
            }
        }
        ended.seconds = start.elapsed().as_secs_f64();
        ended
    }

    fn result(&self, shared: &Shared, ended: &mut Ended) -> Result<(Status, Entry), Stop> {
        let digests = self.inputs.iter().map(|(port, input)| (port.clone(), input.digest)).collect();
        let failed = |message| Stop::Failed(Failure { message, help: None });
        let device = self.decl.device_or(shared.device).map_err(|e| failed(e.to_string()))?;
        let keyed = self.in_time(shared, |cancel| {
            Ok(key_of(&self.decl, &digests, device, &shared.sources, cancel).map_err(StageError::from)?)
        })?;
        ended.key = Some((keyed.key, keyed.fingerprint.clone()));
        let stage = self.decl.id.to_string();
        let waiting = || shared.listen.on(&Event::StageWaiting { stage: stage.clone() });
        let lookup = match self.freshness {
            Freshness::Cached => shared.cache.lookup(&keyed.key, &shared.cancel, waiting)?,
            Freshness::Forced => {
                let miss = shared.cache.begin(&keyed.key, &shared.cancel, waiting)?;
                miss.forget_unfinished()?;
                Lookup::Miss(miss)
            }
        };
        let (status, hit) = match lookup {
            Lookup::Hit(hit) => {
                // A stage that warned when it ran still has the reason to.
                for text in &hit.entry.warnings {
                    shared.listen.on(&Event::StageWarning { stage: stage.clone(), text: text.clone() });
                }
                (Status::Cached, hit)
            }
            Lookup::Miss(miss) => {
                ended.why = match (shared.last)(&stage) {
                    Some(last) => {
                        let changes = keyed.fingerprint.changes_since(&last);
                        let gone = || vec![Change("its result is no longer in the cache".into())];
                        match self.freshness {
                            Freshness::Forced if changes.is_empty() => vec![Change("forced".into())],
                            _ if changes.is_empty() => gone(),
                            _ => changes,
                        }
                    }
                    None => Vec::new(),
                };
                shared.listen.on(&Event::StageStarted {
                    stage,
                    kind: self.decl.kind.name.into(),
                    device: (self.decl.kind.lane == Lane::Device).then(|| device.to_string()),
                    why: ended.why.clone(),
                });
                (Status::Ran, self.work(shared, device, miss, keyed)?)
            }
        };
        hit.place(&self.folder)?;
        Ok((status, hit.entry))
    }

    /// Runs the stage, again on failure as often as the manifest allows, each time in a new folder.
    fn work(&self, shared: &Shared, device: Device, miss: Miss, keyed: Keyed) -> Result<Hit, Stop> {
        let start = Instant::now();
        let said = Mutex::new(Said::default());
        let mut retries = 0;
        let attempt = loop {
            let attempt = miss.attempt()?;
            match self.in_time(shared, |cancel| self.attempt(shared, device, &miss, &attempt, &said, cancel))
            {
                Ok(()) => break attempt,
                Err(Stop::Failed(failure)) if retries < self.decl.retries && !shared.cancel.is_set() => {
                    retries += 1;
                    let text = format!(
                        "{}; trying again ({retries} of {} retries)",
                        shared.secrets.hide(&failure.message),
                        self.decl.retries
                    );
                    shared.listen.on(&Event::StageWarning { stage: self.decl.id.to_string(), text });
                    *said.lock().unwrap_or_else(PoisonError::into_inner) = Said::default();
                }
                Err(stop) => return Err(stop),
            }
        };
        for (role, pinned) in &keyed.pinned {
            if let Some(path) = pinned.changed() {
                return Err(Stop::Failed(Failure {
                    message: format!("{} (`{role}`) changed while the stage was reading it", shown(&path)),
                    help: Some("run again once nothing writes to it".into()),
                }));
            }
        }
        let said = said.into_inner().unwrap_or_else(PoisonError::into_inner);
        let finished = Finished {
            kind: self.decl.kind.name,
            seconds: start.elapsed().as_secs_f64(),
            outputs: self.decl.stage.outputs(),
            metrics: said.metrics,
            warnings: said.warnings,
            fingerprint: keyed.fingerprint,
        };
        Ok(miss.commit(attempt, finished, &shared.cancel)?)
    }

    /// Does something that ends when the run is stopped, or fails when the stage's time is over.
    fn in_time<T>(&self, shared: &Shared, work: impl FnOnce(&Cancel) -> Result<T, Stop>) -> Result<T, Stop> {
        let alarm = Alarm::set(self.decl.timeout, &shared.cancel);
        let outcome = work(&alarm.cancel);
        let timed_out = alarm.rang();
        match outcome {
            Err(Stop::Interrupted) if timed_out && !shared.cancel.is_set() => {
                let limit = self.decl.timeout.unwrap_or_default().as_secs_f64();
                Err(Stop::Failed(Failure {
                    message: format!("not done after its timeout of {limit} s"),
                    help: Some(format!("raise `timeout` of `{}`", self.decl.id)),
                }))
            }
            other => other,
        }
    }

    fn attempt(
        &self,
        shared: &Shared,
        device: Device,
        miss: &Miss,
        attempt: &Attempt,
        said: &Mutex<Said>,
        cancel: &Cancel,
    ) -> Result<(), Stop> {
        // What a stage computes from is what its key says: read and held to its digest before, by its times after.
        let (mut inputs, mut seen) = (BTreeMap::new(), Vec::new());
        for (port, Input { kind, placed, from, .. }) in &self.inputs {
            let path = match self.decl.kind.access {
                Access::Own => shared.cache.copy(placed, &attempt.inputs().join(port), cancel)?,
                Access::Shared => {
                    seen.push((placed, shared.cache.check(placed, cancel)?));
                    placed.path()
                }
            };
            inputs.insert(port.clone(), Artifact { kind: *kind, path, from: from.clone() });
        }
        let stage = self.decl.id.to_string();
        let say = |saying: Saying| {
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            let stage = stage.clone();
            shared.listen.on(&match saying {
                Saying::Progress { done, total, unit, detail } => {
                    Event::StageProgress { stage, done, total, unit, detail }
                }
                Saying::Note(text) => Event::StageNote { stage, text: shared.secrets.hide(&text) },
                Saying::Warning(text) => {
                    let text = shared.secrets.hide(&text);
                    said.warnings.push(text.clone());
                    Event::StageWarning { stage, text }
                }
                Saying::Metric(name, value) => {
                    said.metrics.insert(shared.secrets.hide(&name), value);
                    return;
                }
            });
        };
        let context = Context {
            inputs: &inputs,
            out: attempt.out(),
            unfinished: miss.unfinished(),
            lock: Some(miss.lock()),
            device,
            hub: &shared.sources.hub,
            say: &say,
            cancel,
            secrets: &shared.secrets,
            about: &shared.about,
        };
        match catch_unwind(AssertUnwindSafe(|| self.decl.stage.run(&context))) {
            Ok(result) => {
                result?;
                seen.iter().try_for_each(|(placed, seen)| seen.still(placed, cancel))?;
                Ok(())
            }
            Err(panic) => {
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("no message");
                Err(Stop::Failed(Failure {
                    message: format!("a fault in pipe itself: {text}"),
                    help: Some("please report it with the manifest".into()),
                }))
            }
        }
    }
}

#[derive(Default)]
struct Said {
    metrics: BTreeMap<String, f64>,
    warnings: Vec<String>,
}

/// A cancel of its own for one attempt: set when the run's is, or when the time is over.
struct Alarm {
    cancel: Cancel,
    over: Arc<(Mutex<bool>, std::sync::Condvar)>,
    thread: Option<std::thread::JoinHandle<bool>>,
}

impl Alarm {
    fn set(limit: Option<Duration>, parent: &Cancel) -> Self {
        let Some(limit) = limit else {
            return Self { cancel: parent.clone(), over: Arc::default(), thread: None };
        };
        let (cancel, parent) = (Cancel::default(), parent.clone());
        let over = Arc::<(Mutex<bool>, std::sync::Condvar)>::default();
        let thread = std::thread::spawn({
            let (cancel, over) = (cancel.clone(), over.clone());
            move || {
                let deadline = Instant::now() + limit;
                let mut done = over.0.lock().unwrap_or_else(PoisonError::into_inner);
                while !*done {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if parent.is_set() || left.is_zero() {
                        cancel.cancel();
                        return left.is_zero();
                    }
                    let nap = left.min(Duration::from_millis(100));
                    done = over.1.wait_timeout(done, nap).unwrap_or_else(PoisonError::into_inner).0;
                }
                false
            }
        });
        Self { cancel, over, thread: Some(thread) }
    }

    /// Ends the watch; whether the time was over.
    fn rang(mut self) -> bool {
        *self.over.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.over.1.notify_all();
        self.thread.take().is_some_and(|t| t.join().unwrap_or(false))
    }
}
