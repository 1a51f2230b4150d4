//! The tests' Hub as a program, for scripts and for people:
//!
//!     cargo run --example hub_server -- --root FOLDER
//!
//! FOLDER holds `models/OWNER/NAME/BRANCH/files…` and `datasets/…` (see `Repos::load`). Prints its endpoint, for
//! `HF_ENDPOINT`, and runs until it is killed. What is pushed to it is gone then.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "mod.rs"]
mod hub;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;

use clap::Parser;
use hub::faults::Fault;
use hub::{Options, Recorded, Server, Xet};

/// A Hugging Face Hub for tests
#[derive(Parser)]
struct Arguments {
    /// Repositories to begin with: models/OWNER/NAME/BRANCH/files… and datasets/…
    #[arg(long)]
    root: Option<PathBuf>,
    /// Port of the endpoint; a free one by default
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The only token that counts; without it any does
    #[arg(long)]
    token: Option<String>,
    /// What goes wrong: "[METHOD] PATTERN WHAT [xCOUNT]", see tests/hub/faults.rs
    #[arg(long)]
    fault: Vec<Fault>,
    /// Entries of a listing that come at once
    #[arg(long, default_value_t = 1000)]
    page_size: usize,
    /// Where large files go by xet: off, push, push-and-pull
    #[arg(long, default_value = "push", value_parser = xet)]
    xet: Xet,
    /// A file that gets a line of JSON for each request
    #[arg(long)]
    log: Option<PathBuf>,
}

fn xet(word: &str) -> Result<Xet, String> {
    match word {
        "off" => Ok(Xet::Off),
        "push" => Ok(Xet::Push),
        "push-and-pull" => Ok(Xet::PushAndPull),
        _ => Err("off, push or push-and-pull".into()),
    }
}

fn main() {
    let Arguments { root, port, token, fault, page_size, xet, log } = Arguments::parse();
    let log: Box<dyn Fn(&Recorded) + Send + Sync> = match log {
        None => Box::new(|_| {}),
        Some(path) => {
            let file = Mutex::new(std::fs::File::create(path).unwrap());
            Box::new(move |request| writeln!(file.lock().unwrap(), "{}", request.to_json()).unwrap())
        }
    };
    let server = Server::start_logging(Options { token, page_size, xet, port }, log);
    if let Some(root) = root {
        server.load(&root);
    }
    for fault in fault {
        server.fault(fault);
    }
    println!("{}", server.endpoint);
    loop {
        std::thread::park();
    }
}
