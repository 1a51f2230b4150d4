//! Causal attention over a packed batch with a shared prefix.
//!
//! Scores exist only for one head of one segment at a time. Backward computes them again and adds what the
//! segments say about the prefix's keys in the segments' order, so that no thread count changes a bit.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout as TensorLayout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::matmul::{Matrix, MatrixMut, Threads, add_product, product};
use super::{slice, with_values};
use crate::model::cache::LayerCache;
use crate::model::layout::{Layout, Segment, Slot};

/// Where the heads' columns are in a row of queries, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Number of query heads.
    pub count: usize,
    /// Number of key and value heads; each serves `count / kv_count` query heads.
    pub kv_count: usize,
    /// Numbers a head.
    pub dim: usize,
    query: Columns,
    key: Columns,
    value: Columns,
}

/// Heads that begin at a column and follow one another at a distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Columns {
    start: usize,
    step: usize,
}

impl Columns {
    fn at(self, head: usize) -> usize {
        self.start + head * self.step
    }
}

impl Heads {
    /// All query heads, then all key heads, then all value heads.
    pub fn stacked(count: usize, kv_count: usize, dim: usize) -> Self {
        let key = Columns { start: count * dim, step: dim };
        let value = Columns { start: (count + kv_count) * dim, step: dim };
        Self { count, kv_count, dim, query: Columns { start: 0, step: dim }, key, value }
    }

    /// Query, key and value of the first head, then of the second: BLOOM's order.
    pub fn interleaved(count: usize, dim: usize) -> Self {
        let part = |i| Columns { start: i * dim, step: 3 * dim };
        Self { count, kv_count: count, dim, query: part(0), key: part(1), value: part(2) }
    }

    /// Columns in all.
    pub fn width(&self) -> usize {
        (self.count + 2 * self.kv_count) * self.dim
    }

    /// First column of a query head.
    pub fn query(&self, head: usize) -> usize {
        self.query.at(head)
    }

    /// First column of a key head.
    pub fn key(&self, head: usize) -> usize {
        self.key.at(head)
    }

    /// First column of a value head.
    pub fn value(&self, head: usize) -> usize {
        self.value.at(head)
    }

    /// The key and value head that serves a query head.
    fn serving(&self, head: usize) -> usize {
        head * self.kv_count / self.count
    }
}

/// The attention of one architecture.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Where the heads are.
    pub heads: Heads,
    /// What a score is multiplied by.
    pub scale: f32,
    /// ALiBi: what each head adds to a score for each position of the key, counted without padding.
    pub slopes: Option<Vec<f32>>,
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

impl Attention {
    /// `[tokens, queries | keys | values]` → `[tokens, heads · dim]`.
    ///
    /// # Errors
    /// The tensor has another number of tokens or columns than layout and heads say.
    pub fn forward(self: &Arc<Self>, qkv: &Tensor, layout: &Arc<Layout>) -> Result<Tensor> {
        qkv.contiguous()?.apply_op1(Apply { attention: self.clone(), layout: layout.clone() })
    }

    /// The same where earlier keys and values are in a cache; those of this batch are added to it.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn forward_cached(&self, qkv: &Tensor, layout: &Layout, cache: &mut LayerCache) -> Result<Tensor> {
        self.check(qkv.dims(), layout)?;
        let Heads { kv_count, dim, .. } = self.heads;
        let width = self.heads.width();
        let output = with_values(qkv, |qkv| {
            cache.extend(layout, |token, into| {
                let row = &qkv[token * width..][..width];
                (0..kv_count).for_each(|h| into.extend_from_slice(&row[self.heads.key(h)..][..dim]));
                (0..kv_count).for_each(|h| into.extend_from_slice(&row[self.heads.value(h)..][..dim]));
            });
            self.attend(qkv, layout, |segment| {
                let block = |values| Keys {
                    values,
                    width: 2 * kv_count * dim,
                    key: Columns { start: 0, step: dim },
                    value: Columns { start: kv_count * dim, step: dim },
                    dim,
                };
                match segment.slot {
                    Slot::Prefix => [block(&[]), block(&cache.prefix)],
                    Slot::Row(i) => [block(&cache.prefix), block(&cache.rows[i])],
                }
            })
        })?;
        Tensor::from_vec(output, (layout.tokens(), self.heads.count * dim), qkv.device())
    }

    fn check(&self, dims: &[usize], layout: &Layout) -> Result<()> {
        let expected = [layout.tokens(), self.heads.width()];
        if dims != expected {
            candle_core::bail!("attention: the input is {dims:?}, layout and heads need {expected:?}");
        }
        Ok(())
    }

    /// The prefix's keys that a segment sees, and its own, within the packed tensor.
    fn keys<'a>(&self, qkv: &'a [f32], layout: &Layout, segment: &Segment) -> [Keys<'a>; 2] {
        let width = self.heads.width();
        let rows = |range: std::ops::Range<usize>| Keys {
            values: &qkv[range.start * width..range.end * width],
            width,
            key: self.heads.key,
            value: self.heads.value,
            dim: self.heads.dim,
        };
        let prefix = match segment.slot {
            Slot::Prefix => 0,
            Slot::Row(_) => layout.prefix(),
        };
        [rows(0..prefix), rows(segment.queries.clone())]
    }

    fn attend<'a>(
        &self,
        qkv: &[f32],
        layout: &Layout,
        keys: impl Fn(&Segment) -> [Keys<'a>; 2] + Sync,
    ) -> Vec<f32> {
        let Heads { count, dim, .. } = self.heads;
        let parts: Vec<(usize, usize, Vec<f32>)> = self
            .tasks(layout)
            .map(|(segment, head)| {
                let queries = self.queries(qkv, segment, head);
                let keys = keys(segment);
                let p = self.probabilities(queries, segment.queries.len(), &keys, head);
                (segment.queries.start, head, self.mix(&p, segment.queries.len(), &keys, head))
            })
            .collect();
        let mut output = vec![0.0; layout.tokens() * count * dim];
        for (start, head, part) in parts {
            for (i, row) in part.chunks_exact(dim).enumerate() {
                output[((start + i) * count + head) * dim..][..dim].copy_from_slice(row);
            }
        }
        output
    }

    /// Every head of every segment, in this order.
    fn tasks<'a>(
        &self,
        layout: &'a Layout,
    ) -> impl IndexedParallelIterator<Item = (&'a Segment, usize)> + use<'a> {
        let heads = self.heads.count;
        (0..layout.segments().len() * heads)
            .into_par_iter()
            .map(move |i| (&layout.segments()[i / heads], i % heads))
    }

    fn queries<'a>(&self, qkv: &'a [f32], segment: &Segment, head: usize) -> Matrix<'a> {
        let width = self.heads.width();
        let rows = &qkv[segment.queries.start * width..segment.queries.end * width];
        let start = self.heads.query(head).min(rows.len());
        Matrix::new(&rows[start..], segment.queries.len(), self.heads.dim, width)
    }

    /// Softmax of the scores, `[queries, keys]`; 0 where a query doesn't see a key.
    fn probabilities(&self, queries: Matrix, count: usize, keys: &[Keys; 2], head: usize) -> Vec<f32> {
        let serving = self.heads.serving(head);
        let [prefix, own] = keys;
        let all = prefix.rows() + own.rows();
        let mut p = vec![0.0; count * all];
        if count == 0 {
            return p;
        }
        let scores = MatrixMut::new(&mut p, count, prefix.rows(), all);
        product(scores, self.scale, queries, prefix.keys(serving).transposed(), Threads::One);
        let scores = MatrixMut::new(&mut p[prefix.rows()..], count, own.rows(), all);
        product(scores, self.scale, queries, own.keys(serving).transposed(), Threads::One);
        let slope = self.slopes.as_ref().map_or(0.0, |s| s[head]);
        for (i, row) in p.chunks_exact_mut(all).enumerate() {
            let (seen, unseen) = row.split_at_mut(all - count + i + 1);
            unseen.fill(0.0);
            let mut max = f32::NEG_INFINITY;
            for (position, score) in seen.iter_mut().enumerate() {
                *score += slope * position as f32;
                max = max.max(*score);
            }
            let mut sum = 0.0;
            for score in seen.iter_mut() {
                *score = (*score - max).exp();
                sum += *score;
            }
            seen.iter_mut().for_each(|p| *p /= sum);
        }
        p
    }

    /// Probabilities · values, `[queries, dim]`.
    fn mix(&self, p: &[f32], count: usize, keys: &[Keys; 2], head: usize) -> Vec<f32> {
        let serving = self.heads.serving(head);
        let [prefix, own] = keys;
        let (dim, all) = (self.heads.dim, prefix.rows() + own.rows());
        let mut out = vec![0.0; count * dim];
        if count == 0 {
            return out;
        }
        let left = Matrix::new(p, count, prefix.rows(), all);
        product(MatrixMut::new(&mut out, count, dim, dim), 1.0, left, prefix.values(serving), Threads::One);
        let left = Matrix::new(&p[prefix.rows()..], count, own.rows(), all);
        add_product(MatrixMut::new(&mut out, count, dim, dim), 1.0, left, own.values(serving), Threads::One);
        out
    }

    fn backward(&self, qkv: &[f32], gradient: &[f32], layout: &Layout) -> Vec<f32> {
        let Heads { dim, .. } = self.heads;
        let width = self.heads.width();
        let parts: Vec<_> = self
            .tasks(layout)
            .map(|(segment, head)| (segment, head, self.backward_head(qkv, gradient, layout, segment, head)))
            .collect();
        let mut d_qkv = vec![0.0; qkv.len()];
        let mut add = |first_row: usize, column: usize, part: &[f32]| {
            for (i, row) in part.chunks_exact(dim).enumerate() {
                let into = &mut d_qkv[(first_row + i) * width + column..][..dim];
                into.iter_mut().zip(row).for_each(|(a, b)| *a += b);
            }
        };
        for (segment, head, part) in &parts {
            let serving = self.heads.serving(*head);
            let (key, value) = (self.heads.key(serving), self.heads.value(serving));
            add(segment.queries.start, self.heads.query(*head), &part.queries);
            for (first_row, (keys, values)) in [0, segment.queries.start].into_iter().zip(&part.keys_values) {
                add(first_row, key, keys);
                add(first_row, value, values);
            }
        }
        d_qkv
    }

    fn backward_head(
        &self,
        qkv: &[f32],
        gradient: &[f32],
        layout: &Layout,
        segment: &Segment,
        head: usize,
    ) -> HeadGradient {
        let Heads { count: heads, dim, .. } = self.heads;
        let serving = self.heads.serving(head);
        let count = segment.queries.len();
        let queries = self.queries(qkv, segment, head);
        let blocks = self.keys(qkv, layout, segment);
        let all = blocks[0].rows() + blocks[1].rows();
        let p = self.probabilities(queries, count, &blocks, head);
        let rows = &gradient[segment.queries.start * heads * dim..segment.queries.end * heads * dim];
        let d_out = Matrix::new(&rows[(head * dim).min(rows.len())..], count, dim, heads * dim);

        let mut d_scores = vec![0.0; count * all];
        let mut first = 0;
        for block in &blocks {
            let d_p = MatrixMut::new(&mut d_scores[first..], count, block.rows(), all);
            product(d_p, 1.0, d_out, block.values(serving).transposed(), Threads::One);
            first += block.rows();
        }
        for (d, p) in d_scores.chunks_exact_mut(all.max(1)).zip(p.chunks_exact(all.max(1))) {
            let dot: f32 = d.iter().zip(p).map(|(d, p)| d * p).sum();
            d.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - dot) * self.scale);
        }

        let mut d_queries = vec![0.0; count * dim];
        let mut first = 0;
        let keys_values = blocks.map(|block| {
            let d_s = Matrix::new(&d_scores[first..], count, block.rows(), all);
            let out = MatrixMut::new(&mut d_queries, count, dim, dim);
            add_product(out, 1.0, d_s, block.keys(serving), Threads::One);
            let (mut d_keys, mut d_values) = (vec![0.0; block.rows() * dim], vec![0.0; block.rows() * dim]);
            let out = MatrixMut::new(&mut d_keys, block.rows(), dim, dim);
            product(out, 1.0, d_s.transposed(), queries, Threads::One);
            let p = Matrix::new(&p[first..], count, block.rows(), all).transposed();
            product(MatrixMut::new(&mut d_values, block.rows(), dim, dim), 1.0, p, d_out, Threads::One);
            first += block.rows();
            (d_keys, d_values)
        });
        HeadGradient { queries: d_queries, keys_values }
    }
}

/// What one head of one segment says about its queries, and about the prefix's and its own keys and values.
struct HeadGradient {
    queries: Vec<f32>,
    keys_values: [(Vec<f32>, Vec<f32>); 2],
}

/// Consecutive tokens' keys and values.
#[derive(Clone, Copy)]
struct Keys<'a> {
    values: &'a [f32],
    width: usize,
    key: Columns,
    value: Columns,
    dim: usize,
}

impl<'a> Keys<'a> {
    fn rows(&self) -> usize {
        self.values.len() / self.width
    }

    fn keys(&self, head: usize) -> Matrix<'a> {
        self.columns(self.key.at(head))
    }

    fn values(&self, head: usize) -> Matrix<'a> {
        self.columns(self.value.at(head))
    }

    fn columns(&self, start: usize) -> Matrix<'a> {
        Matrix::new(&self.values[start.min(self.values.len())..], self.rows(), self.dim, self.width)
    }
}

struct Apply {
    attention: Arc<Attention>,
    layout: Arc<Layout>,
}

impl CustomOp1 for Apply {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &TensorLayout) -> Result<(CpuStorage, Shape)> {
        self.attention.check(layout.dims(), &self.layout)?;
        let qkv = slice(storage, layout)?;
        let output = self
            .attention
            .attend(qkv, &self.layout, |segment| self.attention.keys(qkv, &self.layout, segment));
        let heads = &self.attention.heads;
        Ok((CpuStorage::F32(output), Shape::from((self.layout.tokens(), heads.count * heads.dim))))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let d_qkv = with_values(qkv, |qkv| {
            with_values(gradient, |gradient| self.attention.backward(qkv, gradient, &self.layout))
        })??;
        Ok(Some(Tensor::from_vec(d_qkv, qkv.dims(), qkv.device())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType, Device};

    use super::super::testing::{check, distance, numbers};
    use super::*;
    use crate::model::layout::{CachedRow, PackedRow};

    fn rows(tokens: &[usize]) -> Vec<PackedRow> {
        tokens.iter().map(|&tokens| PackedRow { tokens, pads_before: 0 }).collect()
    }

    /// Attention written out row by row: the prefix's keys are copied before each row's.
    fn formula(x: &Tensor, a: &Attention, prefix: usize, rows: &[usize]) -> Result<Tensor> {
        let dim = a.heads.dim;
        let mut outputs = Vec::new();
        let mut start = prefix;
        let mut ranges = vec![(0, 0, prefix)];
        for &n in rows {
            ranges.push((prefix, start, n));
            start += n;
        }
        for (prefix, start, n) in ranges {
            if n == 0 {
                continue;
            }
            let own = x.narrow(0, start, n)?;
            let keys =
                if prefix > 0 { Tensor::cat(&[&x.narrow(0, 0, prefix)?, &own], 0)? } else { own.clone() };
            let mask: Vec<f64> = (0..n)
                .flat_map(|i| (0..prefix + n).map(move |j| if j <= prefix + i { 0.0 } else { -1e30 }))
                .collect();
            let mask = Tensor::from_vec(mask, (n, prefix + n), &Device::Cpu)?;
            let mut heads = Vec::new();
            for h in 0..a.heads.count {
                let kv = a.heads.serving(h);
                let q = own.narrow(1, a.heads.query(h), dim)?.contiguous()?;
                let k = keys.narrow(1, a.heads.key(kv), dim)?.contiguous()?;
                let v = keys.narrow(1, a.heads.value(kv), dim)?.contiguous()?;
                let bias: Vec<f64> = (0..prefix + n)
                    .map(|j| a.slopes.as_ref().map_or(0.0, |s| f64::from(s[h]) * j as f64))
                    .collect();
                let bias = Tensor::from_vec(bias, (1, prefix + n), &Device::Cpu)?;
                let s = ((q.matmul(&k.t()?)? * f64::from(a.scale))?.broadcast_add(&bias)? + &mask)?;
                let e = s.broadcast_sub(&s.max_keepdim(D::Minus1)?.detach())?.exp()?;
                let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?;
                heads.push(p.matmul(&v)?);
            }
            outputs.push(Tensor::cat(&heads, 1)?);
        }
        Tensor::cat(&outputs, 0)
    }

    #[test]
    fn value_and_gradient_over_odd_sizes() {
        let cases = [
            (Heads::interleaved(3, 5), Some(alibi_slopes(3)), 4, vec![3, 1, 7]),
            (Heads::stacked(4, 2, 6), None, 3, vec![5, 2]),
            (Heads::stacked(6, 1, 2), None, 0, vec![4, 0, 9]),
            (Heads::stacked(1, 1, 3), Some(vec![0.5]), 5, vec![]),
        ];
        for (heads, slopes, prefix, lengths) in cases {
            let attention = Arc::new(Attention { heads, scale: 0.4, slopes });
            let layout = Arc::new(Layout::packed(prefix, &rows(&lengths)));
            let x = (numbers(&[layout.tokens(), heads.width()], 5) * 2.0).unwrap();
            check(&x, |x| attention.forward(x, &layout), |x| formula(x, &attention, prefix, &lengths));
        }
    }

    #[test]
    fn a_cache_filled_in_pieces_gives_what_one_pass_gives() {
        let heads = Heads::stacked(4, 2, 6);
        let attention = Arc::new(Attention { heads, scale: 0.4, slopes: Some(alibi_slopes(4)) });
        let x = numbers(&[3 + 4 + 2, heads.width()], 6);
        let whole = attention.forward(&x, &Arc::new(Layout::packed(3, &rows(&[4, 2])))).unwrap();

        let mut cache = LayerCache::default();
        let at = |start, n| x.narrow(0, start, n).unwrap();
        let prefix = attention.forward_cached(&at(0, 3), &Layout::packed(3, &[]), &mut cache).unwrap();
        let first = [CachedRow { row: 0, past: 0, tokens: 3 }, CachedRow { row: 1, past: 0, tokens: 2 }];
        let pieces = Tensor::cat(&[at(3, 3), at(7, 2)], 0).unwrap();
        let pieces = attention.forward_cached(&pieces, &Layout::cached(3, &first), &mut cache).unwrap();
        let last = Layout::cached(3, &[CachedRow { row: 0, past: 3, tokens: 1 }]);
        let last = attention.forward_cached(&at(6, 1), &last, &mut cache).unwrap();
        let pieces =
            Tensor::cat(&[prefix, pieces.narrow(0, 0, 3).unwrap(), last, pieces.narrow(0, 3, 2).unwrap()], 0);
        assert!(distance(&pieces.unwrap(), &whole) < 1e-6);
    }

    #[test]
    fn no_thread_count_changes_a_bit() {
        let heads = Heads::interleaved(3, 8);
        let attention = Arc::new(Attention { heads, scale: 0.3, slopes: Some(alibi_slopes(3)) });
        let layout = Layout::packed(5, &rows(&[9, 4, 11, 6, 2]));
        let x: Vec<f32> =
            numbers(&[layout.tokens(), heads.width()], 7).flatten_all().unwrap().to_vec1().unwrap();
        let gradient: Vec<f32> = numbers(&[layout.tokens(), 24], 8).flatten_all().unwrap().to_vec1().unwrap();
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| attention.backward(&x, &gradient, &layout))
        };
        assert_eq!(with(1), with(4));
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
    fn a_batch_of_another_size_is_refused() {
        let heads = Heads::stacked(1, 1, 2);
        let attention = Arc::new(Attention { heads, scale: 1.0, slopes: None });
        let x = Tensor::zeros((3, 6), DType::F32, &Device::Cpu).unwrap();
        let error = attention.forward(&x, &Arc::new(Layout::packed(2, &[]))).unwrap_err().to_string();
        assert!(error.starts_with("attention: the input is [3, 6], layout and heads need [2, 6]"), "{error}");
    }
}
