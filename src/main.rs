//! The program: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use pipe::cli::Cli;

fn main() -> ExitCode {
    ExitCode::from(pipe::command::execute(Cli::parse()).code())
}
