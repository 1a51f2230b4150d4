//! A decoder whose weights lie somewhere, as scoring and generation use it: the seam between them and the device.
//!
//! Knows what is computed, not where; the processor's form of it is here.

use super::cache::KvCache;
use super::layout::Layout;
use super::ops::cross_entropy::{Judged, judge};
use super::ops::softmax::argmax;
use super::{Decoder, ModelError, Rows};

/// A decoder on a device.
pub trait Compute {
    /// Keys and values of tokens that went through it.
    type Cache;
    /// Final states `[asked, hidden]`.
    type States;

    /// What it is made of, as it lies in the processor's memory.
    fn decoder(&self) -> &Decoder;

    /// An empty cache.
    fn cache(&self) -> Self::Cache;

    /// Forgets the rows and keeps the prefix: the next batch has so many rows, none of them longer than `longest`.
    ///
    /// # Errors
    /// A device that fails.
    fn restart(&self, cache: &mut Self::Cache, rows: usize, longest: usize) -> Result<(), ModelError>;

    /// The final states of a packed batch of a prompt's rows (`[n, hidden]` end to end) and tokens behind them, for the
    /// rows of the batch that are asked for. With a cache the keys of earlier tokens come from it and those of this
    /// batch are added.
    ///
    /// # Errors
    /// An id outside the vocabulary, a position beyond the model's, or a device that fails.
    fn forward(
        &self,
        prompt: &[f32],
        ids: &[u32],
        layout: &Layout,
        asked: &[u32],
        cache: Option<&mut Self::Cache>,
    ) -> Result<Self::States, ModelError>;

    /// Judges one target for each of some rows of states: all those named in the first part, then in the second.
    ///
    /// # Errors
    /// A device that fails.
    fn judge(&self, parts: &[(&Self::States, &[u32])], targets: &[u32]) -> Result<Vec<Judged>, ModelError>;

    /// The logits `[asked, vocabulary]`.
    ///
    /// # Errors
    /// A device that fails.
    fn logits(&self, states: &Self::States) -> Result<Rows, ModelError>;

    /// The token with the largest logit for each state; the first of equals.
    ///
    /// # Errors
    /// A device that fails.
    fn likeliest(&self, states: &Self::States) -> Result<Vec<u32>, ModelError>;
}

impl Compute for Decoder {
    type Cache = KvCache;
    type States = Rows;

    fn decoder(&self) -> &Decoder {
        self
    }

    fn cache(&self) -> KvCache {
        KvCache::new(self.shape().layers, 0)
    }

    fn restart(&self, cache: &mut KvCache, rows: usize, _: usize) -> Result<(), ModelError> {
        cache.restart(rows);
        Ok(())
    }

    fn forward(
        &self,
        prompt: &[f32],
        ids: &[u32],
        layout: &Layout,
        asked: &[u32],
        cache: Option<&mut KvCache>,
    ) -> Result<Rows, ModelError> {
        Decoder::forward(self, self.embed_behind(prompt, ids)?, layout, asked, cache)
    }

    fn judge(&self, parts: &[(&Rows, &[u32])], targets: &[u32]) -> Result<Vec<Judged>, ModelError> {
        let hidden = self.shape().hidden;
        let mut states = self.pool().rows(parts.iter().map(|(_, rows)| rows.len()).sum(), hidden);
        let rows = parts.iter().flat_map(|(states, rows)| rows.iter().map(|&row| states.row(row as usize)));
        states.chunks_exact_mut(hidden).zip(rows).for_each(|(into, row)| into.copy_from_slice(row));
        Ok(judge(self.head(), &states, targets))
    }

    fn logits(&self, states: &Rows) -> Result<Rows, ModelError> {
        Ok(Decoder::logits(self, states))
    }

    fn likeliest(&self, states: &Rows) -> Result<Vec<u32>, ModelError> {
        let logits = Decoder::logits(self, states);
        Ok(logits.chunks_exact(logits.width().max(1)).map(|logits| argmax(logits).0 as u32).collect())
    }
}
