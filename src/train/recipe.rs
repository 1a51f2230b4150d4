//! How something is trained: the numbers of a recipe. Does not know what is trained.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::adamw::AdamWOptions;
use super::order::Shuffle;
use super::schedule::Schedule;

/// How long training goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many times over all rows.
    Epochs(usize),
    /// So many optimizer steps.
    Steps(usize),
}

impl Length {
    /// Optimizer steps over so many rows, `window` of them a step.
    pub fn steps(self, rows: usize, window: usize) -> usize {
        match self {
            Self::Epochs(epochs) => rows.div_ceil(window) * epochs,
            Self::Steps(steps) => steps,
        }
    }
}

/// How often something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Every {
    /// After every epoch.
    Epoch(Epochs),
    /// After every so many optimizer steps.
    Steps(usize),
}

/// The word `epoch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Epochs {
    /// After every epoch.
    Epoch,
}

impl Every {
    /// After every epoch.
    pub const EPOCH: Self = Self::Epoch(Epochs::Epoch);

    /// Whether it is due after this step.
    pub fn is_due(self, step: usize, ends_epoch: bool) -> bool {
        match self {
            Self::Epoch(_) => ends_epoch,
            Self::Steps(steps) => step.is_multiple_of(steps.max(1)),
        }
    }
}

/// Which labels a loss is the mean over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossOver {
    /// Those that are predicted: the usual loss.
    #[default]
    Predicted,
    /// All that are given, also that of a row's first token, which nothing predicts unless a prompt stands before it:
    /// what transformers 5.23's Trainer gives for GPT-2, (L-1)/L of the usual loss of rows of L tokens. Trainer's
    /// evaluation is the mean of its batches', which is the same where all rows are of one length.
    AllLabels,
}

/// When to end because it no longer gets better.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// Evaluations in a row without a better loss after which training ends.
    pub patience: usize,
    /// How much lower a loss has to be to count as better.
    #[serde(default)]
    pub threshold: f64,
}

/// A recipe. The default is the PEFT guide's but for its 50 epochs.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// How long.
    pub length: Length,
    /// Rows of a batch.
    pub batch_size: usize,
    /// Batches that make one optimizer step; its loss is the mean over all their labels.
    pub gradient_accumulation: usize,
    /// Rows that go through the model at once, to save memory; `None`: a batch. Changes no result but in
    /// rounding.
    pub micro_batch_size: Option<usize>,
    /// What the loss is the mean over.
    pub loss_over: LossOver,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// How it changes.
    pub schedule: Schedule,
    /// Steps it takes to get there.
    pub warmup_steps: usize,
    /// The optimizer's constants.
    pub optimizer: AdamWOptions,
    /// A longer gradient is shortened to this length.
    pub max_grad_norm: Option<f64>,
    /// Order of the rows; `None`: as they come.
    pub shuffle: Option<Shuffle>,
    /// Seed of the order.
    pub seed: u64,
    /// When the evaluation rows are scored, if there are any.
    pub eval_every: Every,
    /// Take what scored best in the end, not what came last.
    pub load_best: bool,
    /// When to end early.
    pub early_stopping: Option<EarlyStopping>,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            length: Length::Epochs(3),
            batch_size: 8,
            gradient_accumulation: 1,
            micro_batch_size: None,
            loss_over: LossOver::default(),
            learning_rate: 3e-2,
            schedule: Schedule::Linear,
            warmup_steps: 0,
            optimizer: AdamWOptions::default(),
            max_grad_norm: None,
            shuffle: Some(Shuffle::Dataloader),
            seed: 0,
            eval_every: Every::EPOCH,
            load_best: false,
            early_stopping: None,
        }
    }
}
