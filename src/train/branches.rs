//! Tokenised rows as scoring packs them: what all rows begin with once for all batches, what some of them begin with
//! once for those.
//!
//! Knows which tokens go through the model together and which state predicts which label; does not know the model,
//! nor what becomes of a label's probability. Training packs its rows by itself ([`super::batch`]): its prompt
//! changes from step to step, and a gradient comes back.

use std::ops::Range;

use super::batch::{Row, common_prefix};
use crate::model::layout::{Layout, PackedRow, Trunk};

/// A row as far as its labels depend on it.
struct Scored<'a> {
    /// Its index.
    owner: usize,
    row: &'a Row,
    pads: usize,
    /// Its tokens up to the last label.
    text: &'a [u32],
}

/// How rows go through the model behind a prefix that goes first, once.
pub(super) struct Plan<'a> {
    virtual_tokens: usize,
    /// What all rows begin with, at the same positions.
    pub shared: &'a [u32],
    /// Padding between the virtual tokens and the rows, where rows share anything.
    pads: usize,
    /// Sorted, so that those that begin alike stand side by side.
    rows: Vec<Scored<'a>>,
    /// Which of them have a trunk together.
    groups: Vec<Range<usize>>,
    /// Most tokens of a batch.
    most_tokens: usize,
}

/// Rows that go through the model together, behind the prefix.
#[derive(Default)]
pub(super) struct Batch {
    /// The tokens.
    pub ids: Vec<u32>,
    /// How they lie.
    trunks: Vec<Trunk>,
    /// Length of the prefix.
    prefix: usize,
    /// How many rows they are of.
    pub rows: usize,
    /// Labels that a token of the prefix predicts, and the token's index.
    pub behind_prefix: Vec<(u32, Label)>,
    /// The others, and the token of the batch that predicts them.
    pub asked: Vec<(u32, Label)>,
}

/// What is to be predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label {
    /// The token.
    pub target: u32,
    /// The index of its row.
    pub owner: usize,
}

impl<'a> Plan<'a> {
    /// For rows behind so many virtual tokens, in batches of at most as many tokens as `batch_size` of the longest
    /// rows have. Where padding counts, it moves a row's positions.
    pub fn new(rows: &'a [Row], virtual_tokens: usize, counts_padding: bool, batch_size: usize) -> Self {
        let longest = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
        let scored = rows.iter().enumerate().filter_map(|(owner, row)| {
            let pads = if counts_padding { row.pads_before(longest) } else { 0 };
            let last = row.labels.iter().rposition(Option::is_some)?;
            (virtual_tokens + last > 0).then(|| Scored { owner, row, pads, text: &row.ids[..last] })
        });
        let mut rows: Vec<Scored> = scored.collect();
        rows.sort_by_key(|row| (row.pads, row.text));
        let pads = rows.first().map_or(0, |row| row.pads);
        let same_positions = rows.last().is_none_or(|row| row.pads == pads);
        let common = if same_positions { common_prefix(rows.iter().map(|row| row.text)) } else { 0 };
        let shared = rows.first().map_or(&[][..], |row| &row.text[..common]);
        let batch_size = batch_size.max(1);
        let groups = groups(&rows, common, batch_size);
        let longest = rows.iter().map(|row| row.text.len() - common).max().unwrap_or(0);
        Self { virtual_tokens, shared, pads, rows, groups, most_tokens: batch_size * longest }
    }

    /// How what goes first lies.
    pub fn prefix(&self) -> Layout {
        let shared = PackedRow { tokens: self.shared.len(), pads_before: self.pads };
        Layout::behind(self.virtual_tokens, shared, &[])
    }

    /// How many rows have a label.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The batches.
    pub fn batches(&self) -> Vec<Batch> {
        let prefix = self.virtual_tokens + self.shared.len();
        let mut batches: Vec<Batch> = Vec::new();
        for group in &self.groups {
            let group = &self.rows[group.clone()];
            let end = trunk_end(group);
            let tokens =
                end - self.shared.len() + group.iter().map(|row| row.text.len() - end).sum::<usize>();
            match batches.last_mut() {
                Some(batch) if batch.ids.len() + tokens <= self.most_tokens => self.add(group, end, batch),
                _ => {
                    let mut batch = Batch { prefix, ..Batch::default() };
                    self.add(group, end, &mut batch);
                    batches.push(batch);
                }
            }
        }
        batches
    }

    /// Adds rows whose trunk ends before their token `end`.
    fn add(&self, rows: &[Scored], end: usize, batch: &mut Batch) {
        let Some(first) = rows.first() else { return };
        let trunk_start = batch.ids.len();
        batch.ids.extend_from_slice(&first.text[self.shared.len()..end]);
        let mut branches = Vec::new();
        for Scored { owner, row, text, .. } in rows {
            let start = batch.ids.len();
            batch.ids.extend_from_slice(&text[end..]);
            if text.len() > end {
                branches.push(text.len() - end);
            }
            for (i, label) in row.labels.iter().enumerate() {
                let Some(target) = *label else { continue };
                let label = Label { target, owner: *owner };
                // A token is predicted from the one before it; a row's first from the prompt's last.
                match i.checked_sub(1) {
                    Some(before) if before >= end => {
                        batch.asked.push(((start + before - end) as u32, label));
                    }
                    Some(before) if before >= self.shared.len() => {
                        batch.asked.push(((trunk_start + before - self.shared.len()) as u32, label));
                    }
                    _ if self.virtual_tokens + i > 0 => {
                        batch.behind_prefix.push(((self.virtual_tokens + i - 1) as u32, label));
                    }
                    _ => {}
                }
            }
        }
        let row = PackedRow { tokens: end - self.shared.len(), pads_before: first.pads };
        batch.trunks.push(Trunk { row, branches });
        batch.rows += rows.len();
    }
}

impl Batch {
    /// How its tokens lie.
    pub fn layout(&self) -> Layout {
        Layout::branching(self.prefix, &self.trunks)
    }
}

/// How many tokens the rows of a group begin with; a row alone is all trunk.
fn trunk_end(rows: &[Scored]) -> usize {
    match rows {
        [alone] => alone.text.len(),
        _ => common_prefix(rows.iter().map(|row| row.text)),
    }
}

/// Cuts sorted rows into groups of at most `most`, each with a trunk, so that the fewest tokens go through the model.
///
/// What `shared` tokens are is known to all and saves nothing.
fn groups(rows: &[Scored], shared: usize, most: usize) -> Vec<Range<usize>> {
    let common = |[a, b]: [&Scored; 2]| match a.pads == b.pads {
        true => common_prefix([a.text, b.text].into_iter()) - shared,
        false => 0,
    };
    let with_next: Vec<usize> = rows.array_windows().map(|[a, b]| common([a, b])).collect();
    // Of the first so many rows: the tokens saved at best, and where the last group then begins.
    let mut best = vec![(0, 0)];
    for end in 1..=rows.len() {
        let mut last = (best[end - 1].0, end - 1);
        let mut trunk = usize::MAX;
        for start in (end.saturating_sub(most)..end - 1).rev() {
            trunk = trunk.min(with_next[start]);
            if trunk == 0 {
                break;
            }
            let saved = best[start].0 + trunk * (end - start - 1);
            if saved > last.0 {
                last = (saved, start);
            }
        }
        best.push(last);
    }
    let mut groups = Vec::new();
    let mut end = rows.len();
    while end > 0 {
        groups.push(best[end].1..end);
        end = best[end].1;
    }
    groups.reverse();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Pads;

    fn row(ids: &[u32], first_label: usize, pads: usize) -> Row {
        let labels = ids.iter().enumerate().map(|(i, id)| (i >= first_label).then_some(*id));
        Row { ids: ids.to_vec(), labels: labels.collect(), pads: Pads::Before(pads) }
    }

    fn targets(labels: &[(u32, Label)]) -> Vec<(u32, u32, usize)> {
        labels.iter().map(|(from, label)| (*from, label.target, label.owner)).collect()
    }

    #[test]
    fn candidates_branch_off_their_row_and_rows_off_what_all_begin_with() {
        let rows = [
            row(&[1, 7, 7, 5, 2], 3, 0),
            row(&[1, 7, 7, 6, 6, 2], 3, 0),
            row(&[1, 4, 4, 4, 5, 2], 4, 0),
            row(&[1, 4, 4, 4, 6, 6, 2], 4, 0),
        ];
        let plan = Plan::new(&rows, 2, true, 4);
        assert_eq!(plan.shared, [1]);
        assert_eq!(plan.prefix().positions(), [0, 1, 2]);
        let [batch] = &plan.batches()[..] else { panic!("more than one batch") };
        assert_eq!(batch.ids, [4, 4, 4, 5, 6, 6, 7, 7, 5, 6, 6]);
        assert_eq!(batch.layout().positions(), [3, 4, 5, 6, 6, 7, 3, 4, 5, 5, 6]);
        assert_eq!(batch.rows, 4);
        let of_the_first = [(7, 5, 0), (8, 2, 0), (7, 6, 1), (9, 6, 1), (10, 2, 1)];
        let of_the_second = [(2, 5, 2), (3, 2, 2), (2, 6, 3), (4, 6, 3), (5, 2, 3)];
        assert_eq!(targets(&batch.asked), [of_the_second, of_the_first].concat());
        assert_eq!(batch.behind_prefix, []);
        // A row's candidates stay together.
        let sizes = |batch_size| -> Vec<_> {
            Plan::new(&rows, 2, true, batch_size).batches().iter().map(|b| b.ids.len()).collect()
        };
        assert_eq!(sizes(2), [6, 5]);
        // One at a time there is nothing to branch off.
        assert_eq!(sizes(1), [4, 5, 3, 4]);
    }

    #[test]
    fn labels_of_what_all_begin_with_are_predicted_from_the_prefix() {
        let rows = [row(&[8, 9, 3], 0, 0), row(&[8, 4, 3], 0, 0)];
        let batches = Plan::new(&rows, 2, true, 2).batches();
        assert_eq!(targets(&batches[0].behind_prefix), [(1, 8, 1), (2, 4, 1), (1, 8, 0), (2, 9, 0)]);
        assert_eq!(targets(&batches[0].asked), [(0, 3, 1), (1, 3, 0)]);
        // Without a prompt nothing predicts the first token.
        let batches = Plan::new(&rows, 0, true, 2).batches();
        assert_eq!(targets(&batches[0].behind_prefix), [(0, 4, 1), (0, 9, 0)]);
        // A row that is scored twice goes once.
        let twice = [rows[0].clone(), rows[0].clone()];
        let plan = Plan::new(&twice, 1, true, 2);
        assert_eq!(plan.shared, [8, 9]);
        let batches = plan.batches();
        assert_eq!((batches[0].ids.len(), batches[0].behind_prefix.len()), (0, 6));
    }

    #[test]
    fn rows_at_other_positions_share_nothing_unless_padding_does_not_count() {
        let rows = [row(&[5, 6, 1], 2, 3), row(&[5, 6, 6, 1], 3, 2), row(&[5, 6, 7, 1], 3, 2)];
        let ids = |counts| Plan::new(&rows, 1, counts, 3).batches().remove(0).ids;
        assert_eq!(ids(true), [5, 6, 6, 7, 5, 6]);
        assert_eq!(Plan::new(&rows, 1, false, 3).shared, [5, 6]);
        assert_eq!(ids(false), [6, 7]);
    }

    #[test]
    fn rows_without_a_label_are_left_out() {
        let rows = [row(&[5, 6, 1], 3, 0), row(&[5], 0, 0)];
        assert_eq!(Plan::new(&rows, 0, true, 3).rows(), 0);
        let plan = Plan::new(&rows, 1, true, 3);
        assert_eq!(plan.rows(), 1);
        let batches = plan.batches();
        assert_eq!(targets(&batches[0].behind_prefix), [(0, 5, 1)]);
        assert_eq!(batches[0].layout().tokens(), 0);
    }
}
