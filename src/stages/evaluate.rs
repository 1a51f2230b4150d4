//! Scores a model, with a soft prompt or without, on tokenised rows: loss, perplexity, labels right.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::base::{self, Base, DType};
use super::prompt::{self, Prompt};
use super::rows;
use crate::artifact::tokens::{About, Form, IGNORED, Row as TokenRow, Tokens};
use crate::location::Location;
use crate::model::generate::{GenerateOptions, greedy_on};
use crate::stage::{ArtifactKind, Context, Fault, Lane, Output, Port, Source, Stage, StageError};
use crate::train::recipe::LossOver;
use crate::train::score::{Score, score_on};
use crate::train::{Pads, Row};

/// The configuration.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// The model; default: the one the adapter was trained on.
    #[serde(default)]
    pub model: Option<Location>,
    /// A folder with an adapter, instead of the port `adapter`.
    #[serde(default)]
    pub adapter: Option<Location>,
    /// The branch, tag or commit of a model on the Hub.
    #[serde(default)]
    pub revision: Option<String>,
    /// The branch, tag or commit of an adapter on the Hub.
    #[serde(default)]
    pub adapter_revision: Option<String>,
    /// The split to score; default: `test` if there is one, else `train`.
    #[serde(default)]
    pub split: Option<String>,
    /// Score the model without the prompt beside it.
    #[serde(default = "yes")]
    pub untuned: bool,
    /// At most as many tokens go through the model at once as so many of the longest rows have; changes no result.
    #[serde(default = "sixteen")]
    pub batch_size: usize,
    /// What `loss` and `perplexity` are the mean over.
    #[serde(default)]
    pub loss_over: LossOver,
    /// What the model computes in.
    #[serde(default)]
    pub dtype: DType,
    /// On a GPU: round what products of f32 numbers take to tf32, as `torch` does when told to.
    #[serde(default)]
    pub tf32: bool,
    /// On a GPU: the same inputs give the same bits; `false` may be faster.
    #[serde(default = "base::yes")]
    pub deterministic: bool,
    /// Most different targets that are taken for labels; with more, only loss and tokens are scored.
    #[serde(default = "twenty")]
    pub max_labels: usize,
}

fn yes() -> bool {
    true
}
fn sixteen() -> usize {
    16
}
fn twenty() -> usize {
    20
}

impl Stage for Evaluate {
    const KIND: &'static str = "evaluate";
    const VERSION: u32 = 8;
    const LANE: Lane = Lane::Device;
    const ABOUT: &'static str = "Scores a model or adapter: loss, perplexity, label accuracy and macro F1, the untuned model beside it.";
    const EXAMPLE: &'static str = "\
scores:
  uses: evaluate
  inputs: { dataset: tokens, adapter: prompt }
  with: { split: test }
";
    const INPUTS: &'static [Port] = &[
        Port {
            name: "dataset",
            accepts: &[ArtifactKind::Tokens],
            required: true,
            about: "the rows to score, with labels",
        },
        Port {
            name: "adapter",
            accepts: &[ArtifactKind::Adapter],
            required: false,
            about: "the prompt; its model comes along",
        },
        Port {
            name: "model",
            accepts: &[ArtifactKind::Model, ArtifactKind::Files],
            required: false,
            about: "the model, instead of the key `model`",
        },
    ];

    fn outputs(&self) -> Vec<Output> {
        vec![
            Output::new("metrics", ArtifactKind::Metrics, &["metrics.json"]),
            Output::new("predictions", ArtifactKind::Text, &["predictions.jsonl"]),
        ]
    }

    fn sources(&self) -> Vec<Source> {
        prompt::sources(self.base(), self.prompt())
    }

    fn check(&self, inputs: &[&str]) -> Vec<Fault> {
        let mut faults = prompt::check(self.base(), self.prompt(), inputs);
        if self.batch_size == 0 {
            faults.push(Fault::new("batch_size", "`batch_size` is at least 1"));
        }
        faults
    }

    fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
        let tokens = Tokens::open(&context.input("dataset")?.path)?;
        let numerics = self.dtype.numerics(self.tf32, self.deterministic);
        let mut base = Base::load_for(context, self.base(), self.prompt(), numerics)?;
        base.belongs_to(&tokens)?;
        base.model.lay_out();
        let prompt = Prompt::load(context, self.prompt(), &base)?;
        let default = if tokens.has("test") { "test" } else { "train" };
        let split = self.split.as_deref().unwrap_or(default);
        let rows = tokens.rows(split)?;
        rows::has_labels(&rows, split)?;
        base.has_room(prompt.as_ref().map_or(0, Prompt::len), rows::longest(&tokens.about, &rows))?;
        let labels = self.labels(&tokens)?;
        if labels.is_empty() && tokens.about.form == Form::PromptTarget {
            context.note(format!(
                "more than {} different targets: no label accuracy (raise `max_labels` if they are labels)",
                self.max_labels
            ));
        }
        let judge =
            Judge { context, base: &base, about: &tokens.about, rows: &rows, labels: &labels, stage: self };
        let tuned = judge.judge(prompt.as_ref().map(|p| &p.rows))?;
        let untuned = match (&prompt, self.untuned) {
            (Some(_), true) => Some(judge.judge(None)?),
            _ => None,
        };

        base.say_peak(context);

        let mut metrics = tuned.metrics.clone();
        for (name, value) in untuned.iter().flat_map(|u| &u.metrics) {
            metrics.insert(format!("untuned.{name}"), *value);
        }
        for (name, value) in &metrics {
            context.metric(name.clone(), *value);
        }
        let path = context.out.join("metrics.json");
        std::fs::write(&path, serde_json::to_vec_pretty(&metrics).unwrap_or_default())
            .map_err(|e| StageError::io(&path, &e))?;
        let path = context.out.join("predictions.jsonl");
        let file = File::create(&path).map_err(|e| StageError::io(&path, &e))?;
        let mut file = BufWriter::new(file);
        for (i, row) in rows.iter().enumerate() {
            let line = prediction(row, i, &tokens.about, &labels, &tuned, untuned.as_ref());
            writeln!(file, "{line}").map_err(|e| StageError::io(&path, &e))?;
        }
        file.flush().map_err(|e| StageError::io(&path, &e))
    }
}

/// A target text with its tokens.
struct Label {
    text: String,
    ids: Vec<u32>,
}

/// What one way of scoring gave.
struct Judged {
    metrics: BTreeMap<String, f64>,
    losses: Vec<f64>,
    likeliest: Vec<usize>,
    generated: Vec<String>,
}

struct Judge<'a> {
    context: &'a Context<'a>,
    base: &'a Base,
    about: &'a About,
    rows: &'a [TokenRow],
    labels: &'a [Label],
    stage: &'a Evaluate,
}

impl Evaluate {
    /// What the keys say of the model.
    fn base(&self) -> base::Named<'_> {
        base::Named { location: self.model.as_ref(), revision: self.revision.as_deref() }
    }

    /// What the keys say of the adapter.
    fn prompt(&self) -> prompt::Named<'_> {
        prompt::Named { location: self.adapter.as_ref(), revision: self.adapter_revision.as_deref() }
    }

    /// The different targets of all splits with their tokens, sorted; none if there are too many for labels.
    fn labels(&self, tokens: &Tokens) -> Result<Vec<Label>, StageError> {
        let mut found: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for split in &tokens.splits {
            for row in tokens.rows(&split.name)? {
                let Some(text) = row.target else { continue };
                let ids = row.ids[row.prompt_len..].to_vec();
                let longest = found.entry(text).or_default();
                // A row whose label was cut off does not tell its tokens.
                if ids.len() > longest.len() {
                    *longest = ids;
                }
                if found.len() > self.max_labels {
                    return Ok(Vec::new());
                }
            }
        }
        Ok(found.into_iter().map(|(text, ids)| Label { text, ids }).collect())
    }
}

/// A line of `predictions.jsonl`.
fn prediction(
    row: &TokenRow,
    i: usize,
    about: &About,
    labels: &[Label],
    tuned: &Judged,
    untuned: Option<&Judged>,
) -> serde_json::Value {
    let mut line = json!({
        "row": row.source,
        "loss": tuned.losses[i],
        "prompt_ids": row.ids[..row.prompt_len],
        "target_ids": row.ids[row.prompt_len..],
        "pads_before": about.pads_before(row.ids.len(), row.ids.len()),
    });
    let mut put = |name: &str, value: serde_json::Value| line[name] = value;
    if let Some(label) = &row.target {
        put("label", json!(label));
    }
    if let Some(untuned) = untuned {
        put("untuned_loss", json!(untuned.losses[i]));
    }
    if !labels.is_empty() {
        put("likeliest", json!(labels[tuned.likeliest[i]].text));
        put("generated", json!(tuned.generated[i]));
        if let Some(untuned) = untuned {
            put("untuned_likeliest", json!(labels[untuned.likeliest[i]].text));
            put("untuned_generated", json!(untuned.generated[i]));
        }
    }
    line
}

impl Judge<'_> {
    fn judge(&self, prompt: Option<&Tensor>) -> Result<Judged, StageError> {
        // Rows and candidates in one go: those of a row begin alike.
        let mut to_score = rows::to_score(self.about, self.rows);
        to_score.extend(self.candidates());
        let scores = self.score(prompt, &to_score)?;
        let (scores, candidates) = scores.split_at(self.rows.len());
        let total: Score = scores.iter().copied().sum();
        let loss = match self.stage.loss_over {
            LossOver::Predicted => total.loss(),
            LossOver::AllLabels => {
                let labels = self.rows.iter().flat_map(|row| &row.labels).filter(|l| **l != IGNORED);
                total.nll / labels.count() as f64
            }
        };
        let mut metrics = BTreeMap::from([
            ("loss".to_string(), loss),
            ("perplexity".to_string(), loss.exp()),
            ("token_accuracy".to_string(), total.accuracy()),
        ]);
        let losses = scores.iter().map(Score::loss).collect();
        let (mut likeliest, mut generated) = (Vec::new(), Vec::new());
        if !self.labels.is_empty() {
            likeliest = candidates.chunks(self.labels.len()).map(smallest_nll).collect();
            self.label_metrics("", &likeliest.iter().map(|l| Some(*l)).collect::<Vec<_>>(), &mut metrics);
            generated = self.by_generation(prompt)?;
            let named: Vec<Option<usize>> =
                generated.iter().map(|g| self.labels.iter().position(|l| l.text == g.trim())).collect();
            self.label_metrics("generation_", &named, &mut metrics);
        }
        Ok(Judged { metrics, losses, likeliest, generated })
    }

    fn score(&self, prompt: Option<&Tensor>, rows: &[Row]) -> Result<Vec<Score>, StageError> {
        let of = if prompt.is_some() { "tuned" } else { "untuned" };
        let mut watch = |done: usize| {
            self.context.progress(done as u64, rows.len() as u64, "rows", of);
            go_on(self.context)
        };
        Ok(score_on(&self.base.model, prompt, rows, self.stage.batch_size, &mut watch)?)
    }

    /// Each row's prompt with each label behind it.
    fn candidates(&self) -> impl Iterator<Item = Row> {
        self.rows.iter().flat_map(|row| {
            self.labels.iter().map(|label| {
                let prompt = &row.ids[..row.prompt_len];
                let ids = [prompt, &label.ids].concat();
                let labels =
                    std::iter::repeat_n(None, prompt.len()).chain(label.ids.iter().copied().map(Some));
                let pads = Pads::Before(self.about.pads_before(ids.len(), ids.len()));
                Row { labels: labels.collect(), ids, pads }
            })
        })
    }

    /// What the model writes after each row's prompt, up to the end token or a little more than the longest label.
    fn by_generation(&self, prompt: Option<&Tensor>) -> Result<Vec<String>, StageError> {
        let prompts: Vec<Vec<u32>> = self.rows.iter().map(|r| r.ids[..r.prompt_len].to_vec()).collect();
        let longest = self.labels.iter().map(|l| l.ids.len()).max().unwrap_or(0);
        let options = GenerateOptions {
            max_new_tokens: longest + 2,
            end: self.about.end_ids.clone(),
            batch_size: self.stage.batch_size,
        };
        let mut watch = |progress: crate::model::generate::GenerateProgress| {
            self.context.progress(progress.rows as u64, prompts.len() as u64, "rows", "generating");
            go_on(self.context)
        };
        let ids = greedy_on(&self.base.model, prompt, &prompts, &options, &mut watch)?;
        ids.iter().map(|ids| Ok(self.base.tokenizer.decode(ids, true)?)).collect()
    }

    fn label_metrics(&self, prefix: &str, predicted: &[Option<usize>], metrics: &mut BTreeMap<String, f64>) {
        let truth: Vec<Option<usize>> = self
            .rows
            .iter()
            .map(|r| self.labels.iter().position(|l| Some(&l.text) == r.target.as_ref()))
            .collect();
        let right = truth.iter().zip(predicted).filter(|(t, p)| t.is_some() && t == p).count();
        metrics.insert(format!("{prefix}accuracy"), right as f64 / truth.len().max(1) as f64);
        metrics.insert(format!("{prefix}macro_f1"), macro_f1(&truth, predicted, self.labels.len()));
    }
}

/// Which of a row's candidates is the likeliest as a whole: the first of equals.
fn smallest_nll(candidates: &[Score]) -> usize {
    let nll = |i: usize| candidates[i].nll;
    (0..candidates.len()).reduce(|a, b| if nll(b) < nll(a) { b } else { a }).unwrap_or(0)
}

/// The mean over the classes that occur, in truth or prediction, of 2·TP / (2·TP + FP + FN).
fn macro_f1(truth: &[Option<usize>], predicted: &[Option<usize>], classes: usize) -> f64 {
    let f1: Vec<f64> = (0..classes)
        .filter_map(|class| {
            let class = Some(class);
            let count = |t: bool, p: bool| {
                truth
                    .iter()
                    .zip(predicted)
                    .filter(|(a, b)| (**a == class) == t && (**b == class) == p)
                    .count()
            };
            let (hit, missed, wrong) = (count(true, true), count(true, false), count(false, true));
            let all = 2 * hit + missed + wrong;
            (all > 0).then(|| 2.0 * hit as f64 / all as f64)
        })
        .collect();
    f1.iter().sum::<f64>() / f1.len().max(1) as f64
}

fn go_on(context: &Context<'_>) -> ControlFlow<()> {
    if context.cancel.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

#[cfg(test)]
mod tests {
    use super::macro_f1;

    #[test]
    fn macro_f1_is_that_of_scikit_learn() {
        // sklearn.metrics.f1_score([0,0,1,1,1,2], [0,1,1,1,0,0], average="macro") with 2 never predicted
        let truth = [0, 0, 1, 1, 1, 2].map(Some);
        let predicted = [0, 1, 1, 1, 0, 0].map(Some);
        assert!((macro_f1(&truth, &predicted, 3) - 0.355_555_555_555_555_5).abs() < 1e-12);
        // A class that occurs nowhere does not count; an answer that is no label is simply wrong.
        assert_eq!(macro_f1(&[Some(0), Some(0)], &[Some(0), None], 3), 2.0 / 3.0);
    }
}
