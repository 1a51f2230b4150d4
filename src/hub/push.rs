//! Brings files into a model repository: one commit with all that changed, or none.
//!
//! Knows what goes where and what is there already; does not know what the files are for. What else lies in the
//! repository stays as it is.

mod local;
mod remote;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use hf_hub::progress::{ProgressEvent, ProgressHandler, UploadEvent};
use serde::{Deserialize, Serialize};

use self::local::Local;
use self::remote::{Head, Remote, TRIES, Trouble, backoff};
use super::error::HubError;
use super::repo::{Commit, MAIN, RemoteFile, RepoName, is_safe_path};
use super::settings::{Network, Settings};

/// How often a push looks whether it is to stop, and says how far it is.
const GLANCE: Duration = Duration::from_millis(100);

/// An upload in which nothing has moved for so many timeouts is given up.
const STALLED: u32 = 30;

/// A file on its way into a repository.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Where it goes, with `/`.
    pub path: String,
    /// What goes.
    pub content: Content,
}

/// What is in an [`Upload`].
#[derive(Clone, Debug)]
pub enum Content {
    /// What this file holds; it must stay as it is until the push is over.
    File(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// Who may see a repository that a push creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Everybody.
    Public,
    /// Its owner alone. A public repository is refused then.
    Private,
    /// Its owner alone if it has to be created; as it is otherwise.
    PrivateIfNew,
}

/// How a commit gets to its branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// At once.
    Commit,
    /// As a pull request that somebody merges.
    PullRequest,
}

/// Where a push goes.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The repository; created if it is not there.
    pub repo: RepoName,
    /// The branch; created from `main` if it is not there.
    pub branch: String,
    /// Who may see it.
    pub visibility: Visibility,
    /// Whether the commit goes in at once.
    pub way: Way,
    /// The commit's first line.
    pub message: String,
}

/// Who watches a push.
pub struct Watch<'a> {
    /// Takes how many bytes have gone, and how many there are.
    pub bytes: &'a dyn Fn(u64, u64),
    /// Takes a line worth knowing, such as that the Hub asks to wait.
    pub say: &'a dyn Fn(String),
    /// Whether to stop.
    pub stop: &'a dyn Fn() -> bool,
}

/// A pull request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRequest {
    /// Its number in the repository.
    pub number: u64,
    /// Its page.
    pub url: String,
}

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushed {
    /// The repository.
    pub repo: RepoName,
    /// The branch it went to, or is proposed for.
    pub branch: String,
    /// The commit that holds all files: a new one, or the head if nothing had changed.
    pub commit: Commit,
    /// The commit's page.
    pub url: String,
    /// The pull request, if it is one.
    pub pull_request: Option<PullRequest>,
    /// The files of the new commit.
    pub sent: Vec<String>,
    /// The files that were there already, as they are.
    pub unchanged: Vec<String>,
}

/// What a file would be to the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// No file is at its path.
    New,
    /// Another one is.
    Changed,
    /// It is there.
    Unchanged,
    /// The repository could not be looked at.
    Unknown,
}

impl Change {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Unknown => "not known",
        }
    }
}

/// A file of a [`Plan`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFile {
    /// Where it would go.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// What it would be there.
    pub change: Change,
}

/// What is at the destination of a [`Plan`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// No repository; it would be created.
    NoRepository,
    /// No such branch; it would be created from this commit.
    NoBranch(Commit),
    /// The branch's head.
    Head(Commit),
    /// A branch without a commit.
    Empty,
    /// It could not be looked at, and why.
    Unknown(String),
}

/// What a push would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The repository.
    pub repo: RepoName,
    /// The branch.
    pub branch: String,
    /// What is there.
    pub found: Found,
    /// The files, in the order of their paths.
    pub files: Vec<PlannedFile>,
}

/// Says what [`push`] would do, and only reads to know it. Where the repository can't be looked at (offline, no
/// token for a private one), every file counts as [`Change::Unknown`].
///
/// # Errors
/// A file that can't be read, a path no repository takes, a Hub that gives no sense, an interruption.
pub fn plan(
    settings: &Settings,
    uploads: &[Upload],
    to: &Destination,
    watch: &Watch<'_>,
) -> Result<Plan, HubError> {
    let files = locals(uploads, &to.repo)?;
    let plan = |found, change: &dyn Fn(&Local<'_>) -> Change| Plan {
        repo: to.repo.clone(),
        branch: to.branch.clone(),
        found,
        files: files
            .iter()
            .map(|f| PlannedFile { path: f.path.into(), bytes: f.size, change: change(f) })
            .collect(),
    };
    let unknown = |reason: String| plan(Found::Unknown(reason), &|_| Change::Unknown);
    if settings.network == Network::Offline {
        return Ok(unknown("pipe is offline".into()));
    }
    let gauge = Arc::new(Gauge::default());
    let look = async {
        let remote = Remote::new(settings, &to.repo, watch)?;
        let found = match remote.head(&to.branch).await {
            Ok(Head::At { commit, .. }) => Found::Head(commit),
            Ok(Head::Empty { .. }) => Found::Empty,
            Ok(Head::NoRepository) => Found::NoRepository,
            Ok(Head::NoBranch) => match remote.head(MAIN).await? {
                Head::At { commit, .. } => Found::NoBranch(commit),
                _ => Found::Empty,
            },
            Err(error @ (HubError::Refused { .. } | HubError::Unsent { .. })) => {
                return Ok(unknown(error.to_string()));
            }
            Err(error) => return Err(error),
        };
        let there = match &found {
            Found::Head(commit) | Found::NoBranch(commit) => remote.files(commit, &paths(&files)).await?,
            _ => BTreeMap::new(),
        };
        let changes = changes(&files, &there, watch)?;
        Ok(plan(found, &|file| changes[file.path]))
    };
    drive(settings, watch, &gauge, look)
}

/// Brings the files into the repository: creates it and the branch where they are not there, sends what is not
/// there as it is, in one commit on top of the head it was held against. Nothing changed: no commit.
///
/// What a passing trouble stops is tried again; a commit whose answer was lost is looked for before it is made
/// again.
///
/// # Errors
/// No token, offline, a refusal, somebody else's commit in between, a Hub that can't be reached for good, a file
/// that can't be read, an interruption. The branch has all of the files then, or nothing of this push.
pub fn push(
    settings: &Settings,
    uploads: &[Upload],
    to: &Destination,
    watch: &Watch<'_>,
) -> Result<Pushed, HubError> {
    if settings.network == Network::Offline {
        return Err(HubError::OfflinePush { repo: to.repo.clone() });
    }
    if settings.token.is_none() {
        return Err(HubError::NoToken { repo: to.repo.clone() });
    }
    let files = locals(uploads, &to.repo)?;
    let gauge = Arc::new(Gauge::default());
    let work = async {
        let remote = Remote::new(settings, &to.repo, watch)?;
        let head = prepared(&remote, to).await?;
        let there = match &head {
            Some(commit) => remote.files(commit, &paths(&files)).await?,
            None => BTreeMap::new(),
        };
        let changes = changes(&files, &there, watch)?;
        let (unchanged, sent): (Vec<_>, Vec<_>) =
            files.iter().partition(|file| changes[file.path] == Change::Unchanged);
        let names = |files: &[&Local<'_>]| files.iter().map(|file| file.path.to_owned()).collect();
        let made = match head {
            Some(head) if sent.is_empty() => Made { commit: head, pull_request: None },
            head => Committing { remote: &remote, to, watch, head, sent: &sent }.commit(&gauge).await?,
        };
        Ok(Pushed {
            repo: to.repo.clone(),
            branch: to.branch.clone(),
            url: format!("{}/{}/commit/{}", settings.endpoint, to.repo, made.commit),
            pull_request: made.pull_request.map(|number| PullRequest {
                number,
                url: format!("{}/{}/discussions/{number}", settings.endpoint, to.repo),
            }),
            commit: made.commit,
            sent: names(&sent),
            unchanged: names(&unchanged),
        })
    };
    drive(settings, watch, &gauge, work)
}

/// Whether git and the Hub take this for a branch.
pub fn is_branch(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && !part.starts_with(['.', '-']) && !part.ends_with('.') && !part.ends_with(".lock")
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    name.len() <= 200 && name.chars().all(allowed) && !name.contains("..") && name.split('/').all(part)
}

/// The files in the order of their paths.
fn locals<'a>(uploads: &'a [Upload], repo: &RepoName) -> Result<Vec<Local<'a>>, HubError> {
    let mut files = BTreeMap::new();
    for upload in uploads {
        let refused = |reason: String| HubError::Unusable {
            repo: repo.clone(),
            reason,
            help: "give the file another name".into(),
        };
        if !is_safe_path(&upload.path) {
            return Err(refused(format!("it takes no file called {:?}", upload.path)));
        }
        if files.insert(upload.path.as_str(), Local::of(upload)?).is_some() {
            return Err(refused(format!("two files are to go to {}", upload.path)));
        }
    }
    Ok(files.into_values().collect())
}

fn paths(files: &[Local<'_>]) -> Vec<String> {
    files.iter().map(|file| file.path.to_owned()).collect()
}

/// What each file is to those that are there.
fn changes<'a>(
    files: &[Local<'a>],
    there: &BTreeMap<String, RemoteFile>,
    watch: &Watch<'_>,
) -> Result<BTreeMap<&'a str, Change>, HubError> {
    let change = |file: &Local<'a>| -> Result<Change, HubError> {
        Ok(match there.get(file.path) {
            None => Change::New,
            Some(remote) if file.is(remote, watch.stop)? => Change::Unchanged,
            Some(_) => Change::Changed,
        })
    };
    files.iter().map(|file| Ok((file.path, change(file)?))).collect()
}

/// The head to commit on, of a repository and branch that are there now.
async fn prepared(remote: &Remote<'_>, to: &Destination) -> Result<Option<Commit>, HubError> {
    let mut head = remote.head(&to.branch).await?;
    if head == Head::NoRepository {
        remote.create(to.visibility != Visibility::Public).await?;
        head = remote.head(&to.branch).await?;
    }
    if head == Head::NoBranch {
        hidden_enough(to, &remote.head(MAIN).await?)?;
        remote.create_branch(&to.branch).await?;
        head = remote.head(&to.branch).await?;
    }
    hidden_enough(to, &head)?;
    match head {
        Head::At { commit, .. } => Ok(Some(commit)),
        Head::Empty { .. } => Ok(None),
        Head::NoRepository | Head::NoBranch => Err(HubError::Answer {
            what: format!("{} of {}", to.branch, to.repo),
            reason: "it was created and is not there".into(),
        }),
    }
}

/// Refuses a public repository for what is to be private.
fn hidden_enough(to: &Destination, head: &Head) -> Result<(), HubError> {
    let (Head::At { private, .. } | Head::Empty { private }) = head else { return Ok(()) };
    if to.visibility == Visibility::Private && *private == Some(false) {
        return Err(HubError::Public { repo: to.repo.clone() });
    }
    Ok(())
}

/// A commit that holds all files.
struct Made {
    commit: Commit,
    pull_request: Option<u64>,
}

/// What an attempt to commit left behind.
enum Left {
    /// The commit, though no answer said so.
    Made(Made),
    /// Nothing.
    Nothing,
    /// Somebody else's commit.
    Another,
}

/// One commit on its way.
struct Committing<'a> {
    remote: &'a Remote<'a>,
    to: &'a Destination,
    watch: &'a Watch<'a>,
    head: Option<Commit>,
    sent: &'a [&'a Local<'a>],
}

impl Committing<'_> {
    async fn commit(&self, gauge: &Arc<Gauge>) -> Result<Made, HubError> {
        let what = format!("the commit to {}", self.to.repo);
        // A pull request leaves the branch alone: it is known by not having been there before.
        let before = match self.to.way {
            Way::PullRequest => self.remote.pull_requests().await?,
            Way::Commit => BTreeMap::new(),
        };
        for attempt in 1.. {
            let trouble = match self.remote.commit(self.to, self.head.as_ref(), self.sent, gauge).await {
                Ok(Some(commit)) => return Ok(self.made(commit, &before).await),
                Ok(None) => Trouble::lost("the answer names no commit"),
                Err(trouble) => trouble,
            };
            gauge.sending.store(false, Ordering::Relaxed);
            if !trouble.passing && !trouble.is_conflict() {
                return Err(self.remote.error(&what, trouble));
            }
            let left = self.left(&before).await.map_err(|error| match error {
                HubError::Interrupted => error,
                _ => self.remote.error(&what, trouble.clone().and("whether it was made can't be told")),
            })?;
            match left {
                Left::Made(made) => return Ok(made),
                Left::Another => return Err(self.moved()),
                Left::Nothing if trouble.is_conflict() => return Err(self.moved()),
                Left::Nothing if attempt == TRIES => return Err(self.remote.error(&what, trouble)),
                Left::Nothing => self.remote.wait(&what, &trouble, backoff(attempt)).await?,
            }
        }
        Err(self.remote.error(&what, Trouble::lost("no try succeeded")))
    }

    /// A commit that the Hub says it made.
    async fn made(&self, commit: Commit, before: &BTreeMap<u64, Commit>) -> Made {
        let now = match self.to.way {
            Way::Commit => BTreeMap::new(),
            // The commit is there, whatever comes of the question for its number.
            Way::PullRequest => self.remote.pull_requests().await.unwrap_or_default(),
        };
        let new = now.into_iter().find(|(number, at)| *at == commit && !before.contains_key(number));
        Made { commit, pull_request: new.map(|(number, _)| number) }
    }

    fn moved(&self) -> HubError {
        HubError::Moved {
            repo: self.to.repo.clone(),
            branch: self.to.branch.clone(),
            was: self.head.as_ref().map_or_else(|| "no commit".into(), |head| head.short().to_owned()),
        }
    }

    /// What is there after an attempt that did not say how it ended.
    async fn left(&self, before: &BTreeMap<u64, Commit>) -> Result<Left, HubError> {
        if self.to.way == Way::PullRequest {
            let now = self.remote.pull_requests().await?;
            for (number, commit) in now.into_iter().rev().filter(|(number, _)| !before.contains_key(number)) {
                if self.holds_all(&commit).await? {
                    return Ok(Left::Made(Made { commit, pull_request: Some(number) }));
                }
            }
        }
        match self.remote.head(&self.to.branch).await? {
            Head::At { commit, .. } if Some(&commit) == self.head.as_ref() => Ok(Left::Nothing),
            Head::At { commit, .. } if self.to.way == Way::Commit && self.holds_all(&commit).await? => {
                Ok(Left::Made(Made { commit, pull_request: None }))
            }
            Head::At { .. } => Ok(Left::Another),
            _ => Ok(Left::Nothing),
        }
    }

    async fn holds_all(&self, commit: &Commit) -> Result<bool, HubError> {
        let paths: Vec<String> = self.sent.iter().map(|file| file.path.to_owned()).collect();
        let there = self.remote.files(commit, &paths).await?;
        for file in self.sent {
            match there.get(file.path) {
                Some(remote) if file.is(remote, self.watch.stop)? => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }
}

/// How far an upload is, as the uploading threads tell it.
struct Gauge {
    done: AtomicU64,
    total: AtomicU64,
    /// Whether content is on its way; the commit itself and every wait have limits of their own.
    sending: AtomicBool,
    /// When something last moved, and what had gone by then.
    moved: Mutex<(Instant, u64)>,
}

impl Default for Gauge {
    fn default() -> Self {
        let moved = Mutex::new((Instant::now(), 0));
        Self { done: 0.into(), total: 0.into(), sending: false.into(), moved }
    }
}

impl Gauge {
    /// For how long nothing has moved of what is on its way.
    fn stalled_for(&self) -> Duration {
        let moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner).0;
        if self.sending.load(Ordering::Relaxed) { moved.elapsed() } else { Duration::ZERO }
    }
}

impl ProgressHandler for Gauge {
    fn on_progress(&self, event: &ProgressEvent) {
        match event {
            ProgressEvent::Upload(UploadEvent::Start { total_bytes, .. }) => {
                self.total.store(*total_bytes, Ordering::Relaxed);
                *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), 0);
                self.sending.store(true, Ordering::Relaxed);
            }
            ProgressEvent::Upload(UploadEvent::Progress {
                bytes_completed,
                transfer_bytes_completed,
                ..
            }) => {
                self.done.store(*bytes_completed, Ordering::Relaxed);
                let gone = bytes_completed + transfer_bytes_completed;
                let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
                if moved.1 != gone {
                    *moved = (Instant::now(), gone);
                }
            }
            ProgressEvent::Upload(UploadEvent::Committing) => self.sending.store(false, Ordering::Relaxed),
            ProgressEvent::Upload(UploadEvent::Complete) => {
                self.done.store(self.total.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            ProgressEvent::Download(_) => {}
        }
    }
}

/// Runs `work` to its end on threads of its own; stops it when asked to, or when nothing moves any more.
fn drive<T>(
    settings: &Settings,
    watch: &Watch<'_>,
    gauge: &Gauge,
    work: impl Future<Output = Result<T, HubError>>,
) -> Result<T, HubError> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(
            |error| HubError::Unsent {
                what: "a push".into(),
                endpoint: settings.endpoint.clone(),
                reason: format!("no thread can be started: {error}"),
            },
        )?;
    let glance = async {
        let mut shown = (0, 0);
        loop {
            tokio::time::sleep(GLANCE).await;
            if (watch.stop)() {
                return Err(HubError::Interrupted);
            }
            let now = (gauge.done.load(Ordering::Relaxed), gauge.total.load(Ordering::Relaxed));
            if now != shown {
                (watch.bytes)(now.0, now.1);
                shown = now;
            }
            let stalled = gauge.stalled_for();
            if stalled > settings.timeout * STALLED {
                return Err(HubError::Unsent {
                    what: "the upload".into(),
                    endpoint: settings.endpoint.clone(),
                    reason: format!("nothing has moved for {} s", stalled.as_secs()),
                });
            }
        }
    };
    let outcome = runtime.block_on(async {
        match select(pin!(work), pin!(glance)).await {
            Either::Left((outcome, _)) | Either::Right((outcome, _)) => outcome,
        }
    });
    // What was left behind by a stop ends with its connection; nobody waits for it.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(path: &str, text: &str) -> Upload {
        Upload { path: path.into(), content: Content::Bytes(text.into()) }
    }

    fn settings(network: Network) -> Settings {
        Settings {
            endpoint: "http://127.0.0.1:9".into(),
            token: None,
            cache: "/nowhere".into(),
            network,
            timeout: Duration::from_secs(1),
        }
    }

    fn destination() -> Destination {
        Destination {
            repo: "ada/x".parse().unwrap(),
            branch: MAIN.into(),
            visibility: Visibility::Public,
            way: Way::Commit,
            message: "m".into(),
        }
    }

    fn watch<'a>() -> Watch<'a> {
        Watch { bytes: &|_, _| (), say: &|_| (), stop: &|| false }
    }

    #[test]
    fn offline_every_file_is_not_known() {
        let files = [upload("b", "12"), upload("a/c", "1")];
        let plan = plan(&settings(Network::Offline), &files, &destination(), &watch()).unwrap();
        assert_eq!(plan.found, Found::Unknown("pipe is offline".into()));
        let files: Vec<_> = plan.files.iter().map(|f| (f.path.as_str(), f.bytes, f.change)).collect();
        assert_eq!(files, [("a/c", 1, Change::Unknown), ("b", 2, Change::Unknown)]);
    }

    #[test]
    fn a_path_that_leads_out_of_the_repository_is_refused_before_anything_is_asked() {
        for (files, reason) in [
            (vec![upload("../a", "")], "ada/x: it takes no file called \"../a\""),
            (vec![upload("a", "1"), upload("a", "2")], "ada/x: two files are to go to a"),
        ] {
            let error = plan(&settings(Network::Online), &files, &destination(), &watch()).unwrap_err();
            assert_eq!(error.to_string(), reason);
        }
    }

    #[test]
    fn a_stop_ends_the_wait_for_a_hub_that_is_not_there() {
        let watch = Watch { stop: &|| true, ..watch() };
        let start = Instant::now();
        let stopped = plan(&settings(Network::Online), &[upload("a", "1")], &destination(), &watch);
        assert!(matches!(stopped, Err(HubError::Interrupted)), "{stopped:?}");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }

    #[test]
    fn branches_are_those_of_git() {
        for good in ["main", "trials/one", "v1.2-rc_3"] {
            assert!(is_branch(good), "{good}");
        }
        for bad in ["", "a b", "/a", "a/", "a..b", ".a", "-a", "a.lock", "a/.b", "é"] {
            assert!(!is_branch(bad), "{bad}");
        }
    }
}
