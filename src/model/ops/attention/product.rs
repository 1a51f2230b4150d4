//! Products of small matrices: one thread, everything in cache, a tile of the result in registers.
//!
//! Knows how to use registers and vectors, and writes results where they belong; does not know which keys a query
//! sees: callers choose the ranges.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::head::Part;
use super::padded::Padded;

/// How many rows of a result are computed at a time: ranges of so many rows cost least.
pub const ROWS: usize = 6;

/// Rows that can be written, wherever they are.
pub trait RowsMut {
    /// One of them.
    fn row_mut(&mut self, index: usize) -> &mut [f32];
}

/// `out[i, j] = Σ_l left[i, l] · right[l, j]` in some parts of `out`.
pub fn product(out: &mut impl RowsMut, parts: impl Iterator<Item = Part>, left: &Padded, right: &Padded) {
    Arch::new().dispatch(Product { out: Replaced(out), parts, left: FromRows(left), right });
}

/// `out[i, j] += Σ_l left[l, i] · right[l, j]` in some parts of `out`.
pub fn add_transposed_product(
    out: &mut Padded,
    parts: impl Iterator<Item = Part>,
    left: &Padded,
    right: &Padded,
) {
    Arch::new().dispatch(Product { out: Added(out), parts, left: FromColumns(left), right });
}

/// The factors of the rows of a result.
trait Left {
    /// Calls `step` for some rows of the right matrix, with the factors they have in so many rows of the result.
    fn each<'r, const R: usize>(
        &self,
        row: usize,
        depth: Range<usize>,
        right: impl Iterator<Item = &'r [f32]>,
        step: impl FnMut([f32; R], &'r [f32]),
    );
}

/// A row of the result has a row of factors.
struct FromRows<'a>(&'a Padded);

impl Left for FromRows<'_> {
    #[inline(always)]
    fn each<'r, const R: usize>(
        &self,
        row: usize,
        depth: Range<usize>,
        right: impl Iterator<Item = &'r [f32]>,
        mut step: impl FnMut([f32; R], &'r [f32]),
    ) {
        // All of one length, so that the loop need not check where they end.
        let mut rows = [&[][..]; R];
        for (i, factors) in rows.iter_mut().enumerate() {
            *factors = &self.0.row(row + i)[depth.clone()];
        }
        for (l, right) in (0..depth.len()).zip(right) {
            let mut factors = [0.0; R];
            for (factor, row) in factors.iter_mut().zip(&rows) {
                *factor = row[l];
            }
            step(factors, right);
        }
    }
}

/// A row of the result has a column of factors.
struct FromColumns<'a>(&'a Padded);

impl Left for FromColumns<'_> {
    #[inline(always)]
    fn each<'r, const R: usize>(
        &self,
        row: usize,
        depth: Range<usize>,
        right: impl Iterator<Item = &'r [f32]>,
        mut step: impl FnMut([f32; R], &'r [f32]),
    ) {
        for (line, right) in self.0.range(depth).zip(right) {
            let mut factors = [0.0; R];
            factors.copy_from_slice(&line[row..row + R]);
            step(factors, right);
        }
    }
}

/// What becomes of sums.
trait Out {
    /// They belong to a row, from a vector of it on.
    fn put<S: Simd, const V: usize>(&mut self, simd: S, row: usize, vector: usize, sums: [S::f32s; V]);
}

/// They are the result.
struct Replaced<'a, M>(&'a mut M);

impl<M: RowsMut> Out for Replaced<'_, M> {
    #[inline(always)]
    fn put<S: Simd, const V: usize>(&mut self, simd: S, row: usize, vector: usize, sums: [S::f32s; V]) {
        let row = &mut self.0.row_mut(row)[vector * S::F32_LANES..];
        match row.get_mut(..V * S::F32_LANES) {
            Some(whole) => {
                let (out, _) = S::as_mut_simd_f32s(whole);
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = sum;
                }
            }
            None => {
                for (v, sum) in sums.into_iter().enumerate() {
                    let start = row.len().min(v * S::F32_LANES);
                    simd.partial_store_f32s(&mut row[start..], sum);
                }
            }
        }
    }
}

/// They are added to what is there.
struct Added<'a>(&'a mut Padded);

impl Out for Added<'_> {
    #[inline(always)]
    fn put<S: Simd, const V: usize>(&mut self, simd: S, row: usize, vector: usize, sums: [S::f32s; V]) {
        let (out, _) = S::as_mut_simd_f32s(&mut self.0.row_mut(row)[vector * S::F32_LANES..]);
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = simd.add_f32s(*out, sum);
        }
    }
}

struct Product<'a, O, P, L> {
    out: O,
    parts: P,
    left: L,
    right: &'a Padded,
}

impl<O: Out, P: Iterator<Item = Part>, L: Left> WithSimd for Product<'_, O, P, L> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { mut out, parts, left, right } = self;
        for part in parts {
            let mut row = part.rows.start;
            while row < part.rows.end {
                let mut tiles = Tiles { out: &mut out, row, part: &part, left: &left, right };
                match part.rows.end - row {
                    1 => tiles.strip::<S, 1>(simd),
                    2 => tiles.strip::<S, 2>(simd),
                    3 => tiles.strip::<S, 3>(simd),
                    4 => tiles.strip::<S, 4>(simd),
                    5 => tiles.strip::<S, 5>(simd),
                    _ => tiles.strip::<S, ROWS>(simd),
                }
                row += ROWS;
            }
        }
    }
}

/// Some rows of a part.
struct Tiles<'a, O, L> {
    out: &'a mut O,
    row: usize,
    part: &'a Part,
    left: &'a L,
    right: &'a Padded,
}

impl<O: Out, L: Left> Tiles<'_, O, L> {
    /// All columns of `R` rows, as many vectors at a time as there are registers for.
    #[inline(always)]
    fn strip<S: Simd, const R: usize>(&mut self, simd: S) {
        let vectors = self.part.columns.div_ceil(S::F32_LANES);
        let mut vector = 0;
        if S::REGISTER_COUNT >= 32 {
            while vector + 4 <= vectors {
                self.tile::<S, R, 4>(simd, vector);
                vector += 4;
            }
            if vector + 3 == vectors {
                self.tile::<S, R, 3>(simd, vector);
                vector += 3;
            }
        }
        while vector + 2 <= vectors {
            self.tile::<S, R, 2>(simd, vector);
            vector += 2;
        }
        if vector < vectors {
            self.tile::<S, R, 1>(simd, vector);
        }
    }

    /// `R` rows of `V` vectors.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, simd: S, vector: usize) {
        let columns = vector * S::F32_LANES..(vector + V) * S::F32_LANES;
        let depth = self.part.depth.clone();
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        self.left.each(
            self.row,
            depth.clone(),
            self.right.range(depth),
            #[inline(always)]
            |left: [f32; R], right| {
                let (right, _) = S::as_simd_f32s(&right[columns.clone()]);
                for (i, sums) in sums.iter_mut().enumerate() {
                    let left = simd.splat_f32s(left[i]);
                    for (sum, &right) in sums.iter_mut().zip(right) {
                        *sum = simd.mul_add_f32s(left, right, *sum);
                    }
                }
            },
        );
        for (i, sums) in sums.into_iter().enumerate() {
            self.out.put(simd, self.row + i, vector, sums);
        }
    }
}
