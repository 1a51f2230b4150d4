//! Runs taken out, and what of the disk that gives back.
//!
//! Knows folders, links and the lock of a run that is going on; does not know what a run did.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::files::{named, remove_tree, walk};
use crate::history::{self, Home};

/// What the removal of some runs gives back, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Of files that nothing else has.
    pub freed: u64,
    /// Of files that the cache has too.
    pub cached: u64,
    /// Of files that something else has too, such as another run.
    pub elsewhere: u64,
}

/// One file under all its names.
type Inode = (u64, u64);

/// What removing these folders would give back.
pub fn weigh(home: &Home, folders: &[PathBuf]) -> Weight {
    let mut links: BTreeMap<Inode, (u64, u64, u64)> = BTreeMap::new();
    for file in folders.iter().flat_map(|folder| walk(folder)) {
        let Ok(found) = fs::symlink_metadata(&file) else { continue };
        links.entry((found.dev(), found.ino())).or_insert((0, found.nlink(), found.len())).0 += 1;
    }
    let shared = links.values().any(|(here, all, _)| here < all);
    let cached: BTreeSet<Inode> = if shared { inodes(&home.cache()) } else { BTreeSet::new() };
    let mut weight = Weight::default();
    for (inode, (here, all, bytes)) in links {
        *match () {
            () if here >= all => &mut weight.freed,
            () if cached.contains(&inode) => &mut weight.cached,
            () => &mut weight.elsewhere,
        } += bytes;
    }
    weight
}

fn inodes(folder: &Path) -> BTreeSet<Inode> {
    let files = walk(folder).into_iter().filter_map(|file| fs::symlink_metadata(file).ok());
    files.map(|found| (found.dev(), found.ino())).collect()
}

/// Removes the folder of a run, unless that is going on: then it stays and the answer is `false`.
///
/// # Errors
/// What the disk says; the error names the file.
pub fn remove(folder: &Path) -> io::Result<bool> {
    let Some(_held) = history::hold(folder)? else { return Ok(false) };
    remove_tree(folder).map_err(named(folder))?;
    Ok(true)
}

/// Has `runs/latest` point to the newest run that is left, if what it pointed to is gone.
///
/// # Errors
/// What the disk says; the error names the file.
pub fn repoint_latest(home: &Home) -> io::Result<()> {
    if home.has_latest() { Ok(()) } else { home.point_latest(home.run_names().first().map(String::as_str)) }
}
