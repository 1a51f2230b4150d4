//! Llama: grouped query heads, rotary positions, RMS norms, SwiGLU; tied or untied head.

use std::sync::Arc;

use candle_core::Tensor;

use super::cache::KvCache;
use super::config::Config;
use super::decoder::{Decoder, DecoderShape, lookup, select};
use super::layout::Layout;
use super::ops::activation::swiglu;
use super::ops::attention::{Attention, Heads};
use super::ops::linear::Linear;
use super::ops::norm::Norm;
use super::ops::rotary::Rotation;
use super::{ModelError, Weights};

struct Llama {
    shape: DecoderShape,
    parameters: usize,
    embeddings: Tensor,
    layers: Vec<Layer>,
    final_norm: Norm,
    head: Linear,
    attention: Arc<Attention>,
    frequencies: Vec<f32>,
}

struct Layer {
    attention_norm: Norm,
    query_key_value: Linear,
    output: Linear,
    mlp_norm: Norm,
    gate_up: Linear,
    down: Linear,
}

/// Builds it from a folder's weights or a GGUF file's.
pub(super) fn load(weights: &Weights) -> Result<Box<dyn Decoder>, ModelError> {
    let config = weights.config();
    let hidden = config.count(&["hidden_size"])?;
    let heads = config.count(&["num_attention_heads"])?;
    let kv_heads = config.maybe_count(&["num_key_value_heads"])?.unwrap_or(heads);
    let dim = config.maybe_count(&["head_dim"])?.unwrap_or(hidden / heads);
    let layers = config.count(&["num_hidden_layers"])?;
    let inner = config.count(&["intermediate_size"])?;
    let vocabulary = config.count(&["vocab_size"])?;
    let eps = config.number_or("rms_norm_eps", 1e-6)?;
    let attention_bias = config.flag_or("attention_bias", false)?;
    let mlp_bias = config.flag_or("mlp_bias", false)?;
    let activation = config.text("hidden_act").unwrap_or("silu");
    if !["silu", "swish"].contains(&activation) {
        return Err(config.wrong(format!("activation `{activation}` is not known; known is silu")));
    }
    if !heads.is_multiple_of(kv_heads) {
        return Err(
            config.wrong(format!("{heads} heads are not a multiple of {kv_heads} key and value heads"))
        );
    }
    if dim % 2 != 0 {
        return Err(config.wrong(format!("rotary positions need an even head size, it is {dim}")));
    }
    let norm = |name: &str| -> Result<Norm, ModelError> {
        Ok(Norm::rms(&weights.tensor(&format!("model.{name}.weight"), &[hidden])?, eps)?)
    };
    // Several maps of one input, as one: a single product instead of two or three.
    let stacked = |names: &[(String, usize)], inputs: usize, biased: bool| -> Result<Linear, ModelError> {
        let (mut rows, mut biases) = (Vec::new(), Vec::new());
        for (name, outputs) in names {
            rows.push(weights.tensor(&format!("model.{name}.weight"), &[*outputs, inputs])?);
            if biased {
                biases.push(weights.tensor(&format!("model.{name}.bias"), &[*outputs])?);
            }
        }
        let bias = if biased { Some(Tensor::cat(&biases, 0)?) } else { None };
        Ok(Linear::new(Tensor::cat(&rows, 0)?, bias)?)
    };
    let embeddings = weights.tensor("model.embed_tokens.weight", &[vocabulary, hidden])?;
    let tied = config.flag_or("tie_word_embeddings", false)?;
    let head =
        if tied { embeddings.clone() } else { weights.tensor("lm_head.weight", &[vocabulary, hidden])? };
    let layer = |i: usize| -> Result<Layer, ModelError> {
        let attention = |part: &str, width: usize| (format!("layers.{i}.self_attn.{part}_proj"), width);
        let mlp = |part: &str, width: usize| (format!("layers.{i}.mlp.{part}_proj"), width);
        let query_key_value =
            [attention("q", heads * dim), attention("k", kv_heads * dim), attention("v", kv_heads * dim)];
        Ok(Layer {
            attention_norm: norm(&format!("layers.{i}.input_layernorm"))?,
            query_key_value: stacked(&query_key_value, hidden, attention_bias)?,
            output: stacked(&[attention("o", hidden)], heads * dim, attention_bias)?,
            mlp_norm: norm(&format!("layers.{i}.post_attention_layernorm"))?,
            gate_up: stacked(&[mlp("gate", inner), mlp("up", inner)], hidden, mlp_bias)?,
            down: stacked(&[mlp("down", hidden)], inner, mlp_bias)?,
        })
    };
    Ok(Box::new(Llama {
        shape: DecoderShape {
            hidden,
            layers,
            heads,
            kv_heads,
            vocabulary,
            max_positions: config.maybe_count(&["max_position_embeddings"])?,
        },
        layers: (0..layers).map(layer).collect::<Result<_, _>>()?,
        final_norm: norm("norm")?,
        head: Linear::new(head, None)?,
        attention: Arc::new(Attention {
            heads: Heads::stacked(heads, kv_heads, dim),
            scale: 1.0 / (dim as f32).sqrt(),
            slopes: None,
        }),
        frequencies: frequencies(config, dim)?,
        embeddings,
        parameters: weights.parameters(),
    }))
}

/// The rotary frequencies; configurations of transformers 5 keep them under `rope_parameters`.
fn frequencies(config: &Config, dim: usize) -> Result<Vec<f32>, ModelError> {
    let scaling = config.section("rope_parameters").or_else(|| config.section("rope_scaling"));
    let theta = config.number_or("rope_theta", 10_000.0)?;
    let theta = scaling.as_ref().map_or(Ok(theta), |s| s.number_or("rope_theta", theta))? as f32;
    let plain = (0..dim).step_by(2).map(|i| 1.0 / theta.powf(i as f32 / dim as f32));
    let Some(scaling) = scaling else { return Ok(plain.collect()) };
    match scaling.text("rope_type").or_else(|| scaling.text("type")).unwrap_or("default") {
        "default" => Ok(plain.collect()),
        "linear" => {
            let factor = number(&scaling, "factor")?;
            Ok(plain.map(|f| f / factor).collect())
        }
        "llama3" => {
            let (factor, original) =
                (number(&scaling, "factor")?, number(&scaling, "original_max_position_embeddings")?);
            let (low, high) = (number(&scaling, "low_freq_factor")?, number(&scaling, "high_freq_factor")?);
            // Long waves are stretched by the factor, short ones stay, those between are a mixture.
            let stretch = |f: f32| {
                let waves = original * f / (2.0 * std::f32::consts::PI);
                let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - kept) * f / factor + kept * f
            };
            Ok(plain.map(stretch).collect())
        }
        other => {
            Err(config
                .wrong(format!("rope scaling `{other}` is not known; known are default, linear, llama3")))
        }
    }
}

fn number(config: &Config, key: &str) -> Result<f32, ModelError> {
    match config.get(key) {
        None => Err(config.lacks(key)),
        Some(_) => Ok(config.number_or(key, 0.0)? as f32),
    }
}

impl Decoder for Llama {
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
        let rotation = Rotation::new(layout.positions(), &self.frequencies, self.attention.heads);
        let mut x = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            let qkv = layer.query_key_value.forward(&layer.attention_norm.forward(&x)?)?;
            let qkv = rotation.forward(&qkv)?;
            let mixed = match cache.as_deref_mut() {
                None => self.attention.forward(&qkv, layout)?,
                Some(cache) => self.attention.forward_cached(&qkv, layout, cache.layer(i))?,
            };
            // What follows works on each token alone, so the last layer needs only the tokens asked for.
            let keep = keep.filter(|_| i + 1 == self.layers.len());
            let attended = (layer.output.forward(&select(&mixed, keep)?)? + select(&x, keep)?)?;
            let gated = swiglu(&layer.gate_up.forward(&layer.mlp_norm.forward(&attended)?)?)?;
            x = (layer.down.forward(&gated)? + attended)?;
        }
        Ok(self.final_norm.forward(&x)?)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.head.forward(hidden)?)
    }
}
