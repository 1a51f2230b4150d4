//! A dataset's card: what the YAML at the top of README.md says of configurations, files and class names.
//!
//! Does not know which files there are.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use serde_saphyr::Error;

use super::FindError;
use crate::artifact::dataset::Feature;
use crate::formats::splits::{self, SplitFiles};

/// The largest README.md that is looked at, in bytes. Cards with thousands of configurations fit.
pub const MAX_CARD: usize = 4 << 20;
const MAX_DEPTH: usize = 64;
const MAX_VALUES: usize = 400_000;

/// What is known of columns, by their names.
type Features = BTreeMap<String, Feature>;

/// What a card says.
#[derive(Debug, Default)]
pub struct Card {
    /// The configurations under `configs`, in the card's order.
    pub configs: Vec<Config>,
    /// The columns with class names that `dataset_info` describes, by configuration.
    infos: Vec<(String, Features)>,
}

/// A configuration.
#[derive(Debug)]
pub struct Config {
    /// `config_name`
    pub name: String,
    /// Whether it says of itself that it is the one to take where none is asked for.
    pub default: bool,
    /// The folder that its files are in.
    pub data_dir: Option<String>,
    /// The paths and patterns of each split, where it names them.
    pub data_files: Option<Vec<SplitFiles>>,
    features: Features,
}

impl Card {
    /// Reads README.md. A text without YAML at its top says nothing.
    pub fn parse(text: &str) -> Result<Self, FindError> {
        if text.len() > MAX_CARD {
            return Err(wrong(format!("the file has {} bytes; at most {MAX_CARD} are read", text.len())));
        }
        let Some(yaml) = front_matter(text) else { return Ok(Self::default()) };
        let value: Option<Value> =
            serde_saphyr::from_str_with_options(yaml, options()).map_err(|e| not_yaml(&e))?;
        match value {
            None | Some(Value::Null) => Ok(Self::default()),
            Some(Value::Object(card)) => {
                Ok(Self { configs: configs(card.get("configs"))?, infos: infos(card.get("dataset_info"))? })
            }
            Some(_) => Err(wrong("the YAML between the two `---` is no mapping")),
        }
    }

    /// The configurations' names.
    pub fn names(&self) -> Vec<String> {
        self.configs.iter().map(|config| config.name.clone()).collect()
    }

    /// The configuration to take where none is asked for: the only one, the one called `default`, or the one that
    /// says so; none where there is no such one.
    pub fn default_config(&self) -> Result<Option<&Config>, FindError> {
        let only = self.configs.len() == 1;
        let mut fit = self.configs.iter().filter(|config| only || config.default || config.name == "default");
        match (fit.next(), fit.next()) {
            (Some(one), Some(other)) => {
                Err(wrong(format!("`{}` and `{}` are both the default configuration", one.name, other.name)))
            }
            (one, _) => Ok(one),
        }
    }

    /// What is known of the columns of a configuration; the only description is everyone's where the card names no
    /// configurations.
    pub fn features(&self, config: &str) -> BTreeMap<String, Feature> {
        let mut features = match self.infos.as_slice() {
            [(_, only)] if self.configs.is_empty() => only.clone(),
            infos => {
                infos.iter().find(|(name, _)| name == config).map(|(_, f)| f.clone()).unwrap_or_default()
            }
        };
        if let Some(config) = self.configs.iter().find(|c| c.name == config) {
            features.extend(config.features.clone());
        }
        features
    }

    /// Whether this is the name that `dataset_info` gives to the only configuration, without `configs`.
    pub fn is_only_info(&self, name: &str) -> bool {
        self.configs.is_empty() && matches!(self.infos.as_slice(), [(only, _)] if only == name)
    }
}

/// The text between a first line `---` and the next.
fn front_matter(text: &str) -> Option<&str> {
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let yaml = text.strip_prefix("---\n").or_else(|| text.strip_prefix("---\r\n"))?;
    let mut end = 0;
    for line in yaml.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some(&yaml[..end]);
        }
        end += line.len();
    }
    None
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_VALUES,
            max_events: 4 * MAX_VALUES,
            max_documents: 1,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_VALUES,
        },
        strict_booleans: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    }
}

fn not_yaml(error: &Error) -> FindError {
    let error = error.without_snippet();
    let mut cause = error;
    while let Error::AliasError { error, .. } = cause {
        cause = error;
    }
    if matches!(cause, Error::Budget { .. } | Error::AliasReplayLimitExceeded { .. }) {
        return wrong(format!(
            "the YAML at the top is nested deeper than {MAX_DEPTH} levels or, its aliases followed, has more than \
             {MAX_VALUES} values"
        ));
    }
    // The line of `---` comes before the parser's first.
    let line = error.location().map(|at| format!(" (line {})", at.line() + 1)).unwrap_or_default();
    wrong(format!("the YAML at the top can't be read{line}"))
}

fn wrong(reason: impl Into<String>) -> FindError {
    FindError::Card(reason.into())
}

fn configs(value: Option<&Value>) -> Result<Vec<Config>, FindError> {
    let list = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(wrong("`configs` is no list")),
    };
    let mut configs: Vec<Config> = Vec::with_capacity(list.len());
    let mut places = BTreeMap::new();
    for entry in list {
        let Some(name) = entry.get("config_name").and_then(text) else {
            return Err(wrong("an entry of `configs` has no `config_name`"));
        };
        let config = Config {
            default: entry.get("default").and_then(Value::as_bool).unwrap_or(false),
            data_dir: entry.get("data_dir").and_then(text),
            data_files: data_files(&name, entry.get("data_files"))?,
            features: features(entry.get("features"))?,
            name,
        };
        // Of two of one name the later counts, in the earlier's place.
        let at = *places.entry(config.name.clone()).or_insert(configs.len());
        match configs.get_mut(at) {
            Some(earlier) => *earlier = config,
            None => configs.push(config),
        }
    }
    Ok(configs)
}

/// One pattern, a list of them, a list of `split` and `path`, or a mapping of splits to patterns.
fn data_files(config: &str, value: Option<&Value>) -> Result<Option<Vec<SplitFiles>>, FindError> {
    let odd = || {
        wrong(format!(
            "`data_files` of configuration `{config}` is neither a path, nor a list of paths, nor a list of entries \
             with `split` and `path`"
        ))
    };
    let splits: Vec<SplitFiles> = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(list)) if !list.iter().all(Value::is_string) => {
            let entry = |entry: &Value| {
                Some(SplitFiles { split: text(entry.get("split")?)?, paths: paths(entry.get("path")?)? })
            };
            list.iter().map(entry).collect::<Option<_>>().ok_or_else(odd)?
        }
        Some(Value::Object(by_split)) => {
            let entry = |(split, path): (&String, &Value)| {
                Some(SplitFiles { split: split.clone(), paths: paths(path)? })
            };
            let mut splits: Vec<_> = by_split.iter().map(entry).collect::<Option<_>>().ok_or_else(odd)?;
            splits.sort_by_key(|files| splits::rank(&files.split));
            splits
        }
        Some(value) => vec![SplitFiles { split: "train".into(), paths: paths(value).ok_or_else(odd)? }],
    };
    let mut seen = BTreeSet::new();
    if let Some(twice) = splits.iter().find(|files| !seen.insert(&files.split)) {
        let split = &twice.split;
        return Err(wrong(format!("`data_files` of configuration `{config}` has split `{split}` twice")));
    }
    Ok(Some(splits))
}

fn paths(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(path) => Some(vec![path.clone()]),
        Value::Array(list) => list.iter().map(|path| path.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// A name that YAML may take for a number or a truth value.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// `dataset_info`: one description, or a list with one for each configuration.
fn infos(value: Option<&Value>) -> Result<Vec<(String, Features)>, FindError> {
    let entries = match value {
        Some(Value::Array(list)) => list.iter().collect(),
        Some(one @ Value::Object(_)) => vec![one],
        _ => Vec::new(),
    };
    let name = |entry: &Value| entry.get("config_name").and_then(text).unwrap_or_else(|| "default".into());
    entries.into_iter().map(|entry| Ok((name(entry), features(entry.get("features"))?))).collect()
}

/// The class names in a list of columns; columns of other types say nothing that is needed.
fn features(value: Option<&Value>) -> Result<Features, FindError> {
    let mut features = BTreeMap::new();
    for column in value.and_then(Value::as_array).into_iter().flatten() {
        let label = column.get("class_label").or_else(|| column.get("dtype")?.get("class_label"));
        let (Some(name), Some(names)) =
            (column.get("name").and_then(text), label.and_then(|l| l.get("names")))
        else {
            continue;
        };
        let names = class_names(names).ok_or_else(|| {
            wrong(format!("column `{name}` has class names that are not those of the ids 0, 1, 2 and so on"))
        })?;
        features.insert(name, Feature { class_names: Some(names) });
    }
    Ok(features)
}

/// A list of names, or a mapping from ids, of which none is missing.
fn class_names(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(names) => names.iter().map(text).collect(),
        Value::Object(by_id) => {
            let by_id: BTreeMap<usize, String> = by_id
                .iter()
                .map(|(id, name)| Some((id.parse().ok()?, text(name)?)))
                .collect::<Option<_>>()?;
            by_id.keys().enumerate().all(|(at, id)| at == *id).then(|| by_id.into_values().collect())
        }
        _ => None,
    }
}
