//! Which file belongs to which split, and which files are data at all: what Hugging Face `datasets` decides from the
//! paths of a folder or repository alone.
//!
//! Paths are relative, their parts joined by `/`. Knows neither the disk nor what a dataset's card says.
//!
//! On purpose other than in `datasets`: scripts and other files that hold no data never make up a split, and `.md`,
//! `.toml` and `.eval` files are never data. On purpose the same: a file that two of a split's patterns choose, such
//! as `val-dev.csv`, counts twice.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::pattern::{Pattern, is_pattern};

/// The files of one split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitFiles {
    /// `train`, `test`, …
    pub split: String,
    /// In the order in which their rows follow each other.
    pub paths: Vec<String>,
}

/// The words that name a split in a file's or folder's name, splits in their order.
const WORDS: &[(&str, &[&str])] = &[
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// What may stand around such a word.
const AROUND: &str = "[-._ 0-9]";

/// `data/train-00000-of-00003.parquet`, as `push_to_hub` names them; `{}` stands for the split.
const SHARDS: &str = "data/{}-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]*.*";

/// Files that hold no rows, unless somebody asks for them by name.
const NO_DATA: &[&str] = &[
    "README.md",
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dummy_data.zip",
    "dataset_dict.json",
];

/// Files that describe pictures or sounds beside them.
const DESCRIBING: &[&str] = &["metadata.csv", "metadata.jsonl", "metadata.parquet"];

/// The formats that `datasets` knows, by the endings of their files; [`super::read`] takes only some of them.
const FORMATS: &[(&str, &str)] = &[
    ("csv", "csv tsv"),
    ("json", "json jsonl ndjson"),
    ("parquet", "parquet geoparquet gpq"),
    ("arrow", "arrow"),
    ("text", "txt"),
    ("zip", "zip"),
    ("conll", "conll conllu"),
    ("webdataset", "tar"),
    ("xml", "xml"),
    ("hdf5", "h5 hdf5"),
    ("lance", "lance"),
    ("vortex", "vortex"),
    ("tsfile", "tsfile"),
    ("fasta", "afa fa faa fasta ffn fna frn"),
    ("fastq", "fastq fq"),
    ("genbank", "gb gbk genbank"),
    ("pdb", "ent pdb"),
    ("mmcif", "cif mmcif"),
    ("meshes", "glb gltf ply stl"),
    ("pdf", "pdf"),
    ("nifti", "nii"),
    ("video", "avi mkv mov mp4 mpeg"),
    (
        "audio",
        "3g2 3gp aiff asf au avr caf f4v flac flv htk ircam m4v mat4 mat5 mp3 mpc2k mpg mxf nist nut ogg ogm opus \
         paf pvf raw rf64 sd2 sds svx voc w64 wav wavex webm wma wmv wve xi",
    ),
    (
        "images",
        "apng blp bmp bufr bw cur dcx dds dib emf eps fit fits flc fli ftc ftu gbr gif grib icb icns ico iim im j2c \
         j2k jfif jp2 jpc jpe jpeg jpf jpg jpx msp pbm pcd pcx pgm png pnm ppm ps psd pxr ras rgb rgba sgi tga tif \
         tiff vda vst webp wmf xbm xpm",
    ),
];

/// Where a split stands: `train`, `validation`, `test`, then any other.
pub fn rank(split: &str) -> usize {
    WORDS.iter().position(|(name, _)| *name == split).unwrap_or(WORDS.len())
}

/// The files that may hold rows, in any format that `datasets` knows, sorted.
pub fn data_files(paths: &[String]) -> Vec<&str> {
    let mut data: Vec<&str> =
        paths.iter().map(String::as_str).filter(|path| formats_of(path).next().is_some()).collect();
    data.sort_unstable();
    data
}

/// The splits of a folder in which nothing but the names of files and folders tells them; all files are `train`
/// where no name does. `data` is sorted.
pub fn by_names(data: &[&str]) -> Vec<SplitFiles> {
    let shards = choose(&SHARDS.replace("{}", "*"), data);
    let mut splits: BTreeSet<&str> = shards.iter().filter_map(|path| sharded_split(path)).collect();
    let mut in_order: Vec<&str> =
        WORDS.iter().map(|(name, _)| *name).filter(|name| splits.remove(name)).collect();
    in_order.extend(splits);
    if !in_order.is_empty() {
        let files = |split: &&str| SplitFiles {
            split: split.to_string(),
            paths: owned(shards.iter().copied().filter(|path| sharded_split(path) == Some(split))),
        };
        return in_order.iter().map(files).collect();
    }
    // Names of folders come before those of files.
    for within in ["/**", "*"] {
        let splits: Vec<SplitFiles> =
            WORDS.iter().filter_map(|(split, words)| named(split, words, within, data)).collect();
        if !splits.is_empty() {
            return splits;
        }
    }
    match choose("**", data) {
        none if none.is_empty() => Vec::new(),
        all => vec![SplitFiles { split: "train".into(), paths: owned(all) }],
    }
}

/// The files of a split by its words, each followed by `within` (`/**`: as a folder's name).
fn named(split: &str, words: &[&str], within: &str, data: &[&str]) -> Option<SplitFiles> {
    let mut paths = Vec::new();
    for word in words {
        let mut patterns = vec![format!("**/{word}{AROUND}*"), format!("**/*{AROUND}{word}{AROUND}*")];
        if within == "/**" {
            patterns = vec![
                format!("**/{word}/**"),
                format!("**/{word}{AROUND}*/**"),
                format!("**/*{AROUND}{word}/**"),
                format!("**/*{AROUND}{word}{AROUND}*/**"),
            ];
        }
        let with_word: Vec<&str> = data.iter().copied().filter(|path| path.contains(word)).collect();
        for pattern in patterns {
            paths.extend(choose(&pattern, &with_word));
        }
    }
    (!paths.is_empty()).then(|| SplitFiles { split: split.into(), paths: owned(paths) })
}

/// The split in the name of a shard.
fn sharded_split(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next()?;
    let digits = |text: &str| text.len() >= 5 && text.as_bytes()[..5].iter().all(u8::is_ascii_digit);
    let mut starts = name.match_indices('-').map(|(at, _)| at);
    let is_end = |at: &usize| {
        let rest = &name[at + 1..];
        digits(rest) && rest[5..].strip_prefix("-of-").is_some_and(digits)
    };
    starts.rfind(is_end).map(|at| &name[..at])
}

/// The files that a pattern, or a path, means, of `paths`, which are sorted: hidden files, folders that start with
/// `__` and files that describe the dataset only where it names them. Nothing where the pattern can't be read.
pub fn choose<'a>(pattern: &str, paths: &[&'a str]) -> Vec<&'a str> {
    let name = pattern.rsplit('/').next().unwrap_or_default();
    let (hidden, special) = (hidden_parts(pattern), special_folders(pattern));
    let meant = |path: &&&str| {
        let file = path.rsplit('/').next().unwrap_or_default();
        (file == name || !NO_DATA.contains(&file))
            && hidden_parts(path) == hidden
            && special_folders(path) == special
    };
    if !is_pattern(pattern) {
        return paths
            .binary_search(&pattern)
            .ok()
            .map(|at| &paths[at])
            .filter(meant)
            .copied()
            .into_iter()
            .collect();
    }
    let Some(read) = Pattern::parse(pattern) else { return Vec::new() };
    paths.iter().filter(|path| read.matches(path)).filter(meant).copied().collect()
}

fn hidden_parts(path: &str) -> usize {
    path.split('/').filter(|part| part.starts_with('.') && part.contains(|c| c != '.')).count()
}

fn special_folders(path: &str) -> usize {
    let folders = path.rsplit_once('/').map_or("", |(folders, _)| folders);
    folders.split('/').filter(|part| part.starts_with("__")).count()
}

/// The format of which most of the files are, and those of them that are of that format. Of formats with equally
/// many files parquet comes first, then arrow, json lines, json, csv. All files where no ending is known.
pub fn prevailing(paths: Vec<String>) -> (&'static str, Vec<String>) {
    let mut counts: BTreeMap<(String, bool), usize> = BTreeMap::new();
    for path in &paths {
        let name = path.rsplit('/').next().unwrap_or_default();
        for ending in name.split('.').skip(1) {
            *counts.entry((ending.to_lowercase(), DESCRIBING.contains(&name))).or_default() += 1;
        }
    }
    let favoured = ["csv", "json", "jsonl", "arrow", "vortex", "lance", "parquet"];
    let order = |((ending, describing), count): &((String, bool), usize)| {
        let favour = favoured.iter().position(|f| f == ending).map_or(0, |at| at + 1);
        (!describing, *count, favour, ending.clone())
    };
    let known = counts.into_iter().filter(|((ending, _), _)| format_of(ending).is_some());
    let Some(most) = known.max_by_key(order).and_then(|((ending, _), _)| format_of(&ending)) else {
        return ("", paths);
    };
    let fits = |path: &String| formats_of(path).any(|format| format == most || format == "zip");
    (most, paths.into_iter().filter(fits).collect())
}

/// Whether the file is one that [`super::read`] reads in this format.
pub fn is_readable(path: &str, format: &str) -> bool {
    let path = Path::new(path);
    super::is_known(path) && format_of(&super::ending(path)) == Some(format)
}

fn format_of(ending: &str) -> Option<&'static str> {
    let knows = |(_, endings): &&(&str, &str)| endings.split_ascii_whitespace().any(|e| e == ending);
    FORMATS.iter().find(knows).map(|(format, _)| *format)
}

/// The formats that a file's endings (`rows.csv.gz` has two) name.
fn formats_of(path: &str) -> impl Iterator<Item = &'static str> {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.split('.').skip(1).filter_map(|ending| format_of(&ending.to_lowercase()))
}

fn owned<'a>(paths: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    paths.into_iter().map(str::to_owned).collect()
}
