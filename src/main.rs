//! The program: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use pipe::cli::Cli;

fn main() -> ExitCode {
    one_candle_thread();
    ExitCode::from(pipe::command::execute(Cli::parse()).code())
}

/// Candle's elementwise operations wake a pool of threads that spin between them; at this program's sizes the
/// spinning costs more than it saves, and takes the cores from the matrix products, which have threads of
/// their own.
fn one_candle_thread() {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(THREADS).is_none() {
        // SAFETY: this is the first thing the program does: no other thread reads the environment yet.
        unsafe { std::env::set_var(THREADS, "1") };
    }
}
