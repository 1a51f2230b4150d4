//! Results on their way to whoever reads them: in a run's folder, held against their digests, or as copies of a
//! reader's own.
//!
//! Does not know who reads.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::miss::belongs;
use super::take::copy_content;
use super::{Cache, CacheError, Entry, FileRef, Mode, at};
use crate::cancel::Cancel;
use crate::files::{self, RelPath, Tree};
use crate::fingerprint::Key;
use crate::remembered::Stamp;

/// An output of a result in a run's folder.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The result it is of.
    key: Key,
    /// `STAGE.OUTPUT`, for messages.
    from: String,
    /// The stage's folder.
    folder: PathBuf,
    /// The files or folders that make it up.
    paths: Vec<String>,
    files: Vec<FileRef>,
    empty_folders: Vec<RelPath>,
}

/// The files of an output as they were when their digests were right.
pub struct Seen(Vec<(FileRef, PathBuf, Stamp)>);

impl Placed {
    /// One output of a result that was placed in `folder`; `from` is what messages call it.
    pub fn new(entry: &Entry, output: &str, folder: &Path, from: String) -> Self {
        let paths = entry.outputs.get(output).map(|o| o.paths.clone()).unwrap_or_default();
        Self {
            key: entry.key,
            from,
            folder: folder.to_path_buf(),
            files: entry.files.iter().filter(|f| belongs(&f.path, &paths)).cloned().collect(),
            empty_folders: entry.empty_folders.iter().filter(|f| belongs(f, &paths)).cloned().collect(),
            paths,
        }
    }

    /// The file, where the output is one file or folder, else the folder it is in.
    pub fn path(&self) -> PathBuf {
        self.path_in(&self.folder)
    }

    fn path_in(&self, folder: &Path) -> PathBuf {
        match self.paths.as_slice() {
            [single] if single != "." => folder.join(single),
            _ => folder.to_path_buf(),
        }
    }

    fn damaged(&self, file: &RelPath, wrong: impl Into<String>, taken_out: bool) -> CacheError {
        CacheError::Damaged { file: file.clone(), from: self.from.clone(), wrong: wrong.into(), taken_out }
    }

    /// A stage that reads a folder reads what is in it: nothing may be there that is not part of the result.
    fn nothing_else(&self) -> Result<(), CacheError> {
        let root = self.path();
        if !fs::symlink_metadata(&root).is_ok_and(|m| m.is_dir()) {
            return Ok(());
        }
        for path in Tree::of(&root).map_err(at(&root))?.files {
            let path = RelPath::of(&path.under(&root), &self.folder);
            let is_part = self.files.binary_search_by(|file| file.path.cmp(&path)).is_ok();
            if belongs(&path, &self.paths) && !is_part {
                return Err(self.damaged(&path, "was put into the result's folder by somebody else", false));
            }
        }
        Ok(())
    }
}

impl Seen {
    /// Holds the files to what they were: whoever read them meanwhile read what their digests say.
    ///
    /// # Errors
    /// The first that was written to.
    pub fn still(&self, placed: &Placed, cancel: &Cancel) -> Result<(), CacheError> {
        for (file, path, before) in &self.0 {
            let now = Stamp::of(path).ok();
            if now == Some(*before) {
                continue;
            }
            // Another run may have linked the same bytes meanwhile.
            if !now.is_some_and(|now| now.is_same_but_for_names(before))
                || files::digest(path, cancel).ok() != Some(file.digest)
            {
                cancel.check()?;
                return Err(placed.damaged(&file.path, "changed while the stage was reading it", false));
            }
        }
        placed.nothing_else()
    }
}

impl Cache {
    /// Puts the files of a result into a folder, linked and read-only where the disk allows.
    pub(super) fn place(&self, entry: &Entry, folder: &Path) -> Result<(), CacheError> {
        fs::create_dir_all(folder).map_err(at(folder))?;
        for file in &entry.files {
            self.place_file(file, folder)?;
        }
        for path in &entry.empty_folders {
            let to = path.under(folder);
            fs::create_dir_all(&to).map_err(at(&to))?;
        }
        Ok(())
    }

    fn place_file(&self, file: &FileRef, folder: &Path) -> Result<(), CacheError> {
        let to = file.path.under(folder);
        if let Some(parent) = to.parent().filter(|p| *p != folder) {
            fs::create_dir_all(parent).map_err(at(parent))?;
        }
        match fs::hard_link(self.blob(file), &to) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(CacheError::Io { path: to, error })
            }
            // Another file system, one without links, or one more link than it has room for.
            Err(_) => Self::copy_file(&self.blob(file), &to, file.mode.bits(), &Cancel::default()),
        }
    }

    /// Copies a file to a name that is free.
    fn copy_file(from: &Path, to: &Path, bits: u32, cancel: &Cancel) -> Result<(), CacheError> {
        let source = File::open(from).map_err(at(from))?;
        let copy = OpenOptions::new().write(true).create_new(true).open(to).map_err(at(to))?;
        copy_content(&source, &copy, cancel).map_err(at(to))?;
        copy.set_permissions(Permissions::from_mode(bits)).map_err(at(to))
    }

    /// Reads every file of a placed output and holds it to its digest, before a stage computes from it. A file that
    /// is not right is put there anew if its blob is; else the result is taken out of the cache.
    ///
    /// # Errors
    /// [`CacheError::Damaged`]; the disk says no.
    pub fn check(&self, placed: &Placed, cancel: &Cancel) -> Result<Seen, CacheError> {
        let mut seen = Vec::with_capacity(placed.files.len());
        for file in &placed.files {
            let path = file.path.under(&placed.folder);
            let is_right = |path: &Path| {
                let kind = fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && Mode::of(&m) == file.mode);
                kind && files::digest(path, cancel).is_ok_and(|digest| digest == file.digest)
            };
            let mut stamp = Stamp::of(&path).ok();
            if !is_right(&path) {
                cancel.check()?;
                let _held = self.hold(cancel)?;
                if !is_right(&self.blob(file)) {
                    cancel.check()?;
                    self.take_out(&placed.key, file)?;
                    return Err(placed.damaged(&file.path, "is not what its digest says", true));
                }
                match fs::symlink_metadata(&path) {
                    Ok(there) if there.is_dir() => fs::remove_dir_all(&path).map_err(at(&path))?,
                    Ok(_) => fs::remove_file(&path).map_err(at(&path))?,
                    Err(_) => {}
                }
                self.place_file(file, &placed.folder)?;
                stamp = Stamp::of(&path).ok();
            }
            let stamp = stamp.ok_or_else(|| placed.damaged(&file.path, "is gone", false))?;
            seen.push((file.clone(), path, stamp));
        }
        for path in &placed.empty_folders {
            let path = path.under(&placed.folder);
            fs::create_dir_all(&path).map_err(at(&path))?;
        }
        placed.nothing_else()?;
        Ok(Seen(seen))
    }

    /// Copies a placed output into a folder, for a reader who may do with it as he likes; where it stands there.
    ///
    /// # Errors
    /// [`CacheError::Damaged`]; the disk says no.
    pub fn copy(&self, placed: &Placed, folder: &Path, cancel: &Cancel) -> Result<PathBuf, CacheError> {
        fs::create_dir_all(folder).map_err(at(folder))?;
        let _held = self.hold(cancel)?;
        for file in &placed.files {
            let to = file.path.under(folder);
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(at(parent))?;
            }
            // A run may still have what gc has taken out of the cache.
            let sources = [self.blob(file), file.path.under(&placed.folder)];
            let mut is_right = false;
            for source in sources.iter().filter(|source| source.exists()) {
                Self::copy_file(source, &to, file.mode.bits() | 0o200, cancel)?;
                is_right = files::digest(&to, cancel).map_err(at(&to))? == file.digest;
                if is_right {
                    break;
                }
                fs::remove_file(&to).map_err(at(&to))?;
            }
            if !is_right {
                self.take_out(&placed.key, file)?;
                return Err(placed.damaged(&file.path, "is not what its digest says", true));
            }
        }
        for path in &placed.empty_folders {
            let to = path.under(folder);
            fs::create_dir_all(&to).map_err(at(&to))?;
        }
        Ok(placed.path_in(folder))
    }

    /// Takes a result out of which a blob was found damaged, so that it is made anew.
    fn take_out(&self, key: &Key, file: &FileRef) -> Result<(), CacheError> {
        for path in [self.entry(key), self.blob(file)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&path)(error)),
                _ => {}
            }
        }
        Ok(())
    }
}
