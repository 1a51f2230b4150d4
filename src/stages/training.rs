//! What every training stage has: its keys, and what it says and leaves behind while it trains.
//!
//! Does not know what is trained. A stage's struct is declared with [`training_stage!`], which adds the keys.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::artifact::tokens::{Row as TokenRow, Tokens};
use crate::fingerprint::Digest;
use crate::hub::RepoName;
use crate::location::{Location, Place};
use crate::stage::{ArtifactKind, Context, Fault, Output, Source, StageError};
use crate::stages::place;
use crate::stages::publish::{Leave, Publisher, Target};
use crate::train::TrainError;
use crate::train::adamw::AdamWOptions;
use crate::train::checkpoint::{Checkpoints, Journal};
use crate::train::order::Shuffle;
use crate::train::recipe::{EarlyStopping, Every, Length, LossOver, Recipe};
use crate::train::schedule::Schedule;
use crate::train::training::{Course, Epoch, Evaluation, Observer, Step};

/// Declares a training stage: its own keys, then those that all have. The defaults `learning_rate`,
/// `weight_decay`, `max_grad_norm` and `shuffle` are functions beside it.
macro_rules! training_stage {
    ($(#[$about:meta])* pub struct $name:ident { $($(#[$meta:meta])* pub $key:ident: $type:ty,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$meta])* pub $key: $type,)*
            /// The split to train on.
            #[serde(default = "crate::stages::training::train_split")]
            pub split: String,
            /// The split whose loss is taken as training goes on; default: `test` if there is one. `false`: none.
            #[serde(default)]
            pub eval_split: $crate::stages::training::EvalSplit,
            /// When the evaluation loss is taken: after every `epoch`, or every so many steps.
            #[serde(default = "crate::stages::training::every_epoch")]
            pub eval_every: $crate::train::recipe::Every,
            /// How many times over all rows. Default 3, if `max_steps` is not given.
            #[serde(default)]
            pub epochs: Option<usize>,
            /// How many optimizer steps, instead of `epochs`.
            #[serde(default)]
            pub max_steps: Option<usize>,
            /// Rows of a batch.
            #[serde(default = "crate::stages::training::eight")]
            pub batch_size: usize,
            /// Rows that go through the model at once, to save memory; changes no result.
            #[serde(default)]
            pub micro_batch_size: Option<usize>,
            /// Batches that make one optimizer step; its loss is the mean over all their labels.
            #[serde(default = "crate::stages::training::one")]
            pub gradient_accumulation: usize,
            /// Which labels a loss is the mean over.
            #[serde(default)]
            pub loss_over: $crate::train::recipe::LossOver,
            /// The highest learning rate.
            #[serde(default = "learning_rate")]
            pub learning_rate: f64,
            /// How the learning rate goes after warmup.
            #[serde(default)]
            pub schedule: $crate::train::schedule::Schedule,
            /// Steps in which the learning rate climbs from 0; below 1: a share of all steps.
            #[serde(default)]
            pub warmup: f64,
            /// Share of a weight that a step at learning rate 1 takes away.
            #[serde(default = "weight_decay")]
            pub weight_decay: f64,
            /// A longer gradient is shortened to this length; `null`: never.
            #[serde(default = "max_grad_norm")]
            pub max_grad_norm: Option<f64>,
            /// Decay of AdamW's two moments.
            #[serde(default = "crate::stages::training::betas")]
            pub betas: (f64, f64),
            /// Added to AdamW's denominator.
            #[serde(default = "crate::stages::training::eps")]
            pub eps: f64,
            /// Seed of random starts and masks, and of the order unless `shuffle` has its own.
            #[serde(default = "crate::stages::training::seed")]
            pub seed: u64,
            /// The order of rows: `true`, `false` (as they lie), or `{ seed: 0, as: dataloader }` for the order that
            /// a torch program with this seed visits.
            #[serde(default = "shuffle")]
            pub shuffle: $crate::stages::training::Order,
            /// What the model computes in. `bf16` rounds what a matrix product takes to bfloat16 and sums in f32;
            /// what is trained, the optimizer and the loss stay f32.
            #[serde(default)]
            pub dtype: $crate::stages::base::DType,
            /// On a GPU: round what products of f32 numbers take to tf32, as `torch` does when told to.
            #[serde(default)]
            pub tf32: bool,
            /// On a GPU: the same inputs give the same bits; `false` may be faster.
            #[serde(default = "crate::stages::base::yes")]
            pub deterministic: bool,
            /// Compute the layers again on the way back instead of keeping them: less memory for a third more work;
            /// changes no result.
            #[serde(default)]
            pub gradient_checkpointing: bool,
            /// Write a line with the loss every so many steps; 0: only after epochs.
            #[serde(default)]
            pub log_every: usize,
            /// Leave a checkpoint every so many steps, or every `epoch`, in `checkpoints/step-N`. A run that was
            /// killed goes on from where it was without this, too.
            #[serde(default)]
            pub save_every: Option<$crate::train::recipe::Every>,
            /// How many checkpoints stay; the newest.
            #[serde(default = "crate::stages::training::two")]
            pub keep: usize,
            /// Begin with this checkpoint (`…/checkpoints/step-N`), made with the same keys and rows.
            #[serde(default)]
            pub resume_from: Option<$crate::location::Location>,
            /// Take what had the lowest evaluation loss in the end, not what came last.
            #[serde(default)]
            pub load_best: bool,
            /// End when the evaluation loss has not fallen (by more than `threshold`) for so many evaluations:
            /// `{ patience: 3 }`.
            #[serde(default)]
            pub early_stopping: Option<$crate::train::recipe::EarlyStopping>,
            /// Bring what is trained to `push_to`: after every `epoch`.
            #[serde(default)]
            pub push_every: Option<$crate::stages::training::PushEvery>,
            /// Where `push_every` goes: a folder, in which files are replaced one by one; or `owner/name` on the Hub, if
            /// no such path is here. Pushing to the Hub goes on beside training; what is overtaken is left out, and the
            /// stage ends with the last push. A repository that has to be created is private.
            #[serde(default)]
            pub push_to: Option<$crate::location::Location>,
        }

        impl $name {
            fn keys(&self) -> $crate::stages::training::Keys<'_> {
                $crate::stages::training::Keys {
                    split: &self.split,
                    eval_split: &self.eval_split,
                    eval_every: self.eval_every,
                    epochs: self.epochs,
                    max_steps: self.max_steps,
                    batch_size: self.batch_size,
                    micro_batch_size: self.micro_batch_size,
                    gradient_accumulation: self.gradient_accumulation,
                    loss_over: self.loss_over,
                    learning_rate: self.learning_rate,
                    schedule: self.schedule,
                    warmup: self.warmup,
                    weight_decay: self.weight_decay,
                    max_grad_norm: self.max_grad_norm,
                    betas: self.betas,
                    eps: self.eps,
                    seed: self.seed,
                    shuffle: &self.shuffle,
                    log_every: self.log_every,
                    save_every: self.save_every,
                    keep: self.keep,
                    resume_from: self.resume_from.as_ref(),
                    load_best: self.load_best,
                    early_stopping: self.early_stopping,
                    push_every: self.push_every,
                    push_to: self.push_to.as_ref(),
                }
            }
        }
    };
}
pub(super) use training_stage;

/// The keys that all training stages have.
pub struct Keys<'a> {
    pub split: &'a str,
    pub eval_split: &'a EvalSplit,
    pub eval_every: Every,
    pub epochs: Option<usize>,
    pub max_steps: Option<usize>,
    pub batch_size: usize,
    pub micro_batch_size: Option<usize>,
    pub gradient_accumulation: usize,
    pub loss_over: LossOver,
    pub learning_rate: f64,
    pub schedule: Schedule,
    pub warmup: f64,
    pub weight_decay: f64,
    pub max_grad_norm: Option<f64>,
    pub betas: (f64, f64),
    pub eps: f64,
    pub seed: u64,
    pub shuffle: &'a Order,
    pub log_every: usize,
    pub save_every: Option<Every>,
    pub keep: usize,
    pub resume_from: Option<&'a Location>,
    pub load_best: bool,
    pub early_stopping: Option<EarlyStopping>,
    pub push_every: Option<PushEvery>,
    pub push_to: Option<&'a Location>,
}

/// The split to take the loss of as training goes on.
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

/// When what is trained is written for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PushEvery {
    /// After every epoch.
    Epoch,
}

pub fn train_split() -> String {
    "train".into()
}
pub fn every_epoch() -> Every {
    Every::EPOCH
}
/// Trainer's seed.
pub fn seed() -> u64 {
    42
}
pub fn eight() -> usize {
    8
}
pub fn one() -> usize {
    1
}
pub fn two() -> usize {
    2
}
/// torch's AdamW.
pub fn betas() -> (f64, f64) {
    (0.9, 0.999)
}
pub fn eps() -> f64 {
    1e-8
}

/// Trainer's `num_train_epochs`.
const EPOCHS: usize = 3;
/// The longest time that a kill costs.
const INTERVAL: Duration = Duration::from_secs(60);
/// Where checkpoints are, in the folder of unfinished work and in the result.
const CHECKPOINTS: &str = "checkpoints";
/// A line per optimizer step.
const STEPS: &str = "steps.jsonl";

impl Keys<'_> {
    /// What is wrong with them that can be known without running.
    pub fn check(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.epochs.is_some() && self.max_steps.is_some() {
            faults.push(
                Fault::new("max_steps", "`epochs` and `max_steps` can't both be given").help("keep one"),
            );
        }
        let every = |every: Option<Every>| match every {
            Some(Every::Steps(steps)) => Some(steps),
            _ => None,
        };
        for (key, value) in [
            ("epochs", self.epochs),
            ("max_steps", self.max_steps),
            ("batch_size", Some(self.batch_size)),
            ("micro_batch_size", self.micro_batch_size),
            ("gradient_accumulation", Some(self.gradient_accumulation)),
            ("eval_every", every(Some(self.eval_every))),
            ("save_every", every(self.save_every)),
            ("keep", Some(self.keep)),
            ("early_stopping", self.early_stopping.map(|stopping| stopping.patience)),
        ] {
            if value == Some(0) {
                faults.push(Fault::new(key, format!("`{key}` is at least 1")));
            }
        }
        for (key, value) in [
            ("learning_rate", Some(self.learning_rate)),
            ("weight_decay", Some(self.weight_decay)),
            ("warmup", Some(self.warmup)),
            ("eps", Some(self.eps)),
            ("max_grad_norm", self.max_grad_norm),
            ("early_stopping", self.early_stopping.map(|stopping| stopping.threshold)),
        ] {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value >= 0.0)) {
                faults.push(Fault::new(key, format!("`{key}` is a number from 0 up, not {value}")));
            }
        }
        let evaluates = *self.eval_split != EvalSplit::Default(false);
        for (key, wanted) in
            [("load_best", self.load_best), ("early_stopping", self.early_stopping.is_some())]
        {
            if wanted && !evaluates {
                faults.push(
                    Fault::new(
                        key,
                        format!("`{key}` goes by the evaluation loss, and `eval_split` is false"),
                    )
                    .help("name a split under `eval_split`"),
                );
            }
        }
        match (self.push_every, self.push_to) {
            (Some(_), None) => faults.push(
                Fault::new("push_every", "`push_every` does not say where to")
                    .help("name a folder or a repository on the Hub: `push_to`"),
            ),
            (None, Some(_)) => faults
                .push(Fault::new("push_to", "`push_to` does not say when").help("add `push_every: epoch`")),
            (Some(_), Some(location)) => {
                if let Place::Hub(name) = location.resolve()
                    && let Err(error) = name.parse::<RepoName>()
                {
                    faults.push(Fault::new("push_to", error.to_string()));
                }
            }
            (None, None) => {}
        }
        faults
    }

    /// Outputs beside what is trained.
    pub fn outputs(&self) -> Vec<Output> {
        let metrics = Output::new("metrics", ArtifactKind::Metrics, &["metrics.json"]);
        let checkpoints = Output::new("checkpoints", ArtifactKind::Files, &[CHECKPOINTS]);
        std::iter::once(metrics).chain(self.save_every.map(|_| checkpoints)).collect()
    }

    /// What they read from outside.
    pub fn sources(&self) -> impl Iterator<Item = Source> {
        let source = |location: &Location| Source::files("resume_from", location.clone());
        self.resume_from.map(source).into_iter()
    }

    /// The recipe for so many rows.
    pub fn recipe(&self, rows: usize) -> Recipe {
        let length = match (self.max_steps, self.epochs) {
            (Some(steps), _) => Length::Steps(steps),
            (None, epochs) => Length::Epochs(epochs.unwrap_or(EPOCHS)),
        };
        let steps = length.steps(rows, self.batch_size * self.gradient_accumulation);
        let warmup =
            if self.warmup < 1.0 { (self.warmup * steps as f64).ceil() } else { self.warmup.round() };
        let (shuffle, seed) = match self.shuffle {
            Order::Plain(false) => (None, self.seed),
            Order::Plain(true) => (Some(Shuffle::default()), self.seed),
            Order::Seeded { seed, like } => (Some(*like), *seed),
        };
        Recipe {
            length,
            batch_size: self.batch_size,
            gradient_accumulation: self.gradient_accumulation,
            micro_batch_size: self.micro_batch_size,
            loss_over: self.loss_over,
            learning_rate: self.learning_rate,
            schedule: self.schedule,
            warmup_steps: warmup as usize,
            optimizer: AdamWOptions { betas: self.betas, eps: self.eps, weight_decay: self.weight_decay },
            max_grad_norm: self.max_grad_norm,
            shuffle,
            seed,
            eval_every: self.eval_every,
            load_best: self.load_best,
            early_stopping: self.early_stopping,
        }
    }

    /// The rows to score as training goes on.
    pub fn eval_rows(&self, tokens: &Tokens) -> Result<Vec<TokenRow>, StageError> {
        match self.eval_split {
            EvalSplit::Named(split) => Ok(tokens.rows(split)?),
            EvalSplit::Default(true) if self.split != "test" && tokens.has("test") => {
                Ok(tokens.rows("test")?)
            }
            EvalSplit::Default(_) => Ok(Vec::new()),
        }
    }

    /// Where training goes on from and leaves its checkpoints.
    pub fn checkpoints(&self, context: &Context<'_>) -> Result<Checkpoints, StageError> {
        let from = self.resume_from.map(|location| place::local(location, "resume_from")).transpose()?;
        Ok(Checkpoints {
            folder: context.unfinished.join(CHECKPOINTS),
            every: self.save_every,
            keep: self.keep,
            interval: INTERVAL,
            from,
            cancel: context.cancel.clone(),
        })
    }

    /// Where `push_every` goes to.
    fn push_target(&self) -> Result<Option<Target>, StageError> {
        let Some(location) = self.push_to else { return Ok(None) };
        Ok(Some(match location.resolve() {
            Place::Hub(name) => Target::Hub(name.parse()?),
            _ => Target::Folder(location.base().join(location.text())),
        }))
    }
}

/// What went into a file from its beginning.
#[derive(Default)]
struct Written {
    length: u64,
    hasher: blake3::Hasher,
}

impl Written {
    fn add(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        self.hasher.update(bytes);
    }

    /// The first bytes of a file; fewer if it has no more.
    fn of(path: &Path, length: u64) -> std::io::Result<Self> {
        let mut bytes = Vec::new();
        File::open(path)?.take(length).read_to_end(&mut bytes)?;
        let mut written = Self::default();
        written.add(&bytes);
        Ok(written)
    }

    fn journal(&self) -> Journal {
        Journal { length: self.length, digest: Digest::from(self.hasher.finalize()) }
    }
}

/// Writes `steps.jsonl`, says how it goes.
pub struct Watch<'a, L> {
    context: &'a Context<'a>,
    log_every: usize,
    path: PathBuf,
    steps: BufWriter<File>,
    written: Written,
    evaluation: Option<Evaluation>,
    publisher: Option<Publisher<'a, L>>,
}

impl<'a, L> Watch<'a, L> {
    /// Opens `steps.jsonl` where a kill does not reach it. `write` leaves what is trained in a folder, for
    /// `push_every`.
    pub fn new(context: &'a Context<'a>, keys: &Keys, write: Leave<'a, L>) -> Result<Self, StageError> {
        let folder = context.unfinished;
        std::fs::create_dir_all(folder).map_err(|e| StageError::io(folder, &e))?;
        let path = folder.join(STEPS);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|e| StageError::io(&path, &e))?;
        let steps = BufWriter::new(file);
        let publisher =
            keys.push_target()?.map(|target| Publisher::new(context, target, write)).transpose()?;
        Ok(Self {
            context,
            log_every: keys.log_every,
            path,
            steps,
            written: Written::default(),
            evaluation: None,
            publisher,
        })
    }

    /// Puts what training left beside its tensors into the result; waits for what is still being pushed.
    pub fn finish(
        mut self,
        learner: &mut L,
        course: &Course,
        checkpoints: &Checkpoints,
        more: Value,
    ) -> Result<(), StageError> {
        let out = self.context.out;
        self.steps.flush().map_err(|e| StageError::io(&self.path, &e))?;
        let steps = out.join(STEPS);
        std::fs::copy(&self.path, &steps).map_err(|e| StageError::io(&steps, &e))?;
        let copied = Written::of(&steps, u64::MAX).map_err(|e| StageError::io(&steps, &e))?;
        if copied.journal() != self.written.journal() {
            return Err(StageError::with_help(
                format!("{} is not what was written into it", self.path.display()),
                "run again: training goes on from its last checkpoint that is good",
            ));
        }
        if checkpoints.every.is_some() {
            checkpoints.verify_kept()?;
            let folder = out.join(CHECKPOINTS);
            std::fs::create_dir_all(&folder).map_err(|e| StageError::io(&folder, &e))?;
            for kept in checkpoints.kept() {
                let to = folder.join(kept.file_name().unwrap_or_default());
                link_folder(&kept, &to).map_err(|e| StageError::io(&to, &e))?;
            }
        }
        let taken = course.best_step.and_then(|step| course.evaluations.iter().find(|e| e.step == step));
        let evaluation = taken.or(course.evaluations.last());
        for (name, value) in [
            ("train_loss", course.epochs.last().map(|e| e.train_loss)),
            ("train_perplexity", course.epochs.last().map(|e| e.train_loss.exp())),
            ("eval_loss", evaluation.map(|e| e.loss)),
            ("eval_perplexity", evaluation.map(|e| e.loss.exp())),
        ] {
            if let Some(value) = value {
                self.context.metric(name, value);
            }
        }
        let mut metrics = serde_json::to_value(course).unwrap_or_default();
        if let (Some(metrics), Value::Object(more)) = (metrics.as_object_mut(), more) {
            metrics.extend(more);
        }
        let path = out.join("metrics.json");
        let text = serde_json::to_vec_pretty(&metrics).unwrap_or_default();
        std::fs::write(&path, text).map_err(|e| StageError::io(&path, &e))?;
        match self.publisher {
            Some(publisher) => {
                publisher.finish(self.context, learner, course.best_step.unwrap_or(course.steps))
            }
            None => Ok(()),
        }
    }
}

impl<L> Observer<L> for Watch<'_, L> {
    fn has(&mut self, journal: &Journal) -> Result<(), String> {
        let written = Written::of(&self.path, journal.length).map_err(|e| format!("{STEPS}: {e}"))?;
        match written.journal() == *journal {
            true => Ok(()),
            false => Err(format!("{STEPS} is not what it was then")),
        }
    }

    fn begins(&mut self, step: usize, journal: Option<&Journal>) -> Result<(), TrainError> {
        let io = |e: std::io::Error| TrainError::Disk { path: self.path.clone(), error: e };
        // Lines of steps that are going to be done again go.
        let length = journal.map_or(0, |journal| journal.length);
        self.steps.get_ref().set_len(length).map_err(io)?;
        self.written = Written::of(&self.path, length).map_err(io)?;
        if step > 0 {
            self.context.note(format!("going on after step {step}"));
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TrainError> {
        let line = json!({
            "step": step.step, "epoch": step.epoch, "learning_rate": step.learning_rate, "loss": step.loss,
            "grad_norm": step.grad_norm, "tokens": step.tokens, "seconds": step.seconds,
        });
        let (line, path) = (format!("{line}\n"), &self.path);
        let wrote = self.steps.write_all(line.as_bytes());
        wrote.map_err(|error| TrainError::Disk { path: path.clone(), error })?;
        self.written.add(line.as_bytes());
        if self.log_every > 0 && step.step.is_multiple_of(self.log_every) {
            self.context.note(format!(
                "step {}/{}  loss {:.4}  learning rate {:.3e}",
                step.step, step.steps, step.loss, step.learning_rate
            ));
        }
        self.context.progress(step.step as u64, step.steps as u64, "steps", format!("loss {:.4}", step.loss));
        Ok(())
    }

    fn evaluated(&mut self, evaluation: &Evaluation) {
        self.evaluation = Some(*evaluation);
    }

    fn epoch(&mut self, epoch: &Epoch, learner: &mut L) -> Result<(), TrainError> {
        let mut text = format!(
            "epoch {}  train loss {:.4} (perplexity {:.3})",
            epoch.epoch,
            epoch.train_loss,
            epoch.train_loss.exp()
        );
        if let Some(evaluation) = self.evaluation.filter(|e| e.step == epoch.step) {
            text += &format!("  eval loss {:.4} (perplexity {:.3})", evaluation.loss, evaluation.loss.exp());
        }
        self.context.note(text);
        let Some(publisher) = &mut self.publisher else { return Ok(()) };
        let published =
            publisher.publish(self.context, learner, format!("epoch {}", epoch.epoch), epoch.step);
        published.map_err(|e| TrainError::Observer(e.to_string()))
    }

    fn keeps_the_end(&self) -> bool {
        self.publisher.as_ref().is_some_and(Publisher::is_in_background)
    }

    fn checkpoint(&mut self, _: usize) -> Result<Option<Journal>, TrainError> {
        let path = &self.path;
        let flushed = self.steps.flush().and_then(|()| self.steps.get_ref().sync_data());
        flushed.map_err(|error| TrainError::Disk { path: path.clone(), error })?;
        Ok(Some(self.written.journal()))
    }

    fn warning(&mut self, text: &str) {
        self.context.warn(text);
    }

    fn cancelled(&self) -> bool {
        self.context.cancel.is_set()
    }
}

/// A number with its thousands apart.
pub fn grouped(n: usize) -> String {
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

/// The files of a folder under another name, linked where the disk can.
fn link_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if std::fs::hard_link(entry.path(), &to).is_err() {
            std::fs::copy(entry.path(), &to)?;
        }
    }
    Ok(())
}
