//! Inputs that can't be used: each with exactly what is said. `PIPE_BLESS=1` writes the expected texts anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod project;

use std::fs;
use std::path::{Path, PathBuf};

use project::{Project, tiny_model};

/// Runs the pipeline, which has to fail, and holds what it says against `tests/wrong_inputs/NAME.txt`.
fn says(name: &str, project: &Project, code: i32, arguments: &[&str]) {
    let ran = project.pipe(&[&["run", "tweets.yaml"], arguments].concat());
    assert_eq!(ran.code, Some(code), "{}\n{}", ran.stdout, ran.stderr);
    // From the error on: what ran before it, and how long that took, is not the point here.
    let from = ran.stderr.find("error").unwrap_or(0);
    let folder = fs::canonicalize(project.path(".")).unwrap();
    let text = ran.stderr[from..].replace(&folder.display().to_string(), "FOLDER");
    let text =
        text.replace(&project.path("").display().to_string(), "FOLDER/").replace("FOLDER//", "FOLDER/");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wrong_inputs").join(format!("{name}.txt"));
    if std::env::var_os("PIPE_BLESS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(&path).unwrap_or_default(), "{name}");
    // Nothing of the failed stage may look like a result.
    assert_eq!(project.pipe(&["cache", "verify"]).stdout, "every file is what its digest says\n");
}

#[test]
fn a_missing_file() {
    let project = Project::tweets();
    project.edit("tweets.yaml", "path: data", "path: dota");
    says("missing_file", &project, 2, &[]);
}

#[test]
fn a_missing_file_by_set() {
    let project = Project::tweets();
    says("missing_model", &project, 2, &["--set", "model=modle"]);
}

#[test]
fn a_csv_with_a_broken_row() {
    let project = Project::tweets();
    project.write("data/train.csv", "Tweet text,ID,Label\nall well,0,2\nwell, and not,1,1\nfine,2,2\n");
    says("broken_csv", &project, 1, &[]);
}

#[test]
fn a_json_line_that_is_none() {
    let project = Project::tweets();
    project.edit("tweets.yaml", "path: data", "path: rows.jsonl");
    project
        .write("rows.jsonl", "{\"Tweet text\": \"a\", \"Label\": 1}\n{\"Tweet text\": \"b\", \"Label\": }\n");
    says("broken_jsonl", &project, 1, &[]);
}

#[test]
fn a_label_column_that_is_absent() {
    let project = Project::tweets();
    project.edit("tweets.yaml", "column: Label", "column: label");
    says("absent_column", &project, 1, &[]);
}

#[test]
fn a_label_out_of_range() {
    let project = Project::tweets();
    project.write("data/train.csv", "Tweet text,ID,Label\nall well,0,2\nwhat,1,7\n");
    says("label_out_of_range", &project, 1, &[]);
}

#[test]
fn a_template_with_a_column_that_is_absent() {
    let project = Project::tweets();
    project.edit("tweets.yaml", "{Tweet text} Label", "{Tweet txt} Label");
    says("absent_template_column", &project, 1, &[]);
}

#[test]
fn all_labels_cut_off() {
    let project = Project::tweets();
    project.edit("tweets.yaml", "target: \"{text_label}\"", "target: \"{text_label}\"\n      max_length: 4");
    says("all_labels_cut_off", &project, 1, &[]);
}

#[test]
fn a_tokenizer_of_another_model() {
    let project = Project::tweets();
    let other = tiny_model().with_file_name("llama");
    copy(&other, &project.path("other"));
    // Another vocabulary: two tokens have each other's ids.
    let mut tokenizer: serde_json::Value =
        serde_json::from_str(&project.read("other/tokenizer.json")).unwrap();
    let vocabulary = &mut tokenizer["model"]["vocab"];
    (vocabulary["a"], vocabulary["b"]) = (vocabulary["b"].clone(), vocabulary["a"].clone());
    project.write("other/tokenizer.json", &tokenizer.to_string());
    project.edit("tweets.yaml", "tokenizer: ${params.model}", "tokenizer: other");
    says("foreign_tokenizer", &project, 1, &[]);
}

#[test]
fn rows_longer_than_the_models_positions() {
    let project = Project::tweets();
    let gpt2 = tiny_model().with_file_name("gpt2");
    copy(&gpt2, &project.path("gpt2"));
    project.edit(
        "tweets.yaml",
        "target: \"{text_label}\"",
        "target: \"{text_label}\"\n      max_length: 4000",
    );
    says("too_long", &project, 1, &["--set", "model=gpt2"]);
}

#[test]
fn sampling_that_can_not_be() {
    let project = Project::tweets();
    let keys = "max_new_tokens: 4, do_sample: true, temperature: 0, top_p: 1.2, stop: [\"\"]";
    project.edit("tweets.yaml", "max_new_tokens: 4", keys);
    says("sampling", &project, 2, &[]);
}

#[test]
fn a_prompt_as_long_as_the_text_may_be() {
    let project = Project::tweets();
    project.edit("tweets.yaml", "max_new_tokens: 4", "max_length: 5");
    says("max_length", &project, 1, &[]);
}

#[test]
fn a_loss_that_is_not_a_number() {
    let project = Project::tweets();
    says("nan_loss", &project, 1, &["--set", "learning_rate=1e38"]);
}

#[test]
fn an_unknown_architecture() {
    let project = Project::tweets();
    copy(&tiny_model(), &project.path("odd"));
    let config = project.read("odd/config.json").replace("\"bloom\"", "\"mamba\"");
    project.write("odd/config.json", &config);
    says("unknown_architecture", &project, 1, &["--set", "model=odd"]);
}

#[test]
fn weights_that_are_cut_off() {
    let project = Project::tweets();
    copy(&tiny_model(), &project.path("cut"));
    let path = project.path("cut/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    says("cut_weights", &project, 1, &["--set", "model=cut"]);
}

#[test]
fn weights_that_are_only_a_pickle() {
    let project = Project::tweets();
    copy(&tiny_model(), &project.path("pickle"));
    fs::rename(project.path("pickle/model.safetensors"), project.path("pickle/pytorch_model.bin")).unwrap();
    says("pickle", &project, 1, &["--set", "model=pickle"]);
}

/// A pipeline `tweets.yaml` that loads the folder of `save_to_disk` in `saved` and takes these steps.
fn saved(steps: &str) -> Project {
    let project = Project::new();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/saved/one"), &project.path("saved"));
    let load = "  rows:\n    uses: load_dataset\n    with: { path: saved }\n";
    let transform =
        "  changed:\n    uses: transform\n    inputs: { dataset: rows }\n    with:\n      steps:\n";
    project.write("tweets.yaml", &format!("pipeline: p\nstages:\n{load}{transform}{steps}"));
    project
}

#[test]
fn an_arrow_shard_that_is_cut_off() {
    let project = saved("        - flatten: true\n");
    let path = project.path("saved/data-00001-of-00003.arrow");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    says("cut_shard", &project, 1, &[]);
}

#[test]
fn an_arrow_shard_that_is_missing() {
    let project = saved("        - flatten: true\n");
    fs::remove_file(project.path("saved/data-00001-of-00003.arrow")).unwrap();
    says("missing_shard", &project, 1, &[]);
}

#[test]
fn a_slice_that_holds_no_row() {
    let project = saved("        - flatten: true\n");
    project.edit("tweets.yaml", "path: saved", "path: saved, split: \"train[10:]\"");
    says("empty_slice", &project, 1, &[]);
}

#[test]
fn a_step_with_a_column_that_is_absent() {
    says("absent_step_column", &saved("        - join: { column: answers.txt, into: text2 }\n"), 1, &[]);
}

#[test]
fn a_filter_that_keeps_no_row() {
    says("empty_split", &saved("        - filter: { column: score, min: 100 }\n"), 1, &[]);
}

#[test]
fn steps_that_can_not_work() {
    let steps = "        - flatten: [answers]\n        - join: { column: answers }\n        - filter: { column: text }\n";
    says("impossible_steps", &saved(steps), 2, &[]);
}

#[test]
fn steps_that_are_misspelt() {
    let steps = "        - flaten: [answers]\n        - filter: { column: text, equal: x }\n        \
                 - template: { into: x, text: \"{id\" }\n        - filter: { column: text, in: [[x]] }\n        \
                 - flatten: answers\n";
    says("misspelt_steps", &saved(steps), 2, &[]);
}

#[test]
fn a_command_that_fails() {
    let project = Project::new();
    project.write(
        "tweets.yaml",
        "pipeline: p\nstages:\n  fetch:\n    uses: command\n    with: { run: \"echo looking >&2; echo not found >&2; exit 7\", outputs: { model: { path: m.gguf } } }\n",
    );
    says("failed_command", &project, 1, &[]);
}

#[test]
fn a_command_that_does_not_write_what_it_declares() {
    let project = Project::new();
    project.write(
        "tweets.yaml",
        "pipeline: p\nstages:\n  fetch:\n    uses: command\n    with: { run: \"true\", outputs: { model: { path: m.gguf, kind: model } } }\n",
    );
    says("unwritten_output", &project, 1, &[]);
}

fn copy(from: &Path, to: &PathBuf) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap().flatten() {
        if file.file_type().unwrap().is_file() {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}

#[test]
fn a_checkpoint_of_another_training() {
    let project = Project::tweets();
    project.edit("tweets.yaml", "epochs: 2", "epochs: 2\n      save_every: epoch");
    project.run(0, &["tweets.yaml"]);
    let checkpoints = fs::canonicalize(project.path(".pipe/runs/latest/stages/prompt/checkpoints")).unwrap();
    let newest = fs::read_dir(&checkpoints).unwrap().map(|e| e.unwrap().path()).max().unwrap();
    copy(&newest, &project.path("checkpoint"));
    project.edit("tweets.yaml", "save_every: epoch", "resume_from: checkpoint");
    // With the same recipe it is gone on from, and there is nothing left to do.
    project.run(0, &["tweets.yaml"]);
    says("other_checkpoint", &project, 1, &["--set", "learning_rate=0.02"]);
    let tensors = project.path("checkpoint/tensors.safetensors");
    fs::remove_file(&tensors).unwrap();
    fs::write(&tensors, "half").unwrap();
    says("damaged_checkpoint", &project, 1, &[]);
}

#[test]
fn keys_of_training_that_can_not_be() {
    let project = Project::tweets();
    project.edit(
        "tweets.yaml",
        "epochs: 2",
        "epochs: 2\n      eval_split: false\n      load_best: true\n      early_stopping: { patience: 0 }\n      \
         save_every: 0\n      push_every: epoch",
    );
    says("training_keys", &project, 2, &[]);
    let project = Project::tweets();
    project.edit("tweets.yaml", "num_virtual_tokens: 4", "num_virtual_tokens: init");
    project.edit("tweets.yaml", "init: { text: \"Classify\" }", "init: random");
    says("init_without_text", &project, 2, &[]);
}

#[test]
fn blocks_longer_than_the_model_has_positions() {
    let project = Project::fine_tuning();
    project.edit("tweets.yaml", "block_size: 16", "block_size: 128");
    says("long_blocks", &project, 1, &[]);
}

#[test]
fn fine_tuning_from_nothing() {
    let project = Project::fine_tuning();
    project.edit("tweets.yaml", "model: gpt2", "config: { n_layer: 2 }");
    says("no_architecture", &project, 2, &[]);
}
