//! A folder of its own for every test, and the binary run in it.
#![allow(dead_code, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A small BLOOM that the repository's tests carry.
pub fn tiny_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bloom")
}

pub struct Project {
    folder: tempfile::TempDir,
}

pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Project {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// Labelled messages, a tiny BLOOM and a pipeline that trains a prompt for a few steps.
    pub fn tweets() -> Self {
        let project = Self::new();
        let mut csv = "Tweet text,ID,Label\n".to_string();
        for i in 0..12 {
            let (text, label) = if i % 2 == 0 { ("it is bad", 1) } else { ("thank you", 2) };
            csv += &format!("{text} {i},{i},{label}\n");
        }
        project.write("data/train.csv", &csv);
        project.write("data/test.csv", &csv.lines().take(5).map(|l| format!("{l}\n")).collect::<String>());
        project.write("tweets.yaml", TWEETS);
        std::os::unix::fs::symlink(tiny_model(), project.path("model")).unwrap();
        project
    }

    /// Texts, a tiny GPT-2 and a pipeline that trains all its weights on them.
    pub fn fine_tuning() -> Self {
        let project = Self::new();
        let line =
            |i: usize| format!("the {} thing is {} and {} again\n", i % 7, i % 3, ["good", "bad"][i % 2]);
        project.write("texts/train.txt", &(0..60).map(line).collect::<String>());
        project.write("texts/test.txt", &(60..80).map(line).collect::<String>());
        project.write("tweets.yaml", FINE_TUNING);
        std::os::unix::fs::symlink(tiny_model().with_file_name("gpt2"), project.path("gpt2")).unwrap();
        project
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// Replaces text that has to be there.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert!(text.contains(from), "{name} has no {from:?}");
        self.write(name, &text.replace(from, to));
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipe"));
        command.args(arguments).current_dir(self.folder.path()).env_remove("PIPE_HOME").env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().unwrap()
    }

    pub fn pipe(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().unwrap().into()
    }

    /// Runs with `--json`, which has to end with this code; the summary.
    pub fn run(&self, code: i32, arguments: &[&str]) -> Summary {
        let ran = self.pipe(&[&["run"], arguments, &["--json"]].concat());
        assert_eq!(ran.code, Some(code), "{}\n{}", ran.stdout, ran.stderr);
        Summary::of(&ran.stdout)
    }

    /// What the adapter of the newest run is made of.
    pub fn adapter(&self) -> Vec<u8> {
        std::fs::read(self.path(".pipe/runs/latest/stages/prompt/adapter_model.safetensors")).unwrap()
    }

    /// Every file below a folder with its length and time.
    pub fn files(&self, folder: &str) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
        let mut found = Vec::new();
        let mut folders = vec![self.path(folder)];
        while let Some(next) = folders.pop() {
            for item in std::fs::read_dir(next).into_iter().flatten().flatten() {
                let meta = item.metadata().unwrap();
                if meta.is_dir() {
                    folders.push(item.path());
                } else {
                    found.push((item.path(), meta.len(), meta.modified().unwrap()));
                }
            }
        }
        found.sort();
        found
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The last line of `pipe run --json`.
pub struct Summary(pub Value);

impl Summary {
    pub fn of(stdout: &str) -> Self {
        let last = stdout.lines().last().unwrap_or_default();
        let value: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {last}"));
        assert_eq!(value["event"], "run_finished");
        Self(value)
    }

    pub fn stage(&self, name: &str) -> &Value {
        let stages = self.0["stages"].as_array().unwrap();
        stages.iter().find(|s| s["stage"] == name).unwrap_or_else(|| panic!("no stage {name}"))
    }

    /// `tweets cached, prompt ran`: the stages with this status.
    pub fn with_status(&self, status: &str) -> Vec<&str> {
        let stages = self.0["stages"].as_array().unwrap();
        stages.iter().filter(|s| s["status"] == status).map(|s| s["stage"].as_str().unwrap()).collect()
    }
}

pub const TWEETS: &str = r#"pipeline: tweets
params:
  learning_rate: 0.01
  model: model
stages:
  tweets:
    uses: load_dataset
    with: { path: data }
  labelled:
    uses: relabel
    inputs: { dataset: tweets }
    with: { column: Label, into: text_label, names: [Unlabeled, complaint, no_complaint], replace: { "_": " " } }
  tokens:
    uses: tokenize
    inputs: { dataset: labelled }
    with:
      tokenizer: ${params.model}
      prompt: "Tweet text : {Tweet text} Label : "
      target: "{text_label}"
  prompt:
    uses: train_soft_prompt
    inputs: { dataset: tokens }
    with:
      model: ${params.model}
      num_virtual_tokens: 4
      init: { text: "Classify" }
      learning_rate: ${params.learning_rate}
      epochs: 2
      batch_size: 4
  scores:
    uses: evaluate
    inputs: { dataset: tokens, adapter: prompt }
  answers:
    uses: generate
    inputs: { adapter: prompt }
    with: { prompts: ["Tweet text : it is bad Label : "], max_new_tokens: 4 }
"#;

pub const FINE_TUNING: &str = r#"pipeline: fine_tuning
stages:
  texts:
    uses: load_dataset
    with: { path: texts }
  tokens:
    uses: tokenize
    inputs: { dataset: texts }
    with: { tokenizer: gpt2, text: "{text}" }
  blocks:
    uses: group_texts
    inputs: { dataset: tokens }
    with: { block_size: 16 }
  tuned:
    uses: fine_tune
    inputs: { dataset: blocks }
    with:
      model: gpt2
      learning_rate: 1e-3
      epochs: 3
  scores:
    uses: evaluate
    inputs: { dataset: blocks, model: tuned }
  more:
    uses: generate
    inputs: { model: tuned }
    with: { prompts: ["the "], max_new_tokens: 4 }
"#;
