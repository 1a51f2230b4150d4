//! Each operation of the training core at bloomz-560m's shape: 260 packed tokens of 1024.
//!
//!     cargo bench --bench operations

#![allow(clippy::expect_used)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pipe::model::layout::{Layout, PackedRow};
use pipe::model::ops::activation::Activation;
use pipe::model::ops::attention::{Attention, KeyValue, alibi_slopes};
use pipe::model::ops::cross_entropy::{judge, judge_with_gradient};
use pipe::model::ops::linear::Linear;
use pipe::model::ops::matmul::{Numbers, Precision, Weight};
use pipe::model::ops::norm::Norm;
use pipe::model::ops::rotary::{Direction, Rotation};
use pipe::model::rows::{Pool, Rows};

const TOKENS: usize = 260;
const HIDDEN: usize = 1024;
const INNER: usize = 4096;
const HEADS: usize = 16;
const DIM: usize = 64;
/// Weights that take turns, so that they come from memory as a model's do.
const WEIGHTS: usize = 12;

fn values(count: usize) -> Vec<f32> {
    (0..count as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn matrix(pool: &Pool, rows: usize, width: usize) -> Rows {
    pool.copied(&values(rows * width), width)
}

fn linear(c: &mut Criterion) {
    let pool = Pool::default();
    let mut group = c.benchmark_group("linear");
    for (inputs, outputs) in [(HIDDEN, HIDDEN), (HIDDEN, INNER), (INNER, HIDDEN)] {
        group.throughput(Throughput::Elements((2 * TOKENS * inputs * outputs) as u64));
        for (name, precision) in [("f32", Precision::F32), ("bf16", Precision::BF16)] {
            let weights: Vec<Linear> = (0..WEIGHTS)
                .map(|_| Numbers::F32(values(inputs * outputs).into()))
                .map(|n| Linear::new(Weight::from_outputs_by_inputs(n, outputs, inputs), None, precision))
                .collect();
            let (x, dy) = (matrix(&pool, TOKENS, inputs), matrix(&pool, TOKENS, outputs));
            let mut turn = 0;
            let mut next = || {
                turn = (turn + 1) % WEIGHTS;
                &weights[turn]
            };
            let id = |direction| BenchmarkId::new(direction, format!("{inputs} to {outputs}, {name}"));
            group.bench_function(id("forward"), |b| b.iter(|| next().forward(&x)));
            group.bench_function(id("backward"), |b| b.iter(|| next().backward(&dy)));
        }
    }
    group.finish();
}

fn elementwise(c: &mut Criterion) {
    let pool = Pool::default();
    let (x, dy) = (matrix(&pool, TOKENS, HIDDEN), matrix(&pool, TOKENS, HIDDEN));
    let mut out = matrix(&pool, TOKENS, HIDDEN);
    for (name, norm) in [
        ("layer norm", Norm::layer(values(HIDDEN), values(HIDDEN), 1e-5)),
        ("rms norm", Norm::rms(values(HIDDEN), 1e-5)),
    ] {
        c.bench_function(&format!("{name}/forward"), |b| b.iter(|| norm.forward(&x, &mut out)));
        c.bench_function(&format!("{name}/backward"), |b| b.iter(|| norm.add_backward(&x, &dy, &mut out)));
    }
    for (name, activation) in [("gelu", Activation::GeluTanh), ("swiglu", Activation::SwiGlu)] {
        let u = matrix(&pool, TOKENS, activation.width(INNER));
        let mut y = matrix(&pool, TOKENS, INNER);
        c.bench_function(&format!("{name}/forward"), |b| b.iter(|| activation.forward(&u, &mut y, INNER)));
        let mut du = matrix(&pool, TOKENS, activation.width(INNER));
        c.bench_function(&format!("{name}/backward"), |b| {
            b.iter(|| activation.backward(&u, &y, &mut du, INNER));
        });
    }
    let positions: Vec<u32> = (0..TOKENS as u32).collect();
    let rotation = Rotation::new(&positions, &values(DIM / 2), DIM);
    c.bench_function("rotary", |b| {
        b.iter(|| rotation.turn(&mut out, HIDDEN, 0, DIM, HEADS, Direction::Forward));
    });
}

fn attention(c: &mut Criterion) {
    let pool = Pool::default();
    let guide = Layout::packed(8, &[20, 26, 28, 29, 31, 35, 39, 44].map(row));
    let long = Layout::packed(0, &[512, 512].map(row));
    let alibi = Some(alibi_slopes(HEADS));
    for (name, layout, kv_heads, slopes, precision) in [
        ("16 heads, ALiBi", &guide, HEADS, alibi, Precision::F32),
        ("16 heads on 4", &guide, 4, None, Precision::F32),
        ("long rows, f32", &long, HEADS, None, Precision::F32),
        ("long rows, bf16", &long, HEADS, None, Precision::BF16),
    ] {
        let (queries, tokens) = (layout.all_queries(), layout.tokens());
        let keys = KeyValue::stacked(kv_heads, DIM);
        let attention = Attention { heads: HEADS, keys, scale: 0.125, slopes, dropout: None, precision };
        let (q, kv) = (matrix(&pool, tokens, HIDDEN), matrix(&pool, tokens, keys.width()));
        let (mut out, d_out) = (q.like(), matrix(&pool, tokens, HIDDEN));
        let (mut d_q, mut d_kv) = (q.like(), kv.like());
        c.bench_function(&format!("attention, {name}/forward"), |b| {
            b.iter(|| attention.forward(&q, &kv, layout, &queries, &mut out));
        });
        c.bench_function(&format!("attention, {name}/backward"), |b| {
            b.iter(|| attention.backward(&q, &kv, layout, &queries, &d_out, &mut d_q, &mut d_kv));
        });
    }
}

fn row(tokens: usize) -> PackedRow {
    PackedRow { tokens, pads_before: 0 }
}

fn cross_entropy(c: &mut Criterion) {
    let pool = Pool::default();
    let mut group = c.benchmark_group("head and cross entropy");
    group.sample_size(20);
    // A quarter of bloomz-560m's head, SmolLM2's, and a quarter of GPT-2's where every token is asked for.
    for (rows, vocabulary, hidden) in [(28, 62_720, HIDDEN), (28, 49_152, 576), (1024, 12_565, 768)] {
        let states = matrix(&pool, rows, hidden);
        let targets: Vec<u32> = (0..rows).map(|i| (i * 2000 % vocabulary) as u32).collect();
        for (name, precision) in [("f32", Precision::F32), ("bf16", Precision::BF16)] {
            // Logits as far apart as a model's.
            let weight: Vec<f32> = values(vocabulary * hidden).iter().map(|x| 0.2 * x).collect();
            let weight = Weight::from_outputs_by_inputs(Numbers::F32(weight.into()), vocabulary, hidden);
            let head = Linear::head(weight, precision);
            let id = |what| BenchmarkId::new(what, format!("{rows} by {vocabulary} by {hidden}, {name}"));
            group.bench_function(id("loss"), |b| b.iter(|| judge(&head, &states, &targets)));
            group.bench_function(id("loss and gradient"), |b| {
                b.iter(|| judge_with_gradient(&head, &states, &targets, 1.0));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, linear, elementwise, attention, cross_entropy);
criterion_main!(benches);
