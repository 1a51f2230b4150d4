//! What a run can tell others of itself: the manifest it carries out, and where each stage's work came from.
//!
//! Holds no value of an environment variable; knows no results.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::manifest::{Manifest, On};

/// A stage that takes part.
#[derive(Clone, Debug)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// What stands under `with`, all defaults filled in.
    pub config: Value,
    /// The stages it takes from.
    pub needs: Vec<String>,
}

/// The run, told.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// The pipeline's name.
    pub pipeline: String,
    /// What it says of itself.
    pub description: Option<String>,
    /// The manifest.
    pub path: PathBuf,
    /// Its text.
    pub manifest: String,
    /// The command line that makes the same again.
    pub command: String,
    /// The stages that are on.
    pub stages: Vec<Told>,
}

impl About {
    /// Of this manifest under these profiles and params.
    pub fn new(manifest: &Manifest, profiles: &[String], sets: &[String]) -> Self {
        let told = manifest.stages.iter().filter(|stage| stage.on == On::On).map(|stage| Told {
            name: stage.id.to_string(),
            kind: stage.kind.name,
            config: stage.config.clone(),
            needs: stage.inputs.iter().map(|edge| edge.from.to_string()).collect(),
        });
        Self {
            pipeline: manifest.name.clone(),
            description: manifest.description.clone(),
            path: manifest.path.clone(),
            manifest: manifest.source.text.clone(),
            command: command(&manifest.path, profiles, sets),
            stages: told.collect(),
        }
    }

    /// The manifest's file name.
    pub fn file(&self) -> String {
        file_name(&self.path)
    }

    /// A stage and all it needs, in the manifest's order.
    pub fn lineage(&self, stage: &str) -> Vec<&Told> {
        let mut found = BTreeSet::new();
        let mut open = vec![stage];
        while let Some(name) = open.pop() {
            if let Some(at) = self.stages.iter().position(|told| told.name == name)
                && found.insert(at)
            {
                open.extend(self.stages[at].needs.iter().map(String::as_str));
            }
        }
        found.into_iter().map(|at| &self.stages[at]).collect()
    }
}

/// The last part of a path, for whoever has not the rest of it.
pub fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// `pipe run …`; where a file lies on this machine is left out.
fn command(manifest: &Path, profiles: &[String], sets: &[String]) -> String {
    let mut words = vec!["pipe run".to_owned(), quoted(&file_name(manifest))];
    words.extend(profiles.iter().map(|profile| format!("--profile {}", quoted(profile))));
    words.extend(sets.iter().map(|set| {
        let set = match set.split_once('=') {
            Some((name, value)) if Path::new(value).is_absolute() => {
                format!("{name}={}", file_name(Path::new(value)))
            }
            _ => set.clone(),
        };
        format!("--set {}", quoted(&set))
    }));
    words.join(" ")
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(bare) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_tells_no_place_on_this_machine() {
        let sets = ["data=/home/ada/rows.csv", "tweet=what's up", "epochs=3"].map(String::from);
        assert_eq!(
            command(Path::new("/home/ada/p.yaml"), &["embedded".into()], &sets),
            r"pipe run p.yaml --profile embedded --set data=rows.csv --set 'tweet=what'\''s up' --set epochs=3"
        );
    }

    #[test]
    fn a_lineage_has_what_a_stage_needs_and_nothing_else() {
        let told = |name: &str, needs: &[&str]| Told {
            name: name.into(),
            kind: "command",
            config: Value::Null,
            needs: needs.iter().map(|n| n.to_string()).collect(),
        };
        let about = About {
            stages: vec![told("a", &[]), told("other", &[]), told("b", &["a"]), told("c", &["b", "a"])],
            ..About::default()
        };
        let names: Vec<&str> = about.lineage("c").iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }
}
