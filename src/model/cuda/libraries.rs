//! CUDA's libraries: found where the system's loader finds them, or where a toolkit was put.
//!
//! None of them is needed to start the program: each is looked for when it is first needed.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};

use crate::device::NoCards;

/// The versions that will do, the newest first.
const VERSIONS: [&str; 2] = ["13", "12"];

/// Libraries that were found in a folder; they stay, so that they are found by name from then on.
static KEPT: Mutex<Vec<Library>> = Mutex::new(Vec::new());

/// Whether the driver is there.
pub fn driver() -> bool {
    // SAFETY: loading the driver's library runs its initialisation, which is what it is for.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

/// Looks for a library of the toolkit, `libcublas` say.
///
/// # Errors
/// It is nowhere.
pub fn find(library: &'static str) -> Result<(), NoCards> {
    let names: Vec<String> = VERSIONS.iter().map(|version| format!("{library}.so.{version}")).collect();
    let homes = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(std::env::var_os).map(PathBuf::from);
    let homes = homes.chain([PathBuf::from("/usr/local/cuda")]);
    let folders =
        homes.flat_map(|home| ["lib64", "lib", "targets/x86_64-linux/lib"].map(|part| home.join(part)));
    let bare = names.iter().map(PathBuf::from);
    let within = folders.flat_map(|folder| names.iter().map(|name| folder.join(name)).collect::<Vec<_>>());
    for path in bare.chain(within) {
        if path.is_absolute() && path.exists() {
            load_companions(library, &path);
        }
        if load(&path) {
            return Ok(());
        }
    }
    Err(NoCards::NoLibrary { library })
}

/// Loads what a library in a folder looks for by name alone, from the same folder.
fn load_companions(library: &str, path: &Path) {
    let companion = match library {
        "libnvrtc" => "libnvrtc-builtins.so.",
        _ => "libcublasLt.so.",
    };
    let beside = path.parent().and_then(|folder| std::fs::read_dir(folder).ok());
    for file in beside.into_iter().flatten().flatten() {
        if file.file_name().to_string_lossy().starts_with(companion) {
            load(&file.path());
        }
    }
}

/// Whether a library could be loaded; it stays then.
fn load(path: &Path) -> bool {
    // SAFETY: loading one of CUDA's libraries runs its initialisation, which is what it is for.
    match unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_GLOBAL) } {
        Ok(found) => {
            KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(found);
            true
        }
        Err(_) => false,
    }
}
