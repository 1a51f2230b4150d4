//! A stage's file becomes a blob that is the cache's alone.
//!
//! Does not know which result a file belongs to. Moves a file only if nobody else can have it: one with other names,
//! of another user, or open for writing somewhere is copied, and stays as it is.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::libc;

use super::{Cache, CacheError, FileRef, Mode, Modified, at, remove_folder_at};
use crate::cancel::Cancel;
use crate::files::{self, RelPath};
use crate::fingerprint::Digest;

impl Cache {
    /// Takes the file at `path` in the stage's folder `out`: afterwards its blob is there, with its content.
    pub(super) fn take(&self, out: &Path, path: RelPath, cancel: &Cancel) -> Result<FileRef, CacheError> {
        let full = path.under(out);
        let found = fs::symlink_metadata(&full).map_err(at(&full))?;
        if let Some(what) = files::other_than_a_file(found.file_type()) {
            return Err(CacheError::NotAFile { path, what });
        }
        let mode = Mode::of(&found);
        let folder = self.root.join("blobs");
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        let mut file = read_only(&full).map_err(at(&full))?;
        if is_ours(&found, &file, mode) {
            let digest = files::digest_of(&mut file, cancel).map_err(at(&full))?;
            file.sync_all().map_err(at(&full))?;
            return self.keep(&full, path, digest, mode, cancel);
        }
        let copy = tempfile::NamedTempFile::new_in(&folder).map_err(at(&folder))?;
        copy_content(&file, copy.as_file(), cancel).map_err(at(&full))?;
        let set = copy.as_file().set_permissions(Permissions::from_mode(mode.bits()));
        set.and_then(|()| copy.as_file().sync_all()).map_err(at(copy.path()))?;
        let digest = files::digest(copy.path(), cancel).map_err(at(copy.path()))?;
        self.keep(copy.path(), path, digest, mode, cancel)
    }

    /// Moves a file that nobody else has to its blob, unless that has the same content already.
    fn keep(
        &self,
        from: &Path,
        path: RelPath,
        digest: Digest,
        mode: Mode,
        cancel: &Cancel,
    ) -> Result<FileRef, CacheError> {
        let blob = self.blob_of(&digest, mode);
        let parent = blob.parent().unwrap_or(&self.root);
        fs::create_dir_all(parent).map_err(at(parent))?;
        let size = fs::symlink_metadata(from).map_err(at(from))?.len();
        let is_there = fs::symlink_metadata(&blob)
            .is_ok_and(|there| there.is_file() && there.len() == size && Mode::of(&there) == mode)
            && files::digest(&blob, cancel).is_ok_and(|there| there == digest);
        cancel.check()?;
        if !is_there {
            remove_folder_at(&blob)?;
            fs::rename(from, &blob).map_err(at(&blob))?;
        }
        let there = fs::symlink_metadata(&blob).map_err(at(&blob))?;
        Ok(FileRef { path, digest, size, mode, modified: Modified::of(&there) })
    }
}

fn read_only(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// Makes a file one that may not be written, if it has no other name, no other owner, and nobody who has it open for
/// writing or mapped so. What can't be found out, or not be changed, is not ours.
fn is_ours(found: &fs::Metadata, file: &File, mode: Mode) -> bool {
    found.nlink() == 1
        && found.uid() == nix::unistd::geteuid().as_raw()
        && file.set_permissions(Permissions::from_mode(mode.bits())).is_ok()
        && !has_writers(file)
        // A name that was added since.
        && file.metadata().is_ok_and(|now| now.nlink() == 1)
}

/// Whether somebody has the file open for writing, or mapped so. The system gives a read lease (`fcntl(2)`,
/// `F_SETLEASE`) only on a file without; where it gives none for another reason there may be.
#[cfg(target_os = "linux")]
fn has_writers(file: &File) -> bool {
    /// Of Linux's `asm-generic/fcntl.h`; the crate `libc` lacks it.
    const F_SETSIG: libc::c_int = 10;
    let descriptor = file.as_raw_fd();
    // SAFETY: `fcntl` on a descriptor that `file` keeps open, with commands that take a number and touch no memory
    // of this process. Who opens the file for writing while the lease is held makes the system send the signal that
    // is set before: SIGURG, which is ignored unless asked for, in place of SIGIO, which would end the process.
    unsafe {
        libc::fcntl(descriptor, F_SETSIG, libc::SIGURG) != 0
            || libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_RDLCK) != 0
            || libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_UNLCK) != 0
    }
}

/// There is no way to ask: every file may have.
#[cfg(not(target_os = "linux"))]
fn has_writers(_: &File) -> bool {
    true
}

/// Copies a file's content into an empty one; shares its blocks where the disk can.
pub(super) fn copy_content(from: &File, mut to: &File, cancel: &Cancel) -> io::Result<u64> {
    /// Bytes between two looks at whether to stop.
    const CHUNK: u64 = 256 << 20;
    use std::io::Read;
    let mut copied = 0;
    loop {
        cancel.check()?;
        // Between two files this is `copy_file_range(2)`.
        match io::copy(&mut from.take(CHUNK), &mut to)? {
            0 => return Ok(copied),
            more => copied += more,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_open_for_writing_is_found_and_one_that_was_closed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let writer = File::create(&path).unwrap();
        let reader = read_only(&path).unwrap();
        assert!(has_writers(&reader));
        drop(writer);
        assert!(!has_writers(&reader), "the folder for temporary files is on a disk without leases");
        let other_reader = read_only(&path).unwrap();
        assert!(!has_writers(&reader));
        drop(other_reader);
    }
}
