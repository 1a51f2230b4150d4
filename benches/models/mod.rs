//! Models with random weights for benchmarks, written as Hugging Face folders.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// Width of a token's state.
pub const HIDDEN: usize = 768;
/// Number of layers.
pub const LAYERS: usize = 4;
/// Number of query heads.
pub const HEADS: usize = 12;
/// Number of tokens in the vocabulary.
pub const VOCABULARY: usize = 16_000;
const INNER: usize = 4 * HIDDEN;

/// The three families at the shape above.
pub const FAMILIES: [&str; 3] = ["bloom", "gpt2", "llama"];

/// Numbers in -scale..scale that look random and are the same every time.
pub fn numbers(count: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    };
    (0..count).map(|_| next()).collect()
}

/// Writes a model of this family into the folder.
pub fn write(family: &str, folder: &Path) {
    let (config, shapes) = describe(family);
    std::fs::write(folder.join("config.json"), config.to_string()).expect("a temporary folder");
    let tensors: HashMap<String, (Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            let values = numbers(shape.iter().product(), i as u64 + 1, 0.03);
            (name, (shape, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        })
        .collect();
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("sizes that fit"))
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).expect("room on the disk");
}

fn describe(family: &str) -> (Value, Vec<(String, Vec<usize>)>) {
    let mut shapes = Vec::new();
    let mut add = |name: String, shape: &[usize]| shapes.push((name, shape.to_vec()));
    let config = match family {
        "bloom" => {
            let mut norm = |name: &str| {
                add(format!("transformer.{name}.weight"), &[HIDDEN]);
                add(format!("transformer.{name}.bias"), &[HIDDEN]);
            };
            ["word_embeddings_layernorm", "ln_f"].iter().for_each(|n| norm(n));
            for i in 0..LAYERS {
                norm(&format!("h.{i}.input_layernorm"));
                norm(&format!("h.{i}.post_attention_layernorm"));
            }
            add("transformer.word_embeddings.weight".into(), &[VOCABULARY, HIDDEN]);
            for i in 0..LAYERS {
                for (part, outputs, inputs) in [
                    ("self_attention.query_key_value", 3 * HIDDEN, HIDDEN),
                    ("self_attention.dense", HIDDEN, HIDDEN),
                    ("mlp.dense_h_to_4h", INNER, HIDDEN),
                    ("mlp.dense_4h_to_h", HIDDEN, INNER),
                ] {
                    add(format!("transformer.h.{i}.{part}.weight"), &[outputs, inputs]);
                    add(format!("transformer.h.{i}.{part}.bias"), &[outputs]);
                }
            }
            json!({"model_type": "bloom", "hidden_size": HIDDEN, "n_head": HEADS, "n_layer": LAYERS,
                "vocab_size": VOCABULARY})
        }
        "gpt2" => {
            for i in 0..LAYERS {
                for (part, inputs, outputs) in [
                    ("attn.c_attn", HIDDEN, 3 * HIDDEN),
                    ("attn.c_proj", HIDDEN, HIDDEN),
                    ("mlp.c_fc", HIDDEN, INNER),
                    ("mlp.c_proj", INNER, HIDDEN),
                ] {
                    add(format!("transformer.h.{i}.{part}.weight"), &[inputs, outputs]);
                    add(format!("transformer.h.{i}.{part}.bias"), &[outputs]);
                }
                for part in ["ln_1", "ln_2"] {
                    add(format!("transformer.h.{i}.{part}.weight"), &[HIDDEN]);
                    add(format!("transformer.h.{i}.{part}.bias"), &[HIDDEN]);
                }
            }
            add("transformer.wte.weight".into(), &[VOCABULARY, HIDDEN]);
            add("transformer.wpe.weight".into(), &[1024, HIDDEN]);
            add("transformer.ln_f.weight".into(), &[HIDDEN]);
            add("transformer.ln_f.bias".into(), &[HIDDEN]);
            json!({"model_type": "gpt2", "n_embd": HIDDEN, "n_head": HEADS, "n_layer": LAYERS,
                "n_positions": 1024, "vocab_size": VOCABULARY})
        }
        _ => {
            let kv = HIDDEN / 3;
            for i in 0..LAYERS {
                for (part, outputs, inputs) in [
                    ("self_attn.q_proj", HIDDEN, HIDDEN),
                    ("self_attn.k_proj", kv, HIDDEN),
                    ("self_attn.v_proj", kv, HIDDEN),
                    ("self_attn.o_proj", HIDDEN, HIDDEN),
                    ("mlp.gate_proj", INNER, HIDDEN),
                    ("mlp.up_proj", INNER, HIDDEN),
                    ("mlp.down_proj", HIDDEN, INNER),
                ] {
                    add(format!("model.layers.{i}.{part}.weight"), &[outputs, inputs]);
                }
                for part in ["input_layernorm", "post_attention_layernorm"] {
                    add(format!("model.layers.{i}.{part}.weight"), &[HIDDEN]);
                }
            }
            add("model.embed_tokens.weight".into(), &[VOCABULARY, HIDDEN]);
            add("model.norm.weight".into(), &[HIDDEN]);
            json!({"model_type": "llama", "hidden_size": HIDDEN, "num_attention_heads": HEADS,
                "num_key_value_heads": HEADS / 3, "num_hidden_layers": LAYERS, "intermediate_size": INNER,
                "vocab_size": VOCABULARY, "tie_word_embeddings": true})
        }
    };
    (config, shapes)
}
