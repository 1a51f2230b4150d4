//! Files and folders as bytes: relative paths of any name, walks, digests, writes that are whole or not at all.
//!
//! Knows no stage, no cache and no key.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::cancel::{Cancel, Interrupted};
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
    pub fn parse(text: &str) -> Option<Self> {
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

/// An error of the disk that names the file: `PATH: No such file or directory (os error 2)`. That somebody asked to
/// stop is no error of the disk.
pub fn named(path: &Path) -> impl Fn(io::Error) -> io::Error + '_ {
    move |error| match Interrupted::is(&error) {
        true => error,
        false => io::Error::new(error.kind(), format!("{}: {error}", shown(path))),
    }
}

/// A path as text: bytes that are no UTF-8 as in a [`RelPath`].
pub fn shown(path: &Path) -> String {
    match path.to_str() {
        Some(text) => text.to_owned(),
        None if path.is_absolute() => format!("/{}", RelPath::of(path, Path::new("/"))),
        None => RelPath::of(path, Path::new("")).to_string(),
    }
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

/// Opens a file to read it.
///
/// # Errors
/// What the disk says. What is no plain file is refused: a pipe or a device may never come to an end.
pub fn open(path: &Path) -> io::Result<File> {
    plain(&fs::metadata(path)?)?;
    // Should it have become a pipe since, this does not wait for a writer.
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    plain(&file.metadata()?)?;
    Ok(file)
}

fn plain(metadata: &Metadata) -> io::Result<()> {
    match other_than_a_file(metadata.file_type()) {
        None => Ok(()),
        Some(word) => {
            let message = format!("this is {word}, and a file is needed");
            Err(io::Error::new(io::ErrorKind::InvalidInput, message))
        }
    }
}

/// What something is that is no plain file, in words.
pub fn other_than_a_file(kind: FileType) -> Option<&'static str> {
    match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("a folder"),
        () if kind.is_symlink() => Some("a symbolic link"),
        () if kind.is_fifo() => Some("a named pipe"),
        () if kind.is_socket() => Some("a socket"),
        () => Some("a device"),
    }
}

/// A file's content, unless somebody asks to stop.
///
/// # Errors
/// As [`digest`].
pub fn read(path: &Path, cancel: &Cancel) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    let mut bytes = Vec::with_capacity(usize::try_from(file.metadata()?.len()).unwrap_or(0));
    while (&mut file).take(CHUNK as u64).read_to_end(&mut bytes)? > 0 {
        cancel.check()?;
    }
    Ok(bytes)
}

/// Bytes read between two looks at whether to stop: a thirtieth of a second where a disk gives 100 MB/s.
const CHUNK: usize = 4 << 20;

/// Files from this size on are read by several threads.
const LARGE: u64 = 4 * BLOCK;

/// What a thread reads and digests at a time: a power of two, as BLAKE3's tree divides its input.
const BLOCK: u64 = 1 << 20;

/// The digest of a file's content.
///
/// Read, not mapped: a mapped file that shrinks meanwhile would end the process.
///
/// # Errors
/// What the disk says, or [`crate::cancel::Interrupted`] inside an error. What is no plain file is refused.
pub fn digest(path: &Path, cancel: &Cancel) -> io::Result<Digest> {
    let mut file = open(path)?;
    let size = file.metadata()?.len();
    match size < LARGE {
        true => digest_of(&mut file, cancel),
        false => digest_of_blocks(&file, size, cancel),
    }
}

/// The digest of a large file: its blocks, digested by as many threads as can be had, put together.
fn digest_of_blocks(file: &File, size: u64, cancel: &Cancel) -> io::Result<Digest> {
    const MOST: usize = 8;
    let blocks = usize::try_from(size.div_ceil(BLOCK)).map_err(io::Error::other)?;
    let next = AtomicUsize::new(0);
    let work = || -> io::Result<Vec<(usize, ChainingValue)>> {
        let (mut buffer, mut done) = (vec![0; BLOCK as usize], Vec::new());
        loop {
            let block = next.fetch_add(1, Ordering::Relaxed);
            if block >= blocks {
                return Ok(done);
            }
            cancel.check()?;
            let from = block as u64 * BLOCK;
            let bytes = &mut buffer[..(size - from).min(BLOCK) as usize];
            file.read_exact_at(bytes, from)?;
            let mut hasher = blake3::Hasher::new();
            done.push((block, hasher.set_input_offset(from).update(bytes).finalize_non_root()));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MOST);
    let mut done = std::thread::scope(|scope| {
        // A thread that can't be had is one less: this one does what is left.
        let start = |_| std::thread::Builder::new().spawn_scoped(scope, work).ok();
        let others: Vec<_> = (1..threads).filter_map(start).collect();
        let mut done = work()?;
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        io::Result::Ok(done)
    })?;
    done.sort_unstable_by_key(|(block, _)| *block);
    let values: Vec<ChainingValue> = done.into_iter().map(|(_, value)| value).collect();
    let (left, right) = values.split_at(left_half(values.len()));
    Ok(merge_subtrees_root(&merged(left), &merged(right), Mode::Hash).into())
}

/// The value of the tree over these blocks, which is a part of a larger one.
fn merged(values: &[ChainingValue]) -> ChainingValue {
    match values {
        [only] => *only,
        many => {
            let (left, right) = many.split_at(left_half(many.len()));
            merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
        }
    }
}

/// How many of some blocks are in the left half of BLAKE3's tree: the largest power of two below their number.
fn left_half(blocks: usize) -> usize {
    blocks.div_ceil(2).next_power_of_two()
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

/// The files below a folder, by names joined by `/`, as data is looked for: links are followed, names that begin with
/// a dot are left out, a folder is not entered while it is one of its own ancestors. A link to nothing counts as a
/// file: whoever opens it says that it is missing. Sorted.
///
/// `enter` is asked for each folder whether to look into it.
///
/// # Errors
/// A folder can't be read, or what is found there is neither file nor folder: the error names it. Or
/// [`crate::cancel::Interrupted`] inside an error.
pub fn visible(folder: &Path, cancel: &Cancel, enter: &dyn Fn(&RelPath) -> bool) -> io::Result<Vec<RelPath>> {
    let top = fs::metadata(folder).map_err(named(folder))?;
    let mut walk = Visible { folder, cancel, enter, above: vec![(top.dev(), top.ino())], files: Vec::new() };
    walk.below(folder)?;
    walk.files.sort();
    Ok(walk.files)
}

/// Whether it is for a link that nothing is where it leads to; one that leads round to itself is such.
pub fn leads_nowhere(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ELOOP as i32)
}

struct Visible<'a> {
    folder: &'a Path,
    cancel: &'a Cancel,
    enter: &'a dyn Fn(&RelPath) -> bool,
    /// Device and inode of the folders that the walk is in.
    above: Vec<(u64, u64)>,
    files: Vec<RelPath>,
}

impl Visible<'_> {
    fn below(&mut self, folder: &Path) -> io::Result<()> {
        self.cancel.check()?;
        // All names first: a folder that is held open at every level would be too many at once.
        let items: io::Result<Vec<_>> = fs::read_dir(folder).map_err(named(folder))?.collect();
        for item in items.map_err(named(folder))? {
            if item.file_name().as_bytes().starts_with(b".") {
                continue;
            }
            let (path, kind) = (item.path(), item.file_type().map_err(named(folder))?);
            let relative = RelPath::of(&path, self.folder);
            if kind.is_file() {
                self.files.push(relative);
                continue;
            }
            let metadata = match fs::metadata(&path) {
                Err(error) if kind.is_symlink() && leads_nowhere(&error) => {
                    self.files.push(relative);
                    continue;
                }
                other => other.map_err(named(&path))?,
            };
            if !metadata.is_dir() {
                plain(&metadata).map_err(named(&path))?;
                self.files.push(relative);
                continue;
            }
            let id = (metadata.dev(), metadata.ino());
            if !self.above.contains(&id) && (self.enter)(&relative) {
                self.above.push(id);
                self.below(&path)?;
                self.above.pop();
            }
        }
        Ok(())
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

/// Removes a folder and all below it, also what is in folders that may not be written; none there is no error.
///
/// # Errors
/// What the disk says.
pub fn remove_tree(folder: &Path) -> io::Result<()> {
    let removed = match fs::remove_dir_all(folder) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            make_accessible(folder)?;
            fs::remove_dir_all(folder)
        }
        other => other,
    };
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Gives the owner every right to a folder and those below it; links are not followed.
///
/// # Errors
/// What the disk says; the error names the folder.
pub fn make_accessible(folder: &Path) -> io::Result<()> {
    let mut open = vec![folder.to_path_buf()];
    while let Some(next) = open.pop() {
        let mode = fs::symlink_metadata(&next).map_err(named(&next))?.mode();
        if mode & 0o700 != 0o700 {
            fs::set_permissions(&next, fs::Permissions::from_mode(mode & 0o7777 | 0o700))
                .map_err(named(&next))?;
        }
        for item in fs::read_dir(&next).map_err(named(&next))? {
            let item = item.map_err(named(&next))?;
            if item.file_type().map_err(named(&next))?.is_dir() {
                open.push(item.path());
            }
        }
    }
    Ok(())
}

/// What tells a folder from another one in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FolderId {
    device: u64,
    inode: u64,
}

impl FolderId {
    /// Of the folder at a path; a link to one is none.
    ///
    /// # Errors
    /// There is none; what the disk says.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(folder)?;
        match found.is_dir() {
            true => Ok(Self { device: found.dev(), inode: found.ino() }),
            false => Err(io::ErrorKind::NotADirectory.into()),
        }
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
    fn a_large_file_has_the_digest_of_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let block = BLOCK as usize;
        let mut bytes: Vec<u8> = (0..9 * block + 77).map(|n: usize| ((n * n) >> 7) as u8).collect();
        for size in [9 * block + 77, 9 * block, 8 * block + 1, 8 * block, 5 * block - 1, 4 * block, 1, 0] {
            bytes.truncate(size);
            fs::write(&path, &bytes).unwrap();
            assert_eq!(digest(&path, &Cancel::default()).unwrap(), Digest::of(&bytes), "{size} bytes");
        }
        let cancel = Cancel::default();
        cancel.cancel();
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(Interrupted::is(&digest(&path, &cancel).unwrap_err()));
    }

    #[test]
    fn what_is_no_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, socket) = (dir.path().join("pipe"), dir.path().join("socket"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _held = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let refusal = |path: &Path| digest(path, &Cancel::default()).unwrap_err().to_string();
        assert_eq!(refusal(&pipe), "this is a named pipe, and a file is needed");
        assert_eq!(refusal(&socket), "this is a socket, and a file is needed");
        assert_eq!(refusal(Path::new("/dev/zero")), "this is a device, and a file is needed");
        assert_eq!(refusal(dir.path()), "this is a folder, and a file is needed");
        let error = visible(dir.path(), &Cancel::default(), &|_| true).unwrap_err().to_string();
        assert!(error.ends_with(", and a file is needed"), "{error}");
        fs::remove_file(&pipe).unwrap();
        let error = visible(dir.path(), &Cancel::default(), &|_| true).unwrap_err().to_string();
        assert_eq!(error, format!("{}: this is a socket, and a file is needed", socket.display()));
    }

    #[test]
    fn a_walk_follows_links_and_never_goes_round() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("top/a/b")).unwrap();
        fs::create_dir_all(at("elsewhere")).unwrap();
        for file in ["top/a/1", "top/.hidden", "elsewhere/2"] {
            fs::write(at(file), "").unwrap();
        }
        symlink("..", at("top/a/b/up")).unwrap();
        symlink(".", at("top/again")).unwrap();
        symlink("../elsewhere", at("top/link")).unwrap();
        symlink("../elsewhere", at("top/other")).unwrap();
        symlink("../elsewhere/2", at("top/file")).unwrap();
        symlink("nowhere", at("top/gone")).unwrap();
        symlink("self", at("top/self")).unwrap();
        let walk = |enter: &dyn Fn(&RelPath) -> bool| {
            let found = visible(&at("top"), &Cancel::default(), enter).unwrap();
            found.iter().map(RelPath::to_string).collect::<Vec<_>>()
        };
        assert_eq!(walk(&|_| true), ["a/1", "file", "gone", "link/2", "other/2", "self"]);
        assert_eq!(walk(&|_| false), ["file", "gone", "self"]);
        let error = visible(&at("none"), &Cancel::default(), &|_| true).unwrap_err().to_string();
        assert_eq!(error, format!("{}: No such file or directory (os error 2)", at("none").display()));
    }

    #[test]
    fn a_digest_that_nobody_waits_for_ends() {
        let cancel = Cancel::default();
        cancel.cancel();
        let error = digest_of(&mut io::repeat(0), &cancel).unwrap_err();
        assert!(crate::cancel::Interrupted::is(&error));
    }
}
