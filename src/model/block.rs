//! One layer of a decoder: attention and MLP, each behind a norm and beside a residual; forward and backward.
//!
//! The one place where the order of operations stands, for every architecture: they differ in the parts. Does not
//! know which model it belongs to, nor which layer it is.

use std::borrow::Cow;

use super::cache::LayerCache;
use super::layout::{Layout, Queries};
use super::ops::activation::Activation;
use super::ops::attention::Attention;
use super::ops::dropout::{Dropout, Mask, Site};
use super::ops::gradients::Gradients;
use super::ops::linear::{Given, Linear};
use super::ops::norm::Norm;
use super::ops::rotary::{Direction, Rotation};
use super::rows::Rows;

/// What a block's two halves are added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// What the half's norm was given.
    Stream,
    /// What the half's norm gave: BLOOM's `apply_residual_connection_post_layernorm`.
    Normed,
}

/// What shares of a layer's numbers a pass that trains weights drops.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// The layer, counted from 0: no two drop the same numbers.
    pub layer: usize,
    /// Of the attention's probabilities.
    pub attention: f32,
    /// Of what both halves add to the residual stream.
    pub halves: f32,
}

/// The parts of a layer.
pub struct Block {
    /// Before attention.
    pub attention_norm: Norm,
    /// `[hidden]` → `[heads · dim]`
    pub query: Linear,
    /// `[hidden]` → `[2 · kv_heads · dim]`
    pub key_value: Linear,
    /// Scores, softmax, mixture.
    pub attention: Attention,
    /// `[heads · dim]` → `[hidden]`
    pub output: Linear,
    /// Before the MLP.
    pub mlp_norm: Norm,
    /// `[hidden]` → what the activation takes.
    pub up: Linear,
    /// Between the MLP's two products.
    pub activation: Activation,
    /// `[inner]` → `[hidden]`
    pub down: Linear,
    /// What both halves are added to.
    pub residual: Residual,
    /// What is dropped in training.
    pub dropout: Rates,
}

/// The tokens whose states a block is asked for, where not of all.
///
/// Keys and values are made of all tokens; everything else works on each token alone.
pub struct Asked<'a> {
    /// Their rows of the input; `None`: all, in their order.
    pub rows: Option<&'a [u32]>,
    /// What each of them sees.
    pub queries: Queries,
    /// Their rotation, where positions are rotary.
    pub rotation: Option<Rotation>,
}

/// How a batch lies, for every block that sees all of it.
pub struct Batch<'a> {
    /// Segments and positions.
    pub layout: &'a Layout,
    /// The keys' rotation, where positions are rotary.
    pub rotation: Option<Rotation>,
    /// Weights are trained, with this dropout; `None`: they are frozen and nothing is dropped.
    pub training: Option<Dropout>,
}

/// What backward needs of a forward pass.
pub struct Saved {
    /// The block's input.
    input: Rows,
    queries: Rows,
    keys_values: Rows,
    /// What attention gave, where its output projection is trained.
    mixed: Option<Rows>,
    /// The residual stream between the two halves.
    attended: Rows,
    /// What the activation was given.
    expanded: Rows,
}

impl Saved {
    /// The input alone, from which the rest can be computed again.
    pub fn into_input(self) -> Rows {
        self.input
    }
}

impl Block {
    /// Its linear maps.
    pub(super) fn maps(&self) -> [&Linear; 5] {
        [&self.query, &self.key_value, &self.output, &self.up, &self.down]
    }

    /// The same, to be changed.
    pub(super) fn maps_mut(&mut self) -> [&mut Linear; 5] {
        [&mut self.query, &mut self.key_value, &mut self.output, &mut self.up, &mut self.down]
    }

    /// `[tokens, hidden]` → `[asked, hidden]`, and what backward needs.
    ///
    /// With a cache, keys and values of earlier tokens come from it and those of this batch are added.
    pub fn forward(
        &self,
        input: Rows,
        batch: &Batch,
        asked: &Asked,
        cache: Option<&mut LayerCache>,
    ) -> (Rows, Saved) {
        // A row's norm is computed where a product packs the row.
        let chosen = asked.rows.map(|rows| input.select(rows));
        let input_asked = chosen.as_ref().unwrap_or(&input);
        let normed = |row: usize, y: &mut [f32]| self.attention_norm.row(input.row(row), y);
        let normed_asked = |row: usize, y: &mut [f32]| self.attention_norm.row(input_asked.row(row), y);
        let (normed, normed_asked) =
            (Given::made_of(&input, &normed), Given::made_of(input_asked, &normed_asked));
        let [mut queries, mut keys_values] = match asked.rows {
            None => Linear::forward_both([&self.query, &self.key_value], normed),
            Some(_) => [self.query.forward(normed_asked), self.key_value.forward(normed)],
        };
        self.turn(&mut queries, &mut keys_values, batch, asked, Direction::Forward);
        let mut mixed = queries.like();
        match cache {
            None => {
                self.attention(batch).forward(
                    &queries,
                    &keys_values,
                    batch.layout,
                    &asked.queries,
                    &mut mixed,
                );
            }
            Some(cache) => self.attention.forward_cached(
                &queries,
                &keys_values,
                batch.layout,
                &asked.queries,
                cache,
                &mut mixed,
            ),
        }
        let mask = self.mask(Site::AttentionOutput, batch);
        let attended = self.with_residual(&self.attention_norm, input_asked, |residual| {
            add_half(&self.output, &mixed, residual, mask)
        });
        let mixed = batch.training.is_some().then_some(mixed);
        drop(chosen);

        let normed = |row: usize, y: &mut [f32]| self.mlp_norm.row(attended.row(row), y);
        let expanded = self.up.forward(Given::made_of(&attended, &normed));
        let activated = |row: usize, y: &mut [f32]| self.activation.row(expanded.row(row), y);
        let mask = self.mask(Site::MlpOutput, batch);
        let output = self.with_residual(&self.mlp_norm, &attended, |residual| {
            add_half(&self.down, Given::made_of(&expanded, &activated), residual, mask)
        });
        (output, Saved { input, queries, keys_values, mixed, attended, expanded })
    }

    /// What `f` makes of what a half is added to, whose norm was given this.
    fn with_residual(&self, norm: &Norm, input: &Rows, f: impl FnOnce(&Rows) -> Rows) -> Rows {
        match self.residual {
            Residual::Stream => f(input),
            Residual::Normed => f(&input.mapped(|x, y| norm.forward(x, y))),
        }
    }

    /// From the output's gradient `[asked, hidden]` to that of the first `wanted` rows of the input. Where weights are
    /// trained, theirs are added to `gradients`, and all rows are wanted.
    pub fn backward(
        &self,
        saved: Saved,
        gradient: Rows,
        batch: &Batch,
        asked: &Asked,
        wanted: usize,
        mut gradients: Option<&mut Gradients>,
    ) -> Rows {
        let Saved { mut input, queries, keys_values, mixed, attended, expanded } = saved;

        // The MLP's half; `gradient` goes from the output's to that of what stands between the halves.
        let dropped = dropped(&gradient, self.mask(Site::MlpOutput, batch));
        let d_half = dropped.as_ref().unwrap_or(&gradient);
        let d_activated = self.down.backward(d_half);
        let inner = d_activated.width();
        let mut d_normed = match gradients.as_deref_mut() {
            None => {
                let d_expanded = |row: usize, d: &mut [f32]| {
                    self.activation.gradient_row(expanded.row(row), d_activated.row(row), d);
                };
                self.up.backward(Given::made_of(&expanded, &d_expanded))
            }
            Some(gradients) => {
                let mut activated = d_activated.like();
                self.activation.forward(&expanded, &mut activated, inner);
                self.down.add_gradients(&activated, d_half, gradients);
                drop(activated);
                let mut d_expanded = expanded.like();
                self.activation.backward(&expanded, &d_activated, &mut d_expanded, inner);
                let normed = attended.mapped(|x, y| self.mlp_norm.forward(x, y));
                self.up.add_gradients(&normed, &d_expanded, gradients);
                self.up.backward(&d_expanded)
            }
        };
        drop((dropped, expanded, d_activated));
        let mut gradient =
            self.through(&self.mlp_norm, &attended, &mut d_normed, gradient, gradients.as_deref_mut());
        drop((d_normed, attended));

        // Attention's half.
        let dropped = self::dropped(&gradient, self.mask(Site::AttentionOutput, batch));
        let d_half = dropped.as_ref().unwrap_or(&gradient);
        let d_mixed = self.output.backward(d_half);
        if let (Some(gradients), Some(mixed)) = (gradients.as_deref_mut(), &mixed) {
            self.output.add_gradients(mixed, d_half, gradients);
        }
        drop((dropped, mixed));
        let (mut d_queries, mut d_keys_values) = (queries.like(), keys_values.like());
        self.attention(batch).backward(
            &queries,
            &keys_values,
            batch.layout,
            &asked.queries,
            &d_mixed,
            &mut d_queries,
            &mut d_keys_values,
        );
        drop((queries, keys_values, d_mixed));
        self.turn(&mut d_queries, &mut d_keys_values, batch, asked, Direction::Back);

        if let Some(gradients) = gradients.as_deref_mut() {
            let normed = input.mapped(|x, y| self.attention_norm.forward(x, y));
            self.key_value.add_gradients(&normed, &d_keys_values, gradients);
            match asked.rows {
                None => self.query.add_gradients(&normed, &d_queries, gradients),
                Some(rows) => self.query.add_gradients(&normed.select(rows), &d_queries, gradients),
            }
        }
        d_keys_values.truncate(wanted);
        let mut d_normed = self.key_value.backward(&d_keys_values);
        match asked.rows {
            None => {
                d_queries.truncate(wanted);
                self.query.add_backward(&d_queries, &mut d_normed);
                gradient.truncate(wanted);
            }
            Some(rows) => {
                d_normed.add_at(rows, &self.query.backward(&d_queries));
                let mut all = input.pool().zeros(wanted, input.width());
                all.add_at(rows, &gradient);
                gradient = all;
            }
        }
        input.truncate(wanted);
        self.through(&self.attention_norm, &input, &mut d_normed, gradient, gradients)
    }

    /// Back through a norm and the residual around what follows it: `d_normed` is what came through that,
    /// `gradient` what came by the residual.
    fn through(
        &self,
        norm: &Norm,
        input: &Rows,
        d_normed: &mut Rows,
        mut gradient: Rows,
        gradients: Option<&mut Gradients>,
    ) -> Rows {
        if self.residual == Residual::Normed {
            d_normed.iter_mut().zip(gradient.iter()).for_each(|(d, g)| *d += g);
            gradient.fill(0.0);
        }
        if let Some(gradients) = gradients {
            norm.add_gradients(input, d_normed, gradients);
        }
        norm.add_backward(input, d_normed, &mut gradient);
        gradient
    }

    /// The attention, with what this pass drops.
    fn attention(&self, batch: &Batch) -> Cow<'_, Attention> {
        match self.mask(Site::Attention, batch) {
            None => Cow::Borrowed(&self.attention),
            Some(mask) => Cow::Owned(Attention { dropout: Some(mask), ..self.attention.clone() }),
        }
    }

    fn mask(&self, site: Site, batch: &Batch) -> Option<Mask> {
        let rate = if site == Site::Attention { self.dropout.attention } else { self.dropout.halves };
        batch.training?.mask(site, self.dropout.layer, rate)
    }

    fn turn(
        &self,
        queries: &mut Rows,
        keys_values: &mut Rows,
        batch: &Batch,
        asked: &Asked,
        direction: Direction,
    ) {
        let (dim, kv_heads) = (self.attention.keys.dim(), self.attention.keys.kv_heads());
        if let Some(rotation) = asked.rotation.as_ref().or(batch.rotation.as_ref()) {
            let width = queries.width();
            rotation.turn(queries, width, 0, dim, self.attention.heads, direction);
        }
        if let Some(rotation) = &batch.rotation {
            let (width, (first, step)) = (keys_values.width(), self.attention.keys.key_columns());
            rotation.turn(keys_values, width, first, step, kv_heads, direction);
        }
    }
}

/// What a half's last map makes of `x`, some of it dropped, added to the residual.
fn add_half<'a>(map: &Linear, x: impl Into<Given<'a>>, residual: &Rows, mask: Option<Mask>) -> Rows {
    let Some(mask) = mask else { return map.forward_onto(x, residual) };
    let mut y = map.forward(x);
    let width = y.width();
    mask.apply(&mut y, width);
    y.iter_mut().zip(residual.iter()).for_each(|(y, r)| *y += r);
    y
}

/// The gradient of a half from that of the sum it is part of, where some of the half was dropped.
fn dropped(gradient: &Rows, mask: Option<Mask>) -> Option<Rows> {
    let mask = mask?;
    let mut d_half = gradient.pool().copied(gradient, gradient.width());
    mask.apply(&mut d_half, gradient.width());
    Some(d_half)
}
