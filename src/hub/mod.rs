//! The Hugging Face Hub: names become pinned commits, commits become files on this machine, results go up.
//!
//! The only module that speaks to the Hub. Knows repositories and files; does not know stages, keys or runs.

mod api;
mod cache;
pub mod card;
pub mod dataset;
mod download;
pub mod error;
pub mod lock;
mod model;
pub mod push;
pub mod repo;
pub mod settings;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::runtime::Runtime;

pub use api::Repo;
pub use error::HubError;
pub use lock::{Lock, Pin};
pub use repo::{Commit, FileDigest, RemoteFile, RepoKind, RepoName};
pub use settings::{Network, Settings, Token};

use crate::cancel::Interrupted;
use crate::fingerprint::Digest;
use crate::remembered::Remembered;
use crate::secrets::Secrets;
use crate::size::bytes;
use crate::stage::Cancel;
use api::Api;
use cache::Folder;
use dataset::{CONVERTED, Card, DataFiles, FindError, Finding, Layout, Repository};
use download::Watch;
use repo::MAIN;

/// A text that is read before anything is downloaded (a card, an index, a configuration) is not longer.
const LONGEST_TEXT: u64 = 32 << 20;

/// What of a repository is wanted, and at which revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reads {
    /// Which files.
    pub want: Want,
    /// A branch, tag or commit; none: `main`.
    pub revision: Option<String>,
}

/// Which files of a repository a use of it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// Weights, configuration and tokenizer.
    Model,
    /// The tokenizer alone.
    Tokenizer,
    /// A trained prompt.
    Adapter,
    /// The rows of one configuration.
    Dataset {
        /// Its name; none where there is only one, or one is the default.
        config: Option<String>,
    },
}

impl Want {
    /// The kind of repository that has it.
    pub fn kind(&self) -> RepoKind {
        match self {
            Self::Model | Self::Tokenizer | Self::Adapter => RepoKind::Model,
            Self::Dataset { .. } => RepoKind::Dataset,
        }
    }

    /// Its name in the lock.
    fn usage(&self) -> String {
        match self {
            Self::Model => "model".into(),
            Self::Tokenizer => "tokenizer".into(),
            Self::Adapter => "adapter".into(),
            Self::Dataset { config: None } => "dataset".into(),
            Self::Dataset { config: Some(name) } => format!("dataset/{name}"),
        }
    }
}

/// What the lock means for a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockRule {
    /// What is in it counts; what is not is asked for and added.
    #[default]
    Follow,
    /// Everything that is used is asked for anew (`--update`).
    Update,
    /// What is not in it is refused (`--locked`).
    Locked,
}

/// The Hub with the lock of one manifest. Asks nothing until something is wanted of it.
pub struct Hub {
    settings: Settings,
    rule: LockRule,
    file: PathBuf,
    remembered: Arc<Remembered>,
    state: Mutex<State>,
    online: OnceLock<Result<(Runtime, Api), String>>,
}

struct State {
    lock: Lock,
    /// What this run has asked for anew.
    renewed: BTreeSet<(Repo, String)>,
    news: Vec<String>,
}

impl Hub {
    /// With the lock beside this manifest, and what is remembered of files that are here.
    pub fn new(
        settings: Settings,
        rule: LockRule,
        manifest: &Path,
        remembered: Arc<Remembered>,
    ) -> Result<Self, HubError> {
        let file = lock::beside(manifest);
        let state = State { lock: Lock::read(&file)?, renewed: BTreeSet::new(), news: Vec::new() };
        Ok(Self { settings, rule, file, remembered, state: Mutex::new(state), online: OnceLock::new() })
    }

    /// Without a network, a cache and a manifest.
    #[cfg(test)]
    pub fn nowhere() -> Self {
        let settings = Settings {
            endpoint: "http://127.0.0.1:9".into(),
            token: None,
            cache: "/nowhere".into(),
            network: Network::Offline,
            timeout: std::time::Duration::from_secs(1),
        };
        Self {
            settings,
            rule: LockRule::Follow,
            file: "/nowhere/p.lock".into(),
            remembered: Arc::new(Remembered::open("/nowhere/sources.json".into())),
            state: Mutex::new(State { lock: Lock::default(), renewed: BTreeSet::new(), news: Vec::new() }),
            online: OnceLock::new(),
        }
    }

    /// How the Hub is reached.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What these files of a repository are pinned to: by the lock, else as the Hub has it now.
    pub fn pin(&self, name: &RepoName, reads: &Reads, cancel: &Cancel) -> Result<Pin, HubError> {
        let repo = Repo { kind: reads.want.kind(), name: name.clone() };
        let revision = reads.revision.as_deref().unwrap_or(MAIN);
        let usage = reads.want.usage();
        // One at a time: what two stages take from one repository has to be of one commit.
        let mut state = self.state();
        let key = (repo.clone(), revision.to_owned());
        let renew = self.rule == LockRule::Update && !state.renewed.contains(&key);
        if !renew && let Some(pin) = state.lock.pin(&repo, revision, &usage) {
            return Ok(pin);
        }
        if self.rule == LockRule::Locked {
            return Err(HubError::NotLocked {
                what: format!("{repo} ({usage}, revision `{revision}`)"),
                lock: self.file.clone(),
            });
        }
        let known = state.lock.commit(&repo, revision).filter(|_| !renew);
        let known = known.map(|(commit, branch)| (commit.clone(), branch.map(str::to_owned)));
        let before = state.lock.commit(&repo, revision).map(|(commit, _)| commit.clone());
        let pin = self.resolve(&repo, revision, reads, known, cancel)?;
        match before {
            None => state.news.push(format!("{repo} is pinned to {}", pin.commit.short())),
            Some(old) if old != pin.commit => {
                state.news.push(format!("{repo} moves from {} to {}", old.short(), pin.commit.short()));
            }
            Some(_) => {}
        }
        state.lock.set(revision, &usage, &pin);
        state.renewed.insert(key);
        Ok(pin)
    }

    /// Brings the files of a pin onto this machine, where they are not yet; the folder they are in. `tell` takes
    /// the bytes that are there of those that had to come.
    pub fn fetch(
        &self,
        pin: &Pin,
        tell: &(dyn Fn(u64, u64) + Sync),
        cancel: &Cancel,
    ) -> Result<PathBuf, HubError> {
        let folder = Folder::of(&self.settings.cache, &pin.repo);
        let mut missing = Vec::new();
        for file in &pin.files {
            if folder.has(&pin.commit, file) {
                let path = folder.snapshot(&pin.commit).join(&file.path);
                if self.is_right(&path, file, cancel)? {
                    continue;
                }
                if self.settings.network == Network::Offline {
                    return Err(HubError::Damaged { path, repo: pin.repo.name.clone() });
                }
                folder.let_go(&path)?;
            }
            missing.push(file);
        }
        if !missing.is_empty() {
            let total = missing.iter().map(|file| file.size).sum();
            if self.settings.network == Network::Offline {
                return Err(HubError::Offline { what: listed(&pin.repo, &pin.commit, &missing, total) });
            }
            self.room_for(total)?;
            let watch = Watch { done: AtomicU64::new(0), tell: &|done| tell(done, total), cancel };
            let (runtime, api) = self.online()?;
            let coming = download::download(api, &folder, &pin.repo, &pin.commit, &missing, &watch);
            runtime.block_on(api::unless_stopped(coming, cancel))?;
        }
        Ok(folder.snapshot(&pin.commit))
    }

    /// Whether a file that is here has the content that its digest says. Read once, and again when it was touched.
    fn is_right(&self, path: &Path, file: &RemoteFile, cancel: &Cancel) -> Result<bool, HubError> {
        let of = |digest: &FileDigest| Digest::of(digest.hex().as_bytes());
        let compute = || Ok(of(&cache::digest(path, file, cancel)?));
        match self.remembered.digest("hub", path, compute) {
            Ok((_, digest)) => Ok(digest == of(&file.digest)),
            Err(error) if Interrupted::is(&error) => Err(HubError::Interrupted),
            Err(error) => Err(cache::at(path)(error)),
        }
    }

    /// The text of one file of a pin.
    pub fn read(&self, pin: &Pin, path: &str, cancel: &Cancel) -> Result<Vec<u8>, HubError> {
        let file = pin.files.iter().find(|file| file.path == path);
        let file = file.ok_or_else(|| HubError::Unusable {
            repo: pin.repo.name.clone(),
            reason: format!("it has no {path}"),
            help: "check the name and the revision".into(),
        })?;
        self.read_file(&pin.repo, &pin.commit, file, cancel)
    }

    /// Writes what was pinned beside the manifest; the lines to show of what is new.
    pub fn save(&self, secrets: &Secrets) -> std::io::Result<Vec<String>> {
        let mut state = self.state();
        state.lock.save(&self.file, secrets)?;
        Ok(std::mem::take(&mut state.news))
    }

    /// The lock as it stands, for whoever publishes it.
    pub fn lock_text(&self) -> std::io::Result<String> {
        self.state().lock.text()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn online(&self) -> Result<&(Runtime, Api), HubError> {
        let online = self.online.get_or_init(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            let runtime = runtime.map_err(|error| error.to_string())?;
            Ok((runtime, Api::new(&self.settings).map_err(|error| error.to_string())?))
        });
        online.as_ref().map_err(|reason| HubError::Unreachable {
            what: "anything".into(),
            endpoint: self.settings.endpoint.clone(),
            reason: reason.clone(),
        })
    }

    /// Asks what a repository has and which of it is needed.
    fn resolve(
        &self,
        repo: &Repo,
        revision: &str,
        reads: &Reads,
        known: Option<(Commit, Option<String>)>,
        cancel: &Cancel,
    ) -> Result<Pin, HubError> {
        let (commit, branch) = match known {
            Some(known) => known,
            None => (self.commit(repo, revision, cancel)?, None),
        };
        let listing = self.listing(repo, &commit, cancel)?;
        let mut read = |file: &RemoteFile| self.read_file(repo, &commit, file, cancel);
        let layout = if branch.is_some() { Layout::Converted } else { Layout::Repository };
        let files = match &reads.want {
            Want::Model => model::model(&repo.name, &listing, &mut read).map(Found::Files),
            Want::Tokenizer => model::tokenizer(&repo.name, &listing).map(Found::Files),
            Want::Adapter => model::adapter(&repo.name, &listing).map(Found::Files),
            Want::Dataset { config } => rows_in(repo, layout, &listing, config.as_deref(), &mut read),
        };
        let files = match files {
            Ok(Found::Files(files)) => Ok(files),
            Ok(Found::Converted { why, card, config }) => {
                return self.resolve_converted(repo, &why, &card, config.as_deref(), cancel);
            }
            Err(error) => Err(error),
        };
        let files = files.map_err(|error| self.in_view_of_the_network(error, repo, &commit))?;
        Ok(Pin { repo: repo.clone(), branch, commit, files })
    }

    /// The rows of a dataset that is kept in a way that can't be read, as the Hub has converted them.
    fn resolve_converted(
        &self,
        repo: &Repo,
        why: &str,
        card: &Card,
        config: Option<&str>,
        cancel: &Cancel,
    ) -> Result<Pin, HubError> {
        let commit = self.commit(repo, CONVERTED, cancel).map_err(|error| match error {
            HubError::NotFound { .. } => HubError::Unusable {
                repo: repo.name.clone(),
                reason: format!("{why}, and the Hub has no parquet files of it at {CONVERTED}"),
                help: "download the data by other means and name the files under `path`".into(),
            },
            other => other,
        })?;
        let listing = self.listing(repo, &commit, cancel)?;
        let found = dataset::find_converted(&paths(&listing), card, config)
            .map_err(|error| refused(repo, &error))
            .map_err(|error| self.in_view_of_the_network(error, repo, &commit))?;
        let files = chosen(&listing, &found.needed);
        Ok(Pin { repo: repo.clone(), branch: Some(CONVERTED.into()), commit, files })
    }

    /// What is here may be no more than a part of what the Hub has.
    fn in_view_of_the_network(&self, error: HubError, repo: &Repo, commit: &Commit) -> HubError {
        match self.settings.network {
            Network::Offline => {
                HubError::Offline { what: format!("{repo} at {} as a whole", commit.short()) }
            }
            Network::Online => error,
        }
    }

    fn commit(&self, repo: &Repo, revision: &str, cancel: &Cancel) -> Result<Commit, HubError> {
        if let Ok(commit) = revision.parse() {
            return Ok(commit);
        }
        let folder = Folder::of(&self.settings.cache, repo);
        if self.settings.network == Network::Offline {
            let what = || HubError::Offline { what: format!("{repo} at revision `{revision}`") };
            return folder.reference(revision).ok_or_else(what);
        }
        let (runtime, api) = self.online()?;
        let commit = runtime.block_on(api::unless_stopped(api.commit(repo, revision, cancel), cancel))?;
        folder.set_reference(revision, &commit)?;
        Ok(commit)
    }

    fn listing(&self, repo: &Repo, commit: &Commit, cancel: &Cancel) -> Result<Vec<RemoteFile>, HubError> {
        if self.settings.network == Network::Offline {
            return Ok(Folder::of(&self.settings.cache, repo).listing(commit));
        }
        let (runtime, api) = self.online()?;
        runtime.block_on(api::unless_stopped(api.files(repo, commit, cancel), cancel))
    }

    fn read_file(
        &self,
        repo: &Repo,
        commit: &Commit,
        file: &RemoteFile,
        cancel: &Cancel,
    ) -> Result<Vec<u8>, HubError> {
        if file.size > LONGEST_TEXT {
            return Err(HubError::Answer {
                what: format!("{} of {repo}", file.path),
                reason: format!("it has {}, more than any honest one", bytes(file.size)),
            });
        }
        let pin = Pin { repo: repo.clone(), branch: None, commit: commit.clone(), files: vec![file.clone()] };
        let path = self.fetch(&pin, &|_, _| {}, cancel)?.join(&file.path);
        std::fs::read(&path).map_err(cache::at(&path))
    }

    /// Refuses to begin what the disk can't hold.
    fn room_for(&self, needed: u64) -> Result<(), HubError> {
        let cache = &self.settings.cache;
        std::fs::create_dir_all(cache).map_err(cache::at(cache))?;
        let Ok(disk) = nix::sys::statvfs::statvfs(cache) else { return Ok(()) };
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        match needed > free {
            true => Err(HubError::Room { path: cache.clone(), needed: bytes(needed), free: bytes(free) }),
            false => Ok(()),
        }
    }
}

/// What a repository has of what is wanted.
enum Found {
    Files(Vec<RemoteFile>),
    /// Nothing that can be read: the branch of converted files may have it.
    Converted {
        why: String,
        card: Card,
        config: Option<String>,
    },
}

/// The files of a dataset's configuration.
fn rows_in(
    repo: &Repo,
    layout: Layout,
    listing: &[RemoteFile],
    config: Option<&str>,
    read: &mut dyn FnMut(&RemoteFile) -> Result<Vec<u8>, HubError>,
) -> Result<Found, HubError> {
    let paths = paths(listing);
    let files = |found: DataFiles| Ok(Found::Files(chosen(listing, &found.needed)));
    let error = |error: FindError| refused(repo, &error);
    if layout == Layout::Converted {
        return files(dataset::find_converted(&paths, &Card::default(), config).map_err(error)?);
    }
    let card = match listing.iter().find(|file| file.path == dataset::CARD) {
        Some(file) => Card::parse(&String::from_utf8_lossy(&read(file)?)).map_err(error)?,
        None => Card::default(),
    };
    let repository = Repository { name: Some(repo.name.name()), paths: &paths, card: &card };
    match dataset::find(&repository, config).map_err(error)? {
        Finding::Here(found) => files(found),
        Finding::Elsewhere { why } => Ok(Found::Converted { why, card, config: config.map(str::to_owned) }),
    }
}

fn paths(listing: &[RemoteFile]) -> Vec<String> {
    listing.iter().map(|file| file.path.clone()).collect()
}

fn chosen(listing: &[RemoteFile], needed: &[String]) -> Vec<RemoteFile> {
    listing.iter().filter(|file| needed.contains(&file.path)).cloned().collect()
}

fn refused(repo: &Repo, error: &FindError) -> HubError {
    let help = error.help().unwrap_or_else(|| "take another `revision`".into());
    HubError::Unusable { repo: repo.name.clone(), reason: error.to_string(), help }
}

/// Missing files, for one line.
fn listed(repo: &Repo, commit: &Commit, files: &[&RemoteFile], total: u64) -> String {
    let mut names: Vec<&str> = files.iter().take(3).map(|file| file.path.as_str()).collect();
    let more = format!("{} more", files.len() - names.len());
    if files.len() > names.len() {
        names.push(&more);
    }
    format!("{} of {repo} at {} ({})", names.join(", "), commit.short(), bytes(total))
}
