//! Packing of bf16 matrices for the bf16 unit: pairs of numbers that follow each other in the depth, as tiles
//! `[panel, step, 2, 16 pairs, 16 columns]`.
//!
//! Knows the two ways in which a matrix can be stored. It does not know what is multiplied with it.

use pulp::bytemuck::cast;
use pulp::x86::V4;
use std::arch::x86_64::{__m512, __m512i};
use std::ops::Range;

use super::PANEL;
use super::pack::transposed;
use super::unit::{SIDE, STEP, TILE};

/// Packs a block of a matrix whose rows are `stride` numbers long and count the depth.
pub(super) fn of_rows(
    simd: V4,
    numbers: &[u16],
    stride: usize,
    depth: Range<usize>,
    columns: Range<usize>,
    out: &mut [u32],
) {
    let first_column = columns.start;
    if !depth.len().is_multiple_of(STEP) || !columns.len().is_multiple_of(PANEL) {
        out.fill(0);
    }
    simd.vectorize(
        #[inline(always)]
        || {
            let (tiles, _) = out.as_chunks_mut::<{ TILE / 2 }>();
            let steps = depth.len().div_ceil(STEP);
            for row in depth.clone().step_by(2) {
                let (step, pair) = ((row - depth.start) / STEP, (row - depth.start) % STEP / 2);
                for start in columns.clone().step_by(SIDE) {
                    let columns = start..columns.end.min(start + SIDE);
                    let first = row_part(simd, numbers, row, &depth, stride, &columns);
                    let second = row_part(simd, numbers, row + 1, &depth, stride, &columns);
                    let second = simd.avx512f._mm512_slli_epi32::<16>(second);
                    let half = (start - first_column) / SIDE;
                    let tile = &mut tiles[(half / 2 * steps + step) * 2 + half % 2];
                    tile[pair * SIDE..][..SIDE].copy_from_slice(&cast::<_, [u32; SIDE]>(
                        simd.avx512f._mm512_or_si512(first, second),
                    ));
                }
            }
        },
    );
}

/// At most sixteen numbers of a row, each in 32 bits; 0 where there are none.
#[inline(always)]
fn row_part(
    simd: V4,
    numbers: &[u16],
    row: usize,
    rows: &Range<usize>,
    stride: usize,
    columns: &Range<usize>,
) -> __m512i {
    let mut padded = [0; SIDE];
    if row < rows.end && columns.start < columns.end {
        let part = &numbers[row * stride + columns.start..row * stride + columns.end];
        match part.first_chunk() {
            Some(whole) => padded = *whole,
            None => padded[..part.len()].copy_from_slice(part),
        }
    }
    simd.avx512f._mm512_cvtepu16_epi32(cast(padded))
}

/// Packs a block of a matrix whose rows are `stride` numbers long and count the columns of the product.
pub(super) fn along_rows(
    simd: V4,
    numbers: &[u16],
    stride: usize,
    columns: Range<usize>,
    depth: Range<usize>,
    out: &mut [u32],
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let (tiles, _) = out.as_chunks_mut::<{ TILE / 2 }>();
            let mut block = [simd.avx512f._mm512_setzero_ps(); SIDE];
            for half in 0..2 {
                for (step, tile) in tiles[half..].iter_mut().step_by(2).enumerate() {
                    for (row, vector) in block.iter_mut().enumerate() {
                        let row = columns.start + half * SIDE + row;
                        let mut padded = [0; STEP];
                        if row < columns.end {
                            let part =
                                &numbers[row * stride + depth.start + step * STEP..row * stride + depth.end];
                            match part.first_chunk() {
                                Some(whole) => padded = *whole,
                                None => padded[..part.len()].copy_from_slice(part),
                            }
                        }
                        *vector = cast(padded);
                    }
                    let (pairs, _) = tile.as_chunks_mut::<SIDE>();
                    for (out, pair) in pairs.iter_mut().zip(transposed(simd, block)) {
                        *out = cast(pair);
                    }
                }
            }
        },
    );
}

/// The tiles of a square of 32 by 32 numbers, `[part, 2, 16 pairs, 16 columns]`, for a sum over what were its columns.
pub(super) fn turned(simd: V4, square: &[u32], out: &mut [u32]) {
    let ((parts, _), (out, _)) = (square.as_chunks::<TILE>(), out.as_chunks_mut::<TILE>());
    simd.vectorize(
        #[inline(always)]
        move || {
            for (part, out) in parts.iter().zip(out) {
                let (out, _) = out.as_chunks_mut::<SIDE>();
                let (left, right) = out.split_at_mut(SIDE);
                let (pairs, _) = part.as_chunks::<SIDE>();
                // Sixteen columns at a time, of which every two become a row of either half.
                let halves = left.chunks_exact_mut(SIDE / 2).zip(right.chunks_exact_mut(SIDE / 2));
                for (pairs, (left, right)) in pairs.chunks_exact(SIDE).zip(halves) {
                    for (pairs, out) in pairs.chunks_exact(SIDE / 2).zip([left, right]) {
                        let mut block = [simd.avx512f._mm512_setzero_ps(); SIDE / 2];
                        for (vector, pairs) in block.iter_mut().zip(pairs) {
                            *vector = crossed(simd, cast(*pairs));
                        }
                        for (out, vector) in out.iter_mut().zip(transposed_doubles(simd, block)) {
                            *out = cast(vector);
                        }
                    }
                }
            }
        },
    );
}

/// Of every four 16-bit numbers, the two in the middle change places.
#[inline(always)]
fn crossed(simd: V4, numbers: __m512i) -> __m512 {
    const ORDER: [u8; 16] = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];
    cast(simd.avx512bw._mm512_shuffle_epi8(numbers, cast([ORDER; 4])))
}

/// Transposes 8 by 8 numbers of 64 bits.
#[inline(always)]
fn transposed_doubles(simd: V4, rows: [__m512; 8]) -> [__m512; 8] {
    let f = simd.avx512f;
    let mut columns = rows;
    for odd in 0..2 {
        // Of two rows each, every other column.
        let twos: [__m512; 4] = std::array::from_fn(|i| {
            let (upper, lower) = (cast(rows[2 * i]), cast(rows[2 * i + 1]));
            cast(if odd == 0 {
                f._mm512_unpacklo_pd(upper, lower)
            } else {
                f._mm512_unpackhi_pd(upper, lower)
            })
        });
        let first = [
            f._mm512_shuffle_f32x4::<0x88>(twos[0], twos[1]),
            f._mm512_shuffle_f32x4::<0x88>(twos[2], twos[3]),
        ];
        let second = [
            f._mm512_shuffle_f32x4::<0xdd>(twos[0], twos[1]),
            f._mm512_shuffle_f32x4::<0xdd>(twos[2], twos[3]),
        ];
        columns[odd] = f._mm512_shuffle_f32x4::<0x88>(first[0], first[1]);
        columns[2 + odd] = f._mm512_shuffle_f32x4::<0x88>(second[0], second[1]);
        columns[4 + odd] = f._mm512_shuffle_f32x4::<0xdd>(first[0], first[1]);
        columns[6 + odd] = f._mm512_shuffle_f32x4::<0xdd>(second[0], second[1]);
    }
    columns
}

/// Sixteen times two numbers side by side, the first in the lower half.
#[inline(always)]
pub(super) fn pair(simd: V4, first: [u16; SIDE], second: [u16; SIDE]) -> [u32; SIDE] {
    let first = simd.avx512f._mm512_cvtepu16_epi32(cast(first));
    let second = simd.avx512f._mm512_cvtepu16_epi32(cast(second));
    cast(simd.avx512f._mm512_or_si512(first, simd.avx512f._mm512_slli_epi32::<16>(second)))
}

/// Twice sixteen numbers, the first of the one beside the first of the other.
#[inline(always)]
pub(super) fn side_by_side(simd: V4, both: [u16; STEP]) -> [u32; SIDE] {
    const ORDER: [u16; STEP] = {
        let mut order = [0; STEP];
        let mut i = 0;
        while i < STEP {
            order[i] = (i / 2 + i % 2 * SIDE) as u16;
            i += 1;
        }
        order
    };
    cast(simd.avx512bw._mm512_permutexvar_epi16(cast(ORDER), cast(both)))
}
