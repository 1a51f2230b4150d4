//! Files of rows in the formats that data comes in: csv, json, jsonl, parquet, Arrow streams, text.
//!
//! Knows how a file's ending names its format and how cells become typed columns, always from all rows of
//! the file; does not know of splits, nor where files are looked for.

mod arrow;
mod csv;
mod features;
mod json;
pub mod lines;
pub mod pattern;
pub mod saved;
pub mod splits;
pub mod stack;
mod typing;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use polars::prelude::DataFrame;

use crate::artifact::dataset::{DatasetError, Feature};
use crate::artifact::parquet::read_parquet;

pub use features::{INFO_FILES, beside};

/// The endings of the files that can be read.
pub const ENDINGS: &[&str] = &["arrow", "csv", "json", "jsonl", "ndjson", "parquet", "txt"];

/// What one file holds.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its rows, columns in the file's order.
    pub frame: DataFrame,
    /// What it says of its columns beyond their types.
    pub features: BTreeMap<String, Feature>,
}

/// Why a file can't be read as rows.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Something is wrong at a line, counted from 1.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// Something is wrong with the file as a whole.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A parquet file can't be read.
    #[error(transparent)]
    Parquet(#[from] DatasetError),
}

/// Whether the file's ending is one of [`ENDINGS`].
pub fn is_known(path: &Path) -> bool {
    ENDINGS.contains(&ending(path).as_str())
}

/// Whether the file is text, a row a line, that [`lines`] reads a piece at a time.
pub fn is_text(path: &Path) -> bool {
    ending(path) == "txt"
}

/// What names a file's format: what follows the last dot of its name, in small letters.
pub fn ending(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// Reads a file whole, in the format its ending names.
pub fn read(path: &Path) -> Result<Table, FormatError> {
    let whole = |reason: String| FormatError::File { path: path.into(), reason };
    match ending(path).as_str() {
        "csv" => Ok(plain(csv::read(&text(path)?).map_err(|e| e.at(path))?)),
        "json" => Ok(plain(json::read(&text(path)?).map_err(|e| e.at(path))?)),
        "jsonl" | "ndjson" => Ok(plain(json::read_lines(&text(path)?).map_err(|e| e.at(path))?)),
        "parquet" => {
            let size = fs::metadata(path).map_err(|e| whole(e.to_string()))?.len();
            if size == 0 {
                return Err(whole("the file is empty".into()));
            }
            let frame = read_parquet(path)?;
            Ok(Table { frame, features: features::in_parquet(path) })
        }
        "arrow" => arrow::read(path),
        "txt" => {
            let mut frame = DataFrame::empty_with_schema(&lines::schema());
            for piece in lines::Lines::open(path)? {
                frame.vstack_mut(&piece?).map_err(|e| whole(e.to_string()))?;
            }
            Ok(plain(frame))
        }
        "" => Err(whole(format!("the file has no ending that names its format; {}", readable()))),
        other => Err(whole(format!("`.{other}` can't be read; {}", readable()))),
    }
}

fn readable() -> String {
    let endings: Vec<String> = ENDINGS.iter().map(|e| format!(".{e}")).collect();
    format!("files ending in {} can", endings.join(", "))
}

fn plain(frame: DataFrame) -> Table {
    Table { frame, features: BTreeMap::new() }
}

/// A file's text without a byte-order mark.
fn text(path: &Path) -> Result<String, FormatError> {
    let whole = |reason: String| FormatError::File { path: path.into(), reason };
    let bytes = fs::read(path).map_err(|e| whole(e.to_string()))?;
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let good = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|b| **b == b'\n').count();
        FormatError::Line { path: path.into(), line, reason: "not UTF-8 text".into() }
    })?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    if text.trim().is_empty() {
        return Err(whole("the file is empty".into()));
    }
    Ok(text)
}

/// What is wrong with a file's content: where in it, when that is known, and what.
#[derive(Debug)]
struct Flaw {
    line: Option<usize>,
    reason: String,
}

impl Flaw {
    fn whole(reason: impl Into<String>) -> Self {
        Self { line: None, reason: reason.into() }
    }

    fn line(line: usize, reason: impl Into<String>) -> Self {
        Self { line: Some(line), reason: reason.into() }
    }

    fn at(self, path: &Path) -> FormatError {
        match self.line {
            Some(line) => FormatError::Line { path: path.into(), line, reason: self.reason },
            None => FormatError::File { path: path.into(), reason: self.reason },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(name: &str, content: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        read(&path).unwrap_err().to_string().replace(&format!("{}/", dir.path().display()), "")
    }

    #[test]
    fn a_file_that_is_no_table_says_so() {
        let endings = "files ending in .arrow, .csv, .json, .jsonl, .ndjson, .parquet, .txt can";
        assert_eq!(refusal("a.pkl", b"x"), format!("a.pkl: `.pkl` can't be read; {endings}"));
        assert_eq!(refusal("a.xlsx", b"x"), format!("a.xlsx: `.xlsx` can't be read; {endings}"));
        assert_eq!(refusal("a", b"x"), format!("a: the file has no ending that names its format; {endings}"));
        assert_eq!(refusal("a.csv", b"\n \n"), "a.csv: the file is empty");
        assert_eq!(refusal("a.jsonl", b""), "a.jsonl: the file is empty");
        assert_eq!(refusal("a.parquet", b""), "a.parquet: the file is empty");
        assert_eq!(refusal("a.csv", b"a,b\n1,2\n1,\xff\n"), "a.csv:3: not UTF-8 text");
        let corrupt = refusal("a.parquet", b"PAR1 and nothing");
        assert!(corrupt.starts_with("a.parquet: not readable as parquet: "), "{corrupt}");
    }
}
