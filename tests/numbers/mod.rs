//! What the tests that compare with recorded numbers share.

// Each test binary compiles this file and uses its own part of it.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use pipe::device::{Device as Place, DeviceSpec};
use pipe::model::decoder::Keep;
use pipe::model::layout::{Layout, PackedRow};
use pipe::model::ops::cross_entropy::judge_with_gradient;
use pipe::model::{self, Decoder, Precision};
use pipe::model::{Model, Numerics};
use pipe::train::soft_prompt::{SoftPrompt, before};
use pipe::train::training::{Observer, Step};
use pipe::train::{Pads, Recipe, Row, TrainError, Training};

pub fn data(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data")).join(name)
}

/// A folder beside the repository, or in what `SHARED` names, that not everybody has.
pub fn shared(name: &str) -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared");
    let path = std::env::var_os("SHARED").map_or_else(|| PathBuf::from(beside), PathBuf::from).join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}

pub fn load(folder: &Path) -> Decoder {
    model::load(folder, Precision::F32).unwrap()
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

/// Rows packed behind so many virtual tokens, and their ids.
fn packed(prefix: usize, rows: &[&Row]) -> (Layout, Vec<u32>) {
    let packed: Vec<_> =
        rows.iter().map(|r| PackedRow { tokens: r.ids.len(), pads_before: pads(r) }).collect();
    (Layout::packed(prefix, &packed), rows.iter().flat_map(|r| r.ids.clone()).collect())
}

/// Final logits of rows packed behind a prompt, if there is one.
pub fn logits(model: &Decoder, prompt: Option<&Tensor>, rows: &[&Row]) -> Tensor {
    let prompt = prompt.map(|p| model.prompt(p).unwrap()).unwrap_or_default();
    let (layout, ids) = packed(prompt.len() / model.shape().hidden, rows);
    let all: Vec<u32> = (0..layout.tokens() as u32).collect();
    let states = model.forward(model.embed_behind(&prompt, &ids).unwrap(), &layout, &all, None).unwrap();
    model.logits(&states).to_tensor().unwrap()
}

/// Mean loss over the rows' labels and its gradient for the prompt.
pub fn loss_and_gradient(model: &Decoder, prompt: &Tensor, rows: &[&Row]) -> (f32, Tensor) {
    let virtual_tokens = prompt.dim(0).unwrap();
    let (layout, ids) = packed(virtual_tokens, rows);
    let (mut asked, mut targets) = (Vec::new(), Vec::new());
    let mut start = virtual_tokens;
    for row in rows {
        for (i, label) in row.labels.iter().enumerate() {
            if let Some(label) = label {
                asked.push((start + i - 1) as u32);
                targets.push(*label);
            }
        }
        start += row.ids.len();
    }
    let x = model.embed_behind(&model.prompt(prompt).unwrap(), &ids).unwrap();
    let (states, trace) = model.trace(x, &layout, &asked, Keep::Everything).unwrap();
    let (judged, gradient) = judge_with_gradient(model.head(), &states, &targets, 1.0 / targets.len() as f32);
    let loss = judged.iter().map(|j| j.nll).sum::<f64>() / targets.len() as f64;
    (loss as f32, model.backward(trace, &gradient, virtual_tokens).to_tensor().unwrap())
}

/// Trains a prompt from `init` `[n, hidden]`; gives the trained one.
pub fn train<'m>(
    model: &'m Decoder,
    init: &Tensor,
    rows: &[Row],
    recipe: &Recipe,
    observer: &mut dyn Observer<SoftPrompt<'m>>,
) -> Result<Tensor, TrainError> {
    let mut prompt = SoftPrompt::new(model, init, Keep::Everything)?;
    Training { recipe, rows, eval: &[], checkpoints: None }.run(&mut prompt, observer)?;
    prompt.tensor()
}

/// The device that the recipes are run on: the processor, or what `PIPE_TEST_DEVICE` names.
pub fn device() -> Place {
    let named = std::env::var("PIPE_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    named.parse::<DeviceSpec>().unwrap().open().unwrap()
}

/// How far a loss may be off in the first steps: a GPU's products are summed in other orders.
pub fn tolerance() -> f64 {
    if device() == Place::Cpu { 1e-4 } else { 1e-3 }
}

/// [`train`] of the model in a folder, on the device that the recipes are run on.
pub fn train_there(
    folder: &Path,
    init: &Tensor,
    rows: &[Row],
    recipe: &Recipe,
    recorder: &mut Recorder,
) -> Result<Tensor, TrainError> {
    let model = Model::open(folder, device(), Numerics::default())?;
    let mut prompt = before(&model, init, Keep::Everything)?;
    Training { recipe, rows, eval: &[], checkpoints: None }.run(&mut prompt, recorder)?;
    prompt.prompt()
}

/// Keeps every step.
#[derive(Default)]
pub struct Recorder(pub Vec<Step>);

impl<L> Observer<L> for Recorder {
    fn step(&mut self, step: &Step) -> Result<(), TrainError> {
        self.0.push(step.clone());
        Ok(())
    }
}
