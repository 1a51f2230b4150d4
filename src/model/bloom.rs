//! BLOOM: ALiBi, a norm behind the embedding, queries, keys and values interleaved by head, tied head.

use std::sync::Arc;

use candle_core::Tensor;

use super::cache::KvCache;
use super::decoder::{Decoder, DecoderShape, lookup, select};
use super::layout::Layout;
use super::ops::activation::gelu_tanh;
use super::ops::attention::{Attention, Heads, alibi_slopes};
use super::ops::linear::Linear;
use super::ops::norm::Norm;
use super::{ModelError, Weights};

struct Bloom {
    shape: DecoderShape,
    parameters: usize,
    embeddings: Tensor,
    embedding_norm: Norm,
    layers: Vec<Layer>,
    final_norm: Norm,
    head: Linear,
    attention: Arc<Attention>,
    /// Whether a block's residual is what its norm gave instead of what its norm was given.
    residual_after_norm: bool,
}

struct Layer {
    input_norm: Norm,
    query_key_value: Linear,
    dense: Linear,
    post_attention_norm: Norm,
    up: Linear,
    down: Linear,
}

/// Builds it from a folder's weights.
pub(super) fn load(weights: &Weights) -> Result<Box<dyn Decoder>, ModelError> {
    let config = weights.config();
    let hidden = config.count(&["hidden_size", "n_embed"])?;
    let heads = config.count(&["n_head", "num_attention_heads"])?;
    let layers = config.count(&["n_layer", "num_hidden_layers"])?;
    let vocabulary = config.count(&["vocab_size"])?;
    let eps = config.number_or("layer_norm_epsilon", 1e-5)?;
    if !hidden.is_multiple_of(heads) {
        return Err(config.wrong(format!("hidden size {hidden} is not a multiple of {heads} heads")));
    }
    let norm = |name: &str| -> Result<Norm, ModelError> {
        let weight = weights.tensor(&format!("transformer.{name}.weight"), &[hidden])?;
        let bias = weights.tensor(&format!("transformer.{name}.bias"), &[hidden])?;
        Ok(Norm::layer(&weight, &bias, eps)?)
    };
    let linear = |name: &str, inputs: usize, outputs: usize| -> Result<Linear, ModelError> {
        let weight = weights.tensor(&format!("transformer.{name}.weight"), &[outputs, inputs])?;
        let bias = weights.tensor(&format!("transformer.{name}.bias"), &[outputs])?;
        Ok(Linear::new(weight, Some(bias))?)
    };
    let embeddings = weights.tensor("transformer.word_embeddings.weight", &[vocabulary, hidden])?;
    let tied = config.flag_or("tie_word_embeddings", true)?;
    let head =
        if tied { embeddings.clone() } else { weights.tensor("lm_head.weight", &[vocabulary, hidden])? };
    let layer = |i: usize| -> Result<Layer, ModelError> {
        Ok(Layer {
            input_norm: norm(&format!("h.{i}.input_layernorm"))?,
            query_key_value: linear(&format!("h.{i}.self_attention.query_key_value"), hidden, 3 * hidden)?,
            dense: linear(&format!("h.{i}.self_attention.dense"), hidden, hidden)?,
            post_attention_norm: norm(&format!("h.{i}.post_attention_layernorm"))?,
            up: linear(&format!("h.{i}.mlp.dense_h_to_4h"), hidden, 4 * hidden)?,
            down: linear(&format!("h.{i}.mlp.dense_4h_to_h"), 4 * hidden, hidden)?,
        })
    };
    let dim = hidden / heads;
    Ok(Box::new(Bloom {
        shape: DecoderShape { hidden, layers, heads, kv_heads: heads, vocabulary, max_positions: None },
        embedding_norm: norm("word_embeddings_layernorm")?,
        layers: (0..layers).map(layer).collect::<Result<_, _>>()?,
        final_norm: norm("ln_f")?,
        head: Linear::new(head, None)?,
        attention: Arc::new(Attention {
            heads: Heads::interleaved(heads, dim),
            scale: 1.0 / (dim as f32).sqrt(),
            slopes: Some(alibi_slopes(heads)),
        }),
        residual_after_norm: config.flag_or("apply_residual_connection_post_layernorm", false)?,
        embeddings,
        parameters: weights.parameters(),
    }))
}

impl Decoder for Bloom {
    fn shape(&self) -> &DecoderShape {
        &self.shape
    }

    fn parameters(&self) -> usize {
        self.parameters
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor, ModelError> {
        lookup(&self.embeddings, ids)
    }

    fn forward(
        &self,
        x: &Tensor,
        layout: &Arc<Layout>,
        mut cache: Option<&mut KvCache>,
        keep: Option<&[u32]>,
    ) -> Result<Tensor, ModelError> {
        let mut x = self.embedding_norm.forward(x)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let normed = layer.input_norm.forward(&x)?;
            let qkv = layer.query_key_value.forward(&normed)?;
            let mixed = match cache.as_deref_mut() {
                None => self.attention.forward(&qkv, layout)?,
                Some(cache) => self.attention.forward_cached(&qkv, layout, cache.layer(i))?,
            };
            // What follows works on each token alone, so the last layer needs only the tokens asked for.
            let keep = keep.filter(|_| i + 1 == self.layers.len());
            let residual = select(if self.residual_after_norm { &normed } else { &x }, keep)?;
            let attended = (layer.dense.forward(&select(&mixed, keep)?)? + residual)?;
            let normed = layer.post_attention_norm.forward(&attended)?;
            let expanded = gelu_tanh(&layer.up.forward(&normed)?)?;
            let residual = if self.residual_after_norm { normed } else { attended };
            x = (layer.down.forward(&expanded)? + residual)?;
        }
        Ok(self.final_norm.forward(&x)?)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.head.forward(hidden)?)
    }
}
