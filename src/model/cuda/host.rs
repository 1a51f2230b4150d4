//! A card that is none: every operation as a plain loop over the processor's memory, to hold the engine to what the
//! processor's own decoder computes.
//!
//! As on a card, work can be recorded and done again with what memory holds then.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::type_complexity)]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use half::{bf16, f16};

use super::super::ops::activation::Activation;
use super::super::ops::rotary::Direction;
use super::super::random::Key;
use super::CardError;
use super::card::{
    Attended, Attending, AttentionOn, Card, Columns, Factor, Groups, Kind, MaskOn, Matrix, NormOn, Normed,
    Onto, Over, Result, TensorOn, Words,
};
use super::engine::round_into;

type Step = Box<dyn Fn()>;

/// The card, and what it counts.
#[derive(Clone)]
pub struct Host {
    kind: Kind,
    recording: Rc<RefCell<Option<Vec<Step>>>>,
    state: Arc<Mutex<State>>,
}

/// Words in use, at most, and as many as there may be.
struct State {
    used: usize,
    peak: usize,
    room: usize,
    replays: usize,
}

/// Memory, and how many words of it count.
pub struct Memory(Mutex<Vec<u32>>, usize, Arc<Mutex<State>>);

impl Drop for Memory {
    fn drop(&mut self) {
        self.2.lock().unwrap().used -= self.1;
    }
}

impl Host {
    /// A card with room for everything.
    pub fn new(kind: Kind) -> Self {
        let state = State { used: 0, peak: 0, room: usize::MAX, replays: 0 };
        Self { kind, recording: Rc::default(), state: Arc::new(Mutex::new(state)) }
    }

    /// From now on there is room for so many words.
    pub fn limit(&self, words: usize) {
        self.state.lock().unwrap().room = words;
    }

    /// How often recorded work was done again.
    pub fn replays(&self) -> usize {
        self.state.lock().unwrap().replays
    }

    fn run(&self, step: impl Fn() + 'static) -> Result<()> {
        match &mut *self.recording.borrow_mut() {
            Some(steps) => steps.push(Box::new(step)),
            None => step(),
        }
        Ok(())
    }
}

fn get(words: &Words<Host>) -> Vec<u32> {
    words.memory.0.lock().unwrap()[words.first..][..words.len].to_vec()
}

fn put(words: &Words<Host>, values: &[u32]) {
    words.memory.0.lock().unwrap()[words.first..][..values.len()].copy_from_slice(values);
}

fn f32s(words: &Words<Host>) -> Vec<f32> {
    get(words).into_iter().map(f32::from_bits).collect()
}

fn i32s(words: &Words<Host>) -> Vec<i32> {
    get(words).into_iter().map(|word| word as i32).collect()
}

fn put_f32s(words: &Words<Host>, values: &[f32]) {
    put(words, &values.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
}

fn f64s(words: &Words<Host>) -> Vec<f64> {
    let pairs = get(words);
    pairs.chunks_exact(2).map(|w| f64::from_bits(u64::from(w[0]) | u64::from(w[1]) << 32)).collect()
}

fn put_f64s(words: &Words<Host>, values: &[f64]) {
    let bits = values.iter().flat_map(|value| [value.to_bits() as u32, (value.to_bits() >> 32) as u32]);
    put(words, &bits.collect::<Vec<_>>());
}

/// Numbers of a factor or a weight.
fn wide(words: &Words<Host>, kind: Kind, count: usize) -> Vec<f32> {
    let narrow = |i: usize, words: &[u32]| (words[i / 2] >> (16 * (i % 2))) as u16;
    let words = get(words);
    (0..count)
        .map(|i| match kind {
            Kind::F32 => f32::from_bits(words[i]),
            Kind::BF16 => bf16::from_bits(narrow(i, &words)).to_f32(),
            Kind::F16 => f16::from_bits(narrow(i, &words)).to_f32(),
        })
        .collect()
}

fn put_rounded(words: &Words<Host>, kind: Kind, values: &[f32]) {
    let mut rounded = vec![0; kind.words(values.len())];
    round_into(&mut rounded, values, kind);
    put(words, &rounded);
}

fn drops(mask: &Option<(Words<Host>, u32, f32)>, row: usize, column: usize) -> f32 {
    let Some((key, threshold, scale)) = mask else { return 1.0 };
    let key = get(key);
    let key = Key::of_bits(u64::from(key[0]) | u64::from(key[1]) << 32).then(row as u64);
    if key.bits(column as u32) >= *threshold { *scale } else { 0.0 }
}

fn parts(mask: Option<&MaskOn<Host>>) -> Option<(Words<Host>, u32, f32)> {
    mask.map(|mask| (mask.key.clone(), mask.threshold, mask.scale))
}

/// Value and slope of an activation's argument.
fn gelu(x: f64) -> (f64, f64) {
    let c = (2.0 / std::f64::consts::PI).sqrt();
    let tanh = (c * (x + 0.044715 * x.powi(3))).tanh();
    let slope = (1.0 - tanh * tanh) * c * (1.0 + 3.0 * 0.044715 * x * x);
    (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * slope)
}

fn silu(x: f64) -> (f64, f64) {
    let s = 1.0 / (1.0 + (-x).exp());
    (x * s, s * (1.0 + x * (1.0 - s)))
}

/// Where the keys that a query sees are, in the order of their places: a row of the batch, or of the cache.
fn keys_of(segment: &[i32], seen: usize) -> Vec<(bool, usize)> {
    let stretch = |first: i32, len: i32| {
        (0..len as usize).map(move |i| match first {
            first if first >= 0 => (false, first as usize + i),
            first => (true, (-1 - first) as usize + i),
        })
    };
    let all = stretch(segment[2], segment[3]).chain(stretch(segment[4], segment[5]));
    all.chain(stretch(segment[6], segment[7])).take(seen).collect()
}

/// The shape of an attention.
#[derive(Clone)]
struct Heads {
    heads: usize,
    keys: Columns,
    first_value: usize,
    scale: f32,
    slopes: Option<Words<Host>>,
}

impl Heads {
    fn of(attention: &AttentionOn<Host>) -> Self {
        let AttentionOn { heads, keys, first_value, scale, slopes } = attention;
        Self { heads: *heads, keys: *keys, first_value: *first_value, scale: *scale, slopes: slopes.clone() }
    }

    /// The columns of key and value that belong to a query head.
    fn columns(&self, head: usize) -> (usize, usize) {
        let shared = head / (self.heads / self.keys.heads);
        (self.keys.first + shared * self.keys.step, self.first_value + shared * self.keys.step)
    }
}

/// For each query and head: the keys seen and their probabilities.
type Probabilities = Vec<(usize, usize, Vec<(bool, usize)>, Vec<f64>)>;

fn probabilities(
    q: &[f32],
    rows: [&[f32]; 2],
    (queries, segments): (&[i32], &[i32]),
    heads: &Heads,
) -> Probabilities {
    let (dim, width) = (heads.keys.dim, heads.heads * heads.keys.dim);
    let kv_width = 2 * heads.keys.heads * dim;
    let slopes = heads.slopes.as_ref().map(f32s);
    let mut all = Vec::new();
    for (index, query) in queries.chunks_exact(2).enumerate() {
        let row = query[0] as usize;
        let of = segments.chunks_exact(8).find(|s| (s[0]..s[0] + s[1]).contains(&(index as i32))).unwrap();
        let keys = keys_of(of, query[1] as usize);
        for head in 0..heads.heads {
            let (key, _) = heads.columns(head);
            let scores = keys.iter().enumerate().map(|(place, &(cached, at))| {
                let key = &rows[usize::from(cached)][at * kv_width + key..][..dim];
                let q = &q[row * width + head * dim..][..dim];
                let dot: f64 = q.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                let slope = slopes.as_ref().map_or(0.0, |slopes| f64::from(slopes[head]));
                dot * f64::from(heads.scale) + slope * place as f64
            });
            let scores: Vec<f64> = scores.collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            all.push((row, head, keys.clone(), weights.iter().map(|w| w / sum).collect()));
        }
    }
    all
}

impl Card for Host {
    type Memory = Memory;
    type Graph = Vec<Step>;

    fn kind(&self) -> Kind {
        self.kind
    }

    fn words(&self, len: usize) -> Result<Words<Self>> {
        let mut state = self.state.lock().unwrap();
        // Steps that were recorded hold their memory; on a card it would be used again.
        let counts = if self.recording.borrow().is_some() { 0 } else { len };
        if state.used + counts > state.room {
            return Err(CardError::OutOfMemory { needed: 4 * len as u64, used: 4 * state.used as u64 });
        }
        state.used += counts;
        state.peak = state.peak.max(state.used);
        // What is there before it is written must not matter.
        let memory = Memory(Mutex::new(vec![f32::NAN.to_bits(); len]), counts, self.state.clone());
        Ok(Words { memory: Arc::new(memory), first: 0, len })
    }

    fn write(&self, to: &Words<Self>, from: &[u32]) -> Result<()> {
        assert_eq!(to.len, from.len());
        put(to, from);
        Ok(())
    }

    fn read(&self, from: &Words<Self>) -> Result<Vec<u32>> {
        Ok(get(from))
    }

    fn copy(&self, to: &Words<Self>, from: &Words<Self>) -> Result<()> {
        assert_eq!(to.len, from.len);
        let (to, from) = (to.clone(), from.clone());
        self.run(move || put(&to, &get(&from)))
    }

    fn zero(&self, words: &Words<Self>) -> Result<()> {
        let words = words.clone();
        self.run(move || put(&words, &vec![0; words.len]))
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Vec<Step>>> {
        *self.recording.borrow_mut() = Some(Vec::new());
        let outcome = work();
        let steps = self.recording.borrow_mut().take();
        outcome.map(|()| steps)
    }

    fn replay(&self, graph: &Vec<Step>) -> Result<()> {
        self.state.lock().unwrap().replays += 1;
        graph.iter().for_each(|step| step());
        Ok(())
    }

    fn trim(&self) {}

    fn peak(&self) -> u64 {
        4 * self.state.lock().unwrap().peak as u64
    }

    fn embed(
        &self,
        y: &Matrix<Self>,
        prompt: Option<&Matrix<Self>>,
        table: &Words<Self>,
        ids: &Words<Self>,
        positions: Option<(&Words<Self>, &Words<Self>)>,
    ) -> Result<()> {
        let (y, prompt, table, ids, kind) =
            (y.clone(), prompt.cloned(), table.clone(), ids.clone(), self.kind);
        let positions = positions.map(|(table, at)| (table.clone(), at.clone()));
        self.run(move || {
            let width = y.width;
            let row = |table: &[f32], row: usize| table[row * width..][..width].to_vec();
            let numbers =
                |table: &Words<Self>| wide(table, kind, table.len * if kind == Kind::F32 { 1 } else { 2 });
            let (table, ids) = (numbers(&table), i32s(&ids));
            let mut rows: Vec<f32> = prompt.as_ref().map(|prompt| f32s(&prompt.words)).unwrap_or_default();
            let first = rows.len() / width;
            assert_eq!(first + ids.len(), y.rows);
            for &id in &ids {
                rows.extend(if id < 0 { vec![0.0; width] } else { row(&table, id as usize) });
            }
            if let Some((positions, at)) = &positions {
                let positions = numbers(positions);
                for (i, (into, at)) in rows.chunks_mut(width).zip(get(at)).enumerate() {
                    if i < first || ids[i - first] >= 0 {
                        into.iter_mut().zip(row(&positions, at as usize)).for_each(|(x, p)| *x += p);
                    }
                }
            }
            put_f32s(&y.words, &rows);
        })
    }

    fn gather(&self, y: &Matrix<Self>, x: &Matrix<Self>, rows: &Words<Self>) -> Result<()> {
        let (y, x, rows) = (y.clone(), x.clone(), rows.clone());
        self.run(move || {
            let from = f32s(&x.words);
            let row = |row: i32| match row {
                -1 => vec![0.0; x.width],
                row => from[row as usize * x.width..][..x.width].to_vec(),
            };
            put_f32s(&y.words, &i32s(&rows).into_iter().flat_map(row).collect::<Vec<_>>());
        })
    }

    fn scatter(&self, y: &Matrix<Self>, x: &Matrix<Self>, rows: &Words<Self>) -> Result<()> {
        let (y, x, rows) = (y.clone(), x.clone(), rows.clone());
        self.run(move || {
            let mut into = f32s(&y.words);
            for (from, row) in f32s(&x.words).chunks(x.width).zip(i32s(&rows)).filter(|(_, row)| *row >= 0) {
                into[row as usize * x.width..][..x.width].copy_from_slice(from);
            }
            put_f32s(&y.words, &into);
        })
    }

    fn add_groups(&self, y: &Matrix<Self>, x: &Matrix<Self>, groups: &Groups<Self>) -> Result<()> {
        let (y, x) = (y.clone(), x.clone());
        let (order, starts, targets) = (groups.order.clone(), groups.starts.clone(), groups.targets.clone());
        self.run(move || {
            let (mut into, from) = (f32s(&y.words), f32s(&x.words));
            let (order, starts) = (get(&order), get(&starts));
            for (target, range) in i32s(&targets).into_iter().zip(starts.windows(2)) {
                for row in order[range[0] as usize..range[1] as usize].iter().filter(|_| target >= 0) {
                    let from = &from[*row as usize * x.width..][..x.width];
                    let into = &mut into[target as usize * x.width..][..x.width];
                    into.iter_mut().zip(from).for_each(|(into, from)| *into += from);
                }
            }
            put_f32s(&y.words, &into);
        })
    }

    fn start(
        &self,
        y: &Matrix<Self>,
        residual: Option<&Matrix<Self>>,
        bias: Option<&Words<Self>>,
    ) -> Result<()> {
        let (y, residual, bias) = (y.clone(), residual.cloned(), bias.cloned());
        self.run(move || {
            let mut rows = residual.as_ref().map_or(vec![0.0; y.words.len], |r| f32s(&r.words));
            if let Some(bias) = bias.as_ref().map(f32s) {
                rows.chunks_mut(y.width).for_each(|row| row.iter_mut().zip(&bias).for_each(|(x, b)| *x += b));
            }
            put_f32s(&y.words, &rows);
        })
    }

    fn add_half(
        &self,
        y: &Matrix<Self>,
        x: &Matrix<Self>,
        bias: Option<&Words<Self>>,
        residual: &Matrix<Self>,
        mask: Option<&MaskOn<Self>>,
    ) -> Result<()> {
        let (y, x, bias, residual, mask) =
            (y.clone(), x.clone(), bias.cloned(), residual.clone(), parts(mask));
        self.run(move || {
            let (mut rows, residual) = (f32s(&x.words), f32s(&residual.words));
            let bias = bias.as_ref().map(f32s);
            for (i, value) in rows.iter_mut().enumerate() {
                let (row, column) = (i / x.width, i % x.width);
                *value += bias.as_ref().map_or(0.0, |bias| bias[column]);
                *value = *value * drops(&mask, row, column) + residual[i];
            }
            put_f32s(&y.words, &rows);
        })
    }

    fn drop_some(&self, y: &Matrix<Self>, x: &Matrix<Self>, mask: &MaskOn<Self>) -> Result<()> {
        let (y, x, mask) = (y.clone(), x.clone(), parts(Some(mask)));
        self.run(move || {
            let mut rows = f32s(&x.words);
            for (i, value) in rows.iter_mut().enumerate() {
                *value *= drops(&mask, i / x.width, i % x.width);
            }
            put_f32s(&y.words, &rows);
        })
    }

    fn add(&self, y: &Words<Self>, x: &Words<Self>) -> Result<()> {
        let (y, x) = (y.clone(), x.clone());
        self.run(move || put_f32s(&y, &f32s(&y).iter().zip(f32s(&x)).map(|(y, x)| y + x).collect::<Vec<_>>()))
    }

    fn round(&self, y: &Words<Self>, x: &Words<Self>) -> Result<()> {
        let (y, x, kind) = (y.clone(), x.clone(), self.kind);
        self.run(move || put_rounded(&y, kind, &f32s(&x)))
    }

    fn norm(
        &self,
        to: Normed<Self>,
        x: &Matrix<Self>,
        add: Option<(&Matrix<Self>, Option<&Words<Self>>)>,
        norm: &NormOn<Self>,
    ) -> Result<()> {
        let (sum_to, y, factor, stats) =
            (to.sum.cloned(), to.y.cloned(), to.factor.cloned(), to.stats.clone());
        let (x, add, kind) = (x.clone(), add.map(|(add, bias)| (add.clone(), bias.cloned())), self.kind);
        let (weight, bias, eps) = (norm.weight.clone(), norm.bias.clone(), f64::from(norm.eps));
        self.run(move || {
            let mut sum = f32s(&x.words);
            if let Some((add, bias)) = &add {
                let bias = bias.as_ref().map(f32s);
                for (i, (x, a)) in sum.iter_mut().zip(f32s(&add.words)).enumerate() {
                    *x += a + bias.as_ref().map_or(0.0, |bias| bias[i % add.width]);
                }
            }
            if let Some(to) = &sum_to {
                put_f32s(&to.words, &sum);
            }
            let (weight, bias) = (f32s(&weight), bias.as_ref().map(f32s));
            let (mut normed, mut all_stats) = (Vec::new(), Vec::new());
            for row in sum.chunks(x.width) {
                let n = row.len() as f64;
                let wide = row.iter().map(|x| f64::from(*x));
                let mean = if bias.is_some() { wide.clone().sum::<f64>() / n } else { 0.0 };
                let variance = wide.map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                let scale = 1.0 / (variance + eps).sqrt();
                all_stats.extend([mean as f32, scale as f32]);
                normed.extend(row.iter().enumerate().map(|(i, x)| {
                    let y = (f64::from(*x) - mean) * scale * f64::from(weight[i]);
                    (y + bias.as_ref().map_or(0.0, |bias| f64::from(bias[i]))) as f32
                }));
            }
            put_f32s(&stats, &all_stats);
            if let Some(y) = &y {
                put_f32s(&y.words, &normed);
            }
            if let Some(factor) = &factor {
                put_rounded(&factor.words, kind, &normed);
            }
        })
    }

    fn norm_back(
        &self,
        dx: &Matrix<Self>,
        x: &Matrix<Self>,
        stats: &Words<Self>,
        norm: &NormOn<Self>,
        dy: &Matrix<Self>,
        carry: Option<&Matrix<Self>>,
    ) -> Result<()> {
        let (dx, x, stats, dy, carry) = (dx.clone(), x.clone(), stats.clone(), dy.clone(), carry.cloned());
        let (weight, centred) = (norm.weight.clone(), norm.bias.is_some());
        self.run(move || {
            let mut into = carry.as_ref().map_or(vec![0.0; dx.words.len], |carry| f32s(&carry.words));
            let (rows, dy, stats, weight) = (f32s(&x.words), f32s(&dy.words), f32s(&stats), f32s(&weight));
            for (i, row) in rows.chunks(x.width).enumerate() {
                let (mean, scale) = (f64::from(stats[2 * i]), f64::from(stats[2 * i + 1]));
                let n = row.len() as f64;
                let d: Vec<f64> = dy[i * x.width..][..x.width]
                    .iter()
                    .zip(&weight)
                    .map(|(d, w)| f64::from(*d) * f64::from(*w))
                    .collect();
                let shift = if centred { d.iter().sum::<f64>() / n } else { 0.0 };
                let normed: Vec<f64> = row.iter().map(|x| (f64::from(*x) - mean) * scale).collect();
                let slope = d.iter().zip(&normed).map(|(d, x)| d * x).sum::<f64>() / n;
                for j in 0..row.len() {
                    into[i * x.width + j] += (scale * (d[j] - shift - normed[j] * slope)) as f32;
                }
            }
            put_f32s(&dx.words, &into);
        })
    }

    fn norm_gradients(
        &self,
        weight: &Words<Self>,
        bias: Option<&Words<Self>>,
        x: &Matrix<Self>,
        stats: &Words<Self>,
        dy: &Matrix<Self>,
    ) -> Result<()> {
        let (weight, bias) = (weight.clone(), bias.cloned());
        let (x, stats, dy) = (x.clone(), stats.clone(), dy.clone());
        self.run(move || {
            let (rows, stats, dy) = (f32s(&x.words), f32s(&stats), f32s(&dy.words));
            let mut sums = f32s(&weight);
            let mut plain = bias.as_ref().map(f32s);
            for i in 0..rows.len() {
                let (row, column) = (i / x.width, i % x.width);
                sums[column] += dy[i] * (rows[i] - stats[2 * row]) * stats[2 * row + 1];
                if let Some(plain) = &mut plain {
                    plain[column] += dy[i];
                }
            }
            put_f32s(&weight, &sums);
            if let (Some(bias), Some(plain)) = (&bias, plain) {
                put_f32s(bias, &plain);
            }
        })
    }

    fn add_columns(&self, sums: &Words<Self>, rows: &Matrix<Self>) -> Result<()> {
        let (sums, rows) = (sums.clone(), rows.clone());
        self.run(move || {
            let mut into = f32s(&sums);
            for row in f32s(&rows.words).chunks(rows.width) {
                into.iter_mut().zip(row).for_each(|(into, x)| *into += x);
            }
            put_f32s(&sums, &into);
        })
    }

    fn activate(
        &self,
        y: &Factor<Self>,
        u: &Matrix<Self>,
        bias: Option<&Words<Self>>,
        activation: Activation,
    ) -> Result<()> {
        let (y, u, bias, kind) = (y.clone(), u.clone(), bias.cloned(), self.kind);
        self.run(move || {
            let mut rows = f32s(&u.words);
            if let Some(bias) = bias.as_ref().map(f32s) {
                rows.chunks_mut(u.width).for_each(|row| row.iter_mut().zip(&bias).for_each(|(x, b)| *x += b));
                put_f32s(&u.words, &rows);
            }
            let inner = y.width;
            let of = |row: &[f32]| -> Vec<f32> {
                let value = |i: usize| match activation {
                    Activation::GeluTanh => gelu(f64::from(row[i])).0,
                    Activation::SwiGlu => silu(f64::from(row[i])).0 * f64::from(row[inner + i]),
                };
                (0..inner).map(|i| value(i) as f32).collect()
            };
            put_rounded(&y.words, kind, &rows.chunks(u.width).flat_map(of).collect::<Vec<_>>());
        })
    }

    fn activate_back(
        &self,
        du: &Factor<Self>,
        u: &Matrix<Self>,
        dy: &Matrix<Self>,
        activation: Activation,
    ) -> Result<()> {
        let (du, u, dy, kind) = (du.clone(), u.clone(), dy.clone(), self.kind);
        self.run(move || {
            let (mut rows, dy_rows) = (f32s(&u.words), f32s(&dy.words));
            let inner = dy.width;
            for (row, dy) in rows.chunks_mut(u.width).zip(dy_rows.chunks(inner)) {
                for i in 0..inner {
                    let d = f64::from(dy[i]);
                    match activation {
                        Activation::GeluTanh => row[i] = (d * gelu(f64::from(row[i])).1) as f32,
                        Activation::SwiGlu => {
                            let ((value, slope), up) = (silu(f64::from(row[i])), f64::from(row[inner + i]));
                            (row[i], row[inner + i]) = ((d * up * slope) as f32, (d * value) as f32);
                        }
                    }
                }
            }
            put_f32s(&u.words, &rows);
            put_rounded(&du.words, kind, &rows);
        })
    }

    fn turns(&self, turns: &Words<Self>, positions: &Words<Self>, frequencies: &Words<Self>) -> Result<()> {
        let (turns, positions, frequencies) = (turns.clone(), positions.clone(), frequencies.clone());
        self.run(move || {
            let frequencies = f32s(&frequencies);
            let of = |position: u32| {
                let angles: Vec<f32> = frequencies.iter().map(|f| position as f32 * f).collect();
                angles.iter().map(|a| a.cos()).chain(angles.iter().map(|a| a.sin())).collect::<Vec<_>>()
            };
            put_f32s(&turns, &get(&positions).into_iter().flat_map(of).collect::<Vec<_>>());
        })
    }

    fn turn(
        &self,
        x: &Matrix<Self>,
        turns: &Words<Self>,
        turn_of: Option<&Words<Self>>,
        columns: Columns,
        direction: Direction,
    ) -> Result<()> {
        let (x, turns, turn_of) = (x.clone(), turns.clone(), turn_of.cloned());
        let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
        self.run(move || {
            let (mut rows, turns) = (f32s(&x.words), f32s(&turns));
            let turn_of = turn_of.as_ref().map_or((0..x.rows as i32).collect(), i32s);
            let Columns { first, step, heads, dim } = columns;
            for (row, turn) in rows.chunks_mut(x.width).zip(turn_of).filter(|(_, turn)| *turn >= 0) {
                let (cos, sin) = turns[turn as usize * dim..][..dim].split_at(dim / 2);
                for head in 0..heads {
                    let head = &mut row[first + head * step..][..dim];
                    for i in 0..dim / 2 {
                        let (a, b, sin) = (head[i], head[i + dim / 2], sign * sin[i]);
                        (head[i], head[i + dim / 2]) = (a * cos[i] - b * sin, b * cos[i] + a * sin);
                    }
                }
            }
            put_f32s(&x.words, &rows);
        })
    }

    fn tile(&self, _: usize) -> usize {
        4
    }

    fn attend(
        &self,
        to: &Attended<Self>,
        q: &Matrix<Self>,
        kv: &Matrix<Self>,
        cache: Option<&Matrix<Self>>,
        how: &Attending<Self>,
    ) -> Result<()> {
        let Attending { attention, spans, mask } = *how;
        let (mixed, q, kv, cache) = (to.mixed.clone(), q.clone(), kv.clone(), cache.cloned());
        let (queries, segments) = (spans.queries.clone(), spans.segments.clone());
        let (heads, mask) = (Heads::of(attention), parts(mask));
        self.run(move || {
            let (q, kv) = (f32s(&q.words), f32s(&kv.words));
            let cache = cache.as_ref().map(|cache| f32s(&cache.words)).unwrap_or_default();
            let (dim, width) = (heads.keys.dim, heads.heads * heads.keys.dim);
            let mut out = vec![f32::NAN; mixed.words.len];
            let spans = (i32s(&queries), i32s(&segments));
            for (row, head, keys, p) in probabilities(&q, [&kv, &cache], (&spans.0, &spans.1), &heads) {
                let (_, value) = heads.columns(head);
                for d in 0..dim {
                    let sum: f64 = keys
                        .iter()
                        .zip(&p)
                        .enumerate()
                        .map(|(place, (&(cached, at), p))| {
                            let rows = if cached { &cache } else { &kv };
                            let kept = f64::from(drops(&mask, row * heads.heads + head, place));
                            p * kept * f64::from(rows[at * 2 * heads.keys.heads * dim + value + d])
                        })
                        .sum();
                    out[row * width + head * dim + d] = sum as f32;
                }
            }
            put_f32s(&mixed.words, &out);
        })
    }

    fn attend_back(
        &self,
        (dq, d_kv): (&Matrix<Self>, &Matrix<Self>),
        d_mixed: &Matrix<Self>,
        _: &Attended<Self>,
        (q, kv): (&Matrix<Self>, &Matrix<Self>),
        how: &Attending<Self>,
    ) -> Result<()> {
        let Attending { attention, spans, mask } = *how;
        let (dq, d_kv, d_mixed, q, kv) = (dq.clone(), d_kv.clone(), d_mixed.clone(), q.clone(), kv.clone());
        let (queries, segments) = (spans.queries.clone(), spans.segments.clone());
        let back = spans.back.as_ref().map(|back| (back.key_tiles.clone(), back.prefix, back.parts));
        let (heads, mask) = (Heads::of(attention), parts(mask));
        self.run(move || {
            let (q, kv, d_out) = (f32s(&q.words), f32s(&kv.words), f32s(&d_mixed.words));
            let (dim, width) = (heads.keys.dim, heads.heads * heads.keys.dim);
            let kv_width = 2 * heads.keys.heads * dim;
            let (queries, segments) = (i32s(&queries), i32s(&segments));
            let mut into_q = vec![f32::NAN; dq.words.len];
            // What each query, by its place in the list, says about each key it sees.
            let mut says: Vec<Vec<(usize, usize, Vec<f64>, Vec<f64>)>> = vec![Vec::new(); queries.len() / 2];
            let all = probabilities(&q, [&kv, &[]], (&queries, &segments), &heads);
            for (i, (row, head, keys, p)) in all.into_iter().enumerate() {
                let (key, value) = heads.columns(head);
                let d = &d_out[row * width + head * dim..][..dim];
                let kept: Vec<f64> = (0..keys.len())
                    .map(|place| f64::from(drops(&mask, row * heads.heads + head, place)))
                    .collect();
                let d_p: Vec<f64> = keys
                    .iter()
                    .zip(&kept)
                    .map(|(&(_, at), kept)| {
                        let value = &kv[at * kv_width + value..][..dim];
                        kept * d.iter().zip(value).map(|(d, v)| f64::from(*d) * f64::from(*v)).sum::<f64>()
                    })
                    .collect();
                let mean: f64 = p.iter().zip(&d_p).map(|(p, d)| p * d).sum();
                let mut sums = vec![0.0; dim];
                for (place, &(_, at)) in keys.iter().enumerate() {
                    let d_score = p[place] * (d_p[place] - mean) * f64::from(heads.scale);
                    let number = |rows: &[f32], first: usize, j: usize| f64::from(rows[first + j]);
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum += d_score * number(&kv, at * kv_width + key, j);
                    }
                    let d_key = (0..dim).map(|j| d_score * number(&q, row * width + head * dim, j)).collect();
                    let d_value = d.iter().map(|d| p[place] * kept[place] * f64::from(*d)).collect();
                    says[i / heads.heads].push((head, place, d_key, d_value));
                }
                let into = &mut into_q[row * width + head * dim..][..dim];
                into.iter_mut().zip(sums).for_each(|(into, sum)| *into = sum as f32);
            }
            put_f32s(&dq.words, &into_q);

            let mut into_kv = vec![f32::NAN; d_kv.words.len];
            let (key_tiles, prefix, parts) = back.clone().unwrap();
            let mut of_parts = vec![f32::NAN; parts * prefix * kv_width];
            for tile in i32s(&key_tiles).chunks_exact(6).filter(|tile| tile[1] >= 0) {
                for i in 0..tile[1] as usize {
                    let mut sums = vec![0.0f64; kv_width];
                    for query in says.iter().take(tile[4] as usize).skip(tile[3] as usize) {
                        let place = tile[2] as usize + i;
                        for (head, _, d_key, d_value) in query.iter().filter(|said| said.1 == place) {
                            let (key, value) = heads.columns(*head);
                            for j in 0..dim {
                                sums[key + j] += d_key[j];
                                sums[value + j] += d_value[j];
                            }
                        }
                    }
                    let (rows, row) = match tile[5] {
                        to if to >= 0 => (&mut into_kv, to as usize + i),
                        to => (&mut of_parts, (-1 - to) as usize + i),
                    };
                    let into = &mut rows[row * kv_width..][..kv_width];
                    into.iter_mut().zip(sums).for_each(|(into, sum)| *into = sum as f32);
                }
            }
            for (i, into) in into_kv.iter_mut().enumerate().take(prefix * kv_width) {
                *into = of_parts.iter().skip(i).step_by((prefix * kv_width).max(1)).sum();
            }
            put_f32s(&d_kv.words, &into_kv);
        })
    }

    fn product(
        &self,
        y: &Matrix<Self>,
        x: &Factor<Self>,
        weight: &Words<Self>,
        over: Over,
        onto: Onto,
    ) -> Result<()> {
        let (y, x, weight, kind) = (y.clone(), x.clone(), weight.clone(), self.kind);
        assert_eq!((y.rows, kind.words(y.width * x.width)), (x.rows, weight.len));
        self.run(move || {
            let (depth, columns) = (x.width, y.width);
            let (a, w) = (wide(&x.words, kind, x.rows * depth), wide(&weight, kind, depth * columns));
            let mut into = match onto {
                Onto::Itself => f32s(&y.words),
                Onto::Nothing => vec![0.0; y.words.len],
            };
            for (i, into) in into.iter_mut().enumerate() {
                let (row, column) = (i / columns, i % columns);
                let at = |k: usize| match over {
                    Over::Inputs => w[column * depth + k],
                    Over::Outputs => w[k * columns + column],
                };
                *into +=
                    (0..depth).map(|k| f64::from(a[row * depth + k]) * f64::from(at(k))).sum::<f64>() as f32;
            }
            put_f32s(&y.words, &into);
        })
    }

    fn add_product(&self, gradient: &Words<Self>, x: &Factor<Self>, dy: &Factor<Self>) -> Result<()> {
        let (gradient, x, dy, kind) = (gradient.clone(), x.clone(), dy.clone(), self.kind);
        self.run(move || {
            let (a, d) = (wide(&x.words, kind, x.rows * x.width), wide(&dy.words, kind, dy.rows * dy.width));
            let mut into = f32s(&gradient);
            for (i, into) in into.iter_mut().enumerate() {
                let (output, input) = (i / x.width, i % x.width);
                *into += (0..x.rows).map(|t| a[t * x.width + input] * d[t * dy.width + output]).sum::<f32>();
            }
            put_f32s(&gradient, &into);
        })
    }

    fn judge(
        &self,
        nll: &Words<Self>,
        likeliest: &Words<Self>,
        logits: &Matrix<Self>,
        targets: &Words<Self>,
        gradient: Option<(&Factor<Self>, &Words<Self>)>,
    ) -> Result<()> {
        let (nll, likeliest, logits, targets) =
            (nll.clone(), likeliest.clone(), logits.clone(), targets.clone());
        let (gradient, kind) = (gradient.map(|(to, scale)| (to.clone(), scale.clone())), self.kind);
        self.run(move || {
            let mut rows = f32s(&logits.words);
            let (mut losses, mut ids) = (Vec::new(), Vec::new());
            let scale = gradient.as_ref().map_or(0.0, |(_, scale)| f32s(scale)[0]);
            for (row, target) in rows.chunks_mut(logits.width).zip(i32s(&targets)) {
                let best = crate::model::ops::softmax::argmax(row);
                let sum: f64 = row.iter().map(|x| (f64::from(*x) - f64::from(best.1)).exp()).sum();
                ids.push(best.0 as u32);
                losses.push(match target {
                    -1 => 0.0,
                    target => f64::from(best.1) + sum.ln() - f64::from(row[target as usize]),
                });
                for (i, x) in row.iter_mut().enumerate() {
                    let p = (f64::from(*x) - f64::from(best.1)).exp() / sum;
                    let hit = if i as i32 == target { 1.0 } else { 0.0 };
                    *x = if target < 0 { 0.0 } else { scale * (p - hit) as f32 };
                }
            }
            put_f64s(&nll, &losses);
            put(&likeliest, &ids);
            if let Some((to, _)) = &gradient {
                put_rounded(&to.words, kind, &rows);
            }
        })
    }

    fn likeliest(&self, ids: &Words<Self>, logits: &Matrix<Self>) -> Result<()> {
        let (ids, logits) = (ids.clone(), logits.clone());
        self.run(move || {
            let rows = f32s(&logits.words);
            let of = |row: &[f32]| crate::model::ops::softmax::argmax(row).0 as u32;
            put(&ids, &rows.chunks(logits.width).map(of).collect::<Vec<_>>());
        })
    }

    fn add_loss(&self, loss: &Words<Self>, nll: &Words<Self>, scale: &Words<Self>) -> Result<()> {
        let (loss, nll, scale) = (loss.clone(), nll.clone(), scale.clone());
        self.run(move || {
            let sum: f64 = f64s(&nll).iter().sum();
            put_f64s(&loss, &[f64s(&loss)[0] + f64::from(f32s(&scale)[0]) * sum]);
        })
    }

    fn clip(
        &self,
        norm: &Words<Self>,
        factor: &Words<Self>,
        gradients: &[&Words<Self>],
        max: f32,
    ) -> Result<()> {
        let (norm, factor) = (norm.clone(), factor.clone());
        let gradients: Vec<Words<Self>> = gradients.iter().map(|gradient| (*gradient).clone()).collect();
        self.run(move || {
            let square = |words: &Words<Self>| f32s(words).iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            let length = gradients.iter().map(square).sum::<f64>().sqrt();
            put_f64s(&norm, &[length]);
            let scale = if max > 0.0 { (f64::from(max) / (length + 1e-6)).min(1.0) } else { 1.0 };
            put_f32s(&factor, &[scale as f32]);
        })
    }

    fn step(&self, tensor: &TensorOn<Self>, factors: &Words<Self>, clip: &Words<Self>) -> Result<()> {
        let (numbers, gradient) = (tensor.numbers.clone(), tensor.gradient.clone());
        let (mean, square, rounded) = (tensor.mean.clone(), tensor.square.clone(), tensor.rounded.clone());
        let (factors, clip, kind) = (factors.clone(), clip.clone(), self.kind);
        self.run(move || {
            let [keep, weight, beta2, weight2, correction2, eps, step] = f32s(&factors)[..] else { panic!() };
            let clip = f32s(&clip)[0];
            let (mut p, mut m, mut v) = (f32s(&numbers), f32s(&mean), f32s(&square));
            for (i, g) in f32s(&gradient).into_iter().enumerate() {
                let g = g * clip;
                p[i] *= keep;
                m[i] += weight * (g - m[i]);
                v[i] = v[i] * beta2 + weight2 * g * g;
                p[i] += step * m[i] / (v[i].sqrt() / correction2 + eps);
            }
            put_f32s(&numbers, &p);
            put_f32s(&mean, &m);
            put_f32s(&square, &v);
            if let Some(rounded) = &rounded {
                put_rounded(rounded, kind, &p);
            }
        })
    }
}
