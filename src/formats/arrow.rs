//! Arrow streams: the files that Python `datasets` keeps rows in.
//!
//! Knows when a stream is whole; does not know which streams make up a dataset.

use std::io::Cursor;
use std::panic::catch_unwind;
use std::path::Path;

use polars::prelude::{ArrowDataType, IpcStreamReader, PolarsError, SerReader};

use super::{FormatError, Table, features};
use crate::artifact::parquet::{no_column, unreadable};
use crate::cancel::Cancel;
use crate::files;

/// The marker that a stream ends with, without which it may have lost its last rows.
const END: &[u8] = &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// What every message of a stream begins with.
const BEGIN: &[u8] = &[0xff, 0xff, 0xff, 0xff];

/// What an Arrow file, which is no stream, begins with.
const FILE: &[u8] = b"ARROW1";

/// Reads an Arrow stream whole.
pub(super) fn read(path: &Path, cancel: &Cancel) -> Result<Table, FormatError> {
    let whole = |reason: String| FormatError::File { path: path.into(), reason };
    let bytes = files::read(path, cancel).map_err(|e| FormatError::io(path, &e))?;
    match bytes.as_slice() {
        [] => return Err(whole("the file is empty".into())),
        bytes if bytes.starts_with(FILE) => {
            return Err(whole(
                "an Arrow (Feather) file, not an Arrow stream, which `datasets` writes".into(),
            ));
        }
        bytes if !bytes.starts_with(BEGIN) => return Err(whole("not an Arrow stream".into())),
        bytes if !bytes.ends_with(END) => {
            return Err(whole("cut off: the Arrow stream has no end marker, so rows may be missing".into()));
        }
        _ => {}
    }
    // Of some broken lengths polars makes a panic.
    let decoded = catch_unwind(|| decode(&bytes))
        .unwrap_or_else(|_| Err("not readable as an Arrow stream: a length in it is impossible".into()));
    decoded.map_err(whole)
}

fn decode(bytes: &[u8]) -> Result<Table, String> {
    let broken = |e: PolarsError| format!("not readable as an Arrow stream: {e}");
    let mut reader = IpcStreamReader::new(Cursor::new(bytes));
    let schema = reader.arrow_schema().map_err(broken)?;
    for field in schema.iter_values() {
        if let Some(kind) = dictionary(field.dtype()).or_else(|| unreadable(field.dtype())) {
            return Err(no_column(&field.name, kind));
        }
    }
    let metadata = reader.custom_metadata().map_err(broken)?;
    let entry = metadata.as_ref().and_then(|metadata| metadata.get("huggingface"));
    let features = entry.map(|text| features::in_entry(text)).unwrap_or_default();
    Ok(Table { frame: reader.finish().map_err(broken)?, features })
}

/// A type within this one that a stream keeps apart from its rows, which this build of polars can't read.
fn dictionary(kind: &ArrowDataType) -> Option<&ArrowDataType> {
    use ArrowDataType as A;
    match kind {
        A::Dictionary(..) | A::Map(..) => Some(kind),
        A::List(inner) | A::LargeList(inner) => dictionary(inner.dtype()),
        A::Struct(fields) => fields.iter().find_map(|field| dictionary(field.dtype())),
        _ => None,
    }
}
