//! Files that say whether they are still what was written: JSON with its own digest at the end, and folders with a
//! list of the digests of their files.
//!
//! Finds damage by chance (a bit, a cut, a page that was lost); is no protection against somebody who can compute
//! a digest. Does not know what the files mean.

use std::fs;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cancel::Cancel;
use crate::files::{self, RelPath};
use crate::fingerprint::Digest;

/// The list of a sealed folder's files.
pub const SEAL: &str = "seal.json";
/// What stands between the content and its digest.
const BEFORE: &[u8] = b",\n  \"seal\": \"";
/// What stands behind the digest.
const BEHIND: &[u8] = b"\"\n}\n";

/// Why a sealed file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// There is no seal at its end: cut, or written by something else.
    #[error("it has no seal: it is cut off, or pipe did not write it")]
    NoSeal,
    /// The seal is of other bytes.
    #[error("it is not what was written: its seal does not fit")]
    Broken,
    /// As it was written, and not what is needed.
    #[error("{0}")]
    NotJson(#[from] serde_json::Error),
}

/// A JSON object whose last member, `seal`, is the BLAKE3 digest of all bytes before that member.
///
/// # Errors
/// The value is no JSON object with at least one member.
pub fn to_bytes(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    if !bytes.ends_with(b"\n}") {
        return Err(serde::ser::Error::custom("only an object can be sealed"));
    }
    bytes.truncate(bytes.len() - 2);
    let digest = Digest::of(&bytes);
    bytes.extend_from_slice(BEFORE);
    bytes.extend_from_slice(digest.to_string().as_bytes());
    bytes.extend_from_slice(BEHIND);
    Ok(bytes)
}

/// What [`to_bytes`] was given.
///
/// # Errors
/// See [`SealError`].
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, SealError> {
    check(bytes)?;
    Ok(serde_json::from_slice(bytes)?)
}

/// Whether the bytes are those that [`to_bytes`] wrote.
///
/// # Errors
/// [`SealError::NoSeal`] or [`SealError::Broken`].
pub fn check(bytes: &[u8]) -> Result<(), SealError> {
    const HEX: usize = 64;
    let rest = bytes.strip_suffix(BEHIND).ok_or(SealError::NoSeal)?;
    let (rest, digest) = rest.split_at_checked(rest.len().saturating_sub(HEX)).ok_or(SealError::NoSeal)?;
    let content = rest.strip_suffix(BEFORE).ok_or(SealError::NoSeal)?;
    if Digest::of(content).to_string().as_bytes() == digest { Ok(()) } else { Err(SealError::Broken) }
}

/// The files of a sealed folder.
#[derive(Serialize, Deserialize)]
struct Seal {
    files: Vec<Sealed>,
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    path: RelPath,
    size: u64,
    digest: Digest,
}

/// Writes [`SEAL`] into a folder: the digests of all files that are in it.
///
/// # Errors
/// What the disk says; the error names the file.
pub fn seal_folder(folder: &Path) -> io::Result<()> {
    let mut seal = Seal { files: Vec::new() };
    for path in files::Tree::of(folder)?.files {
        let full = path.under(folder);
        let digest = files::digest(&full, &Cancel::default()).map_err(files::named(&full))?;
        seal.files.push(Sealed { size: fs::metadata(&full)?.len(), digest, path });
    }
    files::write_atomically(&folder.join(SEAL), &to_bytes(&seal)?)
}

/// Whether a folder is as it was when it was sealed; if not, in what.
///
/// # Errors
/// A sentence: which file is not what was sealed.
pub fn check_folder(folder: &Path, cancel: &Cancel) -> Result<(), String> {
    let bytes = fs::read(folder.join(SEAL)).map_err(|e| format!("{SEAL}: {e}"))?;
    let seal: Seal = from_bytes(&bytes).map_err(|e| format!("{SEAL}: {e}"))?;
    let mut there = files::Tree::of(folder).map_err(|e| e.to_string())?.files;
    there.retain(|path| path.as_bytes() != SEAL.as_bytes());
    if let Some(more) = there.iter().find(|path| !seal.files.iter().any(|f| f.path == **path)) {
        return Err(format!("{more} was not there when it was sealed"));
    }
    for file in &seal.files {
        let full = file.path.under(folder);
        let size = fs::symlink_metadata(&full).map_err(|e| format!("{}: {e}", file.path))?.len();
        if size != file.size {
            return Err(format!("{} has {size} bytes; {} were written", file.path, file.size));
        }
        let digest = files::digest(&full, cancel).map_err(|e| format!("{}: {e}", file.path))?;
        if digest != file.digest {
            return Err(format!("{} is not what its digest says", file.path));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn any_change_of_a_sealed_file_is_found() {
        let value = json!({ "a": 0.1, "b": ["c", { "d": null }] });
        let bytes = to_bytes(&value).unwrap();
        let mut with_seal = from_bytes::<Value>(&bytes).unwrap();
        assert!(with_seal.as_object_mut().unwrap().remove("seal").is_some());
        assert_eq!(with_seal, value);
        for at in 0..bytes.len() {
            assert!(check(&bytes[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                assert!(check(&changed).is_err(), "bit {bit} of byte {at}");
            }
        }
        assert!(check(&[&bytes[..], b"\n"].concat()).is_err());
        assert!(check(b"").is_err());
        assert!(to_bytes(&json!([1])).is_err() && to_bytes(&json!({})).is_err());
    }

    #[test]
    fn any_change_in_a_sealed_folder_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("sub/b"));
        fs::create_dir(b.parent().unwrap()).unwrap();
        let write = || {
            fs::write(&a, "one").unwrap();
            fs::write(&b, "two").unwrap();
        };
        write();
        seal_folder(dir.path()).unwrap();
        let wrong = || check_folder(dir.path(), &Cancel::default()).unwrap_err();
        check_folder(dir.path(), &Cancel::default()).unwrap();
        fs::write(&a, "onf").unwrap();
        assert_eq!(wrong(), "a is not what its digest says");
        fs::write(&a, "on").unwrap();
        assert_eq!(wrong(), "a has 2 bytes; 3 were written");
        write();
        fs::remove_file(&b).unwrap();
        assert_eq!(wrong(), "sub/b: No such file or directory (os error 2)");
        write();
        fs::write(dir.path().join("c"), "").unwrap();
        assert_eq!(wrong(), "c was not there when it was sealed");
    }
}
