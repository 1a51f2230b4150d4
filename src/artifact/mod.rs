//! What flows between stages, on disk: save and load.
pub mod adapter;
pub mod dataset;
pub mod parquet;
pub mod tokens;
