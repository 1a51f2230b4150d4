//! The softmax of scores that are partly seen, and its derivative.
//!
//! Knows how many scores of a row count; does not know where they come from.

use pulp::{Arch, Simd, WithSimd};

use super::super::exp::exp;
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

/// Products of queries and keys become probabilities; 0 where a score does not count.
pub fn softmax(scores: &mut Padded, scale: f32, rows: impl Iterator<Item = Row>) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (scores, row) in scores.rows_mut().zip(rows) {
                softmax_row(scores, scale, row);
            }
        },
    );
}

/// Gradients of probabilities become those of the products of queries and keys.
pub fn softmax_backward(p: &Padded, d_p: &mut Padded, scale: f32, rows: impl Iterator<Item = Row>) {
    Arch::new().dispatch(Backward { p, d_p, scale, rows });
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
        let all = self.p.rows().zip(self.d_p.rows_mut()).zip(self.rows);
        for ((p, d_p), row) in all {
            softmax_backward_row(simd, p, d_p, self.scale, row);
        }
    }
}

#[inline(always)]
fn softmax_row(scores: &mut [f32], scale: f32, Row { seen, slope }: Row) {
    // So that whole vectors can be worked on: nothing is as large as these, and their exponential is 0.
    let (chunks, unseen) = scores.split_at_mut(seen.next_multiple_of(LANES));
    unseen.fill(0.0);
    chunks[seen..].fill(f32::NEG_INFINITY);
    let (chunks, _) = chunks.as_chunks_mut::<LANES>();

    let mut max = [f32::NEG_INFINITY; LANES];
    let mut position = POSITIONS;
    for chunk in chunks.iter_mut() {
        for lane in 0..LANES {
            let score = chunk[lane].mul_add(scale, slope * position[lane]);
            chunk[lane] = score;
            max[lane] = if score > max[lane] { score } else { max[lane] };
            position[lane] += LANES as f32;
        }
    }
    let max = fold(max, |a, b| if a > b { a } else { b });

    let mut sum = [0.0; LANES];
    for chunk in chunks.iter_mut() {
        for lane in 0..LANES {
            chunk[lane] = exp(chunk[lane] - max);
            sum[lane] += chunk[lane];
        }
    }
    let factor = 1.0 / fold(sum, |a, b| a + b);
    for p in chunks.as_flattened_mut() {
        *p *= factor;
    }
}

#[inline(always)]
fn softmax_backward_row<S: Simd>(simd: S, p: &[f32], d_p: &mut [f32], scale: f32, Row { seen, .. }: Row) {
    let (d_p, unseen) = d_p.split_at_mut(seen.next_multiple_of(LANES));
    unseen.fill(0.0);
    let (d_p, _) = S::as_mut_simd_f32s(d_p);
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
}

/// All lanes in one, halves first: an order that vectors can follow.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = join(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}
