//! What each saving of a training pass saves, and that it changes nothing: a table.
//!
//!     PIPE_MODEL=FOLDER cargo bench --bench savings
//!
//! Eight rows of the guide's lengths behind 8 virtual tokens; medians of passes that take turns.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "../tests/undone/mod.rs"]
mod undone;

use std::path::PathBuf;
use std::time::Instant;

use pipe::model::{self, Precision};
use pipe::train::{Pads, Row};
use undone::{Saving, pass};

/// Tokens of the eight rows; the last two of each are labels, the first four are the same in all.
const LENGTHS: [usize; 8] = [20, 26, 31, 34, 37, 41, 46, 53];
const TURNS: usize = 5;

fn rows(vocabulary: usize, padded: bool) -> Vec<Row> {
    let row = |(seed, &length): (usize, &usize)| {
        let id = |i: usize| if i < 4 { 100 + i } else { (seed * 7919 + i * 104_729 + 5) % vocabulary };
        let ids: Vec<u32> = (0..length).map(|i| id(i) as u32).collect();
        let labels = ids.iter().enumerate().map(|(i, id)| (i + 2 >= length).then_some(*id)).collect();
        Row { ids, labels, pads: Pads::Before(if padded { 64 - length } else { 0 }) }
    };
    LENGTHS.iter().enumerate().map(row).collect()
}

fn main() {
    let Some(folder) = std::env::var_os("PIPE_MODEL").map(PathBuf::from) else {
        println!("savings: skipped, PIPE_MODEL names no model folder");
        return;
    };
    let mut model = model::load(&folder, Precision::F32).expect("a model");
    model.lay_out();
    let shape = model.shape();
    let prompt = model.embed(&[5, 6, 7, 8, 9, 10, 11, 12]).expect("a prompt").to_vec();
    println!("{} layers of {}, vocabulary {}\n", shape.layers, shape.hidden, shape.vocabulary);
    println!("| saving | with | without | | loss differs by |\n|---|---|---|---|---|");
    let pool = rayon::ThreadPoolBuilder::new().build().expect("threads");
    for (saving, name) in Saving::ALL {
        let shares = matches!(saving, Saving::VirtualTokens | Saving::SharedTokens);
        let rows = rows(shape.vocabulary, !shares);
        let mut times = [const { Vec::new() }; 2];
        let mut losses = [0.0; 2];
        for _ in 0..TURNS {
            for (i, undone) in [None, Some(saving)].into_iter().enumerate() {
                let start = Instant::now();
                losses[i] = pool.install(|| pass(&model, &prompt, &rows, undone)).0;
                times[i].push(start.elapsed().as_secs_f64());
            }
        }
        let [with, without] = times.map(|mut t| {
            t.sort_by(f64::total_cmp);
            t[TURNS / 2]
        });
        let differs = (losses[0] - losses[1]).abs() / losses[1];
        println!("| {name} | {with:.3} s | {without:.3} s | {:.2}× | {differs:.0e} |", without / with);
    }
}
