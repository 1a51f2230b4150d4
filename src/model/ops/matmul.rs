//! Matrix products over strided views of f32 slices.
//!
//! The one place that calls the `gemm` crate: a product with a transposed or a head's columns needs no copy.

use gemm::Parallelism;

/// A view of a matrix.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `columns` numbers that begin `row_stride` apart.
    ///
    /// # Panics
    /// The slice is too short for them.
    pub fn new(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(fits(data.len(), rows, columns, row_stride), "matrix view outside its slice");
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// The same numbers with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

fn fits(len: usize, rows: usize, columns: usize, row_stride: usize) -> bool {
    rows == 0 || columns == 0 || (rows - 1) * row_stride + columns <= len
}

/// A view of a matrix that is written, row by row.
pub struct MatrixMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// Rows of `columns` numbers that begin `row_stride` apart.
    ///
    /// # Panics
    /// The slice is too short for them, or rows overlap.
    pub fn new(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(fits(data.len(), rows, columns, row_stride), "matrix view outside its slice");
        assert!(rows < 2 || row_stride >= columns, "rows of a written matrix overlap");
        Self { data, rows, columns, row_stride }
    }
}

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread: for products inside a parallel loop.
    One,
    /// All of rayon's.
    All,
}

/// `out = scale · left · right`.
pub fn product(out: MatrixMut, scale: f32, left: Matrix, right: Matrix, threads: Threads) {
    run(out, false, scale, left, right, threads);
}

/// `out += scale · left · right`.
pub fn add_product(out: MatrixMut, scale: f32, left: Matrix, right: Matrix, threads: Threads) {
    run(out, true, scale, left, right, threads);
}

fn run(out: MatrixMut, accumulate: bool, scale: f32, left: Matrix, right: Matrix, threads: Threads) {
    let (m, n, k) = (out.rows, out.columns, left.columns);
    assert!(left.rows == m && right.columns == n && right.rows == k, "sizes of a matrix product differ");
    if m == 0 || n == 0 {
        return;
    }
    let threads = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: the views were checked against their slices when they were made, the sizes agree, and `out` is
    // borrowed mutably, so it overlaps neither operand nor itself.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.data.as_mut_ptr(),
            1,
            out.row_stride as isize,
            accumulate,
            left.data.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            threads,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_of_strided_and_transposed_views() {
        // left: columns 1..3 of a 2x4 matrix; right: the transpose of a 3x2 matrix.
        let left = [9.0, 1.0, 2.0, 9.0, 9.0, 3.0, 4.0, 9.0];
        let right = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0];
        let mut out = [5.0; 8];
        let left = Matrix::new(&left[1..], 2, 2, 4);
        let right = Matrix::new(&right, 3, 2, 2).transposed();
        product(MatrixMut::new(&mut out, 2, 3, 4), 2.0, left, right, Threads::One);
        assert_eq!(out, [2.0, 4.0, 6.0, 5.0, 6.0, 8.0, 14.0, 5.0]);
        add_product(MatrixMut::new(&mut out, 2, 3, 4), -2.0, left, right, Threads::All);
        assert_eq!(out, [0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 5.0]);
    }

    #[test]
    #[should_panic(expected = "matrix view outside its slice")]
    fn a_view_must_lie_in_its_slice() {
        Matrix::new(&[0.0; 7], 2, 4, 4);
    }
}
