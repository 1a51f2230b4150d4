//! Both products of a piece in f32 (or of bf16-rounded operands with f32 sums) on any processor.
//!
//! The first has a lane for every row, the second one for every input, so that either reads the piece as it was
//! stored, one output's weights after another: nothing is transposed, and no sum is spread over lanes.

use pulp::{Simd, WithSimd};
use std::cell::Cell;

use super::super::operand::Block;
use super::super::pack::{Lines, Matrix, round_all_to_bf16};
use super::super::{PANEL, Precision, scratch};
use super::{Held, Lanes, Shape};
use crate::model::lined::Lined;

thread_local! {
    static PIECE: Cell<Lined<f32>> = const { Cell::new(Lined::new()) };
}

/// Panels of 32 inputs that are summed up at a time: the rows' part of them stays in the first cache.
const DEPTH: usize = 4;

/// Rows as `[panel of 32 rows, inputs, 32]`, with zeros up to whole panels of inputs.
pub(super) struct Rows {
    shape: Shape,
    precision: Precision,
    packed: Lined<f32>,
}

impl Rows {
    /// Packs x `[rows, inputs]`.
    pub fn new(x: &[f32], shape: Shape, precision: Precision) -> Self {
        let panel = shape.panels() * PANEL * PANEL;
        let mut packed = Lined::zeros(shape.row_panels() * panel);
        if panel > 0 {
            for (i, out) in packed.chunks_exact_mut(panel).enumerate() {
                let rows = i * PANEL..shape.rows.min((i + 1) * PANEL);
                let out = &mut out[..shape.inputs * PANEL];
                Matrix { numbers: x, stride: shape.inputs }.transpose(rows, 0..shape.inputs, out, PANEL);
            }
        }
        if precision == Precision::BF16 {
            round_all_to_bf16(&mut packed);
        }
        Self { shape, precision, packed }
    }

    /// Lends `f` the rows with space for a piece.
    pub fn with(&self, f: impl FnOnce(&mut dyn Held)) {
        let len = self.shape.longest() * self.shape.panels() * PANEL;
        scratch::with(&PIECE, len, |space| f(&mut Vectors { rows: self, space, outputs: 0 }));
    }
}

struct Vectors<'a> {
    rows: &'a Rows,
    /// The piece `[panel of 32 inputs, outputs, 32]`.
    space: &'a mut [f32],
    outputs: usize,
}

impl Vectors<'_> {
    fn piece_len(&self) -> usize {
        self.rows.shape.panels() * self.outputs * PANEL
    }
}

impl Held for Vectors<'_> {
    fn fetch(&mut self, piece: &Block) {
        self.outputs = piece.depth.len();
        let (inputs, panel) = (self.rows.shape.inputs, self.outputs * PANEL);
        let len = self.piece_len();
        let space = &mut self.space[..len];
        for (first, out) in (0..inputs).step_by(PANEL).zip(space.chunks_exact_mut(panel)) {
            piece.pack(0..self.outputs, first..inputs.min(first + PANEL), out);
        }
        if self.rows.precision == Precision::BF16 {
            round_all_to_bf16(space);
        }
    }

    fn forward(&self, y: &mut [Lanes], next: &mut Lines) {
        let shape = self.rows.shape;
        if shape.inputs == 0 {
            return y.fill([0.0; PANEL]);
        }
        let ((piece, _), (x, _)) = (self.space[..self.piece_len()].as_chunks(), self.rows.packed.as_chunks());
        let times = 4 * shape.row_panels() * self.outputs.div_ceil(TILE) * shape.panels();
        let lines = next.len().div_ceil(times);
        let row_panels = x.chunks_exact(shape.panels() * PANEL).zip(y.chunks_exact_mut(self.outputs));
        for (i, (x, y)) in row_panels.enumerate() {
            let rows = PANEL.min(shape.rows - i * PANEL);
            pulp::Arch::new().dispatch(Forward { x, rows, piece, y, next, lines });
        }
    }

    fn add_backward(&mut self, x: &[Lanes], sums: &mut [Lanes]) {
        let ((piece, _), outputs) = (self.space[..self.piece_len()].as_chunks(), self.outputs);
        pulp::Arch::new().dispatch(Backward { x, piece, outputs, sums, rows: self.rows.shape.rows });
    }
}

/// Outputs that are summed side by side, where there are 32 registers; half as many where there are 16.
const TILE: usize = 12;

/// `y[o, row] = Σ_i x[i, row] · piece[o, i]` for a panel of rows.
struct Forward<'a, 'n> {
    x: &'a [Lanes],
    /// How many rows there are.
    rows: usize,
    piece: &'a [Lanes],
    y: &'a mut [Lanes],
    /// What will be fetched next: some lines are brought closer with every panel of every tile.
    next: &'a mut Lines<'n>,
    lines: usize,
}

impl WithSimd for Forward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        self.y.fill([0.0; PANEL]);
        let vectors = self.rows.div_ceil(S::F32_LANES);
        for first in (0..self.x.len() / PANEL).step_by(DEPTH) {
            for vector in (0..vectors).step_by(2) {
                let offset = vector * S::F32_LANES;
                let mut output = 0;
                while output < self.y.len() {
                    let left = self.y.len() - output;
                    output += if vector + 1 == vectors {
                        self.add_outputs::<S, 1>(simd, first, offset, output, left)
                    } else {
                        self.add_outputs::<S, 2>(simd, first, offset, output, left)
                    };
                }
            }
        }
    }
}

impl Forward<'_, '_> {
    /// Takes the largest tile that fits, and says how many outputs it has.
    #[inline(always)]
    fn add_outputs<S: Simd, const VECTORS: usize>(
        &mut self,
        simd: S,
        panel: usize,
        offset: usize,
        output: usize,
        left: usize,
    ) -> usize {
        match left {
            TILE.. if S::REGISTER_COUNT >= 32 => {
                self.add_tile::<S, VECTORS, TILE>(simd, panel, offset, output);
                TILE
            }
            6.. => {
                self.add_tile::<S, VECTORS, 6>(simd, panel, offset, output);
                6
            }
            _ => {
                self.add_tile::<S, VECTORS, 1>(simd, panel, offset, output);
                1
            }
        }
    }

    /// Adds what some panels of inputs contribute to a few outputs of `VECTORS` vectors of rows, summed in registers.
    #[inline(always)]
    fn add_tile<S: Simd, const VECTORS: usize, const OUTPUTS: usize>(
        &mut self,
        simd: S,
        panel: usize,
        offset: usize,
        output: usize,
    ) {
        let outputs = self.y.len();
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; OUTPUTS];
        let x = self.x[panel * PANEL..].chunks_exact(PANEL);
        for (x, piece) in x.zip(self.piece[panel * outputs..].chunks_exact(outputs)).take(DEPTH) {
            let Some(piece) = piece[output..].first_chunk::<OUTPUTS>() else { return };
            for (k, x) in x.iter().enumerate().take(PANEL) {
                if k % 8 == 0 {
                    self.next.prefetch(self.lines);
                }
                let Some(x) = S::as_simd_f32s(&x[offset..]).0.first_chunk::<VECTORS>() else { return };
                let x = *x;
                for (sums, piece) in sums.iter_mut().zip(piece) {
                    let piece = simd.splat_f32s(piece[k]);
                    for (sum, x) in sums.iter_mut().zip(x) {
                        *sum = simd.mul_add_e_f32s(piece, x, *sum);
                    }
                }
            }
        }
        for (y, sums) in self.y[output..].iter_mut().zip(sums) {
            for (y, sum) in S::as_mut_simd_f32s(&mut y[offset..]).0.iter_mut().zip(sums) {
                *y = simd.add_f32s(*y, sum);
            }
        }
    }
}

/// `sums[row, i] += Σ_o x[o, row] · piece[o, i]` for all panels of rows.
struct Backward<'a> {
    x: &'a [Lanes],
    piece: &'a [Lanes],
    outputs: usize,
    /// `[panel of 32 inputs, rows, 32]`
    sums: &'a mut [Lanes],
    rows: usize,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, piece, outputs, sums, rows } = self;
        let most = if S::REGISTER_COUNT >= 32 { 14 } else { 6 };
        for (piece, sums) in piece.chunks_exact(outputs).zip(sums.chunks_exact_mut(rows)) {
            for (x, sums) in x.chunks_exact(outputs).zip(sums.chunks_mut(PANEL)) {
                // As evenly as possible, so that no tile is much smaller than the others.
                let tiles = sums.len().div_ceil(most);
                for tile in 0..tiles {
                    let rows = sums.len() * tile / tiles..sums.len() * (tile + 1) / tiles;
                    let first = rows.start;
                    for offset in (0..PANEL).step_by(2 * S::F32_LANES) {
                        add_rows(simd, x, first, piece, offset, &mut sums[rows.clone()]);
                    }
                }
            }
        }
    }
}

/// Chooses the tile of as many rows as there are sums.
#[inline(always)]
fn add_rows<S: Simd>(simd: S, x: &[Lanes], row: usize, piece: &[Lanes], offset: usize, sums: &mut [Lanes]) {
    macro_rules! tile {
        ($($rows:literal)*) => {
            match sums.len() {
                $($rows => add_tile::<S, $rows>(simd, x, row, piece, offset, sums),)*
                _ => {}
            }
        };
    }
    if S::REGISTER_COUNT >= 32 { tile!(1 2 3 4 5 6 7 8 9 10 11 12 13 14) } else { tile!(1 2 3 4 5 6) }
}

/// `sums[r] += Σ_o x[o, row + r] · piece[o]` for two vectors of inputs, summed in registers.
#[inline(always)]
fn add_tile<S: Simd, const ROWS: usize>(
    simd: S,
    x: &[Lanes],
    row: usize,
    piece: &[Lanes],
    offset: usize,
    into: &mut [Lanes],
) {
    let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
    for (x, piece) in x.iter().zip(piece) {
        let Some(x) = x[row..].first_chunk::<ROWS>() else { return };
        let Some(&piece) = S::as_simd_f32s(&piece[offset..]).0.first_chunk::<2>() else { return };
        for (sums, &x) in sums.iter_mut().zip(x) {
            let x = simd.splat_f32s(x);
            sums[0] = simd.mul_add_e_f32s(x, piece[0], sums[0]);
            sums[1] = simd.mul_add_e_f32s(x, piece[1], sums[1]);
        }
    }
    for (into, sums) in into.iter_mut().zip(sums) {
        for (into, sum) in S::as_mut_simd_f32s(&mut into[offset..]).0.iter_mut().zip(sums) {
            *into = simd.add_f32s(*into, sum);
        }
    }
}
