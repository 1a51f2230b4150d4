//! One key/value head's attention by the bf16 unit, its products' factors rounded to bf16 and all else in f32.
//!
//! Works on a block of queries at a time, so that memory does not grow with the square of a segment's length. Does not know
//! which keys a query sees, nor the unit's tiles.

use std::cell::RefCell;

use super::head::{self, Head, Heads, KeyValueGradient};
use super::padded::Padded;
use super::softmax::{softmax, softmax_backward};
use crate::model::layout::Query;
use crate::model::ops::matmul::small::{Factor, Part, Pieces, SIDES, Small};

/// About how many rows of scores (queries × query heads) are computed at a time.
const BLOCK: usize = 4 * SIDES;

/// Memory of a thread for one task after the other: every matrix in the forms in which it is a factor.
#[derive(Default)]
struct Scratch {
    q: Factor,
    q_summed: Factor,
    keys: Factor,
    keys_summed: Factor,
    values: Factor,
    values_summed: Factor,
    p: Padded,
    p_factor: Factor,
    d_mixed: Factor,
    d_mixed_summed: Factor,
    d_p: Padded,
    sums: Padded,
    d_keys: Padded,
    d_values: Padded,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// `out`: for each query its slice of the output, `[group · dim]`.
pub fn forward(unit: &Small, head: &Head, out: &mut [&mut [f32]]) {
    SCRATCH.with_borrow_mut(|Scratch { q, keys, values_summed, p, p_factor, sums, .. }| {
        unit.right_transposed(keys, seen(head, &head.seen_rows(head.keys)));
        unit.right(values_summed, seen(head, &head.seen_rows(head.values)));
        let each = head.queries_of(BLOCK);
        for (queries, out) in head.queries.chunks(each).zip(out.chunks_mut(each)) {
            probabilities(unit, head, queries, q, keys, p);
            head.drop_some(queries, p);
            mix(unit, head, queries, (p, p_factor), values_summed, (sums, out));
        }
    });
}

/// `d_out`: the gradient of the output, `[queries, heads · dim]`; `d_q`: for each query its slice of the gradient,
/// `[group · dim]`. Everything is overwritten.
pub fn backward(unit: &Small, head: &Head, d_out: Heads, d_q: &mut [&mut [f32]], d_kv: KeyValueGradient) {
    SCRATCH.with_borrow_mut(|scratch| {
        let key_rows = head.seen_rows(head.keys);
        unit.right(&mut scratch.keys_summed, seen(head, &key_rows));
        unit.right_transposed(&mut scratch.keys, seen(head, &key_rows));
        unit.right_transposed(&mut scratch.values, seen(head, &head.seen_rows(head.values)));
        for sums in [&mut scratch.d_keys, &mut scratch.d_values] {
            sums.clear(key_rows.len().next_multiple_of(SIDES), head.dim.next_multiple_of(SIDES));
        }
        let each = head.queries_of(BLOCK);
        for (queries, d_q) in head.queries.chunks(each).zip(d_q.chunks_mut(each)) {
            backward_block(unit, head, queries, d_out, d_q, scratch);
        }
        d_kv.fill(head.dim, key_rows.len(), [&scratch.d_keys, &scratch.d_values]);
    });
}

/// Fills `d_q`, adds to `d_keys` and `d_values`.
fn backward_block(
    unit: &Small,
    head: &Head,
    queries: &[Query],
    d_out: Heads,
    d_q: &mut [&mut [f32]],
    scratch: &mut Scratch,
) {
    let Scratch { q, q_summed, keys, keys_summed, values, p, p_factor, d_mixed, d_mixed_summed, .. } =
        scratch;
    let Scratch { d_p, sums, d_keys, d_values, .. } = scratch;
    probabilities(unit, head, queries, q, keys, p);
    unit.right(q_summed, asked(head, queries, head.q));
    unit.left(d_mixed, asked(head, queries, d_out));
    unit.right(d_mixed_summed, asked(head, queries, d_out));
    scores(unit, head, queries, [d_mixed, values], d_p);
    head.drop_some(queries, d_p);
    softmax_backward(p, d_p, head.scale, head.softmax_rows(queries));
    head.drop_some(queries, p);
    mix(unit, head, queries, (d_p, p_factor), keys_summed, (sums, d_q));
    for (p, factor, sums) in [(p, d_mixed_summed, d_values), (d_p, q_summed, d_keys)] {
        unit.left_transposed(p_factor, scored(head, queries, p));
        for part in head.over_queries(queries, SIDES) {
            unit.add_product(sums.whole_mut(), &of(part), [p_factor, factor]);
        }
    }
}

/// Fills `q` and `p`: the softmax of these queries' scores, a row for each query head of each query.
fn probabilities(
    unit: &Small,
    head: &Head,
    queries: &[Query],
    q: &mut Factor,
    keys: &Factor,
    p: &mut Padded,
) {
    unit.left(q, asked(head, queries, head.q));
    scores(unit, head, queries, [q, keys], p);
    softmax(p, head.scale, head.softmax_rows(queries));
}

/// Products of what belongs to these queries with what belongs to the keys that they see.
fn scores(unit: &Small, head: &Head, queries: &[Query], factors: [&Factor; 2], out: &mut Padded) {
    let (rows, seen) = (queries.len() * head.group, head.seen_by(queries));
    out.reshape(rows.next_multiple_of(SIDES), seen.next_multiple_of(SIDES));
    for part in head.of_keys(queries, SIDES) {
        unit.product(out.whole_mut(), &of(part), factors);
    }
}

/// Sums over the keys, for every row of `p`, to the queries' places.
fn mix(
    unit: &Small,
    head: &Head,
    queries: &[Query],
    (p, p_factor): (&Padded, &mut Factor),
    right: &Factor,
    (sums, places): (&mut Padded, &mut [&mut [f32]]),
) {
    unit.left(p_factor, scored(head, queries, p));
    let rows = queries.len() * head.group;
    sums.reshape(rows.next_multiple_of(SIDES), head.dim.next_multiple_of(SIDES));
    for part in head.over_keys(queries, SIDES) {
        unit.product(sums.whole_mut(), &of(part), [p_factor, right]);
    }
    sums.unpack(head.dim, places.iter_mut().map(|place| &mut **place));
}

/// What a matrix has for each query head of these queries.
fn asked<'a>(head: &Head, queries: &[Query], from: Heads<'a>) -> Pieces<impl Iterator<Item = &'a [f32]>> {
    Pieces { rows: queries.len() * head.group, columns: head.dim, pieces: head.rows(queries, from) }
}

/// Keys or values.
fn seen<'a>(head: &Head, rows: &[&'a [f32]]) -> Pieces<impl Iterator<Item = &'a [f32]>> {
    Pieces { rows: rows.len(), columns: head.dim, pieces: rows.iter().copied() }
}

/// A matrix's rows of scores that are these queries'.
fn scored<'a>(head: &Head, queries: &[Query], p: &'a Padded) -> Pieces<impl Iterator<Item = &'a [f32]>> {
    let rows = queries.len() * head.group;
    Pieces { rows, columns: p.width(), pieces: p.rows().take(rows) }
}

fn of(head::Part { rows, columns, depth }: head::Part) -> Part {
    Part { rows, columns, depth }
}
