//! Copying blocks of matrices, whatever their format, into small contiguous f32 panels.
//!
//! Knows number formats and how to transpose quickly. It does not know what the panels are for.

use half::{bf16, f16};
use std::ops::Range;

use pulp::bytemuck::Pod;
#[cfg(target_arch = "x86_64")]
use {pulp::x86::V4, std::arch::x86_64::__m512};

/// Numbers handled at a time.
pub(super) const LANES: usize = 16;

/// A number format that f32 contains.
pub(super) trait Number: Copy + Default + Send + Sync + 'static {
    /// The same number as f32, without branches, so that loops over it become vector code.
    fn to_f32(self) -> f32;

    /// Sixteen numbers as f32.
    #[cfg(target_arch = "x86_64")]
    fn widen(simd: V4, numbers: &[Self; LANES]) -> __m512;
}

impl Number for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn widen(_: V4, numbers: &[Self; LANES]) -> __m512 {
        pulp::bytemuck::cast(*numbers)
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn widen(simd: V4, numbers: &[Self; LANES]) -> __m512 {
        let bits = simd.avx512f._mm512_cvtepu16_epi32(pulp::bytemuck::cast(bits_of(numbers, Self::to_bits)));
        pulp::bytemuck::cast(simd.avx512f._mm512_slli_epi32::<16>(bits))
    }
}

impl Number for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        const SCALE: u32 = (127 - 15) << 23; // the difference of the two exponents' biases
        const TOP: u32 = 31 << 23; // exponent of infinities and NaNs
        let magnitude = (u32::from(self.to_bits()) & 0x7fff) << 13;
        let normal = magnitude + SCALE;
        // An f16 below the normal range has no hidden bit: give it one and subtract it again.
        let subnormal = f32::from_bits(magnitude + SCALE + (1 << 23)) - f32::from_bits(SCALE + (1 << 23));
        let bits = match magnitude & TOP {
            0 => subnormal.to_bits(),
            TOP => normal + SCALE,
            _ => normal,
        };
        f32::from_bits(bits | (u32::from(self.to_bits()) & 0x8000) << 16)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn widen(simd: V4, numbers: &[Self; LANES]) -> __m512 {
        simd.avx512f._mm512_cvtph_ps(pulp::bytemuck::cast(bits_of(numbers, Self::to_bits)))
    }
}

/// The nearest bf16 (ties to even), as f32; NaN stays NaN.
#[inline(always)]
pub(super) fn round_to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    let quiet_nan = bits & 0xffff_0000 | 0x0040_0000;
    f32::from_bits(if x.is_nan() { quiet_nan } else { rounded })
}

/// Rounds every number to the nearest bf16.
pub(super) fn round_all_to_bf16(numbers: &mut [f32]) {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || numbers.iter_mut().for_each(|x| *x = round_to_bf16(*x)),
    );
}

/// A row-major matrix of which blocks are packed.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    /// All its numbers.
    pub numbers: &'a [T],
    /// Length of a row.
    pub stride: usize,
}

impl<'a, T: Number> Matrix<'a, T> {
    /// Some columns of a row.
    #[inline(always)]
    pub fn row(&self, row: usize, columns: &Range<usize>) -> &'a [T] {
        &self.numbers[row * self.stride + columns.start..row * self.stride + columns.end]
    }

    /// `panel[r, c] = self[rows.start + r, columns.start + c]` for a panel `[rows, width]`, whose columns past
    /// `columns` become 0. The width is a multiple of 16.
    pub fn copy(&self, rows: Range<usize>, columns: Range<usize>, panel: &mut [f32], width: usize) {
        #[cfg(target_arch = "x86_64")]
        if let pulp::Arch::V4(simd) = pulp::Arch::new() {
            return simd.vectorize(
                #[inline(always)]
                || {
                    for (row, out) in rows.zip(panel.chunks_exact_mut(width)) {
                        widen_row(simd, self.row(row, &columns), out);
                    }
                },
            );
        }
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                for (row, out) in rows.zip(panel.chunks_exact_mut(width)) {
                    let (out, rest) = out.split_at_mut(columns.len());
                    for (out, number) in out.iter_mut().zip(self.row(row, &columns)) {
                        *out = number.to_f32();
                    }
                    rest.fill(0.0);
                }
            },
        );
    }

    /// Cuts the columns into panels `[panel, rows, WIDTH]`, the last of which is filled up with 0. Reads whole rows.
    pub fn copy_to_panels<const WIDTH: usize>(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        panels: &mut [f32],
    ) {
        #[cfg(target_arch = "x86_64")]
        if let pulp::Arch::V4(simd) = pulp::Arch::new() {
            return simd.vectorize(
                #[inline(always)]
                || {
                    let count = rows.len();
                    for (r, row) in rows.enumerate() {
                        let row = self.row(row, &columns);
                        for (panel, part) in row.chunks(WIDTH).enumerate() {
                            let start = (panel * count + r) * WIDTH;
                            widen_row(simd, part, &mut panels[start..start + WIDTH]);
                        }
                    }
                },
            );
        }
        let len = rows.len() * WIDTH;
        for (start, panel) in columns.clone().step_by(WIDTH).zip(panels.chunks_exact_mut(len.max(1))) {
            self.copy(rows.clone(), start..columns.end.min(start + WIDTH), panel, WIDTH);
        }
    }

    /// `panel[c, r] = self[rows.start + r, columns.start + c]` for a panel `[columns, width]`, whose columns past
    /// `rows` become 0. The width is a multiple of 16.
    pub fn transpose(&self, rows: Range<usize>, columns: Range<usize>, panel: &mut [f32], width: usize) {
        #[cfg(target_arch = "x86_64")]
        if let pulp::Arch::V4(simd) = pulp::Arch::new() {
            return simd.vectorize(
                #[inline(always)]
                || {
                    for group in 0..width / LANES {
                        let first = rows.start + group * LANES;
                        let mut block: [&[T]; LANES] = [&[]; LANES];
                        for (slot, row) in block.iter_mut().zip(first..rows.end) {
                            *slot = self.row(row, &columns);
                        }
                        transpose_rows(simd, &block, columns.len(), &mut panel[group * LANES..], width);
                    }
                },
            );
        }
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                panel.fill(0.0);
                // A few columns at a time, so that the panel's rows being written stay in the cache.
                for start in columns.clone().step_by(LANES) {
                    let part = start..columns.end.min(start + LANES);
                    let out = &mut panel[(start - columns.start) * width..];
                    for (r, row) in rows.clone().enumerate() {
                        for (out, number) in out[r..].iter_mut().step_by(width).zip(self.row(row, &part)) {
                            *out = number.to_f32();
                        }
                    }
                }
            },
        );
    }
}

/// Asks for numbers that will be needed soon to be brought into the nearest cache.
#[inline(always)]
pub(super) fn prefetch(numbers: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(sse) = pulp::core_arch::x86::Sse::try_new() {
        for line in numbers.chunks(LANES) {
            sse._mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast());
        }
    }
}

/// Rows of a panel that a line is asked for before it is needed: longer than the second cache takes to answer.
const AHEAD: usize = 8;

/// Asks for the line that holds a number of the row [`AHEAD`] rows behind this one of a panel. Where there is none,
/// nothing happens.
#[inline(always)]
pub(super) fn prefetch_ahead<const WIDTH: usize>(row: &[f32; WIDTH], number: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(sse) = pulp::core_arch::x86::Sse::try_new() {
        let line = row.as_ptr().wrapping_add(AHEAD * WIDTH + number);
        sse._mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.cast());
    }
}

/// The cache lines of a block of a row-major matrix that are still to be asked for.
pub(super) struct Lines<'a> {
    /// The matrix from the block's first number on.
    bytes: &'a [u8],
    /// From row to row, in bytes.
    stride: usize,
    /// Of a row of the block, in bytes.
    width: usize,
    rows: usize,
    /// The row and the place in it of the next line.
    next: (usize, usize),
}

/// Some rows of a block from one of their lines on.
pub(super) struct Run<'a> {
    /// The first byte in the first row.
    pub first: &'a u8,
    /// From row to row, in bytes.
    pub stride: usize,
}

impl<'a> Lines<'a> {
    const BYTES: usize = 64;

    /// No lines.
    pub fn none() -> Self {
        Self { bytes: &[], stride: 0, width: 0, rows: 0, next: (0, 0) }
    }

    /// The lines of a block of a matrix whose rows are `stride` numbers long.
    pub fn new<T: Pod>(numbers: &'a [T], stride: usize, rows: Range<usize>, columns: Range<usize>) -> Self {
        let bytes = pulp::bytemuck::cast_slice(&numbers[rows.start * stride + columns.start..]);
        let (stride, width) = (stride * size_of::<T>(), columns.len() * size_of::<T>());
        Self { bytes, stride, width, rows: rows.len(), next: (0, 0) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows * self.width.div_ceil(Self::BYTES)
    }

    /// Asks for the next few to be brought into the cache, in the order of memory.
    #[inline(always)]
    pub fn prefetch(&mut self, count: usize) {
        #[cfg(target_arch = "x86_64")]
        if let Some(sse) = pulp::core_arch::x86::Sse::try_new() {
            for _ in 0..count {
                let (row, at) = self.next;
                if row >= self.rows {
                    break;
                }
                if let Some(byte) = self.bytes.get(row * self.stride + at) {
                    sse._mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(std::ptr::from_ref(byte).cast());
                }
                let at = at + Self::BYTES;
                self.next = if at < self.width { (row, at) } else { (row + 1, 0) };
            }
        }
    }

    /// So many rows of the next lines one below the other, `width` bytes of each; for whoever asks for them himself.
    pub fn take(&mut self, rows: usize, width: usize) -> Option<Run<'a>> {
        let (row, at) = self.next;
        if at >= self.width || self.rows == 0 {
            return None;
        }
        self.next = if row + rows < self.rows { (row + rows, at) } else { (0, at + width) };
        let first = self.bytes.get(row * self.stride + at)?;
        Some(Run { first, stride: self.stride })
    }
}

/// `out[c] = row[c]`, and 0 past the row's end; `out` is a multiple of 16 long.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn widen_row<T: Number>(simd: V4, row: &[T], out: &mut [f32]) {
    let (out, _) = out.as_chunks_mut::<LANES>();
    let (row, rest) = row.as_chunks::<LANES>();
    for (out, numbers) in out.iter_mut().zip(row) {
        *out = pulp::bytemuck::cast(T::widen(simd, numbers));
    }
    if let Some((first, others)) = out[row.len()..].split_first_mut() {
        *first = pulp::bytemuck::cast(T::widen(simd, &padded(rest)));
        others.fill([0.0; LANES]);
    }
}

/// `out[c * stride + r] = rows[r][c]` for c < `len`; an empty row stands for zeros.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose_rows<T: Number>(simd: V4, rows: &[&[T]; LANES], len: usize, out: &mut [f32], stride: usize) {
    // Plain loops: vector instructions inside of closures of the standard library would not be inlined.
    let mut block = [simd.avx512f._mm512_setzero_ps(); LANES];
    for start in (0..len).step_by(LANES) {
        for (vector, row) in block.iter_mut().zip(rows) {
            let rest = row.get(start..).unwrap_or(&[]);
            match rest.first_chunk() {
                Some(numbers) => *vector = T::widen(simd, numbers),
                None => *vector = T::widen(simd, &padded(rest)),
            }
        }
        let out = &mut out[start * stride..];
        for (column, out) in transposed(simd, block).iter().zip(out.chunks_mut(stride).take(len - start)) {
            out[..LANES].copy_from_slice(&pulp::bytemuck::cast::<_, [f32; LANES]>(*column));
        }
    }
}

/// The bits of sixteen 16-bit numbers.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn bits_of<T: Copy>(numbers: &[T; LANES], bits: fn(T) -> u16) -> [u16; LANES] {
    let mut all = [0; LANES];
    for (all, number) in all.iter_mut().zip(numbers) {
        *all = bits(*number);
    }
    all
}

/// At most sixteen numbers, followed by zeros.
#[inline(always)]
fn padded<T: Number>(numbers: &[T]) -> [T; LANES] {
    let mut whole = [T::default(); LANES];
    whole[..numbers.len()].copy_from_slice(numbers);
    whole
}

/// The transpose of sixteen rows of sixteen 32-bit numbers.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn transposed(simd: V4, rows: [__m512; LANES]) -> [__m512; LANES] {
    use pulp::bytemuck::cast;
    let f = simd.avx512f;
    let mut pairs = rows;
    for i in 0..8 {
        pairs[2 * i] = f._mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = f._mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    // fours[4 i + c]: column c of every quarter, of the rows 4 i .. 4 i + 4.
    let mut fours = pairs;
    for i in 0..4 {
        for c in 0..2 {
            let (upper, lower) = (cast(pairs[4 * i + c]), cast(pairs[4 * i + c + 2]));
            fours[4 * i + 2 * c] = cast(f._mm512_unpacklo_pd(upper, lower));
            fours[4 * i + 2 * c + 1] = cast(f._mm512_unpackhi_pd(upper, lower));
        }
    }
    let mut columns = fours;
    for c in 0..4 {
        let even_upper = f._mm512_shuffle_f32x4::<0x88>(fours[c], fours[4 + c]);
        let odd_upper = f._mm512_shuffle_f32x4::<0xdd>(fours[c], fours[4 + c]);
        let even_lower = f._mm512_shuffle_f32x4::<0x88>(fours[8 + c], fours[12 + c]);
        let odd_lower = f._mm512_shuffle_f32x4::<0xdd>(fours[8 + c], fours[12 + c]);
        columns[c] = f._mm512_shuffle_f32x4::<0x88>(even_upper, even_lower);
        columns[4 + c] = f._mm512_shuffle_f32x4::<0x88>(odd_upper, odd_lower);
        columns[8 + c] = f._mm512_shuffle_f32x4::<0xdd>(even_upper, even_lower);
        columns[12 + c] = f._mm512_shuffle_f32x4::<0xdd>(odd_upper, odd_lower);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let number = f16::from_bits(bits);
            let (ours, theirs) = (Number::to_f32(number), number.to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:x}");
        }
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        let specials =
            [0, 0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x7f7f_ffff, 0x7f80_0000, 0xffc0_0001, 0x7f80_0001];
        for bits in specials.into_iter().chain((0..100_000u32).map(|i| i.wrapping_mul(0x9e37_79b9))) {
            let x = f32::from_bits(bits);
            let (ours, theirs) = (round_to_bf16(x), bf16::from_f32(x).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:x}");
        }
    }

    fn copies_and_transposes<T: Number>(make: impl Fn(usize) -> T) {
        let (rows, stride) = (50, 61);
        let numbers: Vec<T> = (0..rows * stride).map(make).collect();
        let matrix = Matrix { numbers: &numbers, stride };
        for (rows, columns) in [(3..35, 2..34), (0..50, 7..8), (5..22, 0..61), (1..2, 3..40), (4..4, 1..5)] {
            for (r0, c0) in [(rows.clone(), columns.clone())] {
                let width = c0.len().next_multiple_of(LANES) + LANES;
                let mut panel = vec![f32::NAN; r0.len() * width];
                matrix.copy(r0.clone(), c0.clone(), &mut panel, width);
                for (i, &x) in panel.iter().enumerate() {
                    let (r, c) = (r0.start + i / width, c0.start + i % width);
                    assert_eq!(x, if c < c0.end { numbers[r * stride + c].to_f32() } else { 0.0 });
                }
                let width = r0.len().next_multiple_of(LANES) + LANES;
                let mut panel = vec![f32::NAN; c0.len() * width];
                matrix.transpose(r0.clone(), c0.clone(), &mut panel, width);
                for (i, &x) in panel.iter().enumerate() {
                    let (c, r) = (c0.start + i / width, r0.start + i % width);
                    assert_eq!(x, if r < r0.end { numbers[r * stride + c].to_f32() } else { 0.0 });
                }
            }
        }
    }

    #[test]
    fn blocks_are_copied_and_transposed() {
        copies_and_transposes(|i| i as f32);
        copies_and_transposes(|i| f16::from_f32(i as f32));
        copies_and_transposes(|i| bf16::from_f32((i % 251) as f32));
    }
}
