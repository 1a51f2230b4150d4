//! Repositories on the Hub: their kinds and names, the commits and files in them.
//!
//! Does not ask the Hub anything; refuses names and paths that no honest Hub gives.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::HubError;

/// The branch that every repository begins with, and that counts where none is named.
pub const MAIN: &str = "main";

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RepoKind {
    /// A model or an adapter.
    Model,
    /// A dataset.
    Dataset,
}

impl RepoKind {
    /// `models`, `datasets`: the word in the Hub's API and in the cache's folder names.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// What stands before the name in a repository's address.
    pub fn address(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
        }
    }
}

impl fmt::Display for RepoKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
        })
    }
}

/// `owner/name`, in the characters the Hub allows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RepoName(String);

impl RepoName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands before the slash.
    pub fn owner(&self) -> &str {
        self.0.split_once('/').map_or("", |(owner, _)| owner)
    }

    /// What stands behind the slash.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(self.0.as_str(), |(_, name)| name)
    }
}

impl FromStr for RepoName {
    type Err = HubError;
    fn from_str(text: &str) -> Result<Self, HubError> {
        let word = |s: &str| {
            !s.is_empty()
                && s.len() <= 96
                && !s.starts_with(['.', '-'])
                && !s.ends_with(['.', '-'])
                && !s.contains("..")
                && !s.contains("--")
                && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        match text.split_once('/') {
            Some((owner, name)) if word(owner) && word(name) => Ok(Self(text.into())),
            _ => Err(HubError::Name(text.into())),
        }
    }
}

impl<'de> Deserialize<'de> for RepoName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A commit: 40 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Commit(String);

impl Commit {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first digits, for messages.
    pub fn short(&self) -> &str {
        &self.0[..8]
    }
}

/// Text that is no commit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no commit: 40 hexadecimal digits")]
pub struct NoCommit(String);

impl FromStr for Commit {
    type Err = NoCommit;
    fn from_str(text: &str) -> Result<Self, NoCommit> {
        if is_hex(text, 40) { Ok(Self(text.into())) } else { Err(NoCommit(text.into())) }
    }
}

impl<'de> Deserialize<'de> for Commit {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// By what the Hub names a file's content: it is the ETag of the file, and its name in the cache.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileDigest {
    /// SHA-1 of git's blob (`blob LENGTH\0` and the content): small files.
    Sha1(String),
    /// SHA-256 of the content: files kept outside of git (LFS, xet).
    Sha256(String),
}

impl FileDigest {
    /// From the digits alone, by their number.
    pub fn from_hex(digits: &str) -> Option<Self> {
        let digits = digits.to_ascii_lowercase();
        match digits.len() {
            40 if is_hex(&digits, 40) => Some(Self::Sha1(digits)),
            64 if is_hex(&digits, 64) => Some(Self::Sha256(digits)),
            _ => None,
        }
    }

    /// The digits.
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha1(digits) | Self::Sha256(digits) => digits,
        }
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A file of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteFile {
    /// Where it is in the repository, with `/`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Of its content.
    pub digest: FileDigest,
}

/// Whether a path in a repository stays inside the folder it is put into, on any system.
pub fn is_safe_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 1024
        && !path.contains(['\\', '\0', ':'])
        && !path.chars().any(char::is_control)
        && path.split('/').all(|part| !matches!(part, "" | "." | ".." | ".git") && part.len() <= 255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_an_owner_and_a_name() {
        let name: RepoName = "bigscience/bloomz-560m".parse().unwrap();
        assert_eq!((name.owner(), name.name()), ("bigscience", "bloomz-560m"));
        for wrong in ["bloomz", "a/b/c", "../etc", "a/..", "a/b--c", "a/ b", "/b", "a/", "a/-b"] {
            let error = wrong.parse::<RepoName>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "`{wrong}` is no name of a repository: it is `owner/name` in letters, digits, `-`, `_` and `.`"
                )
            );
        }
    }

    #[test]
    fn a_path_stays_in_its_folder() {
        for good in ["config.json", "a/b.parquet", ".gitattributes", "données/été 1.csv", "a..b"] {
            assert!(is_safe_path(good), "{good}");
        }
        for bad in
            ["", "/etc/passwd", "../a", "a/../b", "a//b", "a/./b", "C:\\a", "a\\b", "a\0b", "a\nb", ".git/x"]
        {
            assert!(!is_safe_path(bad), "{bad:?}");
        }
    }

    #[test]
    fn digests_are_told_by_their_length() {
        assert_eq!(FileDigest::from_hex(&"a".repeat(40)), Some(FileDigest::Sha1("a".repeat(40))));
        assert_eq!(FileDigest::from_hex(&"B".repeat(64)), Some(FileDigest::Sha256("b".repeat(64))));
        assert_eq!(FileDigest::from_hex("../../x"), None);
    }
}
