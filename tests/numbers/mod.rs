//! What the tests that compare with recorded numbers share.

// Each test binary compiles this file and uses its own part of it.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use pipe::model::layout::{Layout, PackedRow};
use pipe::model::ops::cross_entropy::cross_entropy;
use pipe::model::{self, Decoder};
use pipe::train::soft_prompt::{Observer, Step};
use pipe::train::{Pads, Row};

pub fn data(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data")).join(name)
}

/// A folder beside the repository that not everybody has.
pub fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared")).join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}

pub fn load(folder: &Path) -> Box<dyn Decoder> {
    model::load(folder, &Device::Cpu).unwrap()
}

pub fn tensors(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

pub fn indices(value: &serde_json::Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect()
}

/// Largest difference of two tensors.
pub fn distance(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

/// Length of the difference over the length of `expected`.
pub fn relative(a: &Tensor, expected: &Tensor) -> f32 {
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    norm(&(a - expected).unwrap()) / norm(expected)
}

/// The padding that stands before a row.
pub fn pads(row: &Row) -> usize {
    match row.pads {
        Pads::Before(pads) => pads,
        Pads::ToLongest => panic!("these rows say how much"),
    }
}

/// Final logits of rows packed behind a prompt, if there is one.
pub fn logits(model: &dyn Decoder, prompt: Option<&Tensor>, rows: &[&Row]) -> Tensor {
    let packed: Vec<_> =
        rows.iter().map(|r| PackedRow { tokens: r.ids.len(), pads_before: pads(r) }).collect();
    let ids: Vec<u32> = rows.iter().flat_map(|r| r.ids.clone()).collect();
    let mut x = model.embed(&ids).unwrap();
    let mut prefix = 0;
    if let Some(prompt) = prompt {
        prefix = prompt.dim(0).unwrap();
        x = Tensor::cat(&[prompt, &x], 0).unwrap();
    }
    let hidden = model.forward(&x, &Arc::new(Layout::packed(prefix, &packed)), None, None).unwrap();
    model.logits(&hidden).unwrap()
}

/// Mean loss over the rows' labels and its gradient for the prompt.
pub fn loss_and_gradient(model: &dyn Decoder, prompt: &Tensor, rows: &[&Row]) -> (f32, Tensor) {
    let prompt = Var::from_tensor(prompt).unwrap();
    let logits = logits(model, Some(&prompt), rows);
    let (mut keep, mut targets) = (Vec::new(), Vec::new());
    let mut start = prompt.dim(0).unwrap();
    for row in rows {
        for (i, label) in row.labels.iter().enumerate() {
            if let Some(label) = label {
                keep.push((start + i - 1) as u32);
                targets.push(*label);
            }
        }
        start += row.ids.len();
    }
    let logits = logits.index_select(&Tensor::new(keep, &Device::Cpu).unwrap(), 0).unwrap();
    let loss = cross_entropy(&logits, &targets, targets.len()).unwrap();
    let gradients = loss.backward().unwrap();
    (loss.to_scalar().unwrap(), gradients.get(&prompt).expect("no gradient for the prompt").clone())
}

/// Keeps every step.
#[derive(Default)]
pub struct Recorder(pub Vec<Step>);

impl Observer for Recorder {
    fn step(&mut self, step: &Step) -> Result<(), pipe::train::TrainError> {
        self.0.push(step.clone());
        Ok(())
    }
}
