//! Products of small matrices by the bf16 unit, of numbers rounded to bf16: one thread, everything in cache.
//!
//! Knows how rows of numbers become the tiles of a factor. It does not know what the matrices are, nor which of a product's
//! sums are wanted.

use std::ops::Range;

use pulp::bytemuck::{cast, cast_slice};
use pulp::x86::V4;

use super::PANEL;
use super::pack::transposed;
use super::pairs::side_by_side;
use super::parts::Parts;
use super::tiles::vector;
use super::unit::{Ahead, Begin, Height, SIDE, SQUARE, STEP, Session, Target, Unit};
use crate::model::lined::Lined;

/// Rows, columns and depth that are computed at a time: a product in multiples of these costs least.
pub const SIDES: usize = SQUARE;

/// One factor of small products, in tiles `[32 rows or columns, 32 deep, 2, 16, 16 pairs]`; 0 where rows and depth end.
#[derive(Default)]
pub struct Factor {
    tiles: Lined<u32>,
    /// Times 32 deep.
    steps: usize,
}

/// Lines of two tiles, each of 16 pairs of numbers.
const LINES: usize = 2 * SIDE;

/// What of a product is computed.
pub struct Part {
    /// At most 32 of the rows, the first a multiple of 32; as many as a multiple of 16 are written.
    pub rows: Range<usize>,
    /// The first columns; as many as a multiple of 32 are written.
    pub columns: usize,
    /// What is summed up, as multiples of 32 around it; not empty.
    pub depth: Range<usize>,
}

/// The bf16 unit, ready for the calling thread's small products.
pub struct Small {
    unit: Unit,
    simd: V4,
    session: Session,
}

/// A matrix whose rows are anywhere.
pub struct Pieces<I> {
    /// How many rows it has.
    pub rows: usize,
    /// Numbers of a row.
    pub columns: usize,
    /// Some rows one behind the other, again and again.
    pub pieces: I,
}

impl Small {
    /// The unit, where the processor has it.
    pub fn ready() -> Option<Self> {
        match (Unit::get(), pulp::Arch::new()) {
            (Some(unit), pulp::Arch::V4(simd)) => Some(Self { unit, simd, session: unit.configure() }),
            _ => None,
        }
    }

    /// The matrix as left factor.
    pub fn left<'a>(&self, factor: &mut Factor, matrix: Pieces<impl Iterator<Item = &'a [f32]>>) {
        self.along_rows(factor, matrix);
    }

    /// The matrix as right factor.
    pub fn right<'a>(&self, factor: &mut Factor, matrix: Pieces<impl Iterator<Item = &'a [f32]>>) {
        self.across_rows(factor, matrix);
    }

    /// The transposed matrix as left factor.
    pub fn left_transposed<'a>(&self, factor: &mut Factor, matrix: Pieces<impl Iterator<Item = &'a [f32]>>) {
        self.across_rows(factor, matrix);
        self.turn(factor);
    }

    /// The transposed matrix as right factor.
    pub fn right_transposed<'a>(&self, factor: &mut Factor, matrix: Pieces<impl Iterator<Item = &'a [f32]>>) {
        self.along_rows(factor, matrix);
        self.turn(factor);
    }

    /// `out[r, c] = Σ_l left[r, l] · right[l, c]` in a part of a matrix `[.., width]`.
    pub fn product(&self, (out, width): (&mut [f32], usize), part: &Part, factors: [&Factor; 2]) {
        self.multiply((out, width), part, factors, Begin::Zero);
    }

    /// The same, added to what is there.
    pub fn add_product(&self, (out, width): (&mut [f32], usize), part: &Part, factors: [&Factor; 2]) {
        self.multiply((out, width), part, factors, Begin::There);
    }

    fn multiply(
        &self,
        (out, width): (&mut [f32], usize),
        Part { rows, columns, depth }: &Part,
        [left, right]: [&Factor; 2],
        begin: Begin,
    ) {
        let steps = depth.start / STEP..depth.end.div_ceil(STEP);
        let left = cast_slice(left.steps(rows.start / SQUARE, &steps));
        for panel in 0..columns.div_ceil(SQUARE) {
            let target = Target::within(out, width, (rows.start, Height::of(rows.len())), panel * SQUARE);
            let factors = (left, right.steps(panel, &steps));
            self.session.multiply(Parts::Rounded, factors, begin, target, &Ahead::none());
        }
    }

    /// Tiles with a line for each row, whose numbers are the depth.
    fn along_rows<'a>(&self, factor: &mut Factor, matrix: Pieces<impl Iterator<Item = &'a [f32]>>) {
        let (unit, simd) = (self.unit, self.simd);
        let Pieces { rows, columns, pieces } = matrix;
        let (lines, steps) = factor.reshape(rows, columns);
        let place = move |row: usize| row / LINES * steps * LINES + row % LINES;
        simd.vectorize(
            #[inline(always)]
            move || {
                let mut row = 0;
                // It consumes the pieces: a closure that could be called twice would not be inlined.
                for piece in pieces {
                    for numbers in piece.chunks_exact(columns) {
                        let lines = &mut lines[place(row)..];
                        let (whole, rest) = numbers.as_chunks::<STEP>();
                        for (step, numbers) in whole.iter().enumerate() {
                            let [first, second] = cast(*numbers);
                            lines[step * LINES] = cast(unit.rounded(simd, first, second));
                        }
                        if !rest.is_empty() {
                            let (first, second) = rest.split_at(rest.len().min(SIDE));
                            let both = unit.rounded(simd, vector(simd, first), vector(simd, second));
                            lines[whole.len() * LINES] = cast(both);
                        }
                        row += 1;
                    }
                }
                for row in row..row.next_multiple_of(LINES) {
                    for step in 0..steps {
                        lines[place(row) + step * LINES] = [0; SIDE];
                    }
                }
            },
        );
    }

    /// Tiles with a line for every two rows, whose numbers stand side by side; the rows are the depth.
    fn across_rows<'a>(&self, factor: &mut Factor, matrix: Pieces<impl Iterator<Item = &'a [f32]>>) {
        let (unit, simd) = (self.unit, self.simd);
        let Pieces { rows: count, columns, pieces } = matrix;
        let (lines, steps) = factor.reshape(columns, count);
        let mut rows = pieces.flat_map(move |piece| piece.chunks_exact(columns));
        let pairs = 0..steps * SIDE;
        simd.vectorize(
            #[inline(always)]
            move || {
                for pair in pairs {
                    let (first, second) = (rows.next().unwrap_or(&[]), rows.next().unwrap_or(&[]));
                    let lines = &mut lines[pair / SIDE * LINES + pair % SIDE..];
                    let whole = second.len() / PANEL;
                    let both = first.as_chunks::<PANEL>().0.iter().zip(second.as_chunks::<PANEL>().0);
                    for (group, (first, second)) in both.enumerate() {
                        let ([first, next], [second, after]) = (cast(*first), cast(*second));
                        let lines = &mut lines[group * steps * LINES..][..SIDE + 1];
                        lines[0] = side_by_side(simd, unit.rounded(simd, first, second));
                        lines[SIDE] = side_by_side(simd, unit.rounded(simd, next, after));
                    }
                    for half in 2 * whole..2 * columns.div_ceil(PANEL) {
                        let [first, second] = [first, second].map(
                            #[inline(always)]
                            |row| vector(simd, &row[row.len().min(half * SIDE)..]),
                        );
                        lines[half / 2 * steps * LINES + half % 2 * SIDE] =
                            side_by_side(simd, unit.rounded(simd, first, second));
                    }
                }
            },
        );
    }

    /// Transposes every tile.
    fn turn(&self, factor: &mut Factor) {
        let (lines, _) = factor.tiles.as_chunks_mut::<SIDE>();
        let (tiles, _) = lines.as_chunks_mut::<SIDE>();
        let (simd, tiles) = (self.simd, tiles.iter_mut());
        simd.vectorize(
            #[inline(always)]
            move || {
                for tile in tiles {
                    *tile = cast(transposed(simd, cast(*tile)));
                }
            },
        );
    }
}

impl Factor {
    /// Becomes lines, left over from earlier, for so many rows or columns, and says in how many steps of the depth.
    fn reshape(&mut self, count: usize, depth: usize) -> (&mut [[u32; SIDE]], usize) {
        self.steps = depth.div_ceil(STEP);
        self.tiles.resize(count.div_ceil(SQUARE) * self.steps * LINES * SIDE);
        let (lines, _) = self.tiles.as_chunks_mut();
        (lines, self.steps)
    }

    /// What 32 rows or columns have in some of the steps.
    fn steps(&self, group: usize, steps: &Range<usize>) -> &[u32] {
        let [first, end] = [steps.start, steps.end].map(|step| (group * self.steps + step) * LINES * SIDE);
        &self.tiles[first..end]
    }
}
