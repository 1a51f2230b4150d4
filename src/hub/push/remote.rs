//! One model repository on the Hub as a push sees it: its heads and files are read, its commits made.
//!
//! What is written goes through hf-hub. What is read is asked for here: hf-hub leaves the digests of large files
//! out of its listings, follows a listing's next page to any host with the token, and reads answers of any
//! length. Does not know what is pushed, nor why.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use hf_hub::repository::{AddSource, CommitOperation};
use hf_hub::{HFClient, HFError, HFRepository, RepoTypeModel};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::local::Local;
use super::{Content, Destination, Gauge, Watch, Way};
use crate::hub::error::HubError;
use crate::hub::repo::{Commit, FileDigest, MAIN, RemoteFile, RepoKind, RepoName};
use crate::hub::settings::{Settings, Token};

/// How often anything is tried.
pub(super) const TRIES: u32 = 5;
/// The first wait between two tries; the next is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest wait that the Hub may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
/// The Hub takes longer to make a commit than to find a file.
const PATIENCE: u32 = 6;
/// Hops within the Hub itself, such as from a repository's former name.
const REDIRECTS: usize = 5;
/// Bytes of an answer.
const LONGEST_ANSWER: usize = 32 << 20;
/// Bytes of an error's page.
const LONGEST_ERROR: usize = 64 << 10;
/// Characters of a stranger's text in an error.
const LONGEST_REASON: usize = 500;
/// Paths asked for in one request.
const PATHS: usize = 500;

/// The wait before the next try.
pub(super) fn backoff(attempt: u32) -> Duration {
    FIRST_WAIT * 2_u32.pow(attempt.clamp(1, TRIES) - 1)
}

/// The head of a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Head {
    NoRepository,
    NoBranch,
    Empty { private: Option<bool> },
    At { commit: Commit, private: Option<bool> },
}

/// Why a request did not give what was asked for.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    status: Option<StatusCode>,
    /// The Hub's word for it, such as `RepoNotFound`.
    code: Option<String>,
    reason: String,
    /// How long the Hub asks to wait.
    wait: Option<Duration>,
    /// Whether it may be gone the next time.
    pub passing: bool,
    /// Whether what came makes no sense.
    senseless: bool,
}

impl Trouble {
    /// An answer that did not come, or not whole.
    pub fn lost(reason: &str) -> Self {
        Self { status: None, code: None, reason: reason.into(), wait: None, passing: true, senseless: false }
    }

    fn senseless(reason: impl Into<String>) -> Self {
        Self { passing: false, senseless: true, ..Self::lost(&reason.into()) }
    }

    fn answered(
        status: StatusCode,
        code: Option<String>,
        said: Option<&str>,
        wait: Option<Duration>,
    ) -> Self {
        let said = said.map(str::trim).filter(|said| !said.is_empty());
        let reason = said.map_or_else(|| status.to_string(), |said| format!("{status}: {said}"));
        let passing = matches!(status.as_u16(), 408 | 429) || status.is_server_error();
        Self { status: Some(status), code, reason, wait, passing, senseless: false }
    }

    /// The head is no longer the one to commit on.
    pub fn is_conflict(&self) -> bool {
        matches!(self.status.map(|status| status.as_u16()), Some(409 | 412))
    }

    pub fn and(mut self, more: &str) -> Self {
        let _ = write!(self.reason, "; {more}");
        self
    }
}

impl From<reqwest::Error> for Trouble {
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let passing = !error.is_builder() && !error.is_redirect();
        Self { passing, ..Self::lost(&with_causes(&error)) }
    }
}

impl From<HFError> for Trouble {
    fn from(error: HFError) -> Self {
        let (context, wait) = match error {
            HFError::RateLimited { retry_after, context } => (Some(context), retry_after),
            HFError::Http { context }
            | HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::Conflict { context } => (Some(context), None),
            HFError::RepoNotFound { context, .. }
            | HFError::RevisionNotFound { context, .. }
            | HFError::EntryNotFound { context, .. } => (context, None),
            HFError::Request { source, .. } => return source.into(),
            error @ (HFError::MalformedResponse { .. } | HFError::Json(_)) => {
                return Self::senseless(with_causes(&error));
            }
            // xet has tried several times by then.
            error => return Self { passing: false, ..Self::lost(&with_causes(&error)) },
        };
        match context {
            Some(c) => Self::answered(c.status, c.error_code.clone(), c.server_message.as_deref(), wait),
            None => Self::answered(StatusCode::NOT_FOUND, None, None, wait),
        }
    }
}

/// An error and what is behind it, each said once.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// A model repository.
pub(super) struct Remote<'a> {
    settings: &'a Settings,
    repo: &'a RepoName,
    watch: &'a Watch<'a>,
    http: Client,
    hub: HFRepository<RepoTypeModel>,
}

impl<'a> Remote<'a> {
    pub fn new(settings: &'a Settings, repo: &'a RepoName, watch: &'a Watch<'a>) -> Result<Self, HubError> {
        let wrong = |reason: String| HubError::Unsent {
            what: "a push".into(),
            endpoint: settings.endpoint.clone(),
            reason,
        };
        let http = Client::builder()
            .user_agent(concat!("pipe/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.timeout)
            .read_timeout(settings.timeout * PATIENCE)
            .redirect(within_the_hub())
            .build()
            .map_err(|error| wrong(with_causes(&error)))?;
        // Tries are counted here, where a lost commit is looked for first.
        let builder = HFClient::builder()
            .endpoint(settings.endpoint.clone())
            .client(http.clone())
            .cache_enabled(false)
            .retry_max_attempts(0);
        let builder = match &settings.token {
            Some(token) => builder.token(token.expose()),
            None => builder,
        };
        let hub = builder.build().map_err(|error| wrong(with_causes(&error)))?;
        let hub = hub.model(repo.owner(), repo.name());
        Ok(Self { settings, repo, watch, http, hub })
    }

    /// Where a branch stands.
    pub async fn head(&self, branch: &str) -> Result<Head, HubError> {
        #[derive(Deserialize)]
        struct Info {
            sha: Option<String>,
            private: Option<bool>,
        }
        let what = format!("{branch} of {}", self.repo);
        let asked = async || self.ask::<Info>(&format!("/revision/{}", encoded(branch)), None).await;
        match self.persistent(&what, asked).await {
            Ok(Info { sha: None, private }) => Ok(Head::Empty { private }),
            Ok(Info { sha: Some(sha), private }) => match sha.parse() {
                Ok(commit) => Ok(Head::At { commit, private }),
                Err(error) => Err(HubError::Answer { what, reason: format!("{error}") }),
            },
            Err(Troubled::Answer(trouble)) if trouble.status == Some(StatusCode::NOT_FOUND) => {
                match trouble.code.as_deref() {
                    Some("RevisionNotFound") => Ok(Head::NoBranch),
                    Some("RepoNotFound") => Ok(Head::NoRepository),
                    _ => self.exists().await,
                }
            }
            Err(error) => Err(self.troubled(&what, error)),
        }
    }

    /// Which of the two a 404 without a word was for.
    async fn exists(&self) -> Result<Head, HubError> {
        let asked = async || self.ask::<serde_json::Value>("", None).await;
        match self.persistent("", asked).await {
            Ok(_) => Ok(Head::NoBranch),
            Err(Troubled::Answer(trouble)) if trouble.status == Some(StatusCode::NOT_FOUND) => {
                Ok(Head::NoRepository)
            }
            Err(error) => Err(self.troubled(&self.repo.to_string(), error)),
        }
    }

    /// Those of the paths at which there is a file.
    pub async fn files(
        &self,
        commit: &Commit,
        paths: &[String],
    ) -> Result<BTreeMap<String, RemoteFile>, HubError> {
        #[derive(Deserialize)]
        struct Entry {
            #[serde(rename = "type")]
            kind: String,
            path: String,
            #[serde(default)]
            size: u64,
            oid: String,
            lfs: Option<Lfs>,
        }
        #[derive(Deserialize)]
        struct Lfs {
            oid: String,
        }
        let what = format!("the files of {}", self.repo);
        let mut files = BTreeMap::new();
        for paths in paths.chunks(PATHS) {
            let body = json!({ "paths": paths });
            let asked = async || {
                self.ask::<Vec<Entry>>(&format!("/paths-info/{commit}"), Some(body.to_string())).await
            };
            let entries = self.persistent(&what, asked).await.map_err(|e| self.troubled(&what, e))?;
            for entry in entries.into_iter().filter(|entry| entry.kind == "file") {
                let digits = entry.lfs.map_or(entry.oid, |lfs| lfs.oid);
                let digest = FileDigest::from_hex(&digits).ok_or_else(|| HubError::Answer {
                    what: what.clone(),
                    reason: format!("`{digits}` of {} is no digest", entry.path),
                })?;
                let file = RemoteFile { path: entry.path.clone(), size: entry.size, digest };
                files.insert(entry.path, file);
            }
        }
        Ok(files)
    }

    /// The repository's pull requests by number, with their heads.
    pub async fn pull_requests(&self) -> Result<BTreeMap<u64, Commit>, HubError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Refs {
            #[serde(default)]
            pull_requests: Vec<Ref>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Ref {
            #[serde(rename = "ref")]
            name: String,
            target_commit: String,
        }
        let what = format!("the pull requests of {}", self.repo);
        let asked = async || self.ask::<Refs>("/refs?include_prs=1", None).await;
        let refs = self.persistent(&what, asked).await.map_err(|e| self.troubled(&what, e))?;
        let numbered = |r: Ref| {
            let number = r.name.rsplit('/').next()?.parse().ok()?;
            Some((number, r.target_commit.parse().ok()?))
        };
        Ok(refs.pull_requests.into_iter().filter_map(numbered).collect())
    }

    /// Creates the repository.
    pub async fn create(&self, private: bool) -> Result<(), HubError> {
        let what = format!("a new repository {}", self.repo);
        let asked = async || {
            let request = self.hub.client().create_repository().repo_id(self.repo.as_str());
            let request = request.repo_type(RepoTypeModel).private(private).exist_ok(true);
            request.send().await.map(drop).map_err(Trouble::from)
        };
        self.persistent(&what, asked).await.map_err(|error| self.troubled(&what, error))
    }

    /// Creates a branch at the head of main.
    pub async fn create_branch(&self, branch: &str) -> Result<(), HubError> {
        let what = format!("a new branch {branch} of {}", self.repo);
        let asked = async || {
            let request = self.hub.create_branch().branch(branch).revision(MAIN);
            match request.send().await {
                // Somebody was faster, or an answer was lost.
                Err(HFError::Conflict { .. }) => Ok(()),
                other => other.map_err(Trouble::from),
            }
        };
        self.persistent(&what, asked).await.map_err(|error| self.troubled(&what, error))
    }

    /// Sends the files and commits them on `head`, once; the commit if the answer names it. Of a pull request's
    /// number hf-hub knows nothing: it looks for another key than the Hub's.
    pub async fn commit(
        &self,
        to: &Destination,
        head: Option<&Commit>,
        files: &[&Local<'_>],
        gauge: &Arc<Gauge>,
    ) -> Result<Option<Commit>, Trouble> {
        let add = |file: &&Local<'_>| CommitOperation::Add {
            path_in_repo: file.path.into(),
            source: match file.content {
                Content::File(path) => AddSource::file(path),
                Content::Bytes(bytes) => AddSource::bytes(bytes.clone()),
            },
        };
        let request = self.hub.create_commit().operations(files.iter().map(add).collect());
        let request = request
            .commit_message(to.message.as_str())
            .revision(to.branch.as_str())
            .create_pr(to.way == Way::PullRequest)
            .maybe_parent_commit(head.map(Commit::as_str))
            .progress(gauge.clone());
        let info = request.send().await?;
        Ok(info.commit_oid.and_then(|oid| oid.parse().ok()))
    }

    /// Waits before the next try, as long as the Hub asks for or else `wait`.
    pub async fn wait(&self, what: &str, trouble: &Trouble, wait: Duration) -> Result<(), HubError> {
        let wait = trouble.wait.map_or(wait, |asked| asked.max(wait));
        if wait > LONGEST_WAIT {
            return Err(self.error(what, trouble.clone().and(&format!("it asks to wait {wait:?}"))));
        }
        if trouble.status == Some(StatusCode::TOO_MANY_REQUESTS) {
            (self.watch.say)(format!("the Hub asks to slow down: trying again in {wait:?}"));
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Does it again as long as what is in the way may pass.
    async fn persistent<T>(
        &self,
        what: &str,
        asked: impl AsyncFn() -> Result<T, Trouble>,
    ) -> Result<T, Troubled> {
        for attempt in 1..TRIES {
            match asked().await {
                Err(trouble) if trouble.passing => {
                    self.wait(what, &trouble, backoff(attempt)).await.map_err(Troubled::Over)?;
                }
                other => return other.map_err(Troubled::Answer),
            }
        }
        asked().await.map_err(Troubled::Answer)
    }

    /// A request to the repository's part of the API: POST with a body, GET without.
    async fn ask<T: DeserializeOwned>(&self, path: &str, body: Option<String>) -> Result<T, Trouble> {
        let url = format!("{}/api/{}/{}{path}", self.settings.endpoint, RepoKind::Model.plural(), self.repo);
        let request = match body {
            Some(body) => self.http.post(url).header(CONTENT_TYPE, "application/json").body(body),
            None => self.http.get(url),
        };
        let bearer = |token: &Token| format!("Bearer {}", token.expose());
        let request = match &self.settings.token {
            Some(token) => request.header(AUTHORIZATION, bearer(token)),
            None => request,
        };
        let mut answer = request.send().await?;
        let status = answer.status();
        let limit = if status.is_success() { LONGEST_ANSWER } else { LONGEST_ERROR };
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > limit {
                if status.is_success() {
                    return Err(Trouble::senseless(format!("it is longer than {limit} bytes")));
                }
                break;
            }
        }
        if !status.is_success() {
            #[derive(Deserialize)]
            struct Page {
                error: String,
            }
            let page = serde_json::from_slice::<Page>(&bytes).ok().map(|page| page.error);
            let headers = answer.headers();
            let said = text(headers, "x-error-message").or(page);
            let seconds = headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse().ok());
            let code = text(headers, "x-error-code");
            return Err(Trouble::answered(status, code, said.as_deref(), seconds.map(Duration::from_secs)));
        }
        serde_json::from_slice(&bytes).map_err(|error| Trouble::senseless(error.to_string()))
    }

    fn troubled(&self, what: &str, error: Troubled) -> HubError {
        match error {
            Troubled::Answer(trouble) => self.error(what, trouble),
            Troubled::Over(error) => error,
        }
    }

    /// What a trouble that does not pass means; `what` is a noun.
    pub fn error(&self, what: &str, trouble: Trouble) -> HubError {
        let what = what.to_owned();
        let endpoint = self.settings.endpoint.clone();
        let with_token = self.settings.token.is_some();
        // Nothing should hold it; an error's page that echoes the request might.
        let reason = match &self.settings.token {
            Some(token) => trouble.reason.replace(token.expose(), "***"),
            None => trouble.reason,
        };
        let reason = reason.chars().filter(|c| !c.is_control()).take(LONGEST_REASON).collect();
        match trouble.status {
            _ if trouble.senseless => HubError::Answer { what, reason },
            Some(StatusCode::NOT_FOUND) => HubError::NotFound { what, endpoint, with_token },
            Some(status) if status.is_client_error() && !trouble.passing => {
                HubError::Refused { what, endpoint, reason, with_token }
            }
            _ => HubError::Unsent { what, endpoint, reason },
        }
    }
}

/// Why [`Remote::persistent`] gave up.
enum Troubled {
    /// This came last.
    Answer(Trouble),
    /// The Hub asks for more time than there is.
    Over(HubError),
}

/// Follows a redirect only to where the request went first: a commit and its token are for nobody else.
fn within_the_hub() -> Policy {
    Policy::custom(|attempt| {
        let same = attempt.previous().first().is_some_and(|first| first.origin() == attempt.url().origin());
        match (same, attempt.previous().len() <= REDIRECTS) {
            (true, true) => attempt.follow(),
            (true, false) => attempt.error("redirected too often"),
            (false, _) => {
                let host = attempt.url().host_str().unwrap_or_default().to_owned();
                attempt.error(format!("redirected to another host, {host}"))
            }
        }
    })
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// A branch as one segment of a path.
fn encoded(branch: &str) -> String {
    let mut text = String::with_capacity(branch.len());
    for byte in branch.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(byte.into()),
            _ => {
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}
