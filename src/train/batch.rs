//! Tokenised rows, and how they are packed for the model: no padding, only the positions that have a label.

use std::sync::Arc;

use candle_core::Tensor;

use super::TrainError;
use crate::model::layout::{Layout, PackedRow};
use crate::model::{Decoder, ModelError};

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
    /// As many as the longest row of its batch is longer.
    ToLongest,
}

impl Row {
    /// How many padding tokens stand before it in a batch whose longest row has so many tokens.
    fn pads_before(&self, longest: usize) -> usize {
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
    ids: Vec<u32>,
    layout: Arc<Layout>,
    /// The packed tensor's rows whose next token has a label, in the rows' order.
    pub keep: Vec<u32>,
    /// Those labels.
    pub targets: Vec<u32>,
    /// Which of the batch's rows each of them belongs to.
    pub owners: Vec<usize>,
}

impl Batch {
    /// Packs rows behind `prefix` virtual tokens; `longest` has the longest row of the batch they are part of.
    pub fn new<'a>(rows: impl Iterator<Item = &'a Row>, prefix: usize, longest: usize) -> Self {
        let (mut ids, mut packed) = (Vec::new(), Vec::new());
        let (mut keep, mut targets, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        for (owner, row) in rows.enumerate() {
            let start = prefix + ids.len();
            for (i, label) in row.labels.iter().enumerate() {
                // A token is predicted from the one before it; a row's first from the prompt's last.
                let from = if i > 0 { Some(start + i - 1) } else { prefix.checked_sub(1) };
                if let (Some(label), Some(from)) = (label, from) {
                    keep.push(from as u32);
                    targets.push(*label);
                    owners.push(owner);
                }
            }
            ids.extend_from_slice(&row.ids);
            packed.push(PackedRow { tokens: row.ids.len(), pads_before: row.pads_before(longest) });
        }
        Self { ids, layout: Arc::new(Layout::packed(prefix, &packed)), keep, targets, owners }
    }

    /// Tokens that go through the model, virtual ones included.
    pub fn tokens(&self) -> usize {
        self.layout.tokens()
    }

    /// The final states of the kept positions.
    pub fn states(&self, model: &dyn Decoder, prompt: Option<&Tensor>) -> Result<Tensor, ModelError> {
        let x = match (prompt, self.ids.is_empty()) {
            (Some(prompt), true) => prompt.clone(),
            (Some(prompt), false) => Tensor::cat(&[prompt, &model.embed(&self.ids)?], 0)?,
            (None, _) => model.embed(&self.ids)?,
        };
        model.forward(&x, &self.layout, None, Some(&self.keep))
    }
}

/// The number of virtual tokens of a prompt that fits the model.
pub(super) fn prefix(model: &dyn Decoder, prompt: Option<&Tensor>) -> Result<usize, ModelError> {
    let hidden = model.shape().hidden;
    match prompt {
        None => Ok(0),
        Some(prompt) => match prompt.dims() {
            [n, width] if *width == hidden => Ok(*n),
            found => Err(ModelError::PromptShape { found: found.to_vec(), hidden }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_positions_whose_next_token_has_a_label_are_kept() {
        let rows = [
            Row { ids: vec![5, 6, 7], labels: vec![None, None, Some(7)], pads: Pads::Before(4) },
            Row { ids: vec![8, 9], labels: vec![Some(8), Some(9)], pads: Pads::ToLongest },
        ];
        let batch = Batch::new(rows.iter(), 2, 3);
        assert_eq!(batch.keep, [3, 1, 5]);
        assert_eq!(batch.targets, [7, 8, 9]);
        assert_eq!(batch.owners, [0, 1, 1]);
        assert_eq!(batch.tokens(), 7);
        let batch = Batch::new(rows.iter(), 0, 3);
        assert_eq!((batch.keep, batch.targets), (vec![1, 3], vec![7, 9]));
        assert_eq!((rows[1].kept(2), rows[1].kept(0)), (2, 1));
    }
}
