//! The first values of a soft prompt.

use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};

use super::TrainError;
use super::random::Mt19937;
use crate::model::Decoder;

/// PEFT's TEXT: the embeddings of a text's ids, cut to `n` or repeated up to `n`.
///
/// # Errors
/// No ids, or one outside the vocabulary.
pub fn text(model: &Decoder, ids: &[u32], n: usize) -> Result<Tensor, TrainError> {
    if ids.is_empty() {
        return Err(TrainError::Option("the text that the prompt starts from has no tokens".into()));
    }
    let ids: Vec<u32> = ids.iter().copied().cycle().take(n).collect();
    Ok(model.embed(&ids)?.to_tensor()?)
}

/// Numbers from N(0, 1), `[n, hidden]`.
///
/// # Errors
/// A failed tensor operation.
pub fn random(model: &Decoder, n: usize, seed: u64) -> Result<Tensor, TrainError> {
    let hidden = model.shape().hidden;
    Ok(Tensor::from_vec(Mt19937::new(seed).normals(n * hidden), (n, hidden), &Device::Cpu)?)
}

/// The embeddings of `n` random tokens.
///
/// # Errors
/// A failed tensor operation.
pub fn sample_vocabulary(model: &Decoder, n: usize, seed: u64) -> Result<Tensor, TrainError> {
    let mut generator = Mt19937::new(seed);
    let vocabulary = model.shape().vocabulary as u32;
    let ids: Vec<u32> = (0..n).map(|_| generator.next_u32() % vocabulary).collect();
    Ok(model.embed(&ids)?.to_tensor()?)
}

/// Rows of f32 from a file: the one tensor of a `.safetensors` file (an adapter's, say), or bare
/// little-endian numbers.
///
/// # Errors
/// The file can't be read, or does not hold `n` rows of the model's width.
pub fn file(model: &Decoder, n: usize, path: &Path) -> Result<Tensor, TrainError> {
    let wrong = |reason: String| TrainError::InitFile { path: path.to_path_buf(), reason };
    let hidden = model.shape().hidden;
    let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let values = if path.extension().is_some_and(|e| e == "safetensors") {
        let view = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
        let mut tensors = view.tensors();
        let (name, tensor) = match (tensors.pop(), tensors.len()) {
            (Some(only), 0) => only,
            (_, more) => return Err(wrong(format!("one tensor is needed, the file has {}", more + 1))),
        };
        if tensor.dtype() != Dtype::F32 || tensor.shape() != [n, hidden] {
            let (dtype, shape) = (tensor.dtype(), tensor.shape());
            return Err(wrong(format!("`{name}` is {dtype:?} {shape:?}, F32 [{n}, {hidden}] is needed")));
        }
        numbers(tensor.data())
    } else {
        if bytes.len() != n * hidden * 4 {
            let found = bytes.len();
            return Err(wrong(format!(
                "{n} rows of {hidden} f32 numbers take {} bytes, the file has {found}",
                n * hidden * 4
            )));
        }
        numbers(&bytes)
    };
    if let Some(i) = values.iter().position(|v| !v.is_finite()) {
        return Err(wrong(format!(
            "the number at row {}, column {} is {}",
            i / hidden,
            i % hidden,
            values[i]
        )));
    }
    Ok(Tensor::from_vec(values, (n, hidden), &Device::Cpu)?)
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
