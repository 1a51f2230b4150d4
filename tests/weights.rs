//! Training every weight: gradients against torch's (`make_tiny.py`) and against differences of the loss, and the
//! folders that come of it.

// Helpers of a test may fail as the test itself would, and say what they skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod numbers;

use std::collections::BTreeMap;
use std::path::Path;

use numbers::{data, distance, ids, json, load, logits, tensors};
use pipe::model::config::Config;
use pipe::model::decoder::Keep;
use pipe::model::{Dropout, Format, Gradients, Parameters, Precision};
use pipe::train::weight_gradient::differentiate_weights;
use pipe::train::{Pads, Row};
use serde_json::json;

const FAMILIES: [&str; 3] = ["bloom", "gpt2", "llama"];

/// A row whose every token is to be predicted.
fn row(ids: &[u32]) -> Row {
    Row { ids: ids.to_vec(), labels: ids.iter().copied().map(Some).collect(), pads: Pads::Before(0) }
}

/// The rows that `weights.safetensors` is about.
fn rows(family: &str) -> Vec<Row> {
    let expected = json(&data(family).join("expected.json"));
    expected["rows"].as_array().unwrap()[..5].iter().map(|r| row(&ids(&r["ids"]))).collect()
}

/// Loss and gradients of some rows, in micro-batches.
fn differentiate(
    parameters: &Parameters,
    micro_batches: &[&[Row]],
    keep: Keep,
    dropout: Dropout,
) -> (f64, Gradients) {
    let model = parameters.model(Precision::F32).unwrap();
    let labels = micro_batches.iter().flat_map(|rows| rows.iter()).map(|row| row.kept(0)).sum();
    let mut gradients = parameters.gradients();
    let mut loss = 0.0;
    for rows in micro_batches {
        let rows: Vec<&Row> = rows.iter().collect();
        loss += differentiate_weights(&model, &rows, 0, labels, keep, dropout, &mut gradients).unwrap().loss;
    }
    (loss, gradients)
}

/// Length of a gradient's difference to another, over the other's length.
fn off(gradient: &[f32], expected: &[f32]) -> f64 {
    let norm =
        |numbers: &mut dyn Iterator<Item = f32>| numbers.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    assert_eq!(gradient.len(), expected.len());
    norm(&mut gradient.iter().zip(expected).map(|(a, b)| a - b))
        / norm(&mut expected.iter().copied()).max(1e-6)
}

fn same(name: &str, parameters: &Parameters, found: &Gradients, expected: &Gradients, tolerance: f64) {
    for ((tensor, found), expected) in
        parameters.tensors().iter().zip(found.tensors()).zip(expected.tensors())
    {
        let error = off(found, expected);
        assert!(error < tolerance, "{name}: {} is off by {error:e}", tensor.name());
    }
}

#[test]
fn every_weight_gets_the_gradient_that_torch_computes() {
    for family in FAMILIES {
        let parameters = Parameters::open(&data(family)).unwrap();
        let mut expected = tensors(&data(family).join("weights.safetensors"));
        let expected_loss = f64::from(expected.remove("loss").unwrap().to_vec1::<f32>().unwrap()[0]);
        let rows = rows(family);
        for keep in [Keep::Everything, Keep::BlockInputs] {
            let (loss, gradients) = differentiate(&parameters, &[&rows], keep, Dropout::Off);
            assert!((loss - expected_loss).abs() < 1e-6 * expected_loss, "{family}: {loss} {expected_loss}");
            assert_eq!(parameters.tensors().len(), expected.len(), "{family}");
            for (tensor, gradient) in parameters.tensors().iter().zip(gradients.tensors()) {
                let expected = &expected[tensor.name()];
                assert_eq!(tensor.shape(), expected.dims(), "{family}: {}", tensor.name());
                let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
                // The keys' biases change no probability: what comes out is rounding.
                let nothing =
                    expected.iter().all(|g| g.abs() < 1e-7) && gradient.iter().all(|g| g.abs() < 1e-6);
                let error = off(gradient, &expected);
                assert!(nothing || error < 2e-5, "{family}: {} is off by {error:e}", tensor.name());
            }
        }
    }
}

#[test]
fn micro_batches_and_rows_that_begin_alike_add_up() {
    for family in FAMILIES {
        let parameters = Parameters::open(&data(family)).unwrap();
        let first = rows(family)[0].ids.clone();
        let rows =
            [row(&first), row(&[&first[..6], &[9, 7, 5]].concat()), row(&[&first[..9], &[11, 4]].concat())];
        let (loss, whole) = differentiate(&parameters, &[&rows], Keep::Everything, Dropout::Off);
        let (parts_loss, parts) =
            differentiate(&parameters, &[&rows[..1], &rows[1..]], Keep::Everything, Dropout::Off);
        assert!((loss - parts_loss).abs() < 1e-6 * loss, "{loss} {parts_loss}");
        same(family, &parameters, &parts, &whole, 2e-5);
    }
}

/// A model of each family with fresh weights and dropout.
fn dropping() -> Vec<Parameters> {
    let common = json!({"vocab_size": 40, "initializer_range": 0.3});
    let families = [
        json!({"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 16,
            "embd_pdrop": 0.2, "attn_pdrop": 0.3, "resid_pdrop": 0.25}),
        json!({"model_type": "bloom", "hidden_size": 16, "n_head": 2, "n_layer": 2,
            "attention_dropout": 0.3, "hidden_dropout": 0.2}),
        json!({"model_type": "llama", "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
            "num_hidden_layers": 2, "intermediate_size": 24, "attention_dropout": 0.4}),
    ];
    let fresh = |mut config: serde_json::Value| {
        config.as_object_mut().unwrap().extend(common.as_object().unwrap().clone());
        Parameters::fresh(Config::new("config.json", config), 3).unwrap()
    };
    families.into_iter().map(fresh).collect()
}

#[test]
fn gradients_are_slopes_of_the_loss_with_and_without_dropout() {
    let rows = [row(&[1, 5, 9, 30, 2, 2, 17, 8, 11, 3]), row(&[4, 4, 39, 21, 0, 6, 33])];
    for mut parameters in dropping() {
        let family = parameters.config().text("model_type").unwrap().to_owned();
        for dropout in [Dropout::Off, Dropout::On { seed: 1, pass: 7 }] {
            let (_, gradients) = differentiate(&parameters, &[&rows], Keep::Everything, dropout);
            for i in 0..gradients.tensors().len() {
                let gradient = &gradients.tensors()[i];
                let length = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
                if length < 1e-4 {
                    continue;
                }
                let before = parameters.tensors()[i].numbers().to_vec();
                let mut at = |step: f64| {
                    let numbers = parameters.tensors_mut()[i].numbers_mut();
                    for ((x, before), g) in numbers.iter_mut().zip(&before).zip(gradient) {
                        *x = (f64::from(*before) + step * f64::from(*g) / length) as f32;
                    }
                    differentiate(&parameters, &[&rows], Keep::Everything, dropout).0
                };
                let slope = (at(4e-3) - at(-4e-3)) / 8e-3;
                at(0.0);
                let name = parameters.tensors()[i].name();
                let error = (slope - length).abs() / length;
                assert!(error < 1e-2, "{family}, {dropout:?}: {name} has slope {slope}, gradient {length}");
            }
        }
    }
}

#[test]
fn dropout_is_the_same_again_and_another_every_pass_and_keeps_the_loss_near() {
    let rows = [row(&[1, 5, 9, 30, 2, 2, 17, 8, 11, 3]), row(&[4, 4, 39, 21, 0, 6, 33])];
    for parameters in dropping() {
        let pass = |pass, keep| differentiate(&parameters, &[&rows], keep, Dropout::On { seed: 1, pass });
        let (loss, gradients) = pass(7, Keep::Everything);
        // Computed again, layer by layer, the same numbers are dropped.
        assert_eq!((loss, gradients), pass(7, Keep::BlockInputs));
        let (plain, _) = differentiate(&parameters, &[&rows], Keep::Everything, Dropout::Off);
        let losses: Vec<f64> = (0..60).map(|i| pass(i, Keep::Everything).0).collect();
        assert!(losses.iter().all(|l| *l != plain) && losses.windows(2).all(|l| l[0] != l[1]));
        let mean = losses.iter().sum::<f64>() / 60.0;
        assert!((mean - plain).abs() < 0.2 * plain, "{mean} {plain}");
    }
}

#[test]
fn a_padding_token_of_llama_is_not_trained_where_it_is_looked_up() {
    let config = json!({"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "pad_token_id": 3,
        "num_hidden_layers": 1, "intermediate_size": 12, "vocab_size": 10});
    let parameters = Parameters::fresh(Config::new("config.json", config), 1).unwrap();
    let (_, gradients) = differentiate(&parameters, &[&[row(&[1, 3, 4, 5])]], Keep::Everything, Dropout::Off);
    let at = parameters.tensors().iter().position(|t| t.name() == "model.embed_tokens.weight").unwrap();
    let moved = |id: usize| gradients.tensors()[at][8 * id..][..8].iter().any(|g| *g != 0.0);
    assert_eq!([1, 3, 4, 5].map(moved), [true, false, true, false]);
    assert_eq!(parameters.tensors()[at].numbers()[24..32], [0.0; 8]);
}

#[test]
fn fresh_weights_are_drawn_as_transformers_draws_them() {
    let config = json!({"model_type": "gpt2", "n_embd": 64, "n_head": 2, "n_layer": 8, "n_positions": 128,
        "vocab_size": 300, "initializer_range": 0.05});
    let parameters = Parameters::fresh(Config::new("config.json", config.clone()), 1).unwrap();
    let again = Parameters::fresh(Config::new("config.json", config.clone()), 1).unwrap();
    let other = Parameters::fresh(Config::new("config.json", config), 2).unwrap();
    for (i, tensor) in parameters.tensors().iter().enumerate() {
        let (name, numbers) = (tensor.name(), tensor.numbers());
        assert_eq!(numbers, again.tensors()[i].numbers(), "{name}");
        assert_eq!(tensor.decays(), tensor.shape().len() == 2, "{name}");
        if !tensor.decays() {
            let expected = if name.ends_with(".bias") { 0.0 } else { 1.0 };
            assert!(numbers.iter().all(|x| *x == expected), "{name}");
            continue;
        }
        assert_ne!(numbers, other.tensors()[i].numbers(), "{name}");
        let deviation = if name.ends_with("c_proj.weight") { 0.05 / 4.0 } else { 0.05 };
        let found =
            (numbers.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / numbers.len() as f64).sqrt();
        assert!((found / deviation - 1.0).abs() < 0.05, "{name}: {found}");
    }
    assert_eq!(parameters.tensors().len(), 8 * 12 + 4);
    assert_eq!(parameters.count(), parameters.model(Precision::F32).unwrap().parameters());
}

/// Names and shapes of a weights file, or of a folder's several.
fn contents(folder: &Path) -> BTreeMap<String, Vec<usize>> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let weights = files.filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("model") && name.ends_with(".safetensors")
    });
    weights.flat_map(|path| tensors(&path)).map(|(name, tensor)| (name, tensor.dims().to_vec())).collect()
}

#[test]
fn a_saved_model_has_the_names_of_the_one_it_came_from_and_computes_the_same() {
    for family in FAMILIES {
        let parameters = Parameters::open(&data(family)).unwrap();
        let rows = rows(family);
        let rows: Vec<&Row> = rows.iter().collect();
        let expected = logits(&load(&data(family)), None, &rows);
        for (format, dtype, tolerance) in
            [(Format::F32, "float32", 0.0), (Format::F16, "float16", 0.02), (Format::BF16, "bfloat16", 0.2)]
        {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("new/model");
            parameters.save(&folder, format).unwrap();
            let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().file_name()).collect();
            assert_eq!(files.len(), 3, "{files:?}");
            assert_eq!(contents(&folder), contents(&data(family)), "{family}");
            let error = distance(&logits(&load(&folder), None, &rows), &expected);
            assert!(error <= tolerance, "{family} as {dtype}: off by {error}");
            let mut config = json(&data(family).join("config.json"));
            config["dtype"] = dtype.into();
            assert_eq!(json(&folder.join("config.json")), config);
            let generation = "generation_config.json";
            assert_eq!(json(&folder.join(generation)), json(&data(family).join(generation)));
        }
    }
}

#[test]
fn a_fresh_model_says_how_its_text_begins_and_ends() {
    let config = json!({"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 8,
        "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "float16"});
    let dir = tempfile::tempdir().unwrap();
    Parameters::fresh(Config::new("config.json", config), 1).unwrap().save(dir.path(), Format::F32).unwrap();
    let saved = json(&dir.path().join("config.json"));
    assert_eq!(saved["architectures"], json!(["GPT2LMHeadModel"]));
    assert_eq!((&saved["dtype"], saved.get("torch_dtype")), (&json!("float32"), None));
    let generation = json(&dir.path().join("generation_config.json"));
    assert_eq!(generation, json!({"bos_token_id": 0, "eos_token_id": 0}));
    assert!(!contents(dir.path()).contains_key("lm_head.weight"));
}

#[test]
fn a_configuration_that_can_not_be_used_is_refused() {
    let message = |config| Parameters::fresh(Config::new("config.json", config), 1).unwrap_err().to_string();
    assert_eq!(
        message(json!({"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 8,
            "vocab_size": 20, "resid_pdrop": 1.0})),
        "config.json: `resid_pdrop` is 1, a number from 0 up to below 1 is needed"
    );
    assert_eq!(message(json!({"model_type": "gpt2", "n_embd": 8})), "config.json: `n_layer` is missing");
    assert_eq!(
        message(json!({"model_type": "opt"})),
        "config.json: architecture `opt` is not known; known are bloom, gpt2, llama"
    );
}
