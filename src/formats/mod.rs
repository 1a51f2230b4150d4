//! Files of rows in the formats that data comes in: csv, json, jsonl, parquet, Arrow streams, text.
//!
//! Knows how a file's ending names its format and how cells become typed columns, always from all rows of
//! the file; does not know of splits, nor where files are looked for.

mod arrow;
mod csv;
mod features;
mod json;
pub mod lines;
mod named;
pub mod pattern;
pub mod saved;
pub mod splits;
pub mod stack;
mod typing;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use polars::prelude::DataFrame;

use crate::artifact::dataset::{DatasetError, Feature};
use crate::artifact::parquet::read_parquet;
use crate::cancel::{Cancel, Interrupted};
use crate::files::{self, shown};

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
    #[error("{}:{line}: {reason}", shown(path))]
    Line {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// Something is wrong with the file as a whole.
    #[error("{}: {reason}", shown(path))]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A parquet file can't be read.
    #[error(transparent)]
    Parquet(#[from] DatasetError),
    /// Somebody asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl FormatError {
    /// A file that can't be read, or whose reading was asked to stop.
    fn io(path: &Path, error: &std::io::Error) -> Self {
        match Interrupted::is(error) {
            true => Self::Interrupted(Interrupted),
            false => Self::File { path: path.into(), reason: error.to_string() },
        }
    }
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
///
/// # Errors
/// See [`FormatError`]. Whoever asks to stop is not waited on by what is left of the reading.
pub fn read(path: &Path, cancel: &Cancel) -> Result<Table, FormatError> {
    let (path, inner) = (path.to_path_buf(), cancel.clone());
    cancel.or_abandon(move || read_here(&path, &inner))?
}

/// The same on this thread; the readers of other crates don't hear that they are to stop.
fn read_here(path: &Path, cancel: &Cancel) -> Result<Table, FormatError> {
    let whole = |reason: String| FormatError::File { path: path.into(), reason };
    match ending(path).as_str() {
        "csv" => Ok(plain(csv::read(&text(path, cancel)?, cancel).map_err(|e| e.at(path))?)),
        "json" => Ok(plain(json::read(&text(path, cancel)?, cancel).map_err(|e| e.at(path))?)),
        "jsonl" | "ndjson" => {
            Ok(plain(json::read_lines(&text(path, cancel)?, cancel).map_err(|e| e.at(path))?))
        }
        "parquet" => {
            let size = std::fs::metadata(path).map_err(|e| whole(e.to_string()))?.len();
            if size == 0 {
                return Err(whole("the file is empty".into()));
            }
            let frame = read_parquet(path)?;
            Ok(Table { frame, features: features::in_parquet(path) })
        }
        "arrow" => arrow::read(path, cancel),
        "txt" => {
            let mut frame = DataFrame::empty_with_schema(&lines::schema());
            for piece in lines::Lines::open(path, cancel)? {
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
fn text(path: &Path, cancel: &Cancel) -> Result<String, FormatError> {
    let whole = |reason: String| FormatError::File { path: path.into(), reason };
    let bytes = files::read(path, cancel).map_err(|e| FormatError::io(path, &e))?;
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
    /// Nothing is wrong with it: somebody asked to stop.
    interrupted: bool,
}

impl From<Interrupted> for Flaw {
    fn from(interrupted: Interrupted) -> Self {
        Self { line: None, reason: interrupted.to_string(), interrupted: true }
    }
}

impl Flaw {
    fn whole(reason: impl Into<String>) -> Self {
        Self { line: None, reason: reason.into(), interrupted: false }
    }

    fn line(line: usize, reason: impl Into<String>) -> Self {
        Self { line: Some(line), reason: reason.into(), interrupted: false }
    }

    fn at(self, path: &Path) -> FormatError {
        match self.line {
            _ if self.interrupted => FormatError::Interrupted(Interrupted),
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
        std::fs::write(&path, content).unwrap();
        read(&path, &Cancel::default())
            .unwrap_err()
            .to_string()
            .replace(&format!("{}/", dir.path().display()), "")
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
