//! Datasets on the Hub: which files of a commit make up which split of a configuration, as Hugging Face `datasets`
//! decides it from the paths and the card alone.
//!
//! Asks nobody and opens no file, so that the same question has the same answer where the files are pinned and where
//! they are read. A folder on this machine that is laid out like a repository is the same to it.

pub mod card;
mod converted;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::artifact::dataset::{DatasetError, Feature, check_split_name, nearest};
use crate::formats::splits::{self, SplitFiles};
use crate::formats::{INFO_FILES, pattern};

use super::repo::is_safe_path;
use card::Config;

pub use card::Card;
pub use converted::find_converted;

/// The branch to which the Hub converts datasets that it can't show as they are.
pub const CONVERTED: &str = "refs/convert/parquet";

/// The dataset's card.
pub const CARD: &str = "README.md";

/// How the files of a commit are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// As its owner likes it: [`find`] knows.
    Repository,
    /// As the Hub writes the branch [`CONVERTED`]: [`find_converted`] knows.
    Converted,
}

/// As often the patterns of one configuration may be compared with the repository's paths: a few seconds' work.
const MAX_COMPARISONS: usize = 10_000_000;

/// What a repository has to offer.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// Files that can be read.
    Here(DataFiles),
    /// Nothing that can be read; the branch [`CONVERTED`] may have it as parquet.
    Elsewhere {
        /// Why not, to be followed by nothing: `raft.py is a loading script, which pipe does not run`.
        why: String,
    },
}

/// The files of one configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct DataFiles {
    /// The configuration: what was asked for, or the dataset's own choice.
    pub config: String,
    /// The files of each split, at least one, splits in their order.
    pub splits: Vec<SplitFiles>,
    /// What the card says of the columns.
    pub features: BTreeMap<String, Feature>,
    /// What somebody who reads the dataset should know of files that are left out or missing.
    pub warnings: Vec<String>,
    /// Every file that has to be there to read the dataset, sorted; asked about these alone, the answer is the same.
    pub needed: Vec<String>,
}

/// Why a dataset's files can't be told.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The card says something that makes no sense.
    #[error("{CARD}: {0}")]
    Card(String),
    /// There is no such configuration.
    #[error("no configuration `{name}`{}; there are {}", nearest(name, have), quoted(have))]
    NoConfig {
        /// What was asked for.
        name: String,
        /// What there is.
        have: Vec<String>,
    },
    /// Several configurations, and nobody said which.
    #[error("the dataset has {} configurations: {}", .0.len(), quoted(.0))]
    WhichConfig(Vec<String>),
    /// No data at all.
    #[error("there is no file with data in it")]
    Nothing,
    /// A split without files.
    #[error(
        "configuration `{config}`: no file for split `{split}`: nothing with data matches {}",
        quoted(paths)
    )]
    EmptySplit {
        /// The configuration.
        config: String,
        /// The split.
        split: String,
        /// The paths and patterns that were to name its files.
        paths: Vec<String>,
    },
    /// A file that the card names and that is not there.
    #[error("configuration `{config}`: {CARD} names {path}, which is not there")]
    Missing {
        /// The configuration.
        config: String,
        /// The path.
        path: String,
    },
    /// A path that leads out of the repository, or none at all.
    #[error("configuration `{config}`: {CARD} names `{path}`, which is no path within the dataset")]
    Outside {
        /// The configuration.
        config: String,
        /// The path.
        path: String,
    },
    /// `**` that does not stand alone.
    #[error(
        "configuration `{config}`: {CARD} has the pattern `{pattern}`: `**` has to stand alone between slashes"
    )]
    Pattern {
        /// The configuration.
        config: String,
        /// The pattern.
        pattern: String,
    },
    /// More patterns than anybody writes.
    #[error(
        "configuration `{config}`: {CARD} has {patterns} patterns for {files} files, which are too many to compare"
    )]
    TooMany {
        /// The configuration.
        config: String,
        /// How many there are.
        patterns: usize,
        /// How many files with data the dataset has.
        files: usize,
    },
    /// A path of the commit itself that no honest commit has.
    #[error("the commit has a file `{0}`, which is no path within a folder")]
    Path(String),
    /// A split's name that can't be a file's.
    #[error(transparent)]
    SplitName(#[from] DatasetError),
}

impl FindError {
    /// What to do about it, where that is known.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::WhichConfig(have) => have.first().map(|name| format!("say which, such as `name: {name}`")),
            Self::NoConfig { .. } => Some("`name` takes one of these".into()),
            Self::Nothing => {
                Some(format!("files are taken by their ending: {}", crate::formats::ENDINGS.join(", ")))
            }
            Self::Card(_)
            | Self::EmptySplit { .. }
            | Self::Missing { .. }
            | Self::Outside { .. }
            | Self::Pattern { .. }
            | Self::TooMany { .. } => {
                Some(format!("mend {CARD} where the dataset is yours, or take another `revision`"))
            }
            Self::Path(_) | Self::SplitName(_) => None,
        }
    }
}

/// Names in a sentence, not more than somebody reads.
fn quoted(names: &[String]) -> String {
    const MOST: usize = 40;
    let quoted: Vec<String> = names.iter().take(MOST).map(|name| format!("`{name}`")).collect();
    match names.len().saturating_sub(MOST) {
        0 => quoted.join(", "),
        more => format!("{} and {more} more", quoted.join(", ")),
    }
}

/// What is known of a repository before any file but the card is there.
#[derive(Clone, Copy, Debug)]
pub struct Repository<'a> {
    /// Its name without the owner, by which a loading script goes; none for a folder on this machine.
    pub name: Option<&'a str>,
    /// The paths of all its files, or of those that were pinned; in any order.
    pub paths: &'a [String],
    /// What README.md says; nothing where it has none.
    pub card: &'a Card,
}

/// The files of the configuration asked for, or of the dataset's own choice.
pub fn find(repository: &Repository<'_>, config: Option<&str>) -> Result<Finding, FindError> {
    let (paths, card) = (repository.paths, repository.card);
    if let Some(name) = repository.name {
        stay_inside(paths)?;
        let script = format!("{name}.py");
        if paths.contains(&script) {
            let why = format!("{script} is a loading script, which pipe does not run");
            return Ok(Finding::Elsewhere { why });
        }
    }
    let data = splits::data_files(paths);
    let chosen = choose(card, config)?;
    let found = match chosen {
        Some(config) => of_config(config, &data)?,
        None => Chosen { splits: splits::by_names(&data), all: splits::choose("**", &data) },
    };
    let name = chosen.map_or_else(|| config.unwrap_or("default"), |config| &config.name);
    if found.splits.is_empty() {
        return Ok(Finding::Elsewhere { why: "there is no file with data in it".into() });
    }
    let without_split = without(&found.all, &found.splits);
    let mut in_splits = Vec::with_capacity(found.splits.len());
    for SplitFiles { split, paths } in found.splits {
        check_split_name(&split)?;
        let (format, paths) = splits::prevailing(paths);
        if let Some(odd) = paths.iter().find(|path| !splits::is_readable(path, format)) {
            return Ok(Finding::Elsewhere { why: format!("{odd} is in a format that pipe does not read") });
        }
        in_splits.push(SplitFiles { split, paths });
    }
    let mut of_other_formats = without(&found.all, &in_splits);
    of_other_formats.retain(|path| !without_split.contains(path));
    let reasons = [
        (without_split, "no name of theirs tells a split, as others' do"),
        (of_other_formats, "most files of their split are in another format"),
    ];
    let beside = |path: &&String| path.as_str() == CARD || INFO_FILES.contains(&path.as_str());
    let mut needed: BTreeSet<String> = paths.iter().filter(beside).cloned().collect();
    needed.extend(in_splits.iter().flat_map(|files| files.paths.clone()));
    Ok(Finding::Here(DataFiles {
        config: name.into(),
        features: card.features(name),
        warnings: reasons.iter().filter_map(|(paths, reason)| left_out(paths, reason)).collect(),
        needed: needed.into_iter().collect(),
        splits: in_splits,
    }))
}

/// Refuses paths of a commit that would lead out of the folder they are put into.
pub fn stay_inside(paths: &[String]) -> Result<(), FindError> {
    match paths.iter().find(|path| !is_safe_path(path)) {
        Some(path) => Err(FindError::Path(path.clone())),
        None => Ok(()),
    }
}

/// The paths that no split has.
fn without<'a>(all: &[&'a str], splits: &[SplitFiles]) -> BTreeSet<&'a str> {
    let taken: BTreeSet<&str> = splits.iter().flat_map(|files| &files.paths).map(String::as_str).collect();
    all.iter().copied().filter(|path| !taken.contains(path)).collect()
}

fn left_out(paths: &BTreeSet<&str>, reason: &str) -> Option<String> {
    let first: Vec<&str> = paths.iter().take(3).copied().collect();
    let more = match paths.len() - first.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!first.is_empty()).then(|| format!("left out: {}{more}; {reason}", first.join(", ")))
}

/// The configuration of the card that is asked for, or its own choice; none where the card names none.
fn choose<'a>(card: &'a Card, config: Option<&str>) -> Result<Option<&'a Config>, FindError> {
    match (config, card.configs.is_empty()) {
        (None, true) => Ok(None),
        (Some(name), true) if name == "default" || card.is_only_info(name) => Ok(None),
        (Some(name), true) => Err(FindError::NoConfig { name: name.into(), have: vec!["default".into()] }),
        (Some(name), false) => {
            let found = card.configs.iter().find(|config| config.name == name);
            found.map(Some).ok_or_else(|| FindError::NoConfig { name: name.into(), have: card.names() })
        }
        (None, false) => card.default_config()?.map(Some).ok_or_else(|| FindError::WhichConfig(card.names())),
    }
}

/// Splits, and the files that they were chosen from.
struct Chosen<'a> {
    splits: Vec<SplitFiles>,
    all: Vec<&'a str>,
}

/// The splits of a configuration of the card.
fn of_config<'a>(config: &Config, data: &[&'a str]) -> Result<Chosen<'a>, FindError> {
    let inside = |path: &str| {
        plain(path).ok_or_else(|| FindError::Outside { config: config.name.clone(), path: path.into() })
    };
    let folder = match config.data_dir.as_deref().map(inside).transpose()? {
        Some(folder) if !folder.is_empty() => folder + "/",
        _ => String::new(),
    };
    let Some(data_files) = &config.data_files else {
        let within: Vec<&str> = data.iter().filter_map(|path| path.strip_prefix(folder.as_str())).collect();
        let mut splits = splits::by_names(&within);
        if splits.is_empty() {
            let paths = vec![format!("{folder}**")];
            return Err(FindError::EmptySplit { config: config.name.clone(), split: "train".into(), paths });
        }
        splits.iter_mut().flat_map(|split| &mut split.paths).for_each(|path| path.insert_str(0, &folder));
        return Ok(Chosen {
            splits,
            all: data.iter().filter(|path| path.starts_with(&folder)).copied().collect(),
        });
    };
    let patterns =
        data_files.iter().flat_map(|files| &files.paths).filter(|path| pattern::is_pattern(path)).count();
    if patterns.saturating_mul(data.len()) > MAX_COMPARISONS {
        return Err(FindError::TooMany { config: config.name.clone(), patterns, files: data.len() });
    }
    let (mut splits, mut all) = (Vec::with_capacity(data_files.len()), Vec::new());
    for SplitFiles { split, paths: places } in data_files {
        let mut paths = Vec::new();
        for place in places {
            let path = folder.clone() + &inside(place)?;
            if path.split('/').any(|part| part != "**" && part.contains("**")) {
                return Err(FindError::Pattern { config: config.name.clone(), pattern: place.clone() });
            }
            let found = splits::choose(&path, data);
            if found.is_empty() && !pattern::is_pattern(&path) {
                return Err(FindError::Missing { config: config.name.clone(), path });
            }
            paths.extend(found);
        }
        if paths.is_empty() {
            return Err(FindError::EmptySplit {
                config: config.name.clone(),
                split: split.clone(),
                paths: places.clone(),
            });
        }
        all.extend(paths.iter().copied());
        splits
            .push(SplitFiles { split: split.clone(), paths: paths.into_iter().map(str::to_owned).collect() });
    }
    Ok(Chosen { splits, all })
}

/// A path or pattern of the card without `./` and a slash at the end; none where it leads elsewhere.
fn plain(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| *part != ".").collect();
    let joined = parts.join("/");
    let joined = joined.trim_end_matches('/');
    (joined.is_empty() && !path.starts_with('/') || is_safe_path(joined)).then(|| joined.to_owned())
}

#[cfg(test)]
mod tests;
