//! Text files: a row a line, in the one column `text`, as `datasets`' builder `text` reads them.
//!
//! `\n`, `\r\n` and a lone `\r` end a line and are no part of it; an empty line is a row; a byte-order mark at
//! the start is none of the text. A file is read a piece at a time and never held whole.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use polars::prelude::{Column, DataFrame, DataType, Field, IntoSeries, Schema, StringChunkedBuilder};

use super::FormatError;
use crate::artifact::parquet::ROW_GROUP;
use crate::cancel::{Cancel, Until};
use crate::files;

/// The column's name.
const COLUMN: &str = "text";

/// A piece ends with the line that brings it to so many bytes, or to [`ROW_GROUP`] lines.
const PIECE: usize = 1 << 23;

/// The columns of a text file.
pub fn schema() -> Schema {
    Schema::from_iter([Field::new(COLUMN.into(), DataType::String)])
}

/// How many rows a text file has.
pub fn count(path: &Path, cancel: &Cancel) -> Result<usize, FormatError> {
    let mut file = open(path, cancel)?;
    let (mut lines, mut last) = (0, None);
    loop {
        let bytes = file.fill_buf().map_err(|e| FormatError::io(path, &e))?;
        if bytes.is_empty() {
            break;
        }
        for byte in bytes {
            // `\r\n` is counted at its first half.
            lines += usize::from(*byte == b'\r' || (*byte == b'\n' && last != Some(b'\r')));
            last = Some(*byte);
        }
        let read = bytes.len();
        file.consume(read);
    }
    Ok(lines + usize::from(!matches!(last, None | Some(b'\n' | b'\r'))))
}

/// The rows of a text file in pieces of some megabytes.
pub struct Lines {
    path: PathBuf,
    file: BufReader<Until<File>>,
    /// Bytes up to a `\n`; there is more than one line in them where a lone `\r` ends one.
    bytes: Vec<u8>,
    /// The rows read so far.
    read: usize,
}

impl Lines {
    /// Opens a text file.
    pub fn open(path: &Path, cancel: &Cancel) -> Result<Self, FormatError> {
        Ok(Self { path: path.into(), file: open(path, cancel)?, bytes: Vec::new(), read: 0 })
    }

    /// The next rows; none at the end.
    fn piece(&mut self) -> Result<Option<DataFrame>, FormatError> {
        let mut rows = StringChunkedBuilder::new(COLUMN.into(), ROW_GROUP);
        let (mut height, mut size) = (0, 0);
        while height < ROW_GROUP && size < PIECE {
            self.bytes.clear();
            let read =
                self.file.read_until(b'\n', &mut self.bytes).map_err(|e| FormatError::io(&self.path, &e))?;
            if read == 0 {
                break;
            }
            let text = str::from_utf8(&self.bytes).map_err(|e| {
                let good = String::from_utf8_lossy(&self.bytes[..e.valid_up_to()]);
                let line = self.read + height + 1 + good.matches('\r').count();
                FormatError::Line { path: self.path.clone(), line, reason: "not UTF-8 text".into() }
            })?;
            let text = text.strip_suffix('\n').unwrap_or(text);
            for line in text.strip_suffix('\r').unwrap_or(text).split('\r') {
                rows.append_value(line);
                height += 1;
            }
            size += read;
        }
        self.read += height;
        let column = Column::from(rows.finish().into_series());
        let whole = |e: polars::error::PolarsError| FormatError::File {
            path: self.path.clone(),
            reason: e.to_string(),
        };
        (height > 0).then(|| DataFrame::new(height, vec![column]).map_err(whole)).transpose()
    }
}

impl Iterator for Lines {
    type Item = Result<DataFrame, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.piece().transpose()
    }
}

/// Behind the byte-order mark, if there is one.
fn open(path: &Path, cancel: &Cancel) -> Result<BufReader<Until<File>>, FormatError> {
    const MARK: &[u8] = "\u{feff}".as_bytes();
    let inner = files::open(path).map_err(|e| FormatError::io(path, &e))?;
    let mut file = BufReader::with_capacity(1 << 16, Until { inner, cancel: cancel.clone() });
    if file.fill_buf().map_err(|e| FormatError::io(path, &e))?.starts_with(MARK) {
        file.read_exact(&mut [0; MARK.len()]).map_err(|e| FormatError::io(path, &e))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(content: &[u8]) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        std::fs::write(&path, content).unwrap();
        let mut rows = Vec::new();
        for piece in Lines::open(&path, &Cancel::default()).unwrap() {
            let piece =
                piece.map_err(|e| e.to_string().replace(&format!("{}/", dir.path().display()), ""))?;
            assert_eq!(piece.schema().as_ref(), &schema());
            let column = piece.column(COLUMN).unwrap().str().unwrap().clone();
            rows.extend(column.iter().flatten().map(str::to_owned));
        }
        assert_eq!(count(&path, &Cancel::default()).unwrap(), rows.len());
        Ok(rows)
    }

    /// What `datasets.load_dataset("text", …)` gives for these.
    #[test]
    fn lines_are_those_of_datasets() {
        assert_eq!(rows(b"a\n\n b \nc").unwrap(), ["a", "", " b ", "c"]);
        assert_eq!(rows(b"a\r\nb\rc\r\r\nd\r").unwrap(), ["a", "b", "c", "", "d"]);
        assert_eq!(rows(b"\n").unwrap(), [""]);
        assert_eq!(rows("\u{feff}트윗\n".as_bytes()).unwrap(), ["트윗"]);
        assert_eq!(rows(b"").unwrap(), [""; 0]);
    }

    #[test]
    fn many_lines_come_in_pieces() {
        let text: String = (0..2 * ROW_GROUP + 3).map(|n| format!("{n}\n")).collect();
        let lines = rows(text.as_bytes()).unwrap();
        assert_eq!(lines.len(), 2 * ROW_GROUP + 3);
        assert!(lines.iter().enumerate().all(|(n, line)| *line == n.to_string()));
    }

    #[test]
    fn a_line_that_is_no_text_is_named() {
        assert_eq!(rows(b"a\nb\rc\xff\n").unwrap_err(), "a.txt:3: not UTF-8 text");
    }
}
