//! The engine over the host's plain loops against the processor's own decoder: the same losses, gradients, steps and
//! texts, for every architecture.

use std::path::{Path, PathBuf};

use super::*;
use crate::model::cuda::Kind;
use crate::model::cuda::host::Host;
use crate::model::generate::{Decoding, GenerateOptions, Sequence, generate, greedy};
use crate::model::sampling::{Sampling, Stream};
use crate::model::{Numbers, Numerics, Precision, load};
use crate::train::adamw::AdamWOptions;
use crate::train::all_weights::AllWeights;
use crate::train::recipe::Length;
use crate::train::soft_prompt::SoftPrompt;
use crate::train::training::{Evaluation, Observer, Step};
use crate::train::{Pads, Recipe, Training as Loop, init};

const FAMILIES: [&str; 3] = ["bloom", "gpt2", "llama"];

fn data(name: &str) -> PathBuf {
    // Where the tests run may be another machine than the one they were built on.
    let root = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&root).join("tests/data").join(name)
}

fn engine(name: &str, kind: Kind) -> Engine<Host> {
    Engine::new(Host::new(kind), load(&data(name), Precision::F32).unwrap(), Training::Frozen).unwrap()
}

/// Rows of many lengths; labels in the middle, at the end, and on a first token.
fn rows() -> Vec<Row> {
    let row = |(i, length): (usize, &usize)| {
        let ids: Vec<u32> = (0..*length).map(|at| ((i * 31 + at * 17 + 5) % 60) as u32).collect();
        let label = |at: usize| at + 2 >= *length || (i == 2 && at < 3);
        let labels = ids.iter().enumerate().map(|(at, id)| label(at).then_some(*id)).collect();
        Row { ids, labels, pads: Pads::Before(i % 3) }
    };
    [5, 9, 4, 1, 12, 7, 3, 8].iter().enumerate().map(row).collect()
}

/// Rows that begin alike and stand at the same positions.
fn alike() -> Vec<Row> {
    rows()
        .into_iter()
        .map(|row| {
            let ids = [&[7, 8, 9][..], &row.ids].concat();
            let labels = [&[None, Some(8), None][..], &row.labels].concat();
            Row { ids, labels, pads: Pads::Before(2) }
        })
        .collect()
}

fn recipe(steps: usize) -> Recipe {
    Recipe {
        length: Length::Steps(steps),
        batch_size: 3,
        max_grad_norm: Some(0.5),
        optimizer: AdamWOptions { weight_decay: 0.01, ..AdamWOptions::default() },
        ..Recipe::default()
    }
}

/// Keeps what it hears.
#[derive(Default)]
struct Heard {
    steps: Vec<Step>,
    evaluations: Vec<Evaluation>,
    warnings: Vec<String>,
}

impl<L> Observer<L> for Heard {
    fn step(&mut self, step: &Step) -> Result<(), TrainError> {
        self.steps.push(step.clone());
        Ok(())
    }
    fn evaluated(&mut self, evaluation: &Evaluation) {
        self.evaluations.push(*evaluation);
    }
    fn warning(&mut self, text: &str) {
        self.warnings.push(text.to_owned());
    }
}

fn run<L: Learner>(learner: &mut L, rows: &[Row], recipe: &Recipe) -> Heard {
    let mut heard = Heard::default();
    let training = Loop { recipe, rows, eval: rows, checkpoints: None };
    training.run(learner, &mut heard).unwrap();
    heard
}

/// Length of the difference over the length.
fn off(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
    let difference = found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b));
    square(&mut difference.into_iter()) / square(&mut expected.iter().map(|x| f64::from(*x))).max(1e-30)
}

/// Every step of both, within this share.
fn same_course(found: &Heard, expected: &Heard, tolerance: f64, name: &str) {
    assert_eq!(found.steps.len(), expected.steps.len(), "{name}");
    for (found, expected) in found.steps.iter().zip(&expected.steps) {
        assert_eq!((found.step, &found.rows), (expected.step, &expected.rows));
        let near = |a: f64, b: f64| (a - b).abs() <= tolerance * b.abs();
        assert!(near(found.loss, expected.loss), "{name}: {} {}", found.loss, expected.loss);
        assert!(
            near(found.grad_norm, expected.grad_norm),
            "{name}: {} {}",
            found.grad_norm,
            expected.grad_norm
        );
    }
    for (found, expected) in found.evaluations.iter().zip(&expected.evaluations) {
        assert!(
            (found.loss - expected.loss).abs() <= tolerance * expected.loss,
            "{name}: {found:?} {expected:?}"
        );
        assert_eq!(found.accuracy, expected.accuracy, "{name}");
    }
}

#[test]
fn a_prompt_gets_the_processors_gradient() {
    for family in FAMILIES {
        let engine = engine(family, Kind::F32);
        let decoder = engine.decoder();
        let start = init::text(decoder, &[5, 6, 7, 8], 4).unwrap();
        for (rows, keep) in [(rows(), Keep::Everything), (alike(), Keep::BlockInputs)] {
            let all: Vec<&Row> = rows.iter().collect();
            let batch = MicroBatch { rows: &all, longest: 15, labels: 11 };
            let at = Moment { step: 1, pass: 0 };
            let mut expected = SoftPrompt::new(decoder, &start, keep).unwrap();
            let part = expected.differentiate(&batch, at).unwrap();
            let expected = crate::train::gradient::differentiate(
                decoder,
                &decoder.prompt(&start).unwrap(),
                &all,
                15,
                11,
                keep,
            )
            .unwrap();
            let mut prompt = CardPrompt::new(&engine, &start, keep).unwrap();
            let found = prompt.differentiate(&batch, at).unwrap();
            assert_eq!((found.tokens, found.loss), (part.tokens, None));
            let gradient = engine.card().numbers(&prompt.tensor.gradient).unwrap();
            let error = off(&gradient, &expected.prompt);
            assert!(error < 1e-5, "{family}: gradient off by {error}");
            // The same again is added, from what was recorded, and again.
            for times in 2..5 {
                prompt.differentiate(&batch, at).unwrap();
                let again = engine.card().numbers(&prompt.tensor.gradient).unwrap();
                let error = off(&again, &gradient.iter().map(|g| g * times as f32).collect::<Vec<_>>());
                assert!(error < 1e-6, "{family}, {times} times: {error}");
            }
            assert_eq!(engine.card().replays(), if keep == Keep::Everything { 3 } else { 6 });
        }
    }
}

#[test]
fn a_prompt_is_trained_as_on_the_processor() {
    for family in FAMILIES {
        for rows in [rows(), alike()] {
            let engine = engine(family, Kind::F32);
            let start = init::text(engine.decoder(), &[5, 6, 7], 5).unwrap();
            let recipe = recipe(40);
            let mut expected = SoftPrompt::new(engine.decoder(), &start, Keep::Everything).unwrap();
            let course = run(&mut expected, &rows, &recipe);
            let mut prompt = CardPrompt::new(&engine, &start, Keep::Everything).unwrap();
            same_course(&run(&mut prompt, &rows, &recipe), &course, 2e-4, family);
            let [found, expected] = [prompt.prompt().unwrap(), expected.tensor().unwrap()]
                .map(|prompt| prompt.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            assert!(off(&found, &expected) < 1e-3, "{family}: {}", off(&found, &expected));
        }
    }
}

#[test]
fn rounded_products_give_the_processors_losses() {
    for family in FAMILIES {
        let engine = engine(family, Kind::BF16);
        let start = init::text(engine.decoder(), &[5, 6, 7], 5).unwrap();
        let rounded = load(&data(family), Precision::BF16).unwrap();
        let mut expected = SoftPrompt::new(&rounded, &start, Keep::Everything).unwrap();
        let course = run(&mut expected, &rows(), &recipe(20));
        let mut prompt = CardPrompt::new(&engine, &start, Keep::Everything).unwrap();
        let found = run(&mut prompt, &rows(), &recipe(20));
        for (found, expected) in found.steps.iter().zip(&course.steps) {
            let error = (found.loss / expected.loss - 1.0).abs();
            assert!(error < 0.02, "{family}: {} {}", found.loss, expected.loss);
        }
        let engine = super::card_tests::engine(family, Kind::F16);
        let mut prompt = CardPrompt::new(&engine, &start, Keep::Everything).unwrap();
        let halves = run(&mut prompt, &rows(), &recipe(20));
        for (found, expected) in halves.steps.iter().zip(&course.steps) {
            assert!((found.loss / expected.loss - 1.0).abs() < 0.02, "{family}");
        }
    }
}

/// The weights in a folder, or fresh ones of a model that drops numbers.
fn weights(family: &str, dropout: Option<u64>) -> Parameters {
    if dropout.is_none() {
        return Parameters::open(&data(family)).unwrap();
    }
    let mut config =
        crate::model::config::Config::read(&data(family).join("config.json")).unwrap().value().clone();
    for (key, rate) in [
        ("attn_pdrop", 0.3),
        ("embd_pdrop", 0.2),
        ("resid_pdrop", 0.25),
        ("attention_dropout", 0.3),
        ("hidden_dropout", 0.2),
    ] {
        config[key] = rate.into();
    }
    config["initializer_range"] = 0.2.into();
    Parameters::fresh(crate::model::config::Config::new("config", config), 3).unwrap()
}

#[test]
fn every_weight_is_trained_as_on_the_processor() {
    for family in FAMILIES {
        for (dropout, keep) in [(None, Keep::Everything), (Some(9), Keep::BlockInputs)] {
            let passes = Passes { numerics: Numerics::default(), keep, dropout };
            let recipe = Recipe { learning_rate: 1e-3, ..recipe(6) };
            let mut expected = AllWeights::new(weights(family, dropout), passes).unwrap();
            let course = run(&mut expected, &alike(), &recipe);
            let on_card = CardWeights::new(Host::new(Kind::F32), weights(family, dropout), passes);
            let mut on_card = on_card.unwrap();
            same_course(&run(&mut on_card, &alike(), &recipe), &course, 1e-4, family);
            let found = on_card.parameters().unwrap();
            for (found, expected) in found.tensors().iter().zip(expected.parameters().tensors()) {
                assert_eq!(found.name(), expected.name());
                // A key's bias changes nothing: its gradient is what rounding leaves, and AdamW makes steps of that.
                let idle = ["query_key_value.bias", "c_attn.bias", "k_proj.bias"];
                if idle.iter().all(|name| !found.name().ends_with(name)) {
                    let error = off(found.numbers(), expected.numbers());
                    assert!(error < 1e-3, "{family}: {} off by {error}", found.name());
                }
            }
        }
    }
}

#[test]
fn weights_and_moments_go_out_and_come_back() {
    for family in FAMILIES {
        let passes = Passes { numerics: Numerics::of(Numbers::BF16), keep: Keep::Everything, dropout: None };
        let open = || Parameters::open(&data(family)).unwrap();
        let mut first = CardWeights::new(Host::new(Kind::BF16), open(), passes).unwrap();
        run(&mut first, &rows(), &recipe(3));
        let states = |weights: &mut CardWeights<Host>| -> Vec<Restored> {
            let own = |state: &State| Restored {
                numbers: state.numbers.to_vec(),
                moments: (state.moments.0.to_vec(), state.moments.1.to_vec()),
            };
            weights.states().unwrap().iter().map(own).collect()
        };
        let left = states(&mut first);
        let mut second = CardWeights::new(Host::new(Kind::BF16), open(), passes).unwrap();
        second.restore(3, left.clone()).unwrap();
        assert!(states(&mut second) == left, "{family}");
        let more = |weights: &mut CardWeights<Host>| {
            let rows = rows();
            let all: Vec<&Row> = rows.iter().collect();
            let batch = MicroBatch { rows: &all, longest: 12, labels: 11 };
            weights.differentiate(&batch, Moment { step: 4, pass: 0 }).unwrap();
            weights
                .update(&Update { optimizer: AdamWOptions::default(), learning_rate: 1e-2, max_norm: None })
                .unwrap();
            states(weights)
        };
        assert!(more(&mut first) == more(&mut second), "{family}");
    }
}

#[test]
fn rows_are_scored_with_all_that_they_share() {
    for family in FAMILIES {
        let engine = engine(family, Kind::F32);
        let decoder = engine.decoder();
        let prompt = init::text(decoder, &[5, 6, 7], 5).unwrap();
        // Candidates for the end of the same texts.
        let mut candidates = rows();
        for row in rows() {
            candidates.push(Row {
                ids: [&row.ids[..], &[11, 3]].concat(),
                labels: [&row.labels[..], &[Some(11), Some(3)]].concat(),
                ..row
            });
        }
        for rows in [candidates, alike()] {
            for prompt in [Some(&prompt), None] {
                for batch_size in [2, 16] {
                    let found = score(&engine, prompt, &rows, batch_size, &mut |_| ControlFlow::Continue(()));
                    let expected =
                        score(decoder, prompt, &rows, batch_size, &mut |_| ControlFlow::Continue(()));
                    for (found, expected) in found.unwrap().iter().zip(expected.unwrap()) {
                        assert_eq!((found.kept, found.correct), (expected.kept, expected.correct));
                        assert!((found.nll - expected.nll).abs() < 1e-5 * expected.nll.max(1.0), "{family}");
                    }
                }
            }
        }
    }
}

#[test]
fn texts_go_on_as_on_the_processor() {
    for family in FAMILIES {
        let engine = engine(family, Kind::F32);
        let decoder = engine.decoder();
        let prompt = init::text(decoder, &[5, 6, 7], 5).unwrap();
        let rows: Vec<Vec<u32>> = rows().into_iter().map(|row| row.ids).collect();
        let options = GenerateOptions { max_new_tokens: 12, end: vec![3], batch_size: 3 };
        let mut watch = |_| ControlFlow::Continue(());
        for prompt in [Some(&prompt), None] {
            let found = greedy(&engine, prompt, &rows, &options, &mut watch).unwrap();
            assert_eq!(found, greedy(decoder, prompt, &rows, &options, &mut watch).unwrap(), "{family}");
        }
        let sampling = Sampling { temperature: 1.3, top_k: 20, top_p: 0.9, seed: 4 };
        let decoding = Decoding {
            sampling: Some(sampling),
            repetition_penalty: 1.2,
            min_new_tokens: 3,
            end: &[3],
            over: &|_| false,
            batch_size: 4,
        };
        let sequence = |(prompt, ids): (usize, &'_ Vec<u32>)| (prompt, ids.clone());
        let owned: Vec<_> = rows.iter().enumerate().map(sequence).collect();
        let sequences: Vec<Sequence> = owned
            .iter()
            .map(|(prompt, ids)| Sequence {
                ids,
                max_new_tokens: 6,
                stream: Stream { prompt: *prompt, sample: 0 },
            })
            .collect();
        let found = generate(&engine, Some(&prompt), &sequences, &decoding, &mut watch).unwrap();
        assert_eq!(found, generate(decoder, Some(&prompt), &sequences, &decoding, &mut watch).unwrap());
    }
}

#[test]
fn without_room_fewer_rows_go_through_and_the_step_stays() {
    let engine = engine("bloom", Kind::F32);
    let start = init::text(engine.decoder(), &[5, 6, 7], 5).unwrap();
    let recipe = Recipe { batch_size: 8, ..recipe(4) };
    let mut free = CardPrompt::new(&engine, &start, Keep::Everything).unwrap();
    let expected = run(&mut free, &rows(), &recipe);

    let engine = super::card_tests::engine("bloom", Kind::F32);
    let mut tight = CardPrompt::new(&engine, &start, Keep::Everything).unwrap();
    // As much as a few rows take.
    let rows = rows();
    let few: Vec<&Row> = rows[..2].iter().collect();
    let batch = MicroBatch { rows: &few, longest: 12, labels: 11 };
    tight.differentiate(&batch, Moment { step: 1, pass: 0 }).unwrap();
    tight.begin_again().unwrap();
    tight.steps.gathered.clear();
    engine.card().limit(engine.card().peak() as usize / 4 + 6000);
    let found = run(&mut tight, &rows, &recipe);
    same_course(&found, &expected, 1e-5, "tight");
    assert_eq!(
        found.warnings[0],
        "the GPU has no room for 8 rows at once: 4 go through at a time now, the batch stays as it is; \
         `micro_batch_size: 4` does so from the beginning"
    );
    tight.make_room();
    engine.card().limit(0);
    let error = tight.differentiate(&batch, Moment { step: 9, pass: 0 }).unwrap_err();
    assert!(error.to_string().starts_with("the GPU has no room for another"), "{error}");
}

/// Whatever the card is: losses, gradients, steps of a prompt and of every weight, scores and texts are the processor's.
/// `products` bounds what rounded products may cost, as a share.
#[cfg(feature = "cuda")]
fn holds<C: Card>(
    card: &dyn Fn() -> C,
    parameters: &dyn Fn() -> Parameters,
    numerics: Numerics,
    products: f64,
) {
    let decoder = || parameters().model(numerics.precision().unwrap()).unwrap();
    let name = parameters().config().text("model_type").unwrap().to_owned();
    let processor = decoder();
    let plain = parameters().model(Precision::F32).unwrap();
    let engine = Engine::new(card(), plain, Training::Frozen).unwrap();
    let start = init::text(&processor, &[5, 6, 7], 5).unwrap();

    let rows = alike();
    let all: Vec<&Row> = rows.iter().collect();
    let batch = MicroBatch { rows: &all, longest: 15, labels: 11 };
    let at = Moment { step: 1, pass: 0 };
    let numbers = processor.prompt(&start).unwrap();
    let keep = Keep::Everything;
    let expected = crate::train::gradient::differentiate(&processor, &numbers, &all, 15, 11, keep).unwrap();
    let mut prompt = CardPrompt::new(&engine, &start, keep).unwrap();
    for times in 1..4 {
        prompt.differentiate(&batch, at).unwrap();
        let gradient = engine.card().numbers(&prompt.tensor.gradient).unwrap();
        let error = off(&gradient, &expected.prompt.iter().map(|g| g * times as f32).collect::<Vec<_>>());
        assert!(error < 2e-5 + products, "{name}: gradient off by {error}, {times} times");
    }

    let some: Vec<Row> = rows.iter().take(5).cloned().collect();
    let recipe = Recipe { batch_size: 3, ..recipe(3) };
    let mut expected = SoftPrompt::new(&processor, &start, keep).unwrap();
    let course = run(&mut expected, &some, &recipe);
    let mut prompt = CardPrompt::new(&engine, &start, keep).unwrap();
    let found = run(&mut prompt, &some, &recipe);
    for (found, expected) in found.steps.iter().zip(&course.steps) {
        assert!((found.loss / expected.loss - 1.0).abs() < 1e-4 + products, "{name}: {found:?} {expected:?}");
    }

    let passes = Passes { numerics, keep: Keep::BlockInputs, dropout: Some(9) };
    let recipe = Recipe { learning_rate: 1e-3, ..recipe };
    let mut expected = AllWeights::new(parameters(), passes).unwrap();
    let course = run(&mut expected, &some, &recipe);
    let mut weights = CardWeights::new(card(), parameters(), passes).unwrap();
    for (found, expected) in run(&mut weights, &some, &recipe).steps.iter().zip(&course.steps) {
        assert!((found.loss / expected.loss - 1.0).abs() < 1e-4 + products, "{name}: {found:?} {expected:?}");
        let error = (found.grad_norm / expected.grad_norm - 1.0).abs();
        assert!(error < 1e-3 + 3.0 * products, "{name}: {found:?} {expected:?}");
    }

    for prompt in [Some(&start), None] {
        let mut go_on = |_| ControlFlow::Continue(());
        let found = score(&engine, prompt, &rows, 4, &mut go_on).unwrap();
        for (found, expected) in found.iter().zip(score(&processor, prompt, &rows, 4, &mut go_on).unwrap()) {
            assert_eq!(found.kept, expected.kept);
            let error = (found.nll - expected.nll).abs();
            assert!(error < (1e-5 + products) * expected.nll.max(1.0), "{name}: {found:?} {expected:?}");
        }
        let ids: Vec<Vec<u32>> = some.iter().map(|row| row.ids.clone()).collect();
        let options = GenerateOptions { max_new_tokens: 4, end: vec![], batch_size: 3 };
        let mut watch = |_| ControlFlow::Continue(());
        let found = greedy(&engine, prompt, &ids, &options, &mut watch).unwrap();
        if products == 0.0 {
            assert_eq!(found, greedy(&processor, prompt, &ids, &options, &mut watch).unwrap(), "{name}");
        }
    }
}

/// The numbers that a card computes in, and what rounding may cost where the processor rounds as well.
#[cfg(feature = "cuda")]
const NUMERICS: [(Numbers, f64); 2] = [(Numbers::F32, 0.0), (Numbers::BF16, 0.03)];

#[cfg(feature = "cuda")]
#[test]
fn the_kernels_on_the_processor_hold() {
    use crate::model::cuda::emulated;
    for (numbers, products) in NUMERICS {
        let numerics = Numerics::of(numbers);
        if emulated::card(numerics).is_none() {
            return;
        }
        for family in FAMILIES {
            let card = || emulated::card(numerics).unwrap();
            holds(&card, &|| weights(family, Some(1)), numerics, products);
        }
    }
}

/// A fresh model with heads and a vocabulary of other sizes than the carried ones have.
#[cfg(feature = "cuda")]
fn fresh(config: serde_json::Value) -> Parameters {
    Parameters::fresh(crate::model::config::Config::new("config", config), 7).unwrap()
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a GPU: cargo test --features cuda -- --ignored --test-threads 1 on_a_card"]
fn on_a_card_everything_holds() {
    let sized = [
        serde_json::json!({"model_type": "gpt2", "n_embd": 192, "n_head": 3, "n_layer": 3, "n_positions": 64,
            "vocab_size": 9001, "initializer_range": 0.1}),
        serde_json::json!({"model_type": "llama", "hidden_size": 256, "num_attention_heads": 2,
            "num_key_value_heads": 1, "num_hidden_layers": 2, "intermediate_size": 500, "vocab_size": 20_011,
            "initializer_range": 0.1, "attention_dropout": 0.2}),
        serde_json::json!({"model_type": "bloom", "hidden_size": 160, "n_head": 2, "n_layer": 2,
            "vocab_size": 8193, "initializer_range": 0.1, "hidden_dropout": 0.1}),
        serde_json::json!({"model_type": "llama", "hidden_size": 96, "num_attention_heads": 3, "head_dim": 256,
            "num_key_value_heads": 3, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 100,
            "initializer_range": 0.1}),
    ];
    for (numbers, products) in NUMERICS {
        let numerics = Numerics::of(numbers);
        let card = || crate::model::cuda::open(0, numerics).unwrap();
        for family in FAMILIES {
            holds(&card, &|| weights(family, Some(1)), numerics, products);
        }
        for config in &sized {
            holds(&card, &|| fresh(config.clone()), numerics, products);
        }
    }
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a GPU"]
fn on_a_card_the_same_call_gives_the_same_bits() {
    let gradient = || {
        let card = crate::model::cuda::open(0, Numerics::of(Numbers::BF16)).unwrap();
        let decoder = load(&data("bloom"), Precision::F32).unwrap();
        let engine = Engine::new(card, decoder, Training::Frozen).unwrap();
        let start = init::text(engine.decoder(), &[5, 6, 7], 5).unwrap();
        let mut prompt = CardPrompt::new(&engine, &start, Keep::Everything).unwrap();
        run(&mut prompt, &alike(), &recipe(30));
        prompt.prompt().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert!(gradient() == gradient());
}
