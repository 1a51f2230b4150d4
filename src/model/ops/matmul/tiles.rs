//! Products by the bf16 unit, of bf16 numbers or of f32 numbers that are sums of them.
//!
//! Knows the layout of tiles and how operands are brought into it. It does not know the unit's instructions, nor
//! which thread computes what.

use half::slice::HalfFloatSliceExt;
use pulp::bytemuck::cast;
use pulp::x86::V4;
use pulp::{Simd, f32x16};
use rayon::prelude::*;
use std::arch::x86_64::{__m256i, __m512i};
use std::cell::Cell;
use std::ops::Range;

use super::operand::{Block, Laid, Operand, StoredRows, strips};
use super::pack::{Lines, Matrix, prefetch};
use super::parts::{Parts, parts};
use super::unit::{
    Added, Ahead, Begin, Height, Output, SIDE, SQUARE, STEP, Session, Sums, TILE, Unit, WIDTH, rows_a_step,
};
use super::{Addend, From, Kernel, Left, Numbers, PANEL, Start, Threads, each, pairs, scratch};
use crate::model::lined::Lined;

thread_local! {
    static TILES: Cell<Lined<u16>> = const { Cell::new(Lined::new()) };
    static WEIGHT: Cell<Lined<u32>> = const { Cell::new(Lined::new()) };
    static WIDENED: Cell<Lined<f32>> = const { Cell::new(Lined::new()) };
}

/// Panels of a weight that are packed at once, and met by some rows of x before the next rows are: the second cache
/// holds both.
const PANELS: usize = 4;

/// Those rows of x, in twos of tiles.
const PAIRS: usize = 8;

/// Deepest block of a weight: as a packed panel it takes about 100 KiB at most, and every block adds to y once more.
pub(super) fn deepest(parts: Parts) -> usize {
    match parts {
        Parts::Rounded => 1024,
        Parts::One | Parts::Two | Parts::Three => 576,
    }
}

/// x as tiles `[32 rows, step, part, 2, 16, 32]`. Every block of the depth begins a new step; rows and depth that x does
/// not have are 0.
pub(super) struct Tiles<'a> {
    unit: Unit,
    simd: V4,
    parts: Parts,
    packed: &'a [u16],
    /// Step at which a block of the depth begins.
    starts: Vec<usize>,
    /// Steps of all blocks.
    steps: usize,
}

impl Tiles<'_> {
    /// Packs the rows x with their depth in the given blocks, and lends them to `f`.
    pub fn with(
        (unit, simd): (Unit, V4),
        parts: Parts,
        x: Left,
        rows: usize,
        blocks: &[Range<usize>],
        threads: Threads,
        f: impl FnOnce(&Tiles),
    ) {
        let depth = blocks.last().map_or(0, |block| block.end);
        let (starts, steps) = steps(blocks);
        let pair = steps * parts.of_x() * 2 * TILE;
        scratch::with(&TILES, rows.div_ceil(SQUARE) * pair, |packed| {
            let out = packed.chunks_exact_mut(pair).enumerate().collect();
            each(threads, out, |(i, out): (usize, &mut [u16])| {
                let rows = i * SQUARE..rows.min((i + 1) * SQUARE);
                x.with_some(rows, depth, |x| pack_rows((unit, simd), parts, x, depth, blocks, out));
            });
            f(&Tiles { unit, simd, parts, packed, starts, steps });
        });
    }

    /// Packs these columns of some rows of a matrix as rows of which those are the depth, on the calling thread.
    pub fn with_columns(
        (unit, simd): (Unit, V4),
        parts: Parts,
        matrix: Matrix<f32>,
        depth: Range<usize>,
        columns: Range<usize>,
        f: impl FnOnce(&Tiles),
    ) {
        let (steps, step) = (depth.len().div_ceil(STEP), parts.of_x() * 2 * TILE);
        scratch::with(&TILES, columns.len().div_ceil(SQUARE) * steps * step, |packed| {
            // Some of all columns at a time, so that rows are read in long pieces.
            for (i, start) in depth.clone().step_by(STEP).enumerate() {
                let depth = start..depth.end.min(start + STEP);
                let pairs = packed.chunks_exact_mut(steps * step);
                for (start, out) in columns.clone().step_by(SQUARE).zip(pairs) {
                    let columns = start..columns.end.min(start + SQUARE);
                    let mut rows = [0.0; SQUARE * STEP];
                    let rows = &mut rows[..columns.len() * STEP];
                    matrix.transpose(depth.clone(), columns, rows, STEP);
                    let whole = 0..depth.len();
                    let out = &mut out[i * step..][..step];
                    pack_rows((unit, simd), parts, rows, STEP, std::slice::from_ref(&whole), out);
                }
            }
            f(&Tiles { unit, simd, parts, packed, starts: vec![0], steps });
        });
    }
}

/// At which step of 32 each block of the depth begins, and how many steps all have.
fn steps(blocks: &[Range<usize>]) -> (Vec<usize>, usize) {
    let mut steps = 0;
    let starts = blocks.iter().map(|block| {
        let start = steps;
        steps += block.len().div_ceil(STEP);
        start
    });
    (starts.collect(), steps)
}

/// Packs at most 32 rows into their tiles `[step, part, 2, 16, 32]`.
fn pack_rows(
    processor: (Unit, V4),
    parts: Parts,
    x: &[f32],
    depth: usize,
    blocks: &[Range<usize>],
    out: &mut [u16],
) {
    match parts.of_x() {
        1 => pack_rows_as::<1>(processor, x, depth, blocks, out),
        _ => pack_rows_as::<3>(processor, x, depth, blocks, out),
    }
}

fn pack_rows_as<const PARTS: usize>(
    (unit, simd): (Unit, V4),
    x: &[f32],
    depth: usize,
    blocks: &[Range<usize>],
    out: &mut [u16],
) {
    let steps = blocks
        .iter()
        .flat_map(|block| block.clone().step_by(STEP).map(move |start| start..block.end.min(start + STEP)));
    let (lines, _) = out.as_chunks_mut::<STEP>();
    simd.vectorize(
        #[inline(always)]
        move || {
            for (lines, step) in lines.chunks_exact_mut(PARTS * SQUARE).zip(steps) {
                if x.len() < SQUARE * depth {
                    lines.fill([0; STEP]);
                }
                for (row, x) in x.chunks_exact(depth).enumerate() {
                    let (first, second) = x[step.clone()].split_at(step.len().min(SIDE));
                    let parts = cut::<PARTS>((unit, simd), vector(simd, first), vector(simd, second));
                    for (part, line) in parts.into_iter().enumerate() {
                        lines[part * SQUARE + row] = line;
                    }
                }
            }
        },
    );
}

/// The parts of twice sixteen numbers, largest first.
#[inline(always)]
fn cut<const PARTS: usize>((unit, simd): (Unit, V4), first: f32x16, second: f32x16) -> [[u16; STEP]; PARTS] {
    if PARTS == 1 {
        return [unit.rounded(simd, first, second); PARTS];
    }
    let (first, second) = (parts::<PARTS>(simd, cast(first)), parts::<PARTS>(simd, cast(second)));
    let mut cut = [[0; STEP]; PARTS];
    for ((cut, first), second) in cut.iter_mut().zip(first).zip(second) {
        *cut = cast([upper(simd, first), upper(simd, second)]);
    }
    cut
}

/// The upper halves of sixteen numbers' bits.
#[inline(always)]
fn upper(simd: V4, bits: __m512i) -> __m256i {
    simd.avx512f._mm512_cvtepi32_epi16(simd.avx512f._mm512_srli_epi32::<16>(bits))
}

impl Kernel for Tiles<'_> {
    fn add(&self, blocks: &[Block], next: Option<&Block>, y: &mut [&mut [f32]], columns: usize, from: From) {
        let session = self.unit.configure();
        let (y, sums) = (&mut Output::new(y), &mut Sums::new());
        let width = |block: &Block| match block.laid {
            Laid::Tiled(_) => PANEL,
            _ => PANELS * PANEL,
        };
        for ((block, columns), next) in strips(blocks, columns, next, width) {
            let panel = panel_len(block.depth.len(), self.parts);
            let (from, start) = (from.of(blocks, block), self.starts[block.index]);
            let mut soon = self.soon(next, block.depth.len().div_ceil(STEP));
            if let Some(weight) = self.laid_out(block, &columns) {
                self.add_strip(&session, (start, weight, panel), (y, sums), columns, from, &mut soon);
                continue;
            }
            scratch::with(&WEIGHT, columns.len().div_ceil(PANEL) * panel, |weight| {
                pack_weight(self.simd, self.parts, block, columns.clone(), weight);
                self.add_strip(&session, (start, weight, panel), (y, sums), columns, from, &mut soon);
            });
        }
    }
}

/// Numbers of a panel of a weight, so deep.
pub(super) fn panel_len(depth: usize, parts: Parts) -> usize {
    depth.div_ceil(STEP) * parts.of_weight() * TILE
}

/// What is read next.
enum Soon<'a> {
    /// Tiles that were laid out before: with every product as much as it can ask for, or less.
    LaidOut(std::vec::IntoIter<&'a [u32]>),
    /// What will be packed: so many rows with every product.
    Stored { lines: Lines<'a>, rows: usize },
}

impl Soon<'_> {
    /// What one product can ask for.
    fn ahead(&mut self) -> Ahead {
        match self {
            Self::LaidOut(tiles) => Ahead::none().and_read(tiles.next().unwrap_or(&[])),
            Self::Stored { lines, rows } => Ahead::none().and_read_rows(lines.take(*rows, WIDTH)),
        }
    }
}

/// All panels of an operand of one stored matrix.
pub(super) fn panels(simd: V4, parts: Parts, operand: &Operand) -> Lined<u32> {
    let deepest = deepest(parts);
    let panel = operand.depths(deepest).map(|(_, depth)| panel_len(depth.len(), parts)).sum::<usize>();
    let mut panels = Lined::zeros(operand.columns.div_ceil(PANEL) * panel);
    panels.par_chunks_mut(panel).enumerate().for_each(|(i, mut panel)| {
        let columns = i * PANEL..operand.columns.min((i + 1) * PANEL);
        for block in operand.blocks(&columns, deepest) {
            let (out, rest) = panel.split_at_mut(panel_len(block.depth.len(), parts));
            pack_weight(simd, parts, &block, 0..columns.len(), out);
            panel = rest;
        }
    });
    panels
}

/// Tiles for the other sum, as a matrix that has a panel of theirs in each row.
struct Across<'a> {
    tiles: &'a [u32],
    /// Numbers of a row.
    stride: usize,
    /// What of it makes up a strip of a block.
    rows: Range<usize>,
    columns: Range<usize>,
}

impl<'a> Across<'a> {
    /// The strip of a block, if it lies so.
    fn of(parts: Parts, block: &Block<'a>, columns: &Range<usize>) -> Option<Self> {
        let Laid::Across(tiles) = block.laid else { return None };
        let (square, first) = (panel_len(STEP, parts), block.panel(columns));
        Some(Self {
            tiles,
            stride: block.width.div_ceil(STEP) * square,
            rows: block.depth.start / PANEL..block.depth.end.div_ceil(PANEL),
            columns: first * square..(first + columns.len().div_ceil(PANEL)) * square,
        })
    }

    /// The tiles of each row.
    fn pieces(self) -> impl Iterator<Item = &'a [u32]> {
        self.rows.map(move |row| &self.tiles[row * self.stride..][self.columns.clone()])
    }

    /// Turns it into panels of a strip.
    fn pack(self, simd: V4, parts: Parts, panels: &mut [u32]) {
        let (square, panel) = (panel_len(STEP, parts), self.rows.len() * panel_len(STEP, parts));
        for (step, row) in self.pieces().enumerate() {
            for (square, panel) in row.chunks_exact(square).zip(panels.chunks_exact_mut(panel)) {
                pairs::turned(simd, square, &mut panel[step * square.len()..][..square.len()]);
            }
        }
    }
}

impl Tiles<'_> {
    /// Adds all rows' products with the columns of the same depth that [`pack_columns`] packed.
    pub fn add_packed(&self, packed: &[u32], y: &mut [&mut [f32]], columns: usize) {
        let session = self.unit.configure();
        let weight = (0, packed, packed.len() / columns.div_ceil(PANEL));
        let y = (&mut Output::new(y), &mut Sums::new());
        self.add_strip(&session, weight, y, 0..columns, From::OUTPUT, &mut self.soon(None, 0));
    }

    /// The block's part of a panel that was laid out before.
    fn laid_out<'b>(&self, block: &Block<'b>, columns: &Range<usize>) -> Option<&'b [u32]> {
        let Laid::Tiled(panels) = block.laid else { return None };
        let step = panel_len(STEP, self.parts);
        let first = (block.panel(columns) * self.steps + self.starts[block.index]) * step;
        Some(&panels[first..first + panel_len(block.depth.len(), self.parts)])
    }

    /// What is read for a strip, to be asked for by products of so many steps.
    fn soon<'b>(&self, strip: Option<(&'b Block<'b>, Range<usize>)>, steps: usize) -> Soon<'b> {
        let rows = steps * rows_a_step(self.parts);
        let Some((block, columns)) = strip else { return Soon::LaidOut(Vec::new().into_iter()) };
        let pieces: Vec<&[u32]> = if let Some(tiles) = self.laid_out(block, &columns) {
            vec![tiles]
        } else if let Some(across) = Across::of(self.parts, block, &columns) {
            across.pieces().collect()
        } else {
            return Soon::Stored { lines: block.lines(columns), rows };
        };
        let reach = rows * WIDTH / size_of::<u32>();
        Soon::LaidOut(
            pieces.into_iter().flat_map(|tiles| tiles.chunks(reach)).collect::<Vec<_>>().into_iter(),
        )
    }

    /// All rows of x times a strip of the weight, whose panels have so many numbers and begin at one of x's steps.
    fn add_strip(
        &self,
        session: &Session,
        (start, weight, panel): (usize, &[u32], usize),
        (y, sums): (&mut Output, &mut Sums),
        columns: Range<usize>,
        from: From,
        soon: &mut Soon,
    ) {
        let step = 2 * TILE * self.parts.of_x();
        let tiles = start * step..start * step + panel / (TILE * self.parts.of_weight()) * step;
        let pairs: Vec<&[u16]> = self.packed.chunks_exact(self.steps * step).collect();
        for (group, pairs) in pairs.chunks(PAIRS).enumerate() {
            for (column, weight) in columns.clone().step_by(PANEL).zip(weight.chunks_exact(panel)) {
                let columns = column..columns.end.min(column + PANEL);
                for (pair, x) in pairs.iter().enumerate() {
                    let row = (group * PAIRS + pair) * SQUARE;
                    let height = Height::of(y.len() - row);
                    let factors = (&x[tiles.clone()], weight);
                    let ahead = soon.ahead().and_write(y, row, column);
                    let target = if columns.len() == PANEL { y.target((row, height), column) } else { None };
                    match (self.begin(from, (row, height), column), target) {
                        (Some(begin), Some(target)) => {
                            session.multiply(self.parts, factors, begin, target, &ahead);
                        }
                        _ => {
                            // What the sums are added to comes closer meanwhile.
                            for row in (row..y.len()).take(SQUARE) {
                                if let Addend::One(other) | Addend::Two(other, _) = from.addend(row, &columns)
                                {
                                    prefetch(other);
                                }
                            }
                            session.multiply(self.parts, factors, Begin::Zero, sums.target(height), &ahead);
                            add_sums(self.simd, sums, y, row, columns.clone(), from);
                        }
                    }
                }
            }
        }
    }

    /// What the unit's own sums may begin with in some rows and columns, so that they become what is wanted.
    fn begin<'a>(&self, from: From<'a>, (row, height): (usize, Height), column: usize) -> Option<Begin<'a>> {
        let column = from.column + column;
        match (from.start, self.parts) {
            (Start::Zero, _) => Some(Begin::Zero),
            // In f32, long sums are made of shorter ones: fewer of their roundings are of large numbers.
            (_, Parts::One | Parts::Two | Parts::Three) => None,
            (Start::Output, _) => Some(Begin::There),
            (Start::Rows(rows), _) => {
                let rows = rows.get(row * from.width + column..)?;
                Some(Begin::With(Added::of(rows, from.width, height)?))
            }
            (Start::Bias(bias), _) => Some(Begin::With(Added::of(bias.get(column..)?, 0, height)?)),
            (Start::RowsAndBias { .. }, _) => None,
        }
    }
}

/// Puts sums, and what they are added to, into the rows and columns of y that exist. `row` is the first of the rows.
fn add_sums(simd: V4, sums: &Sums, y: &mut Output, row: usize, columns: Range<usize>, from: From) {
    simd.vectorize(
        #[inline(always)]
        move || {
            for ((r, y), sums) in y.square(row).enumerate().zip(&sums.0) {
                let (sums, _) = sums.as_chunks::<SIDE>();
                for ((half, y), sums) in y[columns.clone()].chunks_mut(SIDE).enumerate().zip(sums) {
                    let first = columns.start + half * SIDE;
                    let sums = cast(*sums);
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
pub(super) fn vector(simd: V4, numbers: &[f32]) -> f32x16 {
    match numbers.first_chunk::<SIDE>() {
        Some(whole) => cast(*whole),
        None => simd.partial_load_f32s(numbers),
    }
}

/// Packs a strip of a block as pairs of bf16 `[panel, step, part, 2, 16 pairs, 16 columns]`.
fn pack_weight(simd: V4, parts: Parts, block: &Block, columns: Range<usize>, out: &mut [u32]) {
    let panel = panel_len(block.depth.len(), parts);
    if let Some(across) = Across::of(parts, block, &columns) {
        return across.pack(simd, parts, out);
    }
    if let (Numbers::BF16(numbers), 1) = (&block.part.numbers, parts.of_weight()) {
        let numbers: &[u16] = numbers.as_slice().reinterpret_cast();
        let stored = block.stored_columns.start + columns.start..block.stored_columns.start + columns.end;
        let depth = block.stored_depth.clone();
        match block.rows {
            StoredRows::Depth => pairs::of_rows(simd, numbers, block.part.stride, depth, stored, out),
            StoredRows::Columns => {
                for (start, out) in stored.clone().step_by(PANEL).zip(out.chunks_exact_mut(panel)) {
                    let stored = start..stored.end.min(start + PANEL);
                    pairs::along_rows(simd, numbers, block.part.stride, stored, depth.clone(), out);
                }
            }
        }
        return;
    }
    by_steps(simd, parts, block.depth.len(), out, |step, widened| block.pack(step, columns.clone(), widened));
}

/// Packs panels of which `widen` gives some of the depth as `[panel, depth, 32]`: so little at a time that it stays in
/// the first cache.
fn by_steps(
    simd: V4,
    parts: Parts,
    depth: usize,
    out: &mut [u32],
    mut widen: impl FnMut(Range<usize>, &mut [f32]),
) {
    let (panel, step) = (panel_len(depth, parts), panel_len(STEP, parts));
    let panels = out.len() / panel;
    scratch::with(&WIDENED, panels * STEP * PANEL, |widened| {
        for start in (0..depth).step_by(STEP) {
            let deep = start..depth.min(start + STEP);
            let widened = &mut widened[..panels * deep.len() * PANEL];
            widen(deep.clone(), widened);
            let out = out.chunks_exact_mut(panel).map(|panel| &mut panel[start / STEP * step..][..step]);
            for (widened, out) in widened.chunks_exact(deep.len() * PANEL).zip(out) {
                pair_up(simd, parts, widened, out);
            }
        }
    });
}

/// Packs rows and columns of a matrix whose rows are the depth, `[panel, step, part, 2, 16 pairs, 16 columns]`.
pub(super) fn pack_columns(
    simd: V4,
    parts: Parts,
    matrix: Matrix<f32>,
    depth: Range<usize>,
    columns: Range<usize>,
    out: &mut [u32],
) {
    by_steps(simd, parts, depth.len(), out, |step, widened| {
        let rows = depth.start + step.start..depth.start + step.end;
        matrix.copy_to_panels::<PANEL>(rows, columns.clone(), widened);
    });
}

/// Cuts a panel `[depth, 32]` into parts and puts every two numbers of a column side by side: `[step, part, 2, 16 pairs,
/// 16 columns]`.
pub(super) fn pair_up(simd: V4, split: Parts, panel: &[f32], out: &mut [u32]) {
    match split.of_weight() {
        1 => pair_up_as::<1>(simd, panel, out),
        2 => pair_up_as::<2>(simd, panel, out),
        _ => pair_up_as::<3>(simd, panel, out),
    }
}

fn pair_up_as<const PARTS: usize>(simd: V4, panel: &[f32], out: &mut [u32]) {
    let (rows, _) = panel.as_chunks::<PANEL>();
    let (lines, _) = out.as_chunks_mut::<SIDE>();
    let steps = lines.chunks_exact_mut(PARTS * STEP).zip(rows.chunks(STEP));
    simd.vectorize(
        // It consumes the steps: a closure that could be called twice would not be inlined.
        #[inline(always)]
        move || {
            let f = simd.avx512f;
            for (lines, rows) in steps {
                if rows.len() < STEP {
                    lines.fill([0; SIDE]);
                }
                for (pair, rows) in rows.chunks(2).enumerate() {
                    let (even, odd) = (&rows[0], rows.get(1).unwrap_or(&[0.0; PANEL]));
                    for half in 0..2 {
                        let columns = half * SIDE..(half + 1) * SIDE;
                        let even = parts::<PARTS>(simd, cast(vector(simd, &even[columns.clone()])));
                        let odd = parts::<PARTS>(simd, cast(vector(simd, &odd[columns])));
                        for part in 0..PARTS {
                            let first = f._mm512_srli_epi32::<16>(even[part]);
                            let second = f._mm512_and_si512(odd[part], f._mm512_set1_epi32(!0xffff));
                            lines[(part * 2 + half) * SIDE + pair] = cast(f._mm512_or_si512(first, second));
                        }
                    }
                }
            }
        },
    );
}
