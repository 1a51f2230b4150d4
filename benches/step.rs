//! A whole training step of each family, 4 layers of 768: a prompt's with batch 8 of the guide's lengths behind 8 virtual
//! tokens, and one of every weight with 8 blocks of 128 tokens.
//!
//!     cargo bench --bench step

#![allow(clippy::expect_used)]

mod models;

use criterion::{Criterion, criterion_group, criterion_main};
use models::{FAMILIES, HIDDEN, LAYERS, VOCABULARY, numbers};
use pipe::model::decoder::Keep;
use pipe::model::parameters::Parameters;
use pipe::model::{self, Numerics, Precision};
use pipe::train::all_weights::{AllWeights, Passes};
use pipe::train::gradient::differentiate;
use pipe::train::recipe::Length;
use pipe::train::training::Observer;
use pipe::train::{Pads, Recipe, Row, Training};

/// Tokens of the eight rows, the guide's mean; the last two of each are labels.
const LENGTHS: [usize; 8] = [20, 26, 31, 34, 37, 41, 46, 53];

fn rows() -> Vec<Row> {
    let row = |(seed, &length): (usize, &usize)| {
        let ids: Vec<u32> =
            (0..length).map(|i| ((seed * 7919 + i * 104_729 + 5) % VOCABULARY) as u32).collect();
        let labels = ids.iter().enumerate().map(|(i, id)| (i + 2 >= length).then_some(*id)).collect();
        Row { ids, labels, pads: Pads::Before(64 - length) }
    };
    LENGTHS.iter().enumerate().map(row).collect()
}

fn step(c: &mut Criterion) {
    let rows = rows();
    let rows: Vec<&Row> = rows.iter().collect();
    let prompt = numbers(8 * HIDDEN, 99, 0.03);
    for family in FAMILIES {
        let folder = tempfile::tempdir().expect("a temporary folder");
        models::write(family, folder.path());
        let mut group = c.benchmark_group(format!("step/{family}, {LAYERS} layers of {HIDDEN}"));
        group.sample_size(20);
        for (name, precision, keep) in [
            ("f32", Precision::F32, Keep::Everything),
            ("f32, checkpointed", Precision::F32, Keep::BlockInputs),
            ("bf16", Precision::BF16, Keep::Everything),
        ] {
            let mut model = model::load(folder.path(), precision).expect("a model");
            model.lay_out();
            group.bench_function(name, |b| {
                b.iter(|| differentiate(&model, &prompt, &rows, 53, 16, keep).expect("a gradient").loss);
            });
        }
        group.finish();
    }
}

fn step_of_every_weight(c: &mut Criterion) {
    let block = |seed: usize| {
        let ids: Vec<u32> = (0..128).map(|i| ((seed * 7919 + i * 104_729 + 5) % VOCABULARY) as u32).collect();
        Row { labels: ids.iter().copied().map(Some).collect(), ids, pads: Pads::Before(0) }
    };
    let rows: Vec<Row> = (0..8).map(block).collect();
    for family in FAMILIES {
        let folder = tempfile::tempdir().expect("a temporary folder");
        models::write(family, folder.path());
        let parameters = Parameters::open(folder.path()).expect("a model");
        let passes = Passes { numerics: Numerics::default(), keep: Keep::Everything, dropout: None };
        let mut weights = AllWeights::new(parameters, passes).expect("a model");
        let recipe = Recipe { length: Length::Steps(1), max_grad_norm: Some(1.0), ..Recipe::default() };
        let mut group =
            c.benchmark_group(format!("step of every weight/{family}, {LAYERS} layers of {HIDDEN}"));
        group.sample_size(10);
        group.bench_function("f32", |b| {
            let training = Training { recipe: &recipe, rows: &rows, eval: &[], checkpoints: None };
            b.iter(|| training.run(&mut weights, &mut Unheard).expect("a step").steps);
        });
        group.finish();
    }
}

/// Listens to nothing.
struct Unheard;

impl<L> Observer<L> for Unheard {}

criterion_group!(benches, step, step_of_every_weight);
criterion_main!(benches);
