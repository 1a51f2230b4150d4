//! Tiny models of every family against what transformers and PEFT computed with them (`make_tiny.py`).

// Helpers of a test may fail as the test itself would, and say what they skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod numbers;

use std::ops::ControlFlow;
use std::path::Path;

use numbers::{
    Recorder, data, distance, ids, indices, json, load, logits, loss_and_gradient, relative, tensors, train,
};
use pipe::model::generate::{GenerateOptions, greedy};
use pipe::model::{self, Precision};
use pipe::train::order::Shuffle;
use pipe::train::recipe::Length;
use pipe::train::score::{Score, score};
use pipe::train::{Pads, Recipe, Row, init};

const FAMILIES: [&str; 3] = ["bloom", "gpt2", "llama"];

fn rows(expected: &serde_json::Value) -> Vec<Row> {
    let row = |r: &serde_json::Value| Row {
        ids: ids(&r["ids"]),
        labels: r["labels"].as_array().unwrap().iter().map(|v| v.as_u64().map(|l| l as u32)).collect(),
        pads: Pads::Before(r["pads_before"].as_u64().unwrap() as usize),
    };
    expected["rows"].as_array().unwrap().iter().map(row).collect()
}

fn options(expected: &serde_json::Value) -> Recipe {
    Recipe {
        length: Length::Epochs(expected["epochs"].as_u64().unwrap() as usize),
        batch_size: expected["batch_size"].as_u64().unwrap() as usize,
        learning_rate: expected["learning_rate"].as_f64().unwrap(),
        shuffle: Some(Shuffle::Dataloader),
        ..Recipe::default()
    }
}

#[test]
fn logits_without_a_prompt() {
    for family in FAMILIES {
        let (folder, expected) = (data(family), json(&data(family).join("expected.json")));
        let model = load(&folder);
        assert_eq!(model.parameters() as u64, expected["parameters"].as_u64().unwrap(), "{family}");
        let (numbers, rows) = (tensors(&folder.join("expected.safetensors")), rows(&expected));
        let packed = logits(&model, None, &[&rows[0], &rows[1]]);
        let first = rows[0].ids.len();
        for (i, start) in [(0, 0), (1, first)] {
            let part = packed.narrow(0, start, rows[i].ids.len()).unwrap();
            let error = distance(&part, &numbers[&format!("logits.{i}")]);
            assert!(error < 2e-5, "{family}, row {i}: off by {error}");
        }
    }
}

#[test]
fn loss_and_gradient_of_a_prompt() {
    for family in FAMILIES {
        let (folder, expected) = (data(family), json(&data(family).join("expected.json")));
        let (model, rows) = (load(&folder), rows(&expected));
        let numbers = tensors(&folder.join("expected.safetensors"));
        let init = init::text(&model, &ids(&expected["init_text_ids"]), 4).unwrap();
        assert_eq!(distance(&init, &numbers["init"]), 0.0, "{family}");
        let (loss, gradient) = loss_and_gradient(&model, &init, &rows[..4].iter().collect::<Vec<_>>());
        let expected: f32 = numbers["loss"].to_vec1().unwrap()[0];
        assert!((loss - expected).abs() < 1e-5 * expected, "{family}: {loss} {expected}");
        let error = relative(&gradient, &numbers["grad"]);
        assert!(error < 1e-4, "{family}: gradient off by {error}");
    }
}

#[test]
fn training_follows_peft_step_by_step_whatever_the_micro_batch() {
    for (family, micro_batch_size) in FAMILIES.into_iter().flat_map(|f| [(f, None), (f, Some(3))]) {
        let (folder, expected) = (data(family), json(&data(family).join("expected.json")));
        let (model, rows) = (load(&folder), rows(&expected));
        let numbers = tensors(&folder.join("expected.safetensors"));
        let options = Recipe { micro_batch_size, ..options(&expected) };
        let mut recorder = Recorder::default();
        let trained = train(&model, &numbers["init"], &rows, &options, &mut recorder).unwrap();
        let steps = expected["steps"].as_array().unwrap();
        assert_eq!(recorder.0.len(), steps.len());
        for (step, expected) in recorder.0.iter().zip(steps) {
            assert_eq!(step.rows, indices(&expected["rows"]), "{family}, step {}", step.step);
            let expected = expected["loss"].as_f64().unwrap();
            let error = (step.loss - expected).abs() / expected;
            assert!(error < 1e-4, "{family}, step {}: {} {expected}", step.step, step.loss);
        }
        let error = relative(&trained, &numbers["trained"]);
        assert!(error < 1e-3, "{family}: prompt off by {error}");
    }
}

#[test]
fn a_window_of_several_batches_is_one_batch() {
    let expected = json(&data("llama").join("expected.json"));
    let (model, rows) = (load(&data("llama")), rows(&expected));
    let init = init::random(&model, 3, 5).unwrap();
    let run = |batch_size, gradient_accumulation| {
        let options = Recipe {
            length: Length::Steps(4),
            batch_size,
            gradient_accumulation,
            max_grad_norm: Some(0.01),
            ..options(&expected)
        };
        let mut recorder = Recorder::default();
        train(&model, &init, &rows, &options, &mut recorder).unwrap();
        recorder.0.iter().map(|s| (s.rows.clone(), s.loss)).collect::<Vec<_>>()
    };
    for (one, several) in run(6, 1).iter().zip(run(2, 3)) {
        assert_eq!(one.0, several.0);
        assert!((one.1 - several.1).abs() < 1e-5, "{} {}", one.1, several.1);
    }
}

#[test]
fn rows_without_a_label_change_nothing() {
    for family in FAMILIES {
        let (folder, expected) = (data(family), json(&data(family).join("expected.json")));
        let (model, good) = (load(&folder), rows(&expected));
        let mut with = good[..3].to_vec();
        with[1].labels.fill(None);
        let without = [good[0].clone(), good[2].clone()];
        let init = &tensors(&folder.join("expected.safetensors"))["init"];
        let run = |rows: &[Row], micro_batch_size| {
            let options = Recipe {
                length: Length::Steps(1),
                batch_size: 3,
                micro_batch_size,
                shuffle: None,
                ..Recipe::default()
            };
            let mut recorder = Recorder::default();
            train(&model, init, rows, &options, &mut recorder).unwrap();
            (recorder.0[0].loss, recorder.0[0].tokens)
        };
        assert_eq!(run(&with, None), run(&without, None), "{family}");
        assert_eq!(run(&with, Some(1)), run(&without, Some(1)), "{family}, one row at a time");
        let mut go_on = |_| ControlFlow::Continue(());
        let scores = score(&model, None, &with, 1, &mut go_on).unwrap();
        assert_eq!(scores[1], Score::default(), "{family}");
    }
}

#[test]
fn continuations_are_transformers_own_whatever_the_batch() {
    for (family, batch_size) in FAMILIES.into_iter().flat_map(|f| [(f, 1), (f, 3), (f, 8)]) {
        let (folder, expected) = (data(family), json(&data(family).join("expected.json")));
        let model = load(&folder);
        let prompt = &tensors(&folder.join("expected.safetensors"))["trained"];
        let generations = expected["generations"].as_array().unwrap();
        let rows: Vec<_> = generations.iter().map(|g| ids(&g["ids"])).collect();
        let options = GenerateOptions { max_new_tokens: 6, end: vec![3], batch_size };
        let new = greedy(&model, Some(prompt), &rows, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        let expected: Vec<_> = generations.iter().map(|g| ids(&g["new"])).collect();
        assert_eq!(new, expected, "{family} in batches of {batch_size}");
    }
}

#[test]
fn an_empty_row_goes_on_from_the_prompt_and_not_from_nothing() {
    let model = load(&data("bloom"));
    let prompt = init::text(&model, &[5, 6, 7], 3).unwrap();
    let options = GenerateOptions { max_new_tokens: 3, end: vec![], batch_size: 2 };
    let rows = [vec![9], vec![]];
    let mut go_on = |_| ControlFlow::Continue(());
    let new = greedy(&model, Some(&prompt), &rows, &options, &mut go_on).unwrap();
    // The same three tokens as words instead of virtual ones.
    let words = greedy(&model, None, &[vec![5, 6, 7]], &options, &mut go_on).unwrap();
    assert_eq!(new[1], words[0]);
    let error = greedy(&model, None, &rows, &options, &mut go_on).unwrap_err();
    assert_eq!(
        error.to_string(),
        "row 1 has no tokens and there is no prompt before it: nothing to continue"
    );
}

#[test]
fn scores_add_up_to_the_loss_of_training() {
    for family in FAMILIES {
        let (folder, expected) = (data(family), json(&data(family).join("expected.json")));
        let (model, rows) = (load(&folder), rows(&expected));
        let numbers = tensors(&folder.join("expected.safetensors"));
        let prompt = Some(&numbers["init"]);
        let mut go_on = |_| ControlFlow::Continue(());
        let scores = score(&model, prompt, &rows[..4], 4, &mut go_on).unwrap();
        let single = score(&model, prompt, &rows[..4], 1, &mut go_on).unwrap();
        for (a, b) in scores.iter().zip(&single) {
            assert!((a.nll - b.nll).abs() < 1e-4 && a.kept == b.kept && a.correct == b.correct);
        }
        let total: Score = scores.into_iter().sum();
        let expected = f64::from(numbers["loss"].to_vec1::<f32>().unwrap()[0]);
        assert!((total.loss() - expected).abs() < 1e-5 * expected, "{family}");
        let stop = score(&model, prompt, &rows, 4, &mut |_| ControlFlow::Break(())).unwrap_err();
        assert_eq!(stop.to_string(), "interrupted");
    }
}

#[test]
fn training_refuses_what_can_not_be_trained() {
    let expected = json(&data("gpt2").join("expected.json"));
    let (model, good) = (load(&data("gpt2")), rows(&expected));
    let init = init::text(&model, &[5, 6], 2).unwrap();
    let message = |init: &candle_core::Tensor, rows: &[Row], options: Recipe| {
        train(&model, init, rows, &options, &mut Recorder::default()).unwrap_err().to_string()
    };
    let options = || Recipe { shuffle: None, batch_size: 2, ..Recipe::default() };
    let with = |change: fn(&mut Row)| {
        let mut rows = good.clone();
        change(&mut rows[1]);
        message(&init, &rows, options())
    };
    assert_eq!(message(&init, &[], options()), "there are no rows to train on");
    assert_eq!(message(&init, &good, Recipe { batch_size: 0, ..options() }), "batch_size must be at least 1");
    assert_eq!(with(|r| r.labels.truncate(1)), "row 1 has 16 ids and 1 labels");
    assert_eq!(
        with(|r| r.labels[1] = Some(80)),
        "row 1: label 80 is outside the model's vocabulary of 80: tokenizer and model do not belong together"
    );
    assert_eq!(
        with(|r| r.ids[1] = 99),
        "token id 99 is outside the model's vocabulary of 80: tokenizer and model do not belong together"
    );
    assert_eq!(with(|r| r.pads = Pads::Before(48)), "position 64 is needed, and the model has 48 positions");
    let mut rows = good.clone();
    rows[2..4].iter_mut().for_each(|r| r.labels.fill(None));
    assert_eq!(
        message(&init, &rows, options()),
        "step 2: none of its rows (2, 3) has a label that is kept; were the labels cut off?"
    );
    let nan = (&init * f64::NAN).unwrap();
    assert_eq!(
        message(&nan, &good, options()),
        "step 1: the loss is NaN (rows 0, 1); a smaller learning_rate may help"
    );
    let wide = init::text(&load(&data("bloom")), &[5], 1).unwrap();
    assert_eq!(
        message(&wide, &good, options()),
        "the prompt has shape [1, 24], the model needs rows of 16 numbers"
    );
}

/// The message of loading a copy of a tiny model after `spoil` had its way with the folder.
fn message(family: &str, spoil: impl Fn(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(data(family)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    spoil(dir.path());
    let Err(error) = model::load(dir.path(), Precision::F32) else { panic!("it was loaded") };
    error.to_string().replace(&dir.path().display().to_string(), "DIR")
}

fn replace(file: &'static str, from: &'static str, to: &'static str) -> impl Fn(&Path) {
    move |dir| {
        let text = std::fs::read_to_string(dir.join(file)).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(dir.join(file), text.replace(from, to)).unwrap();
    }
}

#[test]
fn a_model_that_can_not_be_loaded_says_why() {
    let config = "config.json";
    assert_eq!(
        message("bloom", replace(config, "\"bloom\"", "\"mamba\"")),
        "DIR/config.json: architecture `mamba` is not known; known are bloom, gpt2, llama"
    );
    assert_eq!(
        message("bloom", replace(config, "\"model_type\"", "\"type\"")),
        "DIR/config.json: `model_type` is missing"
    );
    assert_eq!(
        message("gpt2", replace(config, "\"n_inner\": 40", "\"n_inner\": 48")),
        "DIR/model.safetensors: tensor `transformer.h.0.mlp.c_fc.weight` has shape [16, 40], the configuration \
         needs [16, 48]"
    );
    assert_eq!(
        message("gpt2", replace(config, "\"n_layer\": 2", "\"n_layer\": 3")),
        "DIR: tensor `transformer.h.2.attn.c_attn.weight` is missing"
    );
    assert_eq!(
        message("llama", replace(config, "\"llama3\"", "\"yarn\"")),
        "DIR/config.json: rope scaling `yarn` is not known; known are default, linear, llama3"
    );
    assert_eq!(
        message("llama", |dir| std::fs::remove_file(dir.join("model-00002-of-00003.safetensors")).unwrap()),
        "DIR/model-00002-of-00003.safetensors: No such file or directory (os error 2)"
    );
    assert_eq!(
        message("bloom", |dir| std::fs::remove_file(dir.join("config.json")).unwrap()),
        "DIR: there is no config.json in this folder"
    );
    assert_eq!(
        message("bloom", |dir| {
            std::fs::rename(dir.join("model.safetensors"), dir.join("pytorch_model.bin")).unwrap();
        }),
        "DIR: the weights are only there as pytorch_model.bin, a pickle, which can run any code when it is read; \
         convert them to model.safetensors"
    );
    let cut = message("bloom", |dir| {
        let path = dir.join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    });
    assert!(cut.starts_with("DIR/model.safetensors: damaged or cut off: "), "{cut}");
}
