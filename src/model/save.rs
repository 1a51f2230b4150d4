//! Writes parameters as a Hugging Face folder that transformers loads: weights, config.json, generation_config.json.
//!
//! Knows the files; the tokenizer's are not its own. Every file is written under another name and renamed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::View;
use safetensors::{Dtype, SafeTensorError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::parameters::{Parameter, Parameters};
use super::{ModelError, architecture};

/// The number format of a weights file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// 32-bit floats: as they are trained.
    #[default]
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of 32-bit floats.
    BF16,
}

impl Format {
    /// torch's name of it.
    fn torch(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }
}

/// The tokens that generation begins and ends with.
const ENDS: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

impl Parameters {
    /// Writes model.safetensors, config.json and generation_config.json into a folder, which is made if need be.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn save(&self, folder: &Path, format: Format) -> Result<(), ModelError> {
        fs::create_dir_all(folder).map_err(io(folder))?;
        self.write_weights(&folder.join("model.safetensors"), format)?;
        let mut config = self.config().value().clone();
        if let Value::Object(keys) = &mut config {
            keys.insert("architectures".into(), json!([architecture(self.config())?.class]));
            keys.insert("dtype".into(), format.torch().into());
            // Its older name.
            keys.remove("torch_dtype");
        }
        write_json(&folder.join("config.json"), &config)?;
        let ends = || -> Map<String, Value> {
            ENDS.iter().filter_map(|&key| Some((key.to_owned(), self.config().get(key)?.clone()))).collect()
        };
        let generation = self.generation.clone().unwrap_or_else(|| ends().into());
        write_json(&folder.join("generation_config.json"), &generation)
    }

    fn write_weights(&self, path: &Path, format: Format) -> Result<(), ModelError> {
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let tensors = self.tensors().iter().map(|tensor| (tensor.name(), Written { tensor, format }));
        renamed(path, |path| {
            safetensors::serialize_to_file(tensors, Some(metadata), path).map_err(|error| match error {
                SafeTensorError::IoError(error) => error,
                other => std::io::Error::other(other),
            })
        })
    }
}

/// A tensor as it is written.
struct Written<'a> {
    tensor: &'a Parameter,
    format: Format,
}

impl View for Written<'_> {
    fn dtype(&self) -> Dtype {
        match self.format {
            Format::F32 => Dtype::F32,
            Format::F16 => Dtype::F16,
            Format::BF16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let numbers = self.tensor.numbers();
        match self.format {
            Format::F32 => bytemuck::cast_slice(numbers).into(),
            Format::F16 => numbers.iter().flat_map(|n| f16::from_f32(*n).to_le_bytes()).collect(),
            Format::BF16 => numbers.iter().flat_map(|n| bf16::from_f32(*n).to_le_bytes()).collect(),
        }
    }

    fn data_len(&self) -> usize {
        let size = if self.format == Format::F32 { 4 } else { 2 };
        self.tensor.numbers().len() * size
    }
}

fn write_json(path: &Path, value: &Value) -> Result<(), ModelError> {
    renamed(path, |path| fs::write(path, format!("{value:#}\n")))
}

/// Writes a file under another name first.
fn renamed(path: &Path, write: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<(), ModelError> {
    let unfinished = path.with_extension("unfinished");
    write(&unfinished).and_then(|()| fs::rename(&unfinished, path)).map_err(io(path))
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ModelError {
    let path = path.to_path_buf();
    |source| ModelError::Io { path, source }
}
