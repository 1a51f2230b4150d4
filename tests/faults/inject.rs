//! Kills runs of `pipe` at any moment and damages what they left on disk, as a seed says, and holds what comes out to
//! the bytes of an undisturbed run. Ends with 1 if a wrong byte was served or kept.
//!
//!     faults PIPE --kills N --damages N --seed S [--seconds T] [--keep]
//!
//! Knows the program's documented behaviour and the layout of its state, and nothing of its code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]
#![allow(missing_docs)]

mod damage;
mod kill;
mod lab;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lab::Lab;

/// A generator of numbers that the seed decides (splitmix64).
pub struct Dice(u64);

impl Dice {
    /// Of the turn with this number: what one turn draws does not depend on what another did.
    fn of(seed: u64, what: u64, turn: u64) -> Self {
        let mut dice = Self(seed ^ (what << 56) ^ turn.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        dice.draw();
        dice
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.draw() % end.max(1)
    }

    /// True in so many of a hundred.
    pub fn percent(&mut self, share: u64) -> bool {
        self.below(100) < share
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len() as u64) as usize)
    }
}

/// What was done and what was wrong.
#[derive(Default)]
pub struct Tally {
    pub kills: u64,
    pub damages: u64,
    pub compared: u64,
    pub refused: u64,
    pub wrong: Vec<String>,
}

impl Tally {
    pub fn wrong(&mut self, text: String) {
        eprintln!("WRONG: {text}");
        self.wrong.push(text);
    }
}

struct Arguments {
    pipe: PathBuf,
    kills: u64,
    damages: u64,
    seed: u64,
    seconds: Option<u64>,
    keep: bool,
}

fn arguments() -> Option<Arguments> {
    let mut given = std::env::args().skip(1);
    let pipe = std::path::absolute(given.next()?).ok()?;
    let mut arguments = Arguments { pipe, kills: 0, damages: 0, seed: 1, seconds: None, keep: false };
    while let Some(name) = given.next() {
        let mut number = || given.next()?.parse::<u64>().ok();
        match name.as_str() {
            "--kills" => arguments.kills = number()?,
            "--damages" => arguments.damages = number()?,
            "--seed" => arguments.seed = number()?,
            "--seconds" => arguments.seconds = Some(number()?),
            "--keep" => arguments.keep = true,
            _ => return None,
        }
    }
    Some(arguments)
}

fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        eprintln!("faults PIPE --kills N --damages N --seed S [--seconds T] [--keep]");
        return ExitCode::from(2);
    };
    let began = Instant::now();
    let mut lab = match Lab::new(&arguments.pipe) {
        Ok(lab) => lab,
        Err(text) => {
            eprintln!("{text}");
            return ExitCode::FAILURE;
        }
    };
    let mut tally = Tally::default();
    // Each kind of fault has its half of the time.
    let half = |started: Instant| {
        let limit = arguments.seconds.map(|seconds| Duration::from_secs(seconds) / 2);
        move || limit.is_none_or(|limit| started.elapsed() < limit)
    };
    let has_time = half(Instant::now());
    let mut turn = 0;
    while tally.kills < arguments.kills && has_time() {
        kill::turn(&lab, &mut Dice::of(arguments.seed, 1, turn), turn, &mut tally);
        turn += 1;
    }
    let has_time = half(Instant::now());
    let mut turn = 0;
    while tally.damages < arguments.damages && has_time() {
        damage::turn(&lab, &mut Dice::of(arguments.seed, 2, turn), turn, &mut tally);
        turn += 1;
    }
    if arguments.keep || !tally.wrong.is_empty() {
        println!("what is left of it: {}", lab.keep().display());
    }
    println!(
        "seed {}: {} kills, {} damages, {} times all outputs compared, {} refusals, {} wrong; {:.0} s",
        arguments.seed,
        tally.kills,
        tally.damages,
        tally.compared,
        tally.refused,
        tally.wrong.len(),
        began.elapsed().as_secs_f64()
    );
    if tally.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
