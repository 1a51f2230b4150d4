//! The content of files and folders outside the pipeline, as digests for the keys.
//!
//! A memory of (path, size, time, inode) → digest keeps a large model from being read again on every run;
//! does not know what the files mean.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::artifact::adapter;
use crate::files::{self, RelPath, walk, write_atomically};
use crate::fingerprint::Digest;
use crate::hub::{Hub, HubError, Reads, RepoName, Want};
use crate::location::{Location, Place};
use crate::stage::{Cancel, Content, Source};

/// What tells that a file was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    modified_s: i64,
    modified_ns: i64,
    inode: u64,
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let m = fs::metadata(path)?;
        Ok(Self { size: m.len(), modified_s: m.mtime(), modified_ns: m.mtime_nsec(), inode: m.ino() })
    }
}

/// The identity of one outside source at the time it was looked at.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// Goes into the key.
    pub value: String,
    stamps: Vec<(PathBuf, Stamp)>,
}

impl Pinned {
    /// The first of its files that is no longer what it was.
    pub fn changed(&self) -> Option<&Path> {
        self.stamps.iter().find(|(p, s)| Stamp::of(p).ok() != Some(*s)).map(|(p, _)| p.as_path())
    }
}

/// An outside source that can't be identified.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The disk says no.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The Hub says no.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// An adapter that can't be read.
    #[error(transparent)]
    Adapter(#[from] adapter::AdapterError),
    /// An adapter that does not tell its model.
    #[error("the adapter {0} does not tell which model it is for")]
    NoBase(String),
}

impl SourceError {
    /// What to do, where that is known.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Hub(error) => error.help(),
            Self::NoBase(_) => Some("name the model under `model`".into()),
            Self::Io(_) | Self::Adapter(_) => None,
        }
    }
}

/// Digests of outside files, each file read once while it stays as it is; pins of what is on the Hub.
pub struct Sources {
    /// Where names on the Hub are looked up.
    pub hub: Hub,
    file: PathBuf,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    known: BTreeMap<PathBuf, (Stamp, Digest)>,
    grown: bool,
}

impl Sources {
    /// With what earlier runs remembered in this folder.
    pub fn open(folder: &Path, hub: Hub) -> Self {
        let file = folder.join("sources.json");
        let known = fs::read(&file).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
        Self { hub, file, memory: Mutex::new(Memory { known, grown: false }) }
    }

    /// The identity of what a source stands for.
    pub fn pin(&self, source: &Source, cancel: &Cancel) -> Result<Pinned, SourceError> {
        match &source.content {
            Content::Files => Ok(self.pin_files(&source.location)?),
            Content::Repository(reads) => self.pin_repository(&source.location, reads, cancel),
            Content::BaseModel { revision } => {
                let base = base_model(&self.hub, &source.location, revision.as_deref(), cancel)?;
                let reads = Reads { want: Want::Model, revision: base.revision };
                self.pin_repository(&base.location, &reads, cancel)
            }
        }
    }

    fn pin_repository(
        &self,
        location: &Location,
        reads: &Reads,
        cancel: &Cancel,
    ) -> Result<Pinned, SourceError> {
        let Place::Hub(name) = location.resolve() else { return Ok(self.pin_files(location)?) };
        let pin = self.hub.pin(&name.parse()?, reads, cancel)?;
        Ok(Pinned { value: format!("hub:{}", pin.identity()), stamps: Vec::new() })
    }

    /// The identity of files. What is missing is named, not read: the stage says what is wrong with it.
    fn pin_files(&self, location: &Location) -> io::Result<Pinned> {
        let (files, folder) = match location.resolve() {
            Place::Local(path) if path.is_dir() => (visible_files(&path), Some(path)),
            Place::Local(path) => (vec![path], None),
            Place::Glob(pattern) => {
                let found = glob::glob(&pattern).map(|g| g.flatten().filter(|p| p.is_file()).collect());
                (found.unwrap_or_default(), Some(location.base().to_path_buf()))
            }
            Place::Hub(_) | Place::Missing(_) => {
                return Ok(Pinned { value: "missing".into(), stamps: Vec::new() });
            }
        };
        let mut hasher = blake3::Hasher::new();
        let mut stamps = Vec::new();
        for path in files {
            let (stamp, digest) = self.digest(&path)?;
            // The name of a lone file does not matter, those inside a folder do: they tell the splits.
            let name =
                folder.as_ref().map(|folder| RelPath::of(&path, folder).to_string()).unwrap_or_default();
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(digest.to_string().as_bytes());
            stamps.push((path, stamp));
        }
        Ok(Pinned { value: Digest::from(hasher.finalize()).to_string(), stamps })
    }

    fn digest(&self, path: &Path) -> io::Result<(Stamp, Digest)> {
        let full = path.canonicalize()?;
        let stamp = Stamp::of(&full)?;
        {
            let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((known, digest)) = memory.known.get(&full)
                && *known == stamp
            {
                return Ok((stamp, *digest));
            }
        }
        let digest = files::digest(&full, &Cancel::default())?;
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        // A file touched within the clock's grain of now could change without its time changing.
        if settled(&stamp) && Stamp::of(&full)? == stamp {
            memory.known.insert(full, (stamp, digest));
            memory.grown = true;
        }
        Ok((stamp, digest))
    }

    /// Keeps what was learned for the next run; writes nothing if that is nothing.
    pub fn save(&self) -> io::Result<()> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if !memory.grown {
            return Ok(());
        }
        memory.known.retain(|path, _| path.exists());
        write_atomically(&self.file, &serde_json::to_vec(&memory.known)?)?;
        memory.grown = false;
        Ok(())
    }
}

/// The model that an adapter outside the pipeline was trained for.
pub struct BaseModel {
    /// Where it is: a relative path starts from where the adapter's does.
    pub location: Location,
    /// The revision, where the adapter tells one.
    pub revision: Option<String>,
}

/// Reads which model an adapter is for.
pub fn base_model(
    hub: &Hub,
    adapter: &Location,
    revision: Option<&str>,
    cancel: &Cancel,
) -> Result<BaseModel, SourceError> {
    let config = match adapter.resolve() {
        Place::Hub(name) => {
            let name: RepoName = name.parse()?;
            let reads = Reads { want: Want::Adapter, revision: revision.map(str::to_owned) };
            let pin = hub.pin(&name, &reads, cancel)?;
            let text = hub.read(&pin, adapter::CONFIG, cancel)?;
            adapter::AdapterConfig::parse(&text, Path::new(&format!("{name}/{}", adapter::CONFIG)))?
        }
        _ => adapter::AdapterConfig::read(&adapter.base().join(adapter.text()))?,
    };
    let name = config.base_model_name_or_path.ok_or_else(|| SourceError::NoBase(adapter.text().into()))?;
    Ok(BaseModel { location: Location::new(name, adapter.base()), revision: config.revision })
}

fn settled(stamp: &Stamp) -> bool {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_secs_f64() - (stamp.modified_s as f64 + stamp.modified_ns as f64 * 1e-9) > 0.05
}

/// The files below a folder, those and folders that begin with a dot left out.
fn visible_files(folder: &Path) -> Vec<PathBuf> {
    let hidden =
        |p: &PathBuf| RelPath::of(p, folder).to_string().split('/').any(|part| part.starts_with('.'));
    walk(folder).into_iter().filter(|p| !hidden(p) && p.is_file()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path) -> Sources {
        Sources::open(folder, Hub::nowhere())
    }

    fn pin(sources: &Sources, base: &Path, text: &str) -> String {
        let source = Source::files("path", Location::new(text, base));
        sources.pin(&source, &Cancel::default()).unwrap().value
    }

    #[test]
    fn content_counts_and_the_place_of_a_lone_file_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let sources = open(dir.path());
        fs::write(dir.path().join("a.csv"), "x\n1\n").unwrap();
        fs::write(dir.path().join("b.csv"), "x\n1\n").unwrap();
        let before = pin(&sources, dir.path(), "a.csv");
        assert_eq!(before, pin(&sources, dir.path(), "b.csv"));
        fs::write(dir.path().join("a.csv"), "x\n2\n").unwrap();
        assert_ne!(before, pin(&sources, dir.path(), "a.csv"));
    }

    #[test]
    fn names_inside_a_folder_count() {
        let dir = tempfile::tempdir().unwrap();
        let sources = open(dir.path());
        let folder = dir.path().join("data");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("train.csv"), "x").unwrap();
        fs::write(folder.join("test.csv"), "y").unwrap();
        let both = pin(&sources, dir.path(), "data");
        fs::remove_file(folder.join("test.csv")).unwrap();
        let alone = pin(&sources, dir.path(), "data");
        fs::rename(folder.join("train.csv"), folder.join("test.csv")).unwrap();
        assert_ne!(alone, pin(&sources, dir.path(), "data"));
        fs::write(folder.join("train.csv"), "x").unwrap();
        fs::write(folder.join("test.csv"), "y").unwrap();
        let before = pin(&sources, dir.path(), "data");
        assert_eq!(both, before);
        fs::write(folder.join(".hidden"), "z").unwrap();
        assert_eq!(before, pin(&sources, dir.path(), "data"));
        fs::rename(folder.join("test.csv"), folder.join("dev.csv")).unwrap();
        assert_ne!(before, pin(&sources, dir.path(), "data"));
    }

    #[test]
    fn a_change_while_a_stage_ran_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        fs::write(&path, "x").unwrap();
        let pinned = open(dir.path()).pin_files(&Location::new("a.csv", dir.path())).unwrap();
        assert_eq!(pinned.changed(), None);
        fs::write(&path, "xy").unwrap();
        assert_eq!(pinned.changed(), Some(path.as_path()));
    }
}
