//! The files that a dataset is read from: those that a path names (a file, a folder, a pattern, what `save_to_disk`
//! wrote), and those of a dataset's repository, on the Hub or cloned.
//!
//! Looks for files and reads what describes them; never reads a row.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::artifact::dataset::Feature;
use crate::cancel::{Cancel, Interrupted};
use crate::files::{self, RelPath, shown};
use crate::formats;
use crate::formats::saved::{self, Saved};
use crate::formats::splits::{self, SplitFiles};
use crate::hub::dataset::card::MAX_CARD;
use crate::hub::dataset::{self, CARD, Card, DataFiles, FindError, Finding, Layout, Repository};
use crate::location::{Glob, Location, Locations, Place};
use crate::stage::{Context, StageError};
use crate::stages::place;

/// The files of one split.
#[derive(Debug)]
pub struct Part {
    /// The split.
    pub split: String,
    /// Sorted, or as the dataset that they are of lists them.
    pub paths: Vec<PathBuf>,
    /// The folders that they were saved to, which describe the columns.
    pub folders: Vec<PathBuf>,
}

/// The files of a dataset.
#[derive(Debug, Default)]
pub struct Parts {
    /// Splits in their order.
    pub parts: Vec<Part>,
    /// What stands beside the files of the columns; it counts before what the files say themselves.
    pub features: BTreeMap<String, Feature>,
}

/// The files of splits that the manifest names.
pub fn named(files: &BTreeMap<String, Locations>, cancel: &Cancel) -> Result<Parts, StageError> {
    let mut parts = Vec::new();
    for (split, places) in files {
        let mut part = Part { split: split.clone(), paths: Vec::new(), folders: Vec::new() };
        for place in &places.0 {
            match saved_at(place)?.as_slice() {
                [] => part.paths.extend(all_at(place, cancel)?),
                [one] => {
                    part.paths.extend_from_slice(&one.shards);
                    part.folders.push(one.folder.clone());
                }
                many => {
                    let have: Vec<_> = many.iter().filter_map(|s| s.split.as_deref()).collect();
                    return Err(StageError::with_help(
                        format!("dataset: {place} has several splits: {}", have.join(", ")),
                        format!("name the folder of one, such as {place}/{}", have[0]),
                    ));
                }
            }
        }
        parts.push(part);
    }
    parts.sort_by_key(|part| splits::rank(&part.split));
    Ok(Parts { parts, features: BTreeMap::new() })
}

/// The files that a path on this machine names; `config` chooses between those of a folder with a card.
pub fn at(path: &Location, config: Option<&str>, context: &Context<'_>) -> Result<Parts, StageError> {
    let place = path.resolve();
    if let Place::Local(folder) = &place
        && folder.is_dir()
    {
        return in_folder(path, folder, config, context);
    }
    if config.is_some() && !matches!(place, Place::Hub(_)) {
        note_unused(path, context);
    }
    match place {
        Place::Glob(glob) => matched(&glob, context),
        _ => Ok(lone_split(vec![place::local(path, "dataset")?])),
    }
}

fn note_unused(path: &Location, context: &Context<'_>) {
    context.note(format!("`name` chooses between configurations, and {path} has none"));
}

fn lone_split(paths: Vec<PathBuf>) -> Parts {
    let part = Part { split: "train".into(), paths, folders: Vec::new() };
    Parts { parts: vec![part], features: BTreeMap::new() }
}

/// The files of a dataset's commit that was fetched: `paths` are those that were pinned, which lie (or are linked to)
/// below `snapshot`. Nothing else in that folder is looked at.
pub fn fetched(
    snapshot: &Path,
    layout: Layout,
    paths: &[String],
    config: Option<&str>,
    context: &Context<'_>,
) -> Result<Parts, StageError> {
    dataset::stay_inside(paths).map_err(refused)?;
    let card = match layout {
        Layout::Repository if paths.iter().any(|path| path == CARD) => card_of(snapshot)?,
        Layout::Repository | Layout::Converted => Card::default(),
    };
    let found = match layout {
        Layout::Repository => {
            dataset::find(&Repository { name: None, paths, card: &card }, config).map_err(refused)?
        }
        Layout::Converted => Finding::Here(dataset::find_converted(paths, &card, config).map_err(refused)?),
    };
    let found = match found {
        Finding::Here(found) => found,
        Finding::Elsewhere { why } => return Err(StageError::failed(format!("dataset: {why}"))),
    };
    let described = found.needed.iter().any(|path| formats::INFO_FILES.contains(&path.as_str()));
    let beside = match described {
        true => formats::beside(snapshot, Some(&found.config))?,
        false => BTreeMap::new(),
    };
    Ok(parts(found, &|path| snapshot.join(path), beside, context))
}

/// The files in a folder: what `save_to_disk` wrote, else as of a repository. Without configurations in a card, files
/// that can't be read are passed over, and so are .txt files beside others: those are notes and licences.
fn in_folder(
    path: &Location,
    folder: &Path,
    asked: Option<&str>,
    context: &Context<'_>,
) -> Result<Parts, StageError> {
    let saved = saved::in_folder(folder)?;
    let card = match saved.is_empty() && folder.join(CARD).is_file() {
        true => card_of(folder)?,
        false => Card::default(),
    };
    let by_card = !card.configs.is_empty();
    let described = saved.is_empty() && formats::INFO_FILES.iter().any(|name| folder.join(name).is_file());
    if asked.is_some() && !by_card && !described {
        note_unused(path, context);
    }
    if !saved.is_empty() {
        let part = |saved: Saved| Part {
            split: saved.split.unwrap_or_else(|| "train".into()),
            paths: saved.shards,
            folders: vec![saved.folder],
        };
        let parts = saved.into_iter().map(part).collect();
        return Ok(Parts { parts, features: BTreeMap::new() });
    }
    let mut paths = walk(folder, context.cancel)?;
    if !by_card {
        keep_data(&mut paths);
    }
    let paths = texts(&paths);
    let config = asked.filter(|_| by_card);
    match dataset::find(&Repository { name: None, paths: &paths, card: &card }, config).map_err(refused)? {
        Finding::Here(found) => {
            let mut beside = formats::beside(folder, asked)?;
            beside.extend(card.features(asked.unwrap_or("default")));
            Ok(parts(found, &|path| of_text(path, folder), beside, context))
        }
        Finding::Elsewhere { .. } if paths.is_empty() => Err(unreadable(folder)),
        Finding::Elsewhere { why } => Err(StageError::failed(format!("dataset: {}: {why}", shown(folder)))),
    }
}

fn refused(error: FindError) -> StageError {
    let message = format!("dataset: {error}");
    match error.help() {
        Some(help) => StageError::with_help(message, help),
        None => StageError::failed(message),
    }
}

/// Names below a folder as text, from which [`of_text`] finds the files again whatever bytes are in them.
fn texts(paths: &[RelPath]) -> Vec<String> {
    paths.iter().map(RelPath::to_string).collect()
}

fn of_text(path: &str, folder: &Path) -> PathBuf {
    RelPath::parse(path).map_or_else(|| folder.join(path), |path| path.under(folder))
}

/// Files by their paths below a folder, with what the card and the files beside say of the columns.
fn parts(
    found: DataFiles,
    place: &dyn Fn(&str) -> PathBuf,
    mut features: BTreeMap<String, Feature>,
    context: &Context<'_>,
) -> Parts {
    for warning in found.warnings {
        context.warn(warning);
    }
    features.extend(found.features);
    let part = |files: SplitFiles| Part {
        split: files.split,
        paths: files.paths.iter().map(|path| place(path)).collect(),
        folders: Vec::new(),
    };
    Parts { parts: found.splits.into_iter().map(part).collect(), features }
}

fn card_of(folder: &Path) -> Result<Card, StageError> {
    let path = folder.join(CARD);
    let size = std::fs::metadata(&path).map_err(|e| StageError::io(&path, &e))?.len();
    if size > MAX_CARD as u64 {
        return Err(refused(FindError::Card(format!(
            "the file has {size} bytes; at most {MAX_CARD} are read"
        ))));
    }
    let bytes = std::fs::read(&path).map_err(|e| StageError::io(&path, &e))?;
    Card::parse(&String::from_utf8_lossy(&bytes)).map_err(refused)
}

/// The datasets that `save_to_disk` wrote into a folder; none where the place is something else.
fn saved_at(location: &Location) -> Result<Vec<Saved>, StageError> {
    match location.resolve() {
        Place::Local(folder) if folder.is_dir() => Ok(saved::in_folder(&folder)?),
        _ => Ok(Vec::new()),
    }
}

/// Every file that a place stands for, whatever its name says of splits.
fn all_at(location: &Location, cancel: &Cancel) -> Result<Vec<PathBuf>, StageError> {
    if let Place::Glob(glob) = location.resolve() {
        return Ok(matching(&glob, cancel)?.iter().map(|file| file.under(&glob.root)).collect());
    }
    let path = place::local(location, "dataset")?;
    if !path.is_dir() {
        return Ok(vec![path]);
    }
    let mut paths = walk(&path, cancel)?;
    keep_data(&mut paths);
    if paths.is_empty() {
        return Err(unreadable(&path));
    }
    Ok(paths.iter().map(|within| within.under(&path)).collect())
}

/// Keeps the files that can be read and hold rows. Beside data, a .txt file is a note or a licence.
fn keep_data(paths: &mut Vec<RelPath>) {
    let describes = |path: &RelPath| {
        let name = path.as_path().file_name().unwrap_or_default();
        formats::INFO_FILES.iter().any(|info| name == *info)
    };
    let is_text = |path: &RelPath| formats::is_text(path.as_path());
    paths.retain(|path| formats::is_known(path.as_path()) && !describes(path));
    if !paths.iter().all(is_text) {
        paths.retain(|path| !is_text(path));
    }
}

fn unreadable(folder: &Path) -> StageError {
    StageError::with_help(
        format!("dataset: no file in {} can be read", shown(folder)),
        format!("files are taken by their ending: {}", formats::ENDINGS.join(", ")),
    )
}

/// The files that a pattern matches, by what their names say of splits.
fn matched(glob: &Glob, context: &Context<'_>) -> Result<Parts, StageError> {
    let files = matching(glob, context.cancel)?;
    // What is fixed of the pattern doesn't tell files apart.
    let paths = texts(&files);
    let repository = Repository { name: None, paths: &paths, card: &Card::default() };
    Ok(match dataset::find(&repository, None).map_err(refused)? {
        Finding::Here(found) => parts(found, &|path| of_text(path, &glob.root), BTreeMap::new(), context),
        // Whoever reads them says what is wrong with each.
        Finding::Elsewhere { .. } => lone_split(files.iter().map(|file| file.under(&glob.root)).collect()),
    })
}

fn matching(glob: &Glob, cancel: &Cancel) -> Result<Vec<RelPath>, StageError> {
    let files = glob.files(cancel).map_err(not_found)?;
    match files.is_empty() {
        true => Err(StageError::failed(format!("dataset: no file matches {glob}"))),
        false => Ok(files),
    }
}

/// Every file below a folder, as the key has them; hidden ones are none.
fn walk(folder: &Path, cancel: &Cancel) -> Result<Vec<RelPath>, StageError> {
    files::visible(folder, cancel, &|_| true).map_err(not_found)
}

/// An error of looking for files, which names the place itself.
fn not_found(error: std::io::Error) -> StageError {
    match Interrupted::is(&error) {
        true => StageError::Interrupted,
        false => StageError::failed(format!("dataset: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::stage::Saying;
    use crate::stages::testing::{Refusal, fault, with_context};

    /// A snapshot as `huggingface_hub` lays it out: links to blobs.
    fn snapshot(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("blobs")).unwrap();
        for (at, (name, content)) in files.iter().enumerate() {
            let (blob, link) =
                (dir.path().join(format!("blobs/{at}")), dir.path().join("snapshot").join(name));
            fs::write(&blob, content).unwrap();
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(blob, link).unwrap();
        }
        dir
    }

    /// What a fetched dataset's files are: splits with paths, class names, warnings.
    fn told(
        dir: &tempfile::TempDir,
        layout: Layout,
        paths: &[&str],
        config: Option<&str>,
    ) -> Result<Vec<String>, Refusal> {
        let (snapshot, out) = (dir.path().join("snapshot"), tempfile::tempdir().unwrap());
        let paths: Vec<String> = paths.iter().map(|path| path.to_string()).collect();
        let work = |context: &Context<'_>| fetched(&snapshot, layout, &paths, config, context);
        let (found, said) = with_context(&BTreeMap::new(), out.path(), &Cancel::default(), work);
        let found = found.map_err(fault)?;
        let within = |path: &PathBuf| path.strip_prefix(&snapshot).unwrap().display().to_string();
        let part =
            |p: &Part| format!("{}: {}", p.split, p.paths.iter().map(within).collect::<Vec<_>>().join(" "));
        let mut lines: Vec<String> = found.parts.iter().map(part).collect();
        lines.extend(
            found
                .features
                .into_iter()
                .map(|(column, f)| format!("{column} is {}", f.class_names.unwrap().join("/"))),
        );
        lines.extend(said.into_iter().map(|s| match s {
            Saying::Warning(text) => text,
            other => panic!("{other:?}"),
        }));
        Ok(lines)
    }

    const INFO: &str =
        r#"{"user--tweets": {"features": {"y": {"_type": "ClassLabel", "names": ["no", "yes"]}}}}"#;

    #[test]
    fn pinned_files_of_a_snapshot_are_all_that_counts() {
        let card = "---\nconfigs:\n- config_name: a\n  data_files: a/*.csv\n- config_name: b\n  data_files: b.csv\n\
                    dataset_info:\n- config_name: a\n  features:\n  - name: y\n    dtype:\n      class_label:\n        \
                    names:\n          '0': nein\n          '1': ja\n---\n";
        let dir = snapshot(&[
            ("README.md", card),
            ("dataset_infos.json", INFO),
            ("a/1.csv", ""),
            ("a/2.csv", ""),
            ("b.csv", ""),
        ]);
        let pinned = ["README.md", "a/1.csv", "a/2.csv"];
        assert_eq!(
            told(&dir, Layout::Repository, &pinned, Some("a")).unwrap(),
            ["train: a/1.csv a/2.csv", "y is nein/ja"]
        );
        // Without the card among them the conventions hold, and the info file where it is pinned.
        assert_eq!(told(&dir, Layout::Repository, &["b.csv"], None).unwrap(), ["train: b.csv"]);
        assert_eq!(
            told(&dir, Layout::Repository, &["b.csv", "dataset_infos.json"], None).unwrap(),
            ["train: b.csv", "y is no/yes"]
        );
        assert_eq!(
            told(&dir, Layout::Repository, &pinned, Some("c")).unwrap_err(),
            (
                "dataset: no configuration `c`; there are `a`, `b`".into(),
                Some("`name` takes one of these".into())
            )
        );
        assert_eq!(
            told(&dir, Layout::Repository, &["../blobs/0"], None).unwrap_err(),
            ("dataset: the commit has a file `../blobs/0`, which is no path within a folder".into(), None)
        );
        assert_eq!(
            told(&dir, Layout::Repository, &["a.csv.gz"], None).unwrap_err(),
            ("dataset: a.csv.gz is in a format that pipe does not read".into(), None)
        );
    }

    #[test]
    fn converted_files_are_those_of_one_configuration() {
        let dir = snapshot(&[]);
        let pinned = ["tweets/test/0000.parquet", "tweets/partial-train/0000.parquet"];
        assert_eq!(
            told(&dir, Layout::Converted, &pinned, Some("tweets")).unwrap(),
            [
                "train: tweets/partial-train/0000.parquet",
                "test: tweets/test/0000.parquet",
                "of split `train` the Hub has converted only the first part"
            ]
        );
    }

    #[test]
    fn a_card_that_is_too_large_is_not_read() {
        let dir = snapshot(&[("README.md", &"a".repeat(MAX_CARD + 1))]);
        assert_eq!(
            told(&dir, Layout::Repository, &["README.md"], None).unwrap_err(),
            (
                "dataset: README.md: the file has 4194305 bytes; at most 4194304 are read".into(),
                Some("mend README.md where the dataset is yours, or take another `revision`".into())
            )
        );
    }
}
