//! Matrices of f32 with a token in each row, whose memory is used again.
//!
//! A step makes and drops hundreds of matrices of a few sizes; fresh memory for each would cost more than many of
//! the operations on them. Knows nothing of what the numbers are.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Tensor};

use super::ModelError;
use super::lined::Lined;

/// Memory of matrices that are gone, for those to come.
#[derive(Clone, Debug, Default)]
pub struct Pool(Arc<Mutex<Vec<Lined<f32>>>>);

/// A matrix `[rows, width]`; its memory goes back to the pool it came from.
#[derive(Debug)]
pub struct Rows {
    numbers: Lined<f32>,
    width: usize,
    pool: Pool,
}

impl Pool {
    /// A matrix whose numbers are left from an earlier use: every one has to be written.
    pub fn rows(&self, rows: usize, width: usize) -> Rows {
        let len = rows * width;
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = free.iter().enumerate().filter(|(_, free)| free.capacity() >= len);
        let best = fits.min_by_key(|(_, free)| free.capacity()).map(|(i, _)| i);
        let best = best.map(|i| free.swap_remove(i));
        drop(free);
        // Batches differ a little in length: the next one shall fit as well.
        let mut numbers = best.unwrap_or_else(|| Lined::zeros(len + len / 4));
        numbers.resize(len);
        let mut rows = Rows { numbers, width, pool: self.clone() };
        if cfg!(test) {
            rows.fill(f32::NAN);
        }
        rows
    }

    /// A matrix of zeros.
    pub fn zeros(&self, rows: usize, width: usize) -> Rows {
        let mut matrix = self.rows(rows, width);
        matrix.fill(0.0);
        matrix
    }

    /// A copy of rows that lie end to end.
    pub fn copied(&self, values: &[f32], width: usize) -> Rows {
        let mut matrix = self.rows(values.len().checked_div(width).unwrap_or(0), width);
        matrix.copy_from_slice(values);
        matrix
    }

    /// A copy of a tensor `[rows, width]`.
    ///
    /// # Errors
    /// It is no matrix of f32.
    pub fn from_tensor(&self, tensor: &Tensor) -> Result<Rows, ModelError> {
        let (_, width) = tensor.dims2()?;
        Ok(self.copied(&tensor.flatten_all()?.to_vec1::<f32>()?, width))
    }
}

impl Rows {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.numbers.len().checked_div(self.width).unwrap_or(0)
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// A row.
    pub fn row(&self, index: usize) -> &[f32] {
        &self[index * self.width..][..self.width]
    }

    /// A matrix of the same sizes.
    pub fn like(&self) -> Self {
        self.pool.rows(self.rows(), self.width)
    }

    /// A matrix of the same sizes that `f` makes of this one.
    pub fn mapped(&self, f: impl FnOnce(&[f32], &mut [f32])) -> Self {
        let mut result = self.like();
        f(self, &mut result);
        result
    }

    /// The pool it came from.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// A copy of these rows, in this order; a row may be asked for several times.
    pub fn select(&self, rows: &[u32]) -> Self {
        let mut chosen = self.pool.rows(rows.len(), self.width);
        for (into, &row) in chosen.chunks_exact_mut(self.width.max(1)).zip(rows) {
            into.copy_from_slice(self.row(row as usize));
        }
        chosen
    }

    /// Adds row `i` of `parts` to row `rows[i]`, in their order; rows beyond the last are left out.
    pub fn add_at(&mut self, rows: &[u32], parts: &[f32]) {
        let (count, width) = (self.rows(), self.width);
        for (part, &row) in parts.chunks_exact(width.max(1)).zip(rows) {
            if (row as usize) < count {
                let into = &mut self.numbers[row as usize * width..][..width];
                into.iter_mut().zip(part).for_each(|(a, b)| *a += b);
            }
        }
    }

    /// Forgets all but the first `rows` rows.
    pub fn truncate(&mut self, rows: usize) {
        self.numbers.resize(self.numbers.len().min(rows * self.width));
    }

    /// A tensor `[rows, width]` on the processor.
    ///
    /// # Errors
    /// None that is known of; candle's constructor has the type.
    pub fn to_tensor(&self) -> Result<Tensor, ModelError> {
        Ok(Tensor::from_slice(self, (self.rows(), self.width), &Device::Cpu)?)
    }
}

impl Deref for Rows {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.numbers
    }
}

impl DerefMut for Rows {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.numbers
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        let numbers = std::mem::take(&mut self.numbers);
        self.pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(numbers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_by_what_fits_best() {
        let pool = Pool::default();
        let (large, small) = (pool.rows(100, 10), pool.rows(10, 10));
        let (large_at, small_at) = (large.as_ptr(), small.as_ptr());
        drop((large, small));
        let again = [pool.rows(9, 10), pool.rows(9, 10)];
        assert_eq!([again[0].as_ptr(), again[1].as_ptr()], [small_at, large_at]);
    }

    #[test]
    fn rows_are_selected_and_added_back_where_they_came_from() {
        let pool = Pool::default();
        let mut x = pool.copied(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2);
        let chosen = x.select(&[2, 0, 2]);
        assert_eq!(*chosen, [5.0, 6.0, 1.0, 2.0, 5.0, 6.0]);
        x.truncate(2);
        x.add_at(&[2, 0, 1], &chosen);
        assert_eq!(*x, [2.0, 4.0, 8.0, 10.0]);
    }
}
