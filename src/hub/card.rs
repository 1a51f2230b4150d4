//! The model card: a README.md whose front matter the Hub reads, and whose text says how to repeat what was done.
//!
//! A pure function of what it is told: the same facts give the same bytes. Does not know where facts come from.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::repo::RepoName;

/// What the repository holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holds {
    /// A soft prompt of so many virtual tokens, in PEFT's files.
    SoftPrompt {
        /// How many.
        virtual_tokens: usize,
    },
    /// A whole model, in the files of transformers.
    Model,
}

/// The model something was trained from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BaseModel {
    /// One on the Hub.
    Hub(RepoName),
    /// One that was on the machine: its path as the manifest has it, or the last part of one from the root.
    Local(String),
    /// None: it began with fresh weights.
    Fresh,
}

/// A dataset that went in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Data {
    /// Its name for people; its repository if it is on the Hub.
    pub name: String,
    /// Whether `name` is a repository on the Hub.
    pub on_hub: Option<RepoName>,
    /// Its configuration.
    pub config: Option<String>,
    /// The revision that was asked for.
    pub revision: Option<String>,
}

/// A point of the training curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The epoch, from 1.
    pub epoch: u64,
    /// The optimizer step, from 1.
    pub step: u64,
    /// The learning rate at it.
    pub learning_rate: f64,
    /// The loss at it.
    pub loss: f64,
}

/// All that a card tells.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// Where it goes.
    pub repo: RepoName,
    /// What is there.
    pub holds: Holds,
    /// What it was trained from; none: not known.
    pub base_model: Option<BaseModel>,
    /// What it was trained and scored on.
    pub data: Vec<Data>,
    /// The split that was scored.
    pub split: Option<String>,
    /// The license's name on the Hub (`apache-2.0`), if the owner gave one.
    pub license: Option<String>,
    /// Languages, as their codes.
    pub language: Vec<String>,
    /// More tags.
    pub tags: Vec<String>,
    /// Numbers by name, those of the untuned model under `untuned.`.
    pub metrics: BTreeMap<String, f64>,
    /// The end of the training curve.
    pub curve: Vec<Point>,
    /// The keys of the training stage that are not left at nothing, in the order to show them.
    pub recipe: Vec<(String, Value)>,
    /// The pipeline's name and what it says of itself.
    pub pipeline: (String, Option<String>),
    /// The command line that makes it again.
    pub command: String,
    /// The manifest's file name and text.
    pub manifest: (String, String),
    /// The lock's file name and text.
    pub lock: Option<(String, String)>,
    /// Programs and formats with their versions.
    pub versions: Vec<(String, String)>,
}

/// What the Hub calls a metric, and what people call it.
fn metric(name: &str) -> (&str, String) {
    let words = match name {
        "accuracy" => ("accuracy", "Accuracy"),
        "macro_f1" => ("f1", "Macro F1"),
        "generation_accuracy" => ("accuracy", "Accuracy by generation"),
        "generation_macro_f1" => ("f1", "Macro F1 by generation"),
        "token_accuracy" => ("accuracy", "Token accuracy"),
        "perplexity" => ("perplexity", "Perplexity"),
        "loss" => ("loss", "Loss"),
        other => return (other, other.to_owned()),
    };
    (words.0, words.1.to_owned())
}

/// What a metric of the model without the prompt is called.
const UNTUNED: &str = "untuned.";

impl Card {
    /// The text of README.md.
    pub fn text(&self) -> String {
        let mut text = String::from("---\n");
        yaml(&self.front_matter(), 0, &mut text);
        text.push_str("---\n\n");
        self.body(&mut text);
        text
    }

    /// The metadata, keys sorted.
    fn front_matter(&self) -> Value {
        let mut front = BTreeMap::new();
        let (library, tag, relation) = match self.holds {
            Holds::SoftPrompt { .. } => ("peft", Some("prompt-tuning"), "adapter"),
            Holds::Model => ("transformers", None, "finetune"),
        };
        front.insert("library_name", json!(library));
        front.insert("pipeline_tag", json!("text-generation"));
        if let Some(BaseModel::Hub(name)) = &self.base_model {
            front.insert("base_model", json!(name));
            front.insert("base_model_relation", json!(relation));
        }
        let mut datasets: Vec<&RepoName> = self.data.iter().filter_map(|d| d.on_hub.as_ref()).collect();
        datasets.sort();
        datasets.dedup();
        if !datasets.is_empty() {
            front.insert("datasets", json!(datasets));
        }
        if let Some(license) = &self.license {
            front.insert("license", json!(license));
        }
        if !self.language.is_empty() {
            front.insert("language", json!(self.language));
        }
        let mut tags: Vec<&str> = tag.into_iter().chain(["pipe"]).collect();
        tags.extend(self.tags.iter().map(String::as_str));
        let mut seen = std::collections::HashSet::new();
        tags.retain(|tag| seen.insert(*tag));
        front.insert("tags", json!(tags));
        let metrics: Vec<Value> = self
            .own_metrics()
            .map(|(name, value)| {
                let (kind, words) = metric(name);
                json!({ "type": kind, "name": words, "value": value })
            })
            .collect();
        if !metrics.is_empty() {
            let result = json!({
                "task": { "type": "text-generation", "name": "Text Generation" },
                "dataset": self.scored(),
                "metrics": metrics,
            });
            front.insert("model-index", json!([{ "name": self.repo.name(), "results": [result] }]));
        }
        json!(front)
    }

    /// The metrics of what is here, not of the untuned model; those that are numbers.
    fn own_metrics(&self) -> impl Iterator<Item = (&str, f64)> {
        let own = self.metrics.iter().filter(|(name, value)| !name.starts_with(UNTUNED) && value.is_finite());
        own.map(|(name, value)| (name.as_str(), *value))
    }

    /// The dataset of the results; the Hub wants a name and a type.
    fn scored(&self) -> Value {
        let mut dataset = match self.data.first() {
            Some(data) => json!({ "name": data.name, "type": data.name }),
            None => json!({ "name": self.pipeline.0, "type": self.pipeline.0 }),
        };
        let data = self.data.first();
        let more = [
            ("config", data.and_then(|d| d.config.as_ref())),
            ("split", self.split.as_ref()),
            ("revision", data.and_then(|d| d.revision.as_ref())),
        ];
        for (key, value) in more {
            if let Some(value) = value {
                dataset[key] = json!(value);
            }
        }
        dataset
    }

    fn body(&self, text: &mut String) {
        let _ = write!(text, "# {}\n\n", escaped(self.repo.name()));
        if let Some(description) = &self.pipeline.1 {
            let _ = write!(text, "{}\n\n", escaped(description));
        }
        let base = match &self.base_model {
            Some(BaseModel::Hub(name)) => Some(format!("[{0}](https://huggingface.co/{0})", name)),
            Some(BaseModel::Local(name)) => {
                Some(format!("{}, a model that was on the machine it was trained on", code(name)))
            }
            Some(BaseModel::Fresh) | None => None,
        };
        let _ = match (&self.holds, base) {
            (Holds::SoftPrompt { virtual_tokens }, base) => writeln!(
                text,
                "A soft prompt of {virtual_tokens} virtual tokens{}, in the files of PEFT.",
                base.map(|base| format!(" for {base}")).unwrap_or_default()
            ),
            (Holds::Model, Some(base)) => writeln!(text, "A fine-tuned model. It began as {base}."),
            (Holds::Model, None) if self.base_model == Some(BaseModel::Fresh) => {
                writeln!(text, "A language model trained from fresh weights.")
            }
            (Holds::Model, None) => writeln!(text, "A language model."),
        };
        if !self.data.is_empty() {
            let names: Vec<String> = self.data.iter().map(named).collect();
            let _ = write!(text, "\nData: {}.\n", names.join(", "));
        }
        self.results(text);
        self.training(text);
        let _ = write!(
            text,
            "\n## How it was made\n\nBy pipe, from the manifest below:\n\n{}",
            fenced("", &self.command)
        );
        if !self.versions.is_empty() {
            let versions: Vec<String> =
                self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
            let _ = write!(text, "\nVersions: {}.\n", escaped(&versions.join(", ")));
        }
        self.usage(text);
        let files = std::iter::once(("The manifest", &self.manifest))
            .chain(self.lock.as_ref().map(|lock| ("What it took from the Hub", lock)));
        for (what, (file, content)) in files {
            let _ = write!(
                text,
                "\n<details>\n<summary>{what}: {}</summary>\n\n{}\n</details>\n",
                html(file),
                fenced("yaml", content)
            );
        }
    }

    fn results(&self, text: &mut String) {
        let own: Vec<(&str, f64)> = self.own_metrics().collect();
        if own.is_empty() {
            return;
        }
        text.push_str("\n## Results\n\n");
        if let Some(split) = &self.split {
            let _ = write!(text, "On the split {}.\n\n", code(split));
        }
        let untuned = |name: &str| self.metrics.get(&format!("{UNTUNED}{name}"));
        let beside = own.iter().any(|(name, _)| untuned(name).is_some());
        text.push_str(if beside { "| | here | untuned |\n|---|---|---|\n" } else { "| | |\n|---|---|\n" });
        for (name, value) in own {
            let _ = write!(text, "| {} | {} |", escaped(&metric(name).1), short(value));
            if beside {
                let _ = write!(text, " {} |", untuned(name).map_or_else(String::new, |v| short(*v)));
            }
            text.push('\n');
        }
    }

    fn training(&self, text: &mut String) {
        if self.curve.is_empty() && self.recipe.is_empty() {
            return;
        }
        text.push_str("\n## Training\n\n");
        if !self.curve.is_empty() {
            text.push_str("The last values of the curve:\n\n");
            text.push_str("| epoch | step | learning rate | loss |\n|---|---|---|---|\n");
            for point in &self.curve {
                let _ = writeln!(
                    text,
                    "| {} | {} | {:.3e} | {} |",
                    point.epoch,
                    point.step,
                    point.learning_rate,
                    short(point.loss)
                );
            }
        }
        if !self.recipe.is_empty() {
            let keys: Vec<String> = self
                .recipe
                .iter()
                .map(|(key, value)| format!("{key} {}", code(&value.to_string())))
                .collect();
            let _ = write!(text, "\n{}.\n", keys.join(", "));
        }
    }

    fn usage(&self, text: &mut String) {
        text.push_str("\n## How to use it\n\n");
        let repo = json!(self.repo);
        let program = match (&self.holds, &self.base_model) {
            (Holds::SoftPrompt { .. }, Some(BaseModel::Hub(base))) => format!(
                "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n\
                 model = AutoPeftModelForCausalLM.from_pretrained({repo})\n\
                 tokenizer = AutoTokenizer.from_pretrained({})\n",
                json!(base)
            ),
            (Holds::SoftPrompt { .. }, base) => {
                let name = match base {
                    Some(BaseModel::Local(name)) => name.as_str(),
                    _ => "the base model",
                };
                format!(
                    "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                     base = {} # where you have it\n\
                     model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), {repo})\n\
                     tokenizer = AutoTokenizer.from_pretrained(base)\n",
                    json!(name)
                )
            }
            (Holds::Model, _) => format!(
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 model = AutoModelForCausalLM.from_pretrained({repo})\n\
                 tokenizer = AutoTokenizer.from_pretrained({repo})\n"
            ),
        };
        let program = program
            + "\ninputs = tokenizer(\"…\", return_tensors=\"pt\")\n\
               print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))\n";
        let key = match self.holds {
            Holds::SoftPrompt { .. } => "adapter",
            Holds::Model => "model",
        };
        let base = match (&self.holds, &self.base_model) {
            (Holds::SoftPrompt { .. }, Some(BaseModel::Local(name))) => {
                format!("    model: {} # where you have it\n", plain(&json!(name)))
            }
            _ => String::new(),
        };
        let stage = format!(
            "answers:\n  uses: generate\n  with:\n    {key}: {}\n{base}    prompts: [\"…\"]\n",
            self.repo
        );
        let _ = write!(
            text,
            "{}\nOr as a stage of pipe:\n\n{}",
            fenced("python", &program),
            fenced("yaml", &stage)
        );
    }
}

/// A dataset in a sentence.
fn named(data: &Data) -> String {
    let name = match &data.on_hub {
        Some(name) => format!("[{name}](https://huggingface.co/datasets/{name})"),
        None => code(&data.name),
    };
    match &data.config {
        Some(config) => format!("{name} ({})", code(config)),
        None => name,
    }
}

/// A number as a table shows it.
fn short(value: f64) -> String {
    if value != 0.0 && (value.abs() < 1e-3 || value.abs() >= 1e6) {
        format!("{value:.3e}")
    } else {
        format!("{value:.4}")
    }
}

/// Text in a line of Markdown, all of whose characters mean themselves.
fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.split_whitespace().collect::<Vec<_>>().join(" ").chars() {
        match c {
            '<' => line.push_str("&lt;"),
            '>' => line.push_str("&gt;"),
            '&' => line.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' | '!' | '$' => {
                line.push('\\');
                line.push(c);
            }
            c => line.push(c),
        }
    }
    line
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Text in backquotes within a line, also in a table.
fn code(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let quotes = "`".repeat(longest_run(&text) + 1);
    let pad = if text.starts_with('`') || text.ends_with('`') { " " } else { "" };
    format!("{quotes}{pad}{}{pad}{quotes}", text.replace('|', "\\|"))
}

/// A block of code whose fence nothing in it can end.
fn fenced(language: &str, text: &str) -> String {
    let fence = "`".repeat((longest_run(text) + 1).max(3));
    format!("{fence}{language}\n{}\n{fence}\n", text.trim_end_matches('\n'))
}

fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

/// A value as block-style YAML that YAML 1.1 (PyYAML) and 1.2 read alike.
fn yaml(value: &Value, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                match value {
                    Value::Object(_) | Value::Array(_) => {
                        let _ = writeln!(out, "{indent}{key}:");
                        // A list's dashes may stand under its key.
                        yaml(value, if value.is_array() { depth } else { depth + 1 }, out);
                    }
                    scalar => {
                        let _ = writeln!(out, "{indent}{key}: {}", plain(scalar));
                    }
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                match item {
                    Value::Object(_) | Value::Array(_) => {
                        let mut below = String::new();
                        yaml(item, depth + 1, &mut below);
                        let _ = write!(out, "{indent}- {}", below.trim_start());
                    }
                    scalar => {
                        let _ = writeln!(out, "{indent}- {}", plain(scalar));
                    }
                }
            }
        }
        scalar => {
            let _ = writeln!(out, "{indent}{}", plain(scalar));
        }
    }
}

/// A scalar: bare where no reader of YAML could take it for something else, else as JSON has it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => {
            let first = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
            let rest = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'));
            let words = ["true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf"];
            let word = words.contains(&text.to_ascii_lowercase().as_str());
            if first && rest && !word { text.clone() } else { Value::String(text.clone()).to_string() }
        }
        // Without an exponent: PyYAML takes `1e-7` for text.
        Value::Number(number) if number.is_f64() => {
            let text = number.as_f64().unwrap_or_default().to_string();
            if text.contains('.') { text } else { text + ".0" }
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Card {
        Card {
            repo: "ada/tweets".parse().unwrap(),
            holds: Holds::SoftPrompt { virtual_tokens: 8 },
            base_model: Some(BaseModel::Hub("bigscience/bloomz-560m".parse().unwrap())),
            data: vec![Data {
                name: "ought/raft".into(),
                on_hub: Some("ought/raft".parse().unwrap()),
                config: Some("twitter_complaints".into()),
                revision: None,
            }],
            split: Some("train".into()),
            license: Some("apache-2.0".into()),
            language: vec!["no".into()],
            tags: vec!["pipe".into(), "a: b".into()],
            metrics: BTreeMap::from([
                ("accuracy".into(), 0.9),
                ("loss".into(), 1e-7),
                ("macro_f1".into(), 1.0),
                ("perplexity".into(), f64::INFINITY),
                ("untuned.accuracy".into(), 0.5),
            ]),
            curve: vec![Point { epoch: 50, step: 350, learning_rate: 8.571e-5, loss: 0.01234 }],
            recipe: vec![("learning_rate".into(), json!(0.03)), ("schedule".into(), json!("linear"))],
            pipeline: ("twitter".into(), Some("Tells *complaints*\n<b>apart</b>.".into())),
            command: "pipe run twitter.yaml".into(),
            manifest: ("twitter.yaml".into(), "pipeline: twitter\n# ```\n".into()),
            lock: None,
            versions: vec![("pipe".into(), "0.1.0".into())],
        }
    }

    #[test]
    fn the_front_matter_is_what_the_hub_reads() {
        let text = card().text();
        let front = text.strip_prefix("---\n").unwrap().split_once("---\n").unwrap().0;
        assert_eq!(
            front,
            "base_model: bigscience/bloomz-560m
base_model_relation: adapter
datasets:
- ought/raft
language:
- \"no\"
library_name: peft
license: apache-2.0
model-index:
- name: tweets
  results:
  - dataset:
      config: twitter_complaints
      name: ought/raft
      split: train
      type: ought/raft
    metrics:
    - name: Accuracy
      type: accuracy
      value: 0.9
    - name: Loss
      type: loss
      value: 0.0000001
    - name: \"Macro F1\"
      type: f1
      value: 1.0
    task:
      name: \"Text Generation\"
      type: text-generation
pipeline_tag: text-generation
tags:
- prompt-tuning
- pipe
- \"a: b\"
"
        );
    }

    #[test]
    fn what_a_user_wrote_means_itself() {
        let text = card().text();
        assert!(text.contains("\nTells \\*complaints\\* &lt;b&gt;apart&lt;/b&gt;.\n"), "{text}");
        // The manifest's own fence does not end the block.
        assert!(text.contains("\n````yaml\npipeline: twitter\n# ```\n````\n"), "{text}");
        assert!(text.contains("| Accuracy | 0.9000 | 0.5000 |\n| Loss | 1.000e-7 |  |\n"), "{text}");
        assert!(text.contains("| 50 | 350 | 8.571e-5 | 0.0123 |\n"), "{text}");
        assert_eq!(text, card().text());
    }

    #[test]
    fn a_model_without_a_hub_name_is_not_claimed_to_be_on_the_hub() {
        let local = Card { base_model: Some(BaseModel::Local("smol.gguf".into())), ..card() };
        let text = local.text();
        assert!(!text.contains("base_model:"), "{text}");
        assert!(
            text.contains("for `smol.gguf`, a model that was on the machine it was trained on"),
            "{text}"
        );
        assert!(text.contains("base = \"smol.gguf\" # where you have it"), "{text}");
        let fresh = Card { base_model: Some(BaseModel::Fresh), holds: Holds::Model, ..card() };
        assert!(fresh.text().contains("A language model trained from fresh weights."));
        assert!(!fresh.text().contains("base_model_relation"));
    }
}
