//! The folder that files of the Hub are kept in, laid out as Python's `huggingface_hub` does, so that either finds
//! what the other downloaded: `blobs/DIGEST`, `snapshots/COMMIT/PATH` linking to them, `refs/BRANCH`.
//!
//! Does not ask the Hub anything.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use super::api::Repo;
use super::error::HubError;
use super::repo::{Commit, FileDigest, RemoteFile};
use crate::cancel::{Cancel, Interrupted};
use crate::files;

/// The files of one repository.
pub(super) struct Folder {
    root: PathBuf,
    locks: PathBuf,
}

impl Folder {
    pub fn of(cache: &Path, repo: &Repo) -> Self {
        let name = format!("{}--{}--{}", repo.kind.plural(), repo.name.owner(), repo.name.name());
        Self { locks: cache.join(".locks").join(&name), root: cache.join(name) }
    }

    /// Where the content with this digest is, or will be.
    pub fn blob(&self, digest: &FileDigest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    /// The content with this digest as far as it has come.
    pub fn incomplete(&self, digest: &FileDigest) -> PathBuf {
        self.root.join("blobs").join(format!("{}.incomplete", digest.hex()))
    }

    /// What is locked while that content comes.
    pub fn lock(&self, digest: &FileDigest) -> PathBuf {
        self.locks.join(format!("{}.lock", digest.hex()))
    }

    /// The files of a commit.
    pub fn snapshot(&self, commit: &Commit) -> PathBuf {
        self.root.join("snapshots").join(commit.as_str())
    }

    /// The commit that a branch or tag stood for when it was last asked about.
    pub fn reference(&self, revision: &str) -> Option<Commit> {
        let text = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        text.trim().parse().ok()
    }

    /// Remembers what a branch or tag stands for.
    pub fn set_reference(&self, revision: &str, commit: &Commit) -> Result<(), HubError> {
        let path = self.root.join("refs").join(revision);
        crate::files::write_atomically(&path, commit.as_str().as_bytes()).map_err(at(&path))
    }

    /// Whether a file of this name and size is here.
    pub fn has(&self, commit: &Commit, file: &RemoteFile) -> bool {
        fs::metadata(self.snapshot(commit).join(&file.path)).is_ok_and(|m| m.len() == file.size)
    }

    /// Removes a file whose content is not what its name says, so that it comes anew.
    pub fn let_go(&self, path: &Path) -> Result<(), HubError> {
        let blob = path.canonicalize().map_err(at(path))?;
        fs::remove_file(&blob).map_err(at(&blob))
    }

    /// The files of a commit that are here, by what their links say of them.
    pub fn listing(&self, commit: &Commit) -> Vec<RemoteFile> {
        let snapshot = self.snapshot(commit);
        let file = |path: &PathBuf| {
            let link = fs::read_link(path).ok()?;
            let digest = FileDigest::from_hex(link.file_name()?.to_str()?)?;
            let size = fs::metadata(path).ok()?.len();
            Some(RemoteFile { path: crate::files::RelPath::of(path, &snapshot).to_string(), size, digest })
        };
        let mut files: Vec<RemoteFile> = crate::files::walk(&snapshot).iter().filter_map(file).collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }

    /// Shows the content of a file in a commit.
    pub fn link(&self, commit: &Commit, file: &RemoteFile) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(&file.path);
        let folder = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder).map_err(at(folder))?;
        let up = "../".repeat(2 + file.path.matches('/').count());
        let target = format!("{up}blobs/{}", file.digest.hex());
        // Beside it first: whoever looks meanwhile finds the old link or the new one.
        let new = folder.join(format!(".{}.{}", file.digest.hex(), std::process::id()));
        let _ = fs::remove_file(&new);
        std::os::unix::fs::symlink(target, &new).map_err(at(&new))?;
        fs::rename(&new, &path).map_err(at(&path))
    }
}

/// A disk's refusal, with its place.
pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> HubError {
    let path = path.to_path_buf();
    move |source| match Interrupted::is(&source) {
        true => HubError::Interrupted,
        false => HubError::Disk { path, source },
    }
}

/// The digest of a file on this machine, of the kind that the Hub has of it.
pub(super) fn digest(path: &Path, file: &RemoteFile, cancel: &Cancel) -> io::Result<FileDigest> {
    let mut hasher = Hasher::like(&file.digest, file.size);
    let mut content = files::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        cancel.check()?;
        match content.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Computes the digest of content that comes in pieces.
pub(super) enum Hasher {
    Sha1(Sha1),
    Sha256(Sha256),
}

impl Hasher {
    /// Of the kind of `digest`, for content of `size` bytes.
    pub fn like(digest: &FileDigest, size: u64) -> Self {
        match digest {
            FileDigest::Sha1(_) => Self::Sha1(Sha1::new_with_prefix(format!("blob {size}\0"))),
            FileDigest::Sha256(_) => Self::Sha256(Sha256::new()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha1(hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
        }
    }

    /// Takes in what a file holds already; its length.
    pub fn update_from(&mut self, file: &mut File, cancel: &Cancel) -> io::Result<u64> {
        let (mut buffer, mut length) = (vec![0; 1 << 20], 0);
        loop {
            cancel.check()?;
            let n = file.read(&mut buffer)?;
            if n == 0 {
                return Ok(length);
            }
            self.update(&buffer[..n]);
            length += n as u64;
        }
    }

    pub fn finish(self) -> FileDigest {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        match self {
            Self::Sha1(hasher) => FileDigest::Sha1(hex(&hasher.finalize())),
            Self::Sha256(hasher) => FileDigest::Sha256(hex(&hasher.finalize())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::RepoKind;

    fn folder(cache: &Path) -> Folder {
        let repo = Repo { kind: RepoKind::Dataset, name: "ought/raft".parse().unwrap() };
        Folder::of(cache, &repo)
    }

    fn file(path: &str, content: &[u8]) -> RemoteFile {
        let size = content.len() as u64;
        let mut hasher = Hasher::like(&FileDigest::Sha1(String::new()), size);
        hasher.update(content);
        RemoteFile { path: path.into(), size, digest: hasher.finish() }
    }

    #[test]
    fn the_digest_of_a_small_file_is_gits() {
        // printf 'hello\n' | git hash-object --stdin
        assert_eq!(file("a", b"hello\n").digest.hex(), "ce013625030ba8dba906f756967f9e9ca394464a");
    }

    #[test]
    fn a_linked_file_is_found_with_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        let commit: Commit = "0123456789012345678901234567890123456789".parse().unwrap();
        let file = file("data/train.csv", b"x\n1\n");
        assert!(!folder.has(&commit, &file));
        let blob = dir.path().join("datasets--ought--raft/blobs").join(file.digest.hex());
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, b"x\n1\n").unwrap();
        folder.link(&commit, &file).unwrap();
        folder.link(&commit, &file).unwrap();
        assert!(folder.has(&commit, &file));
        assert_eq!(folder.listing(&commit), [file]);
        folder.set_reference("refs/convert/parquet", &commit).unwrap();
        assert_eq!(folder.reference("refs/convert/parquet"), Some(commit));
        assert_eq!(folder.reference("main"), None);
    }
}
