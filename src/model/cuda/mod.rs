//! Decoders on NVIDIA GPUs.
//!
//! `engine` and `block` say in what order a decoder's operations go, over the seam `card`; `launches` makes them launches
//! of the kernels in `kernels/` and products, which `driver` hands to CUDA: NVRTC compiles the kernels for the card at
//! hand. In tests `host` takes the card's place, or `emulated` the driver's. Nothing here needs CUDA to be built: driver
//! and libraries are looked for when they are needed.

pub mod block;
pub mod card;
pub mod describe;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(all(test, feature = "cuda"))]
pub mod emulated;
pub mod engine;
pub mod error;
#[cfg(test)]
pub mod host;
#[cfg(feature = "cuda")]
mod kernels;
#[cfg(feature = "cuda")]
mod launches;
#[cfg(feature = "cuda")]
mod libraries;
#[cfg(feature = "cuda")]
mod resident;

pub use card::{Card, Kind};
#[cfg(feature = "cuda")]
pub use driver::{Cuda, cards, free_memory, open};
pub use engine::Engine;
pub use error::CardError;
#[cfg(feature = "cuda")]
pub use resident::{release, resident};
