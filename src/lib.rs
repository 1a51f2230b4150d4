//! `pipe` runs declarative pipelines for language-model experiments.
//!
//! The modules in reading order: a manifest becomes typed stages, the plan a graph of them, a run hands them
//! to lanes as the scheduler's table allows, each a job that asks the cache first; `model` and `train` do the
//! numbers and know no stages; `report` alone prints.

pub mod cli;
pub mod command;

pub mod diagnostic;
pub mod formats;
pub mod location;
pub mod manifest;
pub mod schema;

pub mod cache;
pub mod children;
pub mod event;
pub mod fingerprint;
pub mod history;
pub mod job;
pub mod lane;
pub mod plan;
pub mod run;
pub mod scheduler;
pub mod secrets;
pub mod sources;

pub mod artifact;
pub mod device;
pub mod model;
pub mod stage;
pub mod stages;
pub mod tokenizer;
pub mod train;

pub mod report;
