//! What a card can do: memory, products and the operations of a decoder, one method each.
//!
//! The seam between the engine, which knows in what order a decoder's operations go, and the device that carries them
//! out. Everything is asynchronous but [`Card::read`]; nothing is checked but sizes. Results stand first among the
//! arguments and are written whole unless something else is said; every sum has an order of its own, so that the same
//! call gives the same bits.

use std::sync::Arc;

use super::super::ops::activation::Activation;
use super::super::ops::rotary::Direction;
use super::CardError;

/// What matrix products take; they are summed in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// 32-bit floats.
    F32,
    /// The upper half of 32-bit floats.
    BF16,
    /// IEEE half precision.
    F16,
}

impl Kind {
    /// 32-bit words that so many numbers take.
    pub fn words(self, numbers: usize) -> usize {
        match self {
            Self::F32 => numbers,
            Self::BF16 | Self::F16 => numbers.div_ceil(2),
        }
    }
}

/// Some 32-bit words of a card's memory, shared by all clones.
pub struct Words<C: Card> {
    /// The memory they are in.
    pub memory: Arc<C::Memory>,
    /// The first of them.
    pub first: usize,
    /// How many there are.
    pub len: usize,
}

impl<C: Card> Clone for Words<C> {
    fn clone(&self) -> Self {
        Self { memory: self.memory.clone(), first: self.first, len: self.len }
    }
}

impl<C: Card> Words<C> {
    /// Some of them.
    ///
    /// # Panics
    /// There are not so many.
    pub fn part(&self, range: std::ops::Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "words {range:?} of {}", self.len);
        Self { memory: self.memory.clone(), first: self.first + range.start, len: range.len() }
    }
}

/// A matrix of f32 `[rows, width]`.
pub struct Matrix<C: Card> {
    /// Its numbers, row by row.
    pub words: Words<C>,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub width: usize,
}

impl<C: Card> Clone for Matrix<C> {
    fn clone(&self) -> Self {
        Self { words: self.words.clone(), ..*self }
    }
}

impl<C: Card> Matrix<C> {
    /// The rows `range`, as a view.
    pub fn rows(&self, range: std::ops::Range<usize>) -> Self {
        let words = self.words.part(range.start * self.width..range.end * self.width);
        Self { words, rows: range.len(), width: self.width }
    }

    /// The first rows, as a view.
    pub fn first(&self, rows: usize) -> Self {
        self.rows(0..rows)
    }
}

/// A matrix as products take it; in f32 it is the matrix itself.
pub struct Factor<C: Card> {
    /// Its numbers, row by row, in the card's kind.
    pub words: Words<C>,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub width: usize,
}

impl<C: Card> Clone for Factor<C> {
    fn clone(&self) -> Self {
        Self { words: self.words.clone(), ..*self }
    }
}

/// Which index of a weight `[outputs, inputs]` a product sums over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// `x · Wᵀ`: forward.
    Inputs,
    /// `x · W`: the gradient of the input.
    Outputs,
}

/// What a product becomes of what stands in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    /// It is overwritten.
    Nothing,
    /// It is added to.
    Itself,
}

/// A norm's weights.
pub struct NormOn<C: Card> {
    /// `[width]`
    pub weight: Words<C>,
    /// Layer norm's; RMS norm has none.
    pub bias: Option<Words<C>>,
    /// Added to the variance.
    pub eps: f32,
}

/// What a norm gives.
pub struct Normed<'a, C: Card> {
    /// What was normalised, where something was added first; may be what was added.
    pub sum: Option<&'a Matrix<C>>,
    /// In f32, if it is wanted.
    pub y: Option<&'a Matrix<C>>,
    /// As a factor, if it is wanted.
    pub factor: Option<&'a Factor<C>>,
    /// Two numbers a row that the way back needs.
    pub stats: &'a Words<C>,
}

/// What is dropped of a matrix.
pub struct MaskOn<C: Card> {
    /// The key, two words.
    pub key: Words<C>,
    /// Bits below this are dropped.
    pub threshold: u32,
    /// What the others are multiplied by.
    pub scale: f32,
}

/// Where rows are added up.
pub struct Groups<C: Card> {
    /// The rows, group by group.
    pub order: Words<C>,
    /// Where each group begins in `order`, and the end.
    pub starts: Words<C>,
    /// The row that each group is added to; -1: none.
    pub targets: Words<C>,
}

/// Some heads' columns of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The first head's first.
    pub first: usize,
    /// How far heads are apart.
    pub step: usize,
    /// How many heads there are.
    pub heads: usize,
    /// Numbers a head.
    pub dim: usize,
}

/// The attention of a layer.
pub struct AttentionOn<C: Card> {
    /// Query heads.
    pub heads: usize,
    /// Where the keys are in a row of the key/value matrix.
    pub keys: Columns,
    /// Where the first value is.
    pub first_value: usize,
    /// What a product of query and key is multiplied by.
    pub scale: f32,
    /// ALiBi slopes of the query heads, if any.
    pub slopes: Option<Words<C>>,
}

/// Which keys each query sees: arrays as the attention kernels read them.
pub struct Spans<C: Card> {
    /// `[queries, 2]`: row of the query matrix, keys seen (0: a padded query).
    pub queries: Words<C>,
    /// `[segments, 8]`: first query, queries, then first row and length of prefix, past and own keys; a first row below 0
    /// is row `-1 - first` of the cache.
    pub segments: Words<C>,
    /// `[tiles, 2]`: segment (-1: padded), first query.
    pub tiles: Words<C>,
    /// `[queries]`: the segment of each, where few queries see many keys each.
    pub query_segments: Option<Words<C>>,
    /// What the way back needs.
    pub back: Option<BackSpans<C>>,
}

/// Which queries see each key.
pub struct BackSpans<C: Card> {
    /// `[key tiles, 6]`: first row, keys (-1: padded), place of the first, first query, end query, destination: a row
    /// of the gradient, or below 0 row `-1 - destination` of the parts.
    pub key_tiles: Words<C>,
    /// Tokens of the prefix, whose gradients are added up from parts.
    pub prefix: usize,
    /// Parts of each of them.
    pub parts: usize,
}

/// How a layer attends.
pub struct Attending<'a, C: Card> {
    /// Its heads.
    pub attention: &'a AttentionOn<C>,
    /// Which keys each query sees.
    pub spans: &'a Spans<C>,
    /// Which probabilities are dropped, if any.
    pub mask: Option<&'a MaskOn<C>>,
}

/// What a pass through an attention leaves for the way back.
pub struct Attended<C: Card> {
    /// `[queries, heads · dim]`
    pub mixed: Matrix<C>,
    /// `[queries, heads, 2]`
    pub stats: Words<C>,
}

/// Numbers of a tensor that is trained, all f32 and of one length.
pub struct TensorOn<C: Card> {
    /// As they are now.
    pub numbers: Words<C>,
    /// The loss's gradient.
    pub gradient: Words<C>,
    /// The optimizer's first moment.
    pub mean: Words<C>,
    /// Its second.
    pub square: Words<C>,
    /// The numbers as products take them, where that is not f32.
    pub rounded: Option<Words<C>>,
}

/// What every method gives.
pub type Result<T> = std::result::Result<T, CardError>;

/// A device with memory of its own.
pub trait Card: Sized + 'static {
    /// A stretch of memory; it can be used again once the last who holds it lets it go.
    type Memory;
    /// Work that was recorded.
    type Graph;

    /// What products take.
    fn kind(&self) -> Kind;

    /// Memory of so many words, with anything in it, at an address that is a multiple of 16 bytes.
    fn words(&self, len: usize) -> Result<Words<Self>>;
    /// Copies words to the card.
    fn write(&self, to: &Words<Self>, from: &[u32]) -> Result<()>;
    /// Waits for all that came before, and copies words from the card.
    fn read(&self, from: &Words<Self>) -> Result<Vec<u32>>;
    /// Copies words on the card.
    fn copy(&self, to: &Words<Self>, from: &Words<Self>) -> Result<()>;
    /// Zeros.
    fn zero(&self, words: &Words<Self>) -> Result<()>;
    /// Records what `work` asks for instead of doing it; `None`: this can't be recorded.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Graph>>;
    /// Does what was recorded, with what the memory holds now.
    fn replay(&self, graph: &Self::Graph) -> Result<()>;
    /// Gives memory back that nobody holds.
    fn trim(&self);
    /// The most bytes of memory there were at once.
    fn peak(&self) -> u64;

    /// Memory of a matrix.
    fn matrix(&self, rows: usize, width: usize) -> Result<Matrix<Self>> {
        Ok(Matrix { words: self.words(rows * width)?, rows, width })
    }
    /// A matrix of zeros.
    fn zeros(&self, rows: usize, width: usize) -> Result<Matrix<Self>> {
        let matrix = self.matrix(rows, width)?;
        self.zero(&matrix.words)?;
        Ok(matrix)
    }
    /// Memory of a factor.
    fn empty_factor(&self, rows: usize, width: usize) -> Result<Factor<Self>> {
        Ok(Factor { words: self.words(self.kind().words(rows * width))?, rows, width })
    }
    /// A matrix as products take it.
    fn factor(&self, x: &Matrix<Self>) -> Result<Factor<Self>> {
        if self.kind() == Kind::F32 {
            return Ok(Factor { words: x.words.clone(), rows: x.rows, width: x.width });
        }
        let factor = self.empty_factor(x.rows, x.width)?;
        self.round(&factor.words, &x.words)?;
        Ok(factor)
    }
    /// Words that hold this.
    fn upload(&self, words: &[u32]) -> Result<Words<Self>> {
        let to = self.words(words.len())?;
        self.write(&to, words)?;
        Ok(to)
    }
    /// Numbers on the card.
    fn upload_numbers(&self, numbers: &[f32]) -> Result<Words<Self>> {
        self.upload(bytemuck::cast_slice(numbers))
    }
    /// Numbers from the card.
    fn numbers(&self, from: &Words<Self>) -> Result<Vec<f32>> {
        Ok(self.read(from)?.into_iter().map(f32::from_bits).collect())
    }

    /// Rows of a prompt `[virtual, width]`, then of the table; each plus a row of the second table.
    fn embed(
        &self,
        y: &Matrix<Self>,
        prompt: Option<&Matrix<Self>>,
        table: &Words<Self>,
        ids: &Words<Self>,
        positions: Option<(&Words<Self>, &Words<Self>)>,
    ) -> Result<()>;
    /// `y[i] = x[rows[i]]`; -1: 0.
    fn gather(&self, y: &Matrix<Self>, x: &Matrix<Self>, rows: &Words<Self>) -> Result<()>;
    /// `y[rows[i]] = x[i]`, -1: nowhere; no row is named twice.
    fn scatter(&self, y: &Matrix<Self>, x: &Matrix<Self>, rows: &Words<Self>) -> Result<()>;
    /// Adds each group of rows of `x` to its row of `y`.
    fn add_groups(&self, y: &Matrix<Self>, x: &Matrix<Self>, groups: &Groups<Self>) -> Result<()>;

    /// `y = residual + bias`.
    fn start(
        &self,
        y: &Matrix<Self>,
        residual: Option<&Matrix<Self>>,
        bias: Option<&Words<Self>>,
    ) -> Result<()>;
    /// `y = residual + x + bias`, of `x + bias` some dropped; `y` may be `x`.
    fn add_half(
        &self,
        y: &Matrix<Self>,
        x: &Matrix<Self>,
        bias: Option<&Words<Self>>,
        residual: &Matrix<Self>,
        mask: Option<&MaskOn<Self>>,
    ) -> Result<()>;
    /// `y` is `x`, some of it dropped; `y` may be `x`.
    fn drop_some(&self, y: &Matrix<Self>, x: &Matrix<Self>, mask: &MaskOn<Self>) -> Result<()>;
    /// `y += x`.
    fn add(&self, y: &Words<Self>, x: &Words<Self>) -> Result<()>;
    /// Rounds; not to be called where products take f32.
    fn round(&self, y: &Words<Self>, x: &Words<Self>) -> Result<()>;

    /// Normalises the rows of `x`, or of `x + add + bias`.
    fn norm(
        &self,
        to: Normed<Self>,
        x: &Matrix<Self>,
        add: Option<(&Matrix<Self>, Option<&Words<Self>>)>,
        norm: &NormOn<Self>,
    ) -> Result<()>;
    /// `dx` = `carry`, which may be `dx`, plus the gradient through the norm of `x`.
    fn norm_back(
        &self,
        dx: &Matrix<Self>,
        x: &Matrix<Self>,
        stats: &Words<Self>,
        norm: &NormOn<Self>,
        dy: &Matrix<Self>,
        carry: Option<&Matrix<Self>>,
    ) -> Result<()>;
    /// Adds the gradients of a norm's weight and bias.
    fn norm_gradients(
        &self,
        weight: &Words<Self>,
        bias: Option<&Words<Self>>,
        x: &Matrix<Self>,
        stats: &Words<Self>,
        dy: &Matrix<Self>,
    ) -> Result<()>;
    /// Adds the sum of the rows.
    fn add_columns(&self, sums: &Words<Self>, rows: &Matrix<Self>) -> Result<()>;

    /// `u += bias`, then what the activation makes of it.
    fn activate(
        &self,
        y: &Factor<Self>,
        u: &Matrix<Self>,
        bias: Option<&Words<Self>>,
        activation: Activation,
    ) -> Result<()>;
    /// Puts the gradient of `u` in its place, and as a factor into `du`, which may be the same in f32.
    fn activate_back(
        &self,
        du: &Factor<Self>,
        u: &Matrix<Self>,
        dy: &Matrix<Self>,
        activation: Activation,
    ) -> Result<()>;

    /// Cosine and sine of each position times each frequency, `[positions, 2, frequencies]`.
    fn turns(&self, turns: &Words<Self>, positions: &Words<Self>, frequencies: &Words<Self>) -> Result<()>;
    /// Turns heads in place; row `i` as position `turn_of[i]`, or `i`, -1: not at all.
    fn turn(
        &self,
        x: &Matrix<Self>,
        turns: &Words<Self>,
        turn_of: Option<&Words<Self>>,
        columns: Columns,
        direction: Direction,
    ) -> Result<()>;

    /// Rows of a query tile for heads of this size.
    fn tile(&self, dim: usize) -> usize;
    /// Attention over the batch's keys and the cache's.
    fn attend(
        &self,
        to: &Attended<Self>,
        q: &Matrix<Self>,
        kv: &Matrix<Self>,
        cache: Option<&Matrix<Self>>,
        how: &Attending<Self>,
    ) -> Result<()>;
    /// Its way back, without a cache: the gradients of queries, and of keys and values.
    fn attend_back(
        &self,
        to: (&Matrix<Self>, &Matrix<Self>),
        d_mixed: &Matrix<Self>,
        attended: &Attended<Self>,
        of: (&Matrix<Self>, &Matrix<Self>),
        how: &Attending<Self>,
    ) -> Result<()>;

    /// A product of `x` and a weight `[outputs, inputs]` in the card's kind; `x` and `y` say which is which.
    fn product(
        &self,
        y: &Matrix<Self>,
        x: &Factor<Self>,
        weight: &Words<Self>,
        over: Over,
        onto: Onto,
    ) -> Result<()>;
    /// Adds `dyᵀ · x` to a weight's gradient `[outputs, inputs]` in f32.
    fn add_product(&self, gradient: &Words<Self>, x: &Factor<Self>, dy: &Factor<Self>) -> Result<()>;

    /// `-log p` of each row's target in f64 (0 for target -1) and the likeliest token; the logits' gradient of the sum
    /// times `scale` as a factor, which may be the logits in f32.
    fn judge(
        &self,
        nll: &Words<Self>,
        likeliest: &Words<Self>,
        logits: &Matrix<Self>,
        targets: &Words<Self>,
        gradient: Option<(&Factor<Self>, &Words<Self>)>,
    ) -> Result<()>;
    /// The first of each row's largest numbers, or its first NaN.
    fn likeliest(&self, ids: &Words<Self>, logits: &Matrix<Self>) -> Result<()>;

    /// Adds `scale` times the sum of f64 numbers to the f64 `loss`.
    fn add_loss(&self, loss: &Words<Self>, nll: &Words<Self>, scale: &Words<Self>) -> Result<()>;
    /// The length of all gradients together in f64, and the factor in f32 that shortens it to `max` (0: never).
    fn clip(
        &self,
        norm: &Words<Self>,
        factor: &Words<Self>,
        gradients: &[&Words<Self>],
        max: f32,
    ) -> Result<()>;
    /// A step of AdamW with [`crate::train::adamw::Factors`] as seven f32: keep, weight, beta2, weight2, correction2,
    /// eps, step.
    fn step(&self, tensor: &TensorOn<Self>, factors: &Words<Self>, clip: &Words<Self>) -> Result<()>;
}
