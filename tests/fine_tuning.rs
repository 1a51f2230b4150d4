//! Training every weight, through the binary: the model folder it leaves, from weights, from a configuration, killed
//! on the way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod project;

use std::time::{Duration, Instant};

use project::Project;

const STAGE: &str = ".pipe/runs/latest/stages/tuned";

fn json(project: &Project, name: &str) -> serde_json::Value {
    serde_json::from_str(&project.read(name)).unwrap()
}

/// The digest of the weights.
fn weights(project: &Project) -> Vec<u8> {
    std::fs::read(project.path(&format!("{STAGE}/model/model.safetensors"))).unwrap()
}

#[test]
fn perplexity_falls_every_epoch_and_the_folder_is_a_model() {
    let project = Project::fine_tuning();
    let ran = project.run(0, &["tweets.yaml"]);
    let metrics = json(&project, &format!("{STAGE}/metrics.json"));
    let losses: Vec<f64> =
        metrics["evaluations"].as_array().unwrap().iter().map(|e| e["loss"].as_f64().unwrap()).collect();
    assert_eq!(losses.len(), 3);
    assert!(losses.is_sorted_by(|a, b| a > b), "{losses:?}");
    // What the next stage loads is what was scored last.
    let scores = &ran.stage("scores")["metrics"];
    assert!((scores["loss"].as_f64().unwrap() - losses[2]).abs() < 1e-6, "{scores} {losses:?}");
    assert!((scores["perplexity"].as_f64().unwrap() - losses[2].exp()).abs() < 1e-4);
    let config = json(&project, &format!("{STAGE}/model/config.json"));
    assert_eq!(config["architectures"][0], "GPT2LMHeadModel");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(project.read(&format!("{STAGE}/model/{file}")), project.read(&format!("gpt2/{file}")));
    }
}

#[test]
fn every_epoch_is_pushed_and_the_last_one_is_the_result() {
    let project = Project::fine_tuning();
    project.edit("tweets.yaml", "epochs: 3", "epochs: 3\n      push_every: epoch\n      push_to: pushed");
    project.run(0, &["tweets.yaml"]);
    assert_eq!(std::fs::read(project.path("pushed/model.safetensors")).unwrap(), weights(&project));
    let mut names: Vec<_> =
        std::fs::read_dir(project.path("pushed")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    let files = ["config.json", "generation_config.json", "model.safetensors"];
    assert_eq!(names, [&files[..], &["tokenizer.json", "tokenizer_config.json"]].concat());
}

#[test]
fn from_a_configuration_with_a_tokenizer_of_its_own() {
    let project = Project::fine_tuning();
    project.edit(
        "tweets.yaml",
        "  tokens:\n    uses: tokenize\n    inputs: { dataset: texts }\n    with: { tokenizer: gpt2, text: \"{text}\" }",
        "  words:\n    uses: train_tokenizer\n    inputs: { dataset: texts }\n    with: { text: \"{text}\", vocab_size: 280 }\n  \
         tokens:\n    uses: tokenize\n    inputs: { dataset: texts, tokenizer: words }\n    with: { text: \"{text}\" }",
    );
    project.edit("tweets.yaml", "inputs: { dataset: blocks }\n    with:\n      model: gpt2",
        "inputs: { dataset: blocks, tokenizer: words }\n    with:\n      \
         config: { model_type: llama, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, max_position_embeddings: 64 }\n      save_as: f16");
    let ran = project.run(0, &["tweets.yaml"]);
    assert!(ran.stage("scores")["metrics"]["loss"].as_f64().unwrap() < 280f64.ln());
    let config = json(&project, &format!("{STAGE}/model/config.json"));
    assert_eq!((&config["vocab_size"], &config["dtype"]), (&280.into(), &"float16".into()));
    let first = weights(&project);
    project.run(0, &["tweets.yaml", "--force"]);
    assert_eq!(weights(&project), first);
}

#[test]
fn killed_with_dropout_on_it_goes_on_to_the_same_weights() {
    let (undisturbed, project) = (Project::fine_tuning(), Project::fine_tuning());
    for project in [&undisturbed, &project] {
        let config = project.read("gpt2/config.json").replace("\"resid_pdrop\": 0.0", "\"resid_pdrop\": 0.2");
        for file in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            let to = project.path(&format!("dropping/{file}"));
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(project.path(&format!("gpt2/{file}")), to).unwrap();
        }
        project.write("dropping/config.json", &config);
        project.edit("tweets.yaml", "      model: gpt2", "      model: dropping\n      save_every: 10");
        project.edit("tweets.yaml", "epochs: 3", "epochs: 30");
    }
    undisturbed.run(0, &["tweets.yaml"]);
    let mut child = project.start(&["run", "tweets.yaml"]);
    let start = Instant::now();
    let saved = || project.files(".pipe/cache/v2/unfinished").iter().any(|f| f.0.ends_with("state.json"));
    while !saved() && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "no checkpoint");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    project.run(0, &["tweets.yaml"]);
    assert!(weights(&project) == weights(&undisturbed));
}
