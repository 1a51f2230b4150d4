//! Where the gradients of weights are added up, and vectors of weights that know where theirs go.
//!
//! Knows tensors by their number alone; the names are the model's parameters' to know.

use std::ops::{Deref, Range};

use rayon::prelude::*;

use super::blocks;

/// The number of a tensor among a model's parameters.
pub type TensorId = usize;

/// Columns whose sums a thread keeps at a time.
const COLUMNS: usize = 64;

/// A gradient for every parameter of a model, in the order of the parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients(Vec<Vec<f32>>);

impl Gradients {
    /// Zeros, for tensors of so many numbers.
    pub fn zeros(lengths: impl Iterator<Item = usize>) -> Self {
        Self(lengths.map(|len| vec![0.0; len]).collect())
    }

    /// The gradient of each tensor.
    pub fn tensors(&self) -> &[Vec<f32>] {
        &self.0
    }

    /// The gradient of each tensor, to be changed.
    pub fn tensors_mut(&mut self) -> &mut [Vec<f32>] {
        &mut self.0
    }

    /// The numbers of one tensor's gradient.
    pub(super) fn of(&mut self, tensor: TensorId) -> &mut [f32] {
        &mut self.0[tensor]
    }
}

/// A bias, or a norm's weight: a copy of the numbers, and the tensors they are parts of if those are trained.
#[derive(Clone, Debug)]
pub struct Vector {
    numbers: Vec<f32>,
    /// One after the other as long as the numbers, or none: frozen.
    sources: Vec<Source>,
}

/// A stretch of a stored tensor.
#[derive(Clone, Debug)]
struct Source {
    tensor: TensorId,
    numbers: Range<usize>,
}

impl Vector {
    /// All numbers of a tensor that is trained.
    pub fn trained(numbers: Vec<f32>, tensor: TensorId) -> Self {
        let source = Source { tensor, numbers: 0..numbers.len() };
        Self { numbers, sources: vec![source] }
    }

    /// Some of the numbers.
    ///
    /// # Panics
    /// There are fewer.
    pub fn part(&self, range: Range<usize>) -> Self {
        let mut end = 0;
        let within = self.sources.iter().filter_map(|source| {
            let first = end;
            end += source.numbers.len();
            let (from, to) = (range.start.max(first), range.end.min(end));
            let numbers = (from < to)
                .then(|| from - first + source.numbers.start..to - first + source.numbers.start)?;
            Some(Source { tensor: source.tensor, numbers })
        });
        Self { sources: within.collect(), numbers: self.numbers[range.clone()].to_vec() }
    }

    /// Vectors end to end: all of them are trained, or none is.
    pub fn joined(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self::from(Vec::new());
        for part in parts {
            all.numbers.extend(part.numbers);
            all.sources.extend(part.sources);
        }
        all
    }

    /// The stretches of stored tensors that it consists of, one after the other; none: it is frozen.
    pub fn sources(&self) -> impl Iterator<Item = (TensorId, Range<usize>)> {
        self.sources.iter().map(|source| (source.tensor, source.numbers.clone()))
    }

    /// Adds the sum of the rows `[rows, len]` to the vector's gradient.
    pub fn add_sum(&self, rows: &[f32], gradients: &mut Gradients) {
        let mut column = 0;
        for Source { tensor, numbers } in &self.sources {
            add_columns(rows, self.numbers.len(), column, &mut gradients.of(*tensor)[numbers.clone()]);
            column += numbers.len();
        }
    }
}

impl From<Vec<f32>> for Vector {
    /// Numbers that are frozen.
    fn from(numbers: Vec<f32>) -> Self {
        Self { numbers, sources: Vec::new() }
    }
}

impl Deref for Vector {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.numbers
    }
}

/// Adds to each of `sums` the sum of a column of the rows, from column `first` on; in f64, down the rows.
fn add_columns(rows: &[f32], width: usize, first: usize, sums: &mut [f32]) {
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, sums)| {
        let first = first + i * COLUMNS;
        blocks::dispatch(
            sums,
            #[inline(always)]
            |sums: &mut [f32]| {
                let mut totals = [0.0f64; COLUMNS];
                for row in rows.chunks_exact(width) {
                    for (total, x) in totals.iter_mut().zip(&row[first..first + sums.len()]) {
                        *total += f64::from(*x);
                    }
                }
                for (sum, total) in sums.iter_mut().zip(totals) {
                    *sum += total as f32;
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, numbers, same_bits};
    use super::*;

    #[test]
    fn sums_go_where_the_numbers_came_from() {
        let whole = Vector::trained(numbers(10, 1), 1);
        // Two numbers of another tensor before numbers 6..9 and 2..4 of the first.
        let vector = Vector::joined([Vector::trained(vec![7.0; 2], 0), whole.part(6..9), whole.part(2..4)]);
        assert_eq!(vector[2..], [&whole[6..9], &whole[2..4]].concat());
        let cut = vector.part(1..6);
        let rows: Vec<f32> = (1..=10).map(|i| i as f32).collect();
        let mut gradients = Gradients::zeros([2, 10].into_iter());
        cut.add_sum(&rows, &mut gradients);
        cut.add_sum(&rows, &mut gradients);
        let expected = [0.0, 0.0, 2.0 * 15.0, 0.0, 0.0, 0.0, 2.0 * 9.0, 2.0 * 11.0, 2.0 * 13.0, 0.0];
        assert_eq!(gradients.tensors(), [vec![0.0, 2.0 * 7.0], expected.to_vec()]);
    }

    #[test]
    fn long_sums_are_exact_whatever_the_threads() {
        let (tokens, width) = (3000, 150);
        let rows: Vec<f32> = numbers(tokens * width, 1).iter().map(|x| x + 10.0).collect();
        let vector = Vector::trained(vec![0.0; width], 0);
        let run = || {
            let mut gradients = Gradients::zeros(std::iter::once(width));
            vector.add_sum(&rows, &mut gradients);
            gradients.tensors()[0].clone()
        };
        let column = |j: usize| rows.iter().skip(j).step_by(width).map(|x| f64::from(*x)).sum();
        close(&run(), &(0..width).map(column).collect::<Vec<f64>>(), 1e-7);
        same_bits(run);
    }

    #[test]
    fn a_frozen_vector_has_no_gradient() {
        let mut gradients = Gradients::zeros([2].into_iter());
        Vector::from(vec![1.0, 2.0]).add_sum(&[1.0; 4], &mut gradients);
        assert_eq!(gradients.tensors(), [vec![0.0; 2]]);
    }
}
