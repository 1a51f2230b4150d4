//! What every decoder-only language model can do.

use std::sync::Arc;

use candle_core::Tensor;

use super::ModelError;
use super::cache::KvCache;
use super::layout::Layout;

/// The sizes of a decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecoderShape {
    /// Width of a token's state.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Number of embedding rows.
    pub vocabulary: usize,
    /// Positions the model was made for; `None` where it has no limit of its own.
    pub max_positions: Option<usize>,
}

/// A decoder with frozen weights.
pub trait Decoder: Send + Sync {
    /// Its sizes.
    fn shape(&self) -> &DecoderShape;

    /// Number of weights, a tied head counted once.
    fn parameters(&self) -> usize;

    /// The word embeddings `[ids, hidden]` as they stand in the table: what a soft prompt takes the place of.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    fn embed(&self, ids: &[u32]) -> Result<Tensor, ModelError>;

    /// The final states of a packed batch of embeddings `x` `[tokens, hidden]`.
    ///
    /// With `keep`, only of these rows of `x`, in this order (a row may occur several times): what nobody asks
    /// for is not computed where that is possible. With a cache the keys of earlier tokens come from it and
    /// those of this batch are added; nothing can be differentiated then.
    ///
    /// # Errors
    /// A position beyond the model's; a failed tensor operation.
    fn forward(
        &self,
        x: &Tensor,
        layout: &Arc<Layout>,
        cache: Option<&mut KvCache>,
        keep: Option<&[u32]>,
    ) -> Result<Tensor, ModelError>;

    /// The logits `[rows, vocabulary]` of final states `[rows, hidden]`.
    ///
    /// # Errors
    /// A failed tensor operation.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor, ModelError>;
}

/// The rows of `x` that are asked for; all of them without `keep`.
pub(super) fn select(x: &Tensor, keep: Option<&[u32]>) -> candle_core::Result<Tensor> {
    match keep {
        None => Ok(x.clone()),
        Some(rows) => x.index_select(&Tensor::new(rows, x.device())?, 0),
    }
}

/// The rows of an embedding table at `ids`.
pub(super) fn lookup(table: &Tensor, ids: &[u32]) -> Result<Tensor, ModelError> {
    let vocabulary = table.dim(0)?;
    match ids.iter().find(|&&id| id as usize >= vocabulary) {
        Some(&id) => Err(ModelError::Vocabulary { id, vocabulary }),
        None => Ok(select(table, Some(ids))?),
    }
}
