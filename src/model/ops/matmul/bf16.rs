//! Products of bf16 operands with f32 sums by the matrix unit.
//!
//! Knows the layout of tiles and how operands are brought into it. It does not know the unit's instructions, nor
//! which thread computes what.

use half::slice::HalfFloatSliceExt;
use pulp::bytemuck::cast;
use pulp::x86::V4;
use pulp::{Simd, f32x16};
use rayon::prelude::*;
use std::arch::x86_64::{__m256i, __m512, _CMP_UNORD_Q};
use std::cell::Cell;
use std::ops::Range;

use super::amx::{Ahead, SIDE, STEP, Session, Sums, TILE, Unit};
use super::pack::round_to_bf16;
use super::{
    Addend, Block, From, Kernel, Numbers, Operand, PANEL, STRIP, StoredRows, Threads, each, pairs, scratch,
    strips,
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
            each(threads, out, |(out, x): (&mut [u16], &[f32])| pack_rows(simd, x, depth, blocks, out));
            f(&Tiles { unit, simd, packed, starts, steps });
        });
    }
}

/// Rounds at most sixteen rows into their tiles `[step, 16, 32]`.
fn pack_rows(simd: V4, x: &[f32], depth: usize, blocks: &[Range<usize>], out: &mut [u16]) {
    let steps = blocks
        .iter()
        .flat_map(|block| block.clone().step_by(STEP).map(move |start| start..block.end.min(start + STEP)));
    let (tiles, _) = out.as_chunks_mut::<TILE>();
    let tiles = tiles.iter_mut().zip(steps);
    simd.vectorize(
        #[inline(always)]
        move || {
            for (tile, step) in tiles {
                if x.len() < SIDE * depth {
                    tile.fill(0);
                }
                for (out, x) in tile.as_chunks_mut::<STEP>().0.iter_mut().zip(x.chunks_exact(depth)) {
                    let (first, second) = x[step.clone()].split_at(step.len().min(SIDE));
                    let first = rounded(simd, cast(vector(simd, first)));
                    let second = rounded(simd, cast(vector(simd, second)));
                    *out = cast([first, second]);
                }
            }
        },
    );
}

/// Sixteen numbers rounded to bf16, to nearest even; NaN stays NaN.
#[inline(always)]
fn rounded(simd: V4, x: __m512) -> __m256i {
    let f = simd.avx512f;
    let bits = cast(x);
    let odd = f._mm512_and_si512(f._mm512_srli_epi32::<16>(bits), f._mm512_set1_epi32(1));
    let up = f._mm512_add_epi32(bits, f._mm512_add_epi32(odd, f._mm512_set1_epi32(0x7fff)));
    let quiet_nan = f._mm512_or_si512(bits, f._mm512_set1_epi32(0x0040_0000));
    let is_nan = f._mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    f._mm512_cvtepi32_epi16(f._mm512_srli_epi32::<16>(f._mm512_mask_blend_epi32(is_nan, up, quiet_nan)))
}

impl Kernel for Tiles<'_> {
    fn add(&self, blocks: &[Block], y: &mut [&mut [f32]], columns: usize, from: From) {
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
                let next = strips.peek().and_then(|(block, columns)| self.laid_out(block, columns));
                let start = self.starts[block.index];
                for (column, weight) in columns.clone().step_by(PANEL).zip(weight.chunks_exact(steps * TILE))
                {
                    let panel = Panel { first_step: start, weight, next: next.unwrap_or(&[]) };
                    let columns = column..columns.end.min(column + PANEL);
                    self.add_panel(&session, &panel, y, columns, from.of(blocks, block));
                }
            }
        });
    }
}

/// A panel of the weight: some steps of the depth for 32 columns.
struct Panel<'a> {
    /// Which of x's steps is the first.
    first_step: usize,
    weight: &'a [u32],
    /// The panel after this one, if it is laid out already.
    next: &'a [u32],
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

    /// All rows of x times one panel of the weight.
    fn add_panel(
        &self,
        session: &Session,
        panel: &Panel,
        y: &mut [&mut [f32]],
        columns: Range<usize>,
        from: From,
    ) {
        let mut sums = Sums::new();
        let tiles = panel.first_step * TILE..panel.first_step * TILE + panel.weight.len();
        let mut next = panel.next.chunks(Ahead::reach(panel.weight.len() / TILE));
        let pairs = self.packed.chunks(2 * self.steps * TILE).zip(y.chunks_mut(2 * SIDE));
        for (pair, (x, y)) in pairs.enumerate() {
            let (first, second) = x.split_at(self.steps * TILE);
            if second.is_empty() {
                session.multiply_one(&first[tiles.clone()], panel.weight, &mut sums);
            } else {
                let ahead = Ahead::new(next.next().unwrap_or(&[]), y, columns.start);
                session.multiply_two(
                    [&first[tiles.clone()], &second[tiles.clone()]],
                    panel.weight,
                    &mut sums,
                    &ahead,
                );
            }
            add_sums(self.simd, &sums, (y, pair * 2 * SIDE), columns.clone(), from);
        }
    }
}

/// Puts a tile's sums, and what they are added to, into the rows and columns of y that exist. `row` is the first of
/// the rows.
fn add_sums(simd: V4, sums: &Sums, (y, row): (&mut [&mut [f32]], usize), columns: Range<usize>, from: From) {
    simd.vectorize(
        #[inline(always)]
        || {
            for (r, y) in y.iter_mut().enumerate() {
                for (half, y) in y[columns.clone()].chunks_mut(SIDE).enumerate() {
                    let first = columns.start + half * SIDE;
                    let sums = cast(sums.0[r / SIDE][half][r % SIDE]);
                    let sums = match from.addend(row + r, &(first..first + y.len())) {
                        Addend::Nothing => sums,
                        Addend::Output => simd.add_f32s(vector(simd, y), sums),
                        Addend::One(other) => simd.add_f32s(vector(simd, other), sums),
                        Addend::Two(one, other) => {
                            simd.add_f32s(simd.add_f32s(vector(simd, one), vector(simd, other)), sums)
                        }
                    };
                    match y.first_chunk_mut() {
                        Some(y) => *y = cast::<_, [f32; SIDE]>(sums),
                        None => simd.partial_store_f32s(y, sums),
                    }
                }
            }
        },
    );
}

/// At most sixteen numbers, filled up with zeros.
#[inline(always)]
fn vector(simd: V4, numbers: &[f32]) -> f32x16 {
    match numbers.first_chunk::<SIDE>() {
        Some(whole) => cast(*whole),
        None => simd.partial_load_f32s(numbers),
    }
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
