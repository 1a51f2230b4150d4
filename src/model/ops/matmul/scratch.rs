//! Working memory that a thread keeps between calls, because fresh memory costs page faults.
//!
//! It does not know what is kept in it.

use std::cell::Cell;
use std::thread::LocalKey;

/// Numbers kept by a thread between calls.
pub(super) type Kept<T> = LocalKey<Cell<Vec<T>>>;

/// Length of a cache line, on which working memory begins.
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
