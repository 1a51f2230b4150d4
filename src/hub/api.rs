//! Reading from the Hub: what a name stands for, what a commit holds, the bytes of a file.
//!
//! Own requests and not hf-hub's: that reads an answer into memory whatever its length, starts a broken download
//! from its beginning and compares no digest. Knows addresses, retries and limits; does not know where files are
//! kept.

use std::error::Error;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use reqwest::header::{AUTHORIZATION, HeaderMap, LINK, RANGE, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use serde::de::DeserializeOwned;

use super::error::HubError;
use super::repo::{Commit, FileDigest, MAIN, RemoteFile, RepoKind, RepoName, is_safe_path};
use super::settings::Settings;
use crate::size::bytes;
use crate::stage::Cancel;

/// How often a request is made before its failure counts.
const TRIES: u32 = 5;

/// The wait before the second try; it doubles with each.
const FIRST_WAIT: Duration = Duration::from_millis(300);

/// A Hub that asks for more patience than this is not waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// No honest answer about a repository is longer, a page of a listing (1,000 files) least of all.
const LARGEST_ANSWER: usize = 16 << 20;

/// No file of the Hub is larger: it takes none above half of this.
const LARGEST_FILE: u64 = 1_000_000_000_000;

/// Repositories with more files are not read.
const MOST_FILES: usize = 100_000;

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repo {
    /// What it holds.
    pub kind: RepoKind,
    /// `owner/name`
    pub name: RepoName,
}

impl std::fmt::Display for Repo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// The Hub, as one that asks it.
pub(super) struct Api {
    settings: Settings,
    client: Client,
}

/// Why a try failed.
enum Failed {
    /// Trying again may help, after this long if the Hub says so.
    ForNow(String, Option<Duration>),
    /// It may not.
    ForGood(HubError),
}

/// The body of a file, from some byte on.
pub(super) struct Body {
    /// The answer; its content is read piece by piece.
    pub response: Response,
    /// The byte of the file that it begins with: 0 where the Hub did not follow the wish for a later one.
    pub from: u64,
}

impl Api {
    pub fn new(settings: &Settings) -> Result<Self, HubError> {
        let secure = settings.endpoint.starts_with("https://");
        let policy = redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() >= 10 {
                attempt.error("more than 10 redirects, one after the other")
            } else if secure && attempt.url().scheme() != "https" {
                attempt.error("a redirect to an address without encryption")
            } else {
                // reqwest itself takes the token out when the host or the port is another.
                attempt.follow()
            }
        });
        let client = Client::builder()
            .user_agent(concat!("pipe/", env!("CARGO_PKG_VERSION")))
            .redirect(policy)
            .connect_timeout(settings.timeout)
            .read_timeout(settings.timeout)
            .build()
            .map_err(|error| HubError::Unreachable {
                what: "anything".into(),
                endpoint: settings.endpoint.clone(),
                reason: causes(&error),
            })?;
        Ok(Self { settings: settings.clone(), client })
    }

    /// The commit that a branch, tag or commit stands for.
    pub async fn commit(&self, repo: &Repo, revision: &str, cancel: &Cancel) -> Result<Commit, HubError> {
        #[derive(serde::Deserialize)]
        struct Info {
            sha: Option<String>,
        }
        let what = match revision {
            MAIN => repo.to_string(),
            _ => format!("revision `{revision}` of {repo}"),
        };
        let kind = repo.kind.plural();
        let url =
            self.url(&["api", kind, repo.name.owner(), repo.name.name(), "revision", revision], &what)?;
        let (info, _): (Info, _) = self.json(url, &what, cancel).await?;
        let sha = info.sha.unwrap_or_default();
        sha.parse().map_err(|error| HubError::Answer { what, reason: format!("{error}") })
    }

    /// All files of a commit.
    pub async fn files(
        &self,
        repo: &Repo,
        commit: &Commit,
        cancel: &Cancel,
    ) -> Result<Vec<RemoteFile>, HubError> {
        #[derive(serde::Deserialize)]
        struct Lfs {
            oid: String,
        }
        #[derive(serde::Deserialize)]
        struct Entry {
            #[serde(rename = "type")]
            kind: String,
            path: String,
            #[serde(default)]
            oid: String,
            #[serde(default)]
            size: u64,
            lfs: Option<Lfs>,
        }
        let what = format!("the files of {repo}");
        let kind = repo.kind.plural();
        let steps = ["api", kind, repo.name.owner(), repo.name.name(), "tree", commit.as_str()];
        let mut url = self.url(&steps, &what)?;
        url.set_query(Some("recursive=true"));
        let mut files: Vec<RemoteFile> = Vec::new();
        let mut next = Some(url);
        while let Some(url) = next.take() {
            let (page, headers): (Vec<Entry>, HeaderMap) = self.json(url.clone(), &what, cancel).await?;
            let answer = |reason: String| HubError::Answer { what: what.clone(), reason };
            for entry in page.into_iter().filter(|entry| entry.kind == "file") {
                if !is_safe_path(&entry.path) {
                    return Err(answer(format!(
                        "a file is called {:?}, which leaves the folder it is put into",
                        entry.path
                    )));
                }
                if entry.size > LARGEST_FILE {
                    return Err(answer(format!("{} is said to have {}", entry.path, bytes(entry.size))));
                }
                let digits = entry.lfs.map_or(entry.oid, |lfs| lfs.oid);
                let digest = FileDigest::from_hex(&digits);
                let digest = digest.ok_or_else(|| answer(format!("{} has no digest", entry.path)))?;
                files.push(RemoteFile { path: entry.path, size: entry.size, digest });
            }
            if files.len() > MOST_FILES {
                return Err(answer(format!("more than {MOST_FILES} files")));
            }
            next = next_page(&headers, &url).map_err(answer)?;
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files.dedup_by(|a, b| a.path == b.path);
        Ok(files)
    }

    /// The content of a file from byte `from` on. Tries once: what has come is the caller's to go on with.
    pub async fn body(
        &self,
        repo: &Repo,
        commit: &Commit,
        file: &RemoteFile,
        from: u64,
        cancel: &Cancel,
    ) -> Result<Body, HubError> {
        let what = format!("{} of {repo}", file.path);
        let owner = format!("{}{}", repo.kind.address(), repo.name.owner());
        let mut steps: Vec<&str> = owner.split('/').collect();
        steps.extend([repo.name.name(), "resolve", commit.as_str()]);
        steps.extend(file.path.split('/'));
        let url = self.url(&steps, &what)?;
        let response = self.get(url, &what, (from > 0).then_some(from), cancel).await?;
        let from = if response.status() == StatusCode::PARTIAL_CONTENT { from } else { 0 };
        Ok(Body { response, from })
    }

    /// An address below the endpoint; each step is one part of the path, whatever characters it has.
    fn url(&self, steps: &[&str], what: &str) -> Result<Url, HubError> {
        let wrong = |reason: String| HubError::Unreachable {
            what: what.to_owned(),
            endpoint: self.settings.endpoint.clone(),
            reason,
        };
        let mut url = Url::parse(&self.settings.endpoint).map_err(|e| wrong(format!("no address: {e}")))?;
        url.path_segments_mut()
            .map_err(|()| wrong("no address of a server".into()))?
            .pop_if_empty()
            .extend(steps);
        Ok(url)
    }

    async fn json<T: DeserializeOwned>(
        &self,
        url: Url,
        what: &str,
        cancel: &Cancel,
    ) -> Result<(T, HeaderMap), HubError> {
        let answer = |reason: String| HubError::Answer { what: what.to_owned(), reason };
        let mut broken = String::new();
        for _ in 0..TRIES {
            let mut response = self.get(url.clone(), what, None, cancel).await?;
            let headers = response.headers().clone();
            let (mut text, start) = (Vec::new(), Instant::now());
            loop {
                stop_if(cancel)?;
                match response.chunk().await {
                    Ok(Some(piece)) => text.extend_from_slice(&piece),
                    Ok(None) => {
                        let value = serde_json::from_slice(&text).map_err(|e| answer(e.to_string()))?;
                        return Ok((value, headers));
                    }
                    Err(error) => {
                        broken = causes(&error);
                        break;
                    }
                }
                if text.len() > LARGEST_ANSWER {
                    return Err(answer(format!("it is longer than {} MB", LARGEST_ANSWER >> 20)));
                }
                if start.elapsed() > self.patience() {
                    return Err(answer("it does not come to an end".into()));
                }
            }
        }
        Err(self.unreachable(what, broken))
    }

    /// Asks until there is an answer that is none of "later".
    async fn get(
        &self,
        url: Url,
        what: &str,
        from: Option<u64>,
        cancel: &Cancel,
    ) -> Result<Response, HubError> {
        let mut wait = FIRST_WAIT;
        let mut left = TRIES;
        loop {
            left -= 1;
            match self.attempt(url.clone(), what, from).await {
                Ok(response) => return Ok(response),
                Err(Failed::ForGood(error)) => return Err(error),
                Err(Failed::ForNow(reason, _)) if left == 0 => return Err(self.unreachable(what, reason)),
                Err(Failed::ForNow(reason, Some(asked))) if asked > LONGEST_WAIT => {
                    let reason = format!("{reason}, and it asks to wait for {} s", asked.as_secs());
                    return Err(self.unreachable(what, reason));
                }
                Err(Failed::ForNow(_, asked)) => {
                    pause(asked.unwrap_or(wait), cancel).await?;
                    wait *= 2;
                }
            }
        }
    }

    async fn attempt(&self, url: Url, what: &str, from: Option<u64>) -> Result<Response, Failed> {
        let mut request = self.client.get(url);
        if let Some(token) = &self.settings.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        if let Some(from) = from {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_redirect() || error.is_builder() => {
                return Err(Failed::ForGood(HubError::Answer { what: what.into(), reason: causes(&error) }));
            }
            Err(error) => return Err(Failed::ForNow(causes(&error), None)),
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let header = |name: &str| response.headers().get(name)?.to_str().ok().map(clean);
        let reason = match header("x-error-message") {
            Some(message) => format!("{status}, {message}"),
            None => status.to_string(),
        };
        let (endpoint, with_token) = (self.settings.endpoint.clone(), self.settings.token.is_some());
        let what = what.to_owned();
        Err(match (status.as_u16(), header("x-error-code").as_deref()) {
            (408 | 425 | 429 | 500 | 502 | 503 | 504, _) => {
                let seconds = header(RETRY_AFTER.as_str()).and_then(|text| text.parse().ok());
                Failed::ForNow(reason, seconds.map(Duration::from_secs))
            }
            // The Hub answers 401 for what is not there, too, so as not to tell what is private.
            (404, _) | (401, Some("RepoNotFound")) => {
                Failed::ForGood(HubError::NotFound { what, endpoint, with_token })
            }
            (401 | 403, _) => Failed::ForGood(HubError::Refused { what, endpoint, reason, with_token }),
            _ => Failed::ForGood(HubError::Answer { what, reason }),
        })
    }

    /// How long an answer may bring next to nothing.
    pub fn patience(&self) -> Duration {
        self.settings.timeout * 6
    }

    pub fn unreachable(&self, what: &str, reason: String) -> HubError {
        HubError::Unreachable { what: what.into(), endpoint: self.settings.endpoint.clone(), reason }
    }
}

/// Text of a stranger, for one line of a message.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// The address of a listing's next page, which has to be on the same server: the token goes there.
fn next_page(headers: &HeaderMap, here: &Url) -> Result<Option<Url>, String> {
    let links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    let next = links.flat_map(|value| value.split(',')).find(|link| link.contains("rel=\"next\""));
    let Some(link) = next else { return Ok(None) };
    let address = link.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(address, _)| address);
    let url =
        here.join(address.unwrap_or_default()).map_err(|e| format!("the next page has no address: {e}"))?;
    if url.origin() != here.origin() {
        return Err(format!("the next page is on another server, {}", url.host_str().unwrap_or("unnamed")));
    }
    if url == *here {
        return Err("the next page is the page itself".into());
    }
    Ok(Some(url))
}

/// The error and what is behind it, without addresses: those of redirects may carry signatures.
pub(super) fn causes(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    let mut last: &dyn Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    let text = last.to_string();
    if text.contains("://") { "the connection failed".into() } else { clean(&text) }
}

/// Waits, in pieces short enough to be stopped.
pub(super) async fn pause(time: Duration, cancel: &Cancel) -> Result<(), HubError> {
    let end = Instant::now() + time;
    loop {
        stop_if(cancel)?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        tokio::time::sleep(left.min(Duration::from_millis(100))).await;
    }
}

/// The work, dropped wherever it waits once somebody asks to stop: a server may keep silent for long.
pub(super) async fn unless_stopped<T>(
    work: impl Future<Output = Result<T, HubError>>,
    cancel: &Cancel,
) -> Result<T, HubError> {
    let asked = async {
        while !cancel.is_set() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    match select(pin!(work), pin!(asked)).await {
        Either::Left((result, _)) => result,
        Either::Right(((), _)) => Err(HubError::Interrupted),
    }
}

pub(super) fn stop_if(cancel: &Cancel) -> Result<(), HubError> {
    if cancel.is_set() { Err(HubError::Interrupted) } else { Ok(()) }
}
