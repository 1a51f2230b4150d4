//! Memory that begins on a cache line, so that no vector of a matrix whose rows are whole lines lies on two.
//!
//! It does not know what is kept in it.

use std::ops::{Deref, DerefMut};

/// Numbers that begin on a cache line.
#[derive(Debug, Default)]
pub struct Lined<T> {
    numbers: Vec<T>,
    start: usize,
    len: usize,
}

/// Length of a cache line in bytes.
const LINE: usize = 64;

impl<T> Lined<T> {
    /// No numbers, and no memory.
    pub const fn new() -> Self {
        Self { numbers: Vec::new(), start: 0, len: 0 }
    }

    /// As many numbers as it can have in the memory that it has.
    pub fn capacity(&self) -> usize {
        self.numbers.len() - self.start
    }
}

impl<T: Copy + Default> Lined<T> {
    /// So many zeros.
    pub fn zeros(len: usize) -> Self {
        let spare = LINE / size_of::<T>();
        let numbers = vec![T::default(); len + spare];
        let start = numbers.as_ptr().align_offset(LINE).min(spare);
        Self { numbers, start, len }
    }

    /// Makes it so many numbers of arbitrary content: what an earlier use left, or zeros where there is not the room.
    pub fn resize(&mut self, len: usize) {
        if len > self.capacity() {
            *self = Self::zeros(len);
        }
        self.len = len;
    }
}

impl<T> AsRef<[T]> for Lined<T> {
    fn as_ref(&self) -> &[T] {
        self
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_begin_on_a_line_and_stay_where_there_is_room() {
        let mut numbers = Lined::<f32>::new();
        for len in [1, 1000, 17, 0, 3000, 3000] {
            let (before, at) = (numbers.capacity(), numbers.as_ptr());
            numbers.resize(len);
            assert_eq!((numbers.len(), numbers.as_ptr().addr() % LINE), (len, 0));
            assert!(numbers.as_ptr() == at || len > before);
            numbers.fill(1.0);
        }
    }
}
