//! The bf16 unit: what some x86-64 processors multiply bf16 numbers and sum the products in f32 with. It is a matrix unit, or
//! else instructions for vectors.
//!
//! Knows the tiles that both take, and which products either is fast at. It does not know what the tiles are parts of. No
//! other operation has unsafe code.

mod ahead;
mod amx;
mod target;
mod vectors;

use pulp::f32x16;
use pulp::x86::V4;

use super::ROWS_AT_A_TIME;
use super::parts::Parts;

pub(super) use ahead::{Ahead, WIDTH, rows_a_step};
pub(super) use target::{Added, Begin, Height, Output, Sums, Target};

/// Rows of a tile, and its columns of f32.
pub(super) const SIDE: usize = ROWS_AT_A_TIME;

/// Depth of a tile: how many products are added to each sum.
pub(super) const STEP: usize = 32;

/// bf16 numbers of a tile; of a left factor `[16 rows, 32 deep]`.
pub(super) const TILE: usize = SIDE * STEP;

/// Rows and columns of sums that a product computes: two tiles of each.
pub(super) const SQUARE: usize = 2 * SIDE;

/// Proof that this process may use the unit. Where there is the matrix unit there are the instructions for vectors as well.
#[derive(Clone, Copy)]
pub(super) struct Unit {
    vectors: vectors::Vectors,
    matrix: Option<amx::Matrix>,
}

/// The unit while it is ready for the thread that holds this.
pub(super) enum Session {
    Matrix(amx::Session),
    Vectors(vectors::Vectors),
}

/// A product whose factors are of one depth, a positive number of whole steps, and that begins with as many sums as it has.
struct Product<'a> {
    parts: Parts,
    steps: usize,
    x: &'a [u16],
    weight: &'a [u32],
    begin: Option<Added<'a>>,
    target: Target<'a>,
}

impl Unit {
    /// What processor and system have, if they have any.
    pub fn get() -> Option<Self> {
        Some(Self { vectors: vectors::Vectors::get()?, matrix: amx::Matrix::get() })
    }

    /// Whether there is a matrix unit.
    pub fn is_matrix(self) -> bool {
        self.matrix.is_some()
    }

    /// Whether nothing multiplies such factors faster. Vectors are twice as fast at bf16 as at f32, of which at least three
    /// products would have to be made.
    pub fn is_for(self, parts: Parts) -> bool {
        self.is_matrix() || parts == Parts::Rounded
    }

    /// Twice sixteen numbers rounded to bf16, to nearest even; what is below the normal numbers becomes 0, as which products
    /// take it.
    #[inline(always)]
    pub fn rounded(self, simd: V4, first: f32x16, second: f32x16) -> [u16; STEP] {
        self.vectors.rounded(simd, first, second)
    }

    /// Readies it for the calling thread.
    pub fn configure(self) -> Session {
        match self.matrix {
            Some(matrix) => Session::Matrix(matrix.configure()),
            None => Session::Vectors(self.vectors),
        }
    }
}

impl Session {
    /// Products of tiles of rows with two of columns: `target[r, c] = begin + Σ_step Σ_(i, j) x[step, i, r] ·
    /// weight[step, j, c]` over the pairs of parts that count, for x `[step, part, 2, 16, 32]`, of which the second of two
    /// tiles counts where the target has 32 rows, and pairs of numbers weight `[step, part, 2, 16 pairs, 16 columns]`,
    /// while other memory is brought closer.
    pub fn multiply(
        &self,
        parts: Parts,
        (x, weight): (&[u16], &[u32]),
        begin: Begin,
        target: Target,
        ahead: &Ahead,
    ) {
        let steps = x.len() / (2 * TILE * parts.of_x());
        assert!(
            steps > 0 && x.len() == steps * 2 * TILE * parts.of_x(),
            "tiles of x do not make up whole steps"
        );
        assert_eq!(weight.len(), steps * TILE * parts.of_weight(), "tiles of unequal depth");
        let begin = begin.of(&target);
        let product = Product { parts, steps, x, weight, begin, target };
        match self {
            Self::Matrix(session) => session.multiply(product, ahead),
            Self::Vectors(vectors) => vectors.multiply(&product, ahead),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ops::testing::numbers;
    use half::bf16;
    use pulp::bytemuck::cast;

    /// Every set of instructions that there is here.
    fn units() -> Vec<Unit> {
        let Some(unit) = Unit::get() else { return Vec::new() };
        let vectors = Unit { matrix: None, ..unit };
        if unit.is_matrix() { vec![unit, vectors] } else { vec![vectors] }
    }

    #[test]
    fn products_of_tiles_are_sums_of_the_parts_that_count() {
        const WIDTH: usize = 50;
        for (parts, steps, height) in [
            (Parts::Rounded, 1, Height::Two),
            (Parts::Rounded, 5, Height::One),
            (Parts::One, 2, Height::Two),
            (Parts::One, 1, Height::One),
            (Parts::Two, 3, Height::Two),
            (Parts::Two, 2, Height::One),
            (Parts::Three, 2, Height::Two),
            (Parts::Three, 3, Height::One),
        ] {
            let [of_x, of_weight] = [parts.of_x(), parts.of_weight()];
            let rounded =
                |count, seed| -> Vec<bf16> { numbers(count, seed).into_iter().map(bf16::from_f32).collect() };
            let x = rounded(steps * of_x * 2 * TILE, 1);
            let weight = rounded(steps * of_weight * 2 * TILE, 2);
            let x_bits: Vec<u16> = x.iter().map(|x| x.to_bits()).collect();
            let pairs = weight.as_chunks::<2>().0.iter().map(|pair| cast(pair.map(bf16::to_bits)));
            let pairs: Vec<u32> = pairs.collect();
            // The sum, and that of absolute values.
            let exact = |row: usize, column: usize| {
                let mut sums = (0.0, 0.0);
                for step in 0..steps {
                    for (i, j) in (0..of_x).flat_map(|i| (0..of_weight).map(move |j| (i, j))) {
                        for k in (0..STEP).filter(|_| i + j <= 2) {
                            let x = x[((step * of_x + i) * SQUARE + row) * STEP + k];
                            let half = (step * of_weight + j) * 2 + column / SIDE;
                            let weight = weight[(half * SIDE + k / 2) * STEP + column % SIDE * 2 + k % 2];
                            let product = x.to_f64() * weight.to_f64();
                            sums = (sums.0 + product, sums.1 + product.abs());
                        }
                    }
                }
                sums
            };
            let (before, added) = (numbers(40 * WIDTH, 3), numbers(40 * WIDTH, 4));
            for unit in units() {
                let begins = [
                    (Begin::Zero, None),
                    (Begin::There, Some((&before[3 * WIDTH + 7..], WIDTH))),
                    (
                        Begin::With(Added::of(&added, WIDTH, height).expect("numbers")),
                        Some((&added[..], WIDTH)),
                    ),
                    (Begin::With(Added::of(&added, 0, height).expect("numbers")), Some((&added[..], 0))),
                ];
                for (begin, start) in begins {
                    let mut y = before.clone();
                    let target = Target::within(&mut y, WIDTH, (3, height), 7);
                    unit.configure().multiply(parts, (&x_bits, &pairs), begin, target, &Ahead::none());
                    for (at, (y, before)) in y.iter().zip(&before).enumerate() {
                        let (row, column) = ((at / WIDTH).wrapping_sub(3), (at % WIDTH).wrapping_sub(7));
                        if row >= height.rows() || column >= SQUARE {
                            assert_eq!(y, before, "{parts:?}, {height:?}: nothing else is written");
                            continue;
                        }
                        let (sum, size) = exact(row, column);
                        let start = start.map_or(0.0, |(rows, width)| f64::from(rows[row * width + column]));
                        let error = (f64::from(*y) - sum - start).abs();
                        assert!(
                            error <= 1e-6 * (size + start.abs()),
                            "{parts:?}, {height:?}: {y}, off by {error}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest_bf16() {
        let (Some(unit), pulp::Arch::V4(simd)) = (Unit::get(), pulp::Arch::new()) else { return };
        let ties =
            [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x7f7f_ffff, 0x7f80_0000, 0xff80_0000, 0, 0x8000_0000];
        let numbers: Vec<f32> = (0..64_000u32)
            .map(|i| i.wrapping_mul(0x9e37_79b9))
            .chain(ties.into_iter().cycle().take(STEP))
            .map(f32::from_bits)
            .map(|x| if x.is_nan() || x.is_subnormal() { 1.0 } else { x })
            .collect();
        for numbers in numbers.as_chunks::<STEP>().0 {
            let [first, second]: [f32x16; 2] = cast(*numbers);
            let ours = unit.rounded(simd, first, second);
            assert_eq!(ours, numbers.map(|x| bf16::from_f32(x).to_bits()), "{numbers:?}");
        }
        let ours = unit.rounded(simd, cast([f32::NAN; SIDE]), cast([1e-40f32; SIDE]));
        assert!(ours[..SIDE].iter().all(|bits| bf16::from_bits(*bits).is_nan()));
        assert_eq!(ours[SIDE..], [0; SIDE]);
    }
}
