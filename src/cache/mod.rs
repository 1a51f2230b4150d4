//! Results by key: blobs by digest, entries that name them, a lock a key.
//!
//! Knows files, digests and keys; does not know what a stage is or why a key is what it is. Everything is
//! written to a temporary name and renamed, blobs before the entry that names them, so that a kill at any
//! moment leaves either a whole result or none. An entry carries its own digest. What is in `blobs` is this cache's
//! alone: no file that somebody else can still write to gets there.

mod gc;
mod miss;
mod placed;
mod take;
mod verify;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::cancel::{Cancel, Interrupted};
use crate::files::{self, RelPath};
use crate::fingerprint::{Digest, Fingerprint, Key};
use crate::sealed;
use crate::stage::{ArtifactKind, Output};

pub use gc::{Collected, Limit};
pub use miss::{Attempt, Miss};
pub use placed::{Placed, Seen};
pub use verify::Damage;

/// The layout of `.pipe/cache`; a change of it starts a new cache.
const FORMAT: &str = "v2";
/// The layouts of earlier versions, whose results are not taken.
const EARLIER: &[&str] = &["v1"];
/// Where work is kept that a kill interrupted, a folder a key.
const UNFINISHED: &str = "unfinished";
/// A use is noted anew only after this time: a run whose stages are all cached writes next to nothing.
const USE_NOTED: Duration = Duration::from_secs(60);
/// How often a lock that somebody else holds is tried.
const TICK: Duration = Duration::from_millis(50);

/// A content-addressed store of stage results.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// What a look into the cache found. Only a [`Miss`] can write.
pub enum Lookup {
    /// The result is there.
    Hit(Hit),
    /// It is not, and nobody else is making it: the lock is ours.
    Miss(Miss),
}

/// A result that nobody removes as long as this is held.
pub struct Hit {
    /// The result.
    pub entry: Entry,
    cache: Cache,
    _use: File,
}

/// Whether a file may be run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It may be read: `0444`.
    #[default]
    Plain,
    /// It may be read and run: `0555`.
    Executable,
}

impl Mode {
    fn of(metadata: &fs::Metadata) -> Self {
        if metadata.mode() & 0o111 == 0 { Self::Plain } else { Self::Executable }
    }

    fn is_plain(&self) -> bool {
        *self == Self::Plain
    }

    fn bits(self) -> u32 {
        match self {
            Self::Plain => 0o444,
            Self::Executable => 0o555,
        }
    }
}

/// When a file was last written to: seconds since 1970, and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modified(i64, i64);

impl Modified {
    fn of(metadata: &fs::Metadata) -> Self {
        Self(metadata.mtime(), metadata.mtime_nsec())
    }
}

/// A file of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    /// Relative to the stage's folder.
    pub path: RelPath,
    /// Its content.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Whether it may be run.
    #[serde(default, skip_serializing_if = "Mode::is_plain")]
    pub mode: Mode,
    /// When its blob was written: one with another time is read again before it is taken for whole.
    pub modified: Modified,
}

/// An output of a result and the digest of everything in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRef {
    /// What it is.
    pub kind: ArtifactKind,
    /// The files or folders that make it up.
    pub paths: Vec<String>,
    /// Over the paths, contents and modes of its files and over its empty folders: what a later stage's key is
    /// made of.
    pub digest: Digest,
}

/// A finished result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub key: Key,
    /// The stage kind that made it.
    pub kind: String,
    /// The version of `pipe` that made it.
    pub pipe: String,
    /// When, in RFC 3339.
    pub created: String,
    /// How long it took.
    pub seconds: f64,
    /// Every file, sorted by path.
    pub files: Vec<FileRef>,
    /// Every folder with nothing in it, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub empty_folders: Vec<RelPath>,
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
    #[error("{}: {error}", files::shown(path))]
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
    /// A stage's folder is no longer the one that it was given.
    #[error("the stage removed or replaced the folder that it was to write to: {}", files::shown(.0))]
    Replaced(PathBuf),
    /// A stage wrote something that can't be kept.
    #[error("{path} is {what}: only files and folders can be results")]
    NotAFile {
        /// Where in the stage's folder.
        path: RelPath,
        /// `a symbolic link`, `a named pipe`, …
        what: &'static str,
    },
    /// What a stage is to read is not what its key says.
    #[error("`{file}` of {from} {wrong}")]
    Damaged {
        /// The file.
        file: RelPath,
        /// `STAGE.OUTPUT` it belongs to.
        from: String,
        /// What is the matter with it.
        wrong: String,
        /// Whether the result was taken out of the cache, so that the next run makes it anew.
        taken_out: bool,
    },
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl CacheError {
    /// What to do, where that is known.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Damaged { taken_out: true, .. } => {
                Some("the damaged result was taken out of the cache: run again, and it is made anew".into())
            }
            Self::Damaged { .. } => Some("run again once nothing writes to the run's folder".into()),
            Self::Replaced(_) => Some("nothing of what stands there now was taken or changed".into()),
            Self::Io { .. } | Self::NotWritten { .. } | Self::NotAFile { .. } | Self::Interrupted => None,
        }
    }
}

impl From<Interrupted> for CacheError {
    fn from(_: Interrupted) -> Self {
        Self::Interrupted
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CacheError + '_ {
    move |error| match Interrupted::is(&error) {
        true => CacheError::Interrupted,
        false => CacheError::Io { path: path.to_path_buf(), error },
    }
}

/// How a lock is held.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// Beside others.
    Shared,
    /// Alone.
    Alone,
}

/// Opens a file that stands for a lock and takes it; `waiting` is called once if somebody else holds it.
fn locked(path: &Path, hold: Hold, cancel: &Cancel, waiting: impl FnOnce()) -> Result<File, CacheError> {
    let open = || OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    let lock = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(folder).map_err(at(folder))?;
            open()
        }
        other => other,
    }
    .map_err(at(path))?;
    let mut waiting = Some(waiting);
    loop {
        let tried = match hold {
            Hold::Shared => lock.try_lock_shared(),
            Hold::Alone => lock.try_lock(),
        };
        match tried {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) => {
                if let Some(say) = waiting.take() {
                    say();
                }
                cancel.check()?;
                std::thread::sleep(TICK);
            }
            Err(TryLockError::Error(error)) => {
                return Err(CacheError::Io { path: path.to_path_buf(), error });
            }
        }
    }
}

impl Cache {
    /// The cache in this folder; it is made when first written to.
    pub fn new(folder: &Path) -> Self {
        Self { root: folder.join(FORMAT) }
    }

    /// The folder of a cache that an earlier version of `pipe` left beside this one, until this one is begun. Its
    /// results are not taken: they say nothing of files' modes, and its entries can't tell whether they are damaged.
    pub fn earlier(&self) -> Option<PathBuf> {
        if self.root.exists() {
            return None;
        }
        EARLIER.iter().map(|name| self.root.with_file_name(name)).find(|folder| folder.is_dir())
    }

    fn blob(&self, file: &FileRef) -> PathBuf {
        self.blob_of(&file.digest, file.mode)
    }

    /// The modes of a file belong to it, not to its names: the same bytes have a blob for each.
    fn blob_of(&self, digest: &Digest, mode: Mode) -> PathBuf {
        let hex = digest.to_string();
        let folder = self.root.join("blobs").join(&hex[..2]);
        match mode {
            Mode::Plain => folder.join(hex),
            Mode::Executable => folder.join(hex + ".x"),
        }
    }

    fn entry(&self, key: &Key) -> PathBuf {
        self.root.join("entries").join(format!("{key}.json"))
    }

    /// The right to read and add, which a removal waits for: as long as it is held nothing goes.
    fn hold(&self, cancel: &Cancel) -> Result<File, CacheError> {
        locked(&self.root.join("removal.lock"), Hold::Shared, cancel, || ())
    }

    /// The right to remove: nobody is between looking at a blob and naming it.
    fn hold_alone(&self, cancel: &Cancel) -> Result<File, CacheError> {
        locked(&self.root.join("removal.lock"), Hold::Alone, cancel, || ())
    }

    /// The result of this name if it is whole: its entry as it was written, every file there, of its size and not
    /// written to since. A damaged one counts as none.
    pub fn peek(&self, key: &Key, cancel: &Cancel) -> Option<Entry> {
        let entry: Entry = sealed::from_bytes(&fs::read(self.entry(key)).ok()?).ok()?;
        (entry.key == *key && entry.files.iter().all(|f| self.is_whole(f, cancel))).then_some(entry)
    }

    /// Whether the blob of a file is there as it was written. Its time tells; where that changed, its content.
    fn is_whole(&self, file: &FileRef, cancel: &Cancel) -> bool {
        let path = self.blob(file);
        let Ok(found) = fs::symlink_metadata(&path) else { return false };
        if !found.is_file() || found.len() != file.size || Mode::of(&found) != file.mode {
            return false;
        }
        if Modified::of(&found) == file.modified {
            return true;
        }
        let right = files::digest(&path, cancel).is_ok_and(|digest| digest == file.digest);
        if right {
            // A copy of the cache has times of its own: from now on this one does for a look. That it stays as it is
            // where it can't be set costs reading it again.
            let _ = set_modified(&path, file.modified);
        }
        right
    }

    /// The result, or the right to make it. Waits while another process is making it.
    ///
    /// # Errors
    /// The disk says no, or somebody asks to stop while this waits.
    pub fn lookup(&self, key: &Key, cancel: &Cancel, waiting: impl FnOnce()) -> Result<Lookup, CacheError> {
        if let Some(hit) = self.hit(key, cancel)? {
            return Ok(Lookup::Hit(hit));
        }
        let miss = self.begin(key, cancel, waiting)?;
        // Whoever held the lock may have finished it meanwhile.
        Ok(match self.hit(key, cancel)? {
            Some(hit) => Lookup::Hit(hit),
            None => Lookup::Miss(miss),
        })
    }

    fn hit(&self, key: &Key, cancel: &Cancel) -> Result<Option<Hit>, CacheError> {
        let held = self.hold(cancel)?;
        let Some(entry) = self.peek(key, cancel) else {
            // One that was not read to its end is not a damaged one.
            cancel.check()?;
            return Ok(None);
        };
        self.note_use(key);
        Ok(Some(Hit { entry, cache: self.clone(), _use: held }))
    }

    /// When a result was last of use is the time of its entry, to the minute: what gc goes by. That it can't be set
    /// costs no more than an early end of the result.
    fn note_use(&self, key: &Key) {
        let Ok(entry) = File::open(self.entry(key)) else { return };
        let noted = entry.metadata().and_then(|m| m.modified()).ok();
        if noted.and_then(|noted| noted.elapsed().ok()).is_none_or(|ago| ago > USE_NOTED) {
            let _ = entry.set_modified(SystemTime::now());
        }
    }

    /// The right to make a result anew, whether or not there is one.
    ///
    /// # Errors
    /// As [`Cache::lookup`].
    pub fn begin(&self, key: &Key, cancel: &Cancel, waiting: impl FnOnce()) -> Result<Miss, CacheError> {
        let lock = locked(&self.root.join("locks").join(key.to_string()), Hold::Alone, cancel, waiting)?;
        Miss::new(self.clone(), *key, lock)
    }

    /// Every entry, damaged ones left out.
    pub fn entries(&self) -> Vec<Entry> {
        let Ok(folder) = fs::read_dir(self.root.join("entries")) else { return Vec::new() };
        let read = |path: PathBuf| sealed::from_bytes(&fs::read(path).ok()?).ok();
        let mut entries: Vec<Entry> = folder.flatten().filter_map(|f| read(f.path())).collect();
        entries.sort_by(|a, b| a.created.cmp(&b.created).then(a.key.cmp(&b.key)));
        entries
    }
}

impl Hit {
    /// Puts the files of the result into a folder, linked and read-only where the disk allows.
    ///
    /// # Errors
    /// The disk says no; a file that is there already is left as it is.
    pub fn place(&self, folder: &Path) -> Result<(), CacheError> {
        self.cache.place(&self.entry, folder)
    }
}

/// Removes a folder that stands where a file of the cache belongs.
fn remove_folder_at(path: &Path) -> Result<(), CacheError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => files::remove_tree(path).map_err(at(path)),
        _ => Ok(()),
    }
}

fn set_modified(path: &Path, modified: Modified) -> io::Result<()> {
    let time = match u64::try_from(modified.0) {
        Ok(seconds) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)),
        Err(_) => SystemTime::UNIX_EPOCH.checked_sub(Duration::from_secs(modified.0.unsigned_abs())),
    };
    let nanoseconds = Duration::from_nanos(modified.1.unsigned_abs());
    match time.and_then(|time| time.checked_add(nanoseconds)) {
        Some(time) => File::open(path)?.set_modified(time),
        None => Err(io::ErrorKind::InvalidInput.into()),
    }
}
