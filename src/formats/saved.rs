//! Folders that Python `datasets` wrote with `save_to_disk`: which Arrow streams hold the rows of which split.
//!
//! A `Dataset` is a folder with `state.json`, which lists its shards; a `DatasetDict` one with
//! `dataset_dict.json`, which names its splits, and in it a `Dataset`'s folder for each. What `state.json` says of
//! the format rows are shown in in Python means nothing here.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::FormatError;
use crate::artifact::dataset::check_split_name;

const STATE: &str = "state.json";
const SPLITS: &str = "dataset_dict.json";

/// A `Dataset`'s folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// The split it was in Python, where that has a plain name.
    pub split: Option<String>,
    /// Where it is.
    pub folder: PathBuf,
    /// The Arrow streams with its rows, in their order; at least one.
    pub shards: Vec<PathBuf>,
}

/// What `state.json` says of a dataset.
#[derive(Deserialize)]
struct State {
    #[serde(rename = "_data_files")]
    data_files: Vec<DataFile>,
    #[serde(rename = "_split", default)]
    split: Option<String>,
    /// How versions before 2.0 wrote a selection or an order of the rows, under either name.
    #[serde(rename = "_indices_data_files", alias = "_indices_files", default)]
    indices: Value,
}

#[derive(Deserialize)]
struct DataFile {
    filename: String,
}

#[derive(Deserialize)]
struct Splits {
    splits: Vec<String>,
}

/// What `save_to_disk` wrote into a folder: its splits in their order, none where it wrote nothing there.
pub fn in_folder(folder: &Path) -> Result<Vec<Saved>, FormatError> {
    if folder.join(SPLITS).is_file() {
        let path = folder.join(SPLITS);
        let splits: Splits = json(&path)?;
        if splits.splits.is_empty() {
            return Err(file(&path, "names no split"));
        }
        let each = splits.splits.into_iter().map(|split| {
            check_split_name(&split).map_err(|e| file(&path, e.to_string()))?;
            let within = folder.join(&split);
            if !within.join(STATE).is_file() {
                return Err(file(
                    &path,
                    format!("names the split `{split}`, and {split}/{STATE} is missing"),
                ));
            }
            Ok(Saved { split: Some(split), ..dataset(&within)? })
        });
        return each.collect();
    }
    match folder.join(STATE).is_file() && is_state(&folder.join(STATE))? {
        true => Ok(vec![dataset(folder)?]),
        false => Ok(Vec::new()),
    }
}

/// Whether this is the file of `save_to_disk`, and not data that happens to have its name.
fn is_state(path: &Path) -> Result<bool, FormatError> {
    let text = fs::read_to_string(path).map_err(|e| file(path, e.to_string()))?;
    Ok(text.contains("\"_data_files\"") || text.contains("\"_fingerprint\""))
}

fn dataset(folder: &Path) -> Result<Saved, FormatError> {
    let path = folder.join(STATE);
    let state: State = json(&path)?;
    let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    if !empty(&state.indices) {
        let reason = "the rows are a selection of the shards' by an indices table, which pipe can't follow: load the \
                      folder in Python and save it with `flatten_indices().save_to_disk(…)`";
        return Err(file(&path, reason));
    }
    if state.data_files.is_empty() {
        return Err(file(&path, "lists no data files: the dataset was saved without a row"));
    }
    let mut shards = Vec::with_capacity(state.data_files.len());
    for DataFile { filename } in state.data_files {
        // Only what is visible in the folder itself is part of the data's identity.
        if filename.starts_with('.') || filename.contains(['/', '\\']) || filename.is_empty() {
            return Err(file(&path, format!("`{filename}` is no file of this folder")));
        }
        let shard = folder.join(&filename);
        if !shard.is_file() {
            return Err(file(&path, format!("lists the shard {filename}, which is missing")));
        }
        shards.push(shard);
    }
    let split = state.split.filter(|name| check_split_name(name).is_ok());
    Ok(Saved { split, folder: folder.into(), shards })
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T, FormatError> {
    let text = fs::read_to_string(path).map_err(|e| file(path, e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| file(path, format!("not what `save_to_disk` writes: {e}")))
}

fn file(path: &Path, reason: impl Into<String>) -> FormatError {
    FormatError::File { path: path.into(), reason: reason.into() }
}
