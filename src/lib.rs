//! `pipe` runs declarative pipelines for language-model experiments.
//!
//! The modules in groups, from the command line down: a manifest becomes typed stages, the plan a graph of them,
//! a run hands them to lanes as the scheduler's table allows, each a job that asks the cache first; `model` and
//! `train` do the numbers and know no stages; `report` alone prints.

// What is asked for.
pub mod cli;
pub mod command;

// From text to typed stages.
pub mod diagnostic;
pub mod location;
pub mod manifest;
pub mod schema;

// The engine: from stages to results.
pub mod about;
pub mod cache;
pub mod fingerprint;
pub mod job;
pub mod lane;
pub mod plan;
pub mod run;
pub mod scheduler;
pub mod sources;

// What happens, and what remains of it.
pub mod clock;
pub mod event;
pub mod history;
pub mod removal;
pub mod report;
pub mod size;

// What lies elsewhere.
pub mod hub;

// Stage kinds, and what flows between them.
pub mod artifact;
pub mod formats;
pub mod secrets;
pub mod stage;
pub mod stages;
pub mod subprocess;

// Leaves that all may use.
pub mod cancel;
pub mod files;
pub mod memory;
pub mod remembered;
pub mod sealed;
pub mod terminal;

// The numbers.
pub mod device;
pub mod huge_pages;
pub mod model;
pub mod python;
pub mod tokenizer;
pub mod train;

#[global_allocator]
static ALLOCATOR: huge_pages::HugePages = huge_pages::HugePages;
