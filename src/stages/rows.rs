//! Rows of a tokens artifact as the training core takes them.
//!
//! Does not know what is done with them.

use crate::artifact::tokens::{About, IGNORED, PadTo, Row as TokenRow};
use crate::stage::StageError;
use crate::train::{Pads, Row};

/// Rows to train on: where padding goes to the longest of a batch, the batch decides.
pub fn to_train(about: &About, rows: &[TokenRow]) -> Vec<Row> {
    rows.iter()
        .map(|row| {
            let pads = match about.padding.to {
                PadTo::Longest if about.pads_before(0, 1) > 0 => Pads::ToLongest,
                _ => Pads::Before(about.pads_before(row.ids.len(), row.ids.len())),
            };
            Row { ids: row.ids.clone(), labels: labels(row), pads }
        })
        .collect()
}

/// Rows to score: padding to the longest means the longest of the split, so that how they are batched changes
/// nothing.
pub fn to_score(about: &About, rows: &[TokenRow]) -> Vec<Row> {
    let longest = rows.iter().map(|r| r.ids.len()).max().unwrap_or(0);
    let pads = |row: &TokenRow| Pads::Before(about.pads_before(row.ids.len(), longest));
    rows.iter().map(|row| Row { ids: row.ids.clone(), labels: labels(row), pads: pads(row) }).collect()
}

/// The positions that the longest of some rows takes, padding included.
pub fn longest(about: &About, rows: &[TokenRow]) -> usize {
    let longest = rows.iter().map(|r| r.ids.len()).max().unwrap_or(0);
    longest + about.pads_before(longest, longest)
}

/// Refuses rows without a single label.
pub fn has_labels(rows: &[TokenRow], split: &str) -> Result<(), StageError> {
    if rows.is_empty() {
        return Err(StageError::failed(format!("split `{split}` has no rows")));
    }
    if rows.iter().all(|r| r.labels.iter().all(|l| *l == IGNORED)) {
        return Err(StageError::failed(format!("no row of split `{split}` has a label")));
    }
    Ok(())
}

fn labels(row: &TokenRow) -> Vec<Option<u32>> {
    row.labels.iter().map(|l| u32::try_from(*l).ok()).collect()
}
