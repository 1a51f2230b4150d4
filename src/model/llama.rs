//! Llama: grouped query heads, rotary positions, RMS norms, SwiGLU; tied or untied head.

use super::block::{Block, Rates, Residual};
use super::config::Config;
use super::decoder::{Decoder, DecoderShape, Positions};
use super::ops::activation::Activation;
use super::ops::attention::{Attention, KeyValue};
use super::ops::gradients::Vector;
use super::ops::linear::Linear;
use super::ops::matmul::{Precision, Weight};
use super::ops::norm::Norm;
use super::{ModelError, Weights};

/// Builds it from a folder's weights or a GGUF file's.
pub(super) fn load(weights: &Weights, precision: Precision) -> Result<Decoder, ModelError> {
    let config = weights.config();
    let hidden = config.count(&["hidden_size"])?;
    let heads = config.count(&["num_attention_heads"])?;
    let kv_heads = config.maybe_count(&["num_key_value_heads"])?.unwrap_or(heads);
    let dim = config.maybe_count(&["head_dim"])?.unwrap_or(hidden / heads);
    let layers = config.count(&["num_hidden_layers"])?;
    let inner = config.count(&["intermediate_size"])?;
    let vocabulary = config.count(&["vocab_size"])?;
    let eps = config.number_or("rms_norm_eps", 1e-6)?;
    let attention_dropout = config.share_or("attention_dropout", 0.0)?;
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
        Ok(Norm::rms(weights.vector(&format!("model.{name}.weight"), hidden)?, eps))
    };
    // Several maps of one input, as one: a single product instead of two.
    let stacked = |names: &[(String, usize)], inputs: usize, biased: bool| -> Result<Linear, ModelError> {
        let (mut parts, mut biases) = (Vec::new(), Vec::new());
        for (name, outputs) in names {
            let weight = weights.tensor(&format!("model.{name}.weight"), &[*outputs, inputs])?;
            parts.push(Weight::from_outputs_by_inputs(weight, *outputs, inputs));
            if biased {
                biases.push(weights.vector(&format!("model.{name}.bias"), *outputs)?);
            }
        }
        Ok(Linear::new(Weight::stacked(parts), biased.then(|| Vector::joined(biases)), precision))
    };
    let block = |i: usize| -> Result<Block, ModelError> {
        let attention = |part: &str, width: usize| (format!("layers.{i}.self_attn.{part}_proj"), width);
        let mlp = |part: &str, width: usize| (format!("layers.{i}.mlp.{part}_proj"), width);
        let key_value = [attention("k", kv_heads * dim), attention("v", kv_heads * dim)];
        Ok(Block {
            attention_norm: norm(&format!("layers.{i}.input_layernorm"))?,
            query: stacked(&[attention("q", heads * dim)], hidden, attention_bias)?,
            key_value: stacked(&key_value, hidden, attention_bias)?,
            attention: Attention {
                heads,
                keys: KeyValue::stacked(kv_heads, dim),
                scale: 1.0 / (dim as f32).sqrt(),
                slopes: None,
                dropout: None,
                precision,
            },
            output: stacked(&[attention("o", hidden)], heads * dim, attention_bias)?,
            mlp_norm: norm(&format!("layers.{i}.post_attention_layernorm"))?,
            up: stacked(&[mlp("gate", inner), mlp("up", inner)], hidden, mlp_bias)?,
            activation: Activation::SwiGlu,
            down: stacked(&[mlp("down", hidden)], inner, mlp_bias)?,
            residual: Residual::Stream,
            dropout: Rates { layer: i, attention: attention_dropout, halves: 0.0 },
        })
    };
    let embeddings = weights.tensor("model.embed_tokens.weight", &[vocabulary, hidden])?;
    let embeddings = Weight::from_outputs_by_inputs(embeddings, vocabulary, hidden);
    // A tied head is a view of its own: rounded, it lets go of what the embeddings hardly touch.
    let tied = config.flag_or("tie_word_embeddings", false)?;
    let head = if tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
    let head =
        Weight::from_outputs_by_inputs(weights.tensor(head, &[vocabulary, hidden])?, vocabulary, hidden);
    // transformers gives this padding_idx to its embedding; one below 0 counts from the end.
    let padding = config.get("pad_token_id").and_then(|id| id.as_i64());
    let padding = padding.map(|id| if id < 0 { id + vocabulary as i64 } else { id });
    let padding = padding.and_then(|id| u32::try_from(id).ok());
    let max_positions = config.maybe_count(&["max_position_embeddings"])?;
    Ok(Decoder {
        shape: DecoderShape { hidden, layers, heads, kv_heads, vocabulary, max_positions },
        embeddings,
        padding,
        embedding_dropout: 0.0,
        embedding_norm: None,
        positions: Positions::Rotary(frequencies(config, dim)?),
        blocks: (0..layers).map(block).collect::<Result<_, _>>()?,
        final_norm: norm("norm")?,
        head: Linear::head(head, precision),
        parameters: weights.parameters(),
        pool: Default::default(),
    })
}

/// The rotary frequencies; configurations of transformers 5 keep them under `rope_parameters`.
fn frequencies(config: &Config, dim: usize) -> Result<Vec<f32>, ModelError> {
    let scaling = config.section("rope_parameters").or_else(|| config.section("rope_scaling"));
    let theta = config.number_or("rope_theta", 10_000.0)?;
    let theta = scaling.as_ref().map_or(Ok(theta), |s| s.number_or("rope_theta", theta))? as f32;
    if theta.is_nan() || theta <= 0.0 {
        return Err(config.wrong(format!("`rope_theta` is {theta}, a number above 0 is needed")));
    }
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
