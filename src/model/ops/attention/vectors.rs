//! One key/value head's attention by the processor's vectors, in f32.
//!
//! Works on a block of queries at a time, so that memory does not grow with the square of a segment's length. Does not know
//! which keys a query sees.

use std::cell::RefCell;

use super::head::{Head, Heads, KeyValueGradient};
use super::padded::Padded;
use super::product::{ROWS, RowsMut, add_transposed_product, product};
use super::softmax::{softmax, softmax_backward};
use crate::model::layout::Query;

/// About how many rows of scores (queries × query heads) are computed at a time.
const BLOCK: usize = 8 * ROWS;

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

/// `out`: for each query its slice of the output, `[group · dim]`.
pub fn forward(head: &Head, out: &mut [&mut [f32]]) {
    SCRATCH.with_borrow_mut(|Scratch { q, keys_transposed, values, p, .. }| {
        let [key_rows, value_rows] = [head.keys, head.values].map(|parts| head.seen_rows(parts));
        keys_transposed.transpose(head.dim, &key_rows);
        values.pack(value_rows.len(), head.dim, value_rows.into_iter());
        let each = head.queries_of(BLOCK);
        for (queries, out) in head.queries.chunks(each).zip(out.chunks_mut(each)) {
            probabilities(head, queries, q, keys_transposed, p);
            head.drop_some(queries, p);
            product(&mut Places::of(head, out), head.over_keys(queries, ROWS), p, values);
        }
    });
}

/// `d_out`: the gradient of the output, `[queries, heads · dim]`; `d_q`: for each query its slice of the gradient,
/// `[group · dim]`. Everything is overwritten.
pub fn backward(head: &Head, d_out: Heads, d_q: &mut [&mut [f32]], d_kv: KeyValueGradient) {
    SCRATCH.with_borrow_mut(|scratch| {
        let key_rows = head.seen_rows(head.keys);
        let seen = key_rows.len();
        scratch.keys.pack(seen, head.dim, key_rows.iter().copied());
        scratch.keys_transposed.transpose(head.dim, &key_rows);
        scratch.values_transposed.transpose(head.dim, &head.seen_rows(head.values));
        scratch.d_keys.clear(seen, head.dim);
        scratch.d_values.clear(seen, head.dim);
        let each = head.queries_of(BLOCK);
        for (queries, d_q) in head.queries.chunks(each).zip(d_q.chunks_mut(each)) {
            backward_block(head, queries, d_out, d_q, scratch);
        }
        d_kv.fill(head.dim, seen, [&scratch.d_keys, &scratch.d_values]);
    });
}

/// Fills `d_q`, adds to `d_keys` and `d_values`.
fn backward_block(
    head: &Head,
    queries: &[Query],
    d_out: Heads,
    d_q: &mut [&mut [f32]],
    scratch: &mut Scratch,
) {
    let Scratch { q, keys, keys_transposed, values_transposed, p, d_mixed, d_p, d_keys, d_values, .. } =
        scratch;
    let (rows, all) = (queries.len() * head.group, head.seen_by(queries));
    probabilities(head, queries, q, keys_transposed, p);
    d_mixed.pack(rows, head.dim, head.rows(queries, d_out));
    d_p.reshape(rows, all);
    product(d_p, head.of_keys(queries, ROWS), d_mixed, values_transposed);
    head.drop_some(queries, d_p);
    softmax_backward(p, d_p, head.scale, head.softmax_rows(queries));
    head.drop_some(queries, p);
    product(&mut Places::of(head, d_q), head.over_keys(queries, ROWS), d_p, keys);
    add_transposed_product(d_values, head.over_queries(queries, ROWS), p, d_mixed);
    add_transposed_product(d_keys, head.over_queries(queries, ROWS), d_p, q);
}

/// Fills `q` and `p`: the softmax of these queries' scores, a row for each query head of each query.
fn probabilities(head: &Head, queries: &[Query], q: &mut Padded, keys_transposed: &Padded, p: &mut Padded) {
    let rows = queries.len() * head.group;
    // Copied although they could be read where they are: a copy waits for many rows' memory at a time.
    q.pack(rows, head.dim, head.rows(queries, head.q));
    p.reshape(rows, head.seen_by(queries));
    product(p, head.of_keys(queries, ROWS), q, keys_transposed);
    softmax(p, head.scale, head.softmax_rows(queries));
}

/// Places for `group` rows of `dim` numbers each.
struct Places<'a, 'b> {
    places: &'a mut [&'b mut [f32]],
    group: usize,
    dim: usize,
}

impl<'a, 'b> Places<'a, 'b> {
    /// Each query's place.
    fn of(head: &Head, places: &'a mut [&'b mut [f32]]) -> Self {
        Self { places, group: head.group, dim: head.dim }
    }
}

impl RowsMut for Places<'_, '_> {
    #[inline(always)]
    fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.places[index / self.group][index % self.group * self.dim..][..self.dim]
    }
}
