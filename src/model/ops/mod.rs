//! The operations decoders are made of: one file each, forward and backward.
//!
//! Backward gives the gradient of an operation's input; where weights are trained, theirs is added up apart from
//! that, and where they are frozen it costs nothing. Every matrix is f32 with tokens
//! in rows; results are written where the caller says, so that nothing is allocated on the way. No sum depends on
//! the number of threads.

pub mod activation;
pub mod attention;
pub mod blocks;
pub mod cross_entropy;
pub mod dropout;
pub mod exp;
pub mod gradients;
pub mod head_gradient;
pub mod linear;
pub mod matmul;
pub mod norm;
pub mod reduce;
pub mod rotary;
pub mod softmax;

#[cfg(test)]
mod testing;
