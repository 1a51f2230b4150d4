//! What a stage's result depends on: one writer feeds the hash and the readable form, so that an explanation
//! can't drift from the key.
//!
//! Does not know where the facts come from, nor what is done with a key.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A BLAKE3 digest of content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The first 12 characters, as shown to people.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_string()
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl std::str::FromStr for Digest {
    type Err = blake3::HexError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(blake3::Hash::from_hex(text)?.into())
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The name of a stage's result: the digest of everything it depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(Digest);

impl Key {
    /// The first 12 characters, as shown to people.
    pub fn short(&self) -> String {
        self.0.short()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for Key {
    type Err = blake3::HexError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Which side of a stage a fact is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aspect {
    /// The stage kind and its version.
    Kind,
    /// A value under `with`.
    Config,
    /// The content that comes in at a port.
    Input,
    /// The content of a file or folder from outside.
    Source,
    /// What the device does to the numbers.
    Device,
}

/// One fact of a fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// What it is about.
    pub aspect: Aspect,
    /// Its name: a dotted key, a port, a role.
    pub name: String,
    /// Its value: JSON text or a digest.
    pub value: String,
}

/// Everything a result depends on, readable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(Vec<Part>);

/// Writes facts to the hash and to the readable form at once.
pub struct Writer {
    hasher: blake3::Hasher,
    parts: Vec<Part>,
}

impl Writer {
    /// Begins with the stage kind and its version.
    pub fn new(kind: &str, version: u32) -> Self {
        let mut writer = Self { hasher: blake3::Hasher::new(), parts: Vec::new() };
        writer.part(Aspect::Kind, kind, &version.to_string());
        writer
    }

    /// One fact. Lengths go in before texts: no two lists of facts give the same bytes.
    pub fn part(&mut self, aspect: Aspect, name: &str, value: &str) {
        self.hasher.update(&[aspect as u8]);
        for text in [name, value] {
            self.hasher.update(&(text.len() as u64).to_le_bytes());
            self.hasher.update(text.as_bytes());
        }
        self.parts.push(Part { aspect, name: name.into(), value: value.into() });
    }

    /// A configuration, a fact per leaf; the order of its keys makes no difference. Leaves that `elsewhere` knows by
    /// their dotted names (`files.train[0]` within a list) are left out: other facts stand for them.
    pub fn config(&mut self, value: &serde_json::Value, elsewhere: &dyn Fn(&str) -> bool) {
        let mut leaves = Vec::new();
        flatten(String::new(), value, elsewhere, &mut leaves);
        leaves.sort();
        for (name, value) in leaves {
            self.part(Aspect::Config, &name, &value);
        }
    }

    /// The key and what it was made of.
    pub fn finish(self) -> (Key, Fingerprint) {
        (Key(self.hasher.finalize().into()), Fingerprint(self.parts))
    }
}

fn flatten(
    path: String,
    value: &serde_json::Value,
    elsewhere: &dyn Fn(&str) -> bool,
    leaves: &mut Vec<(String, String)>,
) {
    match value {
        serde_json::Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                // A dot inside a key is quoted: {"a.b": 1} and {"a": {"b": 1}} are not the same.
                let key = if key.contains('.') { format!("{key:?}") } else { key.clone() };
                let name = if path.is_empty() { key } else { format!("{path}.{key}") };
                flatten(name, value, elsewhere, leaves);
            }
        }
        serde_json::Value::Array(items)
            if !items.is_empty() && (0..items.len()).all(|at| elsewhere(&format!("{path}[{at}]"))) => {}
        _ if elsewhere(&path) => {}
        leaf => leaves.push((path, leaf.to_string())),
    }
}

/// A difference between two fingerprints, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Change(pub String);

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Fingerprint {
    fn find(&self, aspect: Aspect, name: &str) -> Option<&str> {
        self.0.iter().find(|p| p.aspect == aspect && p.name == name).map(|p| p.value.as_str())
    }

    /// The digests of what comes in.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|part| part.aspect == Aspect::Input).map(|part| part.value.as_str())
    }

    /// Every fact that differs from `before`, in words; empty if the keys are equal.
    pub fn changes_since(&self, before: &Fingerprint) -> Vec<Change> {
        let mut changes: Vec<Change> = self
            .0
            .iter()
            .filter_map(|part| {
                let old = before.find(part.aspect, &part.name);
                if old == Some(part.value.as_str()) { None } else { Some(Change(part.words(old))) }
            })
            .collect();
        for part in &before.0 {
            if part.aspect != Aspect::Kind && self.find(part.aspect, &part.name).is_none() {
                changes.push(Change(match part.aspect {
                    Aspect::Input => format!("nothing comes in at `{}` any more", part.name),
                    Aspect::Source => format!("`{}` no longer names a file", part.name),
                    _ => format!("{} is gone (was {})", part.name, short(&part.value)),
                }));
            }
        }
        changes
    }
}

impl Part {
    fn words(&self, old: Option<&str>) -> String {
        let Part { aspect, name, value } = self;
        match (aspect, old) {
            (Aspect::Kind, Some(old)) => format!("{name} is now version {value} (was {old})"),
            (Aspect::Kind, None) => format!("the stage kind is now {name}"),
            (Aspect::Config, Some(old)) => format!("{name} changed from {} to {}", short(old), short(value)),
            (Aspect::Config, None) => format!("{name} is new: {}", short(value)),
            (Aspect::Input, Some(_)) => format!("what comes in at `{name}` changed"),
            (Aspect::Input, None) => format!("`{name}` is connected now"),
            (Aspect::Source, Some(_)) => format!("the content of `{name}` changed"),
            (Aspect::Source, None) => format!("`{name}` is read now"),
            (Aspect::Device, Some(old)) => format!("the device is {value} (was {old})"),
            (Aspect::Device, None) => format!("the device is {value}"),
        }
    }
}

/// A value short enough for a line.
fn short(value: &str) -> String {
    const MOST: usize = 60;
    if value.chars().count() <= MOST {
        return value.to_string();
    }
    format!("{}…", value.chars().take(MOST).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(config: serde_json::Value) -> (Key, Fingerprint) {
        let mut writer = Writer::new("train_soft_prompt", 1);
        writer.config(&config, &|_| false);
        writer.finish()
    }

    #[test]
    fn order_of_keys_makes_no_difference() {
        let a: serde_json::Value = serde_json::from_str(r#"{"a":1,"b":{"c":2,"d":3}}"#).unwrap();
        let b: serde_json::Value = serde_json::from_str(r#"{"b":{"d":3,"c":2},"a":1}"#).unwrap();
        assert_eq!(of(a).0, of(b).0);
    }

    #[test]
    fn a_text_and_a_number_are_not_the_same() {
        assert_ne!(of(json!({"a": 1})).0, of(json!({"a": "1"})).0);
        assert_ne!(of(json!({"a": {}})).0, of(json!({"a": null})).0);
        assert_ne!(of(json!({"ab": "c"})).0, of(json!({"a": "bc"})).0);
        assert_ne!(of(json!({"a.b": 1})).0, of(json!({"a": {"b": 1}})).0);
    }

    #[test]
    fn what_other_facts_stand_for_is_left_out() {
        let key = |config: serde_json::Value| {
            let mut writer = Writer::new("load_dataset", 1);
            writer
                .config(&config, &|name| ["model", "files.a[0]", "files.a[1]", "files.b[0]"].contains(&name));
            writer.finish().0
        };
        assert_eq!(
            key(json!({"model": "a", "files": {"a": [1, 2]}})),
            key(json!({"files": {"a": [3, 4]}, "model": "b"}))
        );
        assert_ne!(key(json!({"model": "a", "name": "a"})), key(json!({"model": "a", "name": "b"})));
        assert_ne!(key(json!({"files": {"b": [1, 2]}})), key(json!({"files": {"b": [1, 3]}})));
    }

    #[test]
    fn a_change_is_told_in_words() {
        let (_, before) = of(json!({"learning_rate": 0.03, "epochs": 50, "old": true}));
        let (_, now) = of(json!({"learning_rate": 0.01, "epochs": 50, "seed": 7}));
        let words: Vec<String> = now.changes_since(&before).iter().map(|c| c.to_string()).collect();
        assert_eq!(
            words,
            ["learning_rate changed from 0.03 to 0.01", "seed is new: 7", "old is gone (was true)"]
        );
        assert!(now.changes_since(&now).is_empty());
    }
}
