//! Causal attention over a packed batch with a shared prefix.
//!
//! Knows where the heads are and makes one task of each key/value head of each segment. What the segments say about
//! the prefix's keys is added in the segments' order, so that no number of threads changes a bit. Knows nothing of
//! projections, and of positions only ALiBi's.

mod head;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod on_unit;
mod padded;
mod product;
mod softmax;
#[cfg(test)]
mod tests;
mod vectors;

use std::cell::Cell;
use std::mem;
use std::ops::Range;

use rayon::prelude::*;

use self::head::{Dropped, Head, Heads, KeyValueGradient};
use super::dropout::Mask;
use super::matmul::Precision;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::matmul::small::Small;
use crate::model::cache::LayerCache;
use crate::model::layout::{Layout, Queries, Query, Segment, Slot};

/// Where keys and values of each head stand in a row of the key/value matrix `[tokens, 2 · kv_heads · dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyValue {
    kv_heads: usize,
    dim: usize,
    key: Places,
    value: Places,
}

/// Which pieces of a row, each of `dim` numbers, belong to the heads: the first head's and how far they are apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    first: usize,
    step: usize,
}

impl Places {
    fn of(self, head: usize) -> usize {
        self.first + head * self.step
    }
}

impl KeyValue {
    /// All key heads, then all value heads: Llama's and GPT-2's order.
    pub fn stacked(kv_heads: usize, dim: usize) -> Self {
        let (key, value) = (Places { first: 0, step: 1 }, Places { first: kv_heads, step: 1 });
        Self { kv_heads, dim, key, value }
    }

    /// Key and value of the first head, then of the second: BLOOM's order.
    pub fn interleaved(kv_heads: usize, dim: usize) -> Self {
        let (key, value) = (Places { first: 0, step: 2 }, Places { first: 1, step: 2 });
        Self { kv_heads, dim, key, value }
    }

    /// Key and value heads; each serves an equal number of query heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Numbers a head.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The column where the first head's key begins, and how far the others' are apart.
    pub fn key_columns(&self) -> (usize, usize) {
        (self.key.first * self.dim, self.key.step * self.dim)
    }

    /// The column where the first head's value begins; the others' are as far apart as the keys.
    pub fn first_value_column(&self) -> usize {
        self.value.first * self.dim
    }

    /// Numbers in a row of the key/value matrix.
    pub fn width(&self) -> usize {
        2 * self.kv_heads * self.dim
    }
}

/// The attention of one architecture.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Number of query heads, a multiple of the key/value heads.
    pub heads: usize,
    /// Where keys and values are.
    pub keys: KeyValue,
    /// What a product of query and key is multiplied by.
    pub scale: f32,
    /// ALiBi: what each query head adds to a score for each key that stands before this one, counted without padding.
    pub slopes: Option<Vec<f32>>,
    /// Which probabilities are dropped, if any.
    pub dropout: Option<Mask>,
    /// How factors of products may be rounded; they are where the processor's bf16 unit computes them, in long segments.
    pub precision: Precision,
}

/// BLOOM's ALiBi slopes, for numbers of heads that are no power of two as well.
pub fn alibi_slopes(heads: usize) -> Vec<f32> {
    let power = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    let base = 2f64.powf(-8.0 / power as f64);
    let extra = 2f64.powf(-4.0 / power as f64);
    let first = (1..=power).map(|i| base.powi(i as i32) as f32);
    let rest = (0..heads - power).map(|i| extra.powi(2 * i as i32 + 1) as f32);
    first.chain(rest).collect()
}

/// Scores of a task from which on the bf16 unit computes its products: of fewer, bringing the matrices into tiles takes
/// about the time that it saves, and in f32 nothing is rounded.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
const MANY: usize = 16 * 1024;

thread_local! {
    /// What the segments say about the prefix; taken out while it is used, as a thread that waits may begin another
    /// call.
    static PREFIX_PARTS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// One key/value head of one segment and where its results go.
struct Task<'a, Places> {
    head: Head<'a>,
    places: Places,
}

impl Attention {
    /// `q` `[queries, heads · dim]`, `kv` `[tokens, 2 · kv_heads · dim]` → `out` `[queries, heads · dim]`.
    ///
    /// # Panics
    /// Something has another size than layout and queries say, or the layout goes on where a cache ends.
    pub fn forward(&self, q: &[f32], kv: &[f32], layout: &Layout, queries: &Queries, out: &mut [f32]) {
        self.check_whole(kv, layout);
        self.attend(q, layout, queries, out, |segment| self.rows_in_batch(kv, layout, segment));
    }

    /// The same where keys and values of earlier tokens are in a cache; those of this batch are added to it first.
    ///
    /// # Panics
    /// Something has another size than layout and queries say, or the cache does not end where the layout goes on.
    pub fn forward_cached(
        &self,
        q: &[f32],
        kv: &[f32],
        layout: &Layout,
        queries: &Queries,
        cache: &mut LayerCache,
        out: &mut [f32],
    ) {
        let width = self.keys.width();
        check_size("kv", kv, layout.tokens(), width);
        cache.extend(layout, kv, width);
        let cache = &*cache;
        check_size("the cached prefix", cache.of(Slot::Prefix), layout.prefix(), width);
        for segment in layout.segments().iter().filter(|s| matches!(s.slot, Slot::Row(_))) {
            let tokens = segment.past + segment.tokens.len();
            check_size("a cached row", cache.of(segment.slot), tokens, width);
        }
        let in_batch = |tokens: Range<usize>| &kv[tokens.start * width..tokens.end * width];
        self.attend(q, layout, queries, out, |segment| match segment.slot {
            Slot::Prefix => [&[], &[], cache.of(Slot::Prefix)],
            Slot::Row(_) => [cache.of(Slot::Prefix), &[], cache.of(segment.slot)],
            Slot::Branch { trunk } => {
                let [trunk, own] = [trunk..trunk + segment.past, segment.tokens.clone()].map(in_batch);
                [cache.of(Slot::Prefix), trunk, own]
            }
        });
    }

    /// Gradients of [`Attention::forward`]'s `q` and `kv` from that of its output, `d_out` `[queries, heads · dim]`:
    /// `d_q` and `d_kv` are like `q` and `kv` and are overwritten.
    ///
    /// # Panics
    /// As [`Attention::forward`].
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        q: &[f32],
        kv: &[f32],
        layout: &Layout,
        queries: &Queries,
        d_out: &[f32],
        d_q: &mut [f32],
        d_kv: &mut [f32],
    ) {
        self.check_whole(kv, layout);
        self.check_queries("d_out", d_out, layout, queries);
        self.check_queries("d_q", d_q, layout, queries);
        check_size("d_kv", d_kv, layout.tokens(), self.keys.width());

        let (kv_heads, dim) = (self.keys.kv_heads, self.keys.dim);
        let (d_prefix, d_rows) = d_kv.split_at_mut(layout.prefix() * self.keys.width());
        let part = layout.prefix() * 2 * dim;
        let mut parts = PREFIX_PARTS.take();
        parts.resize(layout.segments().len() * kv_heads * part, 0.0);

        let mut q_places = self.query_places(d_q, queries);
        let mut kv_places = self.key_value_places(d_rows, layout);
        let (mut q_places, mut kv_places, mut prefixes) =
            (&mut q_places[..], &mut kv_places[..], &mut parts[..]);
        let tasks = self.tasks(q, layout, queries, |segment| self.rows_in_batch(kv, layout, segment));
        let tasks = tasks.map(|(segment, head)| {
            let own = match segment.slot {
                Slot::Prefix => 0,
                _ => segment.tokens.len(),
            };
            let d_kv =
                KeyValueGradient { prefix: split(&mut prefixes, part), own: split(&mut kv_places, 2 * own) };
            Task { places: (split(&mut q_places, head.queries.len()), d_kv), head }
        });
        longest_first(tasks.collect(), |Task { head, places: (d_q, d_kv) }| {
            let d_out = Heads { values: d_out, ..head.q };
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            if let Some(unit) = self.unit(&head) {
                return on_unit::backward(&unit, &head, d_out, d_q, d_kv);
            }
            vectors::backward(&head, d_out, d_q, d_kv);
        });

        self.add_prefix_parts(&parts, d_prefix);
        PREFIX_PARTS.set(parts);
    }

    /// The sum over the segments of what they say about the prefix, `[segments, kv_heads, prefix, 2, dim]`, to the
    /// prefix's rows of the gradient.
    fn add_prefix_parts(&self, parts: &[f32], d_prefix: &mut [f32]) {
        let KeyValue { kv_heads, dim, key, value } = self.keys;
        let width = self.keys.width();
        let prefix = d_prefix.len() / width;
        d_prefix.par_chunks_exact_mut(width).enumerate().for_each(|(token, d_row)| {
            d_row.fill(0.0);
            for (i, part) in parts.chunks_exact(prefix * 2 * dim).enumerate() {
                let head = i % kv_heads;
                let both = part[token * 2 * dim..][..2 * dim].chunks_exact(dim);
                for (place, from) in [key.of(head), value.of(head)].into_iter().zip(both) {
                    let into = &mut d_row[place * dim..][..dim];
                    into.iter_mut().zip(from).for_each(|(into, from)| *into += from);
                }
            }
        });
    }

    /// The prefix's rows, if the segment sees it, and its own, where both are in the batch.
    fn rows_in_batch<'a>(&self, kv: &'a [f32], layout: &Layout, segment: &Segment) -> [&'a [f32]; 3] {
        let width = self.keys.width();
        let prefix = match segment.slot {
            Slot::Prefix => 0,
            _ => layout.prefix(),
        };
        [&kv[..prefix * width], &[], &kv[segment.tokens.start * width..segment.tokens.end * width]]
    }

    fn attend<'a>(
        &'a self,
        q: &'a [f32],
        layout: &'a Layout,
        queries: &'a Queries,
        out: &mut [f32],
        kv_rows: impl Fn(&Segment) -> [&'a [f32]; 3],
    ) {
        self.check_queries("q", q, layout, queries);
        self.check_queries("out", out, layout, queries);
        let mut places = self.query_places(out, queries);
        let mut places = &mut places[..];
        let tasks = self.tasks(q, layout, queries, kv_rows);
        let tasks =
            tasks.map(|(_, head)| Task { places: split(&mut places, head.queries.len()), head }).collect();
        longest_first(tasks, |Task { head, places }| {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            if let Some(unit) = self.unit(&head) {
                return on_unit::forward(&unit, &head, places);
            }
            vectors::forward(&head, places);
        });
    }

    /// The bf16 unit, if the products of a task are to be its.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fn unit(&self, head: &Head) -> Option<Small> {
        let scores = head.queries.len() * head.group * head.seen_by(head.queries);
        if self.precision == Precision::BF16 && scores >= MANY { Small::ready() } else { None }
    }

    /// Every key/value head of every segment, in this order; `kv_rows` gives the rows of the prefix, a branch's trunk
    /// and the segment.
    fn tasks<'a>(
        &'a self,
        q: &'a [f32],
        layout: &'a Layout,
        queries: &'a Queries,
        kv_rows: impl Fn(&Segment) -> [&'a [f32]; 3],
    ) -> impl Iterator<Item = (&'a Segment, Head<'a>)> {
        let KeyValue { kv_heads, dim, key, value } = self.keys;
        let group = self.heads / kv_heads;
        layout.segments().iter().zip(queries.by_segment()).flat_map(move |(segment, queries)| {
            let rows = kv_rows(segment);
            (0..kv_heads).map(move |head| {
                let columns = |place| {
                    rows.map(|values| Heads { values, width: 2 * kv_heads * dim, column: place * dim })
                };
                let head = Head {
                    group,
                    dim,
                    scale: self.scale,
                    slopes: self.slopes.as_ref().map(|slopes| &slopes[head * group..][..group]),
                    q: Heads { values: q, width: self.heads * dim, column: head * group * dim },
                    keys: columns(key.of(head)),
                    values: columns(value.of(head)),
                    queries,
                    dropped: self.dropout.map(|mask| Dropped {
                        mask,
                        first: head * group,
                        heads: self.heads,
                    }),
                };
                (segment, head)
            })
        })
    }

    /// The pieces of a matrix `[queries, heads · dim]` in the order in which tasks fill them.
    fn query_places<'a>(&self, matrix: &'a mut [f32], queries: &Queries) -> Vec<&'a mut [f32]> {
        let kv_heads = self.keys.kv_heads;
        let order = queries.by_segment().flat_map(|queries| {
            let piece = move |head, query: &Query| query.row as usize * kv_heads + head;
            (0..kv_heads).flat_map(move |head| queries.iter().map(move |query| piece(head, query)))
        });
        pieces(matrix, self.heads / kv_heads * self.keys.dim, order)
    }

    /// The pieces of the rows' part of a key/value matrix in the order in which tasks fill them.
    fn key_value_places<'a>(&self, matrix: &'a mut [f32], layout: &Layout) -> Vec<&'a mut [f32]> {
        let KeyValue { kv_heads, dim, key, value } = self.keys;
        let rows = layout.segments().iter().filter(|segment| segment.slot != Slot::Prefix);
        let order = rows.flat_map(|segment| {
            let tokens = segment.tokens.start - layout.prefix()..segment.tokens.end - layout.prefix();
            (0..kv_heads).flat_map(move |head| {
                let both = move |token| [key, value].map(|part| token * 2 * kv_heads + part.of(head));
                tokens.clone().flat_map(both)
            })
        });
        pieces(matrix, dim, order)
    }

    fn check_whole(&self, kv: &[f32], layout: &Layout) {
        assert!(layout.is_whole(), "attention: without a cache a batch has to begin with its prefix");
        check_size("kv", kv, layout.tokens(), self.keys.width());
    }

    fn check_queries(&self, name: &str, matrix: &[f32], layout: &Layout, queries: &Queries) {
        let (heads, KeyValue { kv_heads, dim, .. }) = (self.heads, self.keys);
        assert!(
            kv_heads > 0 && dim > 0 && heads.is_multiple_of(kv_heads),
            "attention: {heads} query heads for {kv_heads} key/value heads of {dim} numbers"
        );
        let (of, segments) = (queries.by_segment().len(), layout.segments().len());
        assert!(of == segments, "attention: queries of {of} segments for a layout of {segments}");
        check_size(name, matrix, queries.count(), heads * dim);
    }
}

fn check_size(name: &str, matrix: &[f32], rows: usize, columns: usize) {
    let count = matrix.len();
    assert!(
        count == rows * columns,
        "attention: {name} has {count} numbers and should be [{rows}, {columns}]"
    );
}

/// Cuts a matrix into pieces of equal width and gives them out in another order.
fn pieces(matrix: &mut [f32], width: usize, order: impl Iterator<Item = usize>) -> Vec<&mut [f32]> {
    let mut pieces: Vec<_> = matrix.chunks_exact_mut(width).collect();
    let mut ordered = Vec::with_capacity(pieces.len());
    ordered.extend(order.map(|i| mem::take(&mut pieces[i])));
    ordered
}

/// Takes the first so many from what is left.
fn split<'a, T>(rest: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    let (first, others) = mem::take(rest).split_at_mut(count);
    *rest = others;
    first
}

/// Does the tasks in parallel; a long one that began last would keep one thread busy alone.
fn longest_first<P: Send>(mut tasks: Vec<Task<P>>, work: impl Fn(Task<P>) + Sync + Send) {
    tasks.sort_by_key(|task| std::cmp::Reverse(task.head.work()));
    tasks.into_iter().par_bridge().for_each(work);
}
