//! The training loop: order, windows of batches, learning rate, clipping, optimizer, evaluation, checkpoints.
//!
//! Does not know what is trained, only that it has tensors with gradients.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::TrainError;
use super::batch::{Row, check};
use super::checkpoint::{Beginning, Best, Checkpoints, Journal, Numbers, Resumed, State, Timing};
use super::learner::{Learner, MicroBatch, Moment, Outcome, Restored, State as Tensor, Trouble, Update};
use super::order::Order;
use super::recipe::{LossOver, Recipe};
use super::score::Score;

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

/// One epoch that is over, or as much of it as was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Its number, from 1.
    pub epoch: usize,
    /// Steps done since the beginning.
    pub step: usize,
    /// Mean of its steps' losses.
    pub train_loss: f64,
}

/// What the evaluation rows said at some step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Steps done since the beginning.
    pub step: usize,
    /// Mean over the rows' kept labels.
    pub loss: f64,
    /// Share of labels that were the likeliest token.
    pub accuracy: f64,
}

/// How a training went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// Optimizer steps done.
    pub steps: usize,
    /// Tokens that went through the model in training.
    pub tokens: usize,
    /// The epochs.
    pub epochs: Vec<Epoch>,
    /// The evaluations.
    pub evaluations: Vec<Evaluation>,
    /// Steps after which the tensors are as they were taken in the end, where that is not the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_step: Option<usize>,
    /// Whether it ended because it no longer got better.
    pub stopped_early: bool,
}

/// Hears how training goes; an error ends it.
pub trait Observer<L> {
    /// Whether what was written down until a checkpoint is still there; if not, it is not gone on from.
    ///
    /// # Errors
    /// A sentence: what is not there any more.
    fn has(&mut self, journal: &Journal) -> Result<(), String> {
        let _ = journal;
        Ok(())
    }

    /// Training begins, after so many steps that were done before: what was written down of them is the journal, and
    /// what was heard of later ones does not count.
    ///
    /// # Errors
    /// Whatever should end training.
    fn begins(&mut self, step: usize, journal: Option<&Journal>) -> Result<(), TrainError> {
        let _ = (step, journal);
        Ok(())
    }

    /// After each optimizer step.
    ///
    /// # Errors
    /// Whatever should end training.
    fn step(&mut self, step: &Step) -> Result<(), TrainError> {
        let _ = step;
        Ok(())
    }

    /// After each evaluation.
    fn evaluated(&mut self, evaluation: &Evaluation) {
        let _ = evaluation;
    }

    /// After each epoch, with what is trained as it is then.
    ///
    /// # Errors
    /// Whatever should end training.
    fn epoch(&mut self, epoch: &Epoch, learner: &mut L) -> Result<(), TrainError> {
        let _ = (epoch, learner);
        Ok(())
    }

    /// Before a checkpoint counts: whatever was heard has to be safe on disk. Gives what was written down, if
    /// anything is.
    ///
    /// # Errors
    /// Whatever should end training.
    fn checkpoint(&mut self, step: usize) -> Result<Option<Journal>, TrainError> {
        let _ = step;
        Ok(None)
    }

    /// Whether something that may fail comes after the last step: it gets a checkpoint then, so that another run has
    /// only that to do.
    fn keeps_the_end(&self) -> bool {
        false
    }

    /// Something the user should know.
    fn warning(&mut self, text: &str) {
        let _ = text;
    }

    /// Whether somebody asked to stop; asked before every pass through the model.
    fn cancelled(&self) -> bool {
        false
    }
}

/// A training: a recipe and its rows.
pub struct Training<'a> {
    /// How.
    pub recipe: &'a Recipe,
    /// What to train on.
    pub rows: &'a [Row],
    /// What to score as it goes; may be empty.
    pub eval: &'a [Row],
    /// Where to go on from, and what to leave behind.
    pub checkpoints: Option<&'a Checkpoints>,
}

impl Training<'_> {
    /// Trains; what was given is trained in place.
    ///
    /// # Errors
    /// A recipe or rows that can't be used, a tensor that gets no gradient, a loss that is not finite, a
    /// checkpoint that can't be read or written, an interruption, or what the observer gave.
    pub fn run<L: Learner>(
        &self,
        learner: &mut L,
        observer: &mut dyn Observer<L>,
    ) -> Result<Course, TrainError> {
        self.check(learner)?;
        let mut run = Run::new(self, learner)?;
        let mut journal = None;
        if let Some(checkpoints) = self.checkpoints {
            let made_with = run.made_with(learner)?;
            let Beginning { resumed, warnings } =
                checkpoints.resume(&made_with, &mut |journal| observer.has(journal))?;
            warnings.iter().for_each(|text| observer.warning(text));
            if let Some(resumed) = resumed {
                journal = resumed.journal().cloned();
                run.restore(resumed, learner)?;
            }
        }
        observer.begins(run.state.course.steps, journal.as_ref())?;
        let outcome = run.go(learner, observer);
        if matches!(outcome, Err(TrainError::Interrupted)) && run.state.course.steps > run.saved {
            run.save(learner, observer, Timing::Interim)?;
        }
        outcome?;
        if self.recipe.load_best
            && let Some(best) = &run.best
        {
            let moments = |tensor: &Tensor| (tensor.moments.0.to_vec(), tensor.moments.1.to_vec());
            let moments: Vec<_> = learner.states()?.iter().map(moments).collect();
            let best = best.iter().cloned().zip(moments);
            let best = best.map(|(numbers, moments)| Restored { numbers, moments }).collect();
            learner.restore(run.state.course.steps, best)?;
            run.state.course.best_step = run.state.best.map(|best| best.step);
        }
        Ok(run.state.course)
    }

    fn check<L: Learner>(&self, learner: &L) -> Result<(), TrainError> {
        for (name, value) in [
            ("batch_size", self.recipe.batch_size),
            ("gradient_accumulation", self.recipe.gradient_accumulation),
            ("micro_batch_size", self.recipe.micro_batch_size.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(TrainError::Option(format!("{name} must be at least 1")));
            }
        }
        if self.rows.is_empty() {
            return Err(TrainError::NoRows);
        }
        if self.eval.is_empty() && (self.recipe.load_best || self.recipe.early_stopping.is_some()) {
            return Err(TrainError::NothingToEvaluate);
        }
        check(self.rows, learner.vocabulary())?;
        check(self.eval, learner.vocabulary())
    }

    fn window(&self) -> usize {
        self.recipe.batch_size * self.recipe.gradient_accumulation
    }
}

/// A training on its way.
struct Run<'a> {
    training: &'a Training<'a>,
    steps: usize,
    /// Steps that were taken and of which nobody knows yet what came.
    pending: Vec<Step>,
    /// A digest of the tensors that training begins with.
    start: String,
    state: State,
    /// The tensors that scored best, where they are wanted in the end.
    best: Option<Vec<Vec<f32>>>,
    /// The step of the newest checkpoint, and when it was written.
    saved: usize,
    saved_at: Instant,
    /// What writing it took.
    saving: Duration,
}

impl<'a> Run<'a> {
    fn new<L: Learner>(training: &'a Training<'a>, learner: &mut L) -> Result<Self, TrainError> {
        Ok(Self {
            training,
            steps: training.recipe.length.steps(training.rows.len(), training.window()),
            pending: Vec::new(),
            start: beginning(&learner.states()?),
            state: State::default(),
            best: None,
            saved: 0,
            saved_at: Instant::now(),
            saving: Duration::ZERO,
        })
    }

    fn go<L: Learner>(&mut self, learner: &mut L, observer: &mut dyn Observer<L>) -> Result<(), TrainError> {
        let Training { recipe, rows, .. } = *self.training;
        let mut order = match recipe.shuffle {
            Some(shuffle) => Order::shuffled(shuffle, recipe.seed, rows.len()),
            None => Order::file(rows.len()),
        };
        let window = self.training.window();
        // What follows a step comes first, because an interruption may have come between the two.
        let mut visited = Vec::new();
        let mut drawn = 0;
        loop {
            self.follow_up(learner, observer)?;
            let done = self.state.course.steps;
            if done == self.steps || self.state.course.stopped_early {
                return Ok(());
            }
            while drawn <= self.state.course.epochs.len() {
                visited = order.next_epoch();
                drawn += 1;
            }
            let start = Instant::now();
            let rows = visited.chunks(window).nth(self.state.in_epoch).unwrap_or_default();
            let rate = recipe.learning_rate * recipe.schedule.factor(done, recipe.warmup_steps, self.steps);
            let mut step = Step {
                step: done + 1,
                steps: self.steps,
                epoch: drawn,
                rows: rows.to_vec(),
                learning_rate: rate,
                loss: 0.0,
                grad_norm: 0.0,
                tokens: 0,
                seconds: 0.0,
            };
            let outcome = self.step(&mut step, learner, observer)?;
            step.seconds = start.elapsed().as_secs_f64();
            self.state.course.steps = step.step;
            self.state.course.tokens += step.tokens;
            self.state.in_epoch += 1;
            match outcome {
                Some(outcome) => self.tell(step, outcome, observer)?,
                None => self.pending.push(step),
            }
        }
    }

    /// Tells of a step what came of it.
    fn tell<L>(
        &mut self,
        mut step: Step,
        outcome: Outcome,
        observer: &mut dyn Observer<L>,
    ) -> Result<(), TrainError> {
        step.loss += outcome.loss;
        if !step.loss.is_finite() {
            return Err(TrainError::Loss { step: step.step, loss: step.loss, rows: step.rows });
        }
        check_gradient(&step, &outcome)?;
        step.grad_norm = outcome.norm;
        self.state.losses += step.loss;
        observer.step(&step)
    }

    /// Waits for the steps that are pending and tells of them; what they took is shared out.
    fn settle<L: Learner>(
        &mut self,
        learner: &mut L,
        observer: &mut dyn Observer<L>,
    ) -> Result<(), TrainError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let outcomes = learner.settle()?;
        let waited = start.elapsed().as_secs_f64() / self.pending.len() as f64;
        for (mut step, outcome) in std::mem::take(&mut self.pending).into_iter().zip(outcomes) {
            step.seconds += waited;
            self.tell(step, outcome, observer)?;
        }
        Ok(())
    }

    /// Does what is due after the steps done so far and was not done yet: evaluation, the end of an epoch, a
    /// checkpoint.
    fn follow_up<L: Learner>(
        &mut self,
        learner: &mut L,
        observer: &mut dyn Observer<L>,
    ) -> Result<(), TrainError> {
        let Training { recipe, rows, eval, checkpoints } = *self.training;
        let step = self.state.course.steps;
        let per_epoch = rows.len().div_ceil(self.training.window());
        let ends_epoch = self.state.in_epoch == per_epoch || (step == self.steps && self.state.in_epoch > 0);
        let wanted = checkpoints.is_some_and(|checkpoints| {
            checkpoints.wants(step, ends_epoch) || self.saved_at.elapsed() >= self.interval(checkpoints)
        });
        let evaluates = !eval.is_empty() && recipe.eval_every.is_due(step, ends_epoch);
        if ends_epoch || wanted || evaluates || self.pending.len() >= learner.steps_ahead() {
            self.settle(learner, observer)?;
        }
        let evaluated = self.state.course.evaluations.last().is_some_and(|last| last.step == step);
        if step > 0 && !eval.is_empty() && !evaluated && recipe.eval_every.is_due(step, ends_epoch) {
            self.evaluate(learner, observer)?;
        }
        if ends_epoch {
            let train_loss = self.state.losses / self.state.in_epoch as f64;
            let epoch = Epoch { epoch: self.state.course.epochs.len() + 1, step, train_loss };
            observer.epoch(&epoch, learner)?;
            self.state.course.epochs.push(epoch);
            (self.state.in_epoch, self.state.losses) = (0, 0.0);
        }
        let Some(checkpoints) = checkpoints.filter(|_| step > self.saved) else { return Ok(()) };
        if checkpoints.wants(step, ends_epoch) {
            self.save(learner, observer, Timing::Asked)?;
        } else if match step < self.steps && !self.state.course.stopped_early {
            true => wanted,
            false => observer.keeps_the_end(),
        } {
            self.save(learner, observer, Timing::Interim)?;
        }
        Ok(())
    }

    /// How long after a checkpoint the next one is due in any case.
    fn interval(&self, checkpoints: &Checkpoints) -> Duration {
        checkpoints.interval.max(self.saving * SHARE)
    }

    /// Takes a step, and fills in its loss as far as it is known, and its tokens.
    fn step<L: Learner>(
        &mut self,
        to_fill: &mut Step,
        learner: &mut L,
        observer: &mut dyn Observer<L>,
    ) -> Result<Option<Outcome>, TrainError> {
        let Training { recipe, rows: all, .. } = *self.training;
        let (step, rows) = (to_fill.step, to_fill.rows.as_slice());
        let prefix = learner.prefix();
        let predicted: usize = rows.iter().map(|&i| all[i].kept(prefix)).sum();
        if predicted == 0 {
            return Err(TrainError::NoLabels { step, rows: rows.to_vec() });
        }
        let labels = match recipe.loss_over {
            LossOver::Predicted => predicted,
            LossOver::AllLabels => rows.iter().map(|&i| all[i].labels.iter().flatten().count()).sum(),
        };
        let (mut loss, mut tokens) = (0.0, 0);
        let micro_batches = rows.chunks(recipe.batch_size).flat_map(|batch| {
            let longest = batch.iter().map(|&i| all[i].ids.len()).max().unwrap_or(0);
            let micro = recipe.micro_batch_size.unwrap_or(batch.len());
            batch.chunks(micro).map(move |micro| (micro, longest))
        });
        for (pass, (micro, longest)) in micro_batches.enumerate() {
            if observer.cancelled() {
                return Err(TrainError::Interrupted);
            }
            let rows: Vec<&Row> = micro.iter().map(|&i| &all[i]).collect();
            if rows.iter().all(|row| row.kept(prefix) == 0) {
                continue;
            }
            let batch = MicroBatch { rows: &rows, longest, labels };
            let part = learner.differentiate(&batch, Moment { step, pass })?;
            loss += part.loss.unwrap_or(0.0);
            if !loss.is_finite() {
                return Err(TrainError::Loss { step, loss, rows: micro.to_vec() });
            }
            tokens += part.tokens;
        }
        (to_fill.loss, to_fill.tokens) = (loss, tokens);
        let outcome = learner.update(&Update {
            optimizer: recipe.optimizer,
            learning_rate: to_fill.learning_rate,
            max_norm: recipe.max_grad_norm,
        })?;
        for text in learner.warnings() {
            observer.warning(&text);
        }
        Ok(outcome)
    }

    fn evaluate<L: Learner>(
        &mut self,
        learner: &mut L,
        observer: &mut dyn Observer<L>,
    ) -> Result<(), TrainError> {
        let Training { recipe, eval, .. } = *self.training;
        let mut go_on =
            |_| if observer.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let total: Score = learner.score(eval, &mut go_on)?.into_iter().sum();
        let loss = match recipe.loss_over {
            LossOver::Predicted => total.loss(),
            LossOver::AllLabels => {
                total.nll / eval.iter().map(|r| r.labels.iter().flatten().count()).sum::<usize>() as f64
            }
        };
        let evaluation = Evaluation { step: self.state.course.steps, loss, accuracy: total.accuracy() };
        observer.evaluated(&evaluation);
        self.state.course.evaluations.push(evaluation);
        let threshold = recipe.early_stopping.map_or(0.0, |stopping| stopping.threshold);
        if self.state.best.is_none_or(|best| loss < best.loss - threshold) {
            self.state.best = Some(Best { step: evaluation.step, loss });
            self.state.waited = 0;
            if recipe.load_best {
                self.best = Some(learner.states()?.iter().map(|t| t.numbers.to_vec()).collect());
            }
        } else {
            self.state.waited += 1;
        }
        self.state.course.stopped_early =
            recipe.early_stopping.is_some_and(|stopping| self.state.waited >= stopping.patience);
        Ok(())
    }

    /// What has to be the same for a checkpoint to be gone on from.
    fn made_with<L: Learner>(&self, learner: &mut L) -> Result<BTreeMap<String, String>, TrainError> {
        let Training { recipe, rows, eval, .. } = *self.training;
        let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
        let tensors: Vec<_> = learner.states()?.iter().map(|t| format!("{} {:?}", t.name, t.shape)).collect();
        Ok([
            ("steps", text(&self.steps)),
            ("batch_size", text(&recipe.batch_size)),
            ("gradient_accumulation", text(&recipe.gradient_accumulation)),
            ("micro_batch_size", text(&recipe.micro_batch_size)),
            ("loss_over", text(&recipe.loss_over)),
            ("learning_rate", text(&recipe.learning_rate)),
            ("schedule", text(&recipe.schedule)),
            ("warmup_steps", text(&recipe.warmup_steps)),
            ("weight_decay", text(&recipe.optimizer.weight_decay)),
            ("betas", text(&recipe.optimizer.betas)),
            ("eps", text(&recipe.optimizer.eps)),
            ("max_grad_norm", text(&recipe.max_grad_norm)),
            ("shuffle", text(&recipe.shuffle)),
            ("seed", text(&recipe.seed)),
            ("rows", digest(rows)),
            ("evaluation rows", digest(eval)),
            ("tensors", tensors.join(", ")),
            ("first numbers", self.start.clone()),
            ("computing in", learner.computes_with()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into())
    }

    fn save<L: Learner>(
        &mut self,
        learner: &mut L,
        observer: &mut dyn Observer<L>,
        timing: Timing,
    ) -> Result<(), TrainError> {
        let Some(checkpoints) = self.training.checkpoints else { return Ok(()) };
        self.settle(learner, observer)?;
        let step = self.state.course.steps;
        let start = Instant::now();
        let journal = observer.checkpoint(step)?;
        let made_with = self.made_with(learner)?;
        let mut numbers = Vec::new();
        for (i, tensor) in learner.states()?.into_iter().enumerate() {
            let (mean, square) = tensor.moments;
            let best = self.best.as_ref().map(|best| best[i].as_slice());
            numbers.push(Numbers {
                name: tensor.name,
                shape: tensor.shape,
                now: tensor.numbers,
                mean,
                square,
                best,
            });
        }
        checkpoints.save(&self.state, journal, &made_with, &numbers, timing)?;
        (self.saved, self.saved_at, self.saving) = (step, Instant::now(), start.elapsed());
        Ok(())
    }

    fn restore<L: Learner>(&mut self, resumed: Resumed, learner: &mut L) -> Result<(), TrainError> {
        let steps = resumed.state().course.steps;
        let (mut best, mut restored) = (Vec::new(), Vec::new());
        for tensor in learner.states()? {
            let found = resumed.tensor(tensor.name, tensor.numbers.len())?;
            restored.push(Restored { numbers: found.now, moments: (found.mean, found.square) });
            best.extend(found.best);
        }
        learner.restore(steps, restored)?;
        self.best = (!best.is_empty()).then_some(best);
        self.saved = steps;
        self.state = resumed.into_state();
        Ok(())
    }
}

/// Interim checkpoints may take one part in so many of the time.
const SHARE: u32 = 30;

/// Refuses a gradient that is not finite, or of which a tensor gets none in the first step.
fn check_gradient(step: &Step, outcome: &Outcome) -> Result<(), TrainError> {
    let Some((tensor, trouble)) = &outcome.trouble else { return Ok(()) };
    let what = match trouble {
        Trouble::NotFinite => "not finite",
        Trouble::Zero if step.step == 1 => "zero everywhere",
        Trouble::Zero => return Ok(()),
    };
    Err(TrainError::Gradient { step: step.step, tensor: tensor.clone(), what, rows: step.rows.clone() })
}

/// Which numbers training begins with, in few characters: those of another model differ.
fn beginning(tensors: &[Tensor]) -> String {
    let mut hasher = blake3::Hasher::new();
    for tensor in tensors {
        hasher.update_rayon(bytemuck::cast_slice(tensor.numbers));
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// What rows a checkpoint was made with, in few characters.
fn digest(rows: &[Row]) -> String {
    let mut hasher = blake3::Hasher::new();
    for row in rows {
        hasher.update(&(row.ids.len() as u64).to_le_bytes());
        hasher.update(bytemuck::cast_slice(&row.ids));
        for label in &row.labels {
            hasher.update(&label.map_or(-1, i64::from).to_le_bytes());
        }
        hasher.update(format!("{:?}", row.pads).as_bytes());
    }
    format!("{} rows, {}", rows.len(), &hasher.finalize().to_hex()[..16])
}
