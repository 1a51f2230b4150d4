//! Parquet files, whole or a row group at a time.
//!
//! Knows how rows are cut into row groups, so that equal rows are equal bytes however they came; does not know
//! what the rows are.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use polars::io::parquet::write::BatchedWriter;
use polars::prelude::{
    ArrowDataType, DataFrame, FileMetadataRef, ParallelStrategy, ParquetCompression, ParquetReader,
    ParquetWriter, PolarsError, Schema, SerReader,
};

use super::dataset::DatasetError;
use crate::cancel::{Cancel, Interrupted};
use crate::files;

/// Rows in a parquet row group. Fixed, because a file's bytes depend on it; small, because a row group is what
/// a reader or writer of pieces holds in memory.
pub const ROW_GROUP: usize = 1 << 14;

/// Reads one parquet file whole. Columns of dates, times, decimals and the like are an error.
pub fn read_parquet(path: &Path) -> Result<DataFrame, DatasetError> {
    open(path)?.finish().map_err(|e| broken(path, &e))
}

/// Writes one parquet file. Equal frames give equal bytes, however they were put together.
pub fn write_parquet(frame: &DataFrame, path: &Path) -> Result<(), DatasetError> {
    let mut file = RowGroupWriter::create(path, frame.schema(), &Cancel::default())?;
    file.write(frame)?;
    file.finish()?;
    Ok(())
}

/// The row groups of one parquet file, read one at a time.
#[derive(Clone, Debug)]
pub struct RowGroups {
    path: PathBuf,
    cancel: Cancel,
    metadata: FileMetadataRef,
    /// The row group that is read next.
    next: usize,
    /// Its first row.
    row: usize,
}

impl RowGroups {
    /// Reads what a file says of itself, no rows yet. Columns that [`read_parquet`] refuses are an error.
    pub fn open(path: &Path, cancel: &Cancel) -> Result<Self, DatasetError> {
        let (path, cancel) = (path.to_path_buf(), cancel.clone());
        cancel.clone().or_abandon(move || {
            let metadata = open(&path)?.get_metadata().map_err(|e| broken(&path, &e))?.clone();
            Ok(Self { path, cancel, metadata, next: 0, row: 0 })
        })?
    }

    /// How many rows the file has.
    pub fn rows(&self) -> usize {
        self.metadata.num_rows
    }

    /// The columns, without a row.
    pub fn header(&self) -> Result<DataFrame, DatasetError> {
        self.read(0, 0)
    }

    fn read(&self, from: usize, rows: usize) -> Result<DataFrame, DatasetError> {
        let this = self.clone();
        self.cancel.or_abandon(move || this.read_here(from, rows))?
    }

    fn read_here(&self, from: usize, rows: usize) -> Result<DataFrame, DatasetError> {
        let mut reader = ParquetReader::new(opened(&self.path)?);
        reader.set_metadata(self.metadata.clone());
        // The other strategies decode pages of row groups outside the slice, too.
        let reader = reader.read_parallel(ParallelStrategy::RowGroups).with_slice(Some((from, rows)));
        reader.finish().map_err(|e| broken(&self.path, &e))
    }
}

impl Iterator for RowGroups {
    type Item = Result<DataFrame, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rows = self.metadata.row_groups.get(self.next)?.num_rows();
        let frame = self.read(self.row, rows);
        self.next += 1;
        self.row += rows;
        Some(frame)
    }
}

/// One parquet file in the making: takes rows in pieces of any size and holds no more than a row group.
pub struct RowGroupWriter {
    path: PathBuf,
    cancel: Cancel,
    file: File,
    /// Gone once somebody asked to stop.
    encoder: Option<BatchedWriter<Buffer>>,
    /// What the encoder made and is not in the file yet.
    encoded: Buffer,
    /// Rows that don't fill a row group yet.
    pending: DataFrame,
    rows: usize,
}

impl RowGroupWriter {
    /// Starts a file of these columns.
    pub fn create(path: &Path, schema: &Schema, cancel: &Cancel) -> Result<Self, DatasetError> {
        let file = File::create(path).map_err(|error| DatasetError::Io { path: path.into(), error })?;
        let encoded = Buffer::default();
        let encoder = ParquetWriter::new(encoded.clone())
            .with_compression(ParquetCompression::Zstd(None))
            .batched(schema)
            .map_err(|e| unwritable(path, &e))?;
        let cancel = cancel.clone();
        let pending = DataFrame::empty_with_schema(schema);
        Ok(Self { path: path.into(), cancel, file, encoder: Some(encoder), encoded, pending, rows: 0 })
    }

    /// Puts rows below those written so far; they have to be of the same columns.
    pub fn write(&mut self, rows: &DataFrame) -> Result<(), DatasetError> {
        self.rows += rows.height();
        self.pending.vstack_mut(rows).map_err(|e| unwritable(&self.path, &e))?;
        while self.pending.height() >= ROW_GROUP {
            let full = self.pending.slice(0, ROW_GROUP);
            self.pending = self.pending.slice(ROW_GROUP as i64, usize::MAX);
            self.write_group(full)?;
        }
        Ok(())
    }

    /// Writes what is left, and the file's end; tells how many rows it has.
    pub fn finish(mut self) -> Result<usize, DatasetError> {
        let rest = std::mem::take(&mut self.pending);
        self.write_group(rest)?;
        self.encode(|encoder| encoder.finish().map(|_| ()))?;
        Ok(self.rows)
    }

    fn write_group(&mut self, mut group: DataFrame) -> Result<(), DatasetError> {
        // The writer makes a row group of every chunk, and chunks tell how a frame was put together.
        group.rechunk_mut();
        self.encode(move |encoder| encoder.write_batch(&group))
    }

    /// Encodes into memory, which may be left alone, and writes what comes of it.
    fn encode(
        &mut self,
        work: impl FnOnce(&mut BatchedWriter<Buffer>) -> Result<(), PolarsError> + Send + 'static,
    ) -> Result<(), DatasetError> {
        let mut encoder = self.encoder.take().ok_or(Interrupted)?;
        let (encoder, done) = self.cancel.or_abandon(move || {
            let done = work(&mut encoder);
            (encoder, done)
        })?;
        self.encoder = Some(encoder);
        done.map_err(|e| unwritable(&self.path, &e))?;
        let io = |error| DatasetError::Io { path: self.path.clone(), error };
        self.file.write_all(&self.encoded.take()).map_err(io)
    }
}

/// Bytes that one side writes and the other takes.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn opened(path: &Path) -> Result<File, DatasetError> {
    files::open(path).map_err(|error| DatasetError::Io { path: path.into(), error })
}

fn open(path: &Path) -> Result<ParquetReader<File>, DatasetError> {
    let mut reader = ParquetReader::new(opened(path)?);
    let schema = reader.schema().map_err(|e| broken(path, &e))?;
    for field in schema.iter_values() {
        if let Some(kind) = unreadable(field.dtype()) {
            return Err(DatasetError::Broken { path: path.into(), reason: no_column(&field.name, kind) });
        }
    }
    Ok(reader)
}

/// What to say of a column of a type that [`unreadable`] found.
pub fn no_column(name: &str, kind: &ArrowDataType) -> String {
    format!(
        "column `{name}` holds {kind:?}, which pipe can't read; write it as text or as a 32- or 64-bit number"
    )
}

/// The type, or the first one within it, that this build of polars has no column for: polars panics at some of
/// these.
pub fn unreadable(kind: &ArrowDataType) -> Option<&ArrowDataType> {
    use ArrowDataType as A;
    match kind {
        A::Null | A::Boolean | A::Int32 | A::Int64 | A::UInt32 | A::UInt64 | A::Float32 | A::Float64 => None,
        A::Utf8 | A::LargeUtf8 | A::Utf8View | A::Binary | A::LargeBinary | A::BinaryView => None,
        A::List(inner) | A::LargeList(inner) | A::Map(inner, _) => unreadable(inner.dtype()),
        A::Struct(fields) => fields.iter().find_map(|field| unreadable(field.dtype())),
        A::Dictionary(_, values, _) => unreadable(values),
        other => Some(other),
    }
}

fn broken(path: &Path, error: &PolarsError) -> DatasetError {
    DatasetError::Broken { path: path.into(), reason: format!("not readable as parquet: {error}") }
}

fn unwritable(path: &Path, error: &PolarsError) -> DatasetError {
    DatasetError::Broken { path: path.into(), reason: format!("can't be written as parquet: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::df;

    fn numbers(from: usize, to: usize) -> DataFrame {
        let (ids, texts): (Vec<i64>, Vec<String>) =
            (from..to).map(|n| (n as i64, format!("row {n}"))).unzip();
        df!("id" => ids, "text" => texts).unwrap()
    }

    #[test]
    fn the_pieces_rows_come_in_leave_no_trace_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, pieces) = (dir.path().join("whole"), dir.path().join("pieces"));
        let rows = 2 * ROW_GROUP + 5;
        write_parquet(&numbers(0, rows), &whole).unwrap();
        let mut file = RowGroupWriter::create(&pieces, numbers(0, 0).schema(), &Cancel::default()).unwrap();
        for from in (0..rows).step_by(999) {
            file.write(&numbers(from, rows.min(from + 999))).unwrap();
        }
        assert_eq!(file.finish().unwrap(), rows);
        assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&pieces).unwrap());
    }

    #[test]
    fn row_groups_follow_each_other_without_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        let rows = 2 * ROW_GROUP + 5;
        write_parquet(&numbers(0, rows), &path).unwrap();
        let groups = RowGroups::open(&path, &Cancel::default()).unwrap();
        assert_eq!((groups.rows(), groups.header().unwrap()), (rows, numbers(0, 0)));
        let read: Vec<DataFrame> = groups.map(Result::unwrap).collect();
        let ends = [0, ROW_GROUP, 2 * ROW_GROUP, rows];
        let want: Vec<DataFrame> = ends.windows(2).map(|ends| numbers(ends[0], ends[1])).collect();
        assert_eq!(read, want);
        write_parquet(&numbers(0, 0), &path).unwrap();
        assert_eq!(RowGroups::open(&path, &Cancel::default()).unwrap().count(), 0);
    }

    #[test]
    fn types_without_a_column_are_found_before_polars_meets_them() {
        use polars::prelude::{ArrowField, ArrowTimeUnit};
        let time = ArrowDataType::Timestamp(ArrowTimeUnit::Microsecond, None);
        let listed = ArrowDataType::LargeList(Box::new(ArrowField::new("item".into(), time.clone(), true)));
        assert_eq!(unreadable(&listed), Some(&time));
        assert_eq!(unreadable(&ArrowDataType::Decimal(3, 2)), Some(&ArrowDataType::Decimal(3, 2)));
        assert_eq!(unreadable(&ArrowDataType::LargeUtf8), None);
    }
}
