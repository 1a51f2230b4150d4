//! Trains every weight of a model: transformers' Trainer on a causal language model.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::training::{Order, Watch, grouped, training_stage};
use super::{base, place, rows};
use crate::artifact::tokens::Tokens;
use crate::hub::{Reads, Want};
use crate::location::Location;
use crate::model::Precision;
use crate::model::config::Config;
use crate::model::decoder::Keep;
use crate::model::parameters::Parameters;
use crate::model::save::Format;
use crate::stage::{ArtifactKind, Context, Fault, Lane, Output, Port, Source, Stage, StageError};
use crate::tokenizer::Tokenizer;
use crate::train::Training;
use crate::train::all_weights::{self, Passes, WeightsLearner};
use crate::train::order::Shuffle;

training_stage! {
    /// The configuration.
    pub struct FineTune {
        /// The model to begin with: a folder, a .gguf file or a Hub name. Or connect the port `model`, or give `config`.
        #[serde(default)]
        pub model: Option<Location>,
        /// The branch, tag or commit of a model on the Hub; with `config`, of the tokenizer.
        #[serde(default)]
        pub revision: Option<String>,
        /// Begin with fresh weights for a model of this configuration, the keys of a config.json: `model_type`
        /// (`gpt2`, `bloom`, `llama`) and its sizes. What the tokenizer says need not be given.
        #[serde(default)]
        pub config: Option<Map<String, Value>>,
        /// The tokenizer that goes into the model's folder, where there is no `model` that has one.
        #[serde(default)]
        pub tokenizer: Option<Location>,
        /// Drop numbers at random as the model's configuration says; `false`: none.
        #[serde(default = "yes")]
        pub dropout: bool,
        /// The number format of the weights' file.
        #[serde(default)]
        pub save_as: Format,
    }
}

fn yes() -> bool {
    true
}
/// Trainer's learning rate.
fn learning_rate() -> f64 {
    5e-5
}
/// Trainer's.
fn weight_decay() -> f64 {
    0.0
}
/// Trainer's.
fn max_grad_norm() -> Option<f64> {
    Some(1.0)
}
/// Trainer's order, and its seed.
fn shuffle() -> Order {
    Order::Seeded { seed: 42, like: Shuffle::Trainer }
}

/// The folder with the model.
const MODEL: &str = "model";

impl Stage for FineTune {
    const KIND: &'static str = "fine_tune";
    const VERSION: u32 = 6;
    const LANE: Lane = Lane::Device;
    const ABOUT: &'static str = "Trains every weight of a model, or a fresh one (transformers' Trainer).";
    const EXAMPLE: &'static str = "\
tuned:
  uses: fine_tune
  inputs: { dataset: blocks }
  with:
    model: distilbert/distilgpt2
    learning_rate: 2e-5
    weight_decay: 0.01
    epochs: 3
";
    const INPUTS: &'static [Port] = &[
        Port {
            name: "dataset",
            accepts: &[ArtifactKind::Tokens],
            required: true,
            about: "the rows to train on, with labels",
        },
        Port {
            name: "model",
            accepts: &[ArtifactKind::Model, ArtifactKind::Files],
            required: false,
            about: "the model to begin with, instead of the key `model`",
        },
        Port {
            name: "tokenizer",
            accepts: &[ArtifactKind::Files, ArtifactKind::Model],
            required: false,
            about: "the tokenizer of a model from `config`, instead of the key `tokenizer`",
        },
    ];

    fn outputs(&self) -> Vec<Output> {
        let mut outputs = vec![Output::new("model", ArtifactKind::Model, &[MODEL])];
        outputs.extend(self.keys().outputs());
        outputs
    }

    fn sources(&self) -> Vec<Source> {
        let tokenizer = self.tokenizer.clone();
        let tokenizer = tokenizer.map(|l| Source::repository("tokenizer", l, self.tokenizer_reads()));
        self.base().source().into_iter().chain(tokenizer).chain(self.keys().sources()).collect()
    }

    fn check(&self, inputs: &[&str]) -> Vec<Fault> {
        let mut faults = self.keys().check();
        let (model, tokenizer) = (
            self.model.is_some() || inputs.contains(&"model"),
            self.tokenizer.is_some() || inputs.contains(&"tokenizer"),
        );
        match (&self.config, model) {
            (None, _) => faults.extend(base::check(self.model.as_ref(), inputs)),
            (Some(_), true) => faults.push(
                Fault::new("config", "a model to begin with and `config` can't both be given")
                    .help("`config` begins with fresh weights; keep one of them"),
            ),
            (Some(config), false) => {
                if !config.contains_key("model_type") {
                    faults.push(
                        Fault::new("config", "`config` does not say which architecture it is of")
                            .help("add `model_type`: `gpt2`, `bloom` or `llama`"),
                    );
                }
                if !tokenizer {
                    faults.push(
                        Fault::new("config", "a model from `config` has no tokenizer")
                            .help("name one under `tokenizer`, or connect the port `tokenizer`"),
                    );
                }
            }
        }
        if self.tokenizer.is_some() && inputs.contains(&"tokenizer") {
            faults.push(
                Fault::new("tokenizer", "the tokenizer is given twice: by `tokenizer` and by its port")
                    .help("keep one of them"),
            );
        }
        faults
    }

    fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
        let keys = self.keys();
        let tokens = Tokens::open(&context.input("dataset")?.path)?;
        let token_rows = tokens.rows(keys.split)?;
        rows::has_labels(&token_rows, keys.split)?;
        let eval = keys.eval_rows(&tokens)?;
        context.progress(0, 0, "", "loading the model");
        let Start { parameters, tokenizer, tokenizer_folder, name } = self.start(context)?;
        tokens.belong_to(&name, &tokenizer)?;
        let shape = parameters.model(Precision::F32)?.shape().clone();
        for rows in [&token_rows, &eval] {
            base::has_room(&shape, &name, 0, rows::longest(&tokens.about, rows))?;
        }
        let (rows, eval) = (rows::to_train(&tokens.about, &token_rows), rows::to_score(&tokens.about, &eval));
        let count = parameters.count();
        context.note(format!("trainable params: {} (all)", grouped(count)));

        let passes = Passes {
            numerics: self.dtype.numerics(self.tf32, self.deterministic),
            keep: if self.gradient_checkpointing { Keep::BlockInputs } else { Keep::Everything },
            dropout: self.dropout.then_some(self.seed),
        };
        let mut weights = all_weights::on(context.device, parameters, passes)?;
        let save = |weights: &mut Box<dyn WeightsLearner>, folder: &Path| -> Result<(), StageError> {
            weights.parameters()?.save(folder, self.save_as)?;
            save_tokenizer(&tokenizer, tokenizer_folder.as_deref(), folder)
        };
        let (recipe, checkpoints) = (keys.recipe(rows.len()), keys.checkpoints(context)?);
        let mut watch = Watch::new(context, &keys, Box::new(&save))?;
        let training =
            Training { recipe: &recipe, rows: &rows, eval: &eval, checkpoints: Some(&checkpoints) };
        let course = training.run(&mut weights, &mut watch)?;
        let more = json!({ "trainable_params": count, "all_params": count });
        watch.finish(&mut weights, &course, &checkpoints, more)?;
        if let Some(bytes) = weights.peak_memory() {
            context.metric(base::PEAK, bytes as f64);
        }
        save(&mut weights, &context.out.join(MODEL))
    }
}

/// What training begins with.
struct Start {
    parameters: Parameters,
    tokenizer: Tokenizer,
    /// Where the tokenizer's files are, if it has any.
    tokenizer_folder: Option<PathBuf>,
    name: String,
}

impl FineTune {
    /// What the keys say of the model.
    fn base(&self) -> base::Named<'_> {
        base::Named { location: self.model.as_ref(), revision: self.revision.as_deref() }
    }

    /// What of a tokenizer's repository on the Hub is read; beside a model, whose revision it is, the newest.
    fn tokenizer_reads(&self) -> Reads {
        let revision = self.revision.clone().filter(|_| self.model.is_none());
        Reads { want: Want::Tokenizer, revision }
    }

    fn start(&self, context: &Context<'_>) -> Result<Start, StageError> {
        let tokenizer_path = match (context.inputs.get("tokenizer"), &self.tokenizer) {
            (Some(artifact), _) => Some(artifact.path.clone()),
            (None, Some(location)) => {
                Some(place::local_or_fetched(context, location, &self.tokenizer_reads(), "tokenizer")?)
            }
            (None, None) => None,
        };
        let (tokenizer_path, model) = match &self.config {
            Some(_) => (tokenizer_path.unwrap_or_default(), None),
            None => {
                let (path, name) = base::find(context, self.base())?;
                (tokenizer_path.unwrap_or_else(|| path.clone()), Some((path, name)))
            }
        };
        let tokenizer = Tokenizer::open(&tokenizer_path)?;
        let (parameters, name) = match (model, &self.config) {
            (Some((path, name)), _) => (Parameters::open(&path)?, name),
            (None, config) => {
                let config = completed(config.clone().unwrap_or_default(), &tokenizer);
                (Parameters::fresh(Config::new("config", config), self.seed)?, "config".into())
            }
        };
        let tokenizer_folder = tokenizer_path.is_dir().then_some(tokenizer_path);
        Ok(Start { parameters, tokenizer, tokenizer_folder, name })
    }
}

/// A configuration with what the tokenizer knows and it does not say.
fn completed(mut config: Map<String, Value>, tokenizer: &Tokenizer) -> Value {
    config.entry("vocab_size").or_insert_with(|| tokenizer.vocab_size().into());
    for (key, id) in [
        ("bos_token_id", tokenizer.bos_id()),
        ("eos_token_id", tokenizer.eos_id()),
        ("pad_token_id", tokenizer.pad_id()),
    ] {
        config.entry(key).or_insert_with(|| id.map_or(Value::Null, Value::from));
    }
    Value::Object(config)
}

/// Puts the tokenizer's files into a folder: those of `from`, or new ones.
fn save_tokenizer(tokenizer: &Tokenizer, from: Option<&Path>, to: &Path) -> Result<(), StageError> {
    let Some(from) = from else { return Ok(tokenizer.write(to)?) };
    for name in Tokenizer::files(from) {
        let (from, to) = (from.join(name), to.join(name));
        // Not `copy`: a result of an earlier stage is read-only, what is pushed may be pushed again.
        let bytes = fs::read(&from).map_err(|e| StageError::io(&from, &e))?;
        fs::write(&to, bytes).map_err(|e| StageError::io(&to, &e))?;
    }
    Ok(())
}
