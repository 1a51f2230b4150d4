//! Datasets: named splits of polars frames, parquet on disk.
//!
//! Knows the files of a dataset artifact (`<split>.parquet` and `dataset.json`), read and written whole
//! ([`Dataset`]) or a piece at a time ([`Stored`], [`DatasetWriter`]), and how a cell reads as text; does not
//! know where data came from or what a column is for.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use polars::prelude::{AnyValue, Column, DataFrame, DataType, Schema};
use serde::{Deserialize, Serialize};

use super::parquet::{RowGroupWriter, RowGroups, read_parquet};
use crate::cancel::{Cancel, Interrupted};

/// The file that names the splits and describes the columns.
const INDEX: &str = "dataset.json";

/// Rows in named columns, in named splits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dataset {
    /// The splits, in the order they were found.
    pub splits: Vec<Split>,
    /// What is known of a column beyond its type, by the column's name.
    pub features: BTreeMap<String, Feature>,
}

/// One split: `rows` × `columns`.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// `train`, `test`, …
    pub name: String,
    /// Its rows.
    pub frame: DataFrame,
}

/// What is known of a column beyond its type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// The name of each class, by its id, where the column holds class ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_names: Option<Vec<String>>,
}

/// Why a dataset can't be read, written or asked.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The folder holds no dataset.
    #[error("{}: no dataset here (it has no {INDEX})", .0.display())]
    Absent(PathBuf),
    /// A file can't be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file isn't what it has to be.
    #[error("{}: {reason}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A split's name can't be a file's name, or is there twice.
    #[error("`{0}` can't be the name of a split: {1}")]
    SplitName(String, &'static str),
    /// There is no such split.
    #[error("no split `{name}`{}; there {}", nearest(name, have), listed(have))]
    NoSplit {
        /// What was asked for.
        name: String,
        /// What there is.
        have: Vec<String>,
    },
    /// There is no such column.
    #[error("no column `{name}` in split `{split}`{}; there {}", nearest(name, have), listed(have))]
    NoColumn {
        /// What was asked for.
        name: String,
        /// Where.
        split: String,
        /// What there is.
        have: Vec<String>,
    },
    /// A cell that can't be read as text, such as a list.
    #[error("column `{column}` holds {kind}, which is not text, a number or true/false")]
    NotText {
        /// The column.
        column: String,
        /// The polars type.
        kind: String,
    },
    /// There is no such row.
    #[error("column `{column}` has no row {row}: it has {rows}, counted from 0")]
    NoRow {
        /// The column.
        column: String,
        /// What was asked for, from 0.
        row: usize,
        /// How many there are.
        rows: usize,
    },
    /// Somebody asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// `, did you mean …?` where one of the names is close.
pub(crate) fn nearest(name: &str, have: &[String]) -> String {
    have.iter()
        .map(|h| (strsim::jaro_winkler(&name.to_lowercase(), &h.to_lowercase()), h))
        .filter(|(closeness, _)| *closeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, h)| format!(" (did you mean `{h}`?)"))
        .unwrap_or_default()
}

fn listed(have: &[String]) -> String {
    match have {
        [] => "is none".into(),
        [one] => format!("is `{one}`"),
        many => format!("are {}", many.iter().map(|h| format!("`{h}`")).collect::<Vec<_>>().join(", ")),
    }
}

/// What [`INDEX`] holds.
#[derive(Serialize, Deserialize)]
struct Index {
    splits: Vec<IndexedSplit>,
    #[serde(default)]
    features: BTreeMap<String, Feature>,
}

#[derive(Serialize, Deserialize)]
struct IndexedSplit {
    name: String,
    rows: usize,
}

impl Index {
    fn read(dir: &Path) -> Result<Self, DatasetError> {
        let path = dir.join(INDEX);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DatasetError::Absent(dir.to_path_buf()));
            }
            Err(error) => return Err(DatasetError::Io { path, error }),
        };
        let index: Self =
            serde_json::from_str(&text).map_err(|e| DatasetError::Broken { path, reason: e.to_string() })?;
        index.splits.iter().try_for_each(|split| check_split_name(&split.name))?;
        Ok(index)
    }

    fn write(&self, dir: &Path) -> Result<(), DatasetError> {
        let path = dir.join(INDEX);
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|e| DatasetError::Broken { path: path.clone(), reason: e.to_string() })?;
        text.push('\n');
        fs::write(&path, text).map_err(|error| DatasetError::Io { path, error })
    }
}

impl IndexedSplit {
    /// Refuses a file that doesn't have as many rows as it should.
    fn agrees(&self, rows: usize, path: &Path) -> Result<(), DatasetError> {
        match rows == self.rows {
            true => Ok(()),
            false => Err(DatasetError::Broken {
                path: path.into(),
                reason: format!("has {rows} rows, {INDEX} says {}", self.rows),
            }),
        }
    }
}

/// A dataset on disk: what it holds is known, its rows are read a piece at a time.
pub struct Stored {
    dir: PathBuf,
    cancel: Cancel,
    splits: Vec<IndexedSplit>,
    /// What is known of a column beyond its type, by the column's name.
    pub features: BTreeMap<String, Feature>,
}

impl Stored {
    /// Opens what [`Dataset::save`] or a [`DatasetWriter`] wrote, for whoever reads it until asked to stop.
    pub fn open(dir: &Path, cancel: &Cancel) -> Result<Self, DatasetError> {
        let index = Index::read(dir)?;
        Ok(Self { dir: dir.into(), cancel: cancel.clone(), splits: index.splits, features: index.features })
    }

    /// The names of the splits, in their order.
    pub fn split_names(&self) -> Vec<String> {
        self.splits.iter().map(|s| s.name.clone()).collect()
    }

    /// The rows of the split of this name, piece by piece in their order.
    pub fn batches(&self, name: &str) -> Result<Batches, DatasetError> {
        let split = self
            .splits
            .iter()
            .find(|s| s.name == name)
            .ok_or_else(|| DatasetError::NoSplit { name: name.into(), have: self.split_names() })?;
        let path = split_path(&self.dir, name);
        let groups = RowGroups::open(&path, &self.cancel)?;
        split.agrees(groups.rows(), &path)?;
        Ok(Batches { name: name.into(), groups, first: 0 })
    }
}

/// The rows of one split, piece by piece: an iterator over a few thousand rows at a time.
pub struct Batches {
    name: String,
    groups: RowGroups,
    first: usize,
}

/// Rows of a split that follow each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Where in the whole split its first row stands, from 0.
    pub first: usize,
    /// The rows, under the split's name.
    pub rows: Split,
}

impl Batches {
    /// How many rows the split has in all.
    pub fn rows(&self) -> usize {
        self.groups.rows()
    }

    /// The split without its rows: its columns and their types, also where there is no row.
    pub fn header(&self) -> Result<Split, DatasetError> {
        Ok(Split { name: self.name.clone(), frame: self.groups.header()? })
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let frame = match self.groups.next()? {
            Ok(frame) => frame,
            Err(error) => return Some(Err(error)),
        };
        let first = self.first;
        self.first += frame.height();
        Some(Ok(Batch { first, rows: Split { name: self.name.clone(), frame } }))
    }
}

/// A dataset in the making: one split after the other, each in pieces of any size.
pub struct DatasetWriter {
    dir: PathBuf,
    cancel: Cancel,
    splits: Vec<IndexedSplit>,
}

/// A split in the making; it counts once it is [ended](SplitWriter::end).
pub struct SplitWriter<'a> {
    splits: &'a mut Vec<IndexedSplit>,
    name: String,
    file: RowGroupWriter,
}

impl DatasetWriter {
    /// A dataset in a folder that exists, written until somebody asks to stop.
    pub fn create(dir: &Path, cancel: &Cancel) -> Self {
        Self { dir: dir.into(), cancel: cancel.clone(), splits: Vec::new() }
    }

    /// Begins the next split, of these columns.
    pub fn split(&mut self, name: &str, schema: &Schema) -> Result<SplitWriter<'_>, DatasetError> {
        check_split_name(name)?;
        if self.splits.iter().any(|s| s.name == name) {
            return Err(DatasetError::SplitName(name.into(), "it is there twice"));
        }
        let file = RowGroupWriter::create(&split_path(&self.dir, name), schema, &self.cancel)?;
        Ok(SplitWriter { splits: &mut self.splits, name: name.into(), file })
    }

    /// Writes [`INDEX`], without which there is no dataset.
    pub fn finish(self, features: BTreeMap<String, Feature>) -> Result<(), DatasetError> {
        Index { splits: self.splits, features }.write(&self.dir)
    }
}

impl SplitWriter<'_> {
    /// Puts rows below those written so far; they have to be of the same columns.
    pub fn write(&mut self, rows: &DataFrame) -> Result<(), DatasetError> {
        self.file.write(rows)
    }

    /// Ends the split; tells how many rows it has.
    pub fn end(self) -> Result<usize, DatasetError> {
        let rows = self.file.finish()?;
        self.splits.push(IndexedSplit { name: self.name, rows });
        Ok(rows)
    }
}

impl Dataset {
    /// Reads what [`Dataset::save`] or a [`DatasetWriter`] wrote.
    pub fn load(dir: &Path) -> Result<Self, DatasetError> {
        let index = Index::read(dir)?;
        let mut splits = Vec::with_capacity(index.splits.len());
        for split in index.splits {
            let path = split_path(dir, &split.name);
            let frame = read_parquet(&path)?;
            split.agrees(frame.height(), &path)?;
            splits.push(Split { name: split.name, frame });
        }
        Ok(Self { splits, features: index.features })
    }

    /// Writes one parquet file per split and [`INDEX`] into a folder that exists. Equal datasets give equal
    /// bytes.
    pub fn save(&self, dir: &Path) -> Result<(), DatasetError> {
        self.write(DatasetWriter::create(dir, &Cancel::default()))
    }

    /// The same by a writer that has written nothing yet.
    pub fn write(&self, mut writer: DatasetWriter) -> Result<(), DatasetError> {
        for split in &self.splits {
            let mut file = writer.split(&split.name, split.frame.schema())?;
            file.write(&split.frame)?;
            file.end()?;
        }
        writer.finish(self.features.clone())
    }

    /// The split of this name.
    pub fn split(&self, name: &str) -> Result<&Split, DatasetError> {
        self.splits
            .iter()
            .find(|s| s.name == name)
            .ok_or_else(|| DatasetError::NoSplit { name: name.into(), have: self.split_names() })
    }

    /// The names of the splits, in their order.
    pub fn split_names(&self) -> Vec<String> {
        self.splits.iter().map(|s| s.name.clone()).collect()
    }

    /// The names of a column's classes by id, where they are known.
    pub fn class_names(&self, column: &str) -> Option<&[String]> {
        self.features.get(column)?.class_names.as_deref()
    }
}

impl Split {
    /// How many rows it has.
    pub fn rows(&self) -> usize {
        self.frame.height()
    }

    /// The names of the columns, in their order.
    pub fn column_names(&self) -> Vec<String> {
        self.frame.get_column_names().iter().map(|n| n.to_string()).collect()
    }

    /// The column of this name.
    pub fn column(&self, name: &str) -> Result<&Column, DatasetError> {
        self.frame.column(name).map_err(|_| DatasetError::NoColumn {
            name: name.into(),
            split: self.name.clone(),
            have: self.column_names(),
        })
    }

    /// The cell of a column at a row (from 0) as text, as [`text_of`] gives it.
    pub fn text_at(&self, column: &str, row: usize) -> Result<Option<String>, DatasetError> {
        text_of(self.column(column)?, row)
    }
}

/// A cell as text: strings as they are, whole numbers in digits, other numbers with a point or an exponent
/// (`1.0`), truth values as `true` and `false`, null as `None`. Lists and mappings are an error.
pub fn text_of(column: &Column, row: usize) -> Result<Option<String>, DatasetError> {
    if column.dtype().is_nested() || matches!(column.dtype(), DataType::Binary) {
        return Err(DatasetError::NotText {
            column: column.name().to_string(),
            kind: column.dtype().to_string(),
        });
    }
    let value = column.get(row).map_err(|_| DatasetError::NoRow {
        column: column.name().to_string(),
        row,
        rows: column.len(),
    })?;
    Ok(match value {
        AnyValue::Null => None,
        AnyValue::String(text) => Some(text.to_owned()),
        AnyValue::StringOwned(text) => Some(text.to_string()),
        AnyValue::Boolean(truth) => Some(truth.to_string()),
        AnyValue::Float32(number) => Some(format!("{number:?}")),
        AnyValue::Float64(number) => Some(format!("{number:?}")),
        other => Some(other.to_string()),
    })
}

fn split_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.parquet"))
}

/// A split's name becomes a file's name, so it is held to what is safe as one everywhere.
pub fn check_split_name(name: &str) -> Result<(), DatasetError> {
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
        let why = "letters, digits, `_`, `-` and `.` are allowed";
        return Err(DatasetError::SplitName(name.into(), why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::df;

    fn tweets() -> Dataset {
        let frame = df!(
            "Tweet text" => ["no water", "thanks", "so late"],
            "ID" => [0i64, 1, 2],
            "score" => [Some(0.5f64), None, Some(1.0)],
            "reply" => [true, false, true],
        )
        .unwrap();
        let names = ["Unlabeled", "complaint"].map(String::from).to_vec();
        Dataset {
            splits: vec![
                Split { name: "train".into(), frame: frame.clone() },
                Split { name: "test".into(), frame: frame.head(Some(0)) },
            ],
            features: [("ID".into(), Feature { class_names: Some(names) })].into(),
        }
    }

    #[test]
    fn comes_back_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let saved = tweets();
        saved.save(dir.path()).unwrap();
        let loaded = Dataset::load(dir.path()).unwrap();
        assert_eq!(loaded.split_names(), ["train", "test"]);
        assert_eq!(loaded.splits[1].column_names(), ["Tweet text", "ID", "score", "reply"]);
        assert!(loaded.splits[0].frame.equals_missing(&saved.splits[0].frame));
        assert_eq!(loaded.splits[1].rows(), 0);
        assert_eq!(loaded.class_names("ID").unwrap(), ["Unlabeled", "complaint"]);
        assert_eq!(
            fs::read_to_string(dir.path().join("dataset.json")).unwrap(),
            "{\n  \"splits\": [\n    {\n      \"name\": \"train\",\n      \"rows\": 3\n    },\n    {\n      \
             \"name\": \"test\",\n      \"rows\": 0\n    }\n  ],\n  \"features\": {\n    \"ID\": {\n      \
             \"class_names\": [\n        \"Unlabeled\",\n        \"complaint\"\n      ]\n    }\n  }\n}\n"
        );
    }

    #[test]
    fn equal_rows_are_equal_bytes_however_they_were_put_together() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir_all(&a).unwrap();
        fs::create_dir_all(&b).unwrap();
        let whole = tweets();
        whole.save(&a).unwrap();
        let mut pieces = tweets();
        let frame = &pieces.splits[0].frame;
        pieces.splits[0].frame = frame.slice(0, 1).vstack(&frame.slice(1, 2)).unwrap();
        pieces.save(&b).unwrap();
        for file in ["train.parquet", "test.parquet", "dataset.json"] {
            assert_eq!(fs::read(a.join(file)).unwrap(), fs::read(b.join(file)).unwrap(), "{file}");
        }
    }

    #[test]
    fn cells_read_as_text() {
        let data = tweets();
        let train = data.split("train").unwrap();
        let cell = |column, row| train.text_at(column, row).unwrap();
        assert_eq!(cell("Tweet text", 1).as_deref(), Some("thanks"));
        assert_eq!(cell("ID", 2).as_deref(), Some("2"));
        assert_eq!(cell("score", 0).as_deref(), Some("0.5"));
        assert_eq!(cell("score", 1), None);
        assert_eq!(cell("score", 2).as_deref(), Some("1.0"));
        assert_eq!(cell("reply", 0).as_deref(), Some("true"));
        assert_eq!(
            train.text_at("ID", 3).unwrap_err().to_string(),
            "column `ID` has no row 3: it has 3, counted from 0"
        );
    }

    #[test]
    fn what_is_not_there_is_named_with_what_is() {
        let data = tweets();
        assert_eq!(
            data.split("trian").unwrap_err().to_string(),
            "no split `trian` (did you mean `train`?); there are `train`, `test`"
        );
        assert_eq!(
            data.splits[0].column("Tweet_text").unwrap_err().to_string(),
            "no column `Tweet_text` in split `train` (did you mean `Tweet text`?); \
             there are `Tweet text`, `ID`, `score`, `reply`"
        );
    }

    #[test]
    fn a_folder_without_a_dataset_or_with_a_broken_one_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let error = |dir: &Path| Dataset::load(dir).unwrap_err().to_string();
        assert_eq!(error(dir.path()), format!("{at}: no dataset here (it has no dataset.json)"));
        tweets().save(dir.path()).unwrap();
        fs::write(dir.path().join("train.parquet"), "PAR1 not at all").unwrap();
        let start = format!("{at}/train.parquet: not readable as parquet: ");
        assert!(error(dir.path()).starts_with(&start), "{}", error(dir.path()));
    }

    #[test]
    fn batches_say_where_their_rows_stand() {
        let dir = tempfile::tempdir().unwrap();
        tweets().save(dir.path()).unwrap();
        let stored = Stored::open(dir.path(), &Cancel::default()).unwrap();
        assert_eq!(stored.split_names(), ["train", "test"]);
        let train = stored.batches("train").unwrap();
        assert_eq!((train.rows(), train.header().unwrap().rows()), (3, 0));
        assert_eq!(train.header().unwrap().column_names(), ["Tweet text", "ID", "score", "reply"]);
        let batches: Vec<Batch> = train.map(Result::unwrap).collect();
        assert_eq!((batches.len(), batches[0].first, batches[0].rows.name.as_str()), (1, 0, "train"));
        assert!(batches[0].rows.frame.equals_missing(&tweets().splits[0].frame));
        assert_eq!(stored.batches("test").unwrap().count(), 0);
        assert_eq!(
            stored.batches("tests").err().unwrap().to_string(),
            "no split `tests` (did you mean `test`?); there are `train`, `test`"
        );
    }

    #[test]
    fn a_split_can_not_name_a_file_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let mut data = tweets();
        data.splits[0].name = "../train".into();
        assert_eq!(
            data.save(dir.path()).unwrap_err().to_string(),
            "`../train` can't be the name of a split: letters, digits, `_`, `-` and `.` are allowed"
        );
    }
}
