//! The right to make one result: a folder for each attempt, and what stands in it made the result.
//!
//! Does not know how a file becomes a blob.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use super::{
    Cache, CacheError, Entry, FileRef, Finished, Hit, Mode, OutputRef, UNFINISHED, at, remove_folder_at,
};
use crate::cancel::Cancel;
use crate::clock::timestamp;
use crate::files::{FolderId, RelPath, Tree, make_accessible, remove_tree, write_atomically};
use crate::fingerprint::{Digest, Key};
use crate::sealed;

/// The right to write one result. Dropped without [`Miss::commit`], it leaves nothing but unfinished work.
pub struct Miss {
    cache: Cache,
    key: Key,
    unfinished: PathBuf,
    lock: File,
}

/// One try at a result, in a folder that no other try had or will have: what was left behind by an earlier one and
/// still runs writes elsewhere.
pub struct Attempt {
    folder: PathBuf,
    out: PathBuf,
    identity: FolderId,
}

impl Attempt {
    /// The empty folder to write in.
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Whether the folder is still the one that was made: what stands in another is somebody else's.
    fn check(&self) -> Result<(), CacheError> {
        match FolderId::of(&self.out) {
            Ok(now) if now == self.identity => Ok(()),
            Ok(_) | Err(_) => Err(CacheError::Replaced(self.out.clone())),
        }
    }

    /// A folder for inputs of the attempt's own; made by whoever writes to it.
    pub fn inputs(&self) -> PathBuf {
        self.folder.join("in")
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        // What stays behind on an error here goes when the next takes this lock, or with gc.
        let _ = remove_tree(&self.folder);
    }
}

impl Miss {
    pub(super) fn new(cache: Cache, key: Key, lock: File) -> Result<Self, CacheError> {
        // A process that was killed may have left its half: nobody works on it, the lock is ours.
        for folder in cache.attempts_at(&key) {
            // What can't go is in nobody's way: attempts are numbered.
            let _ = remove_tree(&folder);
        }
        let unfinished = cache.root.join(UNFINISHED).join(key.to_string());
        Ok(Self { cache, key, unfinished, lock })
    }

    /// The lock on this result.
    pub fn lock(&self) -> &File {
        &self.lock
    }

    /// A folder for work that the next who wants this result may go on with; it need not exist.
    pub fn unfinished(&self) -> &Path {
        &self.unfinished
    }

    /// Lets go of what somebody else has left unfinished.
    ///
    /// # Errors
    /// The disk says no.
    pub fn forget_unfinished(&self) -> Result<(), CacheError> {
        remove_tree(&self.unfinished).map_err(at(&self.unfinished))
    }

    /// A folder for another try.
    ///
    /// # Errors
    /// The disk says no.
    pub fn attempt(&self) -> Result<Attempt, CacheError> {
        let folder = self.cache.work().join(format!("{}-{}", self.key, self.next_number()?));
        let out = folder.join("out");
        fs::create_dir_all(&out).map_err(at(&out))?;
        let identity = FolderId::of(&out).map_err(at(&out))?;
        Ok(Attempt { folder, out, identity })
    }

    /// A number that no attempt at this result had, kept in the lock. Not a random one: a program that writes down
    /// where it runs writes the same in every new cache.
    fn next_number(&self) -> Result<u64, CacheError> {
        let path = self.cache.root.join("locks").join(self.key.to_string());
        let mut lock = &self.lock;
        let mut text = String::new();
        let mut number = || -> std::io::Result<u64> {
            lock.rewind()?;
            lock.read_to_string(&mut text)?;
            let last = match text.trim() {
                "" => 0,
                text => text.parse().unwrap_or_else(|_| {
                    // Not what was written here: far from any number that was counted.
                    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX / 2)
                }),
            };
            let next = last.saturating_add(1);
            lock.rewind()?;
            // Over the last one, of one length: a kill or a full disk never leaves an earlier number.
            lock.write_all(format!("{next:020}\n").as_bytes())?;
            Ok(next)
        };
        number().map_err(at(&path))
    }

    /// Makes what stands in the folder of an attempt the result of this key.
    ///
    /// # Errors
    /// A declared output is not there, something is neither file nor folder, or the disk says no.
    pub fn commit(
        self,
        attempt: Attempt,
        finished: Finished<'_>,
        cancel: &Cancel,
    ) -> Result<Hit, CacheError> {
        attempt.check()?;
        let held = self.cache.hold(cancel)?;
        make_accessible(&attempt.out).map_err(at(&attempt.out))?;
        let tree = Tree::of(&attempt.out).map_err(at(&attempt.out))?;
        for output in &finished.outputs {
            for path in &output.paths {
                // What is there is in the tree: a path that leads elsewhere, whatever it looks like, is not.
                let is_part = |part: &RelPath| part.is_within(&plain(path));
                let is_root = plain(path).as_os_str().is_empty();
                if !is_root && !tree.files.iter().chain(&tree.empty_folders).any(is_part) {
                    return Err(CacheError::NotWritten { output: output.name.clone(), path: path.clone() });
                }
            }
        }
        let mut files = Vec::with_capacity(tree.files.len());
        for path in tree.files {
            cancel.check()?;
            files.push(self.cache.take(&attempt.out, path, cancel)?);
        }
        let outputs = finished
            .outputs
            .into_iter()
            .map(|o| {
                let digest = output_digest(&files, &tree.empty_folders, &o.paths);
                (o.name, OutputRef { kind: o.kind, paths: o.paths, digest })
            })
            .collect();
        let entry = Entry {
            key: self.key,
            kind: finished.kind.to_string(),
            pipe: env!("CARGO_PKG_VERSION").to_string(),
            created: timestamp(),
            seconds: finished.seconds,
            files,
            empty_folders: tree.empty_folders,
            outputs,
            metrics: finished.metrics,
            warnings: finished.warnings,
            fingerprint: finished.fingerprint,
        };
        let path = self.cache.entry(&self.key);
        let bytes = sealed::to_bytes(&entry).map_err(|e| at(&path)(e.into()))?;
        remove_folder_at(&path)?;
        write_atomically(&path, &bytes).map_err(at(&path))?;
        self.forget_unfinished()?;
        Ok(Hit { entry, cache: self.cache.clone(), _use: held })
    }
}

impl Cache {
    /// Where attempts are, in folders `KEY-NUMBER`.
    pub(super) fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// The folders of attempts at one result.
    fn attempts_at(&self, key: &Key) -> Vec<PathBuf> {
        let begins = format!("{key}-");
        let read = fs::read_dir(self.work()).into_iter().flatten().flatten();
        let of_key = read.filter(|item| item.file_name().as_encoded_bytes().starts_with(begins.as_bytes()));
        of_key.map(|item| item.path()).collect()
    }
}

/// A declared path without `.` and doubled slashes; empty for the stage's folder itself.
pub(super) fn plain(path: &str) -> PathBuf {
    Path::new(path).components().filter(|part| *part != Component::CurDir).collect()
}

/// Whether a path of a result belongs to an output that is made of `paths`.
pub(super) fn belongs(path: &RelPath, paths: &[String]) -> bool {
    paths.iter().any(|p| path.is_within(&plain(p)))
}

/// Over the files and empty folders that one of `paths` is or holds.
fn output_digest(files: &[FileRef], empty_folders: &[RelPath], paths: &[String]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for file in files.iter().filter(|file| belongs(&file.path, paths)) {
        hasher.update(&[match file.mode {
            Mode::Plain => 0,
            Mode::Executable => 1,
        }]);
        hasher.update(&(file.path.as_bytes().len() as u64).to_le_bytes());
        hasher.update(file.path.as_bytes());
        hasher.update(file.digest.to_string().as_bytes());
    }
    for folder in empty_folders.iter().filter(|folder| belongs(folder, paths)) {
        hasher.update(&[2]);
        hasher.update(&(folder.as_bytes().len() as u64).to_le_bytes());
        hasher.update(folder.as_bytes());
    }
    hasher.finalize().into()
}
