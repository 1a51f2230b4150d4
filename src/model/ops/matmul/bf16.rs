//! Products of bf16 operands with f32 sums by the matrix unit.
//!
//! Knows the layout of tiles and how operands are brought into it. It does not know the unit's instructions, nor
//! which thread computes what.

use half::slice::HalfFloatSliceExt;
use pulp::x86::V4;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

use super::amx::{SIDE, STEP, Session, Sums, TILE, Unit};
use super::pack::{Lines, round_to_bf16};
use super::{
    Block, Kernel, Numbers, Onto, Operand, PANEL, STRIP, StoredRows, Threads, each, pairs, scratch, strips,
};

thread_local! {
    static TILES: Cell<Vec<u16>> = const { Cell::new(Vec::new()) };
    static WEIGHT: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
    static WIDENED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Deepest block of a weight: as a packed panel it takes 64 KiB, and every block adds to y once more.
pub(super) const DEPTH: usize = 1024;

/// x rounded to bf16, as tiles `[row tile, step, 16, 32]`. Every block of the depth begins a new step; rows and depth
/// that x does not have are 0.
pub(super) struct Tiles<'a> {
    unit: Unit,
    simd: V4,
    packed: &'a [u16],
    /// Step at which a block of the depth begins.
    starts: Vec<usize>,
    /// Steps of all blocks.
    steps: usize,
}

impl Tiles<'_> {
    /// Packs x `[rows, depth]` with its depth in the given blocks, and lends it to `f`.
    pub fn with(
        (unit, simd): (Unit, V4),
        x: &[f32],
        rows: usize,
        blocks: &[Range<usize>],
        threads: Threads,
        f: impl FnOnce(&Tiles),
    ) {
        let depth = x.len() / rows;
        let mut steps = 0;
        let starts = blocks
            .iter()
            .map(|block| {
                let start = steps;
                steps += block.len().div_ceil(STEP);
                start
            })
            .collect();
        scratch::with(&TILES, rows.div_ceil(SIDE) * steps * TILE, |packed| {
            let out = packed.chunks_exact_mut(steps * TILE).zip(x.chunks(SIDE * depth)).collect();
            each(threads, out, |(out, x): (&mut [u16], &[f32])| pack_rows(x, depth, blocks, out));
            f(&Tiles { unit, simd, packed, starts, steps });
        });
    }
}

/// Rounds at most sixteen rows into their tiles `[step, 16, 32]`.
fn pack_rows(x: &[f32], depth: usize, blocks: &[Range<usize>], out: &mut [u16]) {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            let (tiles, _) = out.as_chunks_mut::<TILE>();
            let steps = blocks.iter().flat_map(|block| {
                block.clone().step_by(STEP).map(move |start| start..block.end.min(start + STEP))
            });
            for (tile, step) in tiles.iter_mut().zip(steps) {
                if step.len() < STEP || x.len() < SIDE * depth {
                    tile.fill(0);
                }
                for (out, x) in tile.chunks_exact_mut(STEP).zip(x.chunks_exact(depth)) {
                    for (out, &x) in out.iter_mut().zip(&x[step.clone()]) {
                        *out = (round_to_bf16(x).to_bits() >> 16) as u16;
                    }
                }
            }
        },
    );
}

impl Kernel for Tiles<'_> {
    fn add(&self, blocks: &[Block], y: &mut [&mut [f32]], columns: usize, onto: Onto) {
        let session = self.unit.configure();
        let mut strips = strips(blocks, columns).peekable();
        scratch::with(&WEIGHT, STRIP, |weight| {
            while let Some((block, columns)) = strips.next() {
                let steps = block.depth.len().div_ceil(STEP);
                let panels = columns.len().div_ceil(PANEL);
                let weight = match self.laid_out(block, &columns) {
                    Some(panel) => panel,
                    None => {
                        let weight = &mut weight[..panels * steps * TILE];
                        pack_weight(self.simd, block, columns.clone(), weight);
                        &*weight
                    }
                };
                let mut next = strips.peek().map_or(Lines::none(), |(block, columns)| {
                    match self.laid_out(block, columns) {
                        Some(panel) => Lines::new(panel, panel.len(), 0..1, 0..panel.len()),
                        None => block.lines(columns.clone()),
                    }
                });
                let lines = next.len().div_ceil(panels * y.len().div_ceil(2 * SIDE));
                let start = self.starts[block.index];
                for (column, weight) in columns.clone().step_by(PANEL).zip(weight.chunks_exact(steps * TILE))
                {
                    let columns = column..columns.end.min(column + PANEL);
                    let tiles = start..start + steps;
                    self.add_panel(
                        &session,
                        tiles,
                        weight,
                        (&mut *y, onto.of(blocks, block)),
                        columns,
                        || next.prefetch(lines),
                    );
                }
            }
        });
    }
}

/// All panels of an operand of one part.
pub(super) fn panels(simd: V4, operand: &Operand) -> scratch::Lined<u32> {
    let steps = |block: &Block| block.depth.len().div_ceil(STEP) * TILE;
    let depths = operand.depths(DEPTH).map(|(_, depth)| depth.len().div_ceil(STEP));
    let panel = depths.sum::<usize>() * TILE;
    let mut panels = scratch::Lined::zeros(operand.columns.div_ceil(PANEL) * panel);
    panels.par_chunks_mut(panel).enumerate().for_each(|(i, mut panel)| {
        let columns = i * PANEL..operand.columns.min((i + 1) * PANEL);
        for block in operand.blocks(&columns, DEPTH) {
            let (out, rest) = panel.split_at_mut(steps(&block));
            pack_weight(simd, &block, 0..columns.len(), out);
            panel = rest;
        }
    });
    panels
}

impl Tiles<'_> {
    /// The block's part of a panel that was laid out before.
    fn laid_out<'b>(&self, block: &Block<'b>, columns: &Range<usize>) -> Option<&'b [u32]> {
        let panels = block.tiled?;
        let first = block.panel(columns) * self.steps + self.starts[block.index];
        Some(&panels[first * TILE..(first + block.depth.len().div_ceil(STEP)) * TILE])
    }

    /// All rows of x times one packed panel of the weight.
    fn add_panel(
        &self,
        session: &Session,
        steps: Range<usize>,
        weight: &[u32],
        (y, onto): (&mut [&mut [f32]], Onto),
        columns: Range<usize>,
        mut prefetch: impl FnMut(),
    ) {
        let mut sums = Sums::new();
        let tiles = steps.start * TILE..steps.end * TILE;
        for (x, y) in self.packed.chunks(2 * self.steps * TILE).zip(y.chunks_mut(2 * SIDE)) {
            prefetch();
            let (first, second) = x.split_at(self.steps * TILE);
            if second.is_empty() {
                session.multiply_one(&first[tiles.clone()], weight, &mut sums);
            } else {
                session.multiply_two([&first[tiles.clone()], &second[tiles.clone()]], weight, &mut sums);
            }
            add_sums(&sums, y, columns.clone(), onto);
        }
    }
}

/// Puts a tile's sums into the rows and columns of y that exist, or adds them.
fn add_sums(sums: &Sums, y: &mut [&mut [f32]], columns: Range<usize>, onto: Onto) {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            for (row, y) in y.iter_mut().enumerate() {
                let [left, right] = &sums.0[row / SIDE];
                let (left, right) = (&left[row % SIDE], &right[row % SIDE]);
                let y = &mut y[columns.clone()];
                let (y_left, y_right) = y.split_at_mut(y.len().min(SIDE));
                if onto == Onto::Nothing {
                    y_left.copy_from_slice(&left[..y_left.len()]);
                    y_right.copy_from_slice(&right[..y_right.len()]);
                    continue;
                }
                y_left.iter_mut().zip(left).for_each(|(y, sum)| *y += sum);
                y_right.iter_mut().zip(right).for_each(|(y, sum)| *y += sum);
            }
        },
    );
}

/// Packs a strip of a block as pairs of bf16 `[panel, step, 2, 16 pairs, 16 columns]`.
fn pack_weight(simd: V4, block: &Block, columns: Range<usize>, out: &mut [u32]) {
    if let Numbers::BF16(numbers) = &block.part.numbers {
        let numbers: &[u16] = numbers.as_slice().reinterpret_cast();
        let stored = block.stored_columns.start + columns.start..block.stored_columns.start + columns.end;
        let depth = block.stored_depth.clone();
        return match block.rows {
            StoredRows::Depth => pairs::of_rows(simd, numbers, block.part.stride, depth, stored, out),
            StoredRows::Columns => pairs::along_rows(simd, numbers, block.part.stride, stored, depth, out),
        };
    }
    let panels = columns.len().div_ceil(PANEL);
    scratch::with(&WIDENED, panels * block.depth.len() * PANEL, |widened| {
        block.pack(columns, widened);
        let out_len = out.len() / panels;
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                let out = out.chunks_exact_mut(out_len);
                for (panel, out) in widened.chunks_exact(block.depth.len() * PANEL).zip(out) {
                    pair_up(panel, out);
                }
            },
        );
    });
}

/// Rounds a panel `[depth, 32]` into pairs.
#[inline(always)]
pub(super) fn pair_up(panel: &[f32], out: &mut [u32]) {
    let (rows, _) = panel.as_chunks::<PANEL>();
    let (tiles, _) = out.as_chunks_mut::<TILE>();
    for (tile, rows) in tiles.iter_mut().zip(rows.chunks(STEP)) {
        if rows.len() < STEP {
            tile.fill(0);
        }
        let (left, right) = tile.split_at_mut(TILE / 2);
        let out = left.chunks_exact_mut(SIDE).zip(right.chunks_exact_mut(SIDE));
        for (rows, (left, right)) in rows.chunks(2).zip(out) {
            let (even, odd) = (&rows[0], rows.get(1).unwrap_or(&[0.0; PANEL]));
            for column in 0..SIDE {
                left[column] = pair(even[column], odd[column]);
                right[column] = pair(even[SIDE + column], odd[SIDE + column]);
            }
        }
    }
}

/// Two numbers rounded to bf16, the first in the lower half.
#[inline(always)]
fn pair(first: f32, second: f32) -> u32 {
    round_to_bf16(first).to_bits() >> 16 | round_to_bf16(second).to_bits()
}
