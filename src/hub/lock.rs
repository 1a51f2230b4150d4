//! The lock beside a manifest: what the names on the Hub stood for when the pipeline was made, file by file, so
//! that a clone of it takes the same bytes.
//!
//! Knows its file; does not ask the Hub anything, nor decide when an entry moves.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::api::Repo;
use super::error::HubError;
use super::repo::{Commit, FileDigest, RemoteFile, RepoKind, RepoName, is_safe_path};
use crate::secrets::Secrets;

const ABOUT: &str = "\
# What this pipeline takes from the Hugging Face Hub, to the byte. Written by `pipe run`, moved on by
# `pipe run --update`, held to by `pipe run --locked`. Keep it under version control.
";

/// Raised when older programs could not read the file.
const VERSION: u32 = 1;

/// One repository at one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    kind: RepoKind,
    name: RepoName,
    /// As the manifest has it.
    revision: String,
    /// Where the files come from, if it is not that revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    branch: Option<String>,
    commit: Commit,
    /// The files by what they are for.
    uses: BTreeMap<String, Vec<String>>,
    files: BTreeMap<String, Content>,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    size: u64,
    #[serde(flatten)]
    digest: FileDigest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u32,
    repositories: Vec<Entry>,
}

/// What a use of a repository was pinned to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The repository.
    pub repo: Repo,
    /// Where the files come from, if it is not the revision that was asked for.
    pub branch: Option<String>,
    /// Of that branch.
    pub commit: Commit,
    /// The files that the use needs, by path.
    pub files: Vec<RemoteFile>,
}

impl Pin {
    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// What goes into a key: the files and their content, not the commit, which may change beside them.
    pub fn identity(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for file in &self.files {
            for text in [file.path.as_str(), file.digest.hex()] {
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// A lock that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The disk says no.
    #[error("{path}: {source}")]
    Io {
        /// The lock.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is no lock, or one that was damaged.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// The lock.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
}

/// The entries of a lock.
#[derive(Clone, Debug, Default)]
pub struct Lock {
    entries: Vec<Entry>,
    changed: bool,
}

/// Where the lock of a manifest lies: beside it, under its name.
pub fn beside(manifest: &Path) -> PathBuf {
    manifest.with_extension("lock")
}

impl Lock {
    /// Reads the file; none is an empty lock.
    pub fn read(path: &Path) -> Result<Self, LockError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(LockError::Io { path: path.into(), source }),
        };
        let damaged = |reason: String| LockError::Damaged { path: path.into(), reason };
        let text: Text = serde_saphyr::from_str(&text).map_err(|error| {
            let place = error.location().map(|at| format!("line {}: ", at.line())).unwrap_or_default();
            let reason = error.without_snippet().to_string();
            damaged(format!("{place}{}", reason.lines().next().unwrap_or_default()))
        })?;
        if text.version != VERSION {
            return Err(damaged(format!("version {} is none that this pipe reads", text.version)));
        }
        let paths = text.repositories.iter().flat_map(|entry| entry.files.keys());
        if let Some(path) = paths.into_iter().find(|path| !is_safe_path(path)) {
            return Err(damaged(format!("a file is called {path:?}")));
        }
        Ok(Self { entries: text.repositories, changed: false })
    }

    /// Writes the file if something is new; a name with a secret in it is not written.
    pub fn save(&mut self, path: &Path, secrets: &Secrets) -> io::Result<()> {
        if self.changed {
            let shown = |e: &&Entry| !secrets.are_in(&e.name.to_string()) && !secrets.are_in(&e.revision);
            let written =
                Self { entries: self.entries.iter().filter(shown).cloned().collect(), changed: true };
            crate::files::write_atomically(path, written.text()?.as_bytes())
                .map_err(crate::files::named(path))?;
            self.changed = false;
        }
        Ok(())
    }

    /// The file's text.
    pub fn text(&self) -> io::Result<String> {
        let text = Text { version: VERSION, repositories: self.entries.clone() };
        Ok(format!("{ABOUT}{}", serde_saphyr::to_string(&text).map_err(io::Error::other)?))
    }

    fn entry(&self, repo: &Repo, revision: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.kind == repo.kind && e.name == repo.name && e.revision == revision)
    }

    /// The commit of a repository at a revision, and the branch it is of, where some use has pinned it.
    pub fn commit(&self, repo: &Repo, revision: &str) -> Option<(&Commit, Option<&str>)> {
        self.entry(repo, revision).map(|entry| (&entry.commit, entry.branch.as_deref()))
    }

    /// What a use of a repository is pinned to.
    pub fn pin(&self, repo: &Repo, revision: &str, usage: &str) -> Option<Pin> {
        let entry = self.entry(repo, revision)?;
        let file = |path: &String| {
            let Content { size, digest } = entry.files.get(path)?.clone();
            Some(RemoteFile { path: path.clone(), size, digest })
        };
        let files = entry.uses.get(usage)?.iter().map(file).collect::<Option<Vec<_>>>()?;
        Some(Pin { repo: repo.clone(), branch: entry.branch.clone(), commit: entry.commit.clone(), files })
    }

    /// Pins a use. Another commit than before drops the other uses of the old one.
    pub fn set(&mut self, revision: &str, usage: &str, pin: &Pin) {
        let of = |e: &Entry| e.kind == pin.repo.kind && e.name == pin.repo.name && e.revision == revision;
        let old = self.entries.iter().position(of).map(|at| self.entries.remove(at));
        let kept = old.clone().filter(|entry| entry.commit == pin.commit);
        let mut entry = kept.unwrap_or_else(|| Entry {
            kind: pin.repo.kind,
            name: pin.repo.name.clone(),
            revision: revision.into(),
            branch: pin.branch.clone(),
            commit: pin.commit.clone(),
            uses: BTreeMap::new(),
            files: BTreeMap::new(),
        });
        entry.uses.insert(usage.into(), pin.files.iter().map(|file| file.path.clone()).collect());
        for file in &pin.files {
            let content = Content { size: file.size, digest: file.digest.clone() };
            entry.files.insert(file.path.clone(), content);
        }
        let used: Vec<&String> = entry.uses.values().flatten().collect();
        entry.files.retain(|path, _| used.contains(&path));
        self.changed |= old.as_ref() != Some(&entry);
        let place = |e: &Entry| (e.kind, e.name.clone(), e.revision.clone());
        let at = self.entries.partition_point(|other| place(other) < place(&entry));
        self.entries.insert(at, entry);
    }
}

impl From<LockError> for HubError {
    fn from(error: LockError) -> Self {
        Self::Lock(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo(kind: RepoKind, name: &str) -> Repo {
        Repo { kind, name: name.parse().unwrap() }
    }

    fn pin(name: &str, commit: char, files: &[&str]) -> Pin {
        let file = |path: &&str| RemoteFile {
            path: path.to_string(),
            size: path.len() as u64,
            digest: FileDigest::Sha1("a".repeat(40)),
        };
        Pin {
            repo: repo(RepoKind::Model, name),
            branch: None,
            commit: commit.to_string().repeat(40).parse().unwrap(),
            files: files.iter().map(file).collect(),
        }
    }

    #[test]
    fn what_is_pinned_is_read_back_and_nothing_new_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = beside(&dir.path().join("tweets.yaml"));
        assert!(path.ends_with("tweets.lock"));
        let mut lock = Lock::read(&path).unwrap();
        lock.save(&path, &Secrets::default()).unwrap();
        assert!(!path.exists());
        let mut raft = pin("ought/raft", '2', &["null/train-0.parquet"]);
        raft.repo.kind = RepoKind::Dataset;
        raft.branch = Some("refs/convert/parquet".into());
        raft.files[0].digest = FileDigest::Sha256("b".repeat(64));
        lock.set("main", "twitter_complaints", &raft);
        lock.set("main", "tokenizer", &pin("a/bloom", '1', &["tokenizer.json"]));
        lock.set("main", "model", &pin("a/bloom", '1', &["config.json", "model.safetensors"]));
        lock.save(&path, &Secrets::default()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            format!(
                "{ABOUT}{}",
                "\
version: 1
repositories:
- kind: model
  name: a/bloom
  revision: main
  commit: \"1111111111111111111111111111111111111111\"
  uses:
    model:
    - config.json
    - model.safetensors
    tokenizer:
    - tokenizer.json
  files:
    config.json:
      size: 11
      sha1: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
    model.safetensors:
      size: 17
      sha1: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
    tokenizer.json:
      size: 14
      sha1: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
- kind: dataset
  name: ought/raft
  revision: main
  branch: refs/convert/parquet
  commit: \"2222222222222222222222222222222222222222\"
  uses:
    twitter_complaints:
    - null/train-0.parquet
  files:
    null/train-0.parquet:
      size: 20
      sha256: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
"
            )
        );
        let mut again = Lock::read(&path).unwrap();
        assert_eq!(again.pin(&raft.repo, "main", "twitter_complaints"), Some(raft));
        let tokenizer = pin("a/bloom", '1', &["tokenizer.json"]);
        assert_eq!(again.pin(&tokenizer.repo, "main", "tokenizer"), Some(tokenizer.clone()));
        assert_eq!(again.pin(&tokenizer.repo, "v2", "tokenizer"), None);
        again.set("main", "tokenizer", &tokenizer);
        assert!(!again.changed);
    }

    #[test]
    fn another_commit_takes_the_other_uses_along() {
        let mut lock = Lock::default();
        lock.set("main", "model", &pin("a/b", '1', &["config.json"]));
        lock.set("main", "tokenizer", &pin("a/b", '2', &["tokenizer.json"]));
        assert_eq!(lock.pin(&repo(RepoKind::Model, "a/b"), "main", "model"), None);
        assert_eq!(lock.entries.len(), 1);
    }

    #[test]
    fn a_damaged_lock_says_where() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        for (text, expected) in [
            ("version: 1\nrepositories:\n<<<<<<< HEAD\n", "is damaged: line "),
            ("version: 9\nrepositories: []\n", "is damaged: version 9 is none that this pipe reads"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Lock::read(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
