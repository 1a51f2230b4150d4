//! Attention over packed rows, a shared prefix, branches and a cache.

use std::ops::Range;

use pipe::model::layout::{CachedRow, Layout, PackedRow, Queries, Slot, Trunk};
use pipe::model::ops::attention::{Attention, KeyValue, alibi_slopes};
use pipe::model::ops::dropout::{Dropout, Mask, Site};
use pipe::model::ops::matmul::Precision;

use crate::compare::{Errors, gradient, numbers, scaled, unwritten, wide};
use crate::emulated::{
    Argument::{self, Nothing},
    Emulated, maybe, read, write,
};

/// The kernels' sizes: the largest head, the rows of a block, and the shared memory of each.
struct Size {
    dim: usize,
    tile: usize,
    forward: usize,
    backward_queries: usize,
    backward_keys: usize,
    decode: usize,
}

const SIZES: [Size; 3] = [
    Size {
        dim: 64,
        tile: 32,
        forward: 29_696,
        backward_queries: 37_888,
        backward_keys: 41_984,
        decode: 8_448,
    },
    Size {
        dim: 128,
        tile: 16,
        forward: 44_032,
        backward_queries: 52_224,
        backward_keys: 54_272,
        decode: 16_640,
    },
    Size {
        dim: 256,
        tile: 8,
        forward: 75_776,
        backward_queries: 83_968,
        backward_keys: 84_992,
        decode: 33_024,
    },
];

fn size(dim: usize) -> &'static Size {
    SIZES.iter().find(|size| dim <= size.dim).unwrap()
}

/// Where the keys of a segment are: rows of the batch, or, below 0, of the cache.
#[derive(Clone, Copy, Default)]
struct Keys {
    prefix: (i32, i32),
    past: (i32, i32),
    own: (i32, i32),
}

/// What the kernels are told about a batch.
struct Plan {
    /// `[queries, 2]`
    queries: Vec<i32>,
    /// The segment of each query.
    query_segments: Vec<i32>,
    /// `[segments, 8]`
    segments: Vec<i32>,
    /// `[tiles, 2]`
    tiles: Vec<i32>,
}

impl Plan {
    /// `keys`: those of each segment. Behind the queries are `padding` more, in a segment of their own, and behind
    /// the tiles one that is none.
    fn new(layout: &Layout, queries: &Queries, keys: &[Keys], padding: usize, tile: usize) -> Self {
        let mut plan =
            Self { queries: Vec::new(), query_segments: Vec::new(), segments: Vec::new(), tiles: Vec::new() };
        for (keys, queries) in keys.iter().zip(queries.by_segment()) {
            plan.segment(*keys, queries.iter().map(|q| (q.row as i32, keys.prefix.1 + q.sees as i32)), tile);
        }
        assert_eq!(layout.segments().len(), keys.len());
        let first = queries.count() as i32;
        plan.segment(Keys::default(), (first..first + padding as i32).map(|row| (row, 0)), tile);
        plan.tiles.extend([-1, 0]);
        plan
    }

    fn segment(&mut self, keys: Keys, queries: impl Iterator<Item = (i32, i32)>, tile: usize) {
        let (first, index) = (self.query_segments.len(), self.segments.len() / 8);
        for (row, seen) in queries {
            self.queries.extend([row, seen]);
            self.query_segments.push(index as i32);
        }
        let end = self.query_segments.len();
        let Keys { prefix, past, own } = keys;
        let counts = [first as i32, (end - first) as i32];
        self.segments.extend(counts.into_iter().chain([prefix.0, prefix.1, past.0, past.1, own.0, own.1]));
        self.tiles.extend((first..end).step_by(tile).flat_map(|q| [index as i32, q as i32]));
    }

    fn tiles(&self) -> usize {
        self.tiles.len() / 2
    }
}

/// A batch that needs no cache: the keys of each segment.
fn in_batch(layout: &Layout) -> Vec<Keys> {
    let prefix = layout.prefix() as i32;
    let keys = |slot, tokens: &Range<usize>, past: usize| {
        let own = (tokens.start as i32, tokens.len() as i32);
        match slot {
            Slot::Prefix => Keys { own, ..Keys::default() },
            Slot::Row(_) => Keys { prefix: (0, prefix), past: (0, 0), own },
            Slot::Branch { trunk } => Keys { prefix: (0, prefix), past: (trunk as i32, past as i32), own },
        }
    };
    layout.segments().iter().map(|s| keys(s.slot, &s.tokens, s.past)).collect()
}

/// Key tiles `[tiles, 6]` of a batch that needs no cache, and how many chunks the prefix's queries are in.
fn key_tiles(layout: &Layout, plan: &Plan, tile: usize, chunk: usize) -> (Vec<i32>, usize) {
    let mut tiles = Vec::new();
    let queries = plan.query_segments.len();
    let prefix = layout.prefix();
    let chunks = if prefix == 0 { 0 } else { queries.div_ceil(chunk) };
    for c in 0..chunks {
        for first in (0..prefix).step_by(tile) {
            let keys = tile.min(prefix - first);
            let end = queries.min((c + 1) * chunk);
            let part = -1 - (c * prefix + first) as i32;
            tiles.extend([first as i32, keys as i32, first as i32, (c * chunk) as i32, end as i32, part]);
        }
    }
    for (index, segment) in layout.segments().iter().enumerate() {
        if segment.slot == Slot::Prefix {
            continue;
        }
        let [first_query, count] = [0, 1].map(|i| plan.segments[index * 8 + i] as usize);
        for key in segment.tokens.clone().step_by(tile) {
            let keys = tile.min(segment.tokens.end - key);
            let place = prefix + key - segment.tokens.start;
            let all = first_query..first_query + count;
            let seeing = all.clone().find(|q| plan.queries[2 * q + 1] as usize > place).unwrap_or(all.end);
            tiles.extend([key, keys, place, seeing, all.end, key].map(|x| x as i32));
        }
    }
    tiles.extend([0, -1, 0, 0, 0, 0]);
    (tiles, chunks)
}

fn shape<'a>(attention: &Attention, slopes: &'a Option<Vec<f32>>) -> Vec<Argument<'a>> {
    let keys = attention.keys;
    let (key, step) = keys.key_columns();
    let value = if step == keys.dim() { keys.kv_heads() * keys.dim() } else { keys.dim() };
    let numbers = [attention.heads, keys.kv_heads(), keys.dim(), key, value, step].map(|x| (x as i32).into());
    let slopes = maybe(slopes.as_deref());
    numbers.into_iter().chain([attention.scale.into(), slopes]).collect()
}

/// One case: an architecture, a batch and the tokens that ask, with all inputs.
struct Case {
    attention: Attention,
    layout: Layout,
    keep: Vec<u32>,
    q: Vec<f32>,
    kv: Vec<f32>,
    d_out: Vec<f32>,
    mask: Option<Mask>,
}

/// Queries that pad the batch.
const PADDING: usize = 3;

impl Case {
    fn new(attention: &Attention, prefix: usize, rows: &[usize], keep: Option<&[u32]>, rate: f32) -> Self {
        let rows: Vec<_> = rows.iter().map(|&tokens| PackedRow { tokens, pads_before: 0 }).collect();
        let layout = Layout::packed(prefix, &rows);
        let keep = keep.map_or_else(|| (0..layout.tokens() as u32).collect(), <[u32]>::to_vec);
        let width = attention.heads * attention.keys.dim();
        let mask = Dropout::On { seed: 3, pass: 8 }.mask(Site::Attention, 2, rate);
        Self {
            q: scaled(keep.len() * width, 1, 2.0),
            kv: scaled(layout.tokens() * attention.keys.width(), 2, 2.0),
            d_out: numbers(keep.len() * width, 3),
            attention: Attention { dropout: mask, ..attention.clone() },
            layout,
            keep,
            mask,
        }
    }

    /// Output, gradient of the queries, gradient of keys and values, by the kernels.
    fn run(&self, cuda: &mut Emulated) -> [Vec<f32>; 3] {
        let keys = self.attention.keys;
        let size = size(keys.dim());
        let (heads, kv_heads) = (self.attention.heads, keys.kv_heads());
        let width = heads * keys.dim();
        let queries = self.layout.queries_at(&self.keep);
        let plan = Plan::new(&self.layout, &queries, &in_batch(&self.layout), PADDING, size.tile);
        let slopes = &self.attention.slopes;
        let (key, threshold, scale) = self.mask.map_or((0, 0, 0.0), |mask| mask.parts());
        let key = [key];
        let dropout = || match self.mask {
            Some(_) => [read(&key), threshold.into(), scale.into()],
            None => [Nothing, 0u32.into(), 0.0f32.into()],
        };
        let shape = || shape(&self.attention, slopes).into_iter().chain(dropout());

        let padded = |x: &[f32]| [x, &scaled(PADDING * width, 9, 1.0)].concat();
        let (q, d_out) = (padded(&self.q), padded(&self.d_out));
        let rows = self.keep.len() + PADDING;
        let (mut out, mut stats) = (unwritten(rows * width), unwritten(rows * heads * 2));
        let arguments = vec![
            read(&q),
            read(&self.kv),
            Nothing,
            read(&plan.queries),
            read(&plan.segments),
            read(&plan.tiles),
            write(&mut out),
            write(&mut stats),
        ];
        let arguments = arguments.into_iter().chain(shape()).collect();
        let d = size.dim;
        let name = |kernel: &str| format!("attention_{kernel}_{d}");
        cuda.launch(&name("forward"), [plan.tiles(), heads], [128, 1], size.forward, arguments);

        let (mut d_q, mut delta) = (unwritten(rows * width), unwritten(rows * heads));
        let arguments = vec![
            read(&q),
            read(&self.kv),
            read(&plan.queries),
            read(&plan.segments),
            read(&plan.tiles),
            read(&out),
            read(&stats),
            read(&d_out),
            write(&mut d_q),
            write(&mut delta),
        ];
        let arguments = arguments.into_iter().chain(shape()).collect();
        let grid = [plan.tiles(), heads];
        cuda.launch(&name("backward_queries"), grid, [128, 1], size.backward_queries, arguments);

        let (tiles, chunks) = key_tiles(&self.layout, &plan, size.tile, 40);
        let part = self.layout.prefix() * keys.width();
        let (mut d_kv, mut parts) = (unwritten(self.kv.len()), unwritten(chunks * part));
        let arguments = vec![
            read(&q),
            read(&self.kv),
            read(&plan.queries),
            read(&tiles),
            read(&stats),
            read(&delta),
            read(&d_out),
            write(&mut d_kv),
            write(&mut parts),
        ];
        let arguments = arguments.into_iter().chain(shape()).collect();
        let grid = [tiles.len() / 6, kv_heads];
        cuda.launch(&name("backward_keys"), grid, [128, 1], size.backward_keys, arguments);
        if part > 0 {
            let arguments = vec![
                read(&parts),
                (chunks as i32).into(),
                (part as i64).into(),
                write(&mut d_kv),
                (part as i32).into(),
                0.0f32.into(),
            ];
            cuda.launch("sum_parts", [part.div_ceil(256), 1], [256, 1], 0, arguments);
        }
        for padding in [&out, &d_q] {
            assert!(padding[self.keep.len() * width..].iter().all(|x| *x == 0.0), "padding is not zero");
        }
        out.truncate(self.q.len());
        d_q.truncate(self.q.len());
        [out, d_q, d_kv]
    }

    /// The same by the processor's operation.
    fn on_processor(&self) -> [Vec<f32>; 3] {
        let queries = self.layout.queries_at(&self.keep);
        let (mut out, mut d_q) = (unwritten(self.q.len()), unwritten(self.q.len()));
        let mut d_kv = unwritten(self.kv.len());
        self.attention.forward(&self.q, &self.kv, &self.layout, &queries, &mut out);
        let Self { q, kv, layout, d_out, .. } = self;
        self.attention.backward(q, kv, layout, &queries, d_out, &mut d_q, &mut d_kv);
        [out, d_q, d_kv]
    }

    /// The output by the formula.
    fn formula(&self, q: &[f64], kv: &[f64]) -> Vec<f64> {
        let visible: Vec<Vec<usize>> = self.keep.iter().map(|&token| self.visible(token as usize)).collect();
        formula(&self.attention, &visible, q, kv, self.mask)
    }

    /// The tokens that a token sees, in the order of their places.
    fn visible(&self, token: usize) -> Vec<usize> {
        let segment = self.layout.segments().iter().find(|s| s.tokens.contains(&token)).unwrap();
        let prefix = if segment.slot == Slot::Prefix { 0 } else { self.layout.prefix() };
        (0..prefix).chain(segment.tokens.start..=token).collect()
    }

    fn check(&self, cuda: &mut Emulated, errors: &mut Errors, name: &str) {
        let ours = self.run(cuda);
        for ((part, ours), right) in ["out", "d_q", "d_kv"].iter().zip(&ours).zip(self.on_processor()) {
            errors.check(&format!("{name} {part}, processor"), ours, &wide(&right), 3e-6);
        }
        let (q, kv, d_out) = (wide(&self.q), wide(&self.kv), wide(&self.d_out));
        errors.check(&format!("{name} out"), &ours[0], &self.formula(&q, &kv), 3e-6);
        // Differences of every number take long.
        if q.len() < 400 {
            let d_q = gradient(&q, &d_out, |q| self.formula(q, &kv));
            errors.check(&format!("{name} d_q"), &ours[1], &d_q, 3e-6);
            let d_kv = gradient(&kv, &d_out, |kv| self.formula(&q, kv));
            errors.check(&format!("{name} d_kv"), &ours[2], &d_kv, 3e-6);
        }
    }
}

/// The output by the formula, of queries that each see these tokens of kv.
fn formula(
    attention: &Attention,
    visible: &[Vec<usize>],
    q: &[f64],
    kv: &[f64],
    mask: Option<Mask>,
) -> Vec<f64> {
    let Attention { heads, keys, scale, ref slopes, .. } = *attention;
    let (dim, group, width) = (keys.dim(), heads / keys.kv_heads(), keys.width());
    let (key, step) = keys.key_columns();
    let value = if step == dim { keys.kv_heads() * dim } else { dim };
    let mut out = vec![0.0; q.len()];
    for (row, visible) in visible.iter().enumerate() {
        for head in 0..heads {
            let at = (row * heads + head) * dim;
            let column = head / group * step;
            let slope = slopes.as_ref().map_or(0.0, |slopes| f64::from(slopes[head]));
            let scores: Vec<f64> = visible
                .iter()
                .enumerate()
                .map(|(place, token)| {
                    let key = &kv[token * width + key + column..][..dim];
                    let dot: f64 = q[at..at + dim].iter().zip(key).map(|(q, k)| q * k).sum();
                    dot * f64::from(scale) + slope * place as f64
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            let mut kept = vec![1.0f32; visible.len()];
            if let Some(mask) = mask {
                mask.apply_row((row * heads + head) as u64, &mut kept);
            }
            for ((score, token), kept) in scores.iter().zip(visible).zip(kept) {
                let p = (score - max).exp() / sum * f64::from(kept);
                for d in 0..dim {
                    out[at + d] += p * kv[token * width + value + column + d];
                }
            }
        }
    }
    out
}

fn attention(heads: usize, keys: KeyValue, slopes: Option<Vec<f32>>) -> Attention {
    Attention {
        heads,
        keys,
        scale: 0.9 / (keys.dim() as f32).sqrt(),
        slopes,
        dropout: None,
        precision: Precision::F32,
    }
}

#[test]
fn rows_behind_a_prefix_forward_and_backward() {
    let Some(mut cuda) = Emulated::start() else { return };
    let mut errors = Errors::default();
    let architectures = [
        attention(3, KeyValue::interleaved(3, 5), Some(alibi_slopes(3))),
        attention(4, KeyValue::stacked(2, 8), None),
        attention(6, KeyValue::stacked(1, 1), Some(alibi_slopes(6))),
        attention(2, KeyValue::stacked(2, 64), Some(vec![0.5, -0.25])),
        attention(3, KeyValue::stacked(1, 100), None),
        attention(1, KeyValue::interleaved(1, 131), None),
    ];
    let batches: [(usize, &[usize]); 5] =
        [(0, &[4, 0, 9]), (3, &[5, 1, 0, 2]), (5, &[]), (5, &[35, 1]), (37, &[4])];
    for attention in &architectures {
        for (prefix, rows) in batches {
            Case::new(attention, prefix, rows, None, 0.0).check(&mut cuda, &mut errors, "attention");
        }
    }
}

#[test]
fn only_some_tokens_ask() {
    let Some(mut cuda) = Emulated::start() else { return };
    let mut errors = Errors::default();
    // Out of order, one of them twice, several not at all.
    for keep in [&[31][..], &[20, 4, 20, 1, 31, 6, 7, 20], &[2, 0]] {
        for keys in [KeyValue::stacked(2, 6), KeyValue::interleaved(2, 16)] {
            let attention = attention(4, keys, Some(alibi_slopes(4)));
            Case::new(&attention, 3, &[5, 1, 0, 23], Some(keep), 0.0).check(&mut cuda, &mut errors, "asked");
        }
    }
}

#[test]
fn probabilities_are_dropped_as_on_the_processor() {
    let Some(mut cuda) = Emulated::start() else { return };
    let mut errors = Errors::default();
    for keys in [KeyValue::stacked(1, 5), KeyValue::interleaved(2, 8)] {
        Case::new(&attention(2, keys, None), 2, &[9, 3, 40], None, 0.3).check(
            &mut cuda,
            &mut errors,
            "dropped",
        );
        Case::new(&attention(2, keys, None), 0, &[4, 5], None, 0.3).check(&mut cuda, &mut errors, "dropped");
    }
}

#[test]
fn a_long_row_goes_by_in_blocks() {
    let Some(mut cuda) = Emulated::start() else { return };
    let attention = attention(2, KeyValue::stacked(1, 4), Some(alibi_slopes(2)));
    Case::new(&attention, 70, &[133], None, 0.0).check(&mut cuda, &mut Errors::default(), "long");
}

#[test]
fn large_scores_and_steep_slopes_stay_finite() {
    let Some(mut cuda) = Emulated::start() else { return };
    let mut case =
        Case::new(&attention(2, KeyValue::stacked(2, 8), Some(vec![30.0, -30.0])), 3, &[40], None, 0.0);
    case.q.iter_mut().for_each(|q| *q *= 50.0);
    assert!(case.run(&mut cuda).iter().flatten().all(|x| x.is_finite()));
}

#[test]
fn what_is_not_a_number_reaches_all_that_see_it() {
    let Some(mut cuda) = Emulated::start() else { return };
    let mut case = Case::new(&attention(2, KeyValue::stacked(1, 3), None), 2, &[4, 3], None, 0.0);
    let clean = case.run(&mut cuda);
    // The key of the first row's second token.
    case.kv[3 * 6] = f32::NAN;
    let [out, d_q, _] = case.run(&mut cuda);
    for part in [&out, &d_q] {
        assert!(part[3 * 6..6 * 6].iter().all(|x| x.is_nan()), "{part:?}");
    }
    assert_eq!(out[6 * 6..], clean[0][6 * 6..]);
}

/// A batch whose earlier keys are in a cache, by the tiled kernel and by the one for few queries, against the formula
/// over the tokens that each query sees: rows of a matrix that has them all, which `cached` says which rows of are
/// only in the cache.
fn check_cached(
    cuda: &mut Emulated,
    errors: &mut Errors,
    attention: &Attention,
    (layout, keys): (&Layout, &[Keys]),
    (cached, own): (&[usize], &[usize]),
    visible: &[Vec<usize>],
) {
    let width = attention.heads * attention.keys.dim();
    let kv_width = attention.keys.width();
    let all = cached.iter().chain(own).max().unwrap() + 1;
    let (q, kv) = (scaled(own.len() * width, 1, 2.0), scaled(all * kv_width, 2, 2.0));
    let rows = |of: &[usize]| of.iter().flat_map(|row| kv[row * kv_width..][..kv_width].to_vec()).collect();
    let (cache, batch): (Vec<f32>, Vec<f32>) = (rows(cached), rows(own));
    let expected = formula(attention, visible, &wide(&q), &wide(&kv), None);

    let size = size(attention.keys.dim());
    let plan = Plan::new(layout, &layout.all_queries(), keys, 1, size.tile);
    let q = [q, vec![1.0; width]].concat();
    let mut out = unwritten(q.len());
    let arguments = vec![
        read(&q),
        read(&batch),
        read(&cache),
        read(&plan.queries),
        read(&plan.segments),
        read(&plan.tiles),
        write(&mut out),
        Nothing,
    ];
    let dropout = [Nothing, 0u32.into(), 0.0f32.into()];
    let arguments = arguments.into_iter().chain(shape(attention, &attention.slopes)).chain(dropout).collect();
    let name = format!("attention_forward_{}", size.dim);
    cuda.launch(&name, [plan.tiles(), attention.heads], [128, 1], size.forward, arguments);
    errors.check("cached out", &out[..own.len() * width], &expected, 3e-6);

    let mut out = unwritten(q.len());
    let arguments = vec![
        read(&q),
        read(&batch),
        read(&cache),
        read(&plan.queries),
        read(&plan.segments),
        read(&plan.query_segments),
        write(&mut out),
    ];
    let arguments = arguments.into_iter().chain(shape(attention, &attention.slopes)).collect();
    let name = format!("attention_decode_{}", size.dim);
    cuda.launch(&name, [own.len() + 1, attention.heads], [256, 1], size.decode, arguments);
    errors.check("decoded out", &out[..own.len() * width], &expected, 3e-6);
    assert!(out[own.len() * width..].iter().all(|x| *x == 0.0));

    // More splits than some queries have keys.
    let (splits, heads) = (5, attention.heads);
    let mut parts = unwritten((own.len() + 1) * heads * splits * (size.dim + 2));
    let arguments = vec![
        read(&q),
        read(&batch),
        read(&cache),
        read(&plan.queries),
        read(&plan.segments),
        read(&plan.query_segments),
        write(&mut parts),
        (splits as i32).into(),
    ];
    let arguments = arguments.into_iter().chain(shape(attention, &attention.slopes)).collect();
    let name = format!("attention_decode_parts_{}", size.dim);
    cuda.launch(&name, [(own.len() + 1) * splits, heads], [256, 1], size.decode, arguments);
    let mut out = unwritten(q.len());
    let sizes = [heads, attention.keys.dim(), size.dim, splits].map(|n| (n as i32).into());
    let arguments = [read(&parts), read(&plan.queries), write(&mut out)].into_iter().chain(sizes).collect();
    cuda.launch("attention_decode_join", [own.len() + 1, heads], [64, 1], 0, arguments);
    errors.check("decoded out, in parts", &out[..own.len() * width], &expected, 3e-6);
    assert!(out[own.len() * width..].iter().all(|x| *x == 0.0));
}

#[test]
fn keys_of_a_cache_and_of_a_trunk() {
    let Some(mut cuda) = Emulated::start() else { return };
    let mut errors = Errors::default();
    for attention in [
        attention(4, KeyValue::stacked(2, 6), Some(alibi_slopes(4))),
        attention(2, KeyValue::interleaved(2, 64), Some(alibi_slopes(2))),
        attention(3, KeyValue::stacked(1, 100), None),
        attention(1, KeyValue::stacked(1, 202), None),
    ] {
        // A prefix of 3 in rows 0..3 of the cache, row 0 of the batch (150 tokens so far) in rows 3.., row 1 (none so
        // far) from row 160 on: the new token of one and two of the other have been put there already.
        let rows = [CachedRow { row: 0, past: 150, tokens: 1 }, CachedRow { row: 1, past: 0, tokens: 2 }];
        let layout = Layout::cached(3, &rows);
        let keys = |own| Keys { prefix: (-1, 3), past: (0, 0), own };
        let keys = [keys((-1 - 3, 151)), keys((-1 - 160, 2))];
        let cached: Vec<usize> = (0..162).collect();
        let first: Vec<usize> = (0..154).collect();
        let visible = [first, vec![0, 1, 2, 160], vec![0, 1, 2, 160, 161]];
        let own = [153, 160, 161];
        check_cached(&mut cuda, &mut errors, &attention, (&layout, &keys), (&cached, &own), &visible);

        // A prefix of 3 in the cache; in the batch a trunk of 2, its branches of 3 and 1, another trunk of 2.
        let trunk = |tokens, branches: &[usize]| Trunk {
            row: PackedRow { tokens, pads_before: 0 },
            branches: branches.to_vec(),
        };
        let layout = Layout::branching(3, &[trunk(2, &[3, 1]), trunk(2, &[])]);
        let mut keys = in_batch(&layout);
        keys.iter_mut().for_each(|keys| keys.prefix = (-1, 3));
        let own: Vec<usize> = (3..11).collect();
        let behind = |rows: &[usize]| [&[0, 1, 2], rows].concat();
        let visible = [
            behind(&[3]),
            behind(&[3, 4]),
            behind(&[3, 4, 5]),
            behind(&[3, 4, 5, 6]),
            behind(&[3, 4, 5, 6, 7]),
            behind(&[3, 4, 8]),
            behind(&[9]),
            behind(&[9, 10]),
        ];
        check_cached(&mut cuda, &mut errors, &attention, (&layout, &keys), (&[0, 1, 2], &own), &visible);
    }
}
