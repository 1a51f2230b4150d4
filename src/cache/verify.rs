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
    /// What is to go.
    paths: BTreeSet<PathBuf>,
}

impl Cache {
    /// Reads every blob, every entry and all sealed unfinished work again, and takes out what is damaged.
    ///
    /// # Errors
    /// The disk says no, or somebody asks to stop: nothing was taken out then.
    pub fn verify(&self, cancel: &Cancel) -> Result<Vec<Damage>, CacheError> {
        if self.find_damages(cancel)?.damages.is_empty() {
            return Ok(Vec::new());
        }
        // What was found may have been a collection at work, or is whole by now: it counts as it is found with nobody
        // else at it.
        let _held = self.hold_alone(cancel)?;
        let found = self.find_damages(cancel)?;
        for path in &found.paths {
            match fs::symlink_metadata(path) {
                Ok(there) if there.is_dir() => remove_tree(path).map_err(at(path))?,
                Ok(_) => fs::remove_file(path).map_err(at(path))?,
                Err(_) => {}
            }
        }
        Ok(found.damages)
    }

    fn find_damages(&self, cancel: &Cancel) -> Result<Found, CacheError> {
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
        found.paths.extend(blobs);
        made_from(&entries, &mut wrong, &mut found.damages);
        found.paths.extend(wrong.keys().map(|key| self.entry(key)));
        self.read_unfinished(&mut found, cancel)?;
        Ok(found)
    }

    /// All entries that are as they were written, and those that are not.
    fn read_entries(&self, cancel: &Cancel) -> Result<(Vec<Entry>, Found), CacheError> {
        let (mut entries, mut found) = (Vec::new(), Found::default());
        for path in names_in(&self.root.join("entries")) {
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
            found.paths.insert(path.clone());
            found.damages.push(Damage::Entry { path, wrong });
        }
        entries.sort_by_key(|entry| entry.key);
        Ok((entries, found))
    }

    /// The blobs whose content is not what their names say.
    fn damaged_blobs(&self, cancel: &Cancel) -> Result<BTreeSet<PathBuf>, CacheError> {
        let mut damaged = BTreeSet::new();
        for path in names_in(&self.root.join("blobs")).iter().flat_map(|folder| names_in(folder)) {
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
                    found.paths.insert(folder.to_path_buf());
                }
            }
        }
        Ok(())
    }
}

/// What is in a folder, sorted.
fn names_in(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<PathBuf> = read.map(|item| item.path()).collect();
    names.sort();
    names
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
