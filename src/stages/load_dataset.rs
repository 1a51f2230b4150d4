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

        let mut writer = DatasetWriter::create(context.out);
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
        let Some(path) = &self.path else { return data_files::named(&self.files) };
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
                rows += lines::count(path)?;
            }
            return match (part.paths.as_slice(), rows) {
                ([one], 0) => Err(StageError::failed(format!("{}: the file is empty", one.display()))),
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
            Self::Read(frame) => return Ok(into.write(&frame.slice(range.start as i64, range.len()))?),
            Self::Lines { paths, rows } => (paths, *rows),
        };
        let mut read = 0;
        for path in paths {
            for piece in lines::Lines::open(path)? {
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
        Self::failed(error.to_string())
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
        let table = formats::read(path).map_err(|e| with_others(e, path, paths))?;
        features.extend(table.features);
        whole = Some(match whole {
            None => (table.frame, path),
            Some((above, first)) => {
                let frame = below(above, table.frame).map_err(|reason| {
                    StageError::failed(format!("{}: {reason} {}", path.display(), first.display()))
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
fn with_others(error: FormatError, broken: &Path, paths: &[PathBuf]) -> StageError {
    let others: Vec<&PathBuf> = paths.iter().filter(|path| *path != broken).collect();
    if others.is_empty() || paths.iter().any(|path| path.extension().is_none_or(|ending| ending != "arrow")) {
        return error.into();
    }
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let also: Vec<String> =
        others.iter().filter(|path| formats::read(path).is_err()).map(|path| name(path)).collect();
    let others = match (also.is_empty(), others.len()) {
        (true, 1) => "the other shard can be read".to_owned(),
        (true, many) => format!("the other {many} shards can be read"),
        (false, _) => format!("{} can't be read either", also.join(", ")),
    };
    let help = format!("copy it again from where it was saved, or save the dataset again; {others}");
    StageError::with_help(error.to_string(), help)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::artifact::dataset::{Dataset, Split};
    use crate::stage::{Cancel, Saying};
    use crate::stages::testing::{Refusal, fault, run};

    /// A folder with these files.
    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    fn path(at: &Path, text: &str) -> LoadDataset {
        let path = Some(Location::new(text, at));
        LoadDataset { path, files: BTreeMap::new(), name: None, revision: None, split: None }
    }

    fn load(stage: &LoadDataset) -> (Result<Dataset, Refusal>, Vec<Saying>) {
        let out = tempfile::tempdir().unwrap();
        let (result, said) = run(stage, out.path(), &Cancel::default());
        (result.map_err(fault).map(|()| Dataset::load(out.path()).unwrap()), said)
    }

    fn warnings(said: &[Saying]) -> Vec<&str> {
        said.iter()
            .filter_map(|s| if let Saying::Warning(text) = s { Some(text.as_str()) } else { None })
            .collect()
    }

    fn shape(dataset: &Dataset) -> Vec<(&str, Vec<String>)> {
        let cells = |s: &Split| {
            (0..s.rows()).map(|row| s.text_at(&s.column_names()[0], row).unwrap().unwrap()).collect()
        };
        dataset.splits.iter().map(|s| (s.name.as_str(), cells(s))).collect()
    }

    fn loaded(stage: &LoadDataset) -> Dataset {
        load(stage).0.unwrap()
    }

    fn refusal(stage: &LoadDataset) -> String {
        load(stage).0.unwrap_err().0
    }

    #[test]
    fn a_lone_file_is_the_split_train() {
        let dir = folder(&[("test.csv", "a\nx\ny\n")]);
        let strings = |cells: &[&str]| cells.iter().map(|c| c.to_string()).collect::<Vec<_>>();
        assert_eq!(shape(&loaded(&path(dir.path(), "test.csv"))), [("train", strings(&["x", "y"]))]);
    }

    #[test]
    fn names_of_files_and_folders_tell_the_splits() {
        let dir = folder(&[
            ("README.md", "no data"),
            ("dataset_info.json", r#"{"features": {"a": {"_type": "ClassLabel", "names": ["no", "yes"]}}}"#),
            ("data/train-1.csv", "a\n2\n"),
            ("data/train-0.csv", "a\n1\n"),
            ("rows.dev.json", "[{\"a\": 3}]"),
            ("my_test.csv", "a\n4\n"),
            ("notes.csv", "a\n5\n"),
            ("train.json", "[{\"a\": 6}]"),
            (".hidden/train.csv", "a\n7\n"),
        ]);
        let (result, said) = load(&path(dir.path(), "."));
        let dataset = result.unwrap();
        let ids = |cells: &[i64]| cells.iter().map(|c| c.to_string()).collect::<Vec<_>>();
        assert_eq!(
            shape(&dataset),
            [("train", ids(&[1, 2])), ("validation", ids(&[3])), ("test", ids(&[4]))]
        );
        assert_eq!(dataset.class_names("a").unwrap(), ["no", "yes"]);
        assert_eq!(
            warnings(&said),
            [
                "left out: notes.csv; no name of theirs tells a split, as others' do",
                "left out: train.json; most files of their split are in another format",
            ]
        );
        let matched = loaded(&path(dir.path(), "data/*.csv"));
        assert_eq!(shape(&matched), [("train", ids(&[1, 2]))]);
        // What names of folders or shards tell comes before what names of files do.
        let in_folder = |name: &str| {
            fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
            fs::write(dir.path().join(name), "a\n8\n").unwrap();
            loaded(&path(dir.path(), "."))
        };
        assert_eq!(shape(&in_folder("dev/rows.csv")), [("validation", ids(&[8]))]);
        assert_eq!(shape(&in_folder("data/test-00000-of-00001.csv")), [("test", ids(&[8]))]);
    }

    #[test]
    fn files_without_a_split_in_their_names_are_all_train() {
        let dir = folder(&[("b.csv", "a\n2\n"), ("a.csv", "a\n1\n"), ("contest.csv", "a\n3\n")]);
        let dataset = loaded(&path(dir.path(), "*.csv"));
        assert_eq!(shape(&dataset), [("train", ["1", "2", "3"].map(String::from).to_vec())]);
    }

    #[test]
    fn named_splits_take_a_path_or_a_list() {
        let dir =
            folder(&[("x.csv", "a\n1\n"), ("y.csv", "a\n2\n"), ("z.csv", "a\n3\n"), ("w.csv", "a\n4\n")]);
        let place = |text: &str| Location::new(text, dir.path());
        let files = BTreeMap::from([
            ("held_out".into(), Locations(vec![place("w.csv")])),
            ("test".into(), Locations(vec![place("[z].csv")])),
            ("train".into(), Locations(vec![place("y.csv"), place("x.csv")])),
        ]);
        let stage = LoadDataset { path: None, files, ..path(dir.path(), "") };
        let ids = |cells: &[i64]| cells.iter().map(|c| c.to_string()).collect::<Vec<_>>();
        assert_eq!(
            shape(&loaded(&stage)),
            [("train", ids(&[2, 1])), ("test", ids(&[3])), ("held_out", ids(&[4]))]
        );
        let roles: Vec<String> = stage.sources().into_iter().map(|s| s.role).collect();
        assert_eq!(roles, ["files.held_out", "files.test", "files.train[0]", "files.train[1]"]);
    }

    #[test]
    fn slices_are_kept_in_their_order() {
        let rows = |from: usize, to: usize| {
            let rows: String = (from..to).map(|row| format!("{row}\n")).collect();
            format!("a\n{rows}")
        };
        let dir = folder(&[("train.csv", &rows(0, 25)), ("test.csv", &rows(50, 55))]);
        let kept = |split: &str| {
            let stage = LoadDataset { split: Some(split.into()), ..path(dir.path(), ".") };
            let dataset = loaded(&stage);
            let (name, rows) = shape(&dataset).remove(0);
            assert_eq!(dataset.splits.len(), 1);
            (name.to_owned(), rows.join(" "))
        };
        let want = |name: &str, rows: &str| (name.to_owned(), rows.to_owned());
        assert_eq!(kept("train[20:]"), want("train", "20 21 22 23 24"));
        assert_eq!(kept("train[:10%]+train[-80%:-70%]"), want("train", "0 1 5 6"));
        assert_eq!(kept("test+train[:1]"), want("test", "50 51 52 53 54 0"));
        let refused =
            |split: &str| refusal(&LoadDataset { split: Some(split.into()), ..path(dir.path(), ".") });
        assert_eq!(refused("train[7:7]"), "`train[7:7]` holds no row: split `train` has 25");
        assert_eq!(
            refused("trian[:5]"),
            "no split `trian` (did you mean `train`?); there are `train`, `test`"
        );
        let dir = folder(&[("train.csv", "a\n1\n"), ("test.csv", "a\nx\n")]);
        let both = LoadDataset { split: Some("train+test".into()), ..path(dir.path(), ".") };
        assert_eq!(refusal(&both), "splits `train` and `test` have different columns: a (i64); and a (str)");
    }

    #[test]
    fn a_line_of_text_is_a_row() {
        let dir = folder(&[("b.txt", "one\n\ntwo"), ("c.txt", "three\r\n"), ("empty.txt", "")]);
        let texts = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect::<Vec<_>>();
        assert_eq!(
            shape(&loaded(&path(dir.path(), "*.txt"))),
            [("train", texts(&["one", "", "two", "three"]))]
        );
        let last = LoadDataset { split: Some("train[-2:]".into()), ..path(dir.path(), ".") };
        assert_eq!(shape(&loaded(&last)), [("train", texts(&["two", "three"]))]);
        assert_eq!(loaded(&last).splits[0].column_names(), ["text"]);
        let at = dir.path().display();
        assert_eq!(refusal(&path(dir.path(), "empty.txt")), format!("{at}/empty.txt: the file is empty"));
        fs::write(dir.path().join("rows.csv"), "a\n1\n").unwrap();
        assert_eq!(shape(&loaded(&path(dir.path(), "."))), [("train", texts(&["1"]))]);
    }

    #[test]
    fn files_of_one_split_have_to_agree() {
        let at = |dir: &tempfile::TempDir| format!("{}/./", dir.path().display());
        let message = |files: &[(&str, &str)]| {
            let dir = folder(files);
            refusal(&path(dir.path(), "./")).replace(&at(&dir), "")
        };
        assert_eq!(
            message(&[("1.csv", "a,b\n1,2\n"), ("2.csv", "a\n1\n")]),
            "2.csv: has no column `b`, as has 1.csv"
        );
        assert_eq!(
            message(&[("1.csv", "a\n1\n"), ("2.csv", "a,b\n1,2\n")]),
            "2.csv: column `b` is not in 1.csv"
        );
        assert_eq!(
            message(&[("1.csv", "a\n1\n"), ("2.csv", "a\nx\n")]),
            "2.csv: column `a` is str here and i64 in 1.csv"
        );
        assert_eq!(
            message(&[("1.json", "[{\"a\": {\"b\": [1]}}]"), ("2.json", "[{\"a\": {\"b\": [\"x\"]}}]")]),
            "2.json: column `a` is struct[b: list[str]] here and struct[b: list[i64]] in 1.json"
        );
        let dir = folder(&[("1.csv", "a,b\n1,\n"), ("2.csv", "b,a\n7,1.5\n"), ("3.csv", "a,b\n,\n")]);
        let dataset = loaded(&path(dir.path(), "."));
        let types: Vec<String> = dataset.splits[0].frame.dtypes().iter().map(|t| t.to_string()).collect();
        assert_eq!((types, dataset.splits[0].rows()), (vec!["f64".to_owned(), "i64".to_owned()], 3));
    }

    #[test]
    fn what_can_not_be_read_is_named() {
        let dir = folder(&[
            ("bad.csv", "a,b\n1,2\n1,2,3\n"),
            ("bad.jsonl", "{\"a\": 1}\n{\"a\": 1\n"),
            ("d/x.md", ""),
        ]);
        let at = dir.path().display();
        assert_eq!(
            refusal(&path(dir.path(), "bad.csv")),
            format!(
                "{at}/bad.csv:3: this row has 3 fields, the header has 2; \
                 a field with commas needs quotes around it"
            )
        );
        assert_eq!(
            refusal(&path(dir.path(), "bad.jsonl")),
            format!("{at}/bad.jsonl:2: not readable as JSON: EOF while parsing an object (column 7)")
        );
        assert_eq!(refusal(&path(dir.path(), "gone.csv")), format!("dataset: nothing is at {at}/gone.csv"));
        assert_eq!(refusal(&path(dir.path(), "*.tsv")), format!("dataset: no file matches {at}/*.tsv"));
        assert_eq!(refusal(&path(dir.path(), "d")), format!("dataset: no file in {at}/d can be read"));
        assert_eq!(
            refusal(&path(dir.path(), "ought/raft")),
            "dataset ought/raft at revision `main` is not on this machine, and pipe is offline"
        );
    }

    #[test]
    fn faults_are_found_without_running() {
        let faults = |stage: &LoadDataset| -> Vec<String> {
            stage.check(&[]).into_iter().map(|f| f.message).collect()
        };
        let none = LoadDataset { path: None, ..path(Path::new("."), "") };
        assert_eq!(faults(&none), ["nothing says what to load"]);
        let files = BTreeMap::from([("a b".to_owned(), Locations(vec![]))]);
        let both = LoadDataset { files, split: Some("train[1]".into()), ..path(Path::new("."), "x") };
        assert_eq!(
            faults(&both),
            [
                "`path` and `files` are both given",
                "`a b` can't be the name of a split: letters, digits, `_`, `-` and `.` are allowed",
                "the list of files for split `a b` is empty",
                "`train[1]` is neither a split nor a slice of one",
            ]
        );
    }

    #[test]
    fn keys_that_choose_nothing_are_noted() {
        let dir = folder(&[("a.csv", "a\n1\n")]);
        let stage = LoadDataset {
            name: Some("tweets".into()),
            revision: Some("main".into()),
            ..path(dir.path(), "a.csv")
        };
        let (_, said) = load(&stage);
        let notes: Vec<&str> = said
            .iter()
            .filter_map(|s| if let Saying::Note(n) = s { Some(n.as_str()) } else { None })
            .collect();
        assert_eq!(
            notes,
            [
                "`revision` is for datasets on the Hub; a.csv is local",
                "`name` chooses between configurations, and a.csv has none"
            ]
        );
    }

    const CARD: &str = "\
---
configs:
- config_name: tweets
  data_files:
  - { split: train, path: tweets/part-*.csv }
  - { split: held_out, path: tweets/rest.csv }
- config_name: other
  data_files: other.csv
dataset_info:
- config_name: tweets
  features:
  - { name: a, dtype: { class_label: { names: { '0': 'no', '1': 'yes' } } } }
---
";

    #[test]
    fn a_clone_has_the_configurations_of_its_card() {
        let dir = folder(&[
            ("README.md", CARD),
            ("tweets/part-0.csv", "a\n1\n"),
            ("tweets/part-1.csv", "a\n0\n"),
            ("tweets/rest.csv", "a\n1\n"),
            ("other.csv", "b\nx\n"),
        ]);
        let cells = |cells: &[&str]| cells.iter().map(|c| c.to_string()).collect::<Vec<_>>();
        let named = |name: &str| LoadDataset { name: Some(name.into()), ..path(dir.path(), ".") };
        let tweets = loaded(&named("tweets"));
        assert_eq!(shape(&tweets), [("train", cells(&["1", "0"])), ("held_out", cells(&["1"]))]);
        assert_eq!(tweets.class_names("a").unwrap(), ["no", "yes"]);
        assert_eq!(shape(&loaded(&named("other"))), [("train", cells(&["x"]))]);
        assert_eq!(
            load(&path(dir.path(), ".")).0.unwrap_err(),
            (
                "dataset: the dataset has 2 configurations: `tweets`, `other`".into(),
                Some("say which, such as `name: tweets`".into())
            )
        );
        assert_eq!(
            load(&named("tweet")).0.unwrap_err(),
            (
                "dataset: no configuration `tweet` (did you mean `tweets`?); there are `tweets`, `other`"
                    .into(),
                Some("`name` takes one of these".into())
            )
        );
    }

    #[test]
    fn a_parquet_file_of_datasets_knows_its_class_names() {
        let dataset = loaded(&path(Path::new("."), &saved("labelled.parquet")));
        assert_eq!(dataset.class_names("label").unwrap(), ["Unlabeled", "complaint", "no complaint"]);
        let column = dataset.splits[0].column("label").unwrap();
        assert_eq!((column.len(), spelled(column.dtype())), (3, "i64".into()));
    }

    /// What `tests/make_saved.py` wrote.
    fn saved(name: &str) -> String {
        format!("{}/tests/saved/{name}", env!("CARGO_MANIFEST_DIR"))
    }

    /// A split of a saved folder holds the rows of a jsonl file, however their types were written.
    fn holds(split: &Split, name: &str) {
        let want = formats::read(Path::new(&saved(name))).unwrap().frame;
        let columns = want.columns().iter().map(|want| {
            let column = split.column(want.name()).unwrap();
            column.cast(want.dtype()).unwrap()
        });
        let frame = DataFrame::new(split.rows(), columns.collect()).unwrap();
        assert!(frame.equals_missing(&want), "{name}: {frame} {want}");
    }

    #[test]
    fn what_datasets_saved_comes_back() {
        let one = loaded(&path(Path::new("."), &saved("one")));
        assert_eq!(one.split_names(), ["train"]);
        holds(&one.splits[0], "one.jsonl");
        let names = ["Unlabeled", "complaint", "no complaint"];
        assert_eq!(one.class_names("label").unwrap(), names);
        let kinds: Vec<String> = one.splits[0].frame.dtypes().iter().map(spelled).collect();
        assert_eq!(
            kinds,
            [
                "i32",
                "str",
                "str",
                "f64",
                "f32",
                "bool",
                "null",
                "i64",
                "struct[text: list[str], score: list[i64]]",
                "list[struct[url: str, at: i64]]"
            ]
        );
        let splits = loaded(&path(Path::new("."), &saved("splits")));
        assert_eq!(
            (splits.split_names(), splits.class_names("label").unwrap()),
            (vec!["train".into(), "test".into()], &names.map(String::from)[..])
        );
        holds(&splits.splits[0], "splits.train.jsonl");
        holds(&splits.splits[1], "splits.test.jsonl");
        let last = LoadDataset {
            split: Some("test[-1:]+train[:1]".into()),
            ..path(Path::new("."), &saved("splits"))
        };
        let ids: Vec<_> =
            (0..2).map(|row| loaded(&last).splits[0].text_at("id", row).unwrap().unwrap()).collect();
        assert_eq!(ids, ["6", "0"]);
    }

    #[test]
    fn a_saved_folder_can_be_one_of_the_files() {
        let place = |text: &str| Locations(vec![Location::new(saved(text), ".")]);
        let files = BTreeMap::from([("test".into(), place("splits/test")), ("train".into(), place("one"))]);
        let dataset = loaded(&LoadDataset { path: None, files, ..path(Path::new("."), "") });
        holds(dataset.split("train").unwrap(), "one.jsonl");
        holds(dataset.split("test").unwrap(), "splits.test.jsonl");
        assert_eq!(dataset.class_names("label").unwrap().len(), 3);
        let files = BTreeMap::from([("train".into(), place("splits"))]);
        assert_eq!(
            load(&LoadDataset { path: None, files, ..path(Path::new("."), "") }).0.unwrap_err(),
            (
                format!("dataset: {} has several splits: train, test", saved("splits")),
                Some(format!("name the folder of one, such as {}/train", saved("splits")))
            )
        );
    }

    /// A copy of the saved folder `one`, changed; what is said of it.
    fn refused_copy(change: impl Fn(&Path)) -> Refusal {
        let dir = tempfile::tempdir().unwrap();
        for file in fs::read_dir(saved("one")).unwrap().flatten() {
            fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
        }
        change(dir.path());
        let (message, help) = load(&path(dir.path(), ".")).0.unwrap_err();
        (message.replace(&format!("{}/./", dir.path().display()), ""), help)
    }

    #[test]
    fn a_shard_that_is_broken_is_named() {
        let cut = |name: &'static str, length: usize| {
            move |dir: &Path| {
                let bytes = fs::read(dir.join(name)).unwrap();
                fs::write(dir.join(name), &bytes[..length.min(bytes.len())]).unwrap();
            }
        };
        const SECOND: &str = "data-00001-of-00003.arrow";
        let again = "copy it again from where it was saved, or save the dataset again";
        assert_eq!(
            refused_copy(cut(SECOND, 2000)),
            (
                format!("{SECOND}: cut off: the Arrow stream has no end marker, so rows may be missing"),
                Some(format!("{again}; the other 2 shards can be read"))
            )
        );
        assert_eq!(
            refused_copy(|dir| {
                cut(SECOND, 0)(dir);
                cut("data-00002-of-00003.arrow", 9)(dir);
            }),
            (
                format!("{SECOND}: the file is empty"),
                Some(format!("{again}; data-00002-of-00003.arrow can't be read either"))
            )
        );
        let overwritten = refused_copy(|dir| {
            let mut bytes = fs::read(dir.join(SECOND)).unwrap();
            // Within the message that describes the rows.
            bytes[1700..1900].fill(0x5a);
            fs::write(dir.join(SECOND), bytes).unwrap();
        });
        assert!(
            overwritten.0.starts_with(&format!("{SECOND}: not readable as an Arrow stream: ")),
            "{overwritten:?}"
        );
        assert_eq!(
            refused_copy(|dir| fs::write(dir.join(SECOND), "ARROW1\0\0").unwrap()).0,
            format!("{SECOND}: an Arrow (Feather) file, not an Arrow stream, which `datasets` writes")
        );
        assert_eq!(
            refused_copy(|dir| fs::write(dir.join(SECOND), "PAR1").unwrap()).0,
            format!("{SECOND}: not an Arrow stream")
        );
    }

    /// Broken bytes are an error or other values, and never end the program.
    #[test]
    fn no_broken_byte_of_a_shard_is_fatal() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, broken) =
            (fs::read(saved("one/data-00000-of-00003.arrow")).unwrap(), dir.path().join("a.arrow"));
        for at in (0..whole.len()).step_by(7) {
            for value in [0xff, 0x00, 0x7f] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                fs::write(&broken, bytes).unwrap();
                let _ = formats::read(&broken);
            }
        }
    }

    #[test]
    fn a_state_that_lists_no_rows_is_refused() {
        let state =
            |text: &'static str| refused_copy(move |dir| fs::write(dir.join("state.json"), text).unwrap()).0;
        assert_eq!(
            state(r#"{"_data_files": []}"#),
            "state.json: lists no data files: the dataset was saved without a row"
        );
        assert_eq!(
            state(r#"{"_fingerprint": "x"}"#),
            "state.json: not what `save_to_disk` writes: missing field `_data_files` at line 1 column 21"
        );
        assert_eq!(
            state(r#"{"_data_files": [{"filename": "data-00009.arrow"}]}"#),
            "state.json: lists the shard data-00009.arrow, which is missing"
        );
        assert_eq!(
            state(r#"{"_data_files": [{"filename": "../rows.arrow"}]}"#),
            "state.json: `../rows.arrow` is no file of this folder"
        );
        assert_eq!(
            state(
                r#"{"_data_files": [{"filename": "data-00000-of-00003.arrow"}], "_indices_data_files": [{"filename": "indices.arrow"}]}"#
            ),
            "state.json: the rows are a selection of the shards' by an indices table, which pipe can't follow: load the \
             folder in Python and save it with `flatten_indices().save_to_disk(…)`"
        );
        let dir = folder(&[("dataset_dict.json", r#"{"splits": ["train"]}"#)]);
        assert_eq!(
            refusal(&path(dir.path(), ".")).replace(&format!("{}/./", dir.path().display()), ""),
            "dataset_dict.json: names the split `train`, and train/state.json is missing"
        );
    }

    #[test]
    fn the_fifty_tweets_come_in_order() {
        let file =
            Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/raft_twitter_complaints.jsonl"));
        if !file.exists() {
            println!("skipped: {} is not there", file.display());
            return;
        }
        let dataset = loaded(&path(Path::new("."), &file.to_string_lossy()));
        let train = dataset.split("train").unwrap();
        assert_eq!(
            (train.rows(), train.column_names()),
            (50, vec!["Tweet text".into(), "ID".into(), "Label".into()])
        );
        assert_eq!(
            train.text_at("Tweet text", 0).unwrap().unwrap(),
            "@HMRCcustomers No this is my first job"
        );
        assert_eq!(train.text_at("ID", 49).unwrap().unwrap(), "49");
    }

    #[test]
    fn the_nested_questions_keep_their_shape() {
        let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/eli5_shaped.jsonl"));
        if !file.exists() {
            println!("skipped: {} is not there", file.display());
            return;
        }
        let dataset = loaded(&path(Path::new("."), &file.to_string_lossy()));
        let train = dataset.split("train").unwrap();
        assert_eq!(train.rows(), 300);
        let answers = spelled(train.column("answers").unwrap().dtype());
        assert!(
            answers.starts_with("struct[a_id: list[str], text: list[str], score: list[i64]"),
            "{answers}"
        );
    }

    #[test]
    fn nested_columns_are_kept() {
        let line =
            |id: &str, texts: &str| format!("{{\"id\": \"{id}\", \"answers\": {{\"text\": {texts}}}}}\n");
        let rows = line("q0", "[\"x\", \"y\"]") + &line("q1", "[]");
        let dir = folder(&[("1.jsonl", &rows), ("2.jsonl", &line("q2", "[\"z\"]"))]);
        let dataset = loaded(&path(dir.path(), "*.jsonl"));
        let answers = dataset.splits[0].column("answers").unwrap();
        assert_eq!(spelled(answers.dtype()), "struct[text: list[str]]");
        assert_eq!(dataset.splits[0].rows(), 3);
        assert_eq!(
            dataset.splits[0].text_at("answers", 0).unwrap_err().to_string(),
            "column `answers` holds struct[1], which is not text, a number or true/false"
        );
    }
}
