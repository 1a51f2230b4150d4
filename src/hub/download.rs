//! Files of a commit onto this machine: several at once, gone on with after a break, kept only if their digest
//! is right.
//!
//! Does not know which files are wanted.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, TryStreamExt};

use super::api::{Api, Repo, causes, pause, stop_if};
use super::cache::{Folder, Hasher, at};
use super::error::HubError;
use super::repo::{Commit, RemoteFile};
use crate::stage::Cancel;

/// Files that come at once.
const AT_ONCE: usize = 4;

/// How often a download that brings nothing more is tried.
const TRIES: u32 = 5;

/// A try that brought this much was none in vain.
const WORTH: u64 = 1 << 20;

/// Slower than this for long, a connection counts as broken.
const SLOWEST: u64 = 1 << 10;

/// What of a download others may watch.
pub(super) struct Watch<'a> {
    /// Bytes that are here.
    pub done: AtomicU64,
    /// Takes them whenever they grow.
    pub tell: &'a (dyn Fn(u64) + Sync),
    /// Whether to stop.
    pub cancel: &'a Cancel,
}

impl Watch<'_> {
    fn grow(&self, bytes: u64) {
        (self.tell)(self.done.fetch_add(bytes, Ordering::Relaxed) + bytes);
    }

    fn shrink(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Brings these files of a commit into its snapshot folder.
pub(super) async fn download(
    api: &Api,
    folder: &Folder,
    repo: &Repo,
    commit: &Commit,
    files: &[&RemoteFile],
    watch: &Watch<'_>,
) -> Result<(), HubError> {
    let downloads = files.iter().map(|file| one(api, folder, repo, commit, file, watch));
    stream::iter(downloads).buffer_unordered(AT_ONCE).try_collect().await
}

async fn one(
    api: &Api,
    folder: &Folder,
    repo: &Repo,
    commit: &Commit,
    file: &RemoteFile,
    watch: &Watch<'_>,
) -> Result<(), HubError> {
    let blob = folder.blob(&file.digest);
    let _lock = lock(folder.lock(&file.digest), watch.cancel).await?;
    // Another process may have brought it while this one waited.
    if fs::metadata(&blob).is_ok_and(|m| m.len() == file.size) {
        watch.grow(file.size);
    } else {
        let blobs = blob.parent().unwrap_or(&blob);
        fs::create_dir_all(blobs).map_err(at(blobs))?;
        let path = folder.incomplete(&file.digest);
        Coming { api, repo, commit, file, path: path.clone(), watch }.all().await?;
        fs::rename(&path, &blob).map_err(at(&blob))?;
    }
    folder.link(commit, file)
}

/// Waits until no other process brings the same content.
async fn lock(path: PathBuf, cancel: &Cancel) -> Result<File, HubError> {
    let folder = path.parent().unwrap_or(&path);
    fs::create_dir_all(folder).map_err(at(folder))?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(at(&path))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) => pause(Duration::from_millis(100), cancel).await?,
            Err(fs::TryLockError::Error(error)) => return Err(at(&path)(error)),
        }
    }
}

/// One file on its way.
struct Coming<'a> {
    api: &'a Api,
    repo: &'a Repo,
    commit: &'a Commit,
    file: &'a RemoteFile,
    path: PathBuf,
    watch: &'a Watch<'a>,
}

/// How far one answer brought a file.
enum Came {
    Whole,
    /// It broke off.
    Part(String),
}

impl Coming<'_> {
    /// Brings what is missing and compares the digest of all.
    async fn all(&self) -> Result<(), HubError> {
        let mut out = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&self.path)
            .map_err(at(&self.path))?;
        let mut hasher = Hasher::like(&self.file.digest, self.file.size);
        let mut have = hasher.update_from(&mut out, self.watch.cancel).map_err(at(&self.path))?;
        self.watch.grow(have);
        if have > self.file.size {
            (hasher, have) = self.start_over(&mut out, have)?;
        }
        // What an earlier process left may be of any kind: if it does not fit, all comes anew, once.
        let mut inherited = have > 0;
        let (mut left, mut wait) = (TRIES, Duration::from_millis(300));
        loop {
            let before = have;
            let came = match have == self.file.size {
                true => Came::Whole,
                false => self.answer(&mut out, &mut hasher, &mut have).await?,
            };
            match came {
                Came::Whole => {
                    let got = std::mem::replace(&mut hasher, Hasher::like(&self.file.digest, 0)).finish();
                    if got == self.file.digest {
                        return out.sync_all().map_err(at(&self.path));
                    }
                    (hasher, have) = self.start_over(&mut out, have)?;
                    if !std::mem::take(&mut inherited) {
                        let _ = fs::remove_file(&self.path);
                        return Err(HubError::Digest {
                            repo: self.repo.name.clone(),
                            file: self.file.path.clone(),
                            got: got.hex().into(),
                            expected: self.file.digest.hex().into(),
                        });
                    }
                }
                Came::Part(reason) => {
                    if have.saturating_sub(before) >= WORTH {
                        (left, wait) = (TRIES, Duration::from_millis(300));
                    }
                    left -= 1;
                    if left == 0 {
                        let what = format!("{} of {}", self.file.path, self.repo);
                        let reason = format!("{reason} ({have} of {} bytes are here)", self.file.size);
                        return Err(self.api.unreachable(&what, reason));
                    }
                    pause(wait, self.watch.cancel).await?;
                    wait *= 2;
                }
            }
        }
    }

    /// Takes in one answer of the Hub.
    async fn answer(&self, out: &mut File, hasher: &mut Hasher, have: &mut u64) -> Result<Came, HubError> {
        let body = self.api.body(self.repo, self.commit, self.file, *have, self.watch.cancel).await?;
        if body.from != *have {
            (*hasher, *have) = self.start_over(out, *have)?;
        }
        let mut response = body.response;
        let (mut since, mut before) = (std::time::Instant::now(), *have);
        loop {
            stop_if(self.watch.cancel)?;
            let piece = match response.chunk().await {
                Ok(Some(piece)) => piece,
                Ok(None) if *have == self.file.size => return Ok(Came::Whole),
                Ok(None) => return Ok(Came::Part("the answer ended early".into())),
                Err(error) => return Ok(Came::Part(causes(&error))),
            };
            if *have + piece.len() as u64 > self.file.size {
                self.start_over(out, *have)?;
                return Err(HubError::Answer {
                    what: format!("{} of {}", self.file.path, self.repo),
                    reason: format!("more comes than the {} bytes that were announced", self.file.size),
                });
            }
            out.write_all(&piece).map_err(at(&self.path))?;
            hasher.update(&piece);
            *have += piece.len() as u64;
            self.watch.grow(piece.len() as u64);
            let passed = since.elapsed();
            if passed > self.api.patience() {
                if *have - before < SLOWEST * passed.as_secs().max(1) {
                    return Ok(Came::Part("next to nothing comes".into()));
                }
                (since, before) = (std::time::Instant::now(), *have);
            }
        }
    }

    fn start_over(&self, out: &mut File, have: u64) -> Result<(Hasher, u64), HubError> {
        use std::io::Seek;
        self.watch.shrink(have);
        out.set_len(0).and_then(|()| out.rewind()).map_err(at(&self.path))?;
        Ok((Hasher::like(&self.file.digest, self.file.size), 0))
    }
}
