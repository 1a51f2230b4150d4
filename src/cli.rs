//! The command line: what can be asked for, in clap's words.
//!
//! Does nothing itself.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::report::graph::Format;

/// Runs declarative pipelines for language-model experiments.
#[derive(Debug, Parser)]
#[command(
    name = "pipe",
    version,
    about,
    max_term_width = 100,
    after_help = "A manifest is checked, every stage whose result is in the cache is skipped, the rest runs.\n\
                  State lives in .pipe beside where pipe is run (PIPE_HOME moves it).\n\
                  Exit code: 0 all well, 1 a stage failed, 2 the manifest or the call is wrong, 130 interrupted.\n\n\
                  First steps:\n  \
                  pipe check pipelines/twitter_prompt_tuning.yaml --profile embedded\n  \
                  pipe run   pipelines/twitter_prompt_tuning.yaml --profile embedded\n  \
                  pipe stages train_soft_prompt"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A subcommand.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a pipeline: what is cached is skipped, the rest runs
    Run(Run),
    /// Say what would run, and why
    Plan(Planning),
    /// Say everything that is wrong with manifests, without running them
    Check {
        /// Manifests
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        #[allow(missing_docs)]
        overrides: Overrides,
    },
    /// Draw the graph of stages
    Graph {
        /// The manifest
        file: PathBuf,
        /// How to draw it
        #[arg(long, default_value = "text")]
        format: Format,
        #[command(flatten)]
        #[allow(missing_docs)]
        overrides: Overrides,
    },
    /// List the stage kinds, or describe one with its ports, keys, defaults and an example
    Stages {
        /// The kind to describe
        kind: Option<String>,
    },
    /// List what model stages can run on, and why not on what is missing
    Devices {
        /// A JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Write the JSON Schema of manifests, for editors
    Schema {
        /// The folder to write to
        #[arg(long, default_value = "schemas")]
        out: PathBuf,
    },
    /// List the runs made here, newest first, or remove some
    Runs {
        /// What to do with them; nothing: list them
        #[command(subcommand)]
        command: Option<RunsCommand>,
    },
    /// Show a run, or one stage of it
    Show {
        /// A run's name, the beginning of one, or `latest`
        #[arg(default_value = "latest")]
        run: String,
        /// A stage of it
        stage: Option<String>,
    },
    /// Put two runs side by side: params, keys and metrics that differ
    Diff {
        /// One run
        a: String,
        /// The other
        b: String,
    },
    /// Write a run as one self-contained page
    Report {
        /// A run's name, the beginning of one, or `latest`
        #[arg(default_value = "latest")]
        run: String,
        /// The file to write
        #[arg(short, long, value_name = "FILE.html")]
        out: PathBuf,
    },
    /// Look after the cache of results
    #[command(subcommand)]
    Cache(CacheCommand),
}

/// What replaces values of the manifest.
#[derive(Debug, Default, Args)]
pub struct Overrides {
    /// Replace the params that this profile of the manifest names; later ones win
    #[arg(long = "profile", value_name = "NAME")]
    pub profiles: Vec<String>,
    /// Set a param; wins over profiles. The value is YAML; a relative path starts from here
    #[arg(long = "set", value_name = "PARAM=VALUE")]
    pub sets: Vec<String>,
}

/// `pipe plan`.
#[derive(Debug, Args)]
pub struct Planning {
    /// The manifest
    pub file: PathBuf,
    /// Only these stages and what they need
    #[arg(value_name = "STAGE")]
    pub stages: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub overrides: Overrides,
    /// Where model stages would run: auto, cpu, cuda:0
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Ask the Hub nothing: names stand for what the lock or the cache has (as HF_HUB_OFFLINE=1)
    #[arg(long)]
    pub offline: bool,
    /// Refuse names on the Hub that the lock beside the manifest does not have, as CI should
    #[arg(long, conflicts_with = "update")]
    pub locked: bool,
    /// Ask anew what names on the Hub stand for, and move the lock there
    #[arg(long)]
    pub update: bool,
    /// A JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// `pipe run`.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub plan: Planning,
    /// Make results anew even if they are cached: all of them, or those of one stage
    #[arg(long, value_name = "STAGE", num_args = 0..=1, default_missing_value = "")]
    pub force: Vec<String>,
    /// Processor stages at once (default: the number of cores)
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// After a failure, go on with what does not depend on it
    #[arg(long)]
    pub keep_going: bool,
}

/// `pipe runs …`.
#[derive(Debug, Subcommand)]
pub enum RunsCommand {
    /// Remove runs with their files; what the cache has stays there. A run that is going on is never removed
    Rm(RunsToRemove),
}

/// `pipe runs rm`: the runs that all of this is true of.
#[derive(Debug, Args)]
pub struct RunsToRemove {
    /// These runs: their names, beginnings that only one name has, or `latest`
    #[arg(value_name = "RUN")]
    pub runs: Vec<String>,
    /// Only runs that began longer ago than this, such as 12h or 30d
    #[arg(long, value_name = "AGE")]
    pub older_than: Option<String>,
    /// Only runs that ended so
    #[arg(long, value_name = "STATUS")]
    pub status: Vec<EndedAs>,
    /// Only runs of this pipeline
    #[arg(long, value_name = "NAME")]
    pub pipeline: Option<String>,
    /// Of the runs that all else is true of, leave the newest N
    #[arg(long, value_name = "N")]
    pub keep: Option<usize>,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EndedAs {
    /// All that was asked for is there
    Succeeded,
    /// A stage failed
    Failed,
    /// Somebody stopped it
    Interrupted,
    /// It was killed
    Unfinished,
}

/// `pipe cache …`.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List the results with their sizes
    Ls,
    /// Read every file again and compare its digest; damaged results are taken out
    Verify,
    /// Remove the least recently used results, and what killed processes left
    ///
    /// Results that a running run uses stay. Checkpoints of interrupted training count as results do. Files that runs
    /// link to are free once these runs are removed: `pipe runs rm`.
    Gc {
        /// Keep at most this much, such as 500MB or 2GB
        #[arg(long, value_name = "SIZE")]
        size: Option<String>,
        /// Remove what was not used for this long, such as 12h or 30d
        #[arg(long, value_name = "AGE")]
        age: Option<String>,
        /// Never touch results that were used more recently than this
        #[arg(long, value_name = "AGE", default_value = "1h")]
        grace: String,
    },
}
