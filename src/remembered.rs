//! Digests of files, remembered beside what tells that a file was touched, so that a large one is read once.
//!
//! Does not know what the files are, nor which kind of digest is asked for.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::files::{named, write_atomically};
use crate::fingerprint::Digest;
use crate::sealed;

/// What tells that a file was touched. A program can set the time of modification back, that of change it can't.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: Time,
    changed: Time,
}

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Time(i64, i64);

impl Stamp {
    /// Of the file that a path leads to.
    ///
    /// # Errors
    /// What the disk says.
    pub fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from(&fs::metadata(path)?))
    }

    /// Whether at most names of the file were added or removed since: that changes the time of its last change, and
    /// nothing else.
    pub fn is_same_but_for_names(&self, before: &Self) -> bool {
        Self { changed: before.changed, ..*self } == *before
    }

    /// Waits until the clock has moved on since a file was touched: else what is written to it a moment later could
    /// not be told from what is read now.
    ///
    /// # Errors
    /// What the disk says.
    pub fn settle(path: &Path) -> io::Result<()> {
        if !Self::of(path)?.is_settled() {
            std::thread::sleep(GRAIN + Duration::from_millis(1));
        }
        Ok(())
    }

    /// Whether the clock has moved on since the file was touched: within the clock's grain its content could change
    /// once more and its times would not.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        [self.modified, self.changed].into_iter().all(|Time(seconds, nanoseconds)| {
            // Some file systems count whole seconds only, or every second one.
            let grain = if nanoseconds == 0 { 2.0 } else { GRAIN.as_secs_f64() };
            (now - (seconds as f64 + nanoseconds as f64 * 1e-9)).abs() > grain
        })
    }
}

impl From<&Metadata> for Stamp {
    fn from(m: &Metadata) -> Self {
        Self {
            device: m.dev(),
            inode: m.ino(),
            size: m.len(),
            modified: Time(m.mtime(), m.mtime_nsec()),
            changed: Time(m.ctime(), m.ctime_nsec()),
        }
    }
}

/// The clock behind files' times moves on at least this often.
const GRAIN: Duration = Duration::from_millis(50);

/// What is remembered of files, over many runs.
pub struct Remembered {
    file: PathBuf,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    known: BTreeMap<Digest, Known>,
    grown: bool,
}

/// A file whose digest is known.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    digest: Digest,
    /// The day, counted from 1970, on which this was last of use, give or take [`FRESH`].
    used: u64,
}

/// What is written. By digests of paths: a path may hold what must not be written down.
#[derive(Default, Serialize, Deserialize)]
struct Written {
    files: BTreeMap<Digest, Known>,
}

impl Written {
    /// What was written; nothing where it is damaged or of another version, which costs no more than reading again.
    fn read(file: &Path) -> Self {
        fs::read(file).ok().and_then(|bytes| sealed::from_bytes(&bytes).ok()).unwrap_or_default()
    }
}

/// Days after which use is noted again.
const FRESH: u64 = 30;

/// Days without use after which a file is forgotten.
const FORGET: u64 = 90;

fn today() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 86_400
}

impl Remembered {
    /// With what earlier runs wrote to this file.
    pub fn open(file: PathBuf) -> Self {
        let known = Written::read(&file).files;
        Self { file, memory: Mutex::new(Memory { known, grown: false }) }
    }

    /// The digest of a file, computed only if it is not remembered or the file was touched since. `kind` tells
    /// digests of one file apart.
    ///
    /// # Errors
    /// What the disk or `compute` says.
    pub fn digest(
        &self,
        kind: &str,
        path: &Path,
        compute: impl FnOnce() -> io::Result<Digest>,
    ) -> io::Result<(Stamp, Digest)> {
        let full = path.canonicalize()?;
        let full = Digest::of(&[kind.as_bytes(), b"\0", full.as_os_str().as_bytes()].concat());
        let stamp = Stamp::of(path)?;
        {
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            let Memory { known, grown } = &mut *memory;
            if let Some(known) = known.get_mut(&full)
                && known.stamp == stamp
            {
                if known.used + FRESH < today() {
                    known.used = today();
                    *grown = true;
                }
                return Ok((stamp, known.digest));
            }
        }
        let settled = stamp.is_settled();
        let digest = compute()?;
        if settled && Stamp::of(path)? == stamp {
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            memory.known.insert(full, Known { stamp, digest, used: today() });
            memory.grown = true;
        }
        Ok((stamp, digest))
    }

    /// Keeps what was learned for the next run, beside what other processes have learned meanwhile; writes nothing if
    /// that is nothing.
    ///
    /// # Errors
    /// What the disk says; the error names the file.
    pub fn save(&self) -> io::Result<()> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if !memory.grown {
            return Ok(());
        }
        let mut all = Written::read(&self.file);
        all.files.extend(memory.known.iter().map(|(path, known)| (*path, *known)));
        all.files.retain(|_, known| known.used + FORGET >= today());
        write_atomically(&self.file, &sealed::to_bytes(&all)?).map_err(named(&self.file))?;
        memory.grown = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_used_once_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sources.json");
        let open = || Remembered::open(file.clone());
        let learn = |remembered: &Remembered, kind: &str, name: &str| {
            let path = dir.path().join(name);
            if !path.exists() {
                fs::write(&path, name).unwrap();
            }
            Stamp::settle(&path).unwrap();
            let mut read = false;
            let compute = || {
                read = true;
                Ok(Digest::of(name.as_bytes()))
            };
            let (_, digest) = remembered.digest(kind, &path, compute).unwrap();
            assert_eq!(digest, Digest::of(name.as_bytes()));
            remembered.save().unwrap();
            read
        };
        assert!(learn(&open(), "blake3", "a.csv"));
        assert!(!learn(&open(), "blake3", "a.csv"));
        assert!(learn(&open(), "hub", "a.csv"), "a digest of another kind is another");
        // Another process saved meanwhile.
        let (one, two) = (open(), open());
        assert!(learn(&one, "blake3", "b.csv") && learn(&two, "blake3", "c.csv"));
        assert!(!learn(&open(), "blake3", "b.csv") && !learn(&open(), "blake3", "c.csv"));
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains("a.csv"));
        for damaged in [text.replacen("\"used\": 2", "\"used\": 3", 1), "{}".into(), String::new()] {
            fs::write(&file, damaged).unwrap();
            assert!(learn(&open(), "blake3", "a.csv"));
        }
    }
}
