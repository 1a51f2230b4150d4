//! The softmax of scores that are partly seen, and its derivative.
//!
//! Knows how many scores of a row count; does not know where they come from.

use std::hint::black_box;

use pulp::{Arch, Simd, WithSimd};

use super::super::exp::exp_of_negative;
use super::padded::{LANES, Padded};

/// The positions of the first vector's scores.
const POSITIONS: [f32; LANES] = {
    let mut positions = [0.0; LANES];
    let mut lane = 0;
    while lane < LANES {
        positions[lane] = lane as f32;
        lane += 1;
    }
    positions
};

/// What is to be done with a row of scores.
#[derive(Clone, Copy)]
pub struct Row {
    /// So many scores count, from the first; at least 1.
    pub seen: usize,
    /// What is added to a score for each position before it.
    pub slope: f32,
}

/// Products of queries and keys become probabilities; 0 where a score does not count, whatever is there.
pub fn softmax(scores: &mut Padded, scale: f32, rows: impl Iterator<Item = Row>) {
    Arch::new().dispatch(Forward { scores, scale, rows });
}

/// Gradients of probabilities become those of the products of queries and keys; 0 where a score does not count.
pub fn softmax_backward(p: &Padded, d_p: &mut Padded, scale: f32, rows: impl Iterator<Item = Row>) {
    Arch::new().dispatch(Backward { p, d_p, scale, rows });
}

struct Forward<'a, I> {
    scores: &'a mut Padded,
    scale: f32,
    rows: I,
}

impl<I: Iterator<Item = Row>> WithSimd for Forward<'_, I> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let zero = zero(simd);
        for (scores, row) in self.scores.rows_mut().zip(self.rows) {
            softmax_row(simd, scores, self.scale, row, zero);
        }
    }
}

struct Backward<'a, I> {
    p: &'a Padded,
    d_p: &'a mut Padded,
    scale: f32,
    rows: I,
}

impl<I: Iterator<Item = Row>> WithSimd for Backward<'_, I> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let zero = zero(simd);
        let all = self.p.rows().zip(self.d_p.rows_mut()).zip(self.rows);
        for ((p, d_p), row) in all {
            softmax_backward_row(simd, p, d_p, self.scale, row, zero);
        }
    }
}

/// Zeros that the compiler does not see to be zeros: it would fill with a call of memset, for a vector or two.
#[inline(always)]
fn zero<S: Simd>(simd: S) -> S::f32s {
    simd.splat_f32s(black_box(0.0))
}

#[inline(always)]
fn softmax_row<S: Simd>(simd: S, scores: &mut [f32], scale: f32, Row { seen, slope }: Row, zero: S::f32s) {
    let (scores, _) = S::as_mut_simd_f32s(scores);
    let (scores, unseen) = scores.split_at_mut(seen.div_ceil(S::F32_LANES));
    let (scale, slope) = (simd.splat_f32s(scale), simd.splat_f32s(slope));
    let (end, step) = (simd.splat_f32s(seen as f32), simd.splat_f32s(S::F32_LANES as f32));

    // What does not count becomes this, so that whole vectors can be worked on: its exponential is 0.
    let lowest = simd.splat_f32s(f32::NEG_INFINITY);
    let mut max = lowest;
    let mut position = S::as_simd_f32s(&POSITIONS).0[0];
    for score in scores.iter_mut() {
        let whole = simd.mul_add_f32s(*score, scale, simd.mul_f32s(slope, position));
        *score = simd.select_f32s(simd.less_than_f32s(position, end), whole, lowest);
        max = simd.max_f32s(max, *score);
        position = simd.add_f32s(position, step);
    }
    let max = simd.splat_f32s(simd.reduce_max_f32s(max));

    let mut sum = simd.splat_f32s(0.0);
    for p in scores.iter_mut() {
        // NaN, which a maximum may leave out, is not left out here.
        *p = exp_of_negative(simd, simd.sub_f32s(*p, max));
        sum = simd.add_f32s(sum, *p);
    }
    let factor = simd.splat_f32s(1.0 / simd.reduce_sum_f32s(sum));
    for p in scores {
        *p = simd.mul_f32s(*p, factor);
    }
    for p in unseen {
        *p = zero;
    }
}

#[inline(always)]
fn softmax_backward_row<S: Simd>(
    simd: S,
    p: &[f32],
    d_p: &mut [f32],
    scale: f32,
    Row { seen, .. }: Row,
    zero: S::f32s,
) {
    let (d_p, _) = S::as_mut_simd_f32s(d_p);
    let (d_p, unseen) = d_p.split_at_mut(seen.div_ceil(S::F32_LANES));
    let (p, _) = S::as_simd_f32s(p);

    let mut dot = simd.splat_f32s(0.0);
    for (&p, &mut d_p) in p.iter().zip(&mut *d_p) {
        dot = simd.mul_add_f32s(p, d_p, dot);
    }
    let dot = simd.splat_f32s(simd.reduce_sum_f32s(dot));
    let scale = simd.splat_f32s(scale);
    for (&p, d_p) in p.iter().zip(d_p) {
        *d_p = simd.mul_f32s(simd.mul_f32s(p, simd.sub_f32s(*d_p, dot)), scale);
    }
    for d_p in unseen {
        *d_p = zero;
    }
}
