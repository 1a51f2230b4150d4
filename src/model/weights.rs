//! Named tensors and the configuration of a model, on disk or in memory.
//!
//! Knows the files and number formats, and leaves large tensors where they are: a matrix is a view of the mapped
//! file in the format it has there. Does not know which tensors an architecture needs.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytemuck::AnyBitPattern;
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::{Dtype, SafeTensors};

use super::ModelError;
use super::config::Config;
use super::gguf::Gguf;
use super::ops::gradients::{TensorId, Vector};
use super::ops::matmul::{Numbers, Slice};

/// A model's tensors by their Hugging Face names.
pub struct Weights {
    config: Config,
    source: Source,
    /// The shape of each tensor that was handed out.
    handed_out: RefCell<BTreeMap<String, Vec<usize>>>,
}

/// A tensor in memory, which is trained.
pub(super) struct Trained {
    /// Its number among the parameters.
    pub id: TensorId,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its numbers, row by row.
    pub numbers: Arc<Vec<f32>>,
}

/// Where the tensors are.
enum Source {
    /// One or several safetensors files.
    Safetensors(Files),
    /// A GGUF file, dequantised as it is read.
    Gguf(PathBuf, Gguf),
    /// A model's parameters, which are trained.
    Memory(BTreeMap<String, Trained>),
    /// Nowhere: zeros of any name and shape, from which one learns what an architecture asks for.
    Nowhere,
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
                handed_out: RefCell::default(),
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
        Ok(Self { config, source, handed_out: RefCell::default() })
    }

    /// Parameters that are trained, by their names.
    pub(super) fn trained(config: Config, tensors: BTreeMap<String, Trained>) -> Self {
        Self { config, source: Source::Memory(tensors), handed_out: RefCell::default() }
    }

    /// Zeros, whatever is asked for.
    pub(super) fn nowhere(config: Config) -> Self {
        Self { config, source: Source::Nowhere, handed_out: RefCell::default() }
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The numbers of the tensor of this name, which has to have this shape, row by row.
    ///
    /// The name is the full one (`transformer.h.0.…`, `model.layers.0.…`); files that leave the first part
    /// away are understood.
    ///
    /// # Errors
    /// No such tensor, another shape, a number format that is not read.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Numbers, ModelError> {
        let (found, path) = match &self.source {
            Source::Safetensors(files) => {
                match aliases(name).find_map(|n| files.tensors.get(n).map(|t| (n, t))) {
                    Some((name, entry)) => {
                        (Some((entry.shape.clone(), files.read(name, entry)?)), files.path(entry))
                    }
                    None => (None, files.folder.as_path()),
                }
            }
            Source::Gguf(path, gguf) => match gguf.tensor(name)? {
                Some(tensor) => {
                    let numbers = tensor.flatten_all()?.to_vec1::<f32>()?;
                    (Some((tensor.dims().to_vec(), Numbers::F32(numbers.into()))), path.as_path())
                }
                None => (None, path.as_path()),
            },
            Source::Memory(tensors) => {
                let trained = |Trained { id, shape, numbers }: &Trained| {
                    (shape.clone(), Numbers::F32(Slice::trained(numbers.clone(), *id)))
                };
                (tensors.get(name).map(trained), self.config.path())
            }
            Source::Nowhere => {
                let zeros = vec![0.0f32; shape.iter().product()];
                (Some((shape.to_vec(), zeros.into())), self.config.path())
            }
        };
        let Some((found, numbers)) = found else {
            return Err(ModelError::MissingTensor { path: path.to_path_buf(), name: name.to_owned() });
        };
        if found != shape {
            return Err(ModelError::WrongShape {
                path: path.to_path_buf(),
                name: name.to_owned(),
                expected: shape.to_vec(),
                found,
            });
        }
        self.handed_out.borrow_mut().insert(name.to_owned(), shape.to_vec());
        Ok(numbers)
    }

    /// A vector of `len` numbers in f32: small tensors, which are copied.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn vector(&self, name: &str, len: usize) -> Result<Vector, ModelError> {
        let numbers = self.tensor(name, &[len])?;
        Ok(match numbers.tensor() {
            Some(id) => Vector::trained(numbers.to_f32(), id),
            None => numbers.to_f32().into(),
        })
    }

    /// The names and shapes of the tensors that have been handed out, by name.
    pub(super) fn handed_out(&self) -> BTreeMap<String, Vec<usize>> {
        self.handed_out.borrow().clone()
    }

    /// How many numbers have been handed out, those of a tensor counted once.
    pub fn parameters(&self) -> usize {
        self.handed_out.borrow().values().map(|shape| shape.iter().product::<usize>()).sum()
    }
}

/// A name as `…ForCausalLM` writes it, and as the bare model does.
fn aliases(name: &str) -> impl Iterator<Item = &str> {
    let bare = ["transformer.", "model."].iter().find_map(|prefix| name.strip_prefix(prefix));
    std::iter::once(name).chain(bare)
}

struct Files {
    folder: PathBuf,
    maps: Vec<(PathBuf, Arc<Mmap>)>,
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
            // What is read is what a key was made of: the files below the folder that are not hidden.
            let leads_out =
                |name: &&&str| name.starts_with('/') || name.split('/').any(|part| part.starts_with('.'));
            if let Some(name) = names.iter().find(leads_out) {
                let reason = format!("it names `{name}`, which is no visible file of this folder");
                return Err(ModelError::Damaged { path: index, reason });
            }
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
        // SAFETY: the map is only read. Whoever writes to a model's file while it is in use changes what is
        // computed; a stage looks at its sources' times again before its result is kept.
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
        self.maps.push((path, Arc::new(map)));
        Ok(())
    }

    fn path(&self, entry: &Entry) -> &Path {
        &self.maps[entry.file].0
    }

    fn read(&self, name: &str, entry: &Entry) -> Result<Numbers, ModelError> {
        let (path, map) = &self.maps[entry.file];
        Ok(match entry.dtype {
            Dtype::F32 => Numbers::F32(mapped(map, &entry.bytes)),
            Dtype::F16 => Numbers::F16(mapped(map, &entry.bytes)),
            Dtype::BF16 => Numbers::BF16(mapped(map, &entry.bytes)),
            other => {
                return Err(ModelError::WrongDType {
                    path: path.clone(),
                    name: name.to_owned(),
                    found: format!("{other:?}"),
                });
            }
        })
    }
}

#[cfg(target_endian = "big")]
compile_error!("weights are read as they lie in their files, which are little-endian");

/// Numbers that stay in their file; copied only where they begin at an odd address.
fn mapped<T: AnyBitPattern + Send + Sync>(map: &Arc<Mmap>, bytes: &Range<usize>) -> Slice<T> {
    let view = &map[bytes.clone()];
    match bytemuck::try_cast_slice::<u8, T>(view) {
        Ok(numbers) => {
            let range = 0..numbers.len();
            Slice::new(Arc::new(Mapped { map: map.clone(), bytes: bytes.clone(), kind: PhantomData }), range)
        }
        Err(_) => {
            let numbers = view.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned);
            numbers.collect::<Vec<T>>().into()
        }
    }
}

/// A part of a mapped file.
struct Mapped<T> {
    map: Arc<Mmap>,
    bytes: Range<usize>,
    kind: PhantomData<T>,
}

impl<T> Drop for Mapped<T> {
    /// What nobody looks at any more leaves memory: a model that was converted shall not take twice the room.
    fn drop(&mut self) {
        let Range { start, end } = self.bytes;
        // SAFETY: the map is private and only read, so that pages that are let go are read from the file again when
        // somebody does look, as a neighbour on the same page may. If the system refuses, they stay.
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
    }
}

impl<T: AnyBitPattern> AsRef<[T]> for Mapped<T> {
    fn as_ref(&self) -> &[T] {
        bytemuck::cast_slice(&self.map[self.bytes.clone()])
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
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
                assert_eq!(*weights.vector(name, 2).unwrap(), values);
            }
        }
    }

    #[test]
    fn other_numbers_are_refused_by_name() {
        let dir = folder(Dtype::I32, &[0; 8]);
        let Err(error) = Weights::open(dir.path()).unwrap().tensor("h.0.weight", &[2]) else {
            panic!("read")
        };
        let file = dir.path().join("model.safetensors");
        assert_eq!(
            error.to_string(),
            format!("{}: tensor `h.0.weight` is I32; f32, f16 and bf16 can be read", file.display())
        );
    }
}
