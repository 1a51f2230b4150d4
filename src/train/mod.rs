//! The training core: data order, schedule, optimizer, loop. Knows models and ids, no stages and no text.

pub mod adamw;
pub mod all_weights;
pub mod batch;
mod branches;
#[cfg(any(feature = "cuda", test))]
pub mod card;
pub mod checkpoint;
mod descent;
pub mod error;
pub mod gradient;
pub mod init;
pub mod learner;
pub mod order;
pub mod random;
pub mod recipe;
pub mod schedule;
pub mod score;
pub mod soft_prompt;
pub mod training;
pub mod weight_gradient;

pub use batch::{Pads, Row};
pub use error::TrainError;
pub use recipe::Recipe;
pub use training::Training;
