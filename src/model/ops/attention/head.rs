//! Attention of the query heads that share one key/value head, within one segment: a task for one thread.
//!
//! Knows which keys its queries see, and so which parts of the products count; does not know of other segments, other
//! heads or threads, nor how products are computed.

use std::ops::Range;

use super::padded::Padded;
use super::softmax::Row;
use crate::model::layout::Query;
use crate::model::ops::dropout::Mask;

/// What is computed of a product, and how many terms its sums have.
pub struct Part {
    /// Some rows of the result.
    pub rows: Range<usize>,
    /// The first columns; as many more may be computed as make up what a kernel computes at a time.
    pub columns: usize,
    /// What is summed up; around it everything is 0.
    pub depth: Range<usize>,
}

/// One key/value head of one segment, and the query heads that it serves.
pub struct Head<'a> {
    /// Query heads that it serves.
    pub group: usize,
    /// Numbers a head.
    pub dim: usize,
    /// What a product of query and key is multiplied by.
    pub scale: f32,
    /// ALiBi slopes of the query heads, if any.
    pub slopes: Option<&'a [f32]>,
    /// The query matrix.
    pub q: Heads<'a>,
    /// The key/value matrix's rows of the prefix, if the segment sees it, of a branch's trunk, and of the segment.
    pub keys: [Heads<'a>; 3],
    /// The same for the values.
    pub values: [Heads<'a>; 3],
    /// The segment's queries, those that see less first.
    pub queries: &'a [Query],
    /// Which probabilities are dropped, if any.
    pub dropped: Option<Dropped>,
}

/// Which probabilities of some query heads are dropped.
#[derive(Clone, Copy)]
pub struct Dropped {
    /// A row for each query head of each query.
    pub mask: Mask,
    /// The first of the query heads.
    pub first: usize,
    /// How many query heads the queries have in all.
    pub heads: usize,
}

/// Some columns of each row of a matrix, from `column` on.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    /// The whole rows.
    pub values: &'a [f32],
    /// Numbers a row.
    pub width: usize,
    /// The first column.
    pub column: usize,
}

impl<'a> Heads<'a> {
    fn count(&self) -> usize {
        self.values.len() / self.width
    }

    /// `count` numbers of each row.
    fn rows(self, count: usize) -> impl Iterator<Item = &'a [f32]> {
        self.values.chunks_exact(self.width).map(move |row| &row[self.column..][..count])
    }

    /// `count` numbers of a row.
    fn row(self, row: usize, count: usize) -> &'a [f32] {
        &self.values[row * self.width + self.column..][..count]
    }
}

/// Where a task puts the gradients of keys and values, each `[dim]`: key and value of each of the prefix's tokens
/// one behind the other in one slice, and a slice for the key and one for the value of each token of the segment.
pub struct KeyValueGradient<'a, 'b> {
    /// `[prefix, 2, dim]`.
    pub prefix: &'a mut [f32],
    /// `[tokens, 2]` slices of `dim` numbers.
    pub own: &'a mut [&'b mut [f32]],
}

impl KeyValueGradient<'_, '_> {
    /// Makes it what the first rows of these matrices are, with a key or a value in each; 0 where no query sees them.
    pub fn fill(self, dim: usize, seen: usize, gradients: [&Padded; 2]) {
        let own = self.own.iter_mut().map(|place| &mut **place);
        let places = self.prefix.chunks_exact_mut(dim).chain(own);
        for (i, place) in places.enumerate() {
            if i / 2 < seen {
                place.copy_from_slice(&gradients[i % 2].row(i / 2)[..dim]);
            } else {
                place.fill(0.0);
            }
        }
    }
}

impl Head<'_> {
    /// Multiplications, about: for the order of tasks.
    pub fn work(&self) -> usize {
        self.queries.iter().map(|query| self.prefix() + query.sees as usize).sum()
    }

    /// Dropout of probabilities, or of their gradients.
    pub fn drop_some(&self, queries: &[Query], p: &mut Padded) {
        let Some(Dropped { mask, first, heads }) = self.dropped else { return };
        for (i, row) in p.rows_mut().take(queries.len() * self.group).enumerate() {
            let query = queries[i / self.group].row as usize;
            mask.apply_row((query * heads + first + i % self.group) as u64, row);
        }
    }

    /// What of each of these queries' rows of scores counts, and its slope.
    pub fn softmax_rows(&self, queries: &[Query]) -> impl Iterator<Item = Row> {
        (0..queries.len() * self.group).map(|row| Row {
            seen: self.seen(queries, row),
            slope: self.slopes.map_or(0.0, |slopes| slopes[row % self.group]),
        })
    }

    /// How many tokens of the prefix the segment sees.
    fn prefix(&self) -> usize {
        self.keys[0].count()
    }

    /// How many keys a row of a block of queries sees.
    fn seen(&self, queries: &[Query], row: usize) -> usize {
        self.prefix() + queries[row / self.group].sees as usize
    }

    /// How many keys at least one of these queries sees.
    pub fn seen_by(&self, queries: &[Query]) -> usize {
        queries.last().map_or(0, |query| self.prefix() + query.sees as usize)
    }

    /// How many queries have about so many rows of scores, at least one.
    pub fn queries_of(&self, rows: usize) -> usize {
        (rows / self.group).max(1)
    }

    /// The heads of each query in a matrix with a row for each query.
    pub fn rows<'a>(&self, queries: &[Query], from: Heads<'a>) -> impl Iterator<Item = &'a [f32]> {
        let count = self.group * self.dim;
        queries.iter().map(move |query| from.row(query.row as usize, count))
    }

    /// The keys or the values, as far as a query sees them.
    pub fn seen_rows<'a>(&self, parts: [Heads<'a>; 3]) -> Vec<&'a [f32]> {
        let seen = self.seen_by(self.queries);
        let mut rows = Vec::with_capacity(seen);
        for part in parts {
            rows.extend(part.rows(self.dim).take(seen - rows.len()));
        }
        rows
    }

    /// Of a product with a column for each key what these queries see, `height` rows at a time.
    pub fn of_keys(&self, queries: &[Query], height: usize) -> impl Iterator<Item = Part> {
        let part = |rows: Range<usize>| {
            let columns = self.seen(queries, rows.end - 1);
            Part { rows, columns, depth: 0..self.dim }
        };
        pieces(queries.len() * self.group, height).map(part)
    }

    /// Sums over the keys that these queries see, `height` rows at a time.
    pub fn over_keys(&self, queries: &[Query], height: usize) -> impl Iterator<Item = Part> {
        let part = |rows: Range<usize>| {
            let depth = 0..self.seen(queries, rows.end - 1);
            Part { rows, columns: self.dim, depth }
        };
        pieces(queries.len() * self.group, height).map(part)
    }

    /// For each key, `height` at a time, sums over those of these queries that see it.
    pub fn over_queries(&self, queries: &[Query], height: usize) -> impl Iterator<Item = Part> {
        let part = |keys: Range<usize>| {
            let first = queries.partition_point(|query| self.seen_by(&[*query]) <= keys.start);
            let depth = first * self.group..queries.len() * self.group;
            Part { rows: keys, columns: self.dim, depth }
        };
        pieces(self.seen_by(queries), height).map(part)
    }
}

/// So many rows, `height` at a time.
fn pieces(rows: usize, height: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(height).map(move |start| start..rows.min(start + height))
}
