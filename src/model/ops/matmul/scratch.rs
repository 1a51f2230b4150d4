//! Working memory that a thread keeps between calls, because fresh memory costs page faults.
//!
//! It does not know what is kept in it.

use std::cell::Cell;
use std::thread::LocalKey;

use crate::model::lined::Lined;

/// Numbers kept by a thread between calls.
pub(super) type Kept<T> = LocalKey<Cell<Lined<T>>>;

/// Lends `len` numbers of arbitrary content that begin on a cache line. A nested call with the same `kept` is
/// allowed; it gets fresh memory.
pub(super) fn with<T: Copy + Default, R>(
    kept: &'static Kept<T>,
    len: usize,
    f: impl FnOnce(&mut [T]) -> R,
) -> R {
    let mut numbers = kept.take();
    numbers.resize(len);
    let result = f(&mut numbers);
    kept.set(numbers);
    result
}
