//! Class names that Hugging Face `datasets` writes into a parquet file or an Arrow stream, or into a file
//! beside the data.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use polars::prelude::{ParquetReader, SerReader};
use serde::Deserialize;
use serde_json::Value;

use super::FormatError;
use crate::artifact::dataset::Feature;

/// The files in a data folder that describe it and hold no rows.
pub const INFO_FILES: &[&str] = &["dataset_info.json", "dataset_infos.json"];

/// What `datasets` keeps of a dataset's columns.
#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    features: BTreeMap<String, Value>,
}

impl Info {
    /// The columns of type `ClassLabel`, with their names.
    fn features(self) -> BTreeMap<String, Feature> {
        let class_names = |column: &Value| {
            (column.get("_type")? == "ClassLabel").then_some(())?;
            serde_json::from_value(column.get("names")?.clone()).ok()
        };
        self.features
            .into_iter()
            .filter_map(|(name, column)| Some((name, Feature { class_names: Some(class_names(&column)?) })))
            .collect()
    }
}

/// What a parquet file's own `huggingface` entry says; nothing where there is none.
pub(super) fn in_parquet(path: &Path) -> BTreeMap<String, Feature> {
    let entry = || {
        let mut reader = ParquetReader::new(File::open(path).ok()?);
        let metadata = reader.get_metadata().ok()?;
        let pairs = metadata.key_value_metadata().as_ref()?;
        let text = pairs.iter().find(|pair| pair.key == "huggingface")?.value.as_ref()?;
        Some(in_entry(text))
    };
    entry().unwrap_or_default()
}

/// What the text of an entry `huggingface` in a file's metadata says; nothing where it is something else.
pub(super) fn in_entry(text: &str) -> BTreeMap<String, Feature> {
    #[derive(Deserialize)]
    struct Entry {
        info: Info,
    }
    serde_json::from_str::<Entry>(text).map(|entry| entry.info.features()).unwrap_or_default()
}

/// What a data folder's `dataset_info.json`, or the entry `config` (or the only one) of its
/// `dataset_infos.json`, says; nothing where there is neither.
pub fn beside(folder: &Path, config: Option<&str>) -> Result<BTreeMap<String, Feature>, FormatError> {
    let broken = |path: &Path, reason: String| FormatError::File { path: path.into(), reason };
    let read = |name: &str| {
        let path = folder.join(name);
        path.is_file().then(|| fs::read_to_string(&path).map_err(|e| broken(&path, e.to_string())))
    };
    if let Some(text) = read("dataset_info.json") {
        let info: Info = serde_json::from_str(&text?)
            .map_err(|e| broken(&folder.join("dataset_info.json"), e.to_string()))?;
        return Ok(info.features());
    }
    let Some(text) = read("dataset_infos.json") else { return Ok(BTreeMap::new()) };
    let mut infos: BTreeMap<String, Info> = serde_json::from_str(&text?)
        .map_err(|e| broken(&folder.join("dataset_infos.json"), e.to_string()))?;
    let info = match config {
        Some(config) if infos.contains_key(config) => infos.remove(config),
        // Old versions named the only one after the dataset.
        None | Some("default") if infos.len() == 1 => infos.pop_first().map(|(_, info)| info),
        _ => None,
    };
    Ok(info.map(Info::features).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::df;
    use polars::prelude::{KeyValueMetadata, ParquetWriter};

    const LABEL: &str = r#"{"text": {"dtype": "string", "_type": "Value"},
        "label": {"names": ["Unlabeled", "no complaint"], "_type": "ClassLabel"}}"#;

    fn names(features: &BTreeMap<String, Feature>) -> Vec<(&str, Vec<&str>)> {
        let list = |f: &'_ Feature| f.class_names.clone().unwrap();
        features
            .iter()
            .map(|(name, f)| (name.as_str(), list(f).into_iter().map(|n| &*n.leak()).collect()))
            .collect()
    }

    #[test]
    fn class_names_in_parquet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.parquet");
        let entry = ("huggingface".to_owned(), format!("{{\"info\": {{\"features\": {LABEL}}}}}"));
        ParquetWriter::new(File::create(&path).unwrap())
            .with_key_value_metadata(Some(KeyValueMetadata::from_static(vec![entry])))
            .finish(&mut df!("text" => ["a"], "label" => [1i64]).unwrap())
            .unwrap();
        let table = super::super::read(&path, &Default::default()).unwrap();
        assert_eq!(names(&table.features), [("label", vec!["Unlabeled", "no complaint"])]);
    }

    #[test]
    fn class_names_beside_the_data() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| fs::write(dir.path().join(name), text).unwrap();
        let want = [("label", vec!["Unlabeled", "no complaint"])];
        write("dataset_infos.json", format!("{{\"tweets\": {{\"features\": {LABEL}}}, \"other\": {{}}}}"));
        assert_eq!(names(&beside(dir.path(), Some("tweets")).unwrap()), want);
        assert_eq!(beside(dir.path(), None).unwrap(), BTreeMap::new());
        write("dataset_info.json", format!("{{\"features\": {LABEL}}}"));
        assert_eq!(names(&beside(dir.path(), None).unwrap()), want);
    }
}
