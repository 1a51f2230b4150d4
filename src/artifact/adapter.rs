//! A soft prompt in the two files of PEFT.
//!
//! What is written is byte for byte what PEFT's `save_pretrained` writes for the same values.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

/// The file with the prompt's numbers.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// The file with everything else.
pub const CONFIG: &str = "adapter_config.json";
/// The PEFT release whose files these are.
pub const PEFT_VERSION: &str = "0.21.2";

const TENSOR: &str = "prompt_embeddings";
const PROMPT_TUNING: &str = "PROMPT_TUNING";

/// Why an adapter can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file is not there or can't be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The configuration is not one of a soft prompt.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The weights are not those of this configuration.
    #[error("{}: {reason}", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        reason: String,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// adapter_config.json; the fields are in the order in which they are written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// Always null for a prompt.
    #[serde(default)]
    pub auto_mapping: Option<serde_json::Value>,
    /// The model it was trained for: a Hub name or a path.
    pub base_model_name_or_path: Option<String>,
    /// Whether it is to be loaded frozen; PEFT always saves true.
    #[serde(default = "yes")]
    pub inference_mode: bool,
    /// Always null for a prompt.
    #[serde(default)]
    pub modules_to_save: Option<serde_json::Value>,
    /// Heads of the model.
    #[serde(default)]
    pub num_attention_heads: Option<usize>,
    /// Layers of the model.
    #[serde(default)]
    pub num_layers: Option<usize>,
    /// 1 for a decoder.
    #[serde(default)]
    pub num_transformer_submodules: Option<usize>,
    /// Rows of the prompt.
    pub num_virtual_tokens: usize,
    /// PROMPT_TUNING.
    pub peft_type: String,
    /// The PEFT release whose format this is.
    #[serde(default)]
    pub peft_version: Option<String>,
    /// TEXT, RANDOM or SAMPLE_VOCAB.
    #[serde(default)]
    pub prompt_tuning_init: Option<String>,
    /// The text for TEXT.
    #[serde(default)]
    pub prompt_tuning_init_text: Option<String>,
    /// The model's revision.
    #[serde(default)]
    pub revision: Option<String>,
    /// CAUSAL_LM.
    #[serde(default)]
    pub task_type: Option<String>,
    /// Width of the prompt.
    pub token_dim: usize,
    /// Always null here.
    #[serde(default)]
    pub tokenizer_kwargs: Option<serde_json::Value>,
    /// The tokenizer that read the text.
    #[serde(default)]
    pub tokenizer_name_or_path: Option<String>,
}

fn yes() -> bool {
    true
}

impl AdapterConfig {
    /// The configuration of a prompt of `num_virtual_tokens` rows for a decoder of this shape.
    pub fn prompt_tuning(
        base_model: &str,
        num_virtual_tokens: usize,
        shape: &crate::model::DecoderShape,
    ) -> Self {
        Self {
            auto_mapping: None,
            base_model_name_or_path: Some(base_model.to_owned()),
            inference_mode: true,
            modules_to_save: None,
            num_attention_heads: Some(shape.heads),
            num_layers: Some(shape.layers),
            num_transformer_submodules: Some(1),
            num_virtual_tokens,
            peft_type: PROMPT_TUNING.into(),
            peft_version: Some(PEFT_VERSION.into()),
            prompt_tuning_init: Some("RANDOM".into()),
            prompt_tuning_init_text: None,
            revision: None,
            task_type: Some("CAUSAL_LM".into()),
            token_dim: shape.hidden,
            tokenizer_kwargs: None,
            tokenizer_name_or_path: None,
        }
    }

    /// Reads the file of a folder.
    ///
    /// # Errors
    /// As [`AdapterConfig::parse`], or the file can't be read.
    pub fn read(folder: &Path) -> Result<Self, AdapterError> {
        let path = folder.join(CONFIG);
        Self::parse(&read(&path)?, &path)
    }

    /// Reads the file's text; `path` stands for it in errors.
    ///
    /// # Errors
    /// It is not of a soft prompt.
    pub fn parse(text: &[u8], path: &Path) -> Result<Self, AdapterError> {
        let wrong = |reason| AdapterError::Config { path: path.to_path_buf(), reason };
        let value: serde_json::Value = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
        match value.get("peft_type").and_then(|v| v.as_str()) {
            Some(PROMPT_TUNING) => serde_json::from_value(value).map_err(|e| wrong(e.to_string())),
            Some(other) => Err(wrong(format!("the adapter is {other}; only {PROMPT_TUNING} can be used"))),
            None => Err(wrong("`peft_type` is missing: is this an adapter of PEFT?".into())),
        }
    }
}

/// A soft prompt and what PEFT says of it.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// adapter_config.json.
    pub config: AdapterConfig,
    /// The prompt, `[num_virtual_tokens, token_dim]` in f32.
    pub prompt: Tensor,
}

impl Adapter {
    /// Writes the two files into a folder that exists.
    ///
    /// # Errors
    /// A file can't be written, or the prompt has another shape than the configuration says.
    pub fn write(&self, folder: &Path) -> Result<(), AdapterError> {
        let weights = folder.join(WEIGHTS);
        let wrong = |reason| AdapterError::Weights { path: weights.clone(), reason };
        let shape = [self.config.num_virtual_tokens, self.config.token_dim];
        if self.prompt.dims() != shape {
            return Err(wrong(format!(
                "the prompt is {:?}, its configuration says {shape:?}",
                self.prompt.dims()
            )));
        }
        let values: Vec<f32> = self.prompt.flatten_all()?.to_vec1()?;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, shape.to_vec(), &bytes).map_err(|e| wrong(e.to_string()))?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let file =
            safetensors::serialize([(TENSOR, view)], Some(metadata)).map_err(|e| wrong(e.to_string()))?;
        let config = folder.join(CONFIG);
        let text = serde_json::to_string_pretty(&self.config)
            .map_err(|e| AdapterError::Config { path: config.clone(), reason: e.to_string() })?;
        write(&weights, &file)?;
        write(&config, ascii(&text).as_bytes())
    }

    /// Reads the two files of a folder.
    ///
    /// # Errors
    /// A file is missing, is not of a soft prompt, or the two do not belong together.
    pub fn read(folder: &Path) -> Result<Self, AdapterError> {
        let config = AdapterConfig::read(folder)?;
        let prompt = read_prompt(&folder.join(WEIGHTS), &config)?;
        Ok(Self { config, prompt })
    }
}

fn read_prompt(path: &Path, config: &AdapterConfig) -> Result<Tensor, AdapterError> {
    let wrong = |reason| AdapterError::Weights { path: path.to_path_buf(), reason };
    let bytes = read(path)?;
    let view = SafeTensors::deserialize(&bytes).map_err(|e| wrong(format!("damaged or cut off: {e}")))?;
    let Ok(tensor) = view.tensor(TENSOR) else {
        let mut names = view.names();
        names.sort_unstable();
        return Err(wrong(format!("tensor `{TENSOR}` is missing; there is {}", names.join(", "))));
    };
    let shape = [config.num_virtual_tokens, config.token_dim];
    if tensor.shape() != shape {
        let found = tensor.shape();
        return Err(wrong(format!("`{TENSOR}` has shape {found:?}, {CONFIG} says {shape:?}")));
    }
    if tensor.dtype() != Dtype::F32 {
        return Err(wrong(format!("`{TENSOR}` is {:?}, F32 is needed", tensor.dtype())));
    }
    let values: Vec<f32> = tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Ok(Tensor::from_vec(values, &shape, &Device::Cpu)?)
}

fn read(path: &Path) -> Result<Vec<u8>, AdapterError> {
    std::fs::read(path).map_err(|source| AdapterError::Io { path: path.to_path_buf(), source })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), AdapterError> {
    std::fs::write(path, bytes).map_err(|source| AdapterError::Io { path: path.to_path_buf(), source })
}

/// JSON text with what is not ASCII escaped, as Python's json writes it.
pub(crate) fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string never fails.
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DecoderShape;

    fn adapter() -> Adapter {
        let shape =
            DecoderShape { hidden: 3, layers: 2, heads: 1, kv_heads: 1, vocabulary: 9, max_positions: None };
        let mut config = AdapterConfig::prompt_tuning("base/model", 2, &shape);
        config.prompt_tuning_init_text = Some("불만 😀".into());
        let prompt = Tensor::new(&[[1f32, 2.0, 3.0], [4.0, 5.0, 6.0]], &Device::Cpu).unwrap();
        Adapter { config, prompt }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        adapter().write(dir.path()).unwrap();
        let read = Adapter::read(dir.path()).unwrap();
        assert_eq!(read.config, adapter().config);
        assert_eq!(read.prompt.to_vec2::<f32>().unwrap(), adapter().prompt.to_vec2::<f32>().unwrap());
        let text = std::fs::read_to_string(dir.path().join(CONFIG)).unwrap();
        assert!(text.contains(r#""prompt_tuning_init_text": "\ubd88\ub9cc \ud83d\ude00","#), "{text}");
    }

    /// The message of reading an adapter after `spoil` had its way with the folder.
    fn message(spoil: impl Fn(&Path)) -> String {
        let dir = tempfile::tempdir().unwrap();
        adapter().write(dir.path()).unwrap();
        spoil(dir.path());
        let message = Adapter::read(dir.path()).unwrap_err().to_string();
        message.replace(&format!("{}/", dir.path().display()), "")
    }

    fn replace(from: &'static str, to: &'static str) -> impl Fn(&Path) {
        move |dir| {
            let path = dir.join(CONFIG);
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from));
            std::fs::write(&path, text.replace(from, to)).unwrap();
        }
    }

    #[test]
    fn every_fault_is_named() {
        assert_eq!(
            message(|dir| std::fs::remove_file(dir.join(WEIGHTS)).unwrap()),
            "adapter_model.safetensors: No such file or directory (os error 2)"
        );
        assert_eq!(
            message(replace("PROMPT_TUNING", "LORA")),
            "adapter_config.json: the adapter is LORA; only PROMPT_TUNING can be used"
        );
        assert_eq!(
            message(replace("peft_type", "type")),
            "adapter_config.json: `peft_type` is missing: is this an adapter of PEFT?"
        );
        assert_eq!(
            message(replace("\"token_dim\": 3", "\"token_dim\": 4")),
            "adapter_model.safetensors: `prompt_embeddings` has shape [2, 3], adapter_config.json says [2, 4]"
        );
        let with = |name: &'static str, dtype: Dtype, size: usize| {
            move |dir: &Path| {
                let bytes = vec![0; 6 * size];
                let view = TensorView::new(dtype, vec![2, 3], &bytes).unwrap();
                std::fs::write(dir.join(WEIGHTS), safetensors::serialize([(name, view)], None).unwrap())
                    .unwrap();
            }
        };
        assert_eq!(
            message(with("prompt", Dtype::F32, 4)),
            "adapter_model.safetensors: tensor `prompt_embeddings` is missing; there is prompt"
        );
        assert_eq!(
            message(with(TENSOR, Dtype::F16, 2)),
            "adapter_model.safetensors: `prompt_embeddings` is F16, F32 is needed"
        );
        let cut = |dir: &Path| {
            let bytes = std::fs::read(dir.join(WEIGHTS)).unwrap();
            std::fs::write(dir.join(WEIGHTS), &bytes[..bytes.len() - 4]).unwrap();
        };
        let message = message(cut);
        assert!(message.starts_with("adapter_model.safetensors: damaged or cut off: "), "{message}");
    }
}
