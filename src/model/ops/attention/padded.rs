//! Matrices whose rows are padded to whole vectors, in memory that is kept from one use to the next.
//!
//! Knows how numbers get into such a matrix; knows nothing of what they mean.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::product::RowsMut;
use crate::model::lined::Lined;

/// Rows are padded to a multiple of so many numbers: the widest vector of any machine.
pub const LANES: usize = 16;

/// A matrix `[rows, width]`, its width a multiple of [`LANES`].
#[derive(Default)]
pub struct Padded {
    values: Lined<f32>,
    width: usize,
}

impl Padded {
    /// Numbers of a row with its padding.
    pub fn width(&self) -> usize {
        self.width
    }

    /// A row with its padding.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..][..self.width]
    }

    /// Some rows with their padding.
    pub fn range(&self, rows: Range<usize>) -> impl Iterator<Item = &[f32]> {
        self.values[rows.start * self.width..rows.end * self.width].chunks_exact(self.width.max(1))
    }

    /// The rows with their padding.
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.width.max(1))
    }

    /// The rows with their padding.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.values.chunks_exact_mut(self.width.max(1))
    }

    /// All numbers, and how many are a row with its padding.
    pub fn whole_mut(&mut self) -> (&mut [f32], usize) {
        (&mut self.values, self.width)
    }

    /// Becomes `[rows, columns]` of zeros.
    pub fn clear(&mut self, rows: usize, columns: usize) {
        self.reshape(rows, columns);
        self.values.fill(0.0);
    }

    /// Becomes `count` rows of so many columns, with zeros as padding; a piece is some rows one behind the other.
    pub fn pack<'a>(&mut self, count: usize, columns: usize, pieces: impl Iterator<Item = &'a [f32]>) {
        self.reshape(count, columns);
        Arch::new().dispatch(Pack { into: self, columns, pieces });
    }

    /// The first columns of the first rows, to where some rows are one behind the other.
    pub fn unpack<'a>(&self, columns: usize, places: impl Iterator<Item = &'a mut [f32]>) {
        Arch::new().dispatch(Unpack { from: self, columns, places });
    }

    /// Becomes rows of so many columns as columns, with zeros as padding.
    pub fn transpose(&mut self, columns: usize, rows: &[&[f32]]) {
        self.reshape(columns.next_multiple_of(LANES), rows.len());
        Arch::new().dispatch(Transpose { into: self, columns, rows });
    }

    /// Becomes `[rows, columns]` of numbers left over from earlier.
    pub fn reshape(&mut self, rows: usize, columns: usize) {
        self.width = columns.next_multiple_of(LANES);
        self.values.resize(rows * self.width);
    }
}

impl RowsMut for Padded {
    #[inline(always)]
    fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.values[index * self.width..][..self.width]
    }
}

// Dispatched because rows are short: wide moves in place instead of a call of memcpy for each.
struct Pack<'a, P> {
    into: &'a mut Padded,
    columns: usize,
    pieces: P,
}

impl<'p, P: Iterator<Item = &'p [f32]>> WithSimd for Pack<'_, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let mut rows = self.into.values.chunks_exact_mut(self.into.width.max(1));
        for piece in self.pieces {
            for (row, into) in piece.chunks_exact(self.columns).zip(&mut rows) {
                let (into, padding) = into.split_at_mut(row.len());
                copy(row, into);
                for zero in padding {
                    *zero = 0.0;
                }
            }
        }
    }
}

struct Unpack<'a, P> {
    from: &'a Padded,
    columns: usize,
    places: P,
}

impl<'p, P: Iterator<Item = &'p mut [f32]>> WithSimd for Unpack<'_, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let mut rows = self.from.rows();
        for place in self.places {
            for (place, row) in place.chunks_exact_mut(self.columns).zip(&mut rows) {
                copy(&row[..place.len()], place);
            }
        }
    }
}

struct Transpose<'a> {
    into: &'a mut Padded,
    columns: usize,
    rows: &'a [&'a [f32]],
}

impl WithSimd for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { into, columns, rows } = self;
        for (tile, rows) in rows.chunks(LANES).enumerate() {
            for column in (0..columns).step_by(LANES) {
                let (mut block, mut other) = (Block::default(), Block::default());
                for (into, row) in block.0.iter_mut().zip(rows) {
                    let piece = &row[column..columns.min(column + LANES)];
                    copy(piece, &mut into[..piece.len()]);
                }
                for _ in 0..LANES.ilog2() / 2 {
                    shuffle(&block, &mut other);
                    shuffle(&other, &mut block);
                }
                for (i, row) in block.0.iter().enumerate() {
                    into.values[(column + i) * into.width + tile * LANES..][..LANES].copy_from_slice(row);
                }
            }
        }
    }
}

/// A square block, each row on a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Block([[f32; LANES]; LANES]);

/// The first and the second half by turns. As often as 2 divides [`LANES`], this is a transposition.
#[inline(always)]
fn shuffle(from: &Block, into: &mut Block) {
    let (first, second) = from.0.as_flattened().split_at(LANES * LANES / 2);
    let (pairs, _) = into.0.as_flattened_mut().as_chunks_mut::<2>();
    for ((pair, &first), &second) in pairs.iter_mut().zip(first).zip(second) {
        *pair = [first, second];
    }
}

/// Copies numbers between slices of equal length, mostly in whole vectors.
#[inline(always)]
fn copy(from: &[f32], into: &mut [f32]) {
    let ((from, from_rest), (into, into_rest)) = (from.as_chunks::<LANES>(), into.as_chunks_mut::<LANES>());
    for (into, from) in into.iter_mut().zip(from) {
        *into = *from;
    }
    for (into, from) in into_rest.iter_mut().zip(from_rest) {
        *into = *from;
    }
}
