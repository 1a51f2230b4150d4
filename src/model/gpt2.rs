//! GPT-2: learned positions, weights stored `[in, out]`, tied head.

use std::sync::Arc;

use candle_core::Tensor;

use super::cache::KvCache;
use super::decoder::{Decoder, DecoderShape, lookup, select};
use super::layout::Layout;
use super::ops::activation::gelu_tanh;
use super::ops::attention::{Attention, Heads};
use super::ops::linear::Linear;
use super::ops::norm::Norm;
use super::{ModelError, Weights};

struct Gpt2 {
    shape: DecoderShape,
    parameters: usize,
    embeddings: Tensor,
    positions: Tensor,
    layers: Vec<Layer>,
    final_norm: Norm,
    head: Linear,
}

struct Layer {
    attention_norm: Norm,
    query_key_value: Linear,
    attention: Arc<Attention>,
    projection: Linear,
    mlp_norm: Norm,
    up: Linear,
    down: Linear,
}

/// Builds it from a folder's weights.
pub(super) fn load(weights: &Weights) -> Result<Box<dyn Decoder>, ModelError> {
    let config = weights.config();
    let hidden = config.count(&["n_embd", "hidden_size"])?;
    let heads = config.count(&["n_head", "num_attention_heads"])?;
    let layers = config.count(&["n_layer", "num_hidden_layers"])?;
    let available = config.count(&["n_positions", "max_position_embeddings"])?;
    let vocabulary = config.count(&["vocab_size"])?;
    let inner = config.maybe_count(&["n_inner"])?.unwrap_or(4 * hidden);
    let eps = config.number_or("layer_norm_epsilon", 1e-5)?;
    let scaled = config.flag_or("scale_attn_weights", true)?;
    let scaled_by_layer = config.flag_or("scale_attn_by_inverse_layer_idx", false)?;
    let activation = config.text("activation_function").unwrap_or("gelu_new");
    if !["gelu_new", "gelu_pytorch_tanh"].contains(&activation) {
        return Err(config.wrong(format!("activation `{activation}` is not known; known is gelu_new")));
    }
    if !hidden.is_multiple_of(heads) {
        return Err(config.wrong(format!("hidden size {hidden} is not a multiple of {heads} heads")));
    }
    let norm = |name: &str| -> Result<Norm, ModelError> {
        let weight = weights.tensor(&format!("transformer.{name}.weight"), &[hidden])?;
        let bias = weights.tensor(&format!("transformer.{name}.bias"), &[hidden])?;
        Ok(Norm::layer(&weight, &bias, eps)?)
    };
    let linear = |name: &str, inputs: usize, outputs: usize| -> Result<Linear, ModelError> {
        let weight = weights.tensor(&format!("transformer.{name}.weight"), &[inputs, outputs])?;
        let bias = weights.tensor(&format!("transformer.{name}.bias"), &[outputs])?;
        Ok(Linear::from_conv1d(weight, Some(bias))?)
    };
    let embeddings = weights.tensor("transformer.wte.weight", &[vocabulary, hidden])?;
    let positions = weights.tensor("transformer.wpe.weight", &[available, hidden])?;
    let tied = config.flag_or("tie_word_embeddings", true)?;
    let head =
        if tied { embeddings.clone() } else { weights.tensor("lm_head.weight", &[vocabulary, hidden])? };
    let dim = hidden / heads;
    let layer = |i: usize| -> Result<Layer, ModelError> {
        let mut scale = if scaled { 1.0 / (dim as f32).sqrt() } else { 1.0 };
        if scaled_by_layer {
            scale /= (i + 1) as f32;
        }
        Ok(Layer {
            attention_norm: norm(&format!("h.{i}.ln_1"))?,
            query_key_value: linear(&format!("h.{i}.attn.c_attn"), hidden, 3 * hidden)?,
            attention: Arc::new(Attention { heads: Heads::stacked(heads, heads, dim), scale, slopes: None }),
            projection: linear(&format!("h.{i}.attn.c_proj"), hidden, hidden)?,
            mlp_norm: norm(&format!("h.{i}.ln_2"))?,
            up: linear(&format!("h.{i}.mlp.c_fc"), hidden, inner)?,
            down: linear(&format!("h.{i}.mlp.c_proj"), inner, hidden)?,
        })
    };
    Ok(Box::new(Gpt2 {
        shape: DecoderShape {
            hidden,
            layers,
            heads,
            kv_heads: heads,
            vocabulary,
            max_positions: Some(available),
        },
        layers: (0..layers).map(layer).collect::<Result<_, _>>()?,
        final_norm: norm("ln_f")?,
        head: Linear::new(head, None)?,
        embeddings,
        positions,
        parameters: weights.parameters(),
    }))
}

impl Decoder for Gpt2 {
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
        let available = self.positions.dim(0)?;
        if let Some(&position) = layout.positions().iter().max().filter(|&&p| p as usize >= available) {
            return Err(ModelError::Positions { position, available });
        }
        let mut x = (x + select(&self.positions, Some(layout.positions()))?)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let qkv = layer.query_key_value.forward(&layer.attention_norm.forward(&x)?)?;
            let mixed = match cache.as_deref_mut() {
                None => layer.attention.forward(&qkv, layout)?,
                Some(cache) => layer.attention.forward_cached(&qkv, layout, cache.layer(i))?,
            };
            // What follows works on each token alone, so the last layer needs only the tokens asked for.
            let keep = keep.filter(|_| i + 1 == self.layers.len());
            let attended = (layer.projection.forward(&select(&mixed, keep)?)? + select(&x, keep)?)?;
            let expanded = gelu_tanh(&layer.up.forward(&layer.mlp_norm.forward(&attended)?)?)?;
            x = (layer.down.forward(&expanded)? + attended)?;
        }
        Ok(self.final_norm.forward(&x)?)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.head.forward(hidden)?)
    }
}
