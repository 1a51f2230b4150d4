//! The content of files and folders outside the pipeline, as digests for the keys.
//!
//! A memory of (path, size, time, inode) → digest keeps a large model from being read again on every run;
//! does not know what the files mean.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::cache::{digest_file, relative, walk, write_atomically};
use crate::fingerprint::Digest;
use crate::location::{Location, Place};

/// What tells that a file was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    modified_s: i64,
    modified_ns: i64,
    inode: u64,
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let m = fs::metadata(path)?;
        Ok(Self { size: m.len(), modified_s: m.mtime(), modified_ns: m.mtime_nsec(), inode: m.ino() })
    }
}

/// The identity of one outside source at the time it was looked at.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// Goes into the key.
    pub value: String,
    stamps: Vec<(PathBuf, Stamp)>,
}

impl Pinned {
    /// The first of its files that is no longer what it was.
    pub fn changed(&self) -> Option<&Path> {
        self.stamps.iter().find(|(p, s)| Stamp::of(p).ok() != Some(*s)).map(|(p, _)| p.as_path())
    }
}

/// Digests of outside files, each file read once while it stays as it is.
pub struct Sources {
    file: PathBuf,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    known: BTreeMap<PathBuf, (Stamp, Digest)>,
    grown: bool,
}

impl Sources {
    /// With what earlier runs remembered in this folder.
    pub fn open(folder: &Path) -> Self {
        let file = folder.join("sources.json");
        let known = fs::read(&file).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
        Self { file, memory: Mutex::new(Memory { known, grown: false }) }
    }

    /// The identity of what a location names. What is missing or on the Hub is named, not read: the stage
    /// says what is wrong with it.
    pub fn pin(&self, location: &Location) -> io::Result<Pinned> {
        let (files, folder) = match location.resolve() {
            Place::Local(path) if path.is_dir() => (visible_files(&path), Some(path)),
            Place::Local(path) => (vec![path], None),
            Place::Glob(pattern) => {
                let found = glob::glob(&pattern).map(|g| g.flatten().filter(|p| p.is_file()).collect());
                (found.unwrap_or_default(), Some(location.base().to_path_buf()))
            }
            Place::Hub(name) => return Ok(Pinned { value: format!("hub:{name}"), stamps: Vec::new() }),
            Place::Missing(_) => return Ok(Pinned { value: "missing".into(), stamps: Vec::new() }),
        };
        let mut hasher = blake3::Hasher::new();
        let mut stamps = Vec::new();
        for path in files {
            let (stamp, digest) = self.digest(&path)?;
            // The name of a lone file does not matter, those inside a folder do: they tell the splits.
            let name = folder.as_ref().map(|folder| relative(&path, folder)).unwrap_or_default();
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(digest.to_string().as_bytes());
            stamps.push((path, stamp));
        }
        Ok(Pinned { value: Digest::from(hasher.finalize()).to_string(), stamps })
    }

    fn digest(&self, path: &Path) -> io::Result<(Stamp, Digest)> {
        let full = path.canonicalize()?;
        let stamp = Stamp::of(&full)?;
        {
            let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((known, digest)) = memory.known.get(&full)
                && *known == stamp
            {
                return Ok((stamp, *digest));
            }
        }
        let digest = digest_file(&full)?;
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        // A file touched within the clock's grain of now could change without its time changing.
        if settled(&stamp) && Stamp::of(&full)? == stamp {
            memory.known.insert(full, (stamp, digest));
            memory.grown = true;
        }
        Ok((stamp, digest))
    }

    /// Keeps what was learned for the next run; writes nothing if that is nothing.
    pub fn save(&self) -> io::Result<()> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if !memory.grown {
            return Ok(());
        }
        memory.known.retain(|path, _| path.exists());
        write_atomically(&self.file, &serde_json::to_vec(&memory.known)?)?;
        memory.grown = false;
        Ok(())
    }
}

fn settled(stamp: &Stamp) -> bool {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_secs_f64() - (stamp.modified_s as f64 + stamp.modified_ns as f64 * 1e-9) > 0.05
}

/// The files below a folder, those and folders that begin with a dot left out.
fn visible_files(folder: &Path) -> Vec<PathBuf> {
    let hidden = |p: &PathBuf| relative(p, folder).split('/').any(|part| part.starts_with('.'));
    walk(folder).into_iter().filter(|p| !hidden(p) && p.is_file()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(sources: &Sources, base: &Path, text: &str) -> String {
        sources.pin(&Location::new(text, base)).unwrap().value
    }

    #[test]
    fn content_counts_and_the_place_of_a_lone_file_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources::open(dir.path());
        fs::write(dir.path().join("a.csv"), "x\n1\n").unwrap();
        fs::write(dir.path().join("b.csv"), "x\n1\n").unwrap();
        let before = pin(&sources, dir.path(), "a.csv");
        assert_eq!(before, pin(&sources, dir.path(), "b.csv"));
        fs::write(dir.path().join("a.csv"), "x\n2\n").unwrap();
        assert_ne!(before, pin(&sources, dir.path(), "a.csv"));
    }

    #[test]
    fn names_inside_a_folder_count() {
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources::open(dir.path());
        let folder = dir.path().join("data");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("train.csv"), "x").unwrap();
        fs::write(folder.join("test.csv"), "y").unwrap();
        let both = pin(&sources, dir.path(), "data");
        fs::remove_file(folder.join("test.csv")).unwrap();
        let alone = pin(&sources, dir.path(), "data");
        fs::rename(folder.join("train.csv"), folder.join("test.csv")).unwrap();
        assert_ne!(alone, pin(&sources, dir.path(), "data"));
        fs::write(folder.join("train.csv"), "x").unwrap();
        fs::write(folder.join("test.csv"), "y").unwrap();
        let before = pin(&sources, dir.path(), "data");
        assert_eq!(both, before);
        fs::write(folder.join(".hidden"), "z").unwrap();
        assert_eq!(before, pin(&sources, dir.path(), "data"));
        fs::rename(folder.join("test.csv"), folder.join("dev.csv")).unwrap();
        assert_ne!(before, pin(&sources, dir.path(), "data"));
    }

    #[test]
    fn a_change_while_a_stage_ran_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        fs::write(&path, "x").unwrap();
        let pinned = Sources::open(dir.path()).pin(&Location::new("a.csv", dir.path())).unwrap();
        assert_eq!(pinned.changed(), None);
        fs::write(&path, "xy").unwrap();
        assert_eq!(pinned.changed(), Some(path.as_path()));
    }
}
