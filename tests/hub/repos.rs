//! Repositories in memory: files, commits and branches, with the digests git and LFS would give them. The same
//! content makes the same commit. Does not know HTTP.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use sha1::{Digest, Sha1};
use sha2::Sha256;

use super::http::decoded;

/// When everything happened: a clock would make other commits every time.
pub const DATE: &str = "2026-01-01T00:00:00.000Z";

/// What git itself may hold; more has to go to LFS.
const LARGE: usize = 10 << 20;

/// Ends of the names of files that a new repository's `.gitattributes` gives to LFS.
const LFS: &str = "7z arrow bin bz2 ckpt ftz gguf gz h5 joblib mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl \
                   pt pth rar safetensors tar tflite tgz wasm xz zip zst";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Model,
    Dataset,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Model, Self::Dataset];

    /// `models` or `datasets`.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// What stands before the name in a repository's address.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
        }
    }
}

/// A file of a commit.
#[derive(Clone, Debug)]
pub struct File {
    pub bytes: Arc<Vec<u8>>,
    /// SHA-1 of git's blob, which is a pointer where the content is in LFS.
    pub oid: String,
    /// SHA-256 of the content of a file in LFS.
    pub sha256: Option<String>,
    pub pointer_size: usize,
}

impl File {
    pub fn new(path: &str, bytes: Arc<Vec<u8>>) -> Self {
        if is_lfs(path, bytes.len()) {
            return Self::in_lfs(bytes);
        }
        Self { oid: blob_oid(&bytes), bytes, sha256: None, pointer_size: 0 }
    }

    pub fn in_lfs(bytes: Arc<Vec<u8>>) -> Self {
        let sha256 = sha256(&bytes);
        let pointer = pointer(&sha256, bytes.len());
        Self { oid: blob_oid(&pointer), bytes, sha256: Some(sha256), pointer_size: pointer.len() }
    }

    /// By what the Hub names the content: the ETag of a download.
    pub fn etag(&self) -> &str {
        self.sha256.as_deref().unwrap_or(&self.oid)
    }

    /// What git holds.
    pub fn in_git(&self) -> Arc<Vec<u8>> {
        match &self.sha256 {
            Some(sha256) => Arc::new(pointer(sha256, self.bytes.len())),
            None => self.bytes.clone(),
        }
    }
}

/// Whether a file of this name and size goes to LFS.
pub fn is_lfs(path: &str, size: usize) -> bool {
    let end = path.rsplit_once('.').map_or("", |(_, end)| end);
    size > 0 && (size > LARGE || LFS.split(' ').any(|lfs| lfs == end))
}

/// Whether git takes it without LFS, whatever its name.
pub fn is_too_large_for_git(size: usize) -> bool {
    size > LARGE
}

pub type Files = BTreeMap<String, File>;

#[derive(Clone, Debug)]
pub struct Commit {
    pub id: String,
    pub parent: Option<String>,
    pub title: String,
    pub files: Files,
    /// Git's ids of the folders; the root's name is empty.
    pub folders: BTreeMap<String, String>,
}

impl Commit {
    fn new(parent: Option<&str>, title: &str, files: Files) -> Self {
        let mut folders = BTreeMap::new();
        let all: Vec<(&str, &File)> = files.iter().map(|(path, file)| (path.as_str(), file)).collect();
        let tree = folder_oid("", &all, &mut folders);
        let parents = parent.map(|id| format!("parent {id}\n")).unwrap_or_default();
        let who = "Hub <hub@localhost> 1767225600 +0000";
        let text = format!("tree {tree}\n{parents}author {who}\ncommitter {who}\n\n{title}\n");
        let id = object_oid("commit", text.as_bytes());
        Self { id, parent: parent.map(str::to_owned), title: title.into(), files, folders }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Repo {
    pub private: bool,
    /// Its files are for those who were let in, and nobody was.
    pub gated: bool,
    /// `main`, `any`, `refs/convert/parquet`, `refs/pr/1` → commit.
    pub branches: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
    commits: BTreeMap<String, Commit>,
}

impl Repo {
    /// As the Hub makes it: with one commit.
    pub fn new(private: bool) -> Self {
        let mut repo = Self { private, ..Self::default() };
        let attributes: String =
            LFS.split(' ').map(|end| format!("*.{end} filter=lfs diff=lfs merge=lfs -text\n")).collect();
        let file = File::new(".gitattributes", Arc::new(attributes.into_bytes()));
        repo.commit("main", "initial commit", [(".gitattributes".to_owned(), file)].into());
        repo
    }

    /// Puts a commit with these files on top of a branch, which is made where there is none.
    pub fn commit(&mut self, branch: &str, title: &str, files: Files) -> &Commit {
        let commit = Commit::new(self.branches.get(branch).map(String::as_str), title, files);
        self.branches.insert(branch.into(), commit.id.clone());
        self.commits.entry(commit.id.clone()).or_insert(commit)
    }

    /// By branch, tag or id.
    pub fn at(&self, revision: &str) -> Option<&Commit> {
        let name = revision.strip_prefix("refs/heads/").unwrap_or(revision);
        self.commits.get(self.branches.get(name).or_else(|| self.tags.get(name)).map_or(revision, |id| id))
    }

    /// From a commit back to the first.
    pub fn history(&self, commit: &Commit) -> Vec<Commit> {
        let mut all = vec![commit.clone()];
        while let Some(parent) = all.last().and_then(|last| self.commits.get(last.parent.as_ref()?)) {
            all.push(parent.clone());
        }
        all
    }
}

pub type Objects = BTreeMap<String, Arc<Vec<u8>>>;

pub type All = BTreeMap<(Kind, String), Repo>;

/// Everything a Hub holds.
#[derive(Default)]
pub struct Repos {
    pub all: All,
    /// What came for LFS, by SHA-256, whether or not a commit names it.
    pub objects: Objects,
}

impl Repos {
    /// Adds files to a branch in one commit, beside those that are there.
    pub fn add(&mut self, kind: Kind, id: &str, branch: &str, added: &[(String, Vec<u8>)]) -> String {
        let repo = self.all.entry((kind, id.into())).or_default();
        let mut files = repo.at(branch).map(|commit| commit.files.clone()).unwrap_or_default();
        for (path, bytes) in added {
            let file = File::new(path, Arc::new(bytes.clone()));
            if let Some(sha256) = &file.sha256 {
                self.objects.insert(sha256.clone(), file.bytes.clone());
            }
            files.insert(path.clone(), file);
        }
        repo.commit(branch, "Add files", files).id.clone()
    }

    /// Reads `models/OWNER/NAME/BRANCH/…` and `datasets/…`; `/` in a branch's name is `%2F`. The files `.private`
    /// and `.gated` beside the branches make a repository so.
    pub fn load(&mut self, root: &Path) {
        for kind in Kind::ALL {
            for owner in folders(&root.join(kind.plural())) {
                for name in folders(&root.join(kind.plural()).join(&owner)) {
                    let (folder, id) =
                        (root.join(kind.plural()).join(&owner).join(&name), format!("{owner}/{name}"));
                    for branch in folders(&folder) {
                        let mut files = Vec::new();
                        read_files(&folder.join(&branch), "", &mut files);
                        self.add(kind, &id, &decoded(&branch), &files);
                    }
                    let repo = self.all.entry((kind, id)).or_default();
                    repo.private = folder.join(".private").exists();
                    repo.gated = folder.join(".gated").exists();
                }
            }
        }
    }
}

fn folders(path: &Path) -> Vec<String> {
    let entries =
        std::fs::read_dir(path).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The files under a folder, with their paths from there.
pub fn read_files(folder: &Path, before: &str, files: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = format!("{before}{}", entry.file_name().into_string().unwrap());
        if entry.path().is_dir() {
            read_files(&entry.path(), &format!("{path}/"), files);
        } else {
            files.push((path, std::fs::read(entry.path()).unwrap()));
        }
    }
}

fn pointer(sha256: &str, size: usize) -> Vec<u8> {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n").into_bytes()
}

/// Git's id of a folder with these files, in the order of their paths; puts it and those inside into `folders`.
fn folder_oid(folder: &str, files: &[(&str, &File)], folders: &mut BTreeMap<String, String>) -> String {
    let start = if folder.is_empty() { 0 } else { folder.len() + 1 };
    // Git sorts a folder as if its name ended in a slash.
    let mut entries: BTreeMap<String, (&str, &str, String)> = BTreeMap::new();
    let mut rest = files;
    while let Some((path, file)) = rest.first() {
        let name = &path[start..];
        let Some((name, _)) = name.split_once('/') else {
            entries.insert(name.into(), ("100644", name, file.oid.clone()));
            rest = &rest[1..];
            continue;
        };
        let inner = &path[..start + name.len()];
        let is_inside = |path: &str| path.strip_prefix(inner).is_some_and(|after| after.starts_with('/'));
        let inside: Vec<_> = rest.iter().take_while(|(path, _)| is_inside(path)).copied().collect();
        rest = &rest[inside.len()..];
        let oid = folder_oid(inner, &inside, folders);
        entries.insert(format!("{name}/"), ("40000", name, oid));
    }
    let mut text = Vec::new();
    for (mode, name, oid) in entries.values() {
        text.extend_from_slice(format!("{mode} {name}\0").as_bytes());
        text.extend((0..40).step_by(2).map(|i| u8::from_str_radix(&oid[i..i + 2], 16).unwrap()));
    }
    let oid = object_oid("tree", &text);
    folders.insert(folder.into(), oid.clone());
    oid
}

fn object_oid(kind: &str, content: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("{kind} {}\0", content.len()));
    hasher.update(content);
    hex(&hasher.finalize())
}

/// SHA-1 of git's blob.
pub fn blob_oid(content: &[u8]) -> String {
    object_oid("blob", content)
}

pub fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
