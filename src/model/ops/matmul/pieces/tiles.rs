//! Both products of a piece of bf16 numbers by the bf16 unit.
//!
//! In the first one the piece is the left factor, whose tiles are rows as they were stored; in the second it is the
//! right factor, for which the numbers of two outputs are put side by side.

use half::slice::HalfFloatSliceExt;
use pulp::bytemuck::cast;
use pulp::x86::V4;
use std::cell::Cell;

use super::super::operand::Block;
use super::super::pack::{Lines, Matrix, transposed};
use super::super::pairs::pair;
use super::super::parts::Parts;
use super::super::tiles::pair_up;
use super::super::unit::{Ahead, Begin, SIDE, SQUARE, STEP, Session, Sums, TILE, Target, Unit};
use super::super::weight::Orientation;
use super::super::{Numbers, PANEL, Precision, Weight, scratch};
use super::{Held, Lanes, Shape};
use crate::model::lined::Lined;

thread_local! {
    static PIECE: Cell<Lined<u16>> = const { Cell::new(Lined::new()) };
    static PAIRS: Cell<Lined<u32>> = const { Cell::new(Lined::new()) };
    static ROWS: Cell<Lined<u16>> = const { Cell::new(Lined::new()) };
}

/// Rows rounded to pairs of bf16 `[panel of 32 rows, step, 2, 16 pairs, 16 rows]`.
pub(super) struct Rows {
    unit: Unit,
    simd: V4,
    shape: Shape,
    packed: Lined<u32>,
}

impl Rows {
    /// Packs x `[rows, inputs]`, if there is a bf16 unit that takes the weight as it is stored.
    pub fn new(x: &[f32], shape: Shape, weight: &Weight, precision: Precision) -> Option<Self> {
        let (Precision::BF16, Some(unit), pulp::Arch::V4(simd)) = (precision, Unit::get(), pulp::Arch::new())
        else {
            return None;
        };
        let stored_so = weight.placed_parts().all(|(_, part)| {
            matches!(part.numbers, Numbers::BF16(_)) && part.orientation == Orientation::OutputsByInputs
        });
        if !stored_so || shape.inputs == 0 {
            return None;
        }
        let panel = shape.panels() * TILE;
        let mut packed = Lined::zeros(shape.row_panels() * panel);
        let mut columns = vec![0.0; shape.inputs * PANEL];
        for (i, out) in packed.chunks_exact_mut(panel).enumerate() {
            let rows = i * PANEL..shape.rows.min((i + 1) * PANEL);
            Matrix { numbers: x, stride: shape.inputs }.transpose(rows, 0..shape.inputs, &mut columns, PANEL);
            pair_up(simd, Parts::Rounded, &columns, out);
        }
        Some(Self { unit, simd, shape, packed })
    }

    /// Lends `f` the rows with space for a piece.
    pub fn with(&self, f: impl FnOnce(&mut dyn Held)) {
        let outputs = self.shape.longest().next_multiple_of(STEP);
        let (numbers, row_tiles) = (outputs * self.shape.panels() * STEP, 2 * self.shape.row_panels());
        scratch::with(&PIECE, numbers, |piece| {
            scratch::with(&PAIRS, numbers / 2, |pairs| {
                scratch::with(&ROWS, row_tiles * outputs * SIDE, |x| {
                    let session = self.unit.configure();
                    f(&mut Tiles { rows: self, session, piece, pairs, x, outputs: 0 });
                });
            });
        });
    }
}

struct Tiles<'a> {
    rows: &'a Rows,
    session: Session,
    /// The piece `[32 outputs, step of 32 inputs, 2, 16, 32]`.
    piece: &'a mut [u16],
    /// The piece for the second product: `[panel of 32 inputs, step of 32 outputs, 2, 16 pairs, 16 inputs]`.
    pairs: &'a mut [u32],
    /// What meets the pairs: `[32 rows, step of 32 outputs, 2, 16, 32]`.
    x: &'a mut [u16],
    outputs: usize,
}

impl Tiles<'_> {
    /// Steps of 32 outputs.
    fn steps(&self) -> usize {
        self.outputs.div_ceil(STEP)
    }

    /// Numbers of the piece, filled up to whole steps.
    fn len(&self) -> usize {
        2 * self.steps() * self.rows.shape.panels() * TILE
    }
}

impl Held for Tiles<'_> {
    fn fetch(&mut self, piece: &Block) {
        self.outputs = piece.depth.len();
        let Numbers::BF16(numbers) = &piece.part.numbers else { return };
        let (inputs, len) = (self.rows.shape.inputs, self.len());
        let (lines, _) = self.piece[..len].as_chunks_mut::<STEP>();
        if self.outputs % STEP + inputs % STEP > 0 {
            lines.fill([0; STEP]);
        }
        let first = piece.stored_depth.start * inputs;
        let numbers: &[u16] = &numbers.as_slice().reinterpret_cast()[first..][..self.outputs * inputs];
        self.rows.simd.vectorize(
            #[inline(always)]
            move || {
                let tiles = lines.chunks_exact_mut(inputs.div_ceil(STEP) * SQUARE);
                for (lines, outputs) in tiles.zip(numbers.chunks(SQUARE * inputs)) {
                    for (at, output) in outputs.chunks_exact(inputs).enumerate() {
                        let (whole, rest) = output.as_chunks::<STEP>();
                        let mut lines = lines[at..].iter_mut().step_by(SQUARE);
                        for (numbers, line) in whole.iter().zip(lines.by_ref()) {
                            *line = *numbers;
                        }
                        if let Some(line) = lines.next() {
                            line[..rest.len()].copy_from_slice(rest);
                        }
                    }
                }
            },
        );
    }

    fn forward(&self, y: &mut [Lanes], next: &mut Lines) {
        let panels = self.rows.shape.panels();
        let lines = next.len().div_ceil(self.rows.shape.row_panels() * self.steps());
        let mut sums = Sums::new();
        for (x, y) in self.rows.packed.chunks_exact(panels * TILE).zip(y.chunks_exact_mut(self.outputs)) {
            let pieces = self.piece[..self.len()].chunks_exact(2 * panels * TILE);
            for (piece, y) in pieces.zip(y.chunks_mut(SQUARE)) {
                next.prefetch(lines);
                let factors = (piece, x);
                match y.first_chunk_mut() {
                    Some(all) => multiply(&self.session, factors, Begin::Zero, Target::of(all)),
                    None => {
                        multiply(&self.session, factors, Begin::Zero, Target::of(&mut sums.0));
                        y.copy_from_slice(&sums.0[..y.len()]);
                    }
                }
            }
        }
    }

    fn add_backward(&mut self, x: &[Lanes], sums: &mut [Lanes]) {
        let (steps, panels, rows) = (self.steps(), self.rows.shape.panels(), self.rows.shape.rows);
        let len = self.len();
        let pairs = &mut self.pairs[..len / 2];
        pair_outputs(self.rows.simd, &self.piece[..len], panels, pairs);
        for (x, tiles) in x.chunks_exact(self.outputs).zip(self.x.chunks_mut(2 * steps * TILE)) {
            pack_rows(self.rows.simd, x, tiles);
        }
        let mut made = Sums::new();
        for (pairs, sums) in pairs.chunks_exact(steps * TILE).zip(sums.chunks_exact_mut(rows)) {
            for (x, sums) in self.x.chunks(2 * steps * TILE).zip(sums.chunks_mut(SQUARE)) {
                match sums.first_chunk_mut() {
                    Some(all) => multiply(&self.session, (x, pairs), Begin::There, Target::of(all)),
                    None => {
                        made.0[..sums.len()].copy_from_slice(sums);
                        multiply(&self.session, (x, pairs), Begin::There, Target::of(&mut made.0));
                        sums.copy_from_slice(&made.0[..sums.len()]);
                    }
                }
            }
        }
    }
}

fn multiply(session: &Session, factors: (&[u16], &[u32]), begin: Begin, target: Target) {
    session.multiply(Parts::Rounded, factors, begin, target, &Ahead::none());
}

/// Puts every two outputs' numbers side by side: from `[32 outputs, panel of 32 inputs, 2, 16, 32]` to `[panel, step of
/// 32 outputs, 2, 16 pairs, 16 inputs]`.
fn pair_outputs(simd: V4, piece: &[u16], panels: usize, pairs: &mut [u32]) {
    let steps = piece.len() / (2 * panels * TILE);
    let ((tiles, _), (pairs, _)) = (piece.as_chunks::<TILE>(), pairs.as_chunks_mut::<TILE>());
    simd.vectorize(
        #[inline(always)]
        move || {
            for (i, tile) in tiles.iter().enumerate() {
                let (step, panel, half) = (i / (2 * panels), i / 2 % panels, i % 2);
                let (lines, _) = pairs[panel * steps + step].as_chunks_mut::<SIDE>();
                let (left, right) = lines.split_at_mut(SIDE);
                let rows = half * SIDE / 2..(half + 1) * SIDE / 2;
                let (outputs, _) = tile.as_chunks::<SIDE>();
                let (outputs, _) = outputs.as_chunks::<4>();
                for ((two, left), right) in outputs.iter().zip(&mut left[rows.clone()]).zip(&mut right[rows])
                {
                    *left = pair(simd, two[0], two[2]);
                    *right = pair(simd, two[1], two[3]);
                }
            }
        },
    );
}

/// Rounds x `[outputs, 32 rows]` into tiles `[step of 32 outputs, 2, 16 rows, 32]`.
fn pack_rows(simd: V4, x: &[Lanes], tiles: &mut [u16]) {
    let (tiles, _) = tiles.as_chunks_mut::<TILE>();
    simd.vectorize(
        #[inline(always)]
        move || {
            let mut pairs = [0; TILE];
            for (x, tiles) in x.chunks(STEP).zip(tiles.chunks_exact_mut(2)) {
                pair_up(simd, Parts::Rounded, x.as_flattened(), &mut pairs);
                let (halves, _) = pairs.as_chunks::<{ TILE / 2 }>();
                for (pairs, tile) in halves.iter().zip(tiles) {
                    let mut block = [simd.avx512f._mm512_setzero_ps(); SIDE];
                    for (vector, pairs) in block.iter_mut().zip(pairs.as_chunks::<SIDE>().0) {
                        *vector = cast(*pairs);
                    }
                    for (line, row) in tile.as_chunks_mut::<STEP>().0.iter_mut().zip(transposed(simd, block))
                    {
                        *line = cast(row);
                    }
                }
            }
        },
    );
}
