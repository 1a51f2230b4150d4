//! Llama models in one GGUF file: configuration, weights and tokenizer under Hugging Face's names.
//!
//! Knows llama.cpp's names and layout and turns them into what a Hugging Face folder of the same model would
//! hold; does not know how the model is computed. Weights come out dequantised, in f32.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};
use serde_json::json;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

/// The one architecture this module reads.
const LLAMA: &str = "llama";

/// Names outside the layers: GGUF's, Hugging Face's.
const WHOLE: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Names in a layer, without `.weight` or `.bias`: GGUF's, Hugging Face's.
const LAYER: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Llama 3's way of cutting text before the merges.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// `tokenizer.ggml.token_type` of tokens such as `<|im_end|>`.
const CONTROL: u64 = 3;
/// `tokenizer.ggml.token_type` of tokens that stand whole in text but mean nothing to the program.
const USER_DEFINED: u64 = 4;

/// Why a GGUF file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// It can't be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It isn't a GGUF file, is cut off, or contradicts itself.
    #[error("{}: not a readable GGUF file: {reason}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Metadata that has to be there is not.
    #[error("{}: the metadata has no `{key}`", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// It holds a model this module does not know.
    #[error("{}: architecture `{name}` in a GGUF file is not supported, only `{LLAMA}` is", path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// What `general.architecture` says.
        name: String,
    },
    /// A Llama model with something that would be computed wrongly if it were passed over.
    #[error("{}: {what} is not supported", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it has.
        what: String,
    },
}

/// A Llama model in a GGUF file: metadata in memory, weights on disk until asked for.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    content: Content,
    /// Reading a tensor moves the file's position, so one at a time.
    file: Mutex<File>,
    /// Hugging Face's tensor names and the file's own.
    names: BTreeMap<String, String>,
    heads: usize,
    kv_heads: usize,
    config: serde_json::Value,
}

impl Gguf {
    /// Reads the metadata and checks that it is a Llama model with nothing in it that would be left out.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let io = |error| GgufError::Io { path: path.into(), error };
        let mut file = File::open(path).map_err(io)?;
        let content = Content::read(&mut BufReader::new(&mut file))
            .map_err(|e| GgufError::Broken { path: path.into(), reason: reason(&e) })?;
        let mut gguf = Self {
            path: path.into(),
            content,
            file: Mutex::new(file),
            names: BTreeMap::new(),
            heads: 0,
            kv_heads: 0,
            config: serde_json::Value::Null,
        };
        let architecture = gguf.text("general.architecture")?;
        if architecture != LLAMA {
            return Err(GgufError::Architecture { path: path.into(), name: architecture.into() });
        }
        gguf.refuse_what_would_be_lost()?;
        gguf.names = gguf.hugging_face_names()?;
        gguf.heads = gguf.size("llama.attention.head_count")?;
        gguf.kv_heads = match gguf.whole("llama.attention.head_count_kv")? {
            Some(n) => n as usize,
            None => gguf.heads,
        };
        gguf.config = gguf.read_config()?;
        Ok(gguf)
    }

    /// What the `config.json` of the same model in Hugging Face's format would say, as far as a Llama decoder
    /// needs it. Ids of tokens that the file does not name are null.
    pub fn config(&self) -> serde_json::Value {
        self.config.clone()
    }

    /// The names of the tensors, Hugging Face's, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// A tensor by its Hugging Face name, dequantised to f32 on the processor; `None` if there is none.
    /// Matrices are `[out, in]`, the embedding `[vocabulary, hidden]`.
    pub fn tensor(&self, hf_name: &str) -> Result<Option<Tensor>, GgufError> {
        let Some(name) = self.names.get(hf_name) else { return Ok(None) };
        let broken = |e: candle_core::Error| self.broken(format!("tensor `{name}`: {}", reason(&e)));
        // A panic of another reader leaves nothing half-done: every read seeks first.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let quantised = self.content.tensor(&mut *file, name, &Device::Cpu).map_err(broken)?;
        drop(file);
        let tensor = quantised.dequantize(&Device::Cpu).map_err(broken)?;
        let heads = match name {
            n if n.contains(".attn_q.") => self.heads,
            n if n.contains(".attn_k.") => self.kv_heads,
            _ => return Ok(Some(tensor)),
        };
        rotate_by_halves(&tensor, heads).map_err(broken).map(Some)
    }

    /// The id of the token that begins a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.token_id("bos")
    }

    /// The id of the token that ends a text.
    pub fn eos_id(&self) -> Option<u32> {
        self.token_id("eos")
    }

    /// The id of the padding token.
    pub fn pad_id(&self) -> Option<u32> {
        self.token_id("padding")
    }

    /// Whether a text is begun with [`Gguf::bos_id`].
    pub fn adds_bos(&self) -> bool {
        self.flag("tokenizer.ggml.add_bos_token")
    }

    /// Whether a text is ended with [`Gguf::eos_id`].
    pub fn adds_eos(&self) -> bool {
        self.flag("tokenizer.ggml.add_eos_token")
    }

    /// The chat template's Jinja.
    pub fn chat_template(&self) -> Option<&str> {
        self.text("tokenizer.chat_template").ok()
    }

    /// The tokenizer, as the model's own `tokenizer.json` has it, but without begin and end tokens around a
    /// text: see [`Gguf::adds_bos`].
    pub fn tokenizer(&self) -> Result<Tokenizer, GgufError> {
        let model = self.text("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(self.unsupported(format!(
                "a tokenizer of kind `{model}` in a GGUF file (byte-level BPE, `gpt2`, is)"
            )));
        }
        let cut = self.text("tokenizer.ggml.pre")?;
        let (pre_tokenizer, ignore_merges) = pre_tokenizer(cut).ok_or_else(|| {
            self.unsupported(format!(
                "pre-tokenizer `{cut}` in a GGUF file (`smollm`, `gpt-2` and `llama-bpe` are)"
            ))
        })?;
        let tokens = self.texts("tokenizer.ggml.tokens")?;
        let merges = self
            .texts("tokenizer.ggml.merges")?
            .into_iter()
            .map(|line| match line.split_once(' ') {
                Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
                None => Err(self.broken(format!("tokenizer.ggml.merges: `{line}` is not two tokens"))),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let vocabulary: Vocab =
            tokens.iter().enumerate().map(|(id, token)| (token.to_string(), id as u32)).collect();
        let bpe = BPE::builder()
            .vocab_and_merges(vocabulary, merges)
            .ignore_merges(ignore_merges)
            .build()
            .map_err(|e| self.broken(format!("tokenizer.ggml.merges: {e}")))?;
        let mut tokenizer = Tokenizer::new(bpe);
        tokenizer.with_pre_tokenizer(Some(pre_tokenizer)).with_decoder(Some(ByteLevel::default()));
        tokenizer
            .add_tokens(self.whole_tokens(&tokens)?)
            .map_err(|e| self.broken(format!("tokenizer.ggml.token_type: {e}")))?;
        Ok(tokenizer)
    }

    /// The tokens that stand whole in a text, by their type.
    fn whole_tokens(&self, tokens: &[&str]) -> Result<Vec<AddedToken>, GgufError> {
        let key = "tokenizer.ggml.token_type";
        let Some(types) = self.content.metadata.get(key) else { return Ok(Vec::new()) };
        let types = types.to_vec().map_err(|_| self.broken(format!("`{key}` is not a list")))?;
        if types.len() != tokens.len() {
            return Err(self.broken(format!("{} tokens, but {} token types", tokens.len(), types.len())));
        }
        let added = tokens.iter().zip(types).filter_map(|(token, kind)| {
            let special = match whole_number(kind)? {
                CONTROL => true,
                USER_DEFINED => false,
                _ => return None,
            };
            Some(AddedToken::from(*token, special).normalized(false))
        });
        Ok(added.collect())
    }

    /// Whatever changes the result and has no place in [`Gguf::config`] must not be passed over in silence.
    fn refuse_what_would_be_lost(&self) -> Result<(), GgufError> {
        if self.whole("split.count")?.is_some_and(|n| n > 1) {
            return Err(self.unsupported("a model split over several GGUF files".into()));
        }
        if self.whole("llama.expert_count")?.is_some_and(|n| n > 0) {
            return Err(self.unsupported("a mixture of experts".into()));
        }
        let scaled = match self.content.metadata.get("llama.rope.scaling.type") {
            Some(Value::String(kind)) => kind != "none",
            _ => false,
        };
        if scaled || self.content.tensor_infos.contains_key("rope_freqs.weight") {
            return Err(self.unsupported("scaling of rotary positions".into()));
        }
        Ok(())
    }

    fn hugging_face_names(&self) -> Result<BTreeMap<String, String>, GgufError> {
        self.content
            .tensor_infos
            .keys()
            .map(|name| match hugging_face_name(name) {
                Some(hf_name) => Ok((hf_name, name.clone())),
                None => Err(self.unsupported(format!("tensor `{name}` in a Llama model"))),
            })
            .collect()
    }

    fn read_config(&self) -> Result<serde_json::Value, GgufError> {
        let hidden = self.size("llama.embedding_length")?;
        if self.heads == 0 || self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            let reason = format!("{} attention heads over {} key heads", self.heads, self.kv_heads);
            return Err(self.broken(reason));
        }
        let head_dim = match self.whole("llama.attention.key_length")? {
            Some(n) => n as usize,
            None => match self.whole("llama.rope.dimension_count")? {
                Some(n) => n as usize,
                None => hidden / self.heads,
            },
        };
        let vocabulary = match self.content.tensor_infos.get("token_embd.weight") {
            Some(embedding) => embedding.shape.dims().first().copied().unwrap_or(0),
            None => return Err(self.broken("there is no tensor `token_embd.weight`".into())),
        };
        let epsilon = "llama.attention.layer_norm_rms_epsilon";
        Ok(json!({
            "model_type": LLAMA,
            "architectures": ["LlamaForCausalLM"],
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": self.size("llama.feed_forward_length")?,
            "num_hidden_layers": self.size("llama.block_count")?,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": head_dim,
            "attention_bias": self.names.contains_key("model.layers.0.self_attn.q_proj.bias"),
            "mlp_bias": self.names.contains_key("model.layers.0.mlp.up_proj.bias"),
            "rms_norm_eps": self.real(epsilon)?.ok_or_else(|| self.no_key(epsilon))?,
            "rope_theta": self.real("llama.rope.freq_base")?.unwrap_or(10_000.0),
            "max_position_embeddings": self.size("llama.context_length")?,
            "vocab_size": vocabulary,
            "bos_token_id": self.bos_id(),
            "eos_token_id": self.eos_id(),
            "pad_token_id": self.pad_id(),
            "tie_word_embeddings": !self.names.contains_key("lm_head.weight"),
        }))
    }

    fn token_id(&self, role: &str) -> Option<u32> {
        let value = self.content.metadata.get(&format!("tokenizer.ggml.{role}_token_id"))?;
        u32::try_from(whole_number(value)?).ok()
    }

    fn flag(&self, key: &str) -> bool {
        matches!(self.content.metadata.get(key), Some(Value::Bool(true)))
    }

    fn text(&self, key: &str) -> Result<&str, GgufError> {
        match self.content.metadata.get(key) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(self.broken(format!("`{key}` is not text"))),
            None => Err(self.no_key(key)),
        }
    }

    fn texts(&self, key: &str) -> Result<Vec<&str>, GgufError> {
        let wrong = || self.broken(format!("`{key}` is not a list of texts"));
        match self.content.metadata.get(key) {
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| match item {
                    Value::String(text) => Ok(text.as_str()),
                    _ => Err(wrong()),
                })
                .collect(),
            Some(_) => Err(wrong()),
            None => Err(self.no_key(key)),
        }
    }

    fn whole(&self, key: &str) -> Result<Option<u64>, GgufError> {
        match self.content.metadata.get(key) {
            Some(value) => match whole_number(value) {
                Some(n) => Ok(Some(n)),
                None => Err(self.broken(format!("`{key}` is not a whole number"))),
            },
            None => Ok(None),
        }
    }

    fn size(&self, key: &str) -> Result<usize, GgufError> {
        self.whole(key)?.map(|n| n as usize).ok_or_else(|| self.no_key(key))
    }

    fn real(&self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.content.metadata.get(key) {
            Some(Value::F32(x)) => Ok(Some(f64::from(*x))),
            Some(Value::F64(x)) => Ok(Some(*x)),
            Some(_) => Err(self.broken(format!("`{key}` is not a number"))),
            None => Ok(None),
        }
    }

    fn no_key(&self, key: &str) -> GgufError {
        GgufError::NoKey { path: self.path.clone(), key: key.into() }
    }

    fn broken(&self, reason: String) -> GgufError {
        GgufError::Broken { path: self.path.clone(), reason }
    }

    fn unsupported(&self, what: String) -> GgufError {
        GgufError::Unsupported { path: self.path.clone(), what }
    }
}

/// The first line of an error of candle's, which may go on with a backtrace.
fn reason(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

fn whole_number(value: &Value) -> Option<u64> {
    match *value {
        Value::U8(n) => Some(n.into()),
        Value::U16(n) => Some(n.into()),
        Value::U32(n) => Some(n.into()),
        Value::U64(n) => Some(n),
        Value::I8(n) => n.try_into().ok(),
        Value::I16(n) => n.try_into().ok(),
        Value::I32(n) => n.try_into().ok(),
        Value::I64(n) => n.try_into().ok(),
        _ => None,
    }
}

fn hugging_face_name(name: &str) -> Option<String> {
    if let Some((_, hf_name)) = WHOLE.iter().find(|(gguf_name, _)| *gguf_name == name) {
        return Some((*hf_name).to_owned());
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (part, kind) = rest.rsplit_once('.')?;
    let (_, hf_part) = LAYER.iter().find(|(gguf_part, _)| *gguf_part == part)?;
    matches!(kind, "weight" | "bias").then(|| format!("model.layers.{layer}.{hf_part}.{kind}"))
}

/// llama.cpp rotates neighbouring pairs of a head, Hugging Face the first half against the second: rows
/// `0 1 2 3 …` of each head become `0 2 4 … 1 3 5 …`.
fn rotate_by_halves(weight: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let shape = weight.dims();
    let rows = shape.first().copied().unwrap_or(0);
    if heads == 0 || !rows.is_multiple_of(2 * heads) {
        candle_core::bail!("{rows} rows do not fall into {heads} heads");
    }
    let columns = shape.get(1).copied().unwrap_or(1);
    weight.reshape((heads, rows / heads / 2, 2, columns))?.transpose(1, 2)?.contiguous()?.reshape(shape)
}

/// How text is cut before the merges, and whether a piece that is a token of its own skips them: as the
/// `tokenizer.json` the model was published with does it. Python's GGUF loader (transformers 5.23) takes
/// `smollm` for `gpt-2` and so joins line breaks and digits in another way than the model was trained on.
fn pre_tokenizer(name: &str) -> Option<(PreTokenizerWrapper, bool)> {
    let bytes = |use_regex| ByteLevel::new(false, true, use_regex).into();
    match name {
        "gpt-2" => Some((bytes(true), false)),
        "smollm" => {
            let parts: Vec<PreTokenizerWrapper> = vec![Digits::new(true).into(), bytes(true)];
            Some((Sequence::new(parts).into(), false))
        }
        "llama-bpe" | "llama-v3" | "llama3" => {
            let pattern = SplitPattern::Regex(LLAMA3_SPLIT.into());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).ok()?;
            Some((Sequence::new(vec![split.into(), bytes(false)]).into(), true))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor, gguf_file};

    use super::*;

    /// A Llama of one layer: 2 heads over 1 key head, heads of 4, hidden 8, 8 tokens.
    fn metadata() -> BTreeMap<&'static str, Value> {
        let texts =
            |items: &[&str]| Value::Array(items.iter().map(|t| Value::String(t.to_string())).collect());
        let whole = |n: u32| Value::U32(n);
        BTreeMap::from([
            ("general.architecture", Value::String("llama".into())),
            ("llama.block_count", whole(1)),
            ("llama.context_length", whole(32)),
            ("llama.embedding_length", whole(8)),
            ("llama.feed_forward_length", whole(16)),
            ("llama.attention.head_count", whole(2)),
            ("llama.attention.head_count_kv", whole(1)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(0.5)),
            ("llama.rope.freq_base", Value::F32(100_000.0)),
            ("tokenizer.ggml.model", Value::String("gpt2".into())),
            ("tokenizer.ggml.pre", Value::String("smollm".into())),
            ("tokenizer.ggml.tokens", texts(&["<end>", "1", "2", "a", "Ġ", "Ġa", "12", "ĠĠ"])),
            ("tokenizer.ggml.token_type", Value::Array([3, 1, 1, 1, 1, 1, 1, 1].map(Value::I32).to_vec())),
            ("tokenizer.ggml.merges", texts(&["Ġ a", "1 2", "Ġ Ġ"])),
            ("tokenizer.ggml.eos_token_id", whole(0)),
        ])
    }

    /// Row r of a matrix is filled with r.
    fn ramp(rows: usize, columns: usize) -> Tensor {
        let column = Tensor::arange(0f32, rows as f32, &Device::Cpu).unwrap();
        column.reshape((rows, 1)).unwrap().broadcast_as((rows, columns)).unwrap().contiguous().unwrap()
    }

    fn tensors() -> BTreeMap<&'static str, Tensor> {
        BTreeMap::from([
            ("token_embd.weight", ramp(8, 8)),
            ("output_norm.weight", Tensor::ones(8, candle_core::DType::F32, &Device::Cpu).unwrap()),
            ("blk.0.attn_q.weight", ramp(8, 8)),
            ("blk.0.attn_k.weight", ramp(4, 8)),
            ("blk.0.attn_v.weight", ramp(4, 8)),
        ])
    }

    fn write(dir: &Path, metadata: &BTreeMap<&str, Value>, tensors: &BTreeMap<&str, Tensor>) -> PathBuf {
        let path = dir.join("tiny.gguf");
        let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (*k, v)).collect();
        let tensors: Vec<(&str, QTensor)> =
            tensors.iter().map(|(k, t)| (*k, QTensor::quantize(t, GgmlDType::F32).unwrap())).collect();
        let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, t)| (*k, t)).collect();
        gguf_file::write(&mut File::create(&path).unwrap(), &metadata, &tensors).unwrap();
        path
    }

    fn open(
        metadata: &BTreeMap<&str, Value>,
        tensors: &BTreeMap<&str, Tensor>,
    ) -> (Result<Gguf, GgufError>, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), metadata, tensors);
        (Gguf::open(&path), path.display().to_string())
    }

    fn tiny() -> Gguf {
        open(&metadata(), &tensors()).0.unwrap()
    }

    fn refusal(change: impl FnOnce(&mut BTreeMap<&'static str, Value>)) -> String {
        let mut metadata = metadata();
        change(&mut metadata);
        let (gguf, path) = open(&metadata, &tensors());
        let error = match gguf {
            Err(error) => error,
            Ok(gguf) => gguf.tokenizer().unwrap_err(),
        };
        error.to_string().replace(&path, "tiny.gguf")
    }

    #[test]
    fn the_config_reads_like_hugging_faces() {
        assert_eq!(
            tiny().config(),
            json!({
                "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
                "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 1, "head_dim": 4, "attention_bias": false, "mlp_bias": false,
                "rms_norm_eps": 0.5, "rope_theta": 100000.0, "max_position_embeddings": 32, "vocab_size": 8,
                "bos_token_id": null, "eos_token_id": 0, "pad_token_id": null, "tie_word_embeddings": true,
            })
        );
    }

    #[test]
    fn tensors_have_hugging_faces_names_and_nothing_else_is_there() {
        let gguf = tiny();
        let names: Vec<&str> = gguf.names().collect();
        assert_eq!(
            names,
            [
                "model.embed_tokens.weight",
                "model.layers.0.self_attn.k_proj.weight",
                "model.layers.0.self_attn.q_proj.weight",
                "model.layers.0.self_attn.v_proj.weight",
                "model.norm.weight",
            ]
        );
        assert!(gguf.tensor("lm_head.weight").unwrap().is_none());
        assert!(gguf.tensor("blk.0.attn_q.weight").unwrap().is_none());
    }

    #[test]
    fn queries_and_keys_are_rotated_by_halves_and_values_stay() {
        let gguf = tiny();
        let rows = |part: &str| {
            let name = format!("model.layers.0.self_attn.{part}_proj.weight");
            let weight = gguf.tensor(&name).unwrap().unwrap();
            weight.to_vec2::<f32>().unwrap().iter().map(|row| row[0] as u32).collect::<Vec<_>>()
        };
        assert_eq!(rows("q"), [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(rows("k"), [0, 2, 1, 3]);
        assert_eq!(rows("v"), [0, 1, 2, 3]);
    }

    #[test]
    fn smollm_cuts_digits_apart_before_the_merges() {
        let tokenizer = tiny().tokenizer().unwrap();
        let ids = |text: &str| tokenizer.encode(text, true).unwrap().get_ids().to_vec();
        assert_eq!(ids(" a12<end>"), [5, 1, 2, 0]);
        assert_eq!(ids("a  1"), [3, 7, 1]);
    }

    #[test]
    fn gpt_2_merges_digits() {
        let mut metadata = metadata();
        metadata.insert("tokenizer.ggml.pre", Value::String("gpt-2".into()));
        let tokenizer = open(&metadata, &tensors()).0.unwrap().tokenizer().unwrap();
        assert_eq!(tokenizer.encode("12", true).unwrap().get_ids(), [6]);
        assert_eq!(tokenizer.decode(&[5, 6], true).unwrap(), " a12");
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let text = |t: &str| Value::String(t.into());
        assert_eq!(
            refusal(|m| drop(m.insert("general.architecture", text("qwen2")))),
            "tiny.gguf: architecture `qwen2` in a GGUF file is not supported, only `llama` is"
        );
        assert_eq!(
            refusal(|m| drop(m.insert("tokenizer.ggml.model", text("llama")))),
            "tiny.gguf: a tokenizer of kind `llama` in a GGUF file (byte-level BPE, `gpt2`, is) is not supported"
        );
        assert_eq!(
            refusal(|m| drop(m.insert("tokenizer.ggml.pre", text("tekken")))),
            "tiny.gguf: pre-tokenizer `tekken` in a GGUF file (`smollm`, `gpt-2` and `llama-bpe` are) is not \
             supported"
        );
        assert_eq!(
            refusal(|m| drop(m.insert("llama.rope.scaling.type", text("yarn")))),
            "tiny.gguf: scaling of rotary positions is not supported"
        );
        assert_eq!(
            refusal(|m| drop(m.insert("llama.expert_count", Value::U32(8)))),
            "tiny.gguf: a mixture of experts is not supported"
        );
        assert_eq!(
            refusal(|m| drop(m.remove("llama.block_count"))),
            "tiny.gguf: the metadata has no `llama.block_count`"
        );
        let mut tensors = tensors();
        tensors.insert("blk.0.ssm_a.weight", ramp(1, 1));
        let (gguf, path) = open(&metadata(), &tensors);
        assert_eq!(
            gguf.unwrap_err().to_string(),
            format!("{path}: tensor `blk.0.ssm_a.weight` in a Llama model is not supported")
        );
    }

    #[test]
    fn a_tokenizer_opened_from_the_file_knows_its_special_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let mut metadata = metadata();
        let tokenizer = crate::tokenizer::Tokenizer::open(&write(dir.path(), &metadata, &tensors())).unwrap();
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (None, Some(0), Some(0)));
        assert_eq!(tokenizer.encode("a<end>", true).unwrap(), [3, 0]);

        metadata.insert("tokenizer.ggml.bos_token_id", Value::U32(0));
        metadata.insert("tokenizer.ggml.add_bos_token", Value::Bool(true));
        metadata.insert("tokenizer.ggml.padding_token_id", Value::U32(1));
        let tokenizer = crate::tokenizer::Tokenizer::open(&write(dir.path(), &metadata, &tensors())).unwrap();
        assert_eq!((tokenizer.bos_id(), tokenizer.pad_id()), (Some(0), Some(1)));
        assert_eq!(tokenizer.encode("a", true).unwrap(), [0, 3]);
        assert_eq!(tokenizer.encode("a", false).unwrap(), [3]);
    }

    #[test]
    fn a_file_that_is_no_gguf_or_is_cut_off_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), &metadata(), &tensors());
        let whole = std::fs::read(&path).unwrap();

        std::fs::write(&path, &whole[..whole.len() - 64]).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        let read_all = gguf.names().try_for_each(|name| gguf.tensor(name).map(|_| ()));
        let start = format!("{}: not a readable GGUF file: tensor `", path.display());
        assert!(read_all.unwrap_err().to_string().starts_with(&start));

        std::fs::write(&path, &whole[..64]).unwrap();
        let start = format!("{}: not a readable GGUF file: ", path.display());
        assert!(Gguf::open(&path).unwrap_err().to_string().starts_with(&start));

        std::fs::write(&path, "not a model").unwrap();
        assert_eq!(Gguf::open(&path).unwrap_err().to_string(), start + "unknown magic 0x20746f6e");
    }
}
