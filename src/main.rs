//! The program: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use pipe::cli::Cli;

fn main() -> ExitCode {
    if let Some(code) = pipe::subprocess::called(std::env::args_os()) {
        return code;
    }
    ExitCode::from(pipe::command::execute(Cli::parse()).code())
}
