//! A decoder-only language model: embeddings, blocks, a final norm and a head.
//!
//! Knows how a pass goes through them, forward and back to the input or to every weight; the architectures say what
//! they are made of. Does not know how anything is trained, nor what the tokens mean.

use candle_core::Tensor;

use super::ModelError;
use super::block::{Asked, Batch, Block, Saved};
use super::cache::KvCache;
use super::layout::Layout;
use super::ops::dropout::{Dropout, Site};
use super::ops::gradients::Gradients;
use super::ops::linear::Linear;
use super::ops::matmul::Weight;
use super::ops::norm::Norm;
use super::ops::rotary::Rotation;
use super::rows::{Pool, Rows};

/// The sizes of a decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecoderShape {
    /// Width of a token's state.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Number of embedding rows.
    pub vocabulary: usize,
    /// Positions the model was made for; `None` where it has no limit of its own.
    pub max_positions: Option<usize>,
}

/// How a model tells where a token stands.
pub enum Positions {
    /// By the distance in its attention, which does not count padding: ALiBi.
    Distance,
    /// By a row of this table `[positions, hidden]`, added to the embedding.
    Learned(Weight),
    /// By turning queries and keys, each pair of numbers at one of these frequencies.
    Rotary(Vec<f32>),
}

/// A decoder.
pub struct Decoder {
    /// Its sizes.
    pub(super) shape: DecoderShape,
    /// Number of weights, a tied head counted once.
    pub(super) parameters: usize,
    /// `[vocabulary, hidden]`
    pub(super) embeddings: Weight,
    /// A token whose embedding is not trained where it is looked up: torch's `padding_idx`.
    pub(super) padding: Option<u32>,
    /// The share of what the first block is given that a pass that trains weights drops.
    pub(super) embedding_dropout: f32,
    /// What is done with an embedding before the first block.
    pub(super) embedding_norm: Option<Norm>,
    /// How a token's place comes in.
    pub(super) positions: Positions,
    /// The layers.
    pub(super) blocks: Vec<Block>,
    /// Behind the last block.
    pub(super) final_norm: Norm,
    /// `[hidden]` → `[vocabulary]`
    pub(super) head: Linear,
    /// Memory for what goes through it.
    pub(super) pool: Pool,
}

/// What is kept of a forward pass for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Everything backward needs.
    #[default]
    Everything,
    /// The blocks' inputs; the rest is computed again: less memory for a third more work.
    BlockInputs,
}

/// A forward pass that can be gone back.
pub struct Trace<'a> {
    pass: Pass<'a>,
    /// The tokens, where weights are trained.
    ids: &'a [u32],
    input: Rows,
    blocks: Vec<Kept>,
    last: Rows,
}

/// How a batch lies, and what each block is asked for.
struct Pass<'a> {
    batch: Batch<'a>,
    all: Asked<'a>,
    /// Of the last block only the rows that count.
    last: Asked<'a>,
}

enum Kept {
    Everything(Box<Saved>),
    Input(Rows),
}

impl Decoder {
    /// Its sizes.
    pub fn shape(&self) -> &DecoderShape {
        &self.shape
    }

    /// Number of weights, a tied head counted once.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// A token whose embedding is not trained where it is looked up.
    pub(super) fn padding(&self) -> Option<u32> {
        self.padding
    }

    /// Lays the layers' weights out for many passes of many tokens; generation, of a token at a time, is faster with
    /// weights as they are.
    pub fn lay_out(&mut self) {
        self.blocks.iter_mut().flat_map(Block::maps_mut).for_each(Linear::lay_out);
    }

    /// Whether the layers' weights were laid out, so that a pass of few tokens has little to pack.
    pub fn is_laid_out(&self) -> bool {
        self.blocks.iter().flat_map(Block::maps).all(|map| map.weight().is_laid_out())
    }

    /// Whether padding between so many virtual tokens and a row changes what the model computes for the row.
    ///
    /// Where only distances count, it takes something to be distant from.
    pub fn counts_padding(&self, virtual_tokens: usize) -> bool {
        match self.positions {
            Positions::Distance => false,
            Positions::Learned(_) => true,
            Positions::Rotary(_) => virtual_tokens > 0,
        }
    }

    /// The head, from states to logits.
    pub fn head(&self) -> &Linear {
        &self.head
    }

    /// Memory for matrices that go through the model.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The word embeddings `[ids, hidden]` as they stand in the table: what a soft prompt takes the place of.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Rows, ModelError> {
        self.embed_behind(&[], ids)
    }

    /// A prompt's rows, and the word embeddings of the ids behind it.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn embed_behind(&self, prompt: &[f32], ids: &[u32]) -> Result<Rows, ModelError> {
        let DecoderShape { hidden, vocabulary, .. } = self.shape;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(ModelError::Vocabulary { id, vocabulary });
        }
        let mut rows = self.pool.rows(prompt.len() / hidden + ids.len(), hidden);
        let (first, rest) = rows.split_at_mut(prompt.len());
        first.copy_from_slice(prompt);
        for (row, &id) in rest.chunks_exact_mut(hidden).zip(ids) {
            self.embeddings.output_row(id as usize, row);
        }
        Ok(rows)
    }

    /// The final states `[asked, hidden]` of a packed batch of embeddings `[tokens, hidden]`.
    ///
    /// `asked` names rows of the batch, in any order, a row several times if need be: what nobody asks for is
    /// not computed where that is possible. With a cache the keys of earlier tokens come from it and those of
    /// this batch are added.
    ///
    /// # Errors
    /// A position beyond the model's.
    pub fn forward(
        &self,
        x: Rows,
        layout: &Layout,
        asked: &[u32],
        mut cache: Option<&mut KvCache>,
    ) -> Result<Rows, ModelError> {
        let pass = self.pass(layout, asked);
        let mut x = self.enter(&x, layout)?;
        for (i, block) in self.blocks.iter().enumerate() {
            x = block
                .forward(x, &pass.batch, self.asked(i, &pass), cache.as_deref_mut().map(|c| c.layer(i)))
                .0;
        }
        Ok(x.mapped(|x, y| self.final_norm.forward(x, y)))
    }

    /// [`Decoder::forward`] without a cache, and what it takes to go back.
    ///
    /// # Errors
    /// A position beyond the model's.
    pub fn trace<'a>(
        &self,
        input: Rows,
        layout: &'a Layout,
        asked: &'a [u32],
        keep: Keep,
    ) -> Result<(Rows, Trace<'a>), ModelError> {
        self.follow(&[], input, self.pass(layout, asked), keep)
    }

    /// [`Decoder::trace`] of tokens, to go back to every weight: with this dropout.
    ///
    /// # Errors
    /// An id outside the vocabulary, or a position beyond the model's.
    pub fn trace_weights<'a>(
        &self,
        ids: &'a [u32],
        layout: &'a Layout,
        asked: &'a [u32],
        keep: Keep,
        dropout: Dropout,
    ) -> Result<(Rows, Trace<'a>), ModelError> {
        let mut pass = self.pass(layout, asked);
        pass.batch.training = Some(dropout);
        self.follow(ids, self.embed(ids)?, pass, keep)
    }

    fn follow<'a>(
        &self,
        ids: &'a [u32],
        input: Rows,
        pass: Pass<'a>,
        keep: Keep,
    ) -> Result<(Rows, Trace<'a>), ModelError> {
        let mut x = self.enter(&input, pass.batch.layout)?;
        self.drop_embeddings(&mut x, &pass);
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (i, block) in self.blocks.iter().enumerate() {
            let (output, saved) = block.forward(x, &pass.batch, self.asked(i, &pass), None);
            blocks.push(match keep {
                Keep::Everything => Kept::Everything(Box::new(saved)),
                Keep::BlockInputs => Kept::Input(saved.into_input()),
            });
            x = output;
        }
        let states = x.mapped(|x, y| self.final_norm.forward(x, y));
        Ok((states, Trace { pass, ids, input, blocks, last: x }))
    }

    /// From the final states' gradient `[asked, hidden]` to that of the first `wanted` rows of the batch.
    pub fn backward(&self, trace: Trace, gradient: &Rows, wanted: usize) -> Rows {
        self.go_back(trace, gradient, wanted, None)
    }

    /// From the final states' gradient `[asked, hidden]` to those of the weights, which are added up; the head's, which
    /// stands behind these states, are not among them.
    pub fn backward_weights(&self, trace: Trace, gradient: &Rows, gradients: &mut Gradients) {
        let (ids, wanted) = (trace.ids, trace.ids.len());
        let d_embedded = self.go_back(trace, gradient, wanted, Some(gradients));
        let Some(origin) = self.embeddings.origin() else { return };
        match self.padding {
            Some(padding) if ids.contains(&padding) => {
                let looked_up: Vec<u32> =
                    (0..ids.len() as u32).filter(|&row| ids[row as usize] != padding).collect();
                let ids = looked_up.iter().map(|&row| ids[row as usize]);
                origin.add_rows(ids, &d_embedded.select(&looked_up), gradients);
            }
            _ => origin.add_rows(ids.iter().copied(), &d_embedded, gradients),
        }
    }

    /// The gradient of the embeddings' first `wanted` rows; those of the weights between them and the final states are
    /// added up where that is asked for.
    fn go_back(
        &self,
        trace: Trace,
        gradient: &Rows,
        wanted: usize,
        mut gradients: Option<&mut Gradients>,
    ) -> Rows {
        let Trace { pass, mut input, blocks, last, .. } = trace;
        if let Some(gradients) = gradients.as_deref_mut() {
            self.final_norm.add_gradients(&last, gradient, gradients);
        }
        let mut d_x = self.pool.zeros(last.rows(), last.width());
        self.final_norm.add_backward(&last, gradient, &mut d_x);
        drop(last);
        for ((i, block), kept) in self.blocks.iter().enumerate().zip(blocks).rev() {
            let asked = self.asked(i, &pass);
            let saved = match kept {
                Kept::Everything(saved) => *saved,
                Kept::Input(x) => block.forward(x, &pass.batch, asked, None).1,
            };
            // Of what the first block was given only the wanted rows can change.
            let wanted = if i == 0 { wanted } else { pass.batch.layout.tokens() };
            d_x = block.backward(saved, d_x, &pass.batch, asked, wanted, gradients.as_deref_mut());
        }
        self.drop_embeddings(&mut d_x, &pass);
        if let (Some(gradients), Positions::Learned(table)) = (gradients.as_deref_mut(), &self.positions)
            && let Some(origin) = table.origin()
        {
            origin.add_rows(pass.batch.layout.positions().iter().copied(), &d_x, gradients);
        }
        if let Some(norm) = &self.embedding_norm {
            input.truncate(wanted);
            if let Some(gradients) = gradients {
                norm.add_gradients(&input, &d_x, gradients);
            }
            let mut d_input = self.pool.zeros(wanted, self.shape.hidden);
            norm.add_backward(&input, &d_x, &mut d_input);
            d_x = d_input;
        }
        d_x
    }

    /// The logits `[rows, vocabulary]` of final states `[rows, hidden]`.
    pub fn logits(&self, states: &Rows) -> Rows {
        self.head.forward(states)
    }

    /// A soft prompt's numbers, `[n, hidden]` end to end.
    ///
    /// # Errors
    /// Its rows are not as wide as the model.
    pub fn prompt(&self, prompt: &Tensor) -> Result<Vec<f32>, ModelError> {
        let hidden = self.shape.hidden;
        match prompt.dims() {
            [_, width] if *width == hidden => Ok(prompt.flatten_all()?.to_vec1()?),
            found => Err(ModelError::PromptShape { found: found.to_vec(), hidden }),
        }
    }

    /// What the first block is given.
    fn enter(&self, x: &Rows, layout: &Layout) -> Result<Rows, ModelError> {
        let mut x = match &self.embedding_norm {
            Some(norm) => x.mapped(|x, y| norm.forward(x, y)),
            None => self.pool.copied(x, x.width()),
        };
        if let Positions::Learned(table) = &self.positions {
            let (available, width) = (table.outputs_len(), x.width());
            let highest = layout.positions().iter().copied().max();
            if let Some(position) = highest.filter(|&p| p as usize >= available) {
                return Err(ModelError::Positions { position, available });
            }
            let mut learned = self.pool.rows(1, width);
            for (row, &position) in x.chunks_exact_mut(width).zip(layout.positions()) {
                table.output_row(position as usize, &mut learned);
                row.iter_mut().zip(learned.iter()).for_each(|(x, p)| *x += p);
            }
        }
        Ok(x)
    }

    /// Dropout of what the first block is given, or of its gradient.
    fn drop_embeddings(&self, x: &mut Rows, pass: &Pass) {
        let mask = pass.batch.training.and_then(|d| d.mask(Site::Embedding, 0, self.embedding_dropout));
        if let Some(mask) = mask {
            let width = x.width();
            mask.apply(x, width);
        }
    }

    fn pass<'a>(&self, layout: &'a Layout, asked: &'a [u32]) -> Pass<'a> {
        let rotation = match &self.positions {
            Positions::Rotary(frequencies) => {
                Some(Rotation::new(layout.positions(), frequencies, 2 * frequencies.len()))
            }
            _ => None,
        };
        let last = Asked {
            rows: Some(asked),
            queries: layout.queries_at(asked),
            rotation: rotation.as_ref().map(|r| r.at(asked)),
        };
        let all = Asked { rows: None, queries: layout.all_queries(), rotation: None };
        Pass { batch: Batch { layout, rotation, training: None }, all, last }
    }

    fn asked<'p, 'a>(&self, block: usize, pass: &'p Pass<'a>) -> &'p Asked<'a> {
        if block + 1 < self.blocks.len() { &pass.all } else { &pass.last }
    }
}
