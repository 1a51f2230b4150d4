//! Products of small matrices: one thread, everything in cache, a tile of the result in registers.
//!
//! Knows how to use registers and vectors; does not know which keys a query sees: callers choose the ranges.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::padded::Padded;

/// How many rows of a result are computed at a time: ranges of so many rows cost least.
pub const ROWS: usize = 6;

/// `out[i, j] += Σ_l left[i, l] · right[l, j]`, for `i` in `rows`, `l` in `depth` and `j < columns`.
///
/// `columns` is rounded up to whole vectors.
pub fn add_product(
    out: &mut Padded,
    rows: Range<usize>,
    columns: usize,
    depth: Range<usize>,
    left: &Padded,
    right: &Padded,
) {
    let step = Step { row: left.width(), column: 1 };
    Arch::new().dispatch(Product { out, rows, columns, depth, left: left.values(), step, right });
}

/// `out[i, j] += Σ_l left[l, i] · right[l, j]`, for `i` in `rows`, `l` in `depth` and `j < columns`.
///
/// `columns` is rounded up to whole vectors.
pub fn add_transposed_product(
    out: &mut Padded,
    rows: Range<usize>,
    columns: usize,
    depth: Range<usize>,
    left: &Padded,
    right: &Padded,
) {
    let step = Step { row: 1, column: left.width() };
    Arch::new().dispatch(Product { out, rows, columns, depth, left: left.values(), step, right });
}

/// How far a matrix's rows and columns are apart.
#[derive(Clone, Copy)]
struct Step {
    row: usize,
    column: usize,
}

struct Product<'a> {
    out: &'a mut Padded,
    rows: Range<usize>,
    columns: usize,
    depth: Range<usize>,
    left: &'a [f32],
    step: Step,
    right: &'a Padded,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut row = self.rows.start;
        while row < self.rows.end {
            match self.rows.end - row {
                1 => self.strip::<S, 1>(simd, row),
                2 => self.strip::<S, 2>(simd, row),
                3 => self.strip::<S, 3>(simd, row),
                4 => self.strip::<S, 4>(simd, row),
                5 => self.strip::<S, 5>(simd, row),
                _ => self.strip::<S, ROWS>(simd, row),
            }
            row += ROWS;
        }
    }
}

impl Product<'_> {
    /// All columns of `R` rows, as many vectors at a time as there are registers for.
    #[inline(always)]
    fn strip<S: Simd, const R: usize>(&mut self, simd: S, row: usize) {
        let vectors = self.columns.div_ceil(S::F32_LANES);
        let mut vector = 0;
        if S::REGISTER_COUNT >= 32 {
            while vector + 4 <= vectors {
                self.tile::<S, R, 4>(simd, row, vector);
                vector += 4;
            }
            if vector + 3 == vectors {
                self.tile::<S, R, 3>(simd, row, vector);
                vector += 3;
            }
        }
        while vector + 2 <= vectors {
            self.tile::<S, R, 2>(simd, row, vector);
            vector += 2;
        }
        if vector < vectors {
            self.tile::<S, R, 1>(simd, row, vector);
        }
    }

    /// `R` rows of `V` vectors.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, simd: S, row: usize, vector: usize) {
        let columns = vector * S::F32_LANES..(vector + V) * S::F32_LANES;
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        let (left, step, depth, width) = (self.left, self.step, self.depth.clone(), self.right.width());
        let right = self.right.values()[depth.start * width..depth.end * width].chunks_exact(width);
        for (l, right) in depth.zip(right) {
            let (right, _) = S::as_simd_f32s(&right[columns.clone()]);
            for (i, sums) in sums.iter_mut().enumerate() {
                let left = simd.splat_f32s(left[(row + i) * step.row + l * step.column]);
                for (sum, &right) in sums.iter_mut().zip(right) {
                    *sum = simd.mul_add_f32s(left, right, *sum);
                }
            }
        }
        let width = self.out.width();
        for (i, sums) in sums.into_iter().enumerate() {
            let out = &mut self.out.values_mut()[(row + i) * width..][columns.clone()];
            let (out, _) = S::as_mut_simd_f32s(out);
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = simd.add_f32s(*out, sum);
            }
        }
    }
}
