//! Products of few rows with a matrix whose rows run along the sum: scalar products of rows as they lie in memory,
//! because packing the matrix would cost more than multiplying it.
//!
//! Knows how to keep several scalar products in registers. It does not know whose rows they are, nor which thread
//! computes what.

use pulp::{Simd, WithSimd};
use std::cell::Cell;
use std::ops::Range;

use super::operand::Block;
use super::pack::{LANES, round_all_to_bf16};
use super::{From, Kernel, Precision, scratch};
use crate::model::lined::Lined;

thread_local! {
    static ROWS: Cell<Lined<f32>> = const { Cell::new(Lined::new()) };
    static WEIGHT: Cell<Lined<f32>> = const { Cell::new(Lined::new()) };
}

/// Deepest block: a few widened rows of the matrix stay in the first cache.
pub(super) const DEPTH: usize = 1024;

/// Rows of the matrix taken at a time.
const GROUP: usize = 6;

/// Some rows x `[rows, depth]`, rounded if need be.
pub(super) struct Dots<'a> {
    x: &'a [f32],
    depth: usize,
    precision: Precision,
}

impl Dots<'_> {
    /// Readies x `[rows, depth]` and lends it to `f`.
    pub fn with(x: &[f32], rows: usize, precision: Precision, f: impl FnOnce(&Dots)) {
        let depth = x.len() / rows;
        match precision {
            Precision::F32 => f(&Dots { x, depth, precision }),
            Precision::BF16 => scratch::with(&ROWS, x.len(), |rounded| {
                rounded.copy_from_slice(x);
                round_all_to_bf16(rounded);
                f(&Dots { x: rounded, depth, precision });
            }),
        }
    }
}

impl Kernel for Dots<'_> {
    fn add(&self, blocks: &[Block], _: Option<&Block>, y: &mut [&mut [f32]], columns: usize, from: From) {
        y.iter_mut().enumerate().for_each(|(row, y)| from.fill(y, row));
        let groups = |block| (0..columns).step_by(GROUP).map(move |at| (block, at..columns.min(at + GROUP)));
        let groups = blocks.iter().flat_map(groups);
        scratch::with(&WEIGHT, GROUP * DEPTH, |weight| {
            for (block, columns) in groups {
                // A multiple of 16, as the packing wants it.
                let stride = block.depth.len().next_multiple_of(LANES);
                let weight = &mut weight[..columns.len() * stride];
                block.widen(columns.clone(), weight, stride);
                if self.precision == Precision::BF16 {
                    round_all_to_bf16(weight);
                }
                let (x, x_stride) = (&self.x[block.depth.start..], self.depth);
                let depth = block.depth.len();
                pulp::Arch::new().dispatch(Group { x, x_stride, weight, stride, depth, y, columns });
            }
        });
    }
}

/// All rows of x times a few rows of the matrix.
struct Group<'a, 'y> {
    x: &'a [f32],
    x_stride: usize,
    weight: &'a [f32],
    stride: usize,
    depth: usize,
    y: &'a mut [&'y mut [f32]],
    columns: Range<usize>,
}

impl WithSimd for Group<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let rows = self.y.len();
        let (mut row, mut left) = (0, rows);
        // The tile of 4 by 6 fills 32 registers, that of 1 by 6 leaves some of 16 free.
        if S::REGISTER_COUNT >= 32 && self.columns.len() == GROUP {
            while left >= 4 {
                self.add_tile::<S, 4, GROUP>(simd, row, 0);
                (row, left) = (row + 4, left - 4);
            }
        }
        while left > 0 {
            if self.columns.len() == GROUP {
                self.add_tile::<S, 1, GROUP>(simd, row, 0);
            } else {
                for column in 0..self.columns.len() {
                    self.add_tile::<S, 1, 1>(simd, row, column);
                }
            }
            (row, left) = (row + 1, left - 1);
        }
    }
}

impl Group<'_, '_> {
    /// `y[row + m, column + n] += Σ_k x[row + m, k] · weight[column + n, k]` for a few m and n.
    #[inline(always)]
    fn add_tile<S: Simd, const M: usize, const N: usize>(&mut self, simd: S, row: usize, column: usize) {
        let mut x = [(&[] as &[S::f32s], &[] as &[f32]); M];
        for (m, x) in x.iter_mut().enumerate() {
            let start = (row + m) * self.x_stride;
            *x = S::as_simd_f32s(&self.x[start..start + self.depth]);
        }
        let mut weight = [(&[] as &[S::f32s], &[] as &[f32]); N];
        for (n, weight) in weight.iter_mut().enumerate() {
            let start = (column + n) * self.stride;
            *weight = S::as_simd_f32s(&self.weight[start..start + self.depth]);
        }
        let mut sums = [[simd.splat_f32s(0.0); N]; M];
        for k in 0..self.depth / S::F32_LANES {
            for (x, sums) in x.iter().zip(&mut sums) {
                for (weight, sum) in weight.iter().zip(sums) {
                    *sum = simd.mul_add_e_f32s(x.0[k], weight.0[k], *sum);
                }
            }
        }
        for ((x, sums), y) in x.iter().zip(&sums).zip(&mut self.y[row..]) {
            for ((weight, &sum), y) in weight.iter().zip(sums).zip(&mut y[self.columns.start + column..]) {
                let mut sum = simd.reduce_sum_f32s(sum);
                for (x, weight) in x.1.iter().zip(weight.1) {
                    sum += x * weight;
                }
                *y += sum;
            }
        }
    }
}
