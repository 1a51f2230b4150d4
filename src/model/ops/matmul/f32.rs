//! Products in f32 (or of bf16-rounded operands with f32 sums) on any processor.
//!
//! Knows the layout of packed panels and how to keep a tile of sums in registers. It does not know whose rows and
//! columns they are, nor which thread computes what.

use pulp::{Simd, WithSimd};
use std::cell::Cell;
use std::ops::Range;

use super::operand::{Block, StoredRows, strips};
use super::pack::{LANES, Lines, Matrix, prefetch, prefetch_ahead, round_all_to_bf16};
use super::{Addend, From, Kernel, PANEL, Precision, Threads, each, scratch};
use crate::model::lined::Lined;

thread_local! {
    static ROWS: Cell<Lined<f32>> = const { Cell::new(Lined::new()) };
    static WEIGHT: Cell<Lined<f32>> = const { Cell::new(Lined::new()) };
}

/// Deepest block of a weight. With 32 columns it shares the caches with a panel of x; for few rows it is less deep
/// and wider, because then all time goes into reading it.
pub(super) fn deepest(rows: usize) -> usize {
    if rows <= 32 { 96 } else { 384 }
}

/// Numbers of a strip of panels: few enough for the second cache.
const STRIP: usize = 384 * 4 * PANEL;

/// Columns to pack at once: where the depth counts the stored rows, several panels, so that rows are read in long
/// pieces.
fn strip(block: &Block) -> usize {
    match block.rows {
        StoredRows::Depth => STRIP / block.depth.len().next_multiple_of(PANEL) / PANEL * PANEL,
        StoredRows::Columns => PANEL,
    }
}

/// Panels of x that are met by all panels of a strip before the next ones are: 800 KB at the deepest.
const ROW_PANELS: usize = 32;

/// x packed into panels of a few rows, each `[depth, 16]`, so that what meets one row of the weight lies together.
pub(super) struct Vectors<'a> {
    pub packed: &'a [f32],
    pub panels: Panels,
    pub depth: usize,
    pub precision: Precision,
}

impl Vectors<'_> {
    /// Packs x `[rows, depth]` and lends it to `f`.
    pub fn with(x: &[f32], rows: usize, precision: Precision, threads: Threads, f: impl FnOnce(&Vectors)) {
        let depth = x.len() / rows;
        let panels = Panels { rows, count: rows.div_ceil(panel_rows()) };
        scratch::with(&ROWS, panels.count * depth * LANES, |packed| {
            let out = packed.chunks_exact_mut(depth * LANES).enumerate().collect();
            each(threads, out, |(panel, out): (usize, &mut [f32])| {
                Matrix { numbers: x, stride: depth }.transpose(panels.rows(panel), 0..depth, out, LANES);
                if precision == Precision::BF16 {
                    round_all_to_bf16(out);
                }
            });
            f(&Vectors { packed, panels, depth, precision });
        });
    }
}

impl Kernel for Vectors<'_> {
    fn add(&self, blocks: &[Block], next: Option<&Block>, y: &mut [&mut [f32]], columns: usize, from: From) {
        scratch::with(&WEIGHT, STRIP, |weight| {
            for ((block, columns), next) in strips(blocks, columns, next, strip) {
                let len = block.depth.len() * PANEL;
                let rounded = self.precision == Precision::BF16;
                let weight = match block.packed(&columns) {
                    Some(panel) if !rounded => panel,
                    _ => {
                        let weight = &mut weight[..columns.len().div_ceil(PANEL) * len];
                        block.pack(0..block.depth.len(), columns.clone(), weight);
                        if rounded {
                            round_all_to_bf16(weight);
                        }
                        weight
                    }
                };
                let mut next = next.map_or(Lines::none(), |(block, columns)| block.lines(columns));
                let lines = next.len().div_ceil(self.panels.count * columns.len().div_ceil(PANEL));
                // Few enough panels of x at a time that they stay in the second cache for all panels of the strip.
                for first in (0..self.panels.count).step_by(ROW_PANELS) {
                    let rows = first..self.panels.count.min(first + ROW_PANELS);
                    for (start, weight) in columns.clone().step_by(PANEL).zip(weight.chunks_exact(len)) {
                        let columns = start..columns.end.min(start + PANEL);
                        let (depth, next, from) = (block.depth.clone(), &mut next, from.of(blocks, block));
                        pulp::Arch::new().dispatch(Panel {
                            x: self,
                            rows: rows.clone(),
                            depth,
                            weight,
                            y,
                            columns,
                            from,
                            next,
                            lines,
                        });
                    }
                }
            }
        });
    }
}

/// How the rows are divided among panels: as evenly as possible, so that no tile is much smaller than the others.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub rows: usize,
    pub count: usize,
}

impl Panels {
    pub fn rows(&self, panel: usize) -> Range<usize> {
        self.rows * panel / self.count..self.rows * (panel + 1) / self.count
    }
}

/// Most rows of a panel: one tile of 14 where there are 32 registers, two tiles of 6 where there are 16.
pub(super) fn panel_rows() -> usize {
    struct Rows;
    impl WithSimd for Rows {
        type Output = usize;

        fn with_simd<S: Simd>(self, _: S) -> usize {
            if S::REGISTER_COUNT >= 32 { 14 } else { 12 }
        }
    }
    pulp::Arch::new().dispatch(Rows)
}

/// Some panels of x times one packed panel of the weight.
pub(super) struct Panel<'a, 'n, 'y> {
    pub x: &'a Vectors<'a>,
    /// Which panels of x.
    pub rows: Range<usize>,
    pub depth: Range<usize>,
    pub weight: &'a [f32],
    pub y: &'a mut [&'y mut [f32]],
    pub columns: Range<usize>,
    pub from: From<'a>,
    /// What will be packed next: it is brought closer meanwhile, some lines with every panel of x.
    pub next: &'a mut Lines<'n>,
    pub lines: usize,
}

impl WithSimd for Panel<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, rows, depth, weight, y, columns, from, next, lines } = self;
        let (weight, _) = weight.as_chunks::<PANEL>();
        let tile_rows = if S::REGISTER_COUNT >= 32 { 14 } else { 6 };
        let panels = x.packed.chunks_exact(x.depth * LANES).enumerate();
        for (panel, packed) in panels.skip(rows.start).take(rows.len()) {
            let (packed, _) = packed[depth.start * LANES..depth.end * LANES].as_chunks::<LANES>();
            let rows = x.panels.rows(panel);
            next.prefetch(lines);
            for first in rows.clone().step_by(tile_rows) {
                let mut y = Target { y: &mut y[first..rows.end.min(first + tile_rows)], row: first, from };
                for offset in (0..columns.len()).step_by(2 * S::F32_LANES) {
                    let columns =
                        columns.start + offset..columns.end.min(columns.start + offset + 2 * S::F32_LANES);
                    add_rows(simd, packed, first - rows.start, weight, offset, &mut y, columns);
                }
            }
        }
    }
}

/// Some rows of y, and what the product is added to there.
struct Target<'a, 's, 'y> {
    y: &'a mut [&'y mut [f32]],
    /// The first of the rows.
    row: usize,
    from: From<'s>,
}

/// Chooses the tile of as many rows as y has; where it takes a whole panel of x, it begins at its row 0.
#[inline(always)]
fn add_rows<S: Simd>(
    simd: S,
    x: &[[f32; LANES]],
    row: usize,
    weight: &[[f32; PANEL]],
    offset: usize,
    y: &mut Target,
    columns: Range<usize>,
) {
    macro_rules! tile {
        ($row:expr; $($rows:literal)*) => {
            match y.y.len() {
                $($rows => add_tile::<S, $rows>(simd, x, $row, weight, offset, y, columns),)*
                _ => {}
            }
        };
    }
    if S::REGISTER_COUNT >= 32 { tile!(0; 1 2 3 4 5 6 7 8 9 10 11 12 13 14) } else { tile!(row; 1 2 3 4 5 6) }
}

/// `y[r, columns] = from + Σ_k x[k, row + r] · weight[k, offset..]` for two vectors of columns, summed in registers.
#[inline(always)]
fn add_tile<S: Simd, const ROWS: usize>(
    simd: S,
    x: &[[f32; LANES]],
    row: usize,
    weight: &[[f32; PANEL]],
    offset: usize,
    Target { y, row: first, from }: &mut Target,
    columns: Range<usize>,
) {
    // Rows of y are far apart: they are asked for before the sums are ready.
    for (r, y) in y.iter().enumerate() {
        prefetch(&y[columns.clone()]);
        if let Addend::One(other) | Addend::Two(other, _) = from.addend(*first + r, &columns) {
            prefetch(other);
        }
    }
    let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
    for (x, weight) in x.iter().zip(weight) {
        prefetch_ahead(x, 0);
        prefetch_ahead(weight, offset);
        if S::F32_LANES == LANES {
            prefetch_ahead(weight, offset + LANES);
        }
        let (weight, _) = S::as_simd_f32s(&weight[offset..]);
        let x: &[f32; ROWS] = x[row..].first_chunk().unwrap_or(&[0.0; ROWS]);
        let weight = [weight[0], weight[1]];
        for (sums, &x) in sums.iter_mut().zip(x) {
            let x = simd.splat_f32s(x);
            sums[0] = simd.mul_add_e_f32s(x, weight[0], sums[0]);
            sums[1] = simd.mul_add_e_f32s(x, weight[1], sums[1]);
        }
    }
    for ((r, y), sums) in y.iter_mut().enumerate().zip(sums) {
        let y = &mut y[columns.clone()];
        let start = match from.addend(*first + r, &columns) {
            Addend::Nothing => None,
            Addend::Output => Some(two_vectors(simd, y)),
            Addend::One(other) => Some(two_vectors(simd, other)),
            Addend::Two(one, other) => {
                let (one, other) = (two_vectors(simd, one), two_vectors(simd, other));
                Some([simd.add_f32s(one[0], other[0]), simd.add_f32s(one[1], other[1])])
            }
        };
        let sums =
            start.map_or(sums, |from| [simd.add_f32s(from[0], sums[0]), simd.add_f32s(from[1], sums[1])]);
        if let (&mut [ref mut first, ref mut second], []) = S::as_mut_simd_f32s(y) {
            (*first, *second) = (sums[0], sums[1]);
            continue;
        }
        let (first, second) = y.split_at_mut(y.len().min(S::F32_LANES));
        simd.partial_store_f32s(first, sums[0]);
        simd.partial_store_f32s(second, sums[1]);
    }
}

/// At most two vectors of numbers, filled up with zeros.
#[inline(always)]
fn two_vectors<S: Simd>(simd: S, numbers: &[f32]) -> [S::f32s; 2] {
    if let (&[first, second], []) = S::as_simd_f32s(numbers) {
        return [first, second];
    }
    let (first, second) = numbers.split_at(numbers.len().min(S::F32_LANES));
    [simd.partial_load_f32s(first), simd.partial_load_f32s(second)]
}
