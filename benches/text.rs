//! Tokenising 10,000 short messages, and packing a batch of 64 of them.
//!
//!     cargo bench --bench text

#![allow(clippy::expect_used)]

use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pipe::model::layout::{Layout, PackedRow};
use pipe::tokenizer::Tokenizer;

const MESSAGE: &str =
    "Tweet text : @HMRCcustomers No this is my first job, and I still have no answer after {} days! Label : ";

fn text(c: &mut Criterion) {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/embedded/model"));
    let tokenizer = Tokenizer::open(folder).expect("the embedded model's tokenizer");
    let texts: Vec<String> = (0..10_000).map(|i| MESSAGE.replace("{}", &i.to_string())).collect();
    let mut group = c.benchmark_group("text");
    group.throughput(Throughput::Bytes(texts.iter().map(|t| t.len() as u64).sum()));
    group.sample_size(20);
    group.bench_function("tokenise", |b| b.iter(|| tokenizer.encode_all(&texts, true).expect("ids")));
    group.finish();

    let rows: Vec<PackedRow> =
        tokenizer.encode_all(&texts[..64], true).expect("ids").iter().map(|ids| packed(ids.len())).collect();
    c.bench_function("pack", |b| {
        b.iter(|| {
            let layout = Layout::behind(8, packed(4), &rows);
            (layout.all_queries(), layout.queries_at(&[20, 40, 60]))
        });
    });
}

fn packed(tokens: usize) -> PackedRow {
    PackedRow { tokens, pads_before: 0 }
}

criterion_group!(benches, text);
criterion_main!(benches);
