//! Attention against the formula written out in f64, one query at a time.

use super::*;
use crate::model::layout::{CachedRow, PackedRow, Trunk};
use crate::model::ops::dropout::{Dropout, Site};

/// Numbers between -1 and 1 that look random.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn packed(prefix: usize, rows: &[usize]) -> Layout {
    let rows: Vec<_> = rows.iter().map(|&tokens| PackedRow { tokens, pads_before: 0 }).collect();
    Layout::packed(prefix, &rows)
}

/// One case: an architecture, a batch and the tokens that ask, with all inputs.
struct Case {
    attention: Attention,
    /// Whether key and value of a head stand side by side.
    interleaved: bool,
    prefix: usize,
    rows: Vec<usize>,
    keep: Vec<u32>,
    q: Vec<f32>,
    kv: Vec<f32>,
    d_out: Vec<f32>,
}

/// Output, gradient of the queries, gradient of keys and values.
type Results<T> = [Vec<T>; 3];

/// A sum, and that of its terms' absolute values.
#[derive(Clone, Copy, Default)]
struct Sum {
    value: f64,
    size: f64,
}

impl std::ops::AddAssign<f64> for Sum {
    fn add_assign(&mut self, term: f64) {
        self.value += term;
        self.size += term.abs();
    }
}

impl Case {
    fn new(attention: Attention, prefix: usize, rows: &[usize], keep: Option<&[u32]>) -> Self {
        let tokens = prefix + rows.iter().sum::<usize>();
        let keep = keep.map_or_else(|| (0..tokens as u32).collect(), <[u32]>::to_vec);
        let width = attention.heads * attention.keys.dim;
        let spread = |values: Vec<f32>| values.into_iter().map(|x| 2.0 * x).collect();
        Self {
            interleaved: attention.keys.key.step == 2,
            q: spread(numbers(keep.len() * width, 1)),
            kv: spread(numbers(tokens * attention.keys.width(), 2)),
            d_out: numbers(keep.len() * width, 3),
            attention,
            prefix,
            rows: rows.to_vec(),
            keep,
        }
    }

    /// The same with factors that are rounded, which queries, keys and values are from the start.
    fn rounded(mut self) -> Self {
        for numbers in [&mut self.q, &mut self.kv, &mut self.d_out] {
            numbers.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
        }
        self.attention.precision = Precision::BF16;
        self
    }

    /// How much of each term of a sum rounding can take away: every term has one factor, a probability or the gradient of a
    /// score, that bf16 may not be able to express.
    fn rounding(&self) -> f64 {
        match self.attention.precision {
            Precision::F32 => 0.0,
            Precision::BF16 => 1.0 / 256.0,
        }
    }

    fn run(&self) -> Results<f32> {
        let layout = packed(self.prefix, &self.rows);
        let queries = layout.queries_at(&self.keep);
        // What was there before must not matter.
        let [mut out, mut d_q] = [(); 2].map(|()| vec![f32::NAN; self.q.len()]);
        let mut d_kv = vec![f32::NAN; self.kv.len()];
        self.attention.forward(&self.q, &self.kv, &layout, &queries, &mut out);
        self.attention.backward(&self.q, &self.kv, &layout, &queries, &self.d_out, &mut d_q, &mut d_kv);
        [out, d_q, d_kv]
    }

    /// The tokens that a token sees, in the order of their positions.
    fn visible(&self, token: usize) -> Vec<usize> {
        let mut start = self.prefix;
        for &row in &self.rows {
            if (start..start + row).contains(&token) {
                return (0..self.prefix).chain(start..=token).collect();
            }
            start += row;
        }
        (0..=token).collect()
    }

    fn formula(&self) -> Results<Sum> {
        let Attention { heads, keys, scale, ref slopes, dropout, .. } = self.attention;
        let (kv_heads, dim) = (keys.kv_heads, keys.dim);
        let mut results = [&self.q, &self.q, &self.kv].map(|like| vec![Sum::default(); like.len()]);
        let [out, d_q, d_kv] = &mut results;
        let at = |values: &[f32], start: usize, d: usize| f64::from(values[start + d]);
        for (row, &token) in self.keep.iter().enumerate() {
            let visible = self.visible(token as usize);
            for head in 0..heads {
                let kv_head = head / (heads / kv_heads);
                let query = (row * heads + head) * dim;
                let places = |token: usize| {
                    let (key, value) = match self.interleaved {
                        true => (2 * kv_head, 2 * kv_head + 1),
                        false => (kv_head, kv_heads + kv_head),
                    };
                    ((token * 2 * kv_heads + key) * dim, (token * 2 * kv_heads + value) * dim)
                };
                let slope = slopes.as_ref().map_or(0.0, |slopes| f64::from(slopes[head]));
                let weights: Vec<f64> = visible
                    .iter()
                    .enumerate()
                    .map(|(position, &token)| {
                        let key = places(token).0;
                        let dot: f64 = (0..dim).map(|d| at(&self.q, query, d) * at(&self.kv, key, d)).sum();
                        (dot * f64::from(scale) + slope * position as f64).exp()
                    })
                    .collect();
                let sum: f64 = weights.iter().sum();
                let p: Vec<f64> = weights.iter().map(|weight| weight / sum).collect();
                // What dropout leaves of each probability.
                let mut left = vec![1.0f32; visible.len()];
                if let Some(mask) = dropout {
                    mask.apply_row((row * heads + head) as u64, &mut left);
                }
                let d_p: Vec<f64> = visible
                    .iter()
                    .zip(&left)
                    .map(|(&token, &left)| {
                        let value = places(token).1;
                        let d = (0..dim).map(|d| at(&self.d_out, query, d) * at(&self.kv, value, d));
                        f64::from(left) * d.sum::<f64>()
                    })
                    .collect();
                let mean: f64 = p.iter().zip(&d_p).map(|(p, d_p)| p * d_p).sum();
                for (i, &token) in visible.iter().enumerate() {
                    let (key, value) = places(token);
                    let d_score = p[i] * (d_p[i] - mean) * f64::from(scale);
                    let p = p[i] * f64::from(left[i]);
                    for d in 0..dim {
                        out[query + d] += p * at(&self.kv, value, d);
                        d_q[query + d] += d_score * at(&self.kv, key, d);
                        d_kv[key + d] += d_score * at(&self.q, query, d);
                        d_kv[value + d] += p * at(&self.d_out, query, d);
                    }
                }
            }
        }
        results
    }

    fn check(&self, name: &str) {
        for ((part, ours), right) in ["out", "d_q", "d_kv"].into_iter().zip(self.run()).zip(self.formula()) {
            let size = right.iter().fold(1.0f64, |size, x| size.max(x.value.abs()));
            for (i, (&ours, right)) in ours.iter().zip(right).enumerate() {
                let error = (f64::from(ours) - right.value).abs();
                let bound = 3e-6 * size + self.rounding() * right.size;
                assert!(error < bound, "{name}: {part}[{i}] is {ours} instead of {}", right.value);
            }
        }
    }
}

fn attention(heads: usize, keys: KeyValue, slopes: Option<Vec<f32>>) -> Attention {
    Attention {
        heads,
        keys,
        scale: 0.9 / (keys.dim as f32).sqrt(),
        slopes,
        dropout: None,
        precision: Precision::F32,
    }
}

#[test]
fn value_and_gradient_over_odd_sizes() {
    let architectures = [
        attention(3, KeyValue::interleaved(3, 5), Some(alibi_slopes(3))),
        attention(4, KeyValue::stacked(2, 6), None),
        attention(6, KeyValue::stacked(1, 2), Some(alibi_slopes(6))),
        attention(2, KeyValue::stacked(2, 64), Some(vec![0.5, -0.25])),
        attention(9, KeyValue::stacked(3, 17), None),
        attention(60, KeyValue::interleaved(1, 1), None),
    ];
    let batches: [(usize, &[usize]); 6] =
        [(0, &[4, 0, 9]), (3, &[5, 1, 0, 2]), (5, &[]), (0, &[]), (5, &[33, 1, 19]), (17, &[70])];
    for attention in &architectures {
        for (prefix, rows) in batches {
            Case::new(attention.clone(), prefix, rows, None)
                .check(&format!("{attention:?} {prefix} {rows:?}"));
        }
    }
}

#[test]
fn rounded_factors_are_off_by_their_rounding_alone() {
    let architectures = [
        attention(3, KeyValue::interleaved(3, 5), Some(alibi_slopes(3))),
        attention(2, KeyValue::stacked(2, 64), Some(vec![0.5, -0.25])),
        attention(9, KeyValue::stacked(3, 64), None),
        attention(9, KeyValue::stacked(3, 17), None),
        attention(60, KeyValue::interleaved(1, 1), None),
        attention(4, KeyValue::stacked(2, 96), None),
    ];
    let batches: [(usize, &[usize]); 5] =
        [(0, &[4, 0, 9]), (3, &[16, 1, 0, 2]), (5, &[33, 1, 19]), (8, &[43, 56]), (17, &[150])];
    for attention in &architectures {
        for (prefix, rows) in batches {
            let name = format!("{attention:?} {prefix} {rows:?}");
            Case::new(attention.clone(), prefix, rows, None).rounded().check(&name);
        }
    }
    let keep: Vec<u32> = (0..160).map(|i| 6 + i * 7 % 180).collect();
    let keys = KeyValue::stacked(2, 32);
    Case::new(attention(6, keys, None), 3, &[5, 1, 0, 180], Some(&keep)).rounded().check("some tokens");
}

#[test]
fn what_is_dropped_has_no_part_in_value_and_gradient() {
    let mask = Dropout::On { seed: 3, pass: 4 }.mask(Site::Attention, 1, 0.3);
    let short: (usize, &[usize]) = (3, &[16, 1, 0, 9]);
    for (prefix, rows) in [short, (0, &[150]), (17, &[160, 5])] {
        let dropout = |attention| Attention { dropout: mask, ..attention };
        let attention = dropout(attention(6, KeyValue::stacked(2, 32), Some(alibi_slopes(6))));
        let keep: Vec<u32> = (0..(prefix + rows.iter().sum::<usize>()) as u32).step_by(2).collect();
        for keep in [None, Some(&keep[..])] {
            let name = format!("{prefix} {rows:?}");
            Case::new(attention.clone(), prefix, rows, keep).check(&name);
            Case::new(attention.clone(), prefix, rows, keep).rounded().check(&format!("{name}, rounded"));
        }
    }
}

#[test]
fn only_some_tokens_ask() {
    let keeps: [&[u32]; 5] =
        [&[], &[31], &[20, 4, 20, 1, 31, 6, 7, 20], &[2, 0], &[9, 8, 7, 6, 5, 31, 30, 29]];
    for keep in keeps {
        for keys in [KeyValue::stacked(2, 6), KeyValue::interleaved(2, 16)] {
            let case = Case::new(attention(4, keys, Some(alibi_slopes(4))), 3, &[5, 1, 0, 23], Some(keep));
            case.check(&format!("{keys:?} {keep:?}"));
        }
    }
}

#[test]
fn a_long_row_is_worked_on_in_blocks() {
    let case = Case::new(attention(2, KeyValue::stacked(1, 4), None), 2, &[333], None);
    case.check("long");
}

#[test]
fn large_scores_and_steep_slopes_stay_finite() {
    let mut case = Case::new(attention(2, KeyValue::stacked(2, 8), Some(vec![30.0, -30.0])), 3, &[40], None);
    case.q.iter_mut().for_each(|q| *q *= 50.0);
    assert!(case.run().iter().flatten().all(|x| x.is_finite()));
}

#[test]
fn no_number_of_threads_changes_a_bit() {
    let attention = attention(6, KeyValue::interleaved(3, 8), Some(alibi_slopes(6)));
    threads_change_nothing(&Case::new(attention.clone(), 5, &[9, 4, 31, 6, 2], None));
    threads_change_nothing(&Case::new(attention, 5, &[9, 110, 31, 140], None).rounded());
}

fn threads_change_nothing(case: &Case) {
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| case.run()).map(|part| part.into_iter().map(f32::to_bits).collect::<Vec<_>>())
    };
    let one = with(1);
    for threads in [2, 4, 5] {
        assert_eq!(one, with(threads), "{threads} threads");
    }
}

#[test]
fn what_is_not_a_number_is_not_hidden_and_not_kept() {
    let clean = Case::new(attention(2, KeyValue::stacked(1, 3), None), 2, &[4, 3], None);
    let expected = clean.run();
    let mut broken = Case::new(attention(2, KeyValue::stacked(1, 3), None), 2, &[4, 3], None);
    // The key of the first row's second token.
    broken.kv[3 * 6] = f32::NAN;
    let [out, d_q, d_kv] = broken.run();
    for part in [&out[3 * 6..6 * 6], &d_q[3 * 6..6 * 6], &d_kv[..4 * 6]] {
        assert!(part.iter().all(|x| x.is_nan()), "{part:?}");
    }
    assert_eq!(out[6 * 6..], expected[0][6 * 6..]);
    assert_eq!(clean.run(), expected);
}

#[test]
fn a_cache_filled_in_pieces_gives_what_one_pass_gives() {
    for keys in [KeyValue::stacked(2, 6), KeyValue::interleaved(2, 6)] {
        let attention = attention(4, keys, Some(alibi_slopes(4)));
        let case = Case::new(attention.clone(), 3, &[4, 2], None);
        let [whole, ..] = case.run();

        let mut cache = LayerCache::default();
        let mut step = |tokens: &[usize], layout: &Layout, keep: &[u32]| {
            let take = |matrix: &[f32], rows: &[usize]| -> Vec<f32> {
                rows.iter().flat_map(|&row| matrix[row * 24..][..24].to_vec()).collect()
            };
            let asking: Vec<_> = keep.iter().map(|&i| tokens[i as usize]).collect();
            let mut out = vec![f32::NAN; asking.len() * 24];
            let (q, kv) = (take(&case.q, &asking), take(&case.kv, tokens));
            let queries = layout.queries_at(keep);
            attention.forward_cached(&q, &kv, layout, &queries, &mut cache, &mut out);
            for (ours, right) in out.iter().zip(take(&whole, &asking)) {
                assert!((ours - right).abs() < 1e-6, "{ours} instead of {right}");
            }
        };
        let row = |row, past, tokens| CachedRow { row, past, tokens };
        step(&[0, 1, 2], &packed(3, &[]), &[0, 1, 2]);
        step(&[3, 4, 7], &Layout::cached(3, &[row(0, 0, 2), row(1, 0, 1)]), &[2, 1, 0]);
        step(&[8], &Layout::cached(3, &[row(1, 1, 1)]), &[0]);
        step(&[5, 6], &Layout::cached(3, &[row(0, 2, 2)]), &[1, 1]);
    }
}

#[test]
fn branches_see_the_cached_prefix_their_trunk_and_themselves() {
    for keys in [KeyValue::stacked(2, 6), KeyValue::interleaved(2, 6)] {
        let attention = attention(4, keys, Some(alibi_slopes(4)));
        // A prefix of 3, a trunk of 2, its branches of 3 and 1, another trunk of 2.
        let (q, kv) = (numbers(11 * 24, 1), numbers(11 * 24, 2));
        let take = |matrix: &[f32], rows: &[usize]| -> Vec<f32> {
            rows.iter().flat_map(|&row| matrix[row * 24..][..24].to_vec()).collect()
        };
        let mut cache = LayerCache::default();
        let mut pass = |tokens: &[usize], layout: &Layout| {
            let (q, kv) = (take(&q, tokens), take(&kv, tokens));
            let mut out = vec![f32::NAN; q.len()];
            attention.forward_cached(&q, &kv, layout, &layout.all_queries(), &mut cache, &mut out);
            out
        };
        let trunk = |tokens, branches: &[usize]| Trunk {
            row: PackedRow { tokens, pads_before: 0 },
            branches: branches.to_vec(),
        };
        let prefix = pass(&[0, 1, 2], &packed(3, &[]));
        let layout = Layout::branching(3, &[trunk(2, &[3, 1]), trunk(2, &[])]);
        let rest: Vec<usize> = (3..11).collect();
        let branching = [prefix, pass(&rest, &layout)].concat();
        assert_eq!(cache.of(Slot::Prefix).len(), 3 * 24);
        assert!(cache.of(Slot::Row(0)).is_empty());
        for alone in [&[0, 1, 2, 3, 4, 5, 6, 7][..], &[0, 1, 2, 3, 4, 8], &[0, 1, 2, 9, 10]] {
            let layout = packed(0, &[alone.len()]);
            let mut out = vec![f32::NAN; alone.len() * 24];
            let (q, kv) = (take(&q, alone), take(&kv, alone));
            attention.forward(&q, &kv, &layout, &layout.all_queries(), &mut out);
            for (ours, right) in take(&branching, alone).iter().zip(&out) {
                assert!((ours - right).abs() < 1e-6, "{ours} instead of {right}");
            }
        }
    }
}

#[test]
fn slopes_of_twelve_heads() {
    // transformers: build_alibi_tensor(torch.ones(1, 2), 12, torch.float32)
    let slopes = alibi_slopes(12);
    assert_eq!(slopes[0], 0.5);
    assert_eq!(slopes[7], 0.00390625);
    assert_eq!(slopes[8], 0.707_106_77);
    assert_eq!(slopes[11], 0.088_388_346);
}

#[test]
#[should_panic(expected = "attention: kv has 6 numbers and should be [2, 4]")]
fn a_batch_of_another_size_is_refused() {
    let layout = packed(2, &[]);
    let attention = attention(1, KeyValue::stacked(1, 2), None);
    attention.forward(&[0.0; 4], &[0.0; 6], &layout, &layout.all_queries(), &mut [0.0; 4]);
}

#[test]
#[should_panic(expected = "attention: a cached row has 4 numbers and should be [3, 4]")]
fn a_cache_that_ends_elsewhere_is_refused() {
    let layout = Layout::cached(0, &[CachedRow { row: 0, past: 2, tokens: 1 }]);
    let attention = attention(1, KeyValue::stacked(1, 2), None);
    let mut cache = LayerCache::default();
    let queries = layout.all_queries();
    attention.forward_cached(&[0.0; 2], &[0.0; 4], &layout, &queries, &mut cache, &mut [0.0; 2]);
}

#[test]
#[should_panic(expected = "attention: without a cache a batch has to begin with its prefix")]
fn a_batch_that_needs_a_cache_is_refused_without_one() {
    let layout = Layout::cached(2, &[CachedRow { row: 0, past: 0, tokens: 1 }]);
    let attention = attention(1, KeyValue::stacked(1, 2), None);
    attention.forward(&[0.0; 2], &[0.0; 4], &layout, &layout.all_queries(), &mut [0.0; 2]);
}
