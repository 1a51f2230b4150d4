//! BLOOM: ALiBi, a norm behind the embedding, queries, keys and values interleaved by head, tied head.

use super::block::{Block, Rates, Residual};
use super::decoder::{Decoder, DecoderShape, Positions};
use super::ops::activation::Activation;
use super::ops::attention::{Attention, KeyValue, alibi_slopes};
use super::ops::gradients::Vector;
use super::ops::linear::Linear;
use super::ops::matmul::{Precision, Weight};
use super::ops::norm::Norm;
use super::{ModelError, Weights};

/// Builds it from a folder's weights.
pub(super) fn load(weights: &Weights, precision: Precision) -> Result<Decoder, ModelError> {
    let config = weights.config();
    let hidden = config.count(&["hidden_size", "n_embed"])?;
    let heads = config.count(&["n_head", "num_attention_heads"])?;
    let layers = config.count(&["n_layer", "num_hidden_layers"])?;
    let vocabulary = config.count(&["vocab_size"])?;
    let eps = config.number_or("layer_norm_epsilon", 1e-5)?;
    let attention_dropout = config.share_or("attention_dropout", 0.0)?;
    let hidden_dropout = config.share_or("hidden_dropout", 0.0)?;
    let normed = config.flag_or("apply_residual_connection_post_layernorm", false)?;
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
        let weight = weights.tensor(&format!("transformer.{name}.weight"), &[outputs, inputs])?;
        let bias = weights.vector(&format!("transformer.{name}.bias"), outputs)?;
        Ok((Weight::from_outputs_by_inputs(weight, outputs, inputs), bias))
    };
    let linear = |name: &str, inputs: usize, outputs: usize| -> Result<Linear, ModelError> {
        let (weight, bias) = parts(name, inputs, outputs)?;
        Ok(Linear::new(weight, Some(bias), precision))
    };
    let block = |i: usize| -> Result<Block, ModelError> {
        let (fused, bias) = parts(&format!("h.{i}.self_attention.query_key_value"), hidden, 3 * hidden)?;
        // A head has its query's rows, then its key's, then its value's.
        let of_heads = |first: usize, end: usize| {
            let ranges = (0..heads).map(|head| (3 * head + first) * dim..(3 * head + end) * dim);
            let weight = Weight::stacked(ranges.clone().map(|rows| fused.outputs(rows)).collect());
            let bias = Vector::joined(ranges.map(|rows| bias.part(rows)));
            Linear::new(weight, Some(bias), precision)
        };
        Ok(Block {
            attention_norm: norm(&format!("h.{i}.input_layernorm"))?,
            query: of_heads(0, 1),
            key_value: of_heads(1, 3),
            attention: Attention {
                heads,
                keys: KeyValue::interleaved(heads, dim),
                scale: 1.0 / (dim as f32).sqrt(),
                slopes: Some(alibi_slopes(heads)),
                dropout: None,
                precision,
            },
            output: linear(&format!("h.{i}.self_attention.dense"), hidden, hidden)?,
            mlp_norm: norm(&format!("h.{i}.post_attention_layernorm"))?,
            up: linear(&format!("h.{i}.mlp.dense_h_to_4h"), hidden, 4 * hidden)?,
            activation: Activation::GeluTanh,
            down: linear(&format!("h.{i}.mlp.dense_4h_to_h"), 4 * hidden, hidden)?,
            residual: if normed { Residual::Normed } else { Residual::Stream },
            dropout: Rates { layer: i, attention: attention_dropout, halves: hidden_dropout },
        })
    };
    let embeddings = weights.tensor("transformer.word_embeddings.weight", &[vocabulary, hidden])?;
    let embeddings = Weight::from_outputs_by_inputs(embeddings, vocabulary, hidden);
    // A tied head is a view of its own: rounded, it lets go of what the embeddings hardly touch.
    let tied = config.flag_or("tie_word_embeddings", true)?;
    let head = if tied { "transformer.word_embeddings.weight" } else { "lm_head.weight" };
    let head =
        Weight::from_outputs_by_inputs(weights.tensor(head, &[vocabulary, hidden])?, vocabulary, hidden);
    Ok(Decoder {
        shape: DecoderShape { hidden, layers, heads, kv_heads: heads, vocabulary, max_positions: None },
        embeddings,
        padding: None,
        embedding_dropout: 0.0,
        embedding_norm: Some(norm("word_embeddings_layernorm")?),
        positions: Positions::Distance,
        blocks: (0..layers).map(block).collect::<Result<_, _>>()?,
        final_norm: norm("ln_f")?,
        head: Linear::head(head, precision),
        parameters: weights.parameters(),
        pool: Default::default(),
    })
}
