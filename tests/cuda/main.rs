//! The CUDA kernels, run on the processor: against formulas in f64, against finite differences of these, and against
//! the processor's own operations, over odd sizes.

// Helpers of a test may fail as the test itself would.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod attention;
mod compare;
mod compiled;
mod emulated;
mod loss;
mod rows;
mod training;
