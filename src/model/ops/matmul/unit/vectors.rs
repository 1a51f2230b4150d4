//! Vectors of pairs of bf16 numbers, whose products are added up in f32: AVX512-BF16.
//!
//! Knows the instructions and makes them safe to use. It does not know what the tiles are parts of.

use pulp::bytemuck::cast;
use pulp::f32x16;
use pulp::x86::V4;
use std::arch::asm;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _MM_HINT_ET0, _MM_HINT_T1, _mm_prefetch, _mm512_dpbf16_ps, _mm512_loadu_ps,
    _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::ahead::{Ahead, LINE, WIDTH, rows_a_step};
use super::{Product, SIDE, SQUARE, STEP};
use crate::model::ops::matmul::parts::Parts;

/// Proof that this process may use them.
#[derive(Clone, Copy)]
pub struct Vectors(());

impl Vectors {
    /// The instructions, where processor and system have them.
    pub fn get() -> Option<Self> {
        std::arch::is_x86_feature_detected!("avx512bf16").then_some(Self(()))
    }

    /// Twice sixteen numbers rounded to bf16, to nearest even; what is below the normal numbers becomes 0.
    #[inline(always)]
    pub fn rounded(self, _: V4, first: f32x16, second: f32x16) -> [u16; STEP] {
        // SAFETY: the processor has the instruction (`get`), and the vectors that it works on (`V4`).
        cast(unsafe { rounded(cast(first), cast(second)) })
    }

    /// Computes a product, while other memory is brought closer.
    pub(super) fn multiply(self, product: &Product, ahead: &Ahead) {
        // SAFETY: the processor has the instructions (`get`).
        unsafe { multiply(product, ahead) }
    }
}

/// The instruction behind [`Vectors::rounded`]: its intrinsic could not be inlined where only AVX-512 is known of.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn rounded(first: __m512, second: __m512) -> __m512i {
    let both;
    // SAFETY: the caller's processor has the instruction, which touches registers alone.
    unsafe {
        asm!("vcvtne2ps2bf16 {both}, {second}, {first}", both = lateout(zmm_reg) both, first = in(zmm_reg) first,
            second = in(zmm_reg) second, options(pure, nomem, nostack, preserves_flags));
    }
    both
}

/// Rows whose sums are kept in registers: enough that no addition waits for the one before it.
const ROWS: usize = 8;

/// The parts of x and of the weight whose products count, the smallest first. Of more than one part each, products are asked
/// for by tests alone: f32's own are faster.
fn counted(parts: Parts) -> &'static [(usize, usize)] {
    match parts {
        Parts::Rounded => &[(0, 0)],
        Parts::One => &[(2, 0), (1, 0), (0, 0)],
        Parts::Two => &[(2, 0), (1, 1), (1, 0), (0, 1), (0, 0)],
        Parts::Three => &[(2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0)],
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply(product: &Product, ahead: &Ahead) {
    let Product { parts, target, .. } = product;
    let (x, _) = product.x.as_chunks::<STEP>();
    let (weight, _) = product.weight.as_chunks::<SIDE>();
    for first in (0..target.height.rows()).step_by(ROWS) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        if let Some(begin) = &product.begin {
            for (row, sums) in (first..).zip(&mut sums) {
                let begin = begin.first.wrapping_byte_add(row * begin.stride);
                // SAFETY: what a product begins with has 32 columns of as many rows as its target.
                *sums = unsafe { [_mm512_loadu_ps(begin), _mm512_loadu_ps(begin.wrapping_add(SIDE))] };
            }
        }
        for step in 0..product.steps {
            for (of_x, of_weight) in counted(*parts) {
                let x = x[(step * parts.of_x() + of_x) * SQUARE + first..].first_chunk::<ROWS>();
                let weight =
                    weight[(step * parts.of_weight() + of_weight) * SQUARE..].first_chunk::<SQUARE>();
                let (Some(x), Some(weight)) = (x, weight) else { return };
                for pair in 0..SIDE {
                    let weight = [weight[pair], weight[SIDE + pair]].map(|pairs| bf16s(cast(pairs)));
                    for (sums, x) in sums.iter_mut().zip(x) {
                        let x = bf16s(_mm512_set1_epi32(cast([x[2 * pair], x[2 * pair + 1]])));
                        sums[0] = _mm512_dpbf16_ps(sums[0], weight[0], x);
                        sums[1] = _mm512_dpbf16_ps(sums[1], weight[1], x);
                    }
                }
            }
            if first == 0 {
                ask(ahead, step, *parts);
            }
        }
        for (row, sums) in (first..).zip(sums) {
            let y = target.first.wrapping_byte_add(row * target.stride);
            // SAFETY: a target has 32 columns of as many rows as its height says.
            unsafe {
                _mm512_storeu_ps(y, sums[0]);
                _mm512_storeu_ps(y.wrapping_add(SIDE), sums[1]);
            }
        }
    }
}

/// Asks for a step's share of what is needed later, which need not exist.
#[target_feature(enable = "avx512f")]
fn ask(ahead: &Ahead, step: usize, parts: Parts) {
    let rows = rows_a_step(parts);
    for row in step * rows..(step + 1) * rows {
        for line in 0..WIDTH / LINE {
            let line = ahead.read.wrapping_add(row * ahead.read_stride + line * LINE);
            _mm_prefetch::<_MM_HINT_T1>(line.cast());
        }
    }
    let Some((first, stride)) = ahead.write else { return };
    for row in step * 2..(step + 1) * 2 {
        for line in 0..2 {
            let line = first.wrapping_add(row * stride + line * LINE);
            _mm_prefetch::<_MM_HINT_ET0>(line.cast());
        }
    }
}

/// Sixteen pairs.
#[target_feature(enable = "avx512f")]
fn bf16s(pairs: __m512i) -> __m512bh {
    // SAFETY: both are the same 64 bytes, of which any mean something.
    unsafe { std::mem::transmute(pairs) }
}
