//! Matrices whose rows are padded to whole vectors, in memory that is kept from one use to the next.
//!
//! Knows how numbers get into such a matrix; knows nothing of what they mean.

use pulp::{Arch, Simd, WithSimd};

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
    /// The distance from one row to the next.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All numbers, row by row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All numbers, row by row.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// A row with its padding.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..][..self.width]
    }

    /// The rows with their padding.
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.width.max(1))
    }

    /// The rows with their padding.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.values.chunks_exact_mut(self.width.max(1))
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

    /// The opposite: copies the first `columns` numbers of each row to a place for some rows one behind the other.
    pub fn unpack<'a, 'b: 'a>(&self, columns: usize, places: impl Iterator<Item = &'a mut &'b mut [f32]>) {
        Arch::new().dispatch(Unpack { from: self, columns, places });
    }

    /// Becomes the first `columns` columns of another matrix as rows, with zeros as padding.
    pub fn transpose(&mut self, from: &Padded, columns: usize) {
        let count = from.values.len().checked_div(from.width).unwrap_or(0);
        self.reshape(columns.next_multiple_of(LANES), count);
        Arch::new().dispatch(Transpose { from, count, columns, into: self });
    }

    /// Changes the sizes; what the matrix holds then is left over from earlier.
    fn reshape(&mut self, rows: usize, columns: usize) {
        self.width = columns.next_multiple_of(LANES);
        self.values.resize(rows * self.width);
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

impl<'a, 'b: 'a, P: Iterator<Item = &'a mut &'b mut [f32]>> WithSimd for Unpack<'_, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let mut rows = self.from.values.chunks_exact(self.from.width.max(1));
        for place in self.places {
            for (into, row) in place.chunks_exact_mut(self.columns).zip(&mut rows) {
                copy(&row[..into.len()], into);
            }
        }
    }
}

struct Transpose<'a> {
    from: &'a Padded,
    count: usize,
    columns: usize,
    into: &'a mut Padded,
}

impl WithSimd for Transpose<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { from, count, columns, into } = self;
        for first in (0..count).step_by(LANES) {
            for column in (0..columns).step_by(LANES) {
                let (mut block, mut other) = ([0.0; LANES * LANES], [0.0; LANES * LANES]);
                for (i, row) in block.chunks_exact_mut(LANES).enumerate().take(count - first) {
                    row.copy_from_slice(&from.values[(first + i) * from.width + column..][..LANES]);
                }
                for _ in 0..LANES.ilog2() / 2 {
                    shuffle(&block, &mut other);
                    shuffle(&other, &mut block);
                }
                for (i, row) in block.chunks_exact(LANES).enumerate() {
                    into.values[(column + i) * into.width + first..][..LANES].copy_from_slice(row);
                }
            }
        }
    }
}

/// A square block, row by row.
type Block = [f32; LANES * LANES];

/// The first and the second half by turns. As often as 2 divides [`LANES`], this is a transposition.
#[inline(always)]
fn shuffle(from: &Block, into: &mut Block) {
    let (first, second) = from.split_at(LANES * LANES / 2);
    let (pairs, _) = into.as_chunks_mut::<2>();
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
