//! The content of files and folders outside the pipeline, as digests for the keys.
//!
//! Paths are no part of a key: content, names within a folder, and the ending of a lone file are.
//! Does not know what the files mean.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::artifact::adapter;
use crate::cancel::Interrupted;
use crate::files::{self, RelPath, named};
use crate::fingerprint::Digest;
use crate::formats;
use crate::hub::{Hub, HubError, Reads, RepoName, Want};
use crate::location::{Location, Place};
use crate::remembered::{Remembered, Stamp};
use crate::stage::{Cancel, Content, Source};

/// The identity of one outside source at the time it was looked at.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// Goes into the key.
    pub value: String,
    /// The file or folder that it is, if it is on this machine.
    files: Option<(Location, Content)>,
    stamps: Vec<(PathBuf, Option<Stamp>)>,
}

impl Pinned {
    /// Without anything on this machine behind it.
    fn without_files(value: String) -> Self {
        Self { value, files: None, stamps: Vec::new() }
    }

    /// The first of its files that is no longer what it was, or that has come or gone.
    pub fn changed(&self) -> Option<PathBuf> {
        let touched = self.stamps.iter().find(|(path, stamp)| Stamp::of(path).ok() != *stamp);
        if let Some((path, _)) = touched {
            return Some(path.clone());
        }
        let (location, content) = self.files.as_ref()?;
        let Ok(now) = Found::at(location, content, &Cancel::default()) else {
            return Some(location.base().join(location.text()));
        };
        let mut now: Vec<PathBuf> = now.paths().collect();
        now.retain(|path| !self.stamps.iter().any(|(before, _)| before == path));
        now.into_iter().next()
    }
}

/// The files that a place on this machine stands for, as they are read: there is one way to look for them.
struct Found {
    /// How their names count.
    names: Names,
    /// Where the names below start from.
    root: PathBuf,
    files: Vec<RelPath>,
}

/// What of the names of files counts.
enum Names {
    /// There is one file, whose ending may tell what is in it.
    Ending(PathBuf),
    /// Those below a folder: they tell splits, shards and settings.
    Folder,
    /// Those behind the fixed part of a pattern. What else is in the folder describes nothing of them.
    Matching,
}

impl Found {
    fn at(location: &Location, content: &Content, cancel: &Cancel) -> io::Result<Self> {
        let (names, root, files) = match (location.resolve(), content) {
            (Place::Local(folder), Content::Named(names)) if folder.is_dir() => {
                let files = names.iter().filter_map(|name| RelPath::parse(name)).collect();
                (Names::Folder, folder, files)
            }
            (Place::Local(path), _) => {
                let metadata = fs::metadata(&path).map_err(named(&path))?;
                match metadata.is_dir() {
                    true => {
                        let files = files::visible(&path, cancel, &|_| true)?;
                        (Names::Folder, path, files)
                    }
                    false => (Names::Ending(path.clone()), path, Vec::new()),
                }
            }
            (Place::Glob(glob), _) => {
                let files = glob.files(cancel)?;
                (Names::Matching, glob.root, files)
            }
            (Place::Hub(_) | Place::Missing(_), _) => (Names::Folder, PathBuf::new(), Vec::new()),
        };
        Ok(Self { names, root, files })
    }

    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let lone = match &self.names {
            Names::Ending(path) => Some(path.clone()),
            Names::Folder | Names::Matching => None,
        };
        lone.into_iter().chain(self.files.iter().map(|file| file.under(&self.root)))
    }
}

/// An outside source that can't be identified.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The disk says no.
    #[error(transparent)]
    Io(io::Error),
    /// Somebody asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
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

impl From<io::Error> for SourceError {
    fn from(error: io::Error) -> Self {
        if Interrupted::is(&error) { Self::Interrupted(Interrupted) } else { Self::Io(error) }
    }
}

impl SourceError {
    /// What to do, where that is known.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Hub(error) => error.help(),
            Self::NoBase(_) => Some("name the model under `model`".into()),
            Self::Io(_) | Self::Adapter(_) | Self::Interrupted(_) => None,
        }
    }
}

/// Digests of outside files, each file read once while it stays as it is; pins of what is on the Hub.
pub struct Sources {
    /// Where names on the Hub are looked up.
    pub hub: Hub,
    remembered: Arc<Remembered>,
}

impl Sources {
    /// With what is remembered of files.
    pub fn new(remembered: Arc<Remembered>, hub: Hub) -> Self {
        Self { hub, remembered }
    }

    /// The identity of what a source stands for.
    pub fn pin(&self, source: &Source, cancel: &Cancel) -> Result<Pinned, SourceError> {
        match &source.content {
            Content::Files | Content::Named(_) => {
                Ok(self.pin_files(&source.location, &source.content, cancel)?)
            }
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
        let Place::Hub(name) = location.resolve() else {
            return Ok(self.pin_files(location, &Content::Files, cancel)?);
        };
        let pin = self.hub.pin(&name.parse()?, reads, cancel)?;
        Ok(Pinned::without_files(format!("hub:{}", pin.identity())))
    }

    /// The identity of files. A place at which there is nothing is named, not read: the stage says what is wrong.
    fn pin_files(&self, location: &Location, content: &Content, cancel: &Cancel) -> io::Result<Pinned> {
        if matches!(location.resolve(), Place::Hub(_) | Place::Missing(_)) {
            return Ok(Pinned::without_files("missing".into()));
        }
        let found = Found::at(location, content, cancel)?;
        let mut hasher = blake3::Hasher::new();
        let mut fact = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        let mut stamps = Vec::new();
        match &found.names {
            Names::Ending(path) => {
                let (stamp, digest) = self.digest(path, cancel).map_err(named(path))?;
                fact(b"file");
                fact(formats::ending(path).as_bytes());
                fact(digest.to_string().as_bytes());
                stamps.push((path.clone(), Some(stamp)));
            }
            Names::Folder => fact(b"folder"),
            Names::Matching => fact(b"matching"),
        }
        for file in &found.files {
            let path = file.under(&found.root);
            let known = match self.digest(&path, cancel) {
                Ok(known) => Some(known),
                // A link to nothing: whoever wants to read it fails.
                Err(error) if is_link(&path) && files::leads_nowhere(&error) => None,
                Err(error) => return Err(named(&path)(error)),
            };
            fact(file.as_bytes());
            fact(known.map_or_else(|| "missing".into(), |(_, digest)| digest.to_string()).as_bytes());
            stamps.push((path, known.map(|(stamp, _)| stamp)));
        }
        let value = Digest::from(hasher.finalize()).to_string();
        Ok(Pinned { value, files: Some((location.clone(), content.clone())), stamps })
    }

    fn digest(&self, path: &Path, cancel: &Cancel) -> io::Result<(Stamp, Digest)> {
        Stamp::settle(path)?;
        self.remembered.digest("blake3", path, || files::digest(path, cancel))
    }

    /// Keeps what was learned for the next run.
    ///
    /// # Errors
    /// What the disk says; the error names the file.
    pub fn save(&self) -> io::Result<()> {
        self.remembered.save()
    }
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path) -> Sources {
        Sources::new(Arc::new(Remembered::open(folder.join("sources.json"))), Hub::nowhere())
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
        let pinned = |text: &str| {
            let source = Source::files("path", Location::new(text, dir.path()));
            open(dir.path()).pin(&source, &Cancel::default()).unwrap()
        };
        let (lone, matching) = (pinned("a.csv"), pinned("*.csv"));
        assert_eq!((lone.changed(), matching.changed()), (None, None));
        fs::write(dir.path().join("b.txt"), "x").unwrap();
        assert_eq!(matching.changed(), None);
        fs::write(dir.path().join("b.csv"), "x").unwrap();
        assert_eq!((lone.changed(), matching.changed()), (None, Some(dir.path().join("b.csv"))));
        fs::write(&path, "xy").unwrap();
        assert_eq!(lone.changed(), Some(path));
    }

    #[test]
    fn a_time_that_is_set_back_hides_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        let write = |text: &str| {
            fs::write(&path, text).unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        };
        let mut values = std::collections::BTreeSet::new();
        for text in ["one", "two", "six", "ten"] {
            write(text);
            let sources = open(dir.path());
            values.insert(pin(&sources, dir.path(), "a.csv"));
            sources.save().unwrap();
        }
        assert_eq!(values.len(), 4);
    }

    #[test]
    fn a_folders_place_does_not_count_and_links_do() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["a", "b", "elsewhere"] {
            fs::create_dir(at(folder)).unwrap();
            fs::write(at(folder).join("config.json"), "{}").unwrap();
        }
        let sources = open(dir.path());
        let of = |text: &str| pin(&sources, dir.path(), text);
        assert_eq!(of("a"), of("b"));
        assert_ne!(of("a"), of("a/*"));
        assert_eq!(of("a/*"), of("b/c*"));
        std::os::unix::fs::symlink("../elsewhere", at("a/link")).unwrap();
        let linked = of("a");
        assert_ne!(linked, of("b"));
        fs::write(at("elsewhere/config.json"), "{ }").unwrap();
        assert_ne!(of("a"), linked);
        std::os::unix::fs::symlink("nowhere", at("b/gone")).unwrap();
        of("b");
    }

    #[test]
    fn the_ending_of_a_lone_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let sources = open(dir.path());
        for name in ["a.csv", "b.CSV", "a.txt"] {
            fs::write(dir.path().join(name), "x\n1\n").unwrap();
        }
        let of = |text: &str| pin(&sources, dir.path(), text);
        assert_eq!(of("a.csv"), of("b.CSV"));
        assert_ne!(of("a.csv"), of("a.txt"));
    }
}
