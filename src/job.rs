//! One stage of one run: key, cache, work, commit, place.
//!
//! Runs on a lane's thread; knows nothing of the other stages but the digests and folders of its inputs.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::about::About;
use crate::cache::{Cache, CacheError, Entry, Finished, Lookup, Miss};
use crate::device::Device;
use crate::event::{Event, Failure, Listen, Status};
use crate::files::shown;
use crate::fingerprint::{Change, Digest, Fingerprint, Key};
use crate::manifest::StageDecl;
use crate::plan::{Keyed, key_of};
use crate::secrets::Secrets;
use crate::sources::Sources;
use crate::stage::{Artifact, Cancel, Context, Lane, Saying, StageError};

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

/// One stage, ready to start.
pub struct Task {
    /// The stage.
    pub decl: Arc<StageDecl>,
    /// Its inputs by port, with the digests that go into the key.
    pub inputs: BTreeMap<String, (Artifact, Digest)>,
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
            other => Self::Failed(Failure { message: other.to_string(), help: None }),
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
        let digests = self.inputs.iter().map(|(port, (_, digest))| (port.clone(), *digest)).collect();
        let failed = |message| Stop::Failed(Failure { message, help: None });
        let device = self.decl.device_or(shared.device).map_err(|e| failed(e.to_string()))?;
        // Reading what it depends on is part of a stage's time.
        let alarm = Alarm::set(self.decl.timeout, &shared.cancel);
        let keyed = key_of(&self.decl, &digests, device, &shared.sources, &alarm.cancel);
        let keyed = self.in_time(alarm, shared, keyed.map_err(StageError::from))?;
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
        let (status, entry) = match lookup {
            Lookup::Hit(entry) => {
                // A stage that warned when it ran still has the reason to.
                for text in &entry.warnings {
                    shared.listen.on(&Event::StageWarning { stage: stage.clone(), text: text.clone() });
                }
                (Status::Cached, entry)
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
        shared.cache.place(&entry, &self.folder)?;
        Ok((status, entry))
    }

    /// Runs the stage in the folder of the miss, again on failure as often as the manifest allows.
    fn work(&self, shared: &Shared, device: Device, miss: Miss, keyed: Keyed) -> Result<Entry, Stop> {
        let start = Instant::now();
        let said = Mutex::new(Said::default());
        let mut attempt = 0;
        loop {
            match self.attempt(shared, device, &miss, &said) {
                Ok(()) => break,
                Err(Stop::Failed(failure)) if attempt < self.decl.retries && !shared.cancel.is_set() => {
                    attempt += 1;
                    let text = format!(
                        "{}; trying again ({attempt} of {} retries)",
                        shared.secrets.hide(&failure.message),
                        self.decl.retries
                    );
                    shared.listen.on(&Event::StageWarning { stage: self.decl.id.to_string(), text });
                    miss.clear()?;
                    *said.lock().unwrap_or_else(PoisonError::into_inner) = Said::default();
                }
                Err(stop) => return Err(stop),
            }
        }
        for (role, pinned) in &keyed.pinned {
            if let Some(path) = pinned.changed() {
                return Err(Stop::Failed(Failure {
                    message: format!("{} (`{role}`) changed while the stage was reading it", shown(&path)),
                    help: Some("run again once nothing writes to it".into()),
                }));
            }
        }
        let said = said.into_inner().unwrap_or_else(PoisonError::into_inner);
        let entry = miss.commit(Finished {
            kind: self.decl.kind.name,
            seconds: start.elapsed().as_secs_f64(),
            outputs: self.decl.stage.outputs(),
            metrics: said.metrics,
            warnings: said.warnings,
            fingerprint: keyed.fingerprint,
        })?;
        Ok(entry)
    }

    fn attempt(&self, shared: &Shared, device: Device, miss: &Miss, said: &Mutex<Said>) -> Result<(), Stop> {
        let inputs = self.inputs.iter().map(|(port, (a, _))| (port.clone(), a.clone())).collect();
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
                    said.metrics.insert(name, value);
                    return;
                }
            });
        };
        let alarm = Alarm::set(self.decl.timeout, &shared.cancel);
        let (cancel, secrets) = (&alarm.cancel, &shared.secrets);
        let context = Context {
            inputs: &inputs,
            out: miss.out(),
            unfinished: miss.unfinished(),
            lock: Some(miss.lock()),
            device,
            hub: &shared.sources.hub,
            say: &say,
            cancel,
            secrets,
            about: &shared.about,
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| self.decl.stage.run(&context)));
        match outcome {
            Ok(result) => self.in_time(alarm, shared, result),
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

impl Task {
    /// The result of work under an alarm, or that it took too long.
    fn in_time<T>(&self, alarm: Alarm, shared: &Shared, result: Result<T, StageError>) -> Result<T, Stop> {
        let timed_out = alarm.rang();
        match result {
            Err(StageError::Interrupted) if timed_out && !shared.cancel.is_set() => {
                let limit = self.decl.timeout.unwrap_or_default().as_secs_f64();
                Err(Stop::Failed(Failure {
                    message: format!("not done after its timeout of {limit} s"),
                    help: Some(format!("raise `timeout` of `{}`", self.decl.id)),
                }))
            }
            result => Ok(result?),
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
