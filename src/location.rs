//! A place outside the pipeline (a file, a folder, a glob, a name on the Hub) as a manifest wrote it.
//!
//! Knows where a relative path starts from; does not know what the place holds.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::{Serialize, Serializer};

use crate::cancel::Cancel;
use crate::files::{self, RelPath};
use crate::formats::pattern::{Pattern, is_pattern};

/// The newtype name by which a manifest value is asked for its text *and* the folder it is relative to.
pub const LOCATION: &str = "$pipe::Location";

/// A path or Hub name together with the folder that a relative path starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    text: String,
    base: PathBuf,
}

/// What a [`Location`] turns out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file or folder that exists.
    Local(PathBuf),
    /// A pattern with `*`, `?` or `[`, for the files below a folder.
    Glob(Glob),
    /// `owner/name`, and no such path here.
    Hub(String),
    /// Looks like a path, and nothing is there.
    Missing(PathBuf),
}

/// A pattern and where it starts from: only what a user wrote, and no more of it than has to be, is a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    /// The folder that is fixed.
    pub root: PathBuf,
    /// What stands behind it, parts joined by `/`.
    pub pattern: String,
}

impl Glob {
    /// The folders that a pattern begins with are taken as they are, and so is one that is there by its very name,
    /// such as `run [1]`.
    fn new(text: &str, base: &Path) -> Self {
        let (mut root, mut rest) = (base.to_path_buf(), text);
        if rest.starts_with('/') {
            root = PathBuf::from("/");
        }
        while let Some((first, more)) = rest.split_once('/') {
            let next = root.join(first);
            if !first.is_empty() && is_pattern(first) && !next.is_dir() {
                break;
            }
            (root, rest) = (if first.is_empty() { root } else { next }, more);
        }
        Self { root, pattern: rest.into() }
    }

    /// The files that match, by their names below the root, sorted: as [`files::visible`] finds them. A name that is
    /// no text is matched with a sign in place of each odd byte.
    ///
    /// # Errors
    /// The pattern can't be read, or as [`files::visible`].
    pub fn files(&self, cancel: &Cancel) -> io::Result<Vec<RelPath>> {
        let Some(pattern) = Pattern::parse(&self.pattern) else {
            let reason = format!("{self}: `**` has to stand alone between slashes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        };
        if !self.root.is_dir() {
            return Ok(Vec::new());
        }
        let text = |path: &RelPath| String::from_utf8_lossy(path.as_bytes()).into_owned();
        let mut files = files::visible(&self.root, cancel, &|folder| pattern.leads_into(&text(folder)))?;
        files.retain(|path| pattern.matches(&text(path)));
        Ok(files)
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&files::shown(&self.root.join(&self.pattern)))
    }
}

impl Location {
    /// `text` as the user wrote it, relative to `base`.
    pub fn new(text: impl Into<String>, base: impl Into<PathBuf>) -> Self {
        Self { text: text.into(), base: base.into() }
    }

    /// What the user wrote.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The folder that a relative path starts from.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// What to tell somebody who named a path at which there is nothing.
    pub fn advice(&self) -> String {
        format!(
            "`{self}` is looked for in {}: a relative path starts from the manifest's folder, and one given with \
             --set from the folder the command runs in",
            files::shown(&self.base)
        )
    }

    /// Looks at the disk: a path that exists wins over a Hub name.
    pub fn resolve(&self) -> Place {
        let path = self.base.join(&self.text);
        // What must not be looked at is there: whoever reads it says what the system says.
        if path.try_exists().unwrap_or_else(|e| e.kind() == io::ErrorKind::PermissionDenied) {
            return Place::Local(path);
        }
        if is_pattern(&self.text) {
            return Place::Glob(Glob::new(&self.text, &self.base));
        }
        if is_hub_name(&self.text) { Place::Hub(self.text.clone()) } else { Place::Missing(path) }
    }
}

/// `owner/name` in the characters the Hub allows, and not a relative path or a file by its ending.
fn is_hub_name(text: &str) -> bool {
    let word = |s: &str| {
        !s.is_empty()
            && !s.starts_with('.')
            && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let file_like = [".csv", ".json", ".jsonl", ".parquet", ".gguf", ".safetensors", ".txt", ".arrow"];
    match text.split_once('/') {
        Some((owner, name)) => word(owner) && word(name) && !file_like.iter().any(|e| name.ends_with(e)),
        None => false,
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Location {
    /// The text alone: a checkout elsewhere has to come to the same key.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// Takes a bare text, or the text and its folder that a manifest's node gives.
struct Parts;

impl<'de> Visitor<'de> for Parts {
    type Value = Location;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a path or a Hub name")
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Location, E> {
        Ok(Location::new(text, "."))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Location, A::Error> {
        let text: String = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
        let base: PathBuf = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &self))?;
        Ok(Location { text, base })
    }
}

impl<'de> Deserialize<'de> for Location {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;
        impl<'de> Visitor<'de> for One {
            type Value = Location;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                Parts.expecting(f)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Location, E> {
                Parts.visit_str(text)
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<Location, D::Error> {
                d.deserialize_any(Parts)
            }
        }
        deserializer.deserialize_newtype_struct(LOCATION, One)
    }
}

/// One place, or a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locations(pub Vec<Location>);

impl Serialize for Locations {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            many => many.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Locations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Locations;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a path or a list of paths")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Locations, E> {
                Ok(Locations(vec![Parts.visit_str(text)?]))
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<Locations, D::Error> {
                Ok(Locations(vec![d.deserialize_any(Parts)?]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Locations, A::Error> {
                let mut all = Vec::new();
                while let Some(location) = seq.next_element()? {
                    all.push(location);
                }
                Ok(Locations(all))
            }
        }
        deserializer.deserialize_newtype_struct(LOCATION, OneOrMany)
    }
}

impl JsonSchema for Locations {
    fn schema_name() -> Cow<'static, str> {
        "Locations".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "oneOf": [
            { "type": "string" },
            { "type": "array", "items": { "type": "string" }, "minItems": 1 }
        ] })
    }
}

impl JsonSchema for Location {
    fn schema_name() -> Cow<'static, str> {
        "Location".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Span;
    use crate::manifest::node::{Node, Value};

    #[test]
    fn a_path_that_exists_wins_over_a_hub_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("owner/name")).unwrap();
        let here = Location::new("owner/name", dir.path());
        assert_eq!(here.resolve(), Place::Local(dir.path().join("owner/name")));
        assert_eq!(Location::new("owner/other", dir.path()).resolve(), Place::Hub("owner/other".into()));
    }

    #[test]
    fn a_missing_file_is_not_taken_for_a_hub_name() {
        for text in ["./a/b", "../a", "data/train.csv", "a/b/c", "model.gguf", "plain"] {
            let place = Location::new(text, "/nowhere").resolve();
            assert!(matches!(place, Place::Missing(_)), "{text}: {place:?}");
        }
    }

    fn glob(text: &str, base: &Path) -> (PathBuf, String) {
        match Location::new(text, base).resolve() {
            Place::Glob(Glob { root, pattern }) => (root, pattern),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_the_user_wrote_is_a_pattern() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("run [1]/*");
        std::fs::create_dir_all(base.join("data [2]")).unwrap();
        assert_eq!(glob("*.csv", &base), (base.clone(), "*.csv".into()));
        assert_eq!(glob("a/*.csv", &base), (base.join("a"), "*.csv".into()));
        assert_eq!(glob("a/[b]/*.csv", &base), (base.join("a"), "[b]/*.csv".into()));
        assert_eq!(glob("data [2]/*.csv", &base), (base.join("data [2]"), "*.csv".into()));
        assert_eq!(glob("../x/**/a*", &base), (base.join("../x"), "**/a*".into()));
        assert_eq!(glob("/srv//x/*", &base), ("/srv/x".into(), "*".into()));
        assert_eq!(glob("a*", Path::new(".")), (".".into(), "a*".into()));
    }

    #[test]
    fn a_pattern_finds_files_through_links_of_any_name() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &[u8]| dir.path().join(std::ffi::OsStr::from_bytes(name));
        std::fs::create_dir_all(at(b"d/deep/er")).unwrap();
        std::fs::create_dir_all(at(b"elsewhere")).unwrap();
        for file in
            [&b"d/a.csv"[..], b"d/l\xe9.csv", b"d/.hidden.csv", b"elsewhere/b.csv", b"d/deep/er/c.csv"]
        {
            std::fs::write(at(file), "").unwrap();
        }
        std::os::unix::fs::symlink("../elsewhere", at(b"d/link")).unwrap();
        std::os::unix::fs::symlink(".", at(b"d/again")).unwrap();
        let found = |text: &str| {
            let Place::Glob(glob) = Location::new(text, dir.path()).resolve() else { panic!("{text}") };
            let files = glob.files(&Cancel::default()).unwrap();
            files.iter().map(RelPath::to_string).collect::<Vec<_>>()
        };
        assert_eq!(found("d/*.csv"), ["a.csv", r"l\xE9.csv"]);
        assert_eq!(found("d/l?.csv"), [r"l\xE9.csv"]);
        assert_eq!(found("d/*/*.csv"), ["link/b.csv"]);
        assert_eq!(found("d/**/*.csv"), ["a.csv", "deep/er/c.csv", "link/b.csv", r"l\xE9.csv"]);
        assert_eq!(found("none/*.csv"), [""; 0]);
    }

    fn node(value: Value) -> Node {
        let base = std::sync::Arc::new(PathBuf::from("/manifests"));
        Node { span: Span::default(), value, base }
    }

    #[test]
    fn a_manifests_paths_know_their_folder_alone_and_in_lists() {
        let text = |t: &str| node(Value::Text(t.into()));
        let place = |t: &str| Location::new(t, "/manifests");
        assert_eq!(Location::deserialize(text("a")).unwrap(), place("a"));
        assert_eq!(Locations::deserialize(text("a")).unwrap(), Locations(vec![place("a")]));
        let list = || node(Value::List(vec![text("a"), text("b")]));
        assert_eq!(Locations::deserialize(list()).unwrap(), Locations(vec![place("a"), place("b")]));
        assert!(Location::deserialize(list()).is_err());
    }
}
