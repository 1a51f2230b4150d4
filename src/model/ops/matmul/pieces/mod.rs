//! Products of the same rows with a weight piece by piece, in both directions while the piece is at hand.
//!
//! A piece comes from memory once, into the second cache, in a form that both products can read: a vocabulary head
//! is so large that fetching it is much of the work where rows are few. Knows how rows, pieces and sums are laid out.
//! It does not know what is done with the first product before the second, nor which thread works on what.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles;
mod vectors;

use std::ops::Range;

use super::operand::{Block, Operand, Sum};
use super::{Lines, PANEL, Precision, Weight};

/// One number of each of 32 rows, or of each of 32 columns.
pub type Lanes = [f32; PANEL];

/// Rows x `[rows, inputs]`, packed once for the products with all pieces of a weight.
pub struct Packed {
    shape: Shape,
    form: Form,
}

enum Form {
    Vectors(vectors::Rows),
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Tiles(tiles::Rows),
}

/// A few outputs of a weight, close at hand.
pub struct Piece<'a> {
    /// Which outputs.
    pub outputs: Range<usize>,
    /// The piece after this one.
    next: Lines<'a>,
    held: &'a mut dyn Held,
}

#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    inputs: usize,
}

/// A kernel with the rows that it has packed, and space for one piece.
trait Held {
    /// Brings a piece into the space.
    fn fetch(&mut self, piece: &Block);

    /// [`Piece::forward`], while some lines of the next piece are asked for now and then.
    fn forward(&self, y: &mut [Lanes], next: &mut Lines);

    /// [`Piece::add_backward`].
    fn add_backward(&mut self, x: &[Lanes], sums: &mut [Lanes]);
}

impl Packed {
    /// Packs x `[rows, inputs]` for this weight.
    ///
    /// # Panics
    /// x is not made of so many rows of the weight's inputs.
    pub fn new(x: &[f32], rows: usize, weight: &Weight, precision: Precision) -> Self {
        let shape = Shape { rows, inputs: weight.inputs_len() };
        assert_eq!(x.len(), rows * shape.inputs, "x [{rows}, {}]", shape.inputs);
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if let Some(rows) = tiles::Rows::new(x, shape, weight, precision) {
            return Self { shape, form: Form::Tiles(rows) };
        }
        Self { shape, form: Form::Vectors(vectors::Rows::new(x, shape, precision)) }
    }

    /// Zeros `[panel of 32 inputs, rows, 32]` for [`Piece::add_backward`] to add to.
    pub fn sums(&self) -> Vec<Lanes> {
        vec![[0.0; PANEL]; self.shape.panels() * self.shape.rows]
    }

    /// Calls `f` with one piece of these outputs after the other, on the calling thread. Where they are cut depends
    /// on the weight alone.
    pub fn with_pieces(&self, weight: &Weight, outputs: Range<usize>, f: impl FnMut(&mut Piece)) {
        match &self.form {
            Form::Vectors(rows) => rows.with(|held| self.walk(held, weight, outputs, f)),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Form::Tiles(rows) => rows.with(|held| self.walk(held, weight, outputs, f)),
        }
    }

    fn walk(
        &self,
        held: &mut dyn Held,
        weight: &Weight,
        outputs: Range<usize>,
        mut f: impl FnMut(&mut Piece),
    ) {
        let inputs = 0..self.shape.inputs;
        let view = weight.outputs(outputs.clone());
        let blocks = Operand::of(&view, Sum::Outputs).blocks(&inputs, self.shape.longest());
        for (block, next) in blocks.iter().zip(blocks.iter().skip(1).map(Some).chain([None])) {
            held.fetch(block);
            let next = next.map_or(Lines::none(), |block| block.lines(inputs.clone()));
            let outputs = outputs.start + block.depth.start..outputs.start + block.depth.end;
            f(&mut Piece { outputs, next, held });
        }
    }
}

impl Piece<'_> {
    /// `y[row, o] = Σ_i x[row, i] · w[o, i]` for the piece's outputs o, laid out as `[panel of 32 rows, o, 32]`. What
    /// is past the last row means nothing.
    pub fn forward(&mut self, y: &mut [Lanes]) {
        self.held.forward(y, &mut self.next);
    }

    /// `sums[row, i] += Σ_o x[row, o] · w[o, i]` for x `[panel of 32 rows, o, 32]` and sums `[panel of 32 inputs, rows,
    /// 32]`.
    pub fn add_backward(&mut self, x: &[Lanes], sums: &mut [Lanes]) {
        self.held.add_backward(x, sums);
    }
}

impl Shape {
    /// Panels of 32 rows.
    fn row_panels(self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Panels of 32 inputs.
    fn panels(self) -> usize {
        self.inputs.div_ceil(PANEL)
    }

    /// Most outputs of a piece.
    fn longest(self) -> usize {
        (NUMBERS / self.inputs.max(1) / PANEL * PANEL).clamp(PANEL, LONGEST)
    }
}

/// Numbers of a piece: as f32 they take 384 KiB of the second cache, which packed rows and sums share with it.
const NUMBERS: usize = 96 * 1024;

/// Outputs of a piece from which on longer sums would gain nothing.
pub const LONGEST: usize = 192;
