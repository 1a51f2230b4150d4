//! A model alone on plain text, scored by the binary: perplexity, and the two ways to count labels.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod project;

use project::{Project, tiny_model};

const TEXT: &str = r#"pipeline: text
params: { loss: predicted }
stages:
  lines:
    uses: load_dataset
    with: { path: data }
  tokens:
    uses: tokenize
    inputs: { dataset: lines }
    with: { tokenizer: model, text: "{Tweet text}" }
  scores:
    uses: evaluate
    inputs: { dataset: tokens }
    with: { model: model, split: train, loss_over: "${params.loss}" }
"#;

#[test]
fn a_model_alone_has_a_perplexity_and_nothing_untuned_beside_it() {
    let project = Project::tweets();
    project.write("text.yaml", TEXT);
    std::fs::remove_file(project.path("model")).unwrap();
    std::os::unix::fs::symlink(tiny_model().with_file_name("gpt2"), project.path("model")).unwrap();
    let metrics = |arguments: &[&str]| {
        let summary = project.run(0, &[&["text.yaml"], arguments].concat());
        summary.stage("scores")["metrics"].as_object().unwrap().clone()
    };
    let usual = metrics(&[]);
    assert_eq!(usual.keys().collect::<Vec<_>>(), ["loss", "perplexity", "token_accuracy"]);
    let number =
        |metrics: &serde_json::Map<String, serde_json::Value>, name: &str| metrics[name].as_f64().unwrap();
    let loss = number(&usual, "loss");
    assert!((number(&usual, "perplexity") - loss.exp()).abs() < 1e-9 * loss.exp());

    // Every token is a label and all but a row's first are predicted.
    let rows = project.read(".pipe/runs/latest/stages/scores/predictions.jsonl");
    let rows: Vec<serde_json::Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 12);
    assert!(rows.iter().all(|row| row.get("label").is_none() && row.get("untuned_loss").is_none()));
    let labels: usize = rows.iter().map(|row| row["target_ids"].as_array().unwrap().len()).sum();
    let over_all = metrics(&["--set", "loss=all_labels"]);
    let expected = loss * (labels - rows.len()) as f64 / labels as f64;
    assert!((number(&over_all, "loss") - expected).abs() < 1e-9);
    assert!((number(&over_all, "perplexity") - expected.exp()).abs() < 1e-9 * expected.exp());
    assert_eq!(over_all["token_accuracy"], usual["token_accuracy"]);
}
