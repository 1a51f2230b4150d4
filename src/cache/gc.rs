//! What nobody needs any more goes: results that were not used for long, blobs that no result names, work whose
//! process is gone.
//!
//! Does not know runs, but that a blob with another name is in one of them: such bytes stay on the disk.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Cache, CacheError, Entry, UNFINISHED, at};
use crate::cancel::Cancel;
use crate::files::{remove_tree, walk};
use crate::fingerprint::Key;

/// What a collection leaves.
#[derive(Clone, Debug, Default)]
pub struct Limit {
    /// Most bytes to keep.
    pub bytes: Option<u64>,
    /// Longest time since the last use.
    pub age: Option<Duration>,
    /// Nothing used more recently than this is removed.
    pub grace: Duration,
}

/// What a collection removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Entries.
    pub entries: usize,
    /// Blobs that no entry names any more.
    pub blobs: usize,
    /// Stages that were interrupted and whose work nobody went on with.
    pub unfinished: usize,
    /// Folders of attempts whose process is gone.
    pub attempts: usize,
    /// Bytes that are free now.
    pub bytes: u64,
    /// Bytes of removed blobs that runs still have: they are free once those runs are removed.
    pub linked: u64,
}

impl Cache {
    /// Removes the entries least recently used until what remains is within `limit`, then every blob that no
    /// entry names, and what killed processes left. Entries whose keys are `in_use` stay. Waits until nobody is
    /// between looking at a blob and naming it.
    ///
    /// # Errors
    /// The disk says no, or somebody asks to stop.
    pub fn gc(
        &self,
        limit: &Limit,
        in_use: &BTreeSet<Key>,
        cancel: &Cancel,
    ) -> Result<Collected, CacheError> {
        let _held = self.hold_alone(cancel)?;
        let mut collected = Collected::default();
        let now = SystemTime::now();
        let age = |t: SystemTime| now.duration_since(t).unwrap_or_default();
        let used =
            |entry: &Entry| fs::metadata(self.entry(&entry.key)).and_then(|m| m.modified()).unwrap_or(now);
        let mut entries: Vec<(SystemTime, Entry)> =
            self.entries().into_iter().map(|entry| (used(&entry), entry)).collect();
        entries.sort_by_key(|(used, entry)| (!in_use.contains(&entry.key), std::cmp::Reverse(*used)));
        let (mut kept, mut kept_entries) = (HashSet::new(), HashSet::new());
        let mut bytes = 0;
        for (used, entry) in entries {
            cancel.check()?;
            let blobs: BTreeMap<PathBuf, u64> = entry.files.iter().map(|f| (self.blob(f), f.size)).collect();
            let more: u64 =
                blobs.iter().filter(|(blob, _)| !kept.contains(*blob)).map(|(_, size)| size).sum();
            let too_old = limit.age.is_some_and(|most| age(used) > most);
            let too_much = limit.bytes.is_some_and(|most| bytes + more > most);
            if (too_old || too_much) && age(used) >= limit.grace && !in_use.contains(&entry.key) {
                remove(&self.entry(&entry.key))?;
                collected.entries += 1;
            } else {
                bytes += more;
                kept.extend(blobs.into_keys());
                kept_entries.insert(self.entry(&entry.key));
            }
        }
        self.collect_unfinished(limit, bytes, &mut collected)?;
        self.collect_attempts(&mut collected)?;
        for path in walk(&self.root.join("blobs")) {
            cancel.check()?;
            if !kept.contains(&path) {
                collected.remove(&path)?;
                collected.blobs += 1;
            }
        }
        // What a kill left of an entry that was being written, and damaged ones, whose blobs are gone with that.
        for path in walk(&self.root.join("entries")) {
            if !kept_entries.contains(&path) {
                collected.remove(&path)?;
            }
        }
        Ok(collected)
    }

    /// Removes what was left unfinished and not touched for longer than `limit.age`, or has no room within
    /// `limit.bytes` beside the `kept` bytes of results. What somebody works on stays.
    fn collect_unfinished(
        &self,
        limit: &Limit,
        mut kept: u64,
        collected: &mut Collected,
    ) -> Result<(), CacheError> {
        for folder in folders(&self.root.join(UNFINISHED)) {
            let key = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let files: Vec<fs::Metadata> =
                walk(&folder).iter().filter_map(|f| fs::metadata(f).ok()).collect();
            let bytes: u64 = files.iter().map(fs::Metadata::len).sum();
            let age = |m: &fs::Metadata| m.modified().ok()?.elapsed().ok();
            let youngest = files.iter().map(|m| age(m).unwrap_or_default()).min().unwrap_or(Duration::MAX);
            let too_old = limit.age.is_some_and(|most| youngest > most);
            let too_much = limit.bytes.is_some_and(|most| kept + bytes > most);
            if (too_old || too_much) && youngest >= limit.grace && !self.is_locked(&key) {
                collected.remove_all(&folder)?;
                collected.unfinished += 1;
            } else {
                kept += bytes;
            }
        }
        Ok(())
    }

    /// Removes the folders of attempts whose process is gone, however young.
    fn collect_attempts(&self, collected: &mut Collected) -> Result<(), CacheError> {
        for folder in folders(&self.work()) {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !self.is_locked(name.split('-').next().unwrap_or_default()) {
                collected.remove_all(&folder)?;
                collected.attempts += 1;
            }
        }
        Ok(())
    }

    /// Whether somebody works on the result of this key.
    fn is_locked(&self, key: &str) -> bool {
        let lock = fs::File::open(self.root.join("locks").join(key)).ok();
        lock.is_some_and(|lock| lock.try_lock().is_err())
    }
}

impl Collected {
    /// Removes a file; what that frees counts.
    fn remove(&mut self, path: &Path) -> Result<(), CacheError> {
        let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
        remove(path)?;
        match metadata.nlink() {
            1 => self.bytes += metadata.len(),
            _ => self.linked += metadata.len(),
        }
        Ok(())
    }

    fn remove_all(&mut self, folder: &Path) -> Result<(), CacheError> {
        let single = |path: &PathBuf| fs::symlink_metadata(path).ok().filter(|m| m.nlink() == 1);
        let bytes: u64 = walk(folder).iter().filter_map(single).map(|m| m.len()).sum();
        remove_tree(folder).map_err(at(folder))?;
        self.bytes += bytes;
        Ok(())
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(path).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = read.map(|item| item.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

fn remove(path: &Path) -> Result<(), CacheError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}
