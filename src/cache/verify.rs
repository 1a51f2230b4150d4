//! Every byte of the cache read again; what is damaged is taken out, with all that was made from it.
//!
//! Knows blobs, entries and sealed folders of unfinished work; does not know runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::{Cache, CacheError, Entry, FileRef, Mode, UNFINISHED, at};
use crate::cancel::Cancel;
use crate::files::{self, RelPath, remove_tree, walk};
use crate::fingerprint::{Digest, Key};
use crate::sealed;

/// Something in the cache that is not what was written, or was made from that. It is taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A file of a result.
    File {
        /// The result.
        key: Key,
        /// The stage kind that made it.
        kind: String,
        /// The file.
        path: RelPath,
    },
    /// A blob that no result names.
    Blob(PathBuf),
    /// An entry.
    Entry {
        /// Its file.
        path: PathBuf,
        /// What is the matter with it.
        wrong: String,
    },
    /// A result that was made from a damaged one.
    MadeFrom {
        /// The result.
        key: Key,
        /// The stage kind that made it.
        kind: String,
        /// The damaged one.
        from: Key,
    },
    /// Work that a kill interrupted.
    Unfinished {
        /// Its folder.
        path: PathBuf,
        /// What is the matter with it.
        wrong: String,
    },
}

/// What a look at every file found, before anything is taken out.
#[derive(Default)]
struct Found {
    damages: Vec<Damage>,
    files: BTreeSet<PathBuf>,
    folders: BTreeSet<PathBuf>,
}

impl Cache {
    /// Reads every blob, every entry and all sealed unfinished work again, and takes out what is damaged.
    ///
    /// # Errors
    /// The disk says no, or somebody asks to stop: nothing was taken out then.
    pub fn verify(&self, cancel: &Cancel) -> Result<Vec<Damage>, CacheError> {
        let (entries, mut found) = self.read_entries(cancel)?;
        let blobs = self.damaged_blobs(cancel)?;
        let mut named = BTreeSet::new();
        let mut wrong: BTreeMap<Key, &Entry> = BTreeMap::new();
        for entry in &entries {
            for file in &entry.files {
                let blob = self.blob(file);
                if blobs.contains(&blob) || !self.is_there(file) {
                    let Entry { key, kind, .. } = entry;
                    let (key, kind) = (*key, kind.clone());
                    found.damages.push(Damage::File { key, kind, path: file.path.clone() });
                    wrong.insert(key, entry);
                }
                named.insert(blob);
            }
        }
        for blob in blobs.iter().filter(|blob| !named.contains(*blob)) {
            found.damages.push(Damage::Blob(blob.clone()));
        }
        found.files.extend(blobs);
        made_from(&entries, &mut wrong, &mut found.damages);
        found.files.extend(wrong.keys().map(|key| self.entry(key)));
        self.read_unfinished(&mut found, cancel)?;
        self.take_all_out(&found, cancel)?;
        Ok(found.damages)
    }

    /// All entries that are as they were written, and those that are not.
    fn read_entries(&self, cancel: &Cancel) -> Result<(Vec<Entry>, Found), CacheError> {
        let (mut entries, mut found) = (Vec::new(), Found::default());
        for path in walk(&self.root.join("entries")) {
            cancel.check()?;
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let read = fs::read(&path).map_err(|e| e.to_string());
            let read = read.and_then(|bytes| sealed::from_bytes::<Entry>(&bytes).map_err(|e| e.to_string()));
            let wrong = match read {
                Ok(entry) if self.entry(&entry.key) == path => {
                    entries.push(entry);
                    continue;
                }
                Ok(entry) => format!("it is the entry of {}", entry.key.short()),
                Err(wrong) => wrong,
            };
            found.files.insert(path.clone());
            found.damages.push(Damage::Entry { path, wrong });
        }
        entries.sort_by_key(|entry| entry.key);
        Ok((entries, found))
    }

    /// The blobs whose content is not what their names say.
    fn damaged_blobs(&self, cancel: &Cancel) -> Result<BTreeSet<PathBuf>, CacheError> {
        let mut damaged = BTreeSet::new();
        for path in walk(&self.root.join("blobs")) {
            let Some((digest, mode)) = name_of(&path) else { continue };
            let is_file = fs::symlink_metadata(&path).is_ok_and(|m| m.is_file() && Mode::of(&m) == mode);
            if !is_file || !files::digest(&path, cancel).is_ok_and(|found| found == digest) {
                cancel.check()?;
                // What a collection has taken away meanwhile is not damaged.
                if fs::symlink_metadata(&path).is_ok() {
                    damaged.insert(path);
                }
            }
        }
        Ok(damaged)
    }

    /// Whether a blob is there, of its length; its content was looked at already.
    fn is_there(&self, file: &FileRef) -> bool {
        fs::symlink_metadata(self.blob(file)).is_ok_and(|m| m.is_file() && m.len() == file.size)
    }

    fn read_unfinished(&self, found: &mut Found, cancel: &Cancel) -> Result<(), CacheError> {
        for seal in walk(&self.root.join(UNFINISHED)) {
            let Some(folder) = seal.parent().filter(|_| seal.file_name() == Some(sealed::SEAL.as_ref()))
            else {
                continue;
            };
            if let Err(wrong) = sealed::check_folder(folder, cancel) {
                cancel.check()?;
                // A newer checkpoint may have taken the place of this one while it was read.
                if seal.exists() && sealed::check_folder(folder, cancel).is_err() {
                    cancel.check()?;
                    found.damages.push(Damage::Unfinished { path: folder.to_path_buf(), wrong });
                    found.folders.insert(folder.to_path_buf());
                }
            }
        }
        Ok(())
    }

    fn take_all_out(&self, found: &Found, cancel: &Cancel) -> Result<(), CacheError> {
        if found.damages.is_empty() {
            return Ok(());
        }
        let _held = self.hold_alone(cancel)?;
        for path in &found.files {
            match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(at(path)(error)),
                _ => {}
            }
        }
        for folder in &found.folders {
            remove_tree(folder).map_err(at(folder))?;
        }
        Ok(())
    }
}

/// The content that a blob's name promises.
fn name_of(blob: &Path) -> Option<(Digest, Mode)> {
    let name = blob.file_name()?.to_str()?;
    let (hex, mode) = match name.strip_suffix(".x") {
        Some(hex) => (hex, Mode::Executable),
        None => (name, Mode::Plain),
    };
    Some((hex.parse().ok()?, mode))
}

/// Adds the entries that took what a damaged one gave, and those that took from them.
fn made_from<'a>(entries: &'a [Entry], wrong: &mut BTreeMap<Key, &'a Entry>, damages: &mut Vec<Damage>) {
    let mut open: Vec<&Entry> = wrong.values().copied().collect();
    while let Some(damaged) = open.pop() {
        let given: BTreeSet<String> = damaged.outputs.values().map(|o| o.digest.to_string()).collect();
        for entry in entries {
            if !wrong.contains_key(&entry.key)
                && entry.fingerprint.inputs().any(|input| given.contains(input))
            {
                let Entry { key, kind, .. } = entry;
                damages.push(Damage::MadeFrom { key: *key, kind: kind.clone(), from: damaged.key });
                wrong.insert(*key, entry);
                open.push(entry);
            }
        }
    }
}
