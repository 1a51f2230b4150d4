//! Each saving of a training pass alone: with it and without, the loss and the gradient are the same.

// Helpers of a test may fail as the test itself would.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod numbers;
mod undone;

use std::ops::ControlFlow;

use candle_core::Tensor;
use numbers::{Recorder, data, ids, json, load, logits, tensors, train};
use pipe::model::decoder::Keep;
use pipe::model::generate::{Decoding, GenerateOptions, Sequence, generate, greedy};
use pipe::model::layout::{Layout, PackedRow};
use pipe::model::sampling::{Sampling, Stream};
use pipe::model::{self, Decoder, Precision};
use pipe::train::gradient::differentiate;
use pipe::train::order::Shuffle;
use pipe::train::recipe::Length;
use pipe::train::score::score;
use pipe::train::{Pads, Recipe, Row, init};
use undone::{Saving, pass};

const FAMILIES: [&str; 3] = ["bloom", "gpt2", "llama"];

/// Rows that begin alike and end with labels, with this much padding before each.
fn rows(pads: [usize; 3]) -> Vec<Row> {
    let row = |(own, pads): (Vec<u32>, usize)| {
        let ids = [vec![11, 12, 13], own].concat();
        let labels = ids.iter().enumerate().map(|(i, id)| (i + 2 >= ids.len()).then_some(*id)).collect();
        Row { ids, labels, pads: Pads::Before(pads) }
    };
    let own = [vec![20, 21, 5, 3], vec![22, 7, 3], vec![23, 24, 25, 26, 27, 5, 3]];
    own.into_iter().zip(pads).map(row).collect()
}

fn differs(a: &[f32], b: &[f32]) -> f32 {
    let length = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
    length(&mut a.iter().zip(b).map(|(a, b)| a - b)) / length(&mut b.iter().copied())
}

#[test]
fn each_saving_leaves_loss_and_gradient_as_they_are() {
    for family in FAMILIES {
        let model = load(&data(family));
        let prompt = model.prompt(&init::text(&model, &[5, 6, 7, 8], 4).unwrap()).unwrap();
        for (saving, name) in Saving::ALL {
            // Positions that run over padding are the same for a prompt in every row only where there is none.
            let pads = match saving {
                Saving::VirtualTokens | Saving::SharedTokens => [0; 3],
                _ => [4, 5, 1],
            };
            let rows = rows(pads);
            let all: Vec<&Row> = rows.iter().collect();
            let saved = differentiate(&model, &prompt, &all, 10, 6, Keep::Everything).unwrap();
            let (loss, gradient) = pass(&model, &prompt, &rows, Some(saving));
            assert!((saved.loss - loss).abs() < 1e-6 * loss, "{family}, {name}: {} {loss}", saved.loss);
            let error = differs(&saved.prompt, &gradient);
            assert!(error < 2e-6, "{family}, {name}: gradient off by {error}");
        }
    }
}

#[test]
fn what_is_shared_is_not_computed_twice() {
    let rows = rows([0; 3]);
    let all: Vec<&Row> = rows.iter().collect();
    for family in FAMILIES {
        let model = load(&data(family));
        let prompt = model.prompt(&init::text(&model, &[5, 6, 7, 8], 4).unwrap()).unwrap();
        // 4 virtual tokens and 3 that all begin with; of each row's 4, 3 and 7 others all but the last.
        let tokens = differentiate(&model, &prompt, &all, 10, 6, Keep::Everything).unwrap().tokens;
        assert_eq!(tokens, 4 + 3 + 3 + 2 + 6, "{family}");
    }
}

#[test]
fn a_prompt_computed_once_generates_what_its_tokens_in_every_row_generate() {
    for family in FAMILIES {
        let model = load(&data(family));
        let prompt = init::text(&model, &[5, 6, 7], 3).unwrap();
        let rows = [vec![9, 10], vec![11], vec![12, 13, 14]];
        let options = GenerateOptions { max_new_tokens: 6, end: vec![3], batch_size: 3 };
        let mut go_on = |_| ControlFlow::Continue(());
        let reused = greedy(&model, Some(&prompt), &rows, &options, &mut go_on).unwrap();
        let rows = rows.map(|row| [vec![5, 6, 7], row].concat());
        assert_eq!(reused, greedy(&model, None, &rows, &options, &mut go_on).unwrap(), "{family}");
    }
}

/// `-log p` of a row's labels, all alone, from the logits of every position.
fn plain_nll(model: &Decoder, prompt: Option<&Tensor>, row: &Row) -> f64 {
    let virtual_tokens = prompt.map_or(0, |p| p.dim(0).unwrap());
    let logits: Vec<Vec<f32>> = logits(model, prompt, &[row]).to_vec2().unwrap();
    let labels = row.labels.iter().enumerate().filter_map(|(i, label)| Some((virtual_tokens + i, (*label)?)));
    labels
        .filter_map(|(at, label)| Some((&logits[at.checked_sub(1)?], label)))
        .map(|(logits, label)| {
            let exp: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
            exp.ln() - f64::from(logits[label as usize])
        })
        .sum()
}

#[test]
fn scores_are_those_of_each_row_and_candidate_alone() {
    let texts = [vec![11, 12, 13, 20, 21], vec![11, 12, 30], vec![11, 12, 13, 20, 22, 23, 24]];
    let candidates = [vec![5, 3], vec![6, 3], vec![6, 7, 3]];
    for (family, width) in FAMILIES.into_iter().flat_map(|f| [(f, 0), (f, 12)]) {
        // Each text with each candidate behind it, and some wholly labelled rows; padded on the left to a width.
        let behind = |text: &Vec<u32>| candidates.clone().map(|c| ([text.clone(), c].concat(), text.len()));
        let pairs = texts.iter().flat_map(behind).chain(texts.iter().map(|text| (text.clone(), 0)));
        let rows: Vec<Row> = pairs
            .map(|(ids, first)| Row {
                labels: ids.iter().enumerate().map(|(i, id)| (i >= first).then_some(*id)).collect(),
                pads: Pads::Before(usize::saturating_sub(width, ids.len())),
                ids,
            })
            .collect();
        let model = load(&data(family));
        let prompt = init::text(&model, &[5, 6, 7, 8], 4).unwrap();
        for prompt in [Some(&prompt), None] {
            let mut go_on = |_| ControlFlow::Continue(());
            let together = score(&model, prompt, &rows, 4, &mut go_on).unwrap();
            let one_by_one = score(&model, prompt, &rows, 1, &mut go_on).unwrap();
            for (i, row) in rows.iter().enumerate() {
                let (nll, plain) = (together[i].nll, plain_nll(&model, prompt, row));
                assert!((nll - plain).abs() < 2e-5 * plain, "{family}, {width}, row {i}: {nll} {plain}");
                assert_eq!(together[i].kept, row.kept(prompt.map_or(0, |_| 4)), "{family}, row {i}");
                let alone = one_by_one[i].nll;
                assert!((nll - alone).abs() < 1e-5 * plain, "{family}, {width}, row {i}: {nll} {alone}");
            }
        }
    }
}

#[test]
fn no_row_beside_it_changes_a_bit_of_a_sequence() {
    let rows: [&[u32]; 4] = [&[9, 10], &[11], &[12, 13, 14, 15, 16, 17], &[9, 10]];
    let sampling = Sampling { temperature: 3.0, top_k: 0, top_p: 0.99, seed: 1 };
    for family in FAMILIES {
        let model = load(&data(family));
        let prompt = init::text(&model, &[5, 6, 7], 3).unwrap();
        let sequences: Vec<_> = rows
            .iter()
            .zip(0..)
            .map(|(ids, prompt)| Sequence { ids, max_new_tokens: 20, stream: Stream { prompt, sample: 0 } })
            .collect();
        let generated = |batch_size, sequences: &[Sequence]| {
            let decoding = Decoding {
                sampling: Some(sampling.clone()),
                repetition_penalty: 1.1,
                min_new_tokens: 0,
                end: &[3],
                over: &|_| false,
                batch_size,
            };
            generate(&model, Some(&prompt), sequences, &decoding, &mut |_| ControlFlow::Continue(())).unwrap()
        };
        let together = generated(4, &sequences);
        assert_eq!(together, generated(1, &sequences), "{family}");
        assert_eq!(together, generated(3, &sequences), "{family}");
        assert_eq!(together[2], generated(8, &sequences[2..3])[0], "{family}");
        assert_ne!(together[0], together[3], "{family}: the same text twice is two streams");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(together, pool.install(|| generated(4, &sequences)), "{family}");

        // Not only what was drawn: what it was drawn from.
        let last = |rows: &[&[u32]]| -> Vec<u32> {
            let packed: Vec<_> = rows.iter().map(|r| PackedRow { tokens: r.len(), pads_before: 0 }).collect();
            let layout = Layout::packed(0, &packed);
            let states = model.embed(&rows.concat()).unwrap();
            let asked = [layout.tokens() as u32 - 1];
            let states = model.forward(states, &layout, &asked, None).unwrap();
            model.logits(&states).iter().map(|logit| logit.to_bits()).collect()
        };
        assert!(last(&rows[2..3]) == last(&rows[..3]), "{family}");
    }
}

#[test]
fn layers_computed_again_give_the_same_bits() {
    let rows = rows([4, 5, 1]);
    let all: Vec<&Row> = rows.iter().collect();
    for family in FAMILIES {
        let model = load(&data(family));
        let prompt = model.prompt(&init::text(&model, &[5, 6, 7, 8], 4).unwrap()).unwrap();
        let kept = differentiate(&model, &prompt, &all, 10, 6, Keep::Everything).unwrap();
        let again = differentiate(&model, &prompt, &all, 10, 6, Keep::BlockInputs).unwrap();
        assert_eq!((kept.loss, &kept.prompt[..]), (again.loss, &again.prompt[..]), "{family}");
    }
}

fn trained(family: &str, precision: Precision) -> (Vec<f64>, Vec<f32>) {
    let folder = data(family);
    let expected = json(&folder.join("expected.json"));
    let model = model::load(&folder, precision).unwrap();
    let row = |r: &serde_json::Value| Row {
        ids: ids(&r["ids"]),
        labels: r["labels"].as_array().unwrap().iter().map(|v| v.as_u64().map(|l| l as u32)).collect(),
        pads: Pads::Before(r["pads_before"].as_u64().unwrap() as usize),
    };
    let rows: Vec<Row> = expected["rows"].as_array().unwrap().iter().map(row).collect();
    let options = Recipe {
        length: Length::Epochs(expected["epochs"].as_u64().unwrap() as usize),
        batch_size: expected["batch_size"].as_u64().unwrap() as usize,
        learning_rate: expected["learning_rate"].as_f64().unwrap(),
        shuffle: Some(Shuffle::Dataloader),
        ..Recipe::default()
    };
    let mut recorder = Recorder::default();
    let init = &tensors(&folder.join("expected.safetensors"))["init"];
    let prompt = train(&model, init, &rows, &options, &mut recorder).unwrap();
    (recorder.0.iter().map(|s| s.loss).collect(), prompt.flatten_all().unwrap().to_vec1().unwrap())
}

#[test]
fn no_number_of_threads_changes_a_bit() {
    let on = |threads: usize, family, precision| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| trained(family, precision))
    };
    for (family, precision) in FAMILIES.into_iter().flat_map(|f| [(f, Precision::F32), (f, Precision::BF16)])
    {
        let one = on(1, family, precision);
        assert!(one == on(2, family, precision), "{family}: two threads");
        assert!(one == on(5, family, precision), "{family}: five threads");
    }
}

#[test]
fn bfloat16_follows_f32() {
    for family in FAMILIES {
        let (f32, _) = trained(family, Precision::F32);
        let (bf16, _) = trained(family, Precision::BF16);
        assert_eq!(f32.len(), bf16.len());
        let difference = f32.iter().zip(&bf16).map(|(a, b)| (a - b).abs() / a).fold(0.0, f64::max);
        assert!(difference > 0.0, "{family}: nothing was rounded");
        assert!(difference < 0.02, "{family}: losses differ by {difference}");
    }
}
