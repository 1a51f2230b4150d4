//! Tokenised rows, and how they are packed for training: no padding, nothing that no label depends on, and what all
//! rows of a batch begin with only once.

use super::TrainError;
use crate::model::layout::{Layout, PackedRow};
use crate::model::{Decoder, ModelError, Rows};

/// A tokenised row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The tokens, without padding.
    pub ids: Vec<u32>,
    /// For each token, itself if the model is to predict it, else `None` (Python's -100).
    pub labels: Vec<Option<u32>>,
    /// Padding on the left that moves the positions of GPT-2 and Llama; it costs nothing.
    pub pads: Pads,
}

/// How many padding tokens would stand before a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pads {
    /// So many.
    Before(usize),
    /// As many as the longest row of its batch (of all rows that are scored) is longer.
    ToLongest,
}

impl Row {
    /// How many padding tokens stand before it in a batch whose longest row has so many tokens.
    pub(super) fn pads_before(&self, longest: usize) -> usize {
        match self.pads {
            Pads::Before(pads) => pads,
            Pads::ToLongest => longest.saturating_sub(self.ids.len()),
        }
    }

    /// How many labels count: the first token's only if a prompt stands before it to predict it.
    pub fn kept(&self, prefix: usize) -> usize {
        let first = usize::from(prefix == 0);
        self.labels.iter().skip(first).flatten().count()
    }
}

/// Refuses rows that no model, or not this one, can be trained or scored on.
pub(super) fn check(rows: &[Row], vocabulary: usize) -> Result<(), TrainError> {
    for (i, row) in rows.iter().enumerate() {
        if row.ids.len() != row.labels.len() {
            return Err(TrainError::Labels { row: i, ids: row.ids.len(), labels: row.labels.len() });
        }
        if let Some(&label) = row.labels.iter().flatten().find(|&&l| l as usize >= vocabulary) {
            return Err(TrainError::LabelOutside { row: i, label, vocabulary });
        }
    }
    Ok(())
}

/// Rows packed end to end behind a prefix.
pub(super) struct Batch {
    /// The tokens that are packed, the shared ones once.
    pub ids: Vec<u32>,
    /// Prefix and rows.
    pub layout: Layout,
    /// The packed tensor's rows whose next token has a label, in the rows' order.
    pub asked: Vec<u32>,
    /// Those labels.
    pub targets: Vec<u32>,
}

/// What becomes of tokens that all rows begin with.
#[derive(Clone, Copy, PartialEq)]
enum Beginnings {
    Shared,
    Apart,
}

impl Batch {
    /// Packs rows behind so many virtual tokens for a model; `longest` has the longest row of the batch they are part of.
    pub fn new(rows: &[&Row], model: &Decoder, virtual_tokens: usize, longest: usize) -> Self {
        let counts_padding = model.counts_padding(virtual_tokens);
        Self::pack(rows, virtual_tokens, longest, counts_padding, Beginnings::Shared)
    }

    /// Packs rows without a prompt, each whole: where numbers are dropped at random, what rows have in common is no
    /// longer the same in all of them.
    pub fn apart(rows: &[&Row], model: &Decoder, longest: usize) -> Self {
        Self::pack(rows, 0, longest, model.counts_padding(0), Beginnings::Apart)
    }

    fn pack(
        rows: &[&Row],
        virtual_tokens: usize,
        longest: usize,
        counts_padding: bool,
        beginnings: Beginnings,
    ) -> Self {
        let pads = |row: &Row| if counts_padding { row.pads_before(longest) } else { 0 };
        // No label depends on a row's last one, nor on what stands behind it.
        let used = |row: &Row| row.labels.iter().rposition(Option::is_some);
        let labelled: Vec<(&Row, &[u32])> =
            rows.iter().filter_map(|row| Some((*row, &row.ids[..used(row)?]))).collect();
        // Tokens that all rows begin with have the same states in all of them, if they have the same positions.
        let first_pads = labelled.first().map_or(0, |(row, _)| pads(row));
        let same_positions = labelled.iter().all(|(row, _)| pads(row) == first_pads);
        let shared = match beginnings {
            Beginnings::Shared if same_positions => common_prefix(labelled.iter().map(|(_, text)| *text)),
            _ => 0,
        };

        let mut ids = labelled.first().map_or(Vec::new(), |(_, text)| text[..shared].to_vec());
        let (mut asked, mut targets, mut packed) = (Vec::new(), Vec::new(), Vec::new());
        for (row, text) in labelled {
            let start = virtual_tokens + ids.len();
            for (i, label) in row.labels.iter().enumerate() {
                // A token is predicted from the one before it; a row's first from the prompt's last.
                let from = match (virtual_tokens + i).checked_sub(1) {
                    Some(before) if i > shared => Some(start + before - virtual_tokens - shared),
                    other => other,
                };
                if let (Some(label), Some(from)) = (label, from) {
                    asked.push(from as u32);
                    targets.push(*label);
                }
            }
            ids.extend_from_slice(&text[shared..]);
            packed.push(PackedRow { tokens: text.len() - shared, pads_before: pads(row) });
        }
        let shared = PackedRow { tokens: shared, pads_before: first_pads };
        let layout = Layout::behind(virtual_tokens, shared, &packed);
        Self { ids, layout, asked, targets }
    }

    /// Tokens that go through the model, virtual ones included.
    pub fn tokens(&self) -> usize {
        self.layout.tokens()
    }

    /// What the model is given: the prompt's rows and the tokens' embeddings.
    pub fn embed(&self, model: &Decoder, prompt: &[f32]) -> Result<Rows, ModelError> {
        model.embed_behind(prompt, &self.ids)
    }
}

/// How many ids all texts begin with; a single text shares nothing.
pub(super) fn common_prefix<'a>(mut texts: impl Iterator<Item = &'a [u32]>) -> usize {
    let Some(first) = texts.next() else { return 0 };
    let same = |text: &[u32]| first.iter().zip(text).take_while(|(a, b)| a == b).count();
    texts.map(same).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ids: &[u32], first_label: usize, pads: Pads) -> Row {
        let labels = ids.iter().enumerate().map(|(i, id)| (i >= first_label).then_some(*id));
        Row { ids: ids.to_vec(), labels: labels.collect(), pads }
    }

    #[test]
    fn only_what_a_label_depends_on_is_packed() {
        let rows = [row(&[5, 6, 7], 2, Pads::Before(4)), row(&[8, 9], 0, Pads::ToLongest)];
        let batch = Batch::pack(&rows.each_ref(), 2, 3, true, Beginnings::Shared);
        assert_eq!(batch.ids, [5, 6, 8]);
        assert_eq!(batch.asked, [3, 1, 4]);
        assert_eq!(batch.targets, [7, 8, 9]);
        assert_eq!(batch.layout.positions(), [0, 1, 6, 7, 3]);
        // Without a prompt nothing predicts a row's first token.
        let batch = Batch::pack(&rows.each_ref(), 0, 3, true, Beginnings::Shared);
        assert_eq!(batch.asked, [1, 2]);
        assert_eq!(batch.targets, [7, 9]);
    }

    #[test]
    fn what_all_rows_begin_with_is_packed_once() {
        let rows = [
            row(&[5, 6, 7, 1], 3, Pads::Before(1)),
            row(&[9, 9, 9], 5, Pads::Before(1)),
            row(&[5, 6, 8, 8, 2], 1, Pads::Before(1)),
        ];
        let batch = Batch::pack(&rows.each_ref(), 2, 5, true, Beginnings::Shared);
        assert_eq!(batch.ids, [5, 6, 7, 8, 8]);
        assert_eq!(batch.layout.prefix(), 4);
        assert_eq!(batch.layout.positions(), [0, 1, 3, 4, 5, 5, 6]);
        assert_eq!(batch.asked, [4, 2, 3, 5, 6]);
        assert_eq!(batch.targets, [1, 6, 8, 8, 2]);
    }

    #[test]
    fn rows_that_share_nothing_are_whole() {
        let rows = [row(&[5, 6, 7, 1], 3, Pads::Before(0)), row(&[5, 6, 8], 1, Pads::Before(0))];
        let batch = Batch::pack(&rows.each_ref(), 0, 4, true, Beginnings::Apart);
        assert_eq!(batch.ids, [5, 6, 7, 5, 6]);
        assert_eq!(batch.targets, [1, 6, 8]);
    }

    #[test]
    fn rows_at_other_positions_share_nothing_unless_the_model_does_not_count_padding() {
        let rows = [row(&[5, 6, 1], 2, Pads::ToLongest), row(&[5, 6, 6, 1], 3, Pads::ToLongest)];
        assert_eq!(Batch::pack(&rows.each_ref(), 1, 4, true, Beginnings::Shared).ids, [5, 6, 5, 6, 6]);
        assert_eq!(Batch::pack(&rows.each_ref(), 1, 4, false, Beginnings::Shared).ids, [5, 6, 6]);
    }

    #[test]
    fn a_row_needs_no_token_to_be_predicted_from_the_prompt() {
        let rows = [row(&[7], 0, Pads::Before(0))];
        let batch = Batch::pack(&rows.each_ref(), 3, 1, true, Beginnings::Shared);
        assert_eq!((batch.ids.len(), &batch.asked[..], &batch.targets[..]), (0, &[2][..], &[7][..]));
    }
}
