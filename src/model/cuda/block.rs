//! One layer of a decoder on a card: the order of operations of [`crate::model::block`], forward and backward.
//!
//! Does not know which model it belongs to, nor which device carries the operations out.

use super::super::block::Residual;
use super::super::ops::activation::Activation;
use super::super::ops::rotary::Direction;
use super::card::{
    Attended, Attending, AttentionOn, Card, Columns, Factor, Groups, MaskOn, Matrix, NormOn, Normed, Onto,
    Over, Result, Spans, Words,
};

/// A linear map on the card.
pub struct MapOn<C: Card> {
    /// Numbers that come out.
    pub outputs: usize,
    /// Numbers that go in.
    pub inputs: usize,
    /// `[outputs, inputs]`, as products take it.
    pub weight: Words<C>,
    /// `[outputs]`
    pub bias: Option<Words<C>>,
    /// Where the gradients of weight and bias go, if they are trained.
    pub gradients: Option<(Words<C>, Option<Words<C>>)>,
}

/// A norm on the card.
pub struct NormPart<C: Card> {
    /// Its weights.
    pub norm: NormOn<C>,
    /// Where their gradients go, if they are trained.
    pub gradients: Option<(Words<C>, Option<Words<C>>)>,
}

/// The parts of a layer.
pub struct BlockOn<C: Card> {
    /// Before attention.
    pub attention_norm: NormPart<C>,
    /// `[hidden]` → `[heads · dim]`
    pub query: MapOn<C>,
    /// `[hidden]` → `[2 · kv_heads · dim]`
    pub key_value: MapOn<C>,
    /// Scores, softmax, mixture.
    pub attention: AttentionOn<C>,
    /// `[heads · dim]` → `[hidden]`
    pub output: MapOn<C>,
    /// Before the MLP.
    pub mlp_norm: NormPart<C>,
    /// `[hidden]` → what the activation takes.
    pub up: MapOn<C>,
    /// Between the MLP's two products.
    pub activation: Activation,
    /// `[inner]` → `[hidden]`
    pub down: MapOn<C>,
    /// What both halves are added to.
    pub residual: Residual,
}

/// What is dropped in a layer.
pub struct Masks<C: Card> {
    /// Of the attention's probabilities.
    pub attention: Option<MaskOn<C>>,
    /// Of what attention adds to the residual stream.
    pub attention_output: Option<MaskOn<C>>,
    /// Of what the MLP adds to it.
    pub mlp_output: Option<MaskOn<C>>,
}

impl<C: Card> Default for Masks<C> {
    fn default() -> Self {
        Self { attention: None, attention_output: None, mlp_output: None }
    }
}

/// The tokens whose states a block is asked for, where not of all.
pub struct Chosen<C: Card> {
    /// Their rows of the input; -1: nobody's.
    pub rows: Words<C>,
    /// How many there are.
    pub count: usize,
    /// Where their gradients go in the input's.
    pub groups: Groups<C>,
}

/// What a block is asked for.
pub struct AskedOn<C: Card> {
    /// Of these tokens; `None`: of all.
    pub chosen: Option<Chosen<C>>,
    /// What each of them sees.
    pub spans: Spans<C>,
}

/// What a pass wants of a layer.
pub struct LayerOf<'a, C: Card> {
    /// The rotation of each token, where positions are rotary.
    pub turns: Option<&'a Words<C>>,
    /// The tokens that are asked for.
    pub asked: &'a AskedOn<C>,
    /// What is dropped.
    pub masks: &'a Masks<C>,
}

/// Where a layer's keys and values are kept.
pub struct LayerPlaces<'a, C: Card> {
    /// `[cache rows, 2 · kv_heads · dim]`
    pub cache: &'a Matrix<C>,
    /// The row of the cache for each token; -1: it is not kept.
    pub rows: &'a Words<C>,
}

/// What backward needs of a forward pass.
pub struct SavedOn<C: Card> {
    /// The block's input.
    pub input: Matrix<C>,
    input_stats: Words<C>,
    queries: Matrix<C>,
    keys_values: Matrix<C>,
    attended: Attended<C>,
    /// The residual stream between the two halves.
    middle: Matrix<C>,
    middle_stats: Words<C>,
    /// What the activation was given.
    expanded: Matrix<C>,
}

impl<C: Card> MapOn<C> {
    /// `[rows, inputs]` → `[rows, outputs]`, the bias left out.
    fn product(&self, card: &C, x: &Factor<C>) -> Result<Matrix<C>> {
        let y = card.matrix(x.rows, self.outputs)?;
        card.product(&y, x, &self.weight, Over::Inputs, Onto::Nothing)?;
        Ok(y)
    }

    /// `[rows, inputs]` → `[rows, outputs]`
    pub fn forward(&self, card: &C, x: &Factor<C>) -> Result<Matrix<C>> {
        let Some(bias) = &self.bias else { return self.product(card, x) };
        let y = card.matrix(x.rows, self.outputs)?;
        card.start(&y, None, Some(bias))?;
        card.product(&y, x, &self.weight, Over::Inputs, Onto::Itself)?;
        Ok(y)
    }

    /// From the output's gradient to the input's.
    pub fn backward(&self, card: &C, dy: &Factor<C>) -> Result<Matrix<C>> {
        let dx = card.matrix(dy.rows, self.inputs)?;
        card.product(&dx, dy, &self.weight, Over::Outputs, Onto::Nothing)?;
        Ok(dx)
    }

    /// Adds the gradients of weight and bias, of which `dy` is the output's gradient, twice.
    fn add_gradients(&self, card: &C, x: &Factor<C>, dy: (&Matrix<C>, &Factor<C>)) -> Result<()> {
        let Some((weight, bias)) = &self.gradients else { return Ok(()) };
        card.add_product(weight, x, dy.1)?;
        match bias {
            Some(bias) => card.add_columns(bias, dy.0),
            None => Ok(()),
        }
    }
}

impl<C: Card> NormPart<C> {
    /// The normalised rows as a factor.
    fn again(&self, card: &C, x: &Matrix<C>) -> Result<Factor<C>> {
        let (factor, stats) = (card.empty_factor(x.rows, x.width)?, card.words(2 * x.rows)?);
        let to = Normed { sum: None, y: None, factor: Some(&factor), stats: &stats };
        card.norm(to, x, None, &self.norm)?;
        Ok(factor)
    }

    /// The gradient of `x` from that of its normalised rows, added to `carry`.
    pub fn back(
        &self,
        card: &C,
        (x, stats): (&Matrix<C>, &Words<C>),
        dy: &Matrix<C>,
        carry: Option<&Matrix<C>>,
    ) -> Result<Matrix<C>> {
        if let Some((weight, bias)) = &self.gradients {
            card.norm_gradients(weight, bias.as_ref(), x, stats, dy)?;
        }
        let dx = match carry {
            Some(carry) => carry.clone(),
            None => card.matrix(x.rows, x.width)?,
        };
        card.norm_back(&dx, x, stats, &self.norm, dy, carry)?;
        Ok(dx)
    }
}

impl<C: Card> BlockOn<C> {
    /// `[tokens, hidden]` → `[asked, hidden]`, and what backward needs.
    pub fn forward(
        &self,
        card: &C,
        input: Matrix<C>,
        of: &LayerOf<C>,
        places: Option<LayerPlaces<C>>,
    ) -> Result<(Matrix<C>, SavedOn<C>)> {
        let LayerOf { turns, asked, masks } = *of;
        let post = self.residual == Residual::Normed;
        let (tokens, hidden) = (input.rows, input.width);
        let input_stats = card.words(2 * tokens)?;
        let factor = card.empty_factor(tokens, hidden)?;
        // The normed rows in f32 as well, where rows are chosen from them or they go on as the residual stream.
        let plain = (post || asked.chosen.is_some()).then(|| card.matrix(tokens, hidden)).transpose()?;
        let to = Normed { sum: None, y: plain.as_ref(), factor: Some(&factor), stats: &input_stats };
        card.norm(to, &input, None, &self.attention_norm.norm)?;
        let keys_values = self.key_value.forward(card, &factor)?;
        let (stream, normed, factor) = match &asked.chosen {
            None => (input.clone(), plain, factor),
            Some(Chosen { rows, count, .. }) => {
                let (stream, normed) = (card.matrix(*count, hidden)?, card.matrix(*count, hidden)?);
                card.gather(&stream, &input, rows)?;
                if let Some(plain) = &plain {
                    card.gather(&normed, plain, rows)?;
                }
                let factor = card.factor(&normed)?;
                (stream, Some(normed), factor)
            }
        };
        let queries = self.query.forward(card, &factor)?;
        drop(factor);
        self.turn(card, &queries, &keys_values, turns, asked, Direction::Forward)?;
        if let Some(LayerPlaces { cache, rows }) = &places {
            card.scatter(cache, &keys_values, rows)?;
        }
        let attended = Attended {
            mixed: card.matrix(queries.rows, queries.width)?,
            stats: card.words(2 * queries.rows * self.attention.heads)?,
        };
        let cache = places.as_ref().map(|places| places.cache);
        card.attend(&attended, &queries, &keys_values, cache, &self.attending(of))?;
        let half = self.output.product(card, &card.factor(&attended.mixed)?)?;
        let residual = normed.as_ref().filter(|_| post).unwrap_or(&stream);

        // The residual stream with attention's half, and its norm.
        let rows = half.rows;
        let (middle_stats, factor) = (card.words(2 * rows)?, card.empty_factor(rows, hidden)?);
        let plain = post.then(|| card.matrix(rows, hidden)).transpose()?;
        let to = |sum| Normed { sum, y: plain.as_ref(), factor: Some(&factor), stats: &middle_stats };
        let middle = half.clone();
        match &masks.attention_output {
            None => {
                let add = Some((&half, self.output.bias.as_ref()));
                card.norm(to(Some(&middle)), residual, add, &self.mlp_norm.norm)?;
            }
            Some(mask) => {
                card.add_half(&middle, &half, self.output.bias.as_ref(), residual, Some(mask))?;
                card.norm(to(None), &middle, None, &self.mlp_norm.norm)?;
            }
        }
        let expanded = self.up.product(card, &factor)?;
        drop(factor);
        let activated = card.empty_factor(rows, self.down.inputs)?;
        card.activate(&activated, &expanded, self.up.bias.as_ref(), self.activation)?;
        let output = self.down.product(card, &activated)?;
        let residual = plain.as_ref().unwrap_or(&middle);
        card.add_half(&output, &output, self.down.bias.as_ref(), residual, masks.mlp_output.as_ref())?;
        let saved =
            SavedOn { input, input_stats, queries, keys_values, attended, middle, middle_stats, expanded };
        Ok((output, saved))
    }

    /// From the output's gradient `[asked, hidden]`, whose memory is used again, to that of the first `wanted` rows of
    /// the input. Gradients of weights that are trained are added, and all rows are wanted then.
    pub fn backward(
        &self,
        card: &C,
        saved: SavedOn<C>,
        gradient: Matrix<C>,
        of: &LayerOf<C>,
        wanted: usize,
    ) -> Result<Matrix<C>> {
        let LayerOf { turns, asked, masks } = *of;
        let SavedOn { input, input_stats, queries, keys_values, attended, middle, middle_stats, expanded } =
            saved;

        // The MLP's half; the gradient goes from the output's to that of what stands between the halves.
        let d_half = dropped(card, &gradient, masks.mlp_output.as_ref())?;
        let factor = card.factor(&d_half)?;
        let d_activated = self.down.backward(card, &factor)?;
        if self.down.gradients.is_some() {
            let activated = card.empty_factor(expanded.rows, self.down.inputs)?;
            // The bias is in it since the way forth.
            card.activate(&activated, &expanded, None, self.activation)?;
            self.down.add_gradients(card, &activated, (&d_half, &factor))?;
        }
        drop((d_half, factor));
        let factor = self.factor_in_place(card, &expanded)?;
        card.activate_back(&factor, &expanded, &d_activated, self.activation)?;
        drop(d_activated);
        if self.up.gradients.is_some() {
            let normed = self.mlp_norm.again(card, &middle)?;
            self.up.add_gradients(card, &normed, (&expanded, &factor))?;
        }
        let d_normed = self.up.backward(card, &factor)?;
        drop((expanded, factor));
        let gradient = self.through(card, &self.mlp_norm, (&middle, &middle_stats), d_normed, gradient)?;

        // Attention's half.
        let d_half = dropped(card, &gradient, masks.attention_output.as_ref())?;
        let factor = card.factor(&d_half)?;
        let d_mixed = self.output.backward(card, &factor)?;
        if self.output.gradients.is_some() {
            self.output.add_gradients(card, &card.factor(&attended.mixed)?, (&d_half, &factor))?;
        }
        drop((d_half, factor));
        let dq = card.matrix(queries.rows, queries.width)?;
        let d_kv = card.matrix(keys_values.rows, keys_values.width)?;
        let given = (&queries, &keys_values);
        card.attend_back((&dq, &d_kv), &d_mixed, &attended, given, &self.attending(of))?;
        drop((queries, keys_values, attended, d_mixed));
        self.turn(card, &dq, &d_kv, turns, asked, Direction::Back)?;

        if self.key_value.gradients.is_some() {
            let normed = self.attention_norm.again(card, &input)?;
            self.key_value.add_gradients(card, &normed, (&d_kv, &card.factor(&d_kv)?))?;
            let normed = match &asked.chosen {
                None => normed,
                Some(Chosen { rows, count, .. }) => {
                    let chosen = card.matrix(*count, input.width)?;
                    card.gather(&chosen, &input, rows)?;
                    self.attention_norm.again(card, &chosen)?
                }
            };
            self.query.add_gradients(card, &normed, (&dq, &card.factor(&dq)?))?;
        }
        let (input, d_kv) = (input.first(wanted), d_kv.first(wanted));
        let d_normed = self.key_value.backward(card, &card.factor(&d_kv)?)?;
        let gradient = match &asked.chosen {
            None => {
                let factor = card.factor(&dq.first(wanted))?;
                card.product(&d_normed, &factor, &self.query.weight, Over::Outputs, Onto::Itself)?;
                gradient.first(wanted)
            }
            Some(Chosen { groups, .. }) => {
                let d_chosen = self.query.backward(card, &card.factor(&dq)?)?;
                card.add_groups(&d_normed, &d_chosen, groups)?;
                let all = card.zeros(wanted, input.width)?;
                card.add_groups(&all, &gradient, groups)?;
                all
            }
        };
        self.through(card, &self.attention_norm, (&input, &input_stats), d_normed, gradient)
    }

    /// Back through a norm and the residual around what follows it: `d_normed` is what came through that, `gradient`
    /// what came by the residual.
    fn through(
        &self,
        card: &C,
        norm: &NormPart<C>,
        input: (&Matrix<C>, &Words<C>),
        d_normed: Matrix<C>,
        gradient: Matrix<C>,
    ) -> Result<Matrix<C>> {
        match self.residual {
            Residual::Stream => norm.back(card, input, &d_normed, Some(&gradient)),
            Residual::Normed => {
                card.add(&d_normed.words, &gradient.words)?;
                norm.back(card, input, &d_normed, None)
            }
        }
    }

    fn attending<'a>(&'a self, of: &LayerOf<'a, C>) -> Attending<'a, C> {
        Attending { attention: &self.attention, spans: &of.asked.spans, mask: of.masks.attention.as_ref() }
    }

    /// A factor for what will stand in a matrix, in the same memory where it is the same.
    fn factor_in_place(&self, card: &C, x: &Matrix<C>) -> Result<Factor<C>> {
        match card.kind() {
            super::Kind::F32 => card.factor(x),
            _ => card.empty_factor(x.rows, x.width),
        }
    }

    fn turn(
        &self,
        card: &C,
        queries: &Matrix<C>,
        keys_values: &Matrix<C>,
        turns: Option<&Words<C>>,
        asked: &AskedOn<C>,
        direction: Direction,
    ) -> Result<()> {
        let Some(turns) = turns else { return Ok(()) };
        let keys = self.attention.keys;
        let columns = Columns { first: 0, step: keys.dim, heads: self.attention.heads, dim: keys.dim };
        let turn_of = asked.chosen.as_ref().map(|chosen| &chosen.rows);
        card.turn(queries, turns, turn_of, columns, direction)?;
        card.turn(keys_values, turns, None, keys, direction)
    }
}

/// The gradient of a half from that of the sum it is part of.
fn dropped<C: Card>(card: &C, gradient: &Matrix<C>, mask: Option<&MaskOn<C>>) -> Result<Matrix<C>> {
    let Some(mask) = mask else { return Ok(gradient.clone()) };
    let d_half = card.matrix(gradient.rows, gradient.width)?;
    card.drop_some(&d_half, gradient, mask)?;
    Ok(d_half)
}
