//! Memory that begins on a cache line, so that no vector lies on two; and working memory that a thread keeps between
//! calls, because fresh memory costs page faults.
//!
//! It does not know what is kept in it.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

/// Numbers that begin on a cache line.
pub(super) struct Lined<T> {
    numbers: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Lined<T> {
    /// So many zeros.
    pub fn zeros(len: usize) -> Self {
        let spare = LINE / size_of::<T>();
        let numbers = vec![T::default(); len + spare];
        let start = numbers.as_ptr().align_offset(LINE).min(spare);
        Self { numbers, start, len }
    }
}

impl<T> Deref for Lined<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.numbers[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Lined<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.numbers[self.start..self.start + self.len]
    }
}

/// Numbers kept by a thread between calls.
pub(super) type Kept<T> = LocalKey<Cell<Vec<T>>>;

/// Length of a cache line in bytes.
const LINE: usize = 64;

/// Lends `len` numbers of arbitrary content that begin on a cache line. A nested call with the same `kept` is
/// allowed; it gets fresh memory.
pub(super) fn with<T: Copy + Default, R>(
    kept: &'static Kept<T>,
    len: usize,
    f: impl FnOnce(&mut [T]) -> R,
) -> R {
    let spare = LINE / size_of::<T>();
    let mut numbers = kept.take();
    if numbers.len() < len + spare {
        numbers = vec![T::default(); len + spare];
    }
    let start = numbers.as_ptr().align_offset(LINE).min(spare);
    let result = f(&mut numbers[start..start + len]);
    kept.set(numbers);
    result
}
