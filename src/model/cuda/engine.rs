//! A decoder on a card: its weights there, and how passes go through them, forward and back.
//!
//! The counterpart of [`Decoder`], from which it is made, over the same layouts and with the same savings. Does not
//! know what the device is, nor how anything is trained.

use std::ops::Range;

use rayon::prelude::*;

use super::super::block::{Block, Rates};
use super::super::compute::Compute;
use super::super::decoder::{Decoder, Positions};
use super::super::layout::Layout;
use super::super::ops::cross_entropy::Judged;
use super::super::ops::dropout::{Dropout, Mask, Site};
use super::super::ops::gradients::Vector;
use super::super::ops::linear::Linear;
use super::super::ops::matmul::{Origin, Stretch, Weight};
use super::super::ops::norm::Norm;
use super::super::{ModelError, Rows};
use super::block::{AskedOn, BlockOn, Chosen, LayerOf, LayerPlaces, MapOn, Masks, NormPart, SavedOn};
use super::card::{
    AttentionOn, Card, Columns, Factor, Kind, MaskOn, Matrix, NormOn, Normed, Onto, Over, Result, TensorOn,
    Words,
};
use super::describe::{
    CachePlaces, Draft, DraftedGroups, DraftedSpans, Form, Way, floats, groups, spans, up_to,
};

/// Logits that exist at a time: 256 MiB of them.
const LOGITS: usize = 1 << 26;
/// Numbers that a thread rounds at a time on their way to the card.
const CHUNK: usize = 1 << 16;

/// Whether a decoder's weights are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Training {
    /// They are frozen.
    Frozen,
    /// All of them are.
    Weights,
}

/// A decoder on a card.
pub struct Engine<C: Card> {
    card: C,
    decoder: Decoder,
    /// `[vocabulary, hidden]`, as products take it.
    embeddings: Words<C>,
    embedding_norm: Option<NormPart<C>>,
    positions: PositionsOn<C>,
    blocks: Vec<BlockOn<C>>,
    final_norm: NormPart<C>,
    head: MapOn<C>,
    trained: Trained<C>,
}

/// The tensors that are trained.
struct Trained<C: Card> {
    tensors: Vec<TrainedTensor<C>>,
    /// The embeddings' gradient, if they are trained.
    embeddings: Option<Words<C>>,
    /// That of learned positions.
    positions: Option<Words<C>>,
}

/// A tensor on the card and the stored numbers it consists of.
pub struct TrainedTensor<C: Card> {
    /// On the card.
    pub on_card: TensorOn<C>,
    /// Where each number is stored.
    pub stored: Stored,
    /// Whether weight decay applies to it.
    pub decays: bool,
}

/// Where the numbers of a tensor on the card are among a model's parameters.
pub enum Stored {
    /// A weight `[outputs, inputs]`.
    Weight {
        /// Its inputs.
        inputs: usize,
        /// Where its outputs are.
        stretches: Vec<Stretch>,
    },
    /// A vector, in pieces one behind the other.
    Vector(Vec<(usize, Range<usize>)>),
}

impl Stored {
    /// Puts the tensor's numbers where they are stored.
    pub fn put(&self, numbers: &[f32], parameters: &mut [&mut [f32]]) {
        self.each(|i, parameter, at| parameters[parameter][at] = numbers[i]);
    }

    /// The tensor's numbers from where they are stored.
    pub fn taken(&self, parameters: &[&[f32]], count: usize) -> Vec<f32> {
        let mut numbers = vec![0.0; count];
        self.each(|i, parameter, at| numbers[i] = parameters[parameter][at]);
        numbers
    }

    /// Calls with each number's index here, the number of the parameter and its index there.
    fn each(&self, mut f: impl FnMut(usize, usize, usize)) {
        match self {
            Self::Weight { inputs, stretches } => {
                for Stretch { tensor, outputs, first, steps } in stretches {
                    for (row, output) in outputs.clone().enumerate() {
                        for input in 0..*inputs {
                            f(output * inputs + input, *tensor, first + row * steps.0 + input * steps.1);
                        }
                    }
                }
            }
            Self::Vector(sources) => {
                let place = |(tensor, range): &(usize, Range<usize>)| {
                    let tensor = *tensor;
                    range.clone().map(move |at| (tensor, at))
                };
                sources.iter().flat_map(place).enumerate().for_each(|(i, (tensor, at))| f(i, tensor, at));
            }
        }
    }
}

/// How a model tells where a token stands.
enum PositionsOn<C: Card> {
    Distance,
    /// `[positions, hidden]`
    Learned(Words<C>),
    /// Frequencies.
    Rotary(Words<C>),
}

/// Numbers of a weight as a card takes them.
fn packed(weight: &Weight, kind: Kind) -> Vec<u32> {
    let inputs = weight.inputs_len();
    let rows = (CHUNK / inputs.max(1)).max(2).next_multiple_of(2);
    let mut words = vec![0u32; kind.words(weight.outputs_len() * inputs)];
    words.par_chunks_mut(kind.words(rows * inputs).max(1)).enumerate().for_each(|(i, words)| {
        let outputs = i * rows..weight.outputs_len().min((i + 1) * rows);
        let mut numbers = vec![0.0; outputs.len() * inputs];
        for (row, output) in numbers.chunks_exact_mut(inputs.max(1)).zip(outputs) {
            weight.output_row(output, row);
        }
        round_into(words, &numbers, kind);
    });
    words
}

/// Rounds numbers into words, to nearest even.
pub(super) fn round_into(words: &mut [u32], numbers: &[f32], kind: Kind) {
    let narrow = |x: f32| match kind {
        Kind::BF16 => half::bf16::from_f32(x).to_bits(),
        _ => half::f16::from_f32(x).to_bits(),
    };
    match kind {
        Kind::F32 => words.iter_mut().zip(numbers).for_each(|(word, x)| *word = x.to_bits()),
        _ => words.iter_mut().zip(numbers.chunks(2)).for_each(|(word, pair)| {
            let high = pair.get(1).map_or(0, |x| u32::from(narrow(*x)));
            *word = u32::from(narrow(pair[0])) | high << 16;
        }),
    }
}

/// Puts weights on a card, once each.
struct Loader<'a, C: Card> {
    card: &'a C,
    training: Training,
    tensors: Vec<TrainedTensor<C>>,
}

impl<C: Card> Loader<'_, C> {
    /// A tensor that is trained: as products take it, and its gradient.
    fn trained(
        &mut self,
        numbers: Words<C>,
        stored: Stored,
        decays: bool,
        weight: bool,
    ) -> Result<(Words<C>, Words<C>)> {
        let rounded = match self.card.kind() {
            kind if weight && kind != Kind::F32 => Some(self.card.words(kind.words(numbers.len))?),
            _ => None,
        };
        let zeros = || -> Result<Words<C>> {
            let words = self.card.words(numbers.len)?;
            self.card.zero(&words)?;
            Ok(words)
        };
        let on_card = TensorOn {
            gradient: zeros()?,
            mean: zeros()?,
            square: zeros()?,
            rounded: rounded.clone(),
            numbers,
        };
        if let Some(rounded) = &rounded {
            self.card.round(rounded, &on_card.numbers)?;
        }
        let taken = rounded.unwrap_or_else(|| on_card.numbers.clone());
        let gradient = on_card.gradient.clone();
        self.tensors.push(TrainedTensor { on_card, stored, decays });
        Ok((taken, gradient))
    }

    fn weight(&mut self, weight: &Weight, origin: Option<&Origin>) -> Result<(Words<C>, Option<Words<C>>)> {
        match (self.training, origin) {
            (Training::Weights, Some(origin)) => {
                let numbers = self.card.upload(&packed(weight, Kind::F32))?;
                let stored =
                    Stored::Weight { inputs: weight.inputs_len(), stretches: origin.stretches().collect() };
                let (weight, gradient) = self.trained(numbers, stored, true, true)?;
                Ok((weight, Some(gradient)))
            }
            _ => Ok((self.card.upload(&packed(weight, self.card.kind()))?, None)),
        }
    }

    fn vector(&mut self, vector: &Vector) -> Result<(Words<C>, Option<Words<C>>)> {
        let numbers = self.card.upload_numbers(vector)?;
        let sources: Vec<_> = vector.sources().collect();
        if self.training == Training::Frozen || sources.is_empty() {
            return Ok((numbers, None));
        }
        let (numbers, gradient) = self.trained(numbers, Stored::Vector(sources), false, false)?;
        Ok((numbers, Some(gradient)))
    }

    fn map(&mut self, linear: &Linear) -> Result<MapOn<C>> {
        let (weight, gradient) = self.weight(linear.weight(), linear.origin())?;
        let bias = linear.bias().map(|bias| self.vector(bias)).transpose()?;
        let (bias, bias_gradient) = bias.map_or((None, None), |(bias, gradient)| (Some(bias), gradient));
        Ok(MapOn {
            outputs: linear.weight().outputs_len(),
            inputs: linear.weight().inputs_len(),
            weight,
            bias,
            gradients: gradient.map(|gradient| (gradient, bias_gradient)),
        })
    }

    fn norm(&mut self, norm: &Norm) -> Result<NormPart<C>> {
        let (weight, bias, eps) = norm.parts();
        let (weight, gradient) = self.vector(weight)?;
        let bias = bias.map(|bias| self.vector(bias)).transpose()?;
        let (bias, bias_gradient) = bias.map_or((None, None), |(bias, gradient)| (Some(bias), gradient));
        Ok(NormPart {
            norm: NormOn { weight, bias, eps: eps as f32 },
            gradients: gradient.map(|gradient| (gradient, bias_gradient)),
        })
    }

    fn block(&mut self, block: &Block) -> Result<BlockOn<C>> {
        let attention = &block.attention;
        let (first, step) = attention.keys.key_columns();
        let slopes = attention.slopes.as_ref().map(|slopes| self.card.upload_numbers(slopes)).transpose()?;
        Ok(BlockOn {
            attention_norm: self.norm(&block.attention_norm)?,
            query: self.map(&block.query)?,
            key_value: self.map(&block.key_value)?,
            attention: AttentionOn {
                heads: attention.heads,
                keys: Columns { first, step, heads: attention.keys.kv_heads(), dim: attention.keys.dim() },
                first_value: attention.keys.first_value_column(),
                scale: attention.scale,
                slopes,
            },
            output: self.map(&block.output)?,
            mlp_norm: self.norm(&block.mlp_norm)?,
            up: self.map(&block.up)?,
            activation: block.activation,
            down: self.map(&block.down)?,
            residual: block.residual,
        })
    }
}

/// A pass whose arrays are on the card.
pub struct PassOn<C: Card> {
    /// The batch's sizes, padded.
    pub form: Form,
    ids: Words<C>,
    positions: Words<C>,
    turns: Option<Words<C>>,
    all: AskedOn<C>,
    last: AskedOn<C>,
    masks: Vec<Masks<C>>,
    embedding_mask: Option<MaskOn<C>>,
    cache_rows: Option<Words<C>>,
    /// The labels, where there are any.
    targets: Words<C>,
    /// What a label's `-log p` counts, one f32.
    scale: Words<C>,
    /// Where embeddings' and positions' gradients go.
    looked_up: Option<(super::card::Groups<C>, super::card::Groups<C>)>,
}

/// A pass whose arrays are on their way.
pub struct DraftedPass {
    /// The batch's sizes, padded.
    pub form: Form,
    /// The arrays.
    pub draft: Draft,
    ids: Range<usize>,
    positions: Range<usize>,
    all: DraftedSpans,
    asked: Range<usize>,
    groups: DraftedGroups,
    last: DraftedSpans,
    masks: Vec<[Option<DraftedMask>; 3]>,
    embedding_mask: Option<DraftedMask>,
    cache_rows: Option<Range<usize>>,
    targets: Range<usize>,
    scale: Range<usize>,
    looked_up: Option<(DraftedGroups, DraftedGroups)>,
}

struct DraftedMask {
    key: Range<usize>,
    threshold: u32,
    scale: f32,
}

impl DraftedMask {
    fn of(mask: Option<Mask>, draft: &mut Draft) -> Option<Self> {
        let (key, threshold, scale) = mask?.parts();
        Some(Self { key: draft.put([key as u32, (key >> 32) as u32]), threshold, scale })
    }

    fn on<C: Card>(&self, arrays: &Words<C>) -> MaskOn<C> {
        MaskOn { key: arrays.part(self.key.clone()), threshold: self.threshold, scale: self.scale }
    }
}

/// What a batch is given to the engine as.
pub struct PassOf<'a> {
    /// The tokens behind the prompt.
    pub ids: &'a [u32],
    /// How they lie.
    pub layout: &'a Layout,
    /// Rows of the batch whose final states are asked for.
    pub asked: &'a [u32],
    /// The token that each of them is to predict; none in a pass that only goes forth.
    pub targets: &'a [u32],
    /// How many labels the loss is the mean over.
    pub labels: usize,
    /// Whether there is a way back.
    pub way: Way,
    /// What is dropped.
    pub dropout: Dropout,
    /// Rows of the input whose gradient is wanted.
    pub wanted: usize,
}

/// A forward pass that can be gone back.
pub struct TraceOn<C: Card> {
    input: Matrix<C>,
    input_stats: Option<Words<C>>,
    blocks: Vec<Kept<C>>,
    last: Matrix<C>,
    last_stats: Words<C>,
}

/// What the first block is given, and what it was made of.
struct Entered<C: Card> {
    x: Matrix<C>,
    input: Matrix<C>,
    stats: Option<Words<C>>,
}

enum Kept<C: Card> {
    Everything(Box<SavedOn<C>>),
    Input(Matrix<C>),
}

/// What is kept of a forward pass on a card.
pub use super::super::decoder::Keep;

impl<C: Card> Engine<C> {
    /// Puts a decoder's weights on a card.
    ///
    /// # Errors
    /// There is no room for them, or the card fails.
    pub fn new(card: C, decoder: Decoder, training: Training) -> Result<Self> {
        let mut loader = Loader { card: &card, training, tensors: Vec::new() };
        let embeddings_origin = decoder.embeddings.origin();
        let (embeddings, embeddings_gradient) =
            loader.weight(&decoder.embeddings, embeddings_origin.as_ref())?;
        let head = match decoder.head.weight().is(&decoder.embeddings) {
            true => MapOn {
                outputs: decoder.head.weight().outputs_len(),
                inputs: decoder.head.weight().inputs_len(),
                weight: embeddings.clone(),
                bias: None,
                gradients: embeddings_gradient.clone().map(|gradient| (gradient, None)),
            },
            false => loader.map(&decoder.head)?,
        };
        let (positions, positions_gradient) = match &decoder.positions {
            Positions::Distance => (PositionsOn::Distance, None),
            Positions::Learned(table) => {
                let (table, gradient) = loader.weight(table, table.origin().as_ref())?;
                (PositionsOn::Learned(table), gradient)
            }
            Positions::Rotary(frequencies) => (PositionsOn::Rotary(card.upload_numbers(frequencies)?), None),
        };
        let embedding_norm = decoder.embedding_norm.as_ref().map(|norm| loader.norm(norm)).transpose()?;
        let blocks = decoder.blocks.iter().map(|block| loader.block(block)).collect::<Result<_>>()?;
        let final_norm = loader.norm(&decoder.final_norm)?;
        let trained = Trained {
            tensors: loader.tensors,
            embeddings: embeddings_gradient,
            positions: positions_gradient,
        };
        Ok(Self { card, embeddings, embedding_norm, positions, blocks, final_norm, head, trained, decoder })
    }

    /// The card.
    pub fn card(&self) -> &C {
        &self.card
    }

    /// The tensors that are trained.
    pub fn tensors(&self) -> &[TrainedTensor<C>] {
        &self.trained.tensors
    }

    /// Writes down a pass over a batch; `form` has its sizes or larger ones, `cache` says where keys are kept.
    ///
    /// # Errors
    /// An id outside the vocabulary, or a position beyond the model's.
    pub fn draft(
        &self,
        of: &PassOf,
        form: Form,
        cache: Option<CachePlaces>,
    ) -> std::result::Result<DraftedPass, ModelError> {
        let PassOf { ids, layout, asked, targets, labels, way, dropout, wanted } = *of;
        let vocabulary = self.decoder.shape().vocabulary;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(ModelError::Vocabulary { id, vocabulary });
        }
        if let Positions::Learned(table) = &self.decoder.positions {
            let available = table.outputs_len();
            let highest = layout.positions().iter().copied().max();
            if let Some(position) = highest.filter(|&p| p as usize >= available) {
                return Err(ModelError::Positions { position, available });
            }
        }
        let virtual_tokens = layout.tokens() - ids.len();
        let tile = self.card.tile(self.blocks.first().map_or(1, |block| block.attention.keys.dim));
        let mut draft = Draft::default();
        let of_all = (form.tokens, form, tile);
        let all = spans(&mut draft, layout, &layout.all_queries(), of_all, cache, way);
        let last = spans(&mut draft, layout, &layout.queries_at(asked), (form.asked, form, tile), cache, way);
        let few = if self.blocks.len() == 1 { wanted } else { form.tokens };
        let places: Vec<_> = asked.iter().map(|&row| Some(row).filter(|&row| (row as usize) < few)).collect();
        let looked_up = (way == Way::AndBack && self.trained.embeddings.is_some()).then(|| {
            let padding = self.decoder.padding;
            let of: Vec<_> = ids.iter().map(|&id| Some(id).filter(|id| Some(*id) != padding)).collect();
            let at: Vec<_> = layout.positions().iter().copied().map(Some).collect();
            (groups(&mut draft, &of, form.tokens), groups(&mut draft, &at, form.tokens))
        });
        let mut mask = |site: Site, rates: Rates| {
            let rate = if site == Site::Attention { rates.attention } else { rates.halves };
            DraftedMask::of(dropout.mask(site, rates.layer, rate), &mut draft)
        };
        let sites = [Site::Attention, Site::AttentionOutput, Site::MlpOutput];
        let masks = self.decoder.blocks.iter().map(|block| sites.map(|site| mask(site, block.dropout)));
        let masks = masks.collect();
        let embedding_mask = dropout.mask(Site::Embedding, 0, self.decoder.embedding_dropout);
        let embedding_mask = DraftedMask::of(embedding_mask, &mut draft);
        let cache_rows = cache.map(|places| {
            let mut rows: Vec<u32> = Vec::with_capacity(form.tokens);
            for segment in layout.segments() {
                let row = |i| places.row(segment.slot, layout.prefix(), segment.past + i);
                rows.extend((0..segment.tokens.len()).map(|i| row(i).map_or(u32::MAX, |row| row as u32)));
            }
            draft.put(up_to(&rows, form.tokens))
        });
        Ok(DraftedPass {
            form,
            ids: draft.put(up_to(ids, form.tokens - virtual_tokens)),
            positions: draft.put(
                layout
                    .positions()
                    .iter()
                    .copied()
                    .chain(std::iter::repeat_n(0, form.tokens - layout.tokens())),
            ),
            all,
            asked: draft.put(up_to(asked, form.asked)),
            groups: groups(&mut draft, &places, form.asked),
            last,
            masks,
            embedding_mask,
            cache_rows,
            targets: draft.put(up_to(targets, form.asked)),
            scale: draft.put(floats(&[1.0 / labels.max(1) as f32])),
            looked_up,
            draft,
        })
    }

    /// The pass over arrays that are on the card.
    ///
    /// # Errors
    /// The card fails.
    pub fn pass(&self, drafted: &DraftedPass, arrays: &Words<C>) -> Result<PassOn<C>> {
        let form = drafted.form;
        let at = |range: &Range<usize>| arrays.part(range.clone());
        let masks = |[attention, attention_output, mlp_output]: &[Option<DraftedMask>; 3]| {
            let on = |mask: &Option<DraftedMask>| mask.as_ref().map(|mask| mask.on(arrays));
            Masks {
                attention: on(attention),
                attention_output: on(attention_output),
                mlp_output: on(mlp_output),
            }
        };
        let turns = match &self.positions {
            PositionsOn::Rotary(frequencies) => Some(self.card.words(2 * form.tokens * frequencies.len)?),
            _ => None,
        };
        Ok(PassOn {
            form,
            ids: at(&drafted.ids),
            positions: at(&drafted.positions),
            turns,
            all: AskedOn { chosen: None, spans: drafted.all.on(arrays) },
            last: AskedOn {
                chosen: Some(Chosen {
                    rows: at(&drafted.asked),
                    count: form.asked,
                    groups: drafted.groups.on(arrays),
                }),
                spans: drafted.last.on(arrays),
            },
            masks: drafted.masks.iter().map(masks).collect(),
            embedding_mask: drafted.embedding_mask.as_ref().map(|mask| mask.on(arrays)),
            cache_rows: drafted.cache_rows.as_ref().map(at),
            targets: at(&drafted.targets),
            scale: at(&drafted.scale),
            looked_up: drafted.looked_up.as_ref().map(|(ids, at)| (ids.on(arrays), at.on(arrays))),
        })
    }

    fn enter(&self, prompt: Option<&Matrix<C>>, pass: &PassOn<C>) -> Result<Entered<C>> {
        if let (PositionsOn::Rotary(frequencies), Some(turns)) = (&self.positions, &pass.turns) {
            self.card.turns(turns, &pass.positions, frequencies)?;
        }
        let input = self.card.matrix(pass.form.tokens, self.decoder.shape().hidden)?;
        let learned = match &self.positions {
            PositionsOn::Learned(table) => Some((table, &pass.positions)),
            _ => None,
        };
        self.card.embed(&input, prompt, &self.embeddings, &pass.ids, learned)?;
        let (x, stats) = match &self.embedding_norm {
            None => (input.clone(), None),
            Some(norm) => {
                let x = self.card.matrix(input.rows, input.width)?;
                let stats = self.card.words(2 * input.rows)?;
                let to = Normed { sum: None, y: Some(&x), factor: None, stats: &stats };
                self.card.norm(to, &input, None, &norm.norm)?;
                (x, Some(stats))
            }
        };
        if let Some(mask) = &pass.embedding_mask {
            self.card.drop_some(&x, &x, mask)?;
        }
        Ok(Entered { x, input, stats })
    }

    /// What a pass wants of a layer.
    fn layer<'p>(&self, index: usize, pass: &'p PassOn<C>) -> LayerOf<'p, C> {
        let asked = if index + 1 < self.blocks.len() { &pass.all } else { &pass.last };
        LayerOf { turns: pass.turns.as_ref(), asked, masks: &pass.masks[index] }
    }

    /// The final states of a pass, as a factor: `cache` has a matrix for each layer.
    fn states(
        &self,
        prompt: Option<&Matrix<C>>,
        pass: &PassOn<C>,
        cache: Option<&[Matrix<C>]>,
    ) -> Result<Factor<C>> {
        let Entered { mut x, .. } = self.enter(prompt, pass)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let places = match (cache, &pass.cache_rows) {
                (Some(cache), Some(rows)) => Some(LayerPlaces { cache: &cache[i], rows }),
                _ => None,
            };
            x = block.forward(&self.card, x, &self.layer(i, pass), places)?.0;
        }
        Ok(self.normed(&x)?.0)
    }

    fn normed(&self, x: &Matrix<C>) -> Result<(Factor<C>, Words<C>)> {
        let (factor, stats) = (self.card.empty_factor(x.rows, x.width)?, self.card.words(2 * x.rows)?);
        let to = Normed { sum: None, y: None, factor: Some(&factor), stats: &stats };
        self.card.norm(to, x, None, &self.final_norm.norm)?;
        Ok((factor, stats))
    }

    /// The final states of a pass and what it takes to go back.
    ///
    /// # Errors
    /// No room, or the card fails.
    pub fn trace(
        &self,
        prompt: Option<&Matrix<C>>,
        pass: &PassOn<C>,
        keep: Keep,
    ) -> Result<(Factor<C>, TraceOn<C>)> {
        let Entered { mut x, input, stats: input_stats } = self.enter(prompt, pass)?;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (i, block) in self.blocks.iter().enumerate() {
            let (output, saved) = block.forward(&self.card, x, &self.layer(i, pass), None)?;
            blocks.push(match keep {
                Keep::Everything => Kept::Everything(Box::new(saved)),
                Keep::BlockInputs => Kept::Input(saved.input),
            });
            x = output;
        }
        let (states, last_stats) = self.normed(&x)?;
        Ok((states, TraceOn { input, input_stats, blocks, last: x, last_stats }))
    }

    /// Judges the pass's targets, adds their loss to `loss` (f64), and gives the gradient of the states. That of the head
    /// is added where it is trained.
    ///
    /// # Errors
    /// No room, or the card fails.
    pub fn judge_back(&self, states: &Factor<C>, pass: &PassOn<C>, loss: &Words<C>) -> Result<Matrix<C>> {
        let card = &self.card;
        let d_states = card.matrix(states.rows, states.width)?;
        for rows in self.pieces(states.rows) {
            let x = part(card, states, &rows);
            let logits = self.logits_of(&x)?;
            let (nll, likeliest) = (card.words(2 * rows.len())?, card.words(rows.len())?);
            let gradient = match card.kind() {
                Kind::F32 => card.factor(&logits)?,
                _ => card.empty_factor(logits.rows, logits.width)?,
            };
            let targets = pass.targets.part(rows.clone());
            card.judge(&nll, &likeliest, &logits, &targets, Some((&gradient, &pass.scale)))?;
            card.add_loss(loss, &nll, &pass.scale)?;
            card.product(&d_states.rows(rows), &gradient, &self.head.weight, Over::Outputs, Onto::Nothing)?;
            if let Some((head, _)) = &self.head.gradients {
                card.add_product(head, &x, &gradient)?;
            }
        }
        Ok(d_states)
    }

    /// From the final states' gradient to that of the first `wanted` rows of the input; where weights are trained, all
    /// rows are wanted, and their gradients are added.
    ///
    /// # Errors
    /// No room, or the card fails.
    pub fn backward(
        &self,
        trace: TraceOn<C>,
        pass: &PassOn<C>,
        d_states: Matrix<C>,
        wanted: usize,
    ) -> Result<Matrix<C>> {
        let card = &self.card;
        let TraceOn { input, input_stats, blocks, last, last_stats } = trace;
        let mut d_x = self.final_norm.back(card, (&last, &last_stats), &d_states, None)?;
        drop((last, d_states));
        for ((i, block), kept) in self.blocks.iter().enumerate().zip(blocks).rev() {
            let of = self.layer(i, pass);
            let saved = match kept {
                Kept::Everything(saved) => *saved,
                Kept::Input(x) => block.forward(card, x, &of, None)?.1,
            };
            // Of what the first block was given only the wanted rows can change.
            let wanted = if i == 0 { wanted } else { pass.form.tokens };
            d_x = block.backward(card, saved, d_x, &of, wanted)?;
        }
        if let Some(mask) = &pass.embedding_mask {
            card.drop_some(&d_x, &d_x, mask)?;
        }
        let hidden = self.decoder.shape().hidden;
        if let (Some(gradient), Some((_, groups))) = (&self.trained.positions, &pass.looked_up) {
            card.add_groups(&table(gradient, hidden), &d_x, groups)?;
        }
        if let (Some(norm), Some(stats)) = (&self.embedding_norm, &input_stats) {
            d_x = norm.back(card, (&input.first(wanted), stats), &d_x, None)?;
        }
        if let (Some(gradient), Some((groups, _))) = (&self.trained.embeddings, &pass.looked_up) {
            card.add_groups(&table(gradient, hidden), &d_x, groups)?;
        }
        Ok(d_x)
    }

    fn logits_of(&self, states: &Factor<C>) -> Result<Matrix<C>> {
        let logits = self.card.matrix(states.rows, self.head.outputs)?;
        self.card.product(&logits, states, &self.head.weight, Over::Inputs, Onto::Nothing)?;
        Ok(logits)
    }

    /// Rows whose logits there is room for at a time.
    fn pieces(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + use<C> {
        // A multiple of eight, so that every piece of a factor begins at a multiple of 16 bytes.
        let most = (LOGITS / self.head.outputs.max(1)).max(8) / 8 * 8;
        (0..rows).step_by(most).map(move |start| start..rows.min(start + most))
    }

    fn layers(&self) -> usize {
        self.blocks.len()
    }
}

/// A gradient as a matrix with rows of this width.
fn table<C: Card>(words: &Words<C>, width: usize) -> Matrix<C> {
    Matrix { words: words.clone(), rows: words.len / width.max(1), width }
}

/// Some rows of a factor; they begin at a whole word.
fn part<C: Card>(card: &C, x: &Factor<C>, rows: &Range<usize>) -> Factor<C> {
    let words = card.kind().words(rows.start * x.width)..card.kind().words(rows.end * x.width);
    Factor { words: x.words.part(words), rows: rows.len(), width: x.width }
}

/// Keys and values on a card.
pub struct CacheOn<C: Card> {
    /// A matrix for each layer, once there is something in it.
    layers: Vec<Matrix<C>>,
    prefix: usize,
    places: CachePlaces,
}

impl<C: Card> Compute for Engine<C> {
    type Cache = CacheOn<C>;
    type States = Factor<C>;

    fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    fn cache(&self) -> CacheOn<C> {
        CacheOn { layers: Vec::new(), prefix: 0, places: CachePlaces { longest: 0 } }
    }

    fn restart(
        &self,
        cache: &mut CacheOn<C>,
        rows: usize,
        longest: usize,
    ) -> std::result::Result<(), ModelError> {
        cache.places = CachePlaces { longest };
        let needed = cache.prefix + rows * longest;
        if cache.layers.iter().any(|layer| layer.rows < needed) || cache.layers.is_empty() {
            let old = std::mem::take(&mut cache.layers);
            for (i, block) in self.blocks.iter().enumerate() {
                let layer = self.card.matrix(needed, block.key_value.outputs)?;
                if let Some(old) = old.get(i) {
                    let prefix = old.first(cache.prefix);
                    self.card.copy(&layer.first(cache.prefix).words, &prefix.words)?;
                }
                cache.layers.push(layer);
            }
        }
        Ok(())
    }

    fn forward(
        &self,
        prompt: &[f32],
        ids: &[u32],
        layout: &Layout,
        asked: &[u32],
        cache: Option<&mut CacheOn<C>>,
    ) -> std::result::Result<Factor<C>, ModelError> {
        let hidden = self.decoder.shape().hidden;
        let cache = match cache {
            Some(cache) => {
                if cache.layers.is_empty() {
                    // The prefix goes first.
                    cache.prefix = layout.prefix();
                    for _ in 0..self.layers() {
                        let width = self.blocks[cache.layers.len()].key_value.outputs;
                        cache.layers.push(self.card.matrix(cache.prefix, width)?);
                    }
                }
                Some(&*cache)
            }
            None => None,
        };
        let of = PassOf {
            ids,
            layout,
            asked,
            targets: &[],
            labels: 1,
            way: Way::Forth,
            dropout: Dropout::Off,
            wanted: 0,
        };
        let form = Form::exact(layout, asked.len());
        let drafted = self.draft(&of, form, cache.map(|cache| cache.places))?;
        let arrays = self.card.upload(drafted.draft.words())?;
        let pass = self.pass(&drafted, &arrays)?;
        let prompt = match prompt.is_empty() {
            true => None,
            false => {
                let rows = prompt.len() / hidden;
                Some(Matrix { words: self.card.upload_numbers(prompt)?, rows, width: hidden })
            }
        };
        Ok(self.states(prompt.as_ref(), &pass, cache.map(|cache| cache.layers.as_slice()))?)
    }

    fn judge(
        &self,
        parts: &[(&Factor<C>, &[u32])],
        targets: &[u32],
    ) -> std::result::Result<Vec<Judged>, ModelError> {
        let mut all = Vec::with_capacity(targets.len());
        for (states, rows) in parts {
            for piece in self.pieces(rows.len()) {
                let targets = &targets[all.len()..][..piece.len()];
                all.extend(self.judge_rows(states, &rows[piece], targets)?);
            }
        }
        Ok(all)
    }

    fn logits(&self, states: &Factor<C>) -> std::result::Result<Rows, ModelError> {
        let logits = self.card.numbers(&self.logits_of(states)?.words)?;
        Ok(self.decoder.pool().copied(&logits, self.head.outputs))
    }

    fn likeliest(&self, states: &Factor<C>) -> std::result::Result<Vec<u32>, ModelError> {
        let logits = self.logits_of(states)?;
        let ids = self.card.words(states.rows)?;
        self.card.likeliest(&ids, &logits)?;
        Ok(self.card.read(&ids)?)
    }
}

impl<C: Card> Engine<C> {
    fn judge_rows(&self, states: &Factor<C>, rows: &[u32], targets: &[u32]) -> Result<Vec<Judged>> {
        let card = &self.card;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        // All logits of the states, then those of the rows: states are few, rows may name one several times.
        let whole = rows.len() == states.rows && rows.iter().enumerate().all(|(i, &row)| row as usize == i);
        let logits = match whole {
            true => self.logits_of(states)?,
            false => {
                let all = self.logits_of(states)?;
                let chosen = card.matrix(rows.len(), self.head.outputs)?;
                card.gather(&chosen, &all, &card.upload(rows)?)?;
                chosen
            }
        };
        let (nll, likeliest) = (card.words(2 * rows.len())?, card.words(rows.len())?);
        card.judge(&nll, &likeliest, &logits, &card.upload(targets)?, None)?;
        let (nll, likeliest) = (card.read(&nll)?, card.read(&likeliest)?);
        let judged = nll.chunks_exact(2).zip(likeliest).map(|(nll, likeliest)| Judged {
            nll: f64::from_bits(u64::from(nll[0]) | u64::from(nll[1]) << 32),
            likeliest,
        });
        Ok(judged.collect())
    }
}
