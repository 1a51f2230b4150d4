//! Memory that is brought closer while a product is computed.
//!
//! Knows what will be read and written next, and how much of it a step asks for. It does not know how.

use super::target::Output;
use crate::model::ops::matmul::pack::Run;
use crate::model::ops::matmul::parts::Parts;

/// Memory that will be wanted soon: it is asked for while products are computed, some of it in every step.
pub struct Ahead {
    /// Four lines of each of two rows a step, for reading.
    pub(super) read: *const u8,
    /// From row to row, in bytes.
    pub(super) read_stride: usize,
    /// Two lines of each of two rows a step, for writing: the first and how far rows are apart.
    pub(super) write: Option<(*const u8, usize)>,
}

impl Ahead {
    /// Nothing.
    pub fn none() -> Self {
        // Asking for memory that does not exist would take longer than for what does.
        let line = NOTHING.as_ptr();
        Self { read: line, read_stride: 0, write: None }
    }

    /// And numbers that are read next: as many in a row as two steps ask for at most.
    pub fn and_read(self, numbers: &[u32]) -> Self {
        if numbers.is_empty() {
            return self;
        }
        Self { read: numbers.as_ptr().cast(), read_stride: WIDTH, ..self }
    }

    /// And the next rows of what is read next.
    pub fn and_read_rows(self, rows: Option<Run>) -> Self {
        match rows {
            Some(Run { first, stride }) => {
                Self { read: std::ptr::from_ref(first), read_stride: stride, ..self }
            }
            None => self,
        }
    }

    /// And what is written after the product: rows from this one on, from one of their columns on.
    pub fn and_write(self, output: &Output, row: usize, column: usize) -> Self {
        let row = output.rows.get(row).zip(output.stride);
        Self { write: row.map(|(row, stride)| (row.as_ptr().wrapping_add(column).cast(), stride)), ..self }
    }
}

/// Bytes of a row that a step asks for, for reading.
pub const WIDTH: usize = 4 * LINE;

/// Rows of which a step asks for so much.
pub fn rows_a_step(parts: Parts) -> usize {
    match parts {
        Parts::Rounded | Parts::One => 2,
        Parts::Two | Parts::Three => 4,
    }
}

static NOTHING: [u8; WIDTH] = [0; WIDTH];

/// Bytes of a cache line.
pub const LINE: usize = 64;
