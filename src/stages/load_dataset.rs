//! `load_dataset`: rows from files into a dataset.
//!
//! Knows which files make up which split; how a file is read is `formats`' matter.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use polars::prelude::{DataFrame, DataType, Series};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::dataset::{Dataset, Feature, Split, check_split_name};
use crate::formats::{self, FormatError};
use crate::location::{Location, Locations, Place};
use crate::stage::{ArtifactKind, Context, Fault, Lane, Output, Port, Source, Stage, StageError};
use crate::stages::place;

/// Reads a dataset: csv, json, jsonl or parquet files.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadDataset {
    /// A file, a folder, a glob, or a dataset's name on the Hub. A lone file becomes the split `train`; of
    /// several, those with `train`, `test` or `validation` (or `dev`, `valid`, `val`, `eval`) as a word of
    /// their name or folder make up that split, or all of them `train` where none has.
    #[serde(default)]
    pub path: Option<Location>,
    /// Instead of `path`: the file, folder or glob of each split, or a list of these.
    #[serde(default)]
    pub files: BTreeMap<String, Locations>,
    /// The configuration of a Hub dataset that has several (`twitter_complaints`).
    #[serde(default)]
    pub name: Option<String>,
    /// The branch, tag or commit of a Hub dataset.
    #[serde(default)]
    pub revision: Option<String>,
    /// Keeps this split only, or rows of it: `train`, `train[:5000]`, `train[10%:]`, `train[-20:]`.
    #[serde(default)]
    pub split: Option<String>,
}

impl Stage for LoadDataset {
    const KIND: &'static str = "load_dataset";
    const VERSION: u32 = 1;
    const LANE: Lane = Lane::Cpu;
    const ABOUT: &'static str = "Reads csv, json, jsonl or parquet files into a dataset.";
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
        let path = self.path.iter().map(|p| Source { role: "path".into(), location: p.clone() });
        let files = self.files.iter().flat_map(|(split, places)| {
            places.0.iter().enumerate().map(move |(at, place)| Source {
                role: if places.0.len() == 1 {
                    format!("files.{split}")
                } else {
                    format!("files.{split}[{at}]")
                },
                location: place.clone(),
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
        if let Some(Err(reason)) = self.split.as_deref().map(Slice::parse) {
            faults.push(
                Fault::new("split", reason).help(
                    "write a split's name, or rows of it as `train[:50]`, `train[10%:]`, `train[-20:]`",
                ),
            );
        }
        faults
    }

    fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
        let mut dataset = Dataset::default();
        for (split, paths) in self.find_files(context)? {
            let (frame, features) = read_all(&paths, context)?;
            dataset.features.extend(features);
            dataset.splits.push(Split { name: split, frame });
        }
        dataset.features.extend(self.features_beside()?);
        if let Some(text) = &self.split {
            dataset = Slice::parse(text).map_err(StageError::failed)?.of(&dataset)?;
        }
        for split in &dataset.splits {
            context.metric(format!("rows.{}", split.name), split.rows() as f64);
        }
        Ok(dataset.save(context.out)?)
    }
}

impl LoadDataset {
    /// The files of each split, both in their order.
    fn find_files(&self, context: &Context<'_>) -> Result<Vec<(String, Vec<PathBuf>)>, StageError> {
        let Some(path) = &self.path else {
            let mut splits = Vec::new();
            for (split, places) in &self.files {
                let mut paths = Vec::new();
                for place in &places.0 {
                    paths.extend(files_at(place)?.paths);
                }
                splits.push((split.clone(), paths));
            }
            splits.sort_by_key(|(split, _)| rank(split));
            return Ok(splits);
        };
        if !matches!(path.resolve(), Place::Hub(_)) {
            for (key, value) in [("name", &self.name), ("revision", &self.revision)] {
                if value.is_some() {
                    context.note(format!("`{key}` is for datasets on the Hub; {path} is local"));
                }
            }
        }
        let found = files_at(path)?;
        if found.lone {
            return Ok(vec![("train".into(), found.paths)]);
        }
        Ok(by_split(found, context))
    }

    /// What an info file in the folder says of the columns.
    fn features_beside(&self) -> Result<BTreeMap<String, Feature>, StageError> {
        match self.path.as_ref().map(Location::resolve) {
            Some(Place::Local(folder)) if folder.is_dir() => {
                Ok(formats::beside(&folder, self.name.as_deref())?)
            }
            _ => Ok(BTreeMap::new()),
        }
    }
}

impl From<FormatError> for StageError {
    fn from(error: FormatError) -> Self {
        Self::failed(error.to_string())
    }
}

/// The files that a place stands for.
struct Found {
    /// The folder that all of them are in.
    root: PathBuf,
    /// Sorted.
    paths: Vec<PathBuf>,
    /// Whether the place names one file.
    lone: bool,
}

fn files_at(location: &Location) -> Result<Found, StageError> {
    if let Place::Glob(pattern) = location.resolve() {
        return matching(&pattern);
    }
    let path = place::local(location, "dataset")?;
    if !path.is_dir() {
        return Ok(Found { root: PathBuf::new(), paths: vec![path], lone: true });
    }
    let mut paths = Vec::new();
    walk(&path, &mut paths)?;
    if paths.is_empty() {
        return Err(StageError::with_help(
            format!("dataset: no file in {} can be read", path.display()),
            format!("files are taken by their ending: {}", formats::ENDINGS.join(", ")),
        ));
    }
    paths.sort();
    Ok(Found { root: path, paths, lone: false })
}

fn matching(pattern: &str) -> Result<Found, StageError> {
    let wrong = |e: &dyn std::fmt::Display| StageError::failed(format!("dataset: {pattern}: {e}"));
    let mut paths = Vec::new();
    for path in glob::glob(pattern).map_err(|e| wrong(&e))? {
        let path = path.map_err(|e| wrong(&e))?;
        if path.is_file() {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(StageError::failed(format!("dataset: no file matches {pattern}")));
    }
    paths.sort();
    // Only the part with `*`, `?` or `[` and what follows tells files apart.
    let fixed = pattern.split(['*', '?', '[']).next().unwrap_or_default();
    let root = fixed.rfind('/').map_or(PathBuf::new(), |end| PathBuf::from(&fixed[..end]));
    Ok(Found { root, paths, lone: false })
}

/// Every readable data file below a folder; hidden ones and those that describe the dataset are none.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), StageError> {
    let io = |e: &std::io::Error| StageError::io(folder, e);
    for entry in fs::read_dir(folder).map_err(|e| io(&e))? {
        let path = entry.map_err(|e| io(&e))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with('.') || formats::INFO_FILES.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            walk(&path, found)?;
        } else if formats::is_known(&path) {
            found.push(path);
        }
    }
    Ok(())
}

/// The words that name a split in a file's or folder's name, as Hugging Face `datasets` reads them.
const SPLIT_WORDS: &[(&str, &[&str])] = &[
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// `train`, `validation`, `test`, then any other.
fn rank(split: &str) -> usize {
    SPLIT_WORDS.iter().position(|(name, _)| *name == split).unwrap_or(SPLIT_WORDS.len())
}

/// The split that a path's words name; a file's own name counts before its folders'.
fn split_word(path: &Path) -> Option<&'static str> {
    path.iter().rev().find_map(|part| {
        let part = part.to_string_lossy().to_lowercase();
        part.split(|c: char| !c.is_alphanumeric()).find_map(|word| {
            SPLIT_WORDS.iter().find(|(_, words)| words.contains(&word)).map(|(name, _)| *name)
        })
    })
}

fn by_split(found: Found, context: &Context<'_>) -> Vec<(String, Vec<PathBuf>)> {
    let mut splits: BTreeMap<usize, (String, Vec<PathBuf>)> = BTreeMap::new();
    let mut others = Vec::new();
    for path in found.paths {
        match split_word(path.strip_prefix(&found.root).unwrap_or(&path)) {
            Some(split) => splits.entry(rank(split)).or_insert((split.into(), Vec::new())).1.push(path),
            None => others.push(path),
        }
    }
    if splits.is_empty() {
        return vec![("train".into(), others)];
    }
    for path in others {
        context.warn(format!("{} is left out: its name tells no split, others' do", path.display()));
    }
    splits.into_values().collect()
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
        let table = formats::read(path)?;
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

/// Puts one file's rows below another's. The reason why not is to be followed by the other file's name.
fn below(mut above: DataFrame, mut rows: DataFrame) -> Result<DataFrame, String> {
    let names = above.get_column_names_owned();
    if let Some(extra) = rows.get_column_names().into_iter().find(|n| !names.contains(n)) {
        return Err(format!("column `{extra}` is not in"));
    }
    let mut columns = Vec::with_capacity(names.len());
    for name in &names {
        let Ok(lower) = rows.column(name) else { return Err(format!("has no column `{name}`, as has")) };
        let upper = above.column(name).map_err(|e| e.to_string())?;
        let (upper_type, lower_type) = (upper.dtype().clone(), lower.dtype().clone());
        let common = match (&upper_type, &lower_type) {
            (a, b) if a == b => a.clone(),
            (DataType::Int64, DataType::Float64) | (DataType::Float64, DataType::Int64) => DataType::Float64,
            (a, _) if lower.null_count() == lower.len() => a.clone(),
            (_, b) if upper.null_count() == upper.len() => b.clone(),
            (a, b) => return Err(format!("column `{name}` is {} here and {} in", spelled(b), spelled(a))),
        };
        columns.push((name.clone(), common));
    }
    for frame in [&mut above, &mut rows] {
        let (height, mut fitted) = (frame.height(), Vec::with_capacity(columns.len()));
        for (name, kind) in &columns {
            let column = frame.column(name).map_err(|e| e.to_string())?;
            fitted.push(match column.null_count() == height && column.dtype() != kind {
                true => Series::full_null(name.clone(), height, kind).into(),
                false => column.cast(kind).map_err(|e| e.to_string())?,
            });
        }
        *frame = DataFrame::new(height, fitted).map_err(|e| e.to_string())?;
    }
    above.vstack_mut(&rows).map_err(|e| e.to_string())?;
    Ok(above)
}

/// A type in full, nested ones with what they hold.
fn spelled(kind: &DataType) -> String {
    match kind {
        DataType::List(inner) => format!("list[{}]", spelled(inner)),
        DataType::Struct(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|f| format!("{}: {}", f.name(), spelled(f.dtype()))).collect();
            format!("struct[{}]", fields.join(", "))
        }
        plain => plain.to_string(),
    }
}

/// A split, or rows of one: `train`, `train[10%:50]`.
#[derive(Debug, PartialEq)]
struct Slice<'a> {
    split: &'a str,
    from: Option<Bound>,
    to: Option<Bound>,
}

/// An end of a slice; negative ones count from the end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    Row(i64),
    Percent(i64),
}

impl<'a> Slice<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither a split nor a slice of one");
        let Some((split, slice)) = text.split_once('[') else {
            check_split_name(text).map_err(|_| wrong())?;
            return Ok(Self { split: text, from: None, to: None });
        };
        check_split_name(split).map_err(|_| wrong())?;
        let (from, to) = slice.strip_suffix(']').and_then(|s| s.split_once(':')).ok_or_else(wrong)?;
        let bound = |text: &str| match text.trim() {
            "" => Ok(None),
            text => match text.strip_suffix('%') {
                Some(percent) => match percent.parse() {
                    Ok(percent @ -100..=100) => Ok(Some(Bound::Percent(percent))),
                    _ => Err(wrong()),
                },
                None => text.parse().map(|row| Some(Bound::Row(row))).map_err(|_| wrong()),
            },
        };
        Ok(Self { split, from: bound(from)?, to: bound(to)? })
    }

    /// A dataset of these rows alone.
    fn of(&self, dataset: &Dataset) -> Result<Dataset, StageError> {
        let split = dataset.split(self.split)?;
        let rows = split.rows() as i64;
        let row = |bound| {
            let row = match bound {
                Bound::Row(row) => row,
                Bound::Percent(percent) => (rows as f64 * percent as f64 / 100.0).round_ties_even() as i64,
            };
            (if row < 0 { rows + row } else { row }).clamp(0, rows)
        };
        let from = self.from.map_or(0, row);
        let to = self.to.map_or(rows, row).max(from);
        let frame = split.frame.slice(from, (to - from) as usize);
        Ok(Dataset {
            splits: vec![Split { name: split.name.clone(), frame }],
            features: dataset.features.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    fn shape(dataset: &Dataset) -> Vec<(&str, Vec<String>)> {
        let cells = |s: &Split| (0..s.rows()).map(|row| s.text_at("a", row).unwrap().unwrap()).collect();
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
            ("data/train-00001-of-00002.csv", "a\n2\n"),
            ("data/train-00000-of-00002.jsonl", "{\"a\": 1}\n"),
            ("dev/rows.json", "[{\"a\": 3}]"),
            ("my_test.csv", "a\n4\n"),
            ("notes.csv", "a\n5\n"),
            (".hidden/train.csv", "a\n6\n"),
        ]);
        let (result, said) = load(&path(dir.path(), "."));
        let dataset = result.unwrap();
        let ids = |cells: &[i64]| cells.iter().map(|c| c.to_string()).collect::<Vec<_>>();
        assert_eq!(
            shape(&dataset),
            [("train", ids(&[1, 2])), ("validation", ids(&[3])), ("test", ids(&[4]))]
        );
        assert_eq!(dataset.class_names("a").unwrap(), ["no", "yes"]);
        let warned: Vec<_> = said.iter().filter(|s| matches!(s, Saying::Warning(_))).collect();
        assert_eq!(warned.len(), 1, "{said:?}");
        let matched = loaded(&path(dir.path(), "data/*.csv"));
        assert_eq!(shape(&matched), [("train", ids(&[2]))]);
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
    fn slices_are_those_of_datasets() {
        let rows: Vec<String> = (0..25).map(|row| format!("{row}\n")).collect();
        let dir = folder(&[("rows.csv", &format!("a\n{}", rows.concat()))]);
        let slice = |split: &str| {
            let stage = LoadDataset { split: Some(split.into()), ..path(dir.path(), "rows.csv") };
            let dataset = loaded(&stage);
            let train = dataset.split("train").unwrap();
            let end = |row| train.text_at("a", row).unwrap().unwrap().parse::<usize>().unwrap();
            match train.rows() {
                0 => None,
                rows => Some((end(0), end(rows - 1) + 1)),
            }
        };
        assert_eq!(slice("train"), Some((0, 25)));
        assert_eq!(slice("train[:10]"), Some((0, 10)));
        assert_eq!(slice("train[-20:]"), Some((5, 25)));
        // 2.5 rows are 2, as Python rounds them.
        assert_eq!(slice("train[10%:]"), Some((2, 25)));
        assert_eq!(slice("train[30%:-10%]"), Some((8, 23)));
        assert_eq!(slice("train[:1000]"), Some((0, 25)));
        assert_eq!(slice("train[7:7]"), None);
        let absent = LoadDataset { split: Some("trian[:5]".into()), ..path(dir.path(), "rows.csv") };
        assert_eq!(refusal(&absent), "no split `trian` (did you mean `train`?); there is `train`");
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
            "dataset: ought/raft is a Hub repository, and pipe can't fetch from the Hub yet"
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
    fn the_hubs_keys_are_noted_for_local_files() {
        let dir = folder(&[("a.csv", "a\n1\n")]);
        let stage = LoadDataset { name: Some("tweets".into()), ..path(dir.path(), "a.csv") };
        let (_, said) = load(&stage);
        assert!(
            said.iter().any(
                |s| matches!(s, Saying::Note(n) if n == "`name` is for datasets on the Hub; a.csv is local")
            ),
            "{said:?}"
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
