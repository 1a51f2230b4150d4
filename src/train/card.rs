//! What is trained on a card: a soft prompt before a frozen decoder, or every weight of one.
//!
//! Passes, optimizer and what they say stay on the card; what came of a step is read when several have been taken.
//! Passes over a prompt are padded to a few forms, and recorded once a form has been seen twice. Where a pass finds no
//! room, its rows go through in smaller parts from then on. Does not know which device carries operations out.

use std::collections::HashMap;
use std::ops::ControlFlow;

use candle_core::{Device, Tensor};

use super::TrainError;
use super::all_weights::{Passes, WeightsLearner};
use super::batch::{Batch, Row};
use super::learner::{Learner, MicroBatch, Moment, Outcome, Part, Restored, State, Trouble, Update};
use super::score::{Score, score};
use super::soft_prompt::{NAME, PromptLearner};
use crate::model::compute::Compute;
use crate::model::cuda::card::{Matrix, Result as OnCard, TensorOn, Words};
use crate::model::cuda::describe::{Form, Way};
use crate::model::cuda::engine::{Keep, PassOf, PassOn, TrainedTensor, Training};
use crate::model::cuda::{Card, CardError, Engine};
use crate::model::parameters::Parameters;
use crate::model::{Dropout, ModelError};

/// Steps that may be taken before anybody asks what came of them.
const AHEAD: usize = 16;
/// Forms of batches whose work is recorded.
const FORMS: usize = 64;
/// Rows that are scored at a time.
const EVAL_BATCH: usize = 16;

impl From<CardError> for TrainError {
    fn from(error: CardError) -> Self {
        Self::Model(ModelError::Card(error))
    }
}

fn is_out_of_memory(error: &TrainError) -> bool {
    matches!(error, TrainError::Model(ModelError::Card(CardError::OutOfMemory { .. })))
}

/// Rows whose gradient is part of the step that is being taken.
struct Gathered {
    rows: Vec<Row>,
    longest: usize,
    labels: usize,
    at: Moment,
}

/// What all steps have on the card, whatever is trained.
struct Steps<C: Card> {
    /// How many were taken.
    taken: usize,
    /// The loss of the passes so far, f64.
    loss: Words<C>,
    /// Length of the gradient, f64, and what shortens it.
    norm: Words<C>,
    clip: Words<C>,
    /// AdamW's factors, with decay and without, eight words each.
    factors: Words<C>,
    /// Loss and norm of each step that nobody asked about yet.
    outcomes: Words<C>,
    waiting: usize,
    /// The passes of this step, for the case that one of them finds no room.
    gathered: Vec<Gathered>,
    /// Rows that go through at once, where not all do.
    limit: Option<usize>,
    warnings: Vec<String>,
}

impl<C: Card> Steps<C> {
    fn new(card: &C) -> OnCard<Self> {
        let loss = card.words(2)?;
        card.zero(&loss)?;
        Ok(Self {
            taken: 0,
            loss,
            norm: card.words(2)?,
            clip: card.words(1)?,
            factors: card.words(16)?,
            outcomes: card.words(4 * AHEAD)?,
            waiting: 0,
            gathered: Vec::new(),
            limit: None,
            warnings: Vec::new(),
        })
    }

    /// Moves the tensors along their gradients, which are zero then.
    fn update(&mut self, card: &C, tensors: &[(&TensorOn<C>, bool)], update: &Update) -> OnCard<()> {
        self.taken += 1;
        let factors = |weight_decay: f64| {
            let optimizer = super::adamw::AdamWOptions { weight_decay, ..update.optimizer };
            let f = optimizer.factors(update.learning_rate, self.taken as i32);
            [f.keep, f.weight, f.beta2, f.weight2, f.correction2, f.eps, f.step, 0.0].map(f32::to_bits)
        };
        card.write(&self.factors, &[factors(update.optimizer.weight_decay), factors(0.0)].concat())?;
        let gradients: Vec<&Words<C>> = tensors.iter().map(|(tensor, _)| &tensor.gradient).collect();
        card.clip(&self.norm, &self.clip, &gradients, update.max_norm.unwrap_or(0.0) as f32)?;
        for (tensor, decays) in tensors {
            let factors = if *decays { self.factors.part(0..7) } else { self.factors.part(8..15) };
            card.step(tensor, &factors, &self.clip)?;
            card.zero(&tensor.gradient)?;
        }
        let outcome = self.outcomes.part(4 * self.waiting..4 * (self.waiting + 1));
        card.copy(&outcome.part(0..2), &self.loss)?;
        card.copy(&outcome.part(2..4), &self.norm)?;
        card.zero(&self.loss)?;
        self.waiting += 1;
        self.gathered.clear();
        Ok(())
    }

    /// What came of the steps nobody asked about yet; `name` is what errors call all that is trained.
    fn settle(&mut self, card: &C, name: &str) -> OnCard<Vec<Outcome>> {
        let words = card.read(&self.outcomes.part(0..4 * self.waiting))?;
        self.waiting = 0;
        let float = |w: &[u32]| f64::from_bits(u64::from(w[0]) | u64::from(w[1]) << 32);
        let outcome = |words: &[u32]| {
            let (loss, norm) = (float(&words[..2]), float(&words[2..]));
            let trouble = match norm {
                norm if !norm.is_finite() => Some((name.to_owned(), Trouble::NotFinite)),
                norm => (norm == 0.0).then(|| (name.to_owned(), Trouble::Zero)),
            };
            Outcome { loss, norm, trouble }
        };
        Ok(words.chunks_exact(4).map(outcome).collect())
    }

    /// Forgets what was gathered for this step.
    fn begin_again(&mut self, card: &C, tensors: &[&TensorOn<C>]) -> OnCard<()> {
        card.zero(&self.loss)?;
        tensors.iter().try_for_each(|tensor| card.zero(&tensor.gradient))
    }

    /// After a pass of so many rows found no room: from now on half as many go through at once.
    fn halve(&mut self, rows: usize, error: TrainError) -> Result<(), TrainError> {
        if rows <= 1 {
            return Err(error);
        }
        let limit = rows / 2;
        self.limit = Some(limit);
        self.warnings.push(format!(
            "the GPU has no room for {rows} rows at once: {limit} go through at a time now, the batch stays as it is; \
             `micro_batch_size: {limit}` does so from the beginning"
        ));
        Ok(())
    }
}

/// Differentiates the rows that were gathered last; where there is no room, all that were gathered for this step, in
/// smaller parts. Gives the tokens of the last.
macro_rules! gather {
    ($learner:ident, $batch:ident, $at:ident) => {{
        let rows: Vec<Row> = $batch.rows.iter().map(|row| (*row).clone()).collect();
        let gathered = Gathered { rows, longest: $batch.longest, labels: $batch.labels, at: $at };
        let mut outcome = $learner.in_parts(&gathered);
        $learner.steps.gathered.push(gathered);
        let mut made_room = false;
        loop {
            match outcome {
                Ok(tokens) => break Ok(Part { loss: None, tokens }),
                Err(error) if is_out_of_memory(&error) => {
                    $learner.make_room();
                    // What others left behind may have been all that was missing.
                    if std::mem::replace(&mut made_room, true) {
                        let most = $learner.steps.gathered.iter().map(|g| g.rows.len()).max().unwrap_or(0);
                        let limit = $learner.steps.limit.unwrap_or(most).min(most);
                        $learner.steps.halve(limit, error)?;
                    }
                    $learner.begin_again()?;
                    let all = std::mem::take(&mut $learner.steps.gathered);
                    outcome = all.iter().try_fold(0, |_, gathered| $learner.in_parts(gathered));
                    $learner.steps.gathered = all;
                }
                Err(error) => break Err(error),
            }
        }
    }};
}

/// The parts that a micro-batch goes through in, each with the number of its pass.
fn parts(gathered: &Gathered, limit: Option<usize>) -> impl Iterator<Item = (Vec<&Row>, u64)> {
    let rows = limit.unwrap_or(usize::MAX).min(gathered.rows.len()).max(1);
    gathered.rows.chunks(rows).enumerate().map(|(part, rows)| {
        let pass = (gathered.at.step as u64) << 32 | (part as u64) << 20 | gathered.at.pass as u64;
        (rows.iter().collect(), pass)
    })
}

/// A form of batches: where its arrays are, and its work once that was recorded.
struct Prepared<C: Card> {
    arrays: Words<C>,
    pass: PassOn<C>,
    graph: Option<C::Graph>,
    seen: usize,
}

/// A prompt before a frozen decoder on a card.
pub struct CardPrompt<'a, C: Card> {
    engine: &'a Engine<C>,
    keep: Keep,
    shape: [usize; 2],
    tensor: TensorOn<C>,
    steps: Steps<C>,
    forms: HashMap<Form, Prepared<C>>,
    /// Numbers and moments as they were last read.
    read: [Vec<f32>; 3],
}

impl<'a, C: Card> CardPrompt<'a, C> {
    /// The prompt `init` `[n, hidden]` before a decoder.
    ///
    /// # Errors
    /// A prompt of another width than the model or without a virtual token, or no room.
    pub fn new(engine: &'a Engine<C>, init: &Tensor, keep: Keep) -> Result<Self, TrainError> {
        let numbers = engine.decoder().prompt(init)?;
        if numbers.is_empty() {
            return Err(TrainError::Option("a prompt needs at least one virtual token".into()));
        }
        let (card, hidden) = (engine.card(), engine.decoder().shape().hidden);
        let zeros = || card.upload_numbers(&vec![0.0; numbers.len()]);
        let tensor = TensorOn {
            numbers: card.upload_numbers(&numbers)?,
            gradient: zeros()?,
            mean: zeros()?,
            square: zeros()?,
            rounded: None,
        };
        Ok(Self {
            engine,
            keep,
            shape: [numbers.len() / hidden, hidden],
            tensor,
            steps: Steps::new(card)?,
            forms: HashMap::new(),
            read: [(); 3].map(|()| Vec::new()),
        })
    }

    /// Adds the gradient of rows, as many at a time as there is room for; gives the tokens.
    fn in_parts(&mut self, gathered: &Gathered) -> Result<usize, TrainError> {
        parts(gathered, self.steps.limit)
            .try_fold(0, |tokens, (rows, _)| Ok(tokens + self.pass(&rows, gathered)?))
    }

    fn pass(&mut self, rows: &[&Row], gathered: &Gathered) -> Result<usize, TrainError> {
        let (engine, [n, _]) = (self.engine, self.shape);
        let batch = Batch::new(rows, engine.decoder(), n, gathered.longest);
        if batch.asked.is_empty() {
            return Ok(0);
        }
        let of = PassOf {
            ids: &batch.ids,
            layout: &batch.layout,
            asked: &batch.asked,
            targets: &batch.targets,
            labels: gathered.labels,
            way: Way::AndBack,
            dropout: Dropout::Off,
            wanted: n,
        };
        let form = Form::exact(&batch.layout, batch.asked.len()).padded();
        let drafted = engine.draft(&of, form, None)?;
        let (card, words) = (engine.card(), drafted.draft.words());
        let prepared = match self.forms.remove(&form) {
            Some(prepared) => {
                card.write(&prepared.arrays, words)?;
                prepared
            }
            None => {
                let arrays = card.upload(words)?;
                let pass = engine.pass(&drafted, &arrays)?;
                Prepared { arrays, pass, graph: None, seen: 0 }
            }
        };
        let prepared = self.work(prepared)?;
        if self.forms.len() < FORMS {
            self.forms.insert(form, prepared);
        }
        Ok(batch.tokens())
    }

    /// Does a form's work: step by step the first time, which also fetches its memory, then as it was recorded.
    fn work(&self, mut prepared: Prepared<C>) -> OnCard<Prepared<C>> {
        let card = self.engine.card();
        if prepared.seen == 1 {
            prepared.graph = card.record(&mut || self.differentiate_once(&prepared.pass))?;
        }
        match &prepared.graph {
            Some(graph) => card.replay(graph)?,
            None => self.differentiate_once(&prepared.pass)?,
        }
        prepared.seen += 1;
        Ok(prepared)
    }

    fn differentiate_once(&self, pass: &PassOn<C>) -> OnCard<()> {
        let [rows, width] = self.shape;
        let prompt = Matrix { words: self.tensor.numbers.clone(), rows, width };
        let (states, trace) = self.engine.trace(Some(&prompt), pass, self.keep)?;
        let d_states = self.engine.judge_back(&states, pass, &self.steps.loss)?;
        let gradient = self.engine.backward(trace, pass, d_states, rows)?;
        self.engine.card().add(&self.tensor.gradient, &gradient.words)
    }

    fn make_room(&mut self) {
        self.forms.clear();
        self.engine.card().trim();
    }

    fn begin_again(&mut self) -> OnCard<()> {
        self.steps.begin_again(self.engine.card(), &[&self.tensor])
    }

    fn fetch(&mut self) -> OnCard<()> {
        let card = self.engine.card();
        let TensorOn { numbers, mean, square, .. } = &self.tensor;
        self.read = [card.numbers(numbers)?, card.numbers(mean)?, card.numbers(square)?];
        Ok(())
    }
}

impl<C: Card> Learner for CardPrompt<'_, C> {
    fn prefix(&self) -> usize {
        self.shape[0]
    }

    fn vocabulary(&self) -> usize {
        self.engine.decoder().shape().vocabulary
    }

    fn computes_with(&self) -> String {
        format!(
            "{:?} on a GPU, {} frozen weights",
            self.engine.card().kind(),
            self.engine.decoder().parameters()
        )
    }

    fn differentiate(&mut self, batch: &MicroBatch, at: Moment) -> Result<Part, TrainError> {
        gather!(self, batch, at)
    }

    fn update(&mut self, update: &Update) -> Result<Option<Outcome>, TrainError> {
        // PEFT hands the prompt to AdamW like any other parameter: it decays.
        self.steps.update(self.engine.card(), &[(&self.tensor, true)], update)?;
        Ok(None)
    }

    fn settle(&mut self) -> Result<Vec<Outcome>, TrainError> {
        Ok(self.steps.settle(self.engine.card(), NAME)?)
    }

    fn steps_ahead(&self) -> usize {
        AHEAD
    }

    fn warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.steps.warnings)
    }

    fn states(&mut self) -> Result<Vec<State<'_>>, TrainError> {
        self.fetch()?;
        let [numbers, mean, square] = &self.read;
        Ok(vec![State { name: NAME, shape: &self.shape, numbers, moments: (mean, square) }])
    }

    fn restore(&mut self, steps: usize, tensors: Vec<Restored>) -> Result<(), TrainError> {
        self.steps.taken = steps;
        self.begin_again()?;
        let card = self.engine.card();
        for Restored { numbers, moments: (mean, square) } in tensors {
            for (to, from) in
                [(&self.tensor.numbers, numbers), (&self.tensor.mean, mean), (&self.tensor.square, square)]
            {
                card.write(to, bytemuck::cast_slice(&from))?;
            }
        }
        Ok(())
    }

    fn score(
        &mut self,
        rows: &[Row],
        watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<Score>, TrainError> {
        let prompt = self.prompt()?;
        match score(self.engine, Some(&prompt), rows, EVAL_BATCH, watch) {
            Err(error) if is_out_of_memory(&error) => {
                self.make_room();
                score_in_what_room_there_is(self.engine, Some(&prompt), rows, EVAL_BATCH, watch)
            }
            outcome => outcome,
        }
    }
}

impl<C: Card> PromptLearner for CardPrompt<'_, C> {
    fn prompt(&mut self) -> Result<Tensor, TrainError> {
        self.fetch()?;
        Ok(Tensor::from_slice(&self.read[0], &self.shape, &Device::Cpu)?)
    }
}

/// [`score`], in smaller batches where there is no room.
pub(super) fn score_in_what_room_there_is<C: Card>(
    engine: &Engine<C>,
    prompt: Option<&Tensor>,
    rows: &[Row],
    mut batch_size: usize,
    watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<Score>, TrainError> {
    loop {
        match score(engine, prompt, rows, batch_size, watch) {
            Err(error) if is_out_of_memory(&error) && batch_size > 1 => {
                engine.card().trim();
                batch_size /= 2;
            }
            outcome => return outcome,
        }
    }
}

/// Every weight of a decoder on a card.
pub struct CardWeights<C: Card> {
    engine: Engine<C>,
    passes: Passes,
    steps: Steps<C>,
    /// The weights as they were last read, and the optimizer's moments.
    parameters: Parameters,
    moments: Vec<(Vec<f32>, Vec<f32>)>,
}

impl<C: Card> CardWeights<C> {
    /// The weights of a model.
    ///
    /// # Errors
    /// No room.
    pub fn new(card: C, parameters: Parameters, passes: Passes) -> Result<Self, TrainError> {
        let decoder = parameters.model(crate::model::Precision::F32)?;
        let engine = Engine::new(card, decoder, Training::Weights)?;
        let zeros = |len: usize| (vec![0.0; len], vec![0.0; len]);
        let moments = parameters.tensors().iter().map(|tensor| zeros(tensor.numbers().len())).collect();
        Ok(Self { steps: Steps::new(engine.card())?, engine, passes, parameters, moments })
    }

    fn in_parts(&mut self, gathered: &Gathered) -> Result<usize, TrainError> {
        parts(gathered, self.steps.limit)
            .try_fold(0, |tokens, (rows, pass)| Ok(tokens + self.pass(&rows, gathered, pass)?))
    }

    fn pass(&self, rows: &[&Row], gathered: &Gathered, pass: u64) -> Result<usize, TrainError> {
        let (engine, decoder) = (&self.engine, self.engine.decoder());
        let dropout = self.passes.dropout.map_or(Dropout::Off, |seed| Dropout::On { seed, pass });
        let batch = match dropout {
            Dropout::Off => Batch::new(rows, decoder, 0, gathered.longest),
            Dropout::On { .. } => Batch::apart(rows, decoder, gathered.longest),
        };
        if batch.asked.is_empty() {
            return Ok(0);
        }
        let tokens = batch.tokens();
        let of = PassOf {
            ids: &batch.ids,
            layout: &batch.layout,
            asked: &batch.asked,
            targets: &batch.targets,
            labels: gathered.labels,
            way: Way::AndBack,
            dropout,
            wanted: tokens,
        };
        let drafted = engine.draft(&of, Form::exact(&batch.layout, batch.asked.len()), None)?;
        let arrays = engine.card().upload(drafted.draft.words())?;
        let pass = engine.pass(&drafted, &arrays)?;
        let (states, trace) = engine.trace(None, &pass, self.passes.keep)?;
        let d_states = engine.judge_back(&states, &pass, &self.steps.loss)?;
        engine.backward(trace, &pass, d_states, tokens)?;
        Ok(tokens)
    }

    fn make_room(&mut self) {
        self.engine.card().trim();
    }

    fn begin_again(&mut self) -> OnCard<()> {
        let tensors: Vec<&TensorOn<C>> = self.engine.tensors().iter().map(|tensor| &tensor.on_card).collect();
        self.steps.begin_again(self.engine.card(), &tensors)
    }

    /// Reads the weights and moments.
    fn fetch(&mut self) -> OnCard<()> {
        let card = self.engine.card();
        let mut numbers: Vec<&mut [f32]> =
            self.parameters.tensors_mut().iter_mut().map(|tensor| tensor.numbers_mut()).collect();
        let (mut means, mut squares): (Vec<&mut [f32]>, Vec<&mut [f32]>) =
            self.moments.iter_mut().map(|(mean, square)| (&mut mean[..], &mut square[..])).unzip();
        for TrainedTensor { on_card, stored, .. } in self.engine.tensors() {
            stored.put(&card.numbers(&on_card.numbers)?, &mut numbers);
            stored.put(&card.numbers(&on_card.mean)?, &mut means);
            stored.put(&card.numbers(&on_card.square)?, &mut squares);
        }
        Ok(())
    }
}

impl<C: Card> Learner for CardWeights<C> {
    fn prefix(&self) -> usize {
        0
    }

    fn vocabulary(&self) -> usize {
        self.engine.decoder().shape().vocabulary
    }

    fn computes_with(&self) -> String {
        let kind = self.engine.card().kind();
        match self.passes.dropout {
            Some(seed) => format!("{kind:?} on a GPU, dropout seeded {seed}"),
            None => format!("{kind:?} on a GPU"),
        }
    }

    fn differentiate(&mut self, batch: &MicroBatch, at: Moment) -> Result<Part, TrainError> {
        gather!(self, batch, at)
    }

    fn update(&mut self, update: &Update) -> Result<Option<Outcome>, TrainError> {
        let tensors: Vec<_> =
            self.engine.tensors().iter().map(|tensor| (&tensor.on_card, tensor.decays)).collect();
        self.steps.update(self.engine.card(), &tensors, update)?;
        Ok(None)
    }

    fn settle(&mut self) -> Result<Vec<Outcome>, TrainError> {
        Ok(self.steps.settle(self.engine.card(), "the weights")?)
    }

    fn steps_ahead(&self) -> usize {
        AHEAD
    }

    fn warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.steps.warnings)
    }

    fn states(&mut self) -> Result<Vec<State<'_>>, TrainError> {
        self.fetch()?;
        let tensors = self.parameters.tensors().iter().zip(&self.moments);
        Ok(tensors
            .map(|(tensor, (mean, square))| State {
                name: tensor.name(),
                shape: tensor.shape(),
                numbers: tensor.numbers(),
                moments: (mean, square),
            })
            .collect())
    }

    fn restore(&mut self, steps: usize, tensors: Vec<Restored>) -> Result<(), TrainError> {
        self.steps.taken = steps;
        self.begin_again()?;
        let card = self.engine.card();
        let numbers: Vec<&[f32]> = tensors.iter().map(|tensor| &tensor.numbers[..]).collect();
        let means: Vec<&[f32]> = tensors.iter().map(|tensor| &tensor.moments.0[..]).collect();
        let squares: Vec<&[f32]> = tensors.iter().map(|tensor| &tensor.moments.1[..]).collect();
        for TrainedTensor { on_card, stored, .. } in self.engine.tensors() {
            for (to, from) in
                [(&on_card.numbers, &numbers), (&on_card.mean, &means), (&on_card.square, &squares)]
            {
                card.write(to, bytemuck::cast_slice(&stored.taken(from, to.len)))?;
            }
            if let Some(rounded) = &on_card.rounded {
                card.round(rounded, &on_card.numbers)?;
            }
        }
        Ok(())
    }

    fn score(
        &mut self,
        rows: &[Row],
        watch: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<Score>, TrainError> {
        score_in_what_room_there_is(&self.engine, None, rows, EVAL_BATCH, watch)
    }
}

impl<C: Card> WeightsLearner for CardWeights<C> {
    fn parameters(&mut self) -> Result<&Parameters, TrainError> {
        self.fetch()?;
        Ok(&self.parameters)
    }

    fn peak_memory(&self) -> Option<u64> {
        Some(self.engine.card().peak())
    }
}

#[cfg(test)]
#[path = "card_tests.rs"]
mod card_tests;
