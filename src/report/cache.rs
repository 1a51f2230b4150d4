//! The cache in words.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{seconds, table};
use crate::about::file_name;
use crate::cache::{Collected, Damage, Entry};
use crate::files::shown;
use crate::size::bytes;

/// `pipe cache ls`.
pub fn list(entries: &[Entry]) -> String {
    if entries.is_empty() {
        return "the cache is empty\n".into();
    }
    let mut rows = vec![["KEY", "KIND", "SIZE", "TOOK", "MADE"].map(String::from).to_vec()];
    let mut blobs = BTreeMap::new();
    for entry in entries {
        blobs.extend(entry.files.iter().map(|f| (f.digest, f.size)));
        rows.push(vec![
            entry.key.short(),
            entry.kind.clone(),
            bytes(entry.files.iter().map(|f| f.size).sum()),
            seconds(entry.seconds),
            entry.created.split('.').next().unwrap_or_default().into(),
        ]);
    }
    let total = bytes(blobs.values().sum());
    format!("{}{} results, {total} on disk\n", table(&rows), entries.len())
}

/// `pipe cache verify`.
pub fn verified(damages: &[Damage], records: &[(PathBuf, String)]) -> String {
    if damages.is_empty() && records.is_empty() {
        return "every file is what its digest says\n".into();
    }
    let record = |(path, wrong): &(PathBuf, String)| {
        format!("damaged: {}: {wrong}; set aside as {}.damaged", shown(path), file_name(path))
    };
    let lines = damages.iter().map(damaged).chain(records.iter().map(record));
    lines.map(|line| line + "\n").collect()
}

fn damaged(damage: &Damage) -> String {
    match damage {
        Damage::File { key, kind, path } => {
            format!("damaged: {path} of {kind} {}; the next run makes it anew", key.short())
        }
        Damage::Blob(path) => format!("damaged: {}, which no result needs; removed", shown(path)),
        Damage::Entry { path, wrong } => {
            format!("damaged: {}: {wrong}; the next run makes the result anew", shown(path))
        }
        Damage::MadeFrom { key, kind, from } => format!(
            "taken out: {kind} {}, which was made from {}; the next run makes it anew",
            key.short(),
            from.short()
        ),
        Damage::Unfinished { path, wrong } => {
            format!(
                "damaged: {}: {wrong}; the next run goes on from an earlier checkpoint, or starts over",
                shown(path)
            )
        }
    }
}

/// `pipe cache gc`.
pub fn collected(collected: &Collected) -> String {
    let some = |n: usize, what: &str| match n {
        0 => String::new(),
        n => format!(", {n} {what}"),
    };
    let linked = match collected.linked {
        0 => String::new(),
        n => format!("; {} more are free once the runs that have them are removed: `pipe runs rm`", bytes(n)),
    };
    format!(
        "removed {} results and {} files{}{}, {}{linked}\n",
        collected.entries,
        collected.blobs,
        some(collected.unfinished, "interrupted stages' work"),
        some(collected.attempts, "folders of killed processes"),
        bytes(collected.bytes)
    )
}
