//! Named tensors and the configuration of a model on disk.
//!
//! Knows the files and number formats; does not know which tensors an architecture needs.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::ModelError;
use super::config::Config;
use super::gguf::Gguf;

/// A model's tensors by their Hugging Face names, handed out in f32 on the processor.
pub struct Weights {
    config: Config,
    source: Source,
    parameters: Cell<usize>,
}

/// Where the tensors are.
enum Source {
    /// One or several safetensors files.
    Safetensors(Files),
    /// A GGUF file, dequantised as it is read.
    Gguf(PathBuf, Gguf),
}

impl Weights {
    /// Opens a Hugging Face folder (config.json and safetensors in one or several files) or a GGUF file.
    ///
    /// # Errors
    /// What is missing or damaged, by file.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let no_model = |reason: &str| ModelError::NoModel { path: path.to_path_buf(), reason: reason.into() };
        if path.extension().is_some_and(|e| e == "gguf") && path.is_file() {
            let gguf = Gguf::open(path)?;
            let config = Config::new(path, gguf.config());
            return Ok(Self {
                config,
                source: Source::Gguf(path.to_path_buf(), gguf),
                parameters: Cell::new(0),
            });
        }
        if path.is_file() {
            return Err(no_model("a model is a Hugging Face folder or a .gguf file"));
        }
        if !path.is_dir() {
            return Err(no_model("no such folder"));
        }
        let config = path.join("config.json");
        if !config.is_file() {
            return Err(no_model("there is no config.json in this folder"));
        }
        let config = Config::read(&config)?;
        let source = Source::Safetensors(Files::open(path)?);
        Ok(Self { config, source, parameters: Cell::new(0) })
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The tensor of this name, which has to have this shape, in f32.
    ///
    /// The name is the full one (`transformer.h.0.…`, `model.layers.0.…`); files that leave the first part
    /// away are understood.
    ///
    /// # Errors
    /// No such tensor, another shape, a number format that is not read.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let (found, path) = match &self.source {
            Source::Safetensors(files) => {
                match aliases(name).find_map(|n| files.tensors.get(n).map(|t| (n, t))) {
                    Some((name, entry)) => (Some(files.read(name, entry)?), files.path(entry)),
                    None => (None, files.folder.as_path()),
                }
            }
            Source::Gguf(path, gguf) => (gguf.tensor(name)?, path.as_path()),
        };
        let Some(tensor) = found else {
            return Err(ModelError::MissingTensor { path: path.to_path_buf(), name: name.to_owned() });
        };
        if tensor.dims() != shape {
            return Err(ModelError::WrongShape {
                path: path.to_path_buf(),
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: tensor.dims().to_vec(),
            });
        }
        self.parameters.set(self.parameters.get() + tensor.elem_count());
        Ok(tensor)
    }

    /// How many numbers have been handed out.
    pub fn parameters(&self) -> usize {
        self.parameters.get()
    }
}

/// A name as `…ForCausalLM` writes it, and as the bare model does.
fn aliases(name: &str) -> impl Iterator<Item = &str> {
    let bare = ["transformer.", "model."].iter().find_map(|prefix| name.strip_prefix(prefix));
    std::iter::once(name).chain(bare)
}

struct Files {
    folder: PathBuf,
    maps: Vec<(PathBuf, Mmap)>,
    tensors: HashMap<String, Entry>,
}

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Files {
    fn open(folder: &Path) -> Result<Self, ModelError> {
        let mut files = Self { folder: folder.to_path_buf(), maps: Vec::new(), tensors: HashMap::new() };
        let index = folder.join("model.safetensors.index.json");
        if folder.join("model.safetensors").is_file() {
            files.map("model.safetensors")?;
        } else if index.is_file() {
            let config = Config::read(&index)?;
            let shards = config.get("weight_map").and_then(|m| m.as_object());
            let shards = shards.ok_or_else(|| config.lacks("weight_map"))?;
            let mut names: Vec<&str> = shards.values().filter_map(|v| v.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            for name in names {
                files.map(name)?;
            }
        } else {
            let reason = if folder.join("pytorch_model.bin").exists() {
                "the weights are only there as pytorch_model.bin, a pickle, which can run any code when it is \
                 read; convert them to model.safetensors"
            } else {
                "there is no model.safetensors in this folder"
            };
            return Err(ModelError::NoModel { path: folder.to_path_buf(), reason: reason.into() });
        }
        Ok(files)
    }

    fn map(&mut self, name: &str) -> Result<(), ModelError> {
        let path = self.folder.join(name);
        let io = |source| ModelError::Io { path: path.clone(), source };
        let file = File::open(&path).map_err(io)?;
        // SAFETY: the map is only read, and every tensor is copied out of it while the model is loaded.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let view = SafeTensors::deserialize(&map)
            .map_err(|e| ModelError::Damaged { path: path.clone(), reason: e.to_string() })?;
        let start = map.as_ptr() as usize;
        for (name, tensor) in view.iter() {
            let offset = tensor.data().as_ptr() as usize - start;
            let entry = Entry {
                file: self.maps.len(),
                dtype: tensor.dtype(),
                shape: tensor.shape().to_vec(),
                bytes: offset..offset + tensor.data().len(),
            };
            self.tensors.insert(name.to_owned(), entry);
        }
        self.maps.push((path, map));
        Ok(())
    }

    fn path(&self, entry: &Entry) -> &Path {
        &self.maps[entry.file].0
    }

    fn read(&self, name: &str, entry: &Entry) -> Result<Tensor, ModelError> {
        let (path, map) = &self.maps[entry.file];
        let bytes = &map[entry.bytes.clone()];
        let values: Vec<f32> = match entry.dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            other => {
                return Err(ModelError::WrongDType {
                    path: path.clone(),
                    name: name.to_owned(),
                    found: format!("{other:?}"),
                });
            }
        };
        Ok(Tensor::from_vec(values, entry.shape.as_slice(), &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    /// A folder with one tensor `h.0.weight`, [2], of this type.
    fn folder(dtype: Dtype, bytes: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let view = TensorView::new(dtype, vec![2], bytes).unwrap();
        let file = safetensors::serialize([("h.0.weight", view)], None).unwrap();
        std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
        dir
    }

    #[test]
    fn half_precision_is_widened_and_the_first_part_of_a_name_may_be_missing() {
        let values = [1.5f32, -0.25];
        let bf16: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        let f16: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        for (dtype, bytes) in [(Dtype::BF16, bf16), (Dtype::F16, f16)] {
            let dir = folder(dtype, &bytes);
            let weights = Weights::open(dir.path()).unwrap();
            for name in ["h.0.weight", "transformer.h.0.weight", "model.h.0.weight"] {
                assert_eq!(weights.tensor(name, &[2]).unwrap().to_vec1::<f32>().unwrap(), values);
            }
        }
    }

    #[test]
    fn other_numbers_are_refused_by_name() {
        let dir = folder(Dtype::I32, &[0; 8]);
        let error = Weights::open(dir.path()).unwrap().tensor("h.0.weight", &[2]).unwrap_err();
        let file = dir.path().join("model.safetensors");
        assert_eq!(
            error.to_string(),
            format!("{}: tensor `h.0.weight` is I32; f32, f16 and bf16 can be read", file.display())
        );
    }
}
