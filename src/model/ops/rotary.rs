//! Rotary position embedding: turning the two halves of a head against each other.
//!
//! Which columns of a row are queries and which are keys is the caller's to say.

use super::blocks;

/// The rotation of every token of a batch: made once, used by every layer.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// Cosine and sine by token and frequency, `[tokens, 2, dim / 2]`.
    turns: Vec<f32>,
    dim: usize,
}

/// Which way to turn. The transpose of a rotation is its inverse, so the gradient is turned back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By the angle.
    Forward,
    /// By minus the angle.
    Back,
}

impl Rotation {
    /// Turns each token by its position times each of the `dim / 2` frequencies.
    ///
    /// # Panics
    /// There is another number of frequencies, or none.
    pub fn new(positions: &[u32], frequencies: &[f32], dim: usize) -> Self {
        assert!(
            dim > 0 && frequencies.len() * 2 == dim,
            "rotary: {} frequencies don't turn heads of dimension {dim}",
            frequencies.len()
        );
        let mut turns = Vec::with_capacity(positions.len() * dim);
        for &position in positions {
            let angles = frequencies.iter().map(|frequency| position as f32 * frequency);
            turns.extend(angles.clone().map(f32::cos));
            turns.extend(angles.map(f32::sin));
        }
        Self { turns, dim }
    }

    /// The rotation of the tokens `keep` in their order, each as often as it is named.
    ///
    /// # Panics
    /// There is no such token.
    pub fn at(&self, keep: &[u32]) -> Self {
        let token = |t: u32| &self.turns[t as usize * self.dim..][..self.dim];
        Self { turns: keep.iter().flat_map(|t| token(*t)).copied().collect(), dim: self.dim }
    }

    /// Turns `heads` heads of every token of `x: [tokens, width]` in place: the first starts at `first_column`, each
    /// other one `step` columns behind the one before it.
    ///
    /// # Panics
    /// There is another number of tokens, or the heads overlap or leave the row.
    pub fn turn(
        &self,
        x: &mut [f32],
        width: usize,
        first_column: usize,
        step: usize,
        heads: usize,
        direction: Direction,
    ) {
        let (dim, tokens) = (self.dim, blocks::count(x, width));
        assert_eq!(tokens * dim, self.turns.len(), "rotary: the rotation is for another number of tokens");
        let Some(last) = heads.checked_sub(1) else { return };
        assert!(
            first_column + last * step + dim <= width && (last == 0 || step >= dim),
            "rotary: {heads} heads from column {first_column} in steps of {step} aren't in rows of {width}"
        );
        let sign = match direction {
            Direction::Forward => 1.0,
            Direction::Back => -1.0,
        };
        blocks::each(
            tokens,
            heads * dim,
            (x, &self.turns[..]),
            #[inline(always)]
            |(x, turns): (&mut [f32], &[f32])| {
                let (cos, sin) = turns.split_at(dim / 2);
                for head in x[first_column..].chunks_mut(step.max(dim)).take(heads) {
                    turn(&mut head[..dim], cos, sin, sign);
                }
            },
        );
    }
}

/// Turns one head, by the angles with these cosines, and these sines times `sign`.
#[inline(always)]
fn turn(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let (a, b) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        let (x, y, sin) = (*a, *b, sign * sin);
        *a = x.mul_add(*cos, -(y * sin));
        *b = y.mul_add(*cos, x * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, numbers, same_bits, wide};
    use super::*;

    /// The heads' columns turned by the formula.
    fn expected(x: &[f32], angles: &[Vec<f32>], width: usize, starts: &[usize]) -> Vec<f64> {
        let mut y = wide(x);
        for (row, angles) in y.chunks_mut(width).zip(angles) {
            for start in starts {
                for (i, angle) in angles.iter().enumerate() {
                    let (sin, cos) = f64::from(*angle).sin_cos();
                    let (first, second) = (start + i, start + i + angles.len());
                    let (a, b) = (row[first], row[second]);
                    (row[first], row[second]) = (a * cos - b * sin, b * cos + a * sin);
                }
            }
        }
        y
    }

    #[test]
    fn turns_forward_and_back() {
        for (half, first, step, heads, width) in
            [(1, 0, 2, 1, 2), (3, 2, 6, 4, 30), (3, 1, 7, 3, 21), (32, 64, 64, 3, 256), (5, 0, 3, 1, 10)]
        {
            for rows in [0, 1, 5, 33] {
                let frequencies: Vec<f32> = (0..half).map(|i| 0.3f32.powi(i)).collect();
                let positions: Vec<u32> = (0..rows as u32).map(|i| i * 37 % 50).collect();
                let angles: Vec<Vec<f32>> =
                    positions.iter().map(|p| frequencies.iter().map(|f| *p as f32 * f).collect()).collect();
                let starts: Vec<usize> = (0..heads).map(|h| first + h * step).collect();
                let rotation = Rotation::new(&positions, &frequencies, 2 * half as usize);
                let before = numbers(rows * width, 1);
                let mut x = before.clone();
                rotation.turn(&mut x, width, first, step, heads, Direction::Forward);
                close(&x, &expected(&before, &angles, width, &starts), 3e-7);
                // The gradient: the transpose, which is the rotation by the negative angle.
                let back: Vec<Vec<f32>> = angles.iter().map(|a| a.iter().map(|a| -a).collect()).collect();
                let mut dx = before.clone();
                rotation.turn(&mut dx, width, first, step, heads, Direction::Back);
                close(&dx, &expected(&before, &back, width, &starts), 3e-7);
                rotation.turn(&mut x, width, first, step, heads, Direction::Back);
                close(&x, &wide(&before), 3e-7);
            }
        }
    }

    #[test]
    fn a_selection_turns_as_its_tokens_do() {
        let (positions, frequencies) = ([4, 9, 2, 7], [1.0, 0.1]);
        let selected = Rotation::new(&positions, &frequencies, 4).at(&[3, 0, 0, 2, 1]);
        assert_eq!(selected.turns, Rotation::new(&[7, 4, 4, 2, 9], &frequencies, 4).turns);
    }

    #[test]
    fn nan_stays_in_its_pair() {
        let rotation = Rotation::new(&[1, 2], &[1.0; 20], 40);
        let mut x = numbers(160, 1);
        x[83] = f32::NAN;
        rotation.turn(&mut x, 80, 0, 40, 2, Direction::Forward);
        assert!(x.iter().enumerate().all(|(i, x)| x.is_nan() == (i == 83 || i == 103)));
    }

    #[test]
    fn threads_change_nothing() {
        let rotation = Rotation::new(&(0..99).collect::<Vec<_>>(), &[0.1; 32], 64);
        same_bits(|| {
            let mut x = numbers(99 * 1000, 1);
            rotation.turn(&mut x, 1000, 10, 64, 15, Direction::Forward);
            x
        });
    }

    #[test]
    #[should_panic(expected = "3 heads from column 2 in steps of 4 aren't in rows of 13")]
    fn heads_beyond_the_row_are_refused() {
        Rotation::new(&[1], &[1.0; 2], 4).turn(&mut [0.0; 13], 13, 2, 4, 3, Direction::Forward);
    }
}
