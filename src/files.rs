//! Files and folders as bytes: relative paths of any name, walks, digests, writes that are whole or not at all.
//!
//! Knows no stage, no cache and no key.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::cancel::Cancel;
use crate::fingerprint::Digest;

/// A path below a folder: names joined by `/`, each any bytes but `/` and NUL, none of them `.` or `..`.
///
/// As text, a byte that is no UTF-8 is written `\xE9` and a backslash is doubled, so that no two paths share one text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(Vec<u8>);

impl RelPath {
    /// The part of `path` below `folder`.
    pub fn of(path: &Path, folder: &Path) -> Self {
        let inner = path.strip_prefix(folder).unwrap_or(path);
        let names = inner.components().filter_map(|c| match c {
            Component::Normal(name) => Some(name.as_bytes()),
            _ => None,
        });
        Self(names.collect::<Vec<_>>().join(&b'/'))
    }

    /// The bytes, names joined by `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path as the system takes it.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// Where it is if it starts from `folder`.
    pub fn under(&self, folder: &Path) -> PathBuf {
        folder.join(self.as_path())
    }

    /// The names it is made of.
    pub fn names(&self) -> impl Iterator<Item = &OsStr> {
        self.0.split(|b| *b == b'/').map(OsStr::from_bytes)
    }

    /// Whether it is `other` or stands below it.
    pub fn is_within(&self, other: &Path) -> bool {
        self.as_path().starts_with(other)
    }

    /// From its text; none if that is no path below a folder.
    fn parse(text: &str) -> Option<Self> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((first, more)) = rest.split_first() {
            rest = match (first, more) {
                (b'\\', [b'\\', more @ ..]) => {
                    bytes.push(b'\\');
                    more
                }
                (b'\\', [b'x', high, low, more @ ..]) => {
                    let digit = |byte: u8| char::from(byte).to_digit(16);
                    bytes.push(u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?);
                    more
                }
                (b'\\', _) => return None,
                (byte, more) => {
                    bytes.push(*byte);
                    more
                }
            };
        }
        let is_name = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
        bytes.split(|b| *b == b'/').all(is_name).then_some(Self(bytes))
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(&chunk.valid().replace('\\', "\\\\"))?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02X}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no path below a folder")))
    }
}

/// What is below a folder; links are not followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Everything that is no folder, sorted.
    pub files: Vec<RelPath>,
    /// Folders with nothing in them, sorted.
    pub empty_folders: Vec<RelPath>,
}

impl Tree {
    /// Reads the names below a folder.
    ///
    /// # Errors
    /// A folder can't be read; the error names it.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let mut tree = Self::default();
        let mut open = vec![folder.to_path_buf()];
        while let Some(next) = open.pop() {
            let mut is_empty = true;
            for item in fs::read_dir(&next).map_err(named(&next))? {
                let item = item.map_err(named(&next))?;
                is_empty = false;
                if item.file_type().map_err(named(&next))?.is_dir() {
                    open.push(item.path());
                } else {
                    tree.files.push(RelPath::of(&item.path(), folder));
                }
            }
            if is_empty && next != folder {
                tree.empty_folders.push(RelPath::of(&next, folder));
            }
        }
        tree.files.sort();
        tree.empty_folders.sort();
        Ok(tree)
    }
}

/// An error of the disk that names the file: `PATH: No such file or directory (os error 2)`.
pub fn named(path: &Path) -> impl Fn(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Every file below a folder, sorted; links are not followed, and what can't be read is left out.
pub fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        let Ok(read) = fs::read_dir(&next) else { continue };
        for item in read.flatten() {
            let path = item.path();
            if item.file_type().is_ok_and(|t| t.is_dir()) { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// Bytes read between two looks at whether to stop: a thirtieth of a second where a disk gives 100 MB/s.
const CHUNK: usize = 4 << 20;

/// The digest of a file's content.
///
/// Read, not mapped: a mapped file that shrinks meanwhile would end the process.
///
/// # Errors
/// What the disk says, or [`crate::cancel::Interrupted`] inside an error.
pub fn digest(path: &Path, cancel: &Cancel) -> io::Result<Digest> {
    digest_of(&mut File::open(path)?, cancel)
}

/// The digest of all that is left to read.
///
/// # Errors
/// As [`digest`].
pub fn digest_of(file: &mut impl Read, cancel: &Cancel) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = Vec::new();
    loop {
        cancel.check()?;
        buffer.clear();
        let read = file.take(CHUNK as u64).read_to_end(&mut buffer)?;
        if read == 0 {
            return Ok(hasher.finalize().into());
        }
        hasher.update(&buffer);
    }
}

/// Writes beside the target and renames: a reader sees the old file or the new one, never a half.
///
/// # Errors
/// What the disk says.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Removes a folder and all below it; none there is no error.
///
/// # Errors
/// What the disk says.
pub fn remove_tree(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_bytes_come_back_from_their_text() {
        for name in
            [&b"a"[..], b"d/e.txt", b"l\xe9.txt", b"l\xe8.txt", br"\xE9", "é/日".as_bytes(), b"a\\b", b"a\nb"]
        {
            let path = RelPath(name.to_vec());
            let text = serde_json::to_string(&path).unwrap();
            assert_eq!(serde_json::from_str::<RelPath>(&text).unwrap(), path, "{text}");
        }
        assert_eq!(RelPath(b"l\xe9\\".to_vec()).to_string(), r"l\xE9\\");
    }

    #[test]
    fn a_text_that_leads_out_of_the_folder_is_no_path() {
        for text in ["", "/a", "a//b", "..", "a/../b", "./a", r"a\q", r"\x2", "a\\x00"] {
            assert_eq!(RelPath::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn empty_folders_are_part_of_a_tree() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("x/empty")).unwrap();
        fs::write(dir.path().join("x/file"), "").unwrap();
        std::os::unix::fs::symlink("..", dir.path().join("x/link")).unwrap();
        let tree = Tree::of(dir.path()).unwrap();
        let text = |paths: &[RelPath]| paths.iter().map(RelPath::to_string).collect::<Vec<_>>();
        assert_eq!(text(&tree.files), ["x/file", "x/link"]);
        assert_eq!(text(&tree.empty_folders), ["x/empty"]);
    }

    #[test]
    fn a_digest_that_nobody_waits_for_ends() {
        let cancel = Cancel::default();
        cancel.cancel();
        let error = digest_of(&mut io::repeat(0), &cancel).unwrap_err();
        assert!(crate::cancel::Interrupted::is(&error));
    }
}
