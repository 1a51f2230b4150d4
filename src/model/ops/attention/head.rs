//! Attention of the query heads that share one key/value head, within one segment: a task for one thread.
//!
//! Knows which keys its queries see and works on a block of queries at a time, so that memory does not grow with
//! the square of a segment's length; does not know of other segments, other heads or threads.

use std::cell::RefCell;
use std::ops::Range;

use super::padded::Padded;
use super::product::{Part, ROWS, RowsMut, add_transposed_product, product};
use super::softmax::{Row, softmax, softmax_backward};
use crate::model::layout::Query;
use crate::model::ops::dropout::Mask;

/// About how many rows of scores (queries × query heads) are computed at a time.
const BLOCK: usize = 8 * ROWS;

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

/// Memory of a thread for one task after the other.
#[derive(Default)]
struct Scratch {
    q: Padded,
    keys: Padded,
    values: Padded,
    keys_transposed: Padded,
    values_transposed: Padded,
    p: Padded,
    d_mixed: Padded,
    d_p: Padded,
    d_keys: Padded,
    d_values: Padded,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Head<'_> {
    /// Multiplications, about: for the order of tasks.
    pub fn work(&self) -> usize {
        self.queries.iter().map(|query| self.prefix() + query.sees as usize).sum()
    }

    /// `out`: for each query its slice of the output, `[group · dim]`.
    pub fn forward(&self, out: &mut [&mut [f32]]) {
        SCRATCH.with_borrow_mut(|Scratch { q, keys_transposed, values, p, .. }| {
            let [key_rows, value_rows] = [self.keys, self.values].map(|parts| self.seen_rows(parts));
            keys_transposed.transpose(self.dim, &key_rows);
            values.pack(value_rows.len(), self.dim, value_rows.into_iter());
            let each = self.queries_a_block();
            for (queries, out) in self.queries.chunks(each).zip(out.chunks_mut(each)) {
                self.probabilities(queries, q, keys_transposed, p);
                self.drop_some(queries, p);
                product(&mut self.places(out), self.over_keys(queries), p, values);
            }
        });
    }

    /// `d_out`: the gradient of the output, `[queries, heads · dim]`; `d_q`: for each query its slice of the
    /// gradient, `[group · dim]`. Everything is overwritten.
    pub fn backward(&self, d_out: Heads, d_q: &mut [&mut [f32]], d_kv: KeyValueGradient) {
        SCRATCH.with_borrow_mut(|scratch| {
            let seen = self.seen_by(self.queries);
            let key_rows = self.seen_rows(self.keys);
            scratch.keys.pack(seen, self.dim, key_rows.iter().copied());
            scratch.keys_transposed.transpose(self.dim, &key_rows);
            scratch.values_transposed.transpose(self.dim, &self.seen_rows(self.values));
            scratch.d_keys.clear(seen, self.dim);
            scratch.d_values.clear(seen, self.dim);
            let each = self.queries_a_block();
            for (queries, d_q) in self.queries.chunks(each).zip(d_q.chunks_mut(each)) {
                self.backward_block(queries, d_out, d_q, scratch);
            }
            let own = d_kv.own.iter_mut().map(|place| &mut **place);
            let places = d_kv.prefix.chunks_exact_mut(self.dim).chain(own);
            for (i, place) in places.enumerate() {
                let gradient = if i % 2 == 0 { &scratch.d_keys } else { &scratch.d_values };
                if i / 2 < seen {
                    place.copy_from_slice(&gradient.row(i / 2)[..self.dim]);
                } else {
                    place.fill(0.0);
                }
            }
        });
    }

    /// Fills `d_q`, adds to `d_keys` and `d_values`.
    fn backward_block(&self, queries: &[Query], d_out: Heads, d_q: &mut [&mut [f32]], scratch: &mut Scratch) {
        let Scratch {
            q, keys, keys_transposed, values_transposed, p, d_mixed, d_p, d_keys, d_values, ..
        } = scratch;
        let (rows, all) = (queries.len() * self.group, self.seen_by(queries));
        self.probabilities(queries, q, keys_transposed, p);
        d_mixed.pack(rows, self.dim, self.rows(queries, d_out));
        d_p.reshape(rows, all);
        product(d_p, self.of_keys(queries), d_mixed, values_transposed);
        self.drop_some(queries, d_p);
        softmax_backward(p, d_p, self.scale, self.softmax_rows(queries));
        self.drop_some(queries, p);
        product(&mut self.places(d_q), self.over_keys(queries), d_p, keys);
        add_transposed_product(d_values, self.over_queries(queries), p, d_mixed);
        add_transposed_product(d_keys, self.over_queries(queries), d_p, q);
    }

    /// Fills `q` and `p`: the softmax of these queries' scores, a row for each query head of each query.
    fn probabilities(&self, queries: &[Query], q: &mut Padded, keys_transposed: &Padded, p: &mut Padded) {
        let rows = queries.len() * self.group;
        // Copied although they could be read where they are: a copy waits for many rows' memory at a time.
        q.pack(rows, self.dim, self.rows(queries, self.q));
        p.reshape(rows, self.seen_by(queries));
        product(p, self.of_keys(queries), q, keys_transposed);
        softmax(p, self.scale, self.softmax_rows(queries));
    }

    /// Dropout of probabilities, or of their gradients.
    fn drop_some(&self, queries: &[Query], p: &mut Padded) {
        let Some(Dropped { mask, first, heads }) = self.dropped else { return };
        for (i, row) in p.rows_mut().enumerate() {
            let query = queries[i / self.group].row as usize;
            mask.apply_row((query * heads + first + i % self.group) as u64, row);
        }
    }

    fn softmax_rows(&self, queries: &[Query]) -> impl Iterator<Item = Row> {
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
    fn seen_by(&self, queries: &[Query]) -> usize {
        queries.last().map_or(0, |query| self.prefix() + query.sees as usize)
    }

    fn queries_a_block(&self) -> usize {
        (BLOCK / self.group).max(1)
    }

    /// The heads of each query in a matrix with a row for each query.
    fn rows<'a>(&self, queries: &[Query], from: Heads<'a>) -> impl Iterator<Item = &'a [f32]> {
        let count = self.group * self.dim;
        queries.iter().map(move |query| from.row(query.row as usize, count))
    }

    /// The keys or the values, as far as a query sees them.
    fn seen_rows<'a>(&self, parts: [Heads<'a>; 3]) -> Vec<&'a [f32]> {
        let seen = self.seen_by(self.queries);
        let mut rows = Vec::with_capacity(seen);
        for part in parts {
            rows.extend(part.rows(self.dim).take(seen - rows.len()));
        }
        rows
    }

    /// Of a product with a column for each key, what these queries see.
    fn of_keys(&self, queries: &[Query]) -> impl Iterator<Item = Part> {
        let part = |rows: Range<usize>| {
            let columns = self.seen(queries, rows.end - 1);
            Part { rows, columns, depth: 0..self.dim }
        };
        tiles(0..queries.len() * self.group).map(part)
    }

    /// Sums over the keys that these queries see.
    fn over_keys(&self, queries: &[Query]) -> impl Iterator<Item = Part> {
        let part = |rows: Range<usize>| {
            let depth = 0..self.seen(queries, rows.end - 1);
            Part { rows, columns: self.dim, depth }
        };
        tiles(0..queries.len() * self.group).map(part)
    }

    /// For each key, sums over those of these queries that see it.
    fn over_queries(&self, queries: &[Query]) -> impl Iterator<Item = Part> {
        let part = |keys: Range<usize>| {
            let first = queries.partition_point(|query| self.seen_by(&[*query]) <= keys.start);
            let depth = first * self.group..queries.len() * self.group;
            Part { rows: keys, columns: self.dim, depth }
        };
        tiles(0..self.seen_by(queries)).map(part)
    }

    /// Each query's place as rows.
    fn places<'a, 'b>(&self, places: &'a mut [&'b mut [f32]]) -> Places<'a, 'b> {
        Places { places, group: self.group, dim: self.dim }
    }
}

/// Places for `group` rows of `dim` numbers each.
struct Places<'a, 'b> {
    places: &'a mut [&'b mut [f32]],
    group: usize,
    dim: usize,
}

impl RowsMut for Places<'_, '_> {
    #[inline(always)]
    fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.places[index / self.group][index % self.group * self.dim..][..self.dim]
    }
}

/// Consecutive parts of a range, each of as many rows as a product computes at a time.
fn tiles(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    rows.clone().step_by(ROWS).map(move |start| start..(start + ROWS).min(rows.end))
}
