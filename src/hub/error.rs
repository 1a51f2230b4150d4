//! What can go wrong between this machine and the Hub, each with what to do.
//!
//! No text in here ever holds a token.

use super::repo::RepoName;

/// Why the Hub could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither `owner/name` nor a name the Hub allows.
    #[error("`{0}` is no name of a repository: it is `owner/name` in letters, digits, `-`, `_` and `.`")]
    Name(String),
    /// The repository, the revision or the file is not there, or hidden from this token.
    #[error("{what} is not on {endpoint}")]
    NotFound {
        /// `model owner/name`, `revision x of …`, `file f of …`
        what: String,
        /// Whom we asked.
        endpoint: String,
        /// Whether a token went along; without one, what is private looks as if it were not there.
        with_token: bool,
    },
    /// 401 or 403.
    #[error("{endpoint} refuses {what}: {reason}")]
    Refused {
        /// What was asked for.
        what: String,
        /// Whom we asked.
        endpoint: String,
        /// The status and what the Hub says of it.
        reason: String,
        /// Whether a token went along.
        with_token: bool,
    },
    /// No answer, or one that broke off, after all tries.
    #[error("{endpoint} can't be reached for {what}: {reason}")]
    Unreachable {
        /// What was asked for.
        what: String,
        /// Whom we asked.
        endpoint: String,
        /// What the connection says.
        reason: String,
    },
    /// An answer that makes no sense or breaks a limit.
    #[error("{what}: the Hub's answer can't be used: {reason}")]
    Answer {
        /// What was asked for.
        what: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The content is not what its digest says.
    #[error("{file} of {repo} came with other content than its digest says (got {got}, expected {expected})")]
    Digest {
        /// The repository.
        repo: RepoName,
        /// The file.
        file: String,
        /// Of what came.
        got: String,
        /// Of what the Hub says it is.
        expected: String,
    },
    /// A file that came earlier is not what it was, and nothing may be asked.
    #[error("{} of {repo} has other content than its digest says, and pipe is offline", path.display())]
    Damaged {
        /// Where it is.
        path: std::path::PathBuf,
        /// The repository.
        repo: RepoName,
    },
    /// `--offline`, and something is not here.
    #[error("{what} is not on this machine, and pipe is offline")]
    Offline {
        /// What is missing.
        what: String,
    },
    /// The repository has nothing that can be used.
    #[error("{repo}: {reason}")]
    Unusable {
        /// The repository.
        repo: RepoName,
        /// What it lacks.
        reason: String,
        /// What to do.
        help: String,
    },
    /// `--locked`, and the lock has no such entry.
    #[error("{what} is not in {lock}, and pipe is to hold to the lock")]
    NotLocked {
        /// What is asked for.
        what: String,
        /// The lock.
        lock: std::path::PathBuf,
    },
    /// The lock can't be read.
    #[error(transparent)]
    Lock(super::lock::LockError),
    /// The disk has no room for what would come.
    #[error("{needed} would come, and {path} has room for {free}")]
    Room {
        /// The cache.
        path: std::path::PathBuf,
        /// What would come.
        needed: String,
        /// What is free.
        free: String,
    },
    /// The disk says no.
    #[error("{path}: {source}")]
    Disk {
        /// Where.
        path: std::path::PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Nothing goes up without a token.
    #[error("pushing to {repo} takes a token, and there is none")]
    NoToken {
        /// Where to.
        repo: RepoName,
    },
    /// `--offline`, and something is to go up.
    #[error("nothing can be pushed to {repo}: pipe is offline")]
    OfflinePush {
        /// Where to.
        repo: RepoName,
    },
    /// No answer to a push, or one that broke off, after all tries.
    #[error("{endpoint} can't be reached for {what}: {reason}")]
    Unsent {
        /// What was to be done.
        what: String,
        /// Whom we asked.
        endpoint: String,
        /// What the connection says.
        reason: String,
    },
    /// What is to be private would be seen by all.
    #[error("{repo} is there already and public; what is pushed is to be private")]
    Public {
        /// Where to.
        repo: RepoName,
    },
    /// Somebody else's commit came in between.
    #[error(
        "{branch} of {repo} moved on while this was being pushed (it was at {was}); nothing was committed"
    )]
    Moved {
        /// Where to.
        repo: RepoName,
        /// The branch.
        branch: String,
        /// Its head before: a short commit, or that there was none.
        was: String,
    },
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// Whether the disk, or what this user may take of it, is used up.
fn is_full(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(kind, StorageFull | QuotaExceeded | FileTooLarge)
}

impl HubError {
    /// What to do about it, where that is known.
    pub fn help(&self) -> Option<String> {
        let token = "set HF_TOKEN, or write the token to the file `token` in HF_HOME";
        match self {
            Self::Name(_) | Self::Interrupted => None,
            Self::NotFound { with_token: false, .. } => {
                Some(format!("check the name and the revision; if the repository is private, {token}"))
            }
            Self::NotFound { .. } => {
                Some("check the name and the revision, and that the token may read the repository".into())
            }
            Self::Refused { with_token: false, .. } => Some(format!("the repository may be private or gated: {token}")),
            Self::Refused { .. } => {
                Some("check that the token is valid and has the right to do this (huggingface.co/settings/tokens)".into())
            }
            Self::Unreachable { .. } => Some(
                "check the network and HF_ENDPOINT and run again: what has come so far is kept and gone on with".into(),
            ),
            Self::Answer { .. } => Some("check that HF_ENDPOINT is a Hugging Face Hub".into()),
            Self::Digest { .. } => Some("what came was thrown away; run again".into()),
            Self::Offline { .. } => Some(
                "run once without --offline (and without HF_HUB_OFFLINE) where there is a network; the files stay in the cache".into(),
            ),
            Self::Damaged { .. } => {
                Some("run once without --offline (and without HF_HUB_OFFLINE): it comes anew".into())
            }
            Self::Unusable { help, .. } => Some(help.clone()),
            Self::NotLocked { .. } => Some("run once without --locked and keep the lock under version control".into()),
            Self::Lock(_) => Some("restore it from version control, or delete it and run again".into()),
            Self::Room { .. } => Some("make room, or move the cache with HF_HUB_CACHE".into()),
            Self::Disk { source, .. } if is_full(source.kind()) => Some(
                "make room, or move the cache with HF_HUB_CACHE, and run again: what has come so far is kept".into(),
            ),
            Self::Disk { .. } => None,
            Self::NoToken { .. } => Some(format!("make one that may write (huggingface.co/settings/tokens) and {token}")),
            Self::OfflinePush { .. } => Some(
                "run without --offline (and without HF_HUB_OFFLINE), or with `dry_run: true` to see what would go".into(),
            ),
            Self::Unsent { .. } => Some(
                "check the network and HF_ENDPOINT and run again: a push is one commit, there whole or not at all, and one that is there is not made twice".into(),
            ),
            Self::Public { repo } => Some(format!(
                "make {repo} private in its settings on the Hub, push under another name, or take `private: true` away"
            )),
            Self::Moved { .. } => Some("run again: it will be held against what is there by then".into()),
        }
    }
}
