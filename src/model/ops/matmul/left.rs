//! The left factor of a product: rows that are there, or that are made where they are needed.
//!
//! What is made never goes through memory as a whole, where a kernel packs a few rows at a time. Knows nothing of
//! how they are packed.

use std::cell::Cell;
use std::ops::Range;

use super::{Threads, each, scratch};
use crate::model::lined::Lined;

/// Rows x `[rows, depth]` of a product.
#[derive(Clone, Copy)]
pub enum Left<'a> {
    /// All of them, end to end.
    There(&'a [f32]),
    /// Those that this writes where it is told, given a row's index; any thread may ask it for any row.
    Made(&'a (dyn Fn(usize, &mut [f32]) + Sync)),
}

thread_local! {
    static SOME: Cell<Lined<f32>> = const { Cell::new(Lined::new()) };
    static ALL: Cell<Lined<f32>> = const { Cell::new(Lined::new()) };
}

/// Rows that a thread makes at a time where all are wanted.
const GROUP: usize = 8;

impl Left<'_> {
    /// Lends some of the rows.
    pub(super) fn with_some(self, rows: Range<usize>, depth: usize, f: impl FnOnce(&[f32])) {
        match self {
            Self::There(x) => f(&x[rows.start * depth..rows.end * depth]),
            Self::Made(make) => scratch::with(&SOME, rows.len() * depth, |made| {
                rows.zip(made.chunks_exact_mut(depth)).for_each(|(row, out)| make(row, out));
                f(made);
            }),
        }
    }

    /// Lends all rows, of which there are so many.
    pub(super) fn with_all(self, rows: usize, depth: usize, threads: Threads, f: impl FnOnce(&[f32])) {
        match self {
            Self::There(x) => f(x),
            Self::Made(make) => scratch::with(&ALL, rows * depth, |made| {
                let groups = made.chunks_mut(GROUP * depth).enumerate().collect();
                each(threads, groups, |(group, out): (usize, &mut [f32])| {
                    let out = out.chunks_exact_mut(depth).enumerate();
                    out.for_each(|(i, out)| make(group * GROUP + i, out));
                });
                f(made);
            }),
        }
    }
}
