//! Trains a soft prompt before a frozen model: PEFT's prompt tuning.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::base::{self, Base, DType};
use super::{place, rows};
use crate::artifact::adapter::{Adapter, AdapterConfig};
use crate::artifact::tokens::{Row as TokenRow, Tokens};
use crate::location::Location;
use crate::model::decoder::Keep;
use crate::stage::{ArtifactKind, Context, Fault, Lane, Output, Port, Source, Stage, StageError};
use crate::train::adamw::AdamWOptions;
use crate::train::order::Shuffle;
use crate::train::schedule::Schedule;
use crate::train::score::{Score, score};
use crate::train::soft_prompt::{Epoch, Length, Observer, SoftPromptOptions, Step, train};
use crate::train::{Row, TrainError, init};

/// The configuration.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainSoftPrompt {
    /// The frozen model: a folder, a .gguf file or a Hub name. Or connect the port `model`.
    #[serde(default)]
    pub model: Option<Location>,
    /// What the adapter remembers as the name of its base model; default: `model` as written.
    #[serde(default)]
    pub base_model: Option<String>,
    /// How many virtual tokens stand before every row.
    pub num_virtual_tokens: usize,
    /// What they start from.
    #[serde(default)]
    pub init: Init,
    /// The split to train on.
    #[serde(default = "train_split")]
    pub split: String,
    /// The split whose loss is taken after every epoch; default: `test` if there is one. `false`: none.
    #[serde(default)]
    pub eval_split: EvalSplit,
    /// How many times over all rows. Default 3, if `max_steps` is not given.
    #[serde(default)]
    pub epochs: Option<usize>,
    /// How many optimizer steps, instead of `epochs`.
    #[serde(default)]
    pub max_steps: Option<usize>,
    /// Rows of a batch.
    #[serde(default = "eight")]
    pub batch_size: usize,
    /// Rows that go through the model at once, to save memory; changes no result.
    #[serde(default)]
    pub micro_batch_size: Option<usize>,
    /// Batches that make one optimizer step.
    #[serde(default = "one")]
    pub gradient_accumulation: usize,
    /// The highest learning rate.
    #[serde(default = "learning_rate")]
    pub learning_rate: f64,
    /// How the learning rate goes after warmup.
    #[serde(default)]
    pub schedule: Schedule,
    /// Steps in which the learning rate climbs from 0; below 1: a share of all steps.
    #[serde(default)]
    pub warmup: f64,
    /// Share of the prompt that a step at learning rate 1 takes away.
    #[serde(default = "weight_decay")]
    pub weight_decay: f64,
    /// A longer gradient is shortened to this length.
    #[serde(default)]
    pub max_grad_norm: Option<f64>,
    /// Decay of AdamW's two moments.
    #[serde(default = "betas")]
    pub betas: (f64, f64),
    /// Added to AdamW's denominator.
    #[serde(default = "eps")]
    pub eps: f64,
    /// Seed of the random starts, and of the order unless `shuffle` has its own.
    #[serde(default = "seed")]
    pub seed: u64,
    /// The order of rows: `true`, `false` (as they lie), or `{ seed: 0, as: dataloader }` for the order that a
    /// torch program with this seed visits.
    #[serde(default)]
    pub shuffle: Order,
    /// What the model computes in. `bf16` rounds what a matrix product takes to bfloat16 and sums in f32; the
    /// prompt, the optimizer and the loss stay f32.
    #[serde(default)]
    pub dtype: DType,
    /// Compute the layers again on the way back instead of keeping them: less memory for a third more work;
    /// changes no result.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Write a line with the loss every so many steps; 0: only after epochs.
    #[serde(default)]
    pub log_every: usize,
}

/// What the virtual tokens start from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// The embeddings of this text's tokens, cut or repeated to fit.
    Text(String),
    /// Numbers from N(0, 1).
    #[default]
    Random,
    /// The embeddings of random tokens.
    SampleVocab,
    /// Rows of f32: a .safetensors file with one tensor, or bare little-endian numbers.
    File(Location),
}

/// The split to take the loss of after every epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EvalSplit {
    /// `test` if there is one (`true`), or none (`false`).
    Default(bool),
    /// This one.
    Named(String),
}

impl Default for EvalSplit {
    fn default() -> Self {
        Self::Default(true)
    }
}

/// The order of rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Order {
    /// Shuffled as a DataLoader does it, or not at all.
    Plain(bool),
    /// Shuffled with this seed as this program does it.
    Seeded {
        /// The generator's seed.
        seed: u64,
        /// Whose order is followed.
        #[serde(default, rename = "as")]
        like: Shuffle,
    },
}

impl Default for Order {
    fn default() -> Self {
        Self::Plain(true)
    }
}

fn seed() -> u64 {
    42
}
fn train_split() -> String {
    "train".into()
}
fn eight() -> usize {
    8
}
fn one() -> usize {
    1
}
/// The guide's learning rate.
fn learning_rate() -> f64 {
    3e-2
}
/// torch's AdamW.
fn weight_decay() -> f64 {
    0.01
}
fn betas() -> (f64, f64) {
    (0.9, 0.999)
}
fn eps() -> f64 {
    1e-8
}

/// Trainer's `num_train_epochs`.
const EPOCHS: usize = 3;
/// Rows that are scored at a time.
const EVAL_BATCH: usize = 16;

impl Stage for TrainSoftPrompt {
    const KIND: &'static str = "train_soft_prompt";
    const VERSION: u32 = 2;
    const LANE: Lane = Lane::Device;
    const ABOUT: &'static str = "Trains virtual tokens before a frozen model (PEFT's prompt tuning).";
    const EXAMPLE: &'static str = "\
prompt:
  uses: train_soft_prompt
  inputs: { dataset: tokens }
  with:
    model: bigscience/bloomz-560m
    num_virtual_tokens: 8
    init: { text: \"Classify if the tweet is a complaint or not:\" }
    learning_rate: 3e-2
    epochs: 50
    batch_size: 8
";
    const INPUTS: &'static [Port] = &[
        Port {
            name: "dataset",
            accepts: &[ArtifactKind::Tokens],
            required: true,
            about: "the rows to train on, with labels",
        },
        Port {
            name: "model",
            accepts: &[ArtifactKind::Model, ArtifactKind::Files],
            required: false,
            about: "the frozen model, instead of the key `model`",
        },
    ];

    fn outputs(&self) -> Vec<Output> {
        vec![
            Output::new(
                "adapter",
                ArtifactKind::Adapter,
                &["adapter_config.json", "adapter_model.safetensors"],
            ),
            Output::new("metrics", ArtifactKind::Metrics, &["metrics.json"]),
        ]
    }

    fn sources(&self) -> Vec<Source> {
        let model = self.model.iter().map(|l| Source { role: "model".into(), location: l.clone() });
        let file = match &self.init {
            Init::File(l) => Some(Source { role: "init.file".into(), location: l.clone() }),
            _ => None,
        };
        model.chain(file).collect()
    }

    fn check(&self, inputs: &[&str]) -> Vec<Fault> {
        let mut faults: Vec<Fault> = base::check(self.model.as_ref(), inputs).into_iter().collect();
        if self.epochs.is_some() && self.max_steps.is_some() {
            faults.push(
                Fault::new("max_steps", "`epochs` and `max_steps` can't both be given").help("keep one"),
            );
        }
        for (key, value) in [
            ("num_virtual_tokens", Some(self.num_virtual_tokens)),
            ("epochs", self.epochs),
            ("max_steps", self.max_steps),
            ("batch_size", Some(self.batch_size)),
            ("micro_batch_size", self.micro_batch_size),
            ("gradient_accumulation", Some(self.gradient_accumulation)),
        ] {
            if value == Some(0) {
                faults.push(Fault::new(key, format!("`{key}` is at least 1")));
            }
        }
        for (key, value) in [
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("warmup", self.warmup),
            ("eps", self.eps),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                faults.push(Fault::new(key, format!("`{key}` is a number from 0 up, not {value}")));
            }
        }
        faults
    }

    fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
        let tokens = Tokens::open(&context.input("dataset")?.path)?;
        let token_rows = tokens.rows(&self.split)?;
        rows::has_labels(&token_rows, &self.split)?;
        let eval = self.eval_rows(&tokens)?;
        let base = Base::load(context, self.model.as_ref(), self.dtype.precision())?;
        base.belongs_to(&tokens)?;
        for rows in [&token_rows, &eval] {
            base.has_room(self.num_virtual_tokens, rows::longest(&tokens.about, rows))?;
        }
        warn_of_the_gap(context, &tokens, &base);
        let (rows, eval) = (rows::to_train(&tokens.about, &token_rows), rows::to_score(&tokens.about, &eval));
        let start = self.start(&base)?;
        let trainable = start.elem_count();
        let all = base.model.parameters() + trainable;
        context.note(format!(
            "trainable params: {} || all params: {} || trainable%: {:.4}",
            grouped(trainable),
            grouped(all),
            100.0 * trainable as f64 / all as f64
        ));

        let options = self.options(rows.len());
        let mut watch = Watch::new(context, &base, eval, self.log_every)?;
        let prompt = train(&base.model, &start, &rows, &options, &mut watch)?;
        let report = watch.finish()?;

        Adapter { config: self.adapter_config(&base), prompt }.write(context.out)?;
        for (name, value) in [
            ("train_loss", report.epochs.last().map(|e| e.train_loss)),
            ("train_perplexity", report.epochs.last().map(|e| e.train_loss.exp())),
            ("eval_loss", report.epochs.last().and_then(|e| e.eval_loss)),
            ("eval_perplexity", report.epochs.last().and_then(|e| e.eval_loss).map(f64::exp)),
        ] {
            if let Some(value) = value {
                context.metric(name, value);
            }
        }
        let metrics = json!({
            "trainable_params": trainable, "all_params": all, "steps": report.steps, "tokens": report.tokens,
            "epochs": report.epochs,
        });
        let path = context.out.join("metrics.json");
        let text = serde_json::to_vec_pretty(&metrics).unwrap_or_default();
        std::fs::write(&path, text).map_err(|e| StageError::io(&path, &e))
    }
}

impl TrainSoftPrompt {
    fn adapter_config(&self, base: &Base) -> AdapterConfig {
        let name = self.base_model.as_ref().unwrap_or(&base.name);
        let mut config = AdapterConfig::prompt_tuning(name, self.num_virtual_tokens, base.model.shape());
        match &self.init {
            Init::Text(text) => {
                config.prompt_tuning_init = Some("TEXT".into());
                config.prompt_tuning_init_text = Some(text.clone());
                config.tokenizer_name_or_path = Some(name.clone());
            }
            Init::SampleVocab => config.prompt_tuning_init = Some("SAMPLE_VOCAB".into()),
            // PEFT knows no file to start from; what it would do without one is RANDOM.
            Init::Random | Init::File(_) => {}
        }
        config
    }

    fn start(&self, base: &Base) -> Result<Tensor, StageError> {
        let (model, n) = (&base.model, self.num_virtual_tokens);
        Ok(match &self.init {
            Init::Text(text) => init::text(model, &base.tokenizer.encode(text, true)?, n)?,
            Init::Random => init::random(model, n, self.seed)?,
            Init::SampleVocab => init::sample_vocabulary(model, n, self.seed)?,
            Init::File(location) => init::file(model, n, &place::local(location, "init.file")?)?,
        })
    }

    fn eval_rows(&self, tokens: &Tokens) -> Result<Vec<TokenRow>, StageError> {
        match &self.eval_split {
            EvalSplit::Named(split) => Ok(tokens.rows(split)?),
            EvalSplit::Default(true) if self.split != "test" && tokens.has("test") => {
                Ok(tokens.rows("test")?)
            }
            EvalSplit::Default(_) => Ok(Vec::new()),
        }
    }

    fn options(&self, rows: usize) -> SoftPromptOptions {
        let window = self.batch_size * self.gradient_accumulation;
        let (length, steps) = match (self.max_steps, self.epochs) {
            (Some(steps), _) => (Length::Steps(steps), steps),
            (None, epochs) => {
                let epochs = epochs.unwrap_or(EPOCHS);
                (Length::Epochs(epochs), rows.div_ceil(window) * epochs)
            }
        };
        let warmup =
            if self.warmup < 1.0 { (self.warmup * steps as f64).ceil() } else { self.warmup.round() };
        let (shuffle, seed) = match &self.shuffle {
            Order::Plain(false) => (None, self.seed),
            Order::Plain(true) => (Some(Shuffle::default()), self.seed),
            Order::Seeded { seed, like } => (Some(*like), *seed),
        };
        SoftPromptOptions {
            length,
            batch_size: self.batch_size,
            gradient_accumulation: self.gradient_accumulation,
            micro_batch_size: self.micro_batch_size,
            keep: if self.gradient_checkpointing { Keep::BlockInputs } else { Keep::Everything },
            learning_rate: self.learning_rate,
            schedule: self.schedule,
            warmup_steps: warmup as usize,
            optimizer: AdamWOptions { betas: self.betas, eps: self.eps, weight_decay: self.weight_decay },
            max_grad_norm: self.max_grad_norm,
            shuffle,
            seed,
        }
    }
}

/// Where positions run over padding, training sees a gap between prompt and text that inference does not have.
fn warn_of_the_gap(context: &Context<'_>, tokens: &Tokens, base: &Base) {
    if tokens.about.pads_before(0, 1) > 0 && base.model.shape().max_positions.is_some() {
        context.warn(
            "padding on the left puts a gap of positions between the prompt and the text, as PEFT does in \
             training; at inference there is none. `padding: none` in the tokenize stage trains without it",
        );
    }
}

fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[derive(Debug, Serialize)]
struct EpochReport {
    epoch: usize,
    train_loss: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_loss: Option<f64>,
}

struct Report {
    epochs: Vec<EpochReport>,
    steps: usize,
    tokens: usize,
}

/// Writes `steps.jsonl`, says how it goes, takes the eval loss after every epoch.
struct Watch<'a> {
    context: &'a Context<'a>,
    base: &'a Base,
    eval: Vec<Row>,
    log_every: usize,
    path: PathBuf,
    steps: BufWriter<File>,
    report: Report,
}

impl<'a> Watch<'a> {
    fn new(
        context: &'a Context<'a>,
        base: &'a Base,
        eval: Vec<Row>,
        log_every: usize,
    ) -> Result<Self, StageError> {
        let path = context.out.join("steps.jsonl");
        let file = File::create(&path).map_err(|e| StageError::io(&path, &e))?;
        let report = Report { epochs: Vec::new(), steps: 0, tokens: 0 };
        Ok(Self { context, base, eval, log_every, path, steps: BufWriter::new(file), report })
    }

    fn finish(mut self) -> Result<Report, StageError> {
        self.steps.flush().map_err(|e| StageError::io(&self.path, &e))?;
        Ok(self.report)
    }
}

impl Observer for Watch<'_> {
    fn step(&mut self, step: &Step) -> Result<(), TrainError> {
        let line = json!({
            "step": step.step, "epoch": step.epoch, "learning_rate": step.learning_rate, "loss": step.loss,
            "grad_norm": step.grad_norm, "tokens": step.tokens, "seconds": step.seconds,
        });
        let path = &self.path;
        writeln!(self.steps, "{line}")
            .map_err(|e| TrainError::Observer(StageError::io(path, &e).to_string()))?;
        self.report.steps = step.step;
        self.report.tokens += step.tokens;
        if self.log_every > 0 && step.step.is_multiple_of(self.log_every) {
            self.context.note(format!(
                "step {}/{}  loss {:.4}  learning rate {:.3e}",
                step.step, step.steps, step.loss, step.learning_rate
            ));
        }
        self.context.progress(step.step as u64, step.steps as u64, "steps", format!("loss {:.4}", step.loss));
        Ok(())
    }

    fn epoch(&mut self, epoch: &Epoch, prompt: &Tensor) -> Result<(), TrainError> {
        let mut text = format!(
            "epoch {}  train loss {:.4} (perplexity {:.3})",
            epoch.epoch,
            epoch.loss,
            epoch.loss.exp()
        );
        let mut eval_loss = None;
        if !self.eval.is_empty() {
            let context = self.context;
            let mut go_on =
                |_| if context.cancel.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            let scores = score(&self.base.model, Some(prompt), &self.eval, EVAL_BATCH, &mut go_on)?;
            let total: Score = scores.into_iter().sum();
            text += &format!("  eval loss {:.4} (perplexity {:.3})", total.loss(), total.perplexity());
            eval_loss = Some(total.loss());
        }
        self.context.note(text);
        self.report.epochs.push(EpochReport { epoch: epoch.epoch, train_loss: epoch.loss, eval_loss });
        Ok(())
    }

    fn cancelled(&self) -> bool {
        self.context.cancel.is_set()
    }
}
