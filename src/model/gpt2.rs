//! GPT-2: learned positions, weights stored `[in, out]`, tied head.

use super::block::{Block, Rates, Residual};
use super::decoder::{Decoder, DecoderShape, Positions};
use super::ops::activation::Activation;
use super::ops::attention::{Attention, KeyValue};
use super::ops::gradients::Vector;
use super::ops::linear::Linear;
use super::ops::matmul::{Precision, Weight};
use super::ops::norm::Norm;
use super::{ModelError, Weights};

/// Builds it from a folder's weights.
pub(super) fn load(weights: &Weights, precision: Precision) -> Result<Decoder, ModelError> {
    let config = weights.config();
    let hidden = config.count(&["n_embd", "hidden_size"])?;
    let heads = config.count(&["n_head", "num_attention_heads"])?;
    let layers = config.count(&["n_layer", "num_hidden_layers"])?;
    let available = config.count(&["n_positions", "max_position_embeddings"])?;
    let vocabulary = config.count(&["vocab_size"])?;
    let inner = config.maybe_count(&["n_inner"])?.unwrap_or(4 * hidden);
    let eps = config.number_or("layer_norm_epsilon", 1e-5)?;
    let embedding_dropout = config.share_or("embd_pdrop", 0.1)?;
    let attention_dropout = config.share_or("attn_pdrop", 0.1)?;
    let residual_dropout = config.share_or("resid_pdrop", 0.1)?;
    let scaled = config.flag_or("scale_attn_weights", true)?;
    let scaled_by_layer = config.flag_or("scale_attn_by_inverse_layer_idx", false)?;
    let activation = config.text("activation_function").unwrap_or("gelu_new");
    if !["gelu_new", "gelu_pytorch_tanh"].contains(&activation) {
        return Err(config.wrong(format!("activation `{activation}` is not known; known is gelu_new")));
    }
    if !hidden.is_multiple_of(heads) {
        return Err(config.wrong(format!("hidden size {hidden} is not a multiple of {heads} heads")));
    }
    let dim = hidden / heads;
    let norm = |name: &str| -> Result<Norm, ModelError> {
        let weight = weights.vector(&format!("transformer.{name}.weight"), hidden)?;
        let bias = weights.vector(&format!("transformer.{name}.bias"), hidden)?;
        Ok(Norm::layer(weight, bias, eps))
    };
    let parts = |name: &str, inputs: usize, outputs: usize| -> Result<(Weight, Vector), ModelError> {
        let weight = weights.tensor(&format!("transformer.{name}.weight"), &[inputs, outputs])?;
        let bias = weights.vector(&format!("transformer.{name}.bias"), outputs)?;
        Ok((Weight::from_inputs_by_outputs(weight, inputs, outputs), bias))
    };
    let linear = |name: &str, inputs: usize, outputs: usize| -> Result<Linear, ModelError> {
        let (weight, bias) = parts(name, inputs, outputs)?;
        Ok(Linear::new(weight, Some(bias), precision))
    };
    let block = |i: usize| -> Result<Block, ModelError> {
        let mut scale = if scaled { 1.0 / (dim as f32).sqrt() } else { 1.0 };
        if scaled_by_layer {
            scale /= (i + 1) as f32;
        }
        let (fused, bias) = parts(&format!("h.{i}.attn.c_attn"), hidden, 3 * hidden)?;
        let (query, key_value) = (bias.part(0..hidden), bias.part(hidden..3 * hidden));
        Ok(Block {
            attention_norm: norm(&format!("h.{i}.ln_1"))?,
            query: Linear::new(fused.outputs(0..hidden), Some(query), precision),
            key_value: Linear::new(fused.outputs(hidden..3 * hidden), Some(key_value), precision),
            attention: Attention {
                heads,
                keys: KeyValue::stacked(heads, dim),
                scale,
                slopes: None,
                dropout: None,
                precision,
            },
            output: linear(&format!("h.{i}.attn.c_proj"), hidden, hidden)?,
            mlp_norm: norm(&format!("h.{i}.ln_2"))?,
            up: linear(&format!("h.{i}.mlp.c_fc"), hidden, inner)?,
            activation: Activation::GeluTanh,
            down: linear(&format!("h.{i}.mlp.c_proj"), inner, hidden)?,
            residual: Residual::Stream,
            dropout: Rates { layer: i, attention: attention_dropout, halves: residual_dropout },
        })
    };
    let embeddings = weights.tensor("transformer.wte.weight", &[vocabulary, hidden])?;
    let positions = weights.tensor("transformer.wpe.weight", &[available, hidden])?;
    let embeddings = Weight::from_outputs_by_inputs(embeddings, vocabulary, hidden);
    // A tied head is a view of its own: rounded, it lets go of what the embeddings hardly touch.
    let tied = config.flag_or("tie_word_embeddings", true)?;
    let head = if tied { "transformer.wte.weight" } else { "lm_head.weight" };
    let head =
        Weight::from_outputs_by_inputs(weights.tensor(head, &[vocabulary, hidden])?, vocabulary, hidden);
    let max_positions = Some(available);
    Ok(Decoder {
        shape: DecoderShape { hidden, layers, heads, kv_heads: heads, vocabulary, max_positions },
        embeddings,
        padding: None,
        embedding_dropout,
        embedding_norm: None,
        positions: Positions::Learned(Weight::from_outputs_by_inputs(positions, available, hidden)),
        blocks: (0..layers).map(block).collect::<Result<_, _>>()?,
        final_norm: norm("ln_f")?,
        head: Linear::head(head, precision),
        parameters: weights.parameters(),
        pool: Default::default(),
    })
}
