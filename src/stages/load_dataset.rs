//! `load_dataset`: rows from files into a dataset.
//!
//! Which files make up which split is `data_files`' matter, how a file is read `formats`'. Text files go through a
//! piece at a time, all others are held in memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use polars::prelude::{DataFrame, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::dataset::{DatasetError, DatasetWriter, Feature, SplitWriter, check_split_name};
use crate::files::shown;
use crate::formats::stack::{below, spelled};
use crate::formats::{self, FormatError, lines};
use crate::hub::dataset::Layout;
use crate::hub::{Reads, Want};
use crate::location::{Location, Locations, Place};
use crate::stage::{ArtifactKind, Context, Fault, Lane, Output, Port, Source, Stage, StageError};
use crate::stages::data_files::{self, Part, Parts};
use crate::stages::place;
use crate::stages::slice::Selection;

/// Reads a dataset: csv, json, jsonl, parquet, Arrow stream or text files, or a folder that Python `datasets` wrote
/// with `save_to_disk`. A line of a .txt file is a row with the column `text`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadDataset {
    /// A file, a folder, a glob, or a dataset's name on the Hub. A lone file becomes the split `train`. Of several,
    /// names tell the splits as they do in Python's `datasets`: those of shards (`data/train-00000-of-00003.parquet`),
    /// else those of folders, else those of files with `train`, `test` or `validation` (or `dev`, `val`, `eval` and
    /// the like) as a word; all of them are `train` where none has. Of files in several formats, a split is those of
    /// the format that most are in; .txt files count only where there are no others. A folder with a dataset's card
    /// (README.md with `configs`), such as a clone, has the splits that the card names. A folder of `save_to_disk`
    /// has its own splits; one without a name is `train`.
    #[serde(default)]
    pub path: Option<Location>,
    /// Instead of `path`: the file, folder or glob of each split, or a list of these.
    #[serde(default)]
    pub files: BTreeMap<String, Locations>,
    /// The configuration of a dataset that has several (`twitter_complaints`), on the Hub or in a folder with a card.
    /// Without it the only one is taken, or the one that the card calls the default.
    #[serde(default)]
    pub name: Option<String>,
    /// The branch, tag or commit of a Hub dataset; its main branch without it.
    #[serde(default)]
    pub revision: Option<String>,
    /// Keeps this split only, or rows of it, as `datasets` writes them: `train`, `train[:5000]`, `train[10%:]`,
    /// `train[-20:]`. Several joined by `+` become one split, which has the name of the first.
    #[serde(default)]
    pub split: Option<String>,
}

impl Stage for LoadDataset {
    const KIND: &'static str = "load_dataset";
    const VERSION: u32 = 3;
    const LANE: Lane = Lane::Cpu;
    const ABOUT: &'static str = "Reads csv, json, parquet, Arrow or text files into a dataset.";
    const EXAMPLE: &'static str = "\
tweets:
  uses: load_dataset
  with:
    files: { train: data/train.jsonl, test: data/test.csv }
";
    const INPUTS: &'static [Port] = &[];

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("dataset", ArtifactKind::Dataset, &["."])]
    }

    fn sources(&self) -> Vec<Source> {
        let path = self.path.iter().map(|p| Source::repository("path", p.clone(), self.reads()));
        let files = self.files.iter().flat_map(|(split, places)| {
            places.0.iter().enumerate().map(move |(at, place)| {
                let role = if places.0.len() == 1 {
                    format!("files.{split}")
                } else {
                    format!("files.{split}[{at}]")
                };
                Source::files(role, place.clone())
            })
        });
        path.chain(files).collect()
    }

    fn check(&self, _inputs: &[&str]) -> Vec<Fault> {
        let mut faults = Vec::new();
        match (&self.path, self.files.is_empty()) {
            (None, true) => faults.push(
                Fault::new("", "nothing says what to load")
                    .help("give `path`, or `files` with a path for each split"),
            ),
            (Some(_), false) => faults.push(
                Fault::new("files", "`path` and `files` are both given")
                    .help("one of them names all the data"),
            ),
            _ => {}
        }
        for (split, places) in &self.files {
            if let Err(error) = check_split_name(split) {
                faults.push(Fault::new("files", error.to_string()));
            }
            if places.0.is_empty() {
                faults.push(Fault::new("files", format!("the list of files for split `{split}` is empty")));
            }
        }
        if let Some(Err(reason)) = self.split.as_deref().map(Selection::parse) {
            faults.push(Fault::new("split", reason).help(
                "write a split's name, or rows of it as `train[:50]`, `train[10%:20%]`, `train[-20:]`",
            ));
        }
        faults
    }

    fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
        let selection =
            self.split.as_deref().map(Selection::parse).transpose().map_err(StageError::failed)?;
        let Parts { parts, features: beside } = self.find_files(context)?;
        let have = || parts.iter().map(|part| part.split.clone()).collect();
        for slice in selection.iter().flat_map(|selection| &selection.slices) {
            if parts.iter().all(|part| part.split != slice.split) {
                return Err(DatasetError::NoSplit { name: slice.split.into(), have: have() }.into());
            }
        }
        let wanted = |part: &&Part| match &selection {
            Some(selection) => selection.slices.iter().any(|slice| slice.split == part.split),
            None => true,
        };
        let mut features = BTreeMap::new();
        let mut read = Vec::new();
        for part in parts.iter().filter(wanted) {
            read.push((part.split.as_str(), Rows::read(part, context, &mut features)?));
        }
        features.extend(beside);

        let mut writer = DatasetWriter::create(context.out, context.cancel);
        match &selection {
            None => {
                for (split, rows) in &read {
                    write(&mut writer, split, &[(split, rows, 0..rows.count())], context)?;
                }
            }
            Some(selection) => {
                let mut taken = Vec::new();
                for slice in &selection.slices {
                    for (split, rows) in read.iter().filter(|(split, _)| *split == slice.split) {
                        let range = slice.of(rows.count()).map_err(StageError::failed)?;
                        taken.push((*split, rows, range));
                    }
                }
                write(&mut writer, selection.name(), &taken, context)?;
            }
        }
        Ok(writer.finish(features)?)
    }
}

impl LoadDataset {
    /// What of a repository on the Hub is read.
    fn reads(&self) -> Reads {
        Reads { want: Want::Dataset { config: self.name.clone() }, revision: self.revision.clone() }
    }

    /// The files of each split, splits in their order.
    fn find_files(&self, context: &Context<'_>) -> Result<Parts, StageError> {
        let Some(path) = &self.path else { return data_files::named(&self.files, context.cancel) };
        if self.revision.is_some() && !matches!(path.resolve(), Place::Hub(_)) {
            context.note(format!("`revision` is for datasets on the Hub; {path} is local"));
        }
        match path.resolve() {
            Place::Hub(name) => {
                let (folder, pin) = place::fetched(context, &name.parse()?, &self.reads())?;
                let layout = if pin.branch.is_some() { Layout::Converted } else { Layout::Repository };
                let paths: Vec<String> = pin.files.into_iter().map(|file| file.path).collect();
                data_files::fetched(&folder, layout, &paths, self.name.as_deref(), context)
            }
            _ => data_files::at(path, self.name.as_deref(), context),
        }
    }
}

/// The rows of one split: read, or, of text files, still to be read.
enum Rows {
    Read(DataFrame),
    Lines { paths: Vec<PathBuf>, rows: usize },
}

impl Rows {
    fn read(
        part: &Part,
        context: &Context<'_>,
        features: &mut BTreeMap<String, Feature>,
    ) -> Result<Self, StageError> {
        if part.paths.iter().all(|path| formats::is_text(path)) {
            let mut rows = 0;
            for path in &part.paths {
                context.go_on()?;
                rows += lines::count(path, context.cancel)?;
            }
            return match (part.paths.as_slice(), rows) {
                ([one], 0) => Err(StageError::failed(format!("{}: the file is empty", shown(one)))),
                (_, 0) => {
                    Err(StageError::failed(format!("every text file of split `{}` is empty", part.split)))
                }
                _ => Ok(Self::Lines { paths: part.paths.clone(), rows }),
            };
        }
        let (frame, in_files) = read_all(&part.paths, context)?;
        features.extend(in_files);
        for folder in &part.folders {
            features.extend(formats::beside(folder, None)?);
        }
        Ok(Self::Read(frame))
    }

    fn count(&self) -> usize {
        match self {
            Self::Read(frame) => frame.height(),
            Self::Lines { rows, .. } => *rows,
        }
    }

    fn schema(&self) -> Schema {
        match self {
            Self::Read(frame) => frame.schema().as_ref().clone(),
            Self::Lines { .. } => lines::schema(),
        }
    }

    /// Writes some of the rows.
    fn write(
        &self,
        range: Range<usize>,
        into: &mut SplitWriter<'_>,
        context: &Context<'_>,
    ) -> Result<(), StageError> {
        let (paths, all) = match self {
            Self::Read(frame) => {
                return Ok(into.write(&frame.slice(range.start as i64, range.len()))?);
            }
            Self::Lines { paths, rows } => (paths, *rows),
        };
        let mut read = 0;
        for path in paths {
            for piece in lines::Lines::open(path, context.cancel)? {
                context.go_on()?;
                let piece = piece?;
                let (from, to) = (range.start.max(read), range.end.min(read + piece.height()));
                if from < to {
                    into.write(&piece.slice((from - read) as i64, to - from))?;
                }
                read += piece.height();
                context.progress(read as u64, all as u64, "rows", "");
                if read >= range.end {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Writes a split that is put together of rows of the splits of these names.
fn write(
    writer: &mut DatasetWriter,
    name: &str,
    taken: &[(&str, &Rows, Range<usize>)],
    context: &Context<'_>,
) -> Result<(), StageError> {
    let Some((first, rows, _)) = taken.first() else {
        return Err(StageError::failed("dataset: there is no file to read"));
    };
    let schema = rows.schema();
    if let Some((other, rows, _)) = taken.iter().find(|(_, rows, _)| rows.schema() != schema) {
        let columns = |schema: &Schema| {
            let fields = schema.iter().map(|(name, kind)| format!("{name} ({})", spelled(kind)));
            fields.collect::<Vec<_>>().join(", ")
        };
        return Err(StageError::failed(format!(
            "splits `{first}` and `{other}` have different columns: {}; and {}",
            columns(&schema),
            columns(&rows.schema())
        )));
    }
    let mut split = writer.split(name, &schema)?;
    for (_, rows, range) in taken {
        rows.write(range.clone(), &mut split, context)?;
    }
    context.metric(format!("rows.{name}"), split.end()? as f64);
    Ok(())
}

impl From<FormatError> for StageError {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::Interrupted(interrupted) => interrupted.into(),
            other => Self::failed(other.to_string()),
        }
    }
}

/// Reads the files of one split, one below the other.
fn read_all(
    paths: &[PathBuf],
    context: &Context<'_>,
) -> Result<(DataFrame, BTreeMap<String, Feature>), StageError> {
    let mut whole: Option<(DataFrame, &PathBuf)> = None;
    let mut features = BTreeMap::new();
    for (done, path) in paths.iter().enumerate() {
        context.go_on()?;
        context.progress(done as u64, paths.len() as u64, "files", "");
        let table = formats::read(path, context.cancel).map_err(|e| with_others(e, path, paths, context))?;
        features.extend(table.features);
        whole = Some(match whole {
            None => (table.frame, path),
            Some((above, first)) => {
                let frame = below(above, table.frame).map_err(|reason| {
                    StageError::failed(format!("{}: {reason} {}", shown(path), shown(first)))
                })?;
                (frame, first)
            }
        });
    }
    match whole {
        Some((frame, _)) => Ok((frame, features)),
        None => Err(StageError::failed("dataset: there is no file to read")),
    }
}

/// The failure to read a shard of several, with what of the others can be read.
fn with_others(error: FormatError, broken: &Path, paths: &[PathBuf], context: &Context<'_>) -> StageError {
    let others: Vec<&PathBuf> = paths.iter().filter(|path| *path != broken).collect();
    let interrupted = matches!(error, FormatError::Interrupted(_));
    if interrupted
        || others.is_empty()
        || paths.iter().any(|path| path.extension().is_none_or(|ending| ending != "arrow"))
    {
        return error.into();
    }
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let also: Vec<String> = others
        .iter()
        .filter(|path| formats::read(path, context.cancel).is_err())
        .map(|path| name(path))
        .collect();
    if context.cancel.is_set() {
        return StageError::Interrupted;
    }
    let others = match (also.is_empty(), others.len()) {
        (true, 1) => "the other shard can be read".to_owned(),
        (true, many) => format!("the other {many} shards can be read"),
        (false, _) => format!("{} can't be read either", also.join(", ")),
    };
    let help = format!("copy it again from where it was saved, or save the dataset again; {others}");
    StageError::with_help(error.to_string(), help)
}

#[cfg(test)]
mod tests;
