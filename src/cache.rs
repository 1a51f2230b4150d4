//! Results by key: blobs by digest, entries that name them, a lock a key.
//!
//! Knows files, digests and keys; does not know what a stage is or why a key is what it is. Everything is
//! written to a temporary name and renamed, blobs before the entry that names them, so that a kill at any
//! moment leaves either a whole result or none.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::clock::timestamp;
use crate::files::{RelPath, remove_tree, walk, write_atomically};
use crate::fingerprint::{Digest, Fingerprint, Key};
use crate::stage::{ArtifactKind, Cancel, Output};

/// The layout of `.pipe/cache`; a change of it starts a new cache.
const FORMAT: &str = "v1";
/// Where work is kept that a kill interrupted, a folder a key.
const UNFINISHED: &str = "unfinished";

/// A content-addressed store of stage results.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// What a look into the cache found. Only a [`Miss`] can write.
pub enum Lookup {
    /// The result is there.
    Hit(Entry),
    /// It is not, and nobody else is making it: the lock is ours.
    Miss(Miss),
}

/// A file of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    /// Relative to the stage's folder, with `/`.
    pub path: String,
    /// Its content.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// An output of a result and the digest of everything in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRef {
    /// What it is.
    pub kind: ArtifactKind,
    /// The files or folders that make it up.
    pub paths: Vec<String>,
    /// Over the paths and contents of its files: what a later stage's key is made of.
    pub digest: Digest,
}

/// A finished result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub key: Key,
    /// The stage kind that made it.
    pub kind: String,
    /// When, in RFC 3339.
    pub created: String,
    /// How long it took.
    pub seconds: f64,
    /// Every file, sorted by path.
    pub files: Vec<FileRef>,
    /// The outputs by name.
    pub outputs: BTreeMap<String, OutputRef>,
    /// Numbers the stage said.
    #[serde(deserialize_with = "crate::event::numbers")]
    pub metrics: BTreeMap<String, f64>,
    /// Warnings the stage gave: a cached result repeats them.
    pub warnings: Vec<String>,
    /// What the key was made of.
    pub fingerprint: Fingerprint,
}

/// What a stage leaves beside its files.
pub struct Finished<'a> {
    /// The stage kind.
    pub kind: &'a str,
    /// How long it took.
    pub seconds: f64,
    /// What it declares to have written.
    pub outputs: Vec<Output>,
    /// Numbers it said.
    pub metrics: BTreeMap<String, f64>,
    /// Warnings it gave.
    pub warnings: Vec<String>,
    /// What the key was made of.
    pub fingerprint: Fingerprint,
}

/// Why the cache could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The disk said no.
    #[error("{}: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// A stage did not write what it declares.
    #[error("the stage finished but did not write `{path}`, which its output `{output}` is made of")]
    NotWritten {
        /// The output's name.
        output: String,
        /// The file or folder that is not there.
        path: String,
    },
    /// A stage wrote something that can't be kept.
    #[error("{}: only files and folders can be results", .0.display())]
    NotAFile(PathBuf),
    /// Somebody asked to stop while we waited for another process.
    #[error("interrupted")]
    Interrupted,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CacheError + '_ {
    move |error| CacheError::Io { path: path.to_path_buf(), error }
}

impl Cache {
    /// The cache in this folder; it is made when first written to.
    pub fn new(folder: &Path) -> Self {
        Self { root: folder.join(FORMAT) }
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.to_string();
        self.root.join("blobs").join(&hex[..2]).join(&hex)
    }

    fn entry(&self, key: &Key) -> PathBuf {
        self.root.join("entries").join(format!("{key}.json"))
    }

    /// The result of this name if it is whole: every file there and of the right size.
    ///
    /// A damaged entry counts as none.
    pub fn peek(&self, key: &Key) -> Option<Entry> {
        let entry: Entry = serde_json::from_slice(&fs::read(self.entry(key)).ok()?).ok()?;
        let whole = entry.key == *key
            && entry
                .files
                .iter()
                .all(|f| fs::metadata(self.blob(&f.digest)).is_ok_and(|m| m.len() == f.size));
        whole.then_some(entry)
    }

    /// The result, or the right to make it. Waits while another process is making it.
    pub fn lookup(&self, key: &Key, cancel: &Cancel, waiting: impl FnOnce()) -> Result<Lookup, CacheError> {
        if let Some(entry) = self.peek(key) {
            return Ok(Lookup::Hit(entry));
        }
        let miss = self.begin(key, cancel, waiting)?;
        // Whoever held the lock may have finished it meanwhile.
        Ok(match self.peek(key) {
            Some(entry) => Lookup::Hit(entry),
            None => Lookup::Miss(miss),
        })
    }

    /// The right to make a result anew, whether or not there is one.
    pub fn begin(&self, key: &Key, cancel: &Cancel, waiting: impl FnOnce()) -> Result<Miss, CacheError> {
        let locks = self.root.join("locks");
        fs::create_dir_all(&locks).map_err(at(&locks))?;
        let path = locks.join(key.to_string());
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(at(&path))?;
        let mut waiting = Some(waiting);
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    if let Some(say) = waiting.take() {
                        say();
                    }
                    if cancel.is_set() {
                        return Err(CacheError::Interrupted);
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(TryLockError::Error(error)) => return Err(CacheError::Io { path, error }),
            }
        }
        let work = self.root.join("work").join(key.to_string());
        // A process that was killed may have left its half: nobody works on it, the lock is ours.
        remove_tree(&work).map_err(at(&work))?;
        let out = work.join("out");
        fs::create_dir_all(&out).map_err(at(&out))?;
        let unfinished = self.root.join(UNFINISHED).join(key.to_string());
        Ok(Miss { cache: self.clone(), key: *key, work, out, unfinished, lock })
    }

    /// Puts the files of a result into a folder, linked and read-only where the disk allows.
    pub fn place(&self, entry: &Entry, folder: &Path) -> Result<(), CacheError> {
        fs::create_dir_all(folder).map_err(at(folder))?;
        for file in &entry.files {
            let to = folder.join(&file.path);
            if let Some(parent) = to.parent().filter(|p| *p != folder) {
                fs::create_dir_all(parent).map_err(at(parent))?;
            }
            let blob = self.blob(&file.digest);
            if fs::hard_link(&blob, &to).is_err() {
                // Another file system, or one without links.
                fs::copy(&blob, &to).map_err(at(&to))?;
            }
        }
        Ok(())
    }

    /// Every entry, unreadable ones left out.
    pub fn entries(&self) -> Vec<Entry> {
        let Ok(folder) = fs::read_dir(self.root.join("entries")) else { return Vec::new() };
        let mut entries: Vec<Entry> =
            folder.filter_map(|f| serde_json::from_slice(&fs::read(f.ok()?.path()).ok()?).ok()).collect();
        entries.sort_by(|a, b| a.created.cmp(&b.created).then(a.key.cmp(&b.key)));
        entries
    }

    /// Reads every file of every entry again; an entry with a damaged file is taken out, so that the next run
    /// makes it anew. Returns each damaged entry with the first file that is wrong.
    pub fn verify(&self) -> Result<Vec<(Entry, FileRef)>, CacheError> {
        let mut good = HashSet::new();
        let mut damaged = Vec::new();
        for entry in self.entries() {
            let wrong = entry.files.iter().find(|f| {
                !good.contains(&f.digest) && {
                    let right = crate::files::digest(&self.blob(&f.digest), &Cancel::default())
                        .is_ok_and(|d| d == f.digest);
                    if right {
                        good.insert(f.digest);
                    }
                    !right
                }
            });
            if let Some(file) = wrong.cloned() {
                let path = self.entry(&entry.key);
                fs::remove_file(&path).map_err(at(&path))?;
                let blob = self.blob(&file.digest);
                let _ = fs::remove_file(&blob);
                damaged.push((entry, file));
            }
        }
        Ok(damaged)
    }

    /// Removes the entries least recently used until what remains is within `limit`, then every blob that no
    /// entry names. Nothing younger than `limit.grace` is touched: another process may be about to name it.
    pub fn gc(&self, limit: &Limit, last_used: &BTreeMap<Key, SystemTime>) -> Result<Collected, CacheError> {
        let mut collected = Collected::default();
        let now = SystemTime::now();
        let age = |t: SystemTime| now.duration_since(t).unwrap_or_default();
        let mut entries: Vec<(SystemTime, Entry)> = self
            .entries()
            .into_iter()
            .map(|e| {
                let made = fs::metadata(self.entry(&e.key)).and_then(|m| m.modified()).unwrap_or(now);
                (last_used.get(&e.key).copied().unwrap_or(made).max(made), e)
            })
            .collect();
        entries.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
        let mut kept = HashSet::new();
        let mut bytes = 0;
        for (used, entry) in entries {
            let more: u64 = entry
                .files
                .iter()
                .map(|f| (f.digest, f.size))
                .filter(|(d, _)| !kept.contains(d))
                .collect::<BTreeMap<_, _>>()
                .values()
                .sum();
            let too_old = limit.age.is_some_and(|most| age(used) > most);
            let too_much = limit.bytes.is_some_and(|most| bytes + more > most);
            if (too_old || too_much) && age(used) >= limit.grace {
                let path = self.entry(&entry.key);
                fs::remove_file(&path).map_err(at(&path))?;
                collected.entries += 1;
            } else {
                bytes += more;
                kept.extend(entry.files.iter().map(|f| f.digest));
            }
        }
        self.collect_unfinished(limit, bytes, &mut collected)?;
        for path in walk(&self.root.join("blobs")) {
            let named = path
                .file_name()
                .and_then(|n| n.to_str()?.parse::<Digest>().ok())
                .is_some_and(|d| kept.contains(&d));
            let young = fs::metadata(&path).and_then(|m| m.modified()).is_ok_and(|t| age(t) < limit.grace);
            if !named && !young {
                collected.bytes += fs::metadata(&path).map(|m| m.len()).unwrap_or(0);
                fs::remove_file(&path).map_err(at(&path))?;
                collected.blobs += 1;
            }
        }
        Ok(collected)
    }
}

impl Cache {
    /// Removes what was left unfinished and not touched for longer than `limit.age`, or has no room within
    /// `limit.bytes` beside the `kept` bytes of results. What somebody works on stays.
    fn collect_unfinished(
        &self,
        limit: &Limit,
        mut kept: u64,
        collected: &mut Collected,
    ) -> Result<(), CacheError> {
        let Ok(folders) = fs::read_dir(self.root.join(UNFINISHED)) else { return Ok(()) };
        for folder in folders.flatten().map(|entry| entry.path()) {
            let files: Vec<fs::Metadata> =
                walk(&folder).iter().filter_map(|f| fs::metadata(f).ok()).collect();
            let bytes: u64 = files.iter().map(fs::Metadata::len).sum();
            let age = |m: &fs::Metadata| m.modified().ok()?.elapsed().ok();
            let youngest = files.iter().map(|m| age(m).unwrap_or_default()).min().unwrap_or(Duration::MAX);
            let too_old = limit.age.is_some_and(|most| youngest > most);
            let too_much = limit.bytes.is_some_and(|most| kept + bytes > most);
            let lock = folder.file_name().map(|key| self.root.join("locks").join(key));
            let lock = lock.and_then(|path| OpenOptions::new().write(true).open(path).ok());
            let busy = lock.as_ref().is_some_and(|lock| lock.try_lock().is_err());
            if (too_old || too_much) && youngest >= limit.grace && !busy {
                remove_tree(&folder).map_err(at(&folder))?;
                collected.unfinished += 1;
                collected.bytes += bytes;
            } else {
                kept += bytes;
            }
        }
        Ok(())
    }
}

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
    /// The bytes of blobs and unfinished work.
    pub bytes: u64,
}

/// The right to write one result. Dropped without [`Miss::commit`], it leaves nothing but unfinished work.
pub struct Miss {
    cache: Cache,
    key: Key,
    work: PathBuf,
    out: PathBuf,
    unfinished: PathBuf,
    lock: File,
}

impl Miss {
    /// The empty folder to write in.
    pub fn out(&self) -> &Path {
        &self.out
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
    pub fn forget_unfinished(&self) -> Result<(), CacheError> {
        remove_tree(&self.unfinished).map_err(at(&self.unfinished))
    }

    /// Empties the folder for another try.
    pub fn clear(&self) -> Result<(), CacheError> {
        remove_tree(&self.out).map_err(at(&self.out))?;
        fs::create_dir_all(&self.out).map_err(at(&self.out))
    }

    /// Makes what stands in the folder the result of this key.
    pub fn commit(self, finished: Finished<'_>) -> Result<Entry, CacheError> {
        for output in &finished.outputs {
            for path in &output.paths {
                if !self.out.join(path).exists() {
                    return Err(CacheError::NotWritten { output: output.name.clone(), path: path.clone() });
                }
            }
        }
        let mut files = Vec::new();
        for path in walk(&self.out) {
            if !path.is_file() || path.is_symlink() {
                return Err(CacheError::NotAFile(path));
            }
            let size = fs::metadata(&path).map_err(at(&path))?.len();
            let digest = crate::files::digest(&path, &Cancel::default()).map_err(at(&path))?;
            self.keep(&path, &digest, size)?;
            files.push(FileRef { path: RelPath::of(&path, &self.out).to_string(), digest, size });
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let outputs = finished
            .outputs
            .into_iter()
            .map(|o| {
                let digest = output_digest(&files, &o.paths);
                (o.name, OutputRef { kind: o.kind, paths: o.paths, digest })
            })
            .collect();
        let entry = Entry {
            key: self.key,
            kind: finished.kind.to_string(),
            created: timestamp(),
            seconds: finished.seconds,
            files,
            outputs,
            metrics: finished.metrics,
            warnings: finished.warnings,
            fingerprint: finished.fingerprint,
        };
        let path = self.cache.entry(&self.key);
        let text = serde_json::to_vec_pretty(&entry).map_err(|e| at(&path)(e.into()))?;
        write_atomically(&path, &text).map_err(at(&path))?;
        self.forget_unfinished()?;
        Ok(entry)
    }

    /// Moves a finished file to its blob, read-only.
    fn keep(&self, from: &Path, digest: &Digest, size: u64) -> Result<(), CacheError> {
        let blob = self.cache.blob(digest);
        let parent = blob.parent().unwrap_or(&self.cache.root);
        fs::create_dir_all(parent).map_err(at(parent))?;
        if fs::metadata(&blob).is_ok_and(|m| m.len() == size) {
            return Ok(());
        }
        let file = File::open(from).map_err(at(from))?;
        file.sync_all().map_err(at(from))?;
        let mut permissions = file.metadata().map_err(at(from))?.permissions();
        permissions.set_readonly(true);
        fs::set_permissions(from, permissions).map_err(at(from))?;
        fs::rename(from, &blob).map_err(at(&blob))
    }
}

impl Drop for Miss {
    fn drop(&mut self) {
        // What stays behind on an error here is emptied by the next who takes this lock.
        let _ = remove_tree(&self.work);
    }
}

/// Over the files that one of `paths` is or holds.
fn output_digest(files: &[FileRef], paths: &[String]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for file in files {
        let inside = |p: &String| {
            p == "."
                || file.path == *p
                || file.path.strip_prefix(p.as_str()).is_some_and(|r| r.starts_with('/'))
        };
        if paths.iter().any(inside) {
            hasher.update(&(file.path.len() as u64).to_le_bytes());
            hasher.update(file.path.as_bytes());
            hasher.update(file.digest.to_string().as_bytes());
        }
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprint::Writer;

    fn key(name: &str) -> (Key, Fingerprint) {
        Writer::new(name, 1).finish()
    }

    fn make(cache: &Cache, name: &str, files: &[(&str, &str)]) -> Entry {
        let (key, fingerprint) = key(name);
        let Lookup::Miss(miss) = cache.lookup(&key, &Cancel::default(), || ()).unwrap() else {
            panic!("there is nothing yet")
        };
        for (path, text) in files {
            let path = miss.out().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let outputs = vec![Output::new("dataset", ArtifactKind::Dataset, &["."])];
        miss.commit(finished(outputs, fingerprint)).unwrap()
    }

    fn finished(outputs: Vec<Output>, fingerprint: Fingerprint) -> Finished<'static> {
        Finished {
            kind: "test",
            seconds: 0.0,
            outputs,
            metrics: BTreeMap::new(),
            warnings: Vec::new(),
            fingerprint,
        }
    }

    #[test]
    fn a_result_comes_back_and_is_placed_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let made = make(&cache, "a", &[("x.txt", "one"), ("deep/y.txt", "two")]);
        let found = cache.peek(&made.key).unwrap();
        assert_eq!(found.files, made.files);
        let out = dir.path().join("placed");
        cache.place(&found, &out).unwrap();
        assert_eq!(fs::read_to_string(out.join("deep/y.txt")).unwrap(), "two");
        assert!(fs::metadata(out.join("x.txt")).unwrap().permissions().readonly());
    }

    #[test]
    fn a_miss_that_is_dropped_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let (key, _) = key("a");
        let miss = cache.begin(&key, &Cancel::default(), || ()).unwrap();
        fs::write(miss.out().join("half"), "…").unwrap();
        drop(miss);
        assert!(cache.peek(&key).is_none());
        assert!(walk(&cache.root.join("work")).is_empty());
    }

    #[test]
    fn a_declared_output_that_is_not_there_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let (key, fingerprint) = key("a");
        let miss = cache.begin(&key, &Cancel::default(), || ()).unwrap();
        let outputs = vec![Output::new("model", ArtifactKind::Model, &["model.gguf"])];
        let error = miss.commit(finished(outputs, fingerprint)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the stage finished but did not write `model.gguf`, which its output `model` is made of"
        );
        assert!(cache.peek(&key).is_none());
    }

    #[test]
    fn a_cut_blob_is_a_miss_and_a_changed_one_is_found_by_verify() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let made = make(&cache, "a", &[("x", "one")]);
        let blob = cache.blob(&made.files[0].digest);
        fs::remove_file(&blob).unwrap();
        fs::write(&blob, "on").unwrap();
        assert!(cache.peek(&made.key).is_none());
        fs::write(&blob, "eno").unwrap();
        assert!(cache.peek(&made.key).is_some());
        let damaged = cache.verify().unwrap();
        assert_eq!(damaged.len(), 1);
        assert_eq!(damaged[0].1.path, "x");
        assert!(cache.peek(&made.key).is_none());
    }

    #[test]
    fn two_that_want_one_key_make_it_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let made = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let (key, fingerprint) = key("a");
                    if let Lookup::Miss(miss) = cache.lookup(&key, &Cancel::default(), || ()).unwrap() {
                        made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(80));
                        fs::write(miss.out().join("x"), "one").unwrap();
                        miss.commit(finished(Vec::new(), fingerprint)).unwrap();
                    }
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn collection_drops_the_least_recently_used_and_keeps_shared_blobs() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let old = make(&cache, "old", &[("x", "shared"), ("y", "only old")]);
        let new = make(&cache, "new", &[("x", "shared")]);
        let used = BTreeMap::from([(new.key, SystemTime::now() + Duration::from_secs(60))]);
        let limit = Limit { bytes: Some(6), ..Limit::default() };
        let collected = cache.gc(&limit, &used).unwrap();
        assert_eq!(collected, Collected { entries: 1, blobs: 1, unfinished: 0, bytes: 8 });
        assert!(cache.peek(&old.key).is_none());
        assert!(cache.peek(&new.key).is_some());
    }

    #[test]
    fn unfinished_work_outlives_the_miss_and_goes_when_there_is_no_room_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let (key, fingerprint) = key("a");
        let begin = || cache.begin(&key, &Cancel::default(), || ()).unwrap();
        let leave = |miss: &Miss| {
            fs::create_dir_all(miss.unfinished()).unwrap();
            fs::write(miss.unfinished().join("half"), "1234").unwrap();
        };
        let miss = begin();
        leave(&miss);
        let collect = |bytes| {
            cache.gc(&Limit { bytes: Some(bytes), ..Limit::default() }, &BTreeMap::new()).unwrap().unfinished
        };
        assert_eq!(collect(0), 0, "somebody works on it");
        drop(miss);
        assert_eq!(collect(4), 0);
        assert_eq!(fs::read_to_string(begin().unfinished().join("half")).unwrap(), "1234");
        assert_eq!(collect(3), 1);
        assert!(!begin().unfinished().exists());
        let miss = begin();
        leave(&miss);
        miss.forget_unfinished().unwrap();
        leave(&miss);
        miss.commit(finished(Vec::new(), fingerprint)).unwrap();
        assert!(walk(&cache.root.join(UNFINISHED)).is_empty());
    }

    #[test]
    fn collection_leaves_what_is_young() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let entry = make(&cache, "a", &[("x", "one")]);
        let limit = Limit { bytes: Some(0), grace: Duration::from_secs(600), ..Limit::default() };
        assert_eq!(cache.gc(&limit, &BTreeMap::new()).unwrap(), Collected::default());
        assert!(cache.peek(&entry.key).is_some());
    }
}
