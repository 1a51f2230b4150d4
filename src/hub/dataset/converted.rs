//! The branch `refs/convert/parquet`: `{config}/{split}/0000.parquet`, `{config}/partial-{split}/0000.parquet` where
//! the Hub has converted only the first part, and, as it was until 2023, `{config}/{name}-{split}.parquet`.
//!
//! Does not know why nobody takes the files of the main branch.

use std::collections::{BTreeMap, BTreeSet};

use super::card::Card;
use super::{DataFiles, FindError, stay_inside};
use crate::artifact::dataset::check_split_name;
use crate::formats::splits::{self, SplitFiles};

/// How much of a split a file is a part of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Extent {
    Partial,
    Whole,
}

/// The files of each split.
type Splits<'a> = BTreeMap<&'a str, Vec<(Extent, &'a str)>>;

/// The files of the configuration asked for, or of the only or default one, on the branch of converted files.
/// `card` is the main branch's, which may say which configuration is the default one.
pub fn find_converted(paths: &[String], card: &Card, config: Option<&str>) -> Result<DataFiles, FindError> {
    let mut configs: BTreeMap<&str, Splits<'_>> = BTreeMap::new();
    stay_inside(paths)?;
    for path in paths {
        if let Some((config, split, extent)) = place(path) {
            configs.entry(config).or_default().entry(split).or_default().push((extent, path));
        }
    }
    if configs.is_empty() {
        return Err(FindError::Nothing);
    }
    let have = || configs.keys().map(|name| name.to_string()).collect();
    let name = match config {
        Some(name) => name.to_owned(),
        None => {
            let only =
                (configs.len() == 1).then(|| configs.keys().next().map(|name| name.to_string())).flatten();
            let by_card = card.default_config()?.map(|config| config.name.clone());
            let usual = || configs.contains_key("default").then(|| "default".to_owned());
            only.or(by_card.filter(|name| configs.contains_key(name.as_str())))
                .or_else(usual)
                .ok_or_else(|| FindError::WhichConfig(have()))?
        }
    };
    let found =
        configs.get(name.as_str()).ok_or_else(|| FindError::NoConfig { name: name.clone(), have: have() })?;

    let (mut in_splits, mut warnings) = (Vec::new(), Vec::new());
    for (split, files) in found {
        check_split_name(split)?;
        let extent = files.iter().map(|(extent, _)| *extent).max().unwrap_or(Extent::Whole);
        let mut paths: Vec<String> =
            files.iter().filter(|(of, _)| *of == extent).map(|(_, path)| path.to_string()).collect();
        paths.sort_unstable();
        if extent == Extent::Partial {
            warnings.push(format!("of split `{split}` the Hub has converted only the first part"));
        }
        in_splits.push(SplitFiles { split: split.to_string(), paths });
    }
    in_splits.sort_by_key(|files| splits::rank(&files.split));
    let needed: BTreeSet<String> = in_splits.iter().flat_map(|files| files.paths.clone()).collect();
    Ok(DataFiles {
        features: card.features(&name),
        config: name,
        splits: in_splits,
        warnings,
        needed: needed.into_iter().collect(),
    })
}

/// The configuration and the split that a path names.
fn place(path: &str) -> Option<(&str, &str, Extent)> {
    let (folder, file) = path.rsplit_once('/')?;
    let stem = file.strip_suffix(".parquet")?;
    if let Some((config, split)) = folder.rsplit_once('/')
        && stem.bytes().all(|b| b.is_ascii_digit())
    {
        return Some(match split.strip_prefix("partial-") {
            Some(split) => (config, split, Extent::Partial),
            None => (config, split, Extent::Whole),
        });
    }
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let unsharded = |stem: &'_ str| {
        let (rest, of) = stem.rsplit_once("-of-")?;
        let (name, at) = rest.rsplit_once('-')?;
        (digits(of) && digits(at)).then_some(name.len())
    };
    let stem = &stem[..unsharded(stem).unwrap_or(stem.len())];
    let (_, split) = stem.rsplit_once('-')?;
    Some((folder, split, Extent::Whole))
}
