//! Trains a soft prompt: the only parameter is the prompt, everything else is frozen.

use std::time::Instant;

use candle_core::{Device, Tensor};

use super::TrainError;
use super::adamw::{AdamW, AdamWOptions};
use super::batch::{Row, check};
use super::gradient::differentiate;
use super::order::{Order, Shuffle};
use super::schedule::Schedule;
use crate::model::Decoder;
use crate::model::decoder::Keep;

/// How long training goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many times over all rows.
    Epochs(usize),
    /// So many optimizer steps.
    Steps(usize),
}

/// How a prompt is trained. The default is the PEFT guide's recipe but for its 50 epochs.
#[derive(Clone, Debug)]
pub struct SoftPromptOptions {
    /// How long.
    pub length: Length,
    /// Rows of a batch.
    pub batch_size: usize,
    /// Batches that make one optimizer step; its loss is the mean over all their labels.
    pub gradient_accumulation: usize,
    /// Rows that go through the model at once, to save memory; `None`: a batch. Changes no result but in
    /// rounding.
    pub micro_batch_size: Option<usize>,
    /// What is kept of a forward pass until the backward pass; changes no result.
    pub keep: Keep,
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
}

impl Default for SoftPromptOptions {
    fn default() -> Self {
        Self {
            length: Length::Epochs(3),
            batch_size: 8,
            gradient_accumulation: 1,
            micro_batch_size: None,
            keep: Keep::Everything,
            learning_rate: 3e-2,
            schedule: Schedule::Linear,
            warmup_steps: 0,
            optimizer: AdamWOptions::default(),
            max_grad_norm: None,
            shuffle: Some(Shuffle::Dataloader),
            seed: 0,
        }
    }
}

/// One optimizer step.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its number, from 1.
    pub step: usize,
    /// How many there will be.
    pub steps: usize,
    /// The epoch it belongs to, from 1.
    pub epoch: usize,
    /// Indices of its rows, from 0.
    pub rows: Vec<usize>,
    /// The learning rate it used.
    pub learning_rate: f64,
    /// Mean over its kept labels, before the step.
    pub loss: f64,
    /// Length of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the model, virtual ones included.
    pub tokens: usize,
    /// What it took.
    pub seconds: f64,
}

/// One epoch that is over.
#[derive(Clone, Debug)]
pub struct Epoch {
    /// Its number, from 1.
    pub epoch: usize,
    /// Steps done since the beginning.
    pub step: usize,
    /// Mean of its steps' losses.
    pub loss: f64,
}

/// Hears how training goes; an error ends it.
pub trait Observer {
    /// After each optimizer step.
    ///
    /// # Errors
    /// Whatever should end training.
    fn step(&mut self, step: &Step) -> Result<(), TrainError> {
        let _ = step;
        Ok(())
    }

    /// After each epoch, with the prompt `[n, hidden]` as it is then.
    ///
    /// # Errors
    /// Whatever should end training.
    fn epoch(&mut self, epoch: &Epoch, prompt: &Tensor) -> Result<(), TrainError> {
        let _ = (epoch, prompt);
        Ok(())
    }

    /// Whether somebody asked to stop; asked before every pass through the model.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Trains from the prompt `init` `[n, hidden]`; gives the trained one.
///
/// # Errors
/// Options or rows that can't be used, a prompt that gets no gradient, a loss that is not finite, an
/// interruption, or what the observer gave.
pub fn train(
    model: &Decoder,
    init: &Tensor,
    rows: &[Row],
    options: &SoftPromptOptions,
    observer: &mut dyn Observer,
) -> Result<Tensor, TrainError> {
    let mut training = Training::new(model, init, rows, options)?;
    let mut order = match options.shuffle {
        Some(shuffle) => Order::shuffled(shuffle, options.seed, rows.len()),
        None => Order::file(rows.len()),
    };
    let window = options.batch_size * options.gradient_accumulation;
    let steps = match options.length {
        Length::Epochs(epochs) => rows.len().div_ceil(window) * epochs,
        Length::Steps(steps) => steps,
    };
    let (mut step, mut epoch) = (0, 0);
    while step < steps {
        epoch += 1;
        let (first, mut losses) = (step, 0.0);
        for rows in order.next_epoch().chunks(window).take(steps - first) {
            let start = Instant::now();
            let rate = options.learning_rate * options.schedule.factor(step, options.warmup_steps, steps);
            step += 1;
            let Pass { loss, grad_norm, tokens } = training.step(step, rows, rate, observer)?;
            losses += loss;
            observer.step(&Step {
                step,
                steps,
                epoch,
                rows: rows.to_vec(),
                learning_rate: rate,
                loss,
                grad_norm,
                tokens,
                seconds: start.elapsed().as_secs_f64(),
            })?;
        }
        let loss = losses / (step - first) as f64;
        observer.epoch(&Epoch { epoch, step, loss }, &training.prompt()?)?;
    }
    training.prompt()
}

struct Training<'a> {
    model: &'a Decoder,
    rows: &'a [Row],
    options: &'a SoftPromptOptions,
    prompt: Vec<f32>,
    shape: (usize, usize),
    optimizer: AdamW,
}

/// What came out of one step.
struct Pass {
    loss: f64,
    grad_norm: f64,
    tokens: usize,
}

impl<'a> Training<'a> {
    fn new(
        model: &'a Decoder,
        init: &Tensor,
        rows: &'a [Row],
        options: &'a SoftPromptOptions,
    ) -> Result<Self, TrainError> {
        for (name, value) in [
            ("batch_size", options.batch_size),
            ("gradient_accumulation", options.gradient_accumulation),
            ("micro_batch_size", options.micro_batch_size.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(TrainError::Option(format!("{name} must be at least 1")));
            }
        }
        if rows.is_empty() {
            return Err(TrainError::NoRows);
        }
        check(rows, model.shape().vocabulary)?;
        let prompt = model.prompt(init)?;
        if prompt.is_empty() {
            return Err(TrainError::Option("a prompt needs at least one virtual token".into()));
        }
        let shape = (prompt.len() / model.shape().hidden, model.shape().hidden);
        let optimizer = AdamW::new(options.optimizer, prompt.len());
        Ok(Self { model, rows, options, prompt, shape, optimizer })
    }

    fn prompt(&self) -> Result<Tensor, TrainError> {
        Ok(Tensor::from_slice(&self.prompt, self.shape, &Device::Cpu)?)
    }

    fn step(
        &mut self,
        step: usize,
        rows: &[usize],
        learning_rate: f64,
        observer: &dyn Observer,
    ) -> Result<Pass, TrainError> {
        let labels = rows.iter().map(|&i| self.rows[i].kept(self.shape.0)).sum();
        if labels == 0 {
            return Err(TrainError::NoLabels { step, rows: rows.to_vec() });
        }
        let (mut loss, mut tokens) = (0.0, 0);
        let mut gradient = vec![0.0f32; self.prompt.len()];
        let length = |i: &usize| self.rows[*i].ids.len();
        let micro_batches = rows.chunks(self.options.batch_size).flat_map(|batch| {
            let longest = batch.iter().map(length).max().unwrap_or(0);
            let micro = self.options.micro_batch_size.unwrap_or(batch.len());
            batch.chunks(micro).map(move |micro| (micro, longest))
        });
        for (micro, longest) in micro_batches {
            if observer.cancelled() {
                return Err(TrainError::Interrupted);
            }
            let micro_rows: Vec<&Row> = micro.iter().map(|&i| &self.rows[i]).collect();
            if micro_rows.iter().all(|row| row.kept(self.shape.0) == 0) {
                continue;
            }
            let part =
                differentiate(self.model, &self.prompt, &micro_rows, longest, labels, self.options.keep)?;
            loss += part.loss;
            if !loss.is_finite() {
                return Err(TrainError::Loss { step, loss, rows: micro.to_vec() });
            }
            tokens += part.tokens;
            gradient.iter_mut().zip(part.prompt.iter()).for_each(|(sum, part)| *sum += part);
        }
        let grad_norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        if !grad_norm.is_finite() {
            return Err(TrainError::Gradient { step, what: "not finite", rows: rows.to_vec() });
        }
        if step == 1 && grad_norm == 0.0 {
            return Err(TrainError::Gradient { step, what: "zero everywhere", rows: rows.to_vec() });
        }
        if let Some(max) = self.options.max_grad_norm {
            let scale = (max / (grad_norm + 1e-6)).min(1.0) as f32;
            gradient.iter_mut().for_each(|g| *g *= scale);
        }
        self.optimizer.step(learning_rate, &mut self.prompt, &gradient);
        Ok(Pass { loss, grad_norm, tokens })
    }
}
