//! The cache in words.

use std::collections::BTreeMap;

use super::{seconds, table};
use crate::cache::{Collected, Entry, FileRef};
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
pub fn verified(damaged: &[(Entry, FileRef)]) -> String {
    if damaged.is_empty() {
        return "every file is what its digest says\n".into();
    }
    let mut text = String::new();
    for (entry, file) in damaged {
        text += &format!(
            "damaged: {} of {} {}; the next run makes it anew\n",
            file.path,
            entry.kind,
            entry.key.short()
        );
    }
    text
}

/// `pipe cache gc`.
pub fn collected(collected: &Collected) -> String {
    let unfinished = match collected.unfinished {
        0 => String::new(),
        n => format!(", {n} interrupted stages' work"),
    };
    format!(
        "removed {} results and {} files{unfinished}, {}\n",
        collected.entries,
        collected.blobs,
        bytes(collected.bytes)
    )
}
