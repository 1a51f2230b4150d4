//! Trains a soft prompt before a frozen model: PEFT's prompt tuning.

use std::path::Path;

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::base::{self, Base};
use super::training::{Order, Watch, grouped, training_stage};
use super::{place, rows};
use crate::artifact::adapter::{Adapter, AdapterConfig};
use crate::artifact::tokens::Tokens;
use crate::location::Location;
use crate::model::decoder::Keep;
use crate::stage::{ArtifactKind, Context, Fault, Lane, Output, Port, Source, Stage, StageError};
use crate::train::soft_prompt::{self, PromptLearner};
use crate::train::{Training, init};

training_stage! {
    /// The configuration.
    pub struct TrainSoftPrompt {
        /// The frozen model: a folder, a .gguf file or a Hub name. Or connect the port `model`.
        #[serde(default)]
        pub model: Option<Location>,
        /// The branch, tag or commit of a model on the Hub.
        #[serde(default)]
        pub revision: Option<String>,
        /// What the adapter remembers as the name of its base model; default: `model` as written.
        #[serde(default)]
        pub base_model: Option<String>,
        /// How many virtual tokens stand before every row; `init`: as many as the text they start from has tokens.
        pub num_virtual_tokens: VirtualTokens,
        /// What they start from.
        #[serde(default)]
        pub init: Init,
    }
}

/// How many virtual tokens there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum VirtualTokens {
    /// So many.
    Count(usize),
    /// As many as the text has tokens.
    OfInit(OfInit),
}

/// The word `init`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OfInit {
    /// As many as the text has tokens.
    Init,
}

/// What the virtual tokens start from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// The embeddings of this text's tokens, cut or repeated to fit.
    Text(String),
    /// Numbers from N(0, 1).
    #[default]
    Random,
    /// The embeddings of random tokens.
    SampleVocab,
    /// Rows of f32: a .safetensors file with one tensor, or bare little-endian numbers.
    File(Location),
}

/// The guide's learning rate.
fn learning_rate() -> f64 {
    3e-2
}
/// torch's AdamW.
fn weight_decay() -> f64 {
    0.01
}
/// The guide clips nothing.
fn max_grad_norm() -> Option<f64> {
    None
}
fn shuffle() -> Order {
    Order::Plain(true)
}

impl Stage for TrainSoftPrompt {
    const KIND: &'static str = "train_soft_prompt";
    const VERSION: u32 = 8;
    const LANE: Lane = Lane::Device;
    const ABOUT: &'static str = "Trains virtual tokens before a frozen model (PEFT's prompt tuning).";
    const EXAMPLE: &'static str = "\
prompt:
  uses: train_soft_prompt
  inputs: { dataset: tokens }
  with:
    model: bigscience/bloomz-560m
    num_virtual_tokens: 8
    init: { text: \"Classify if the tweet is a complaint or not:\" }
    learning_rate: 3e-2
    epochs: 50
    batch_size: 8
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
            about: "the frozen model, instead of the key `model`",
        },
    ];

    fn outputs(&self) -> Vec<Output> {
        let files = &["adapter_config.json", "adapter_model.safetensors"];
        let mut outputs = vec![Output::new("adapter", ArtifactKind::Adapter, files)];
        outputs.extend(self.keys().outputs());
        outputs
    }

    fn sources(&self) -> Vec<Source> {
        let model = self.base().source().into_iter();
        let file = match &self.init {
            Init::File(l) => Some(Source::files("init.file", l.clone())),
            _ => None,
        };
        model.chain(file).chain(self.keys().sources()).collect()
    }

    fn check(&self, inputs: &[&str]) -> Vec<Fault> {
        let mut faults: Vec<Fault> = base::check(self.model.as_ref(), inputs).into_iter().collect();
        match (self.num_virtual_tokens, &self.init) {
            (VirtualTokens::Count(0), _) => {
                faults.push(Fault::new("num_virtual_tokens", "`num_virtual_tokens` is at least 1"));
            }
            (VirtualTokens::OfInit(_), Init::Random | Init::SampleVocab | Init::File(_)) => faults.push(
                Fault::new("num_virtual_tokens", "`init` counts the tokens of a text, and `init` gives none")
                    .help("write a number, or start from a text: `init: { text: \"…\" }`"),
            ),
            _ => {}
        }
        faults.extend(self.keys().check());
        faults
    }

    fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
        let keys = self.keys();
        let tokens = Tokens::open(&context.input("dataset")?.path)?;
        let token_rows = tokens.rows(keys.split)?;
        rows::has_labels(&token_rows, keys.split)?;
        let eval = keys.eval_rows(&tokens)?;
        let mut base = Base::load(context, self.base(), self.dtype.numerics(self.tf32, self.deterministic))?;
        base.belongs_to(&tokens)?;
        base.model.lay_out();
        let start = self.start(&base)?;
        let virtual_tokens = start.dims().first().copied().unwrap_or_default();
        for rows in [&token_rows, &eval] {
            base.has_room(virtual_tokens, rows::longest(&tokens.about, rows))?;
        }
        warn_of_the_gap(context, &tokens, &base);
        let (rows, eval) = (rows::to_train(&tokens.about, &token_rows), rows::to_score(&tokens.about, &eval));
        let trainable = start.elem_count();
        let all = base.model.decoder().parameters() + trainable;
        context.note(format!(
            "trainable params: {} || all params: {} || trainable%: {:.4}",
            grouped(trainable),
            grouped(all),
            100.0 * trainable as f64 / all as f64
        ));

        let keep = if self.gradient_checkpointing { Keep::BlockInputs } else { Keep::Everything };
        let mut prompt = soft_prompt::before(&base.model, &start, keep)?;
        let config = self.adapter_config(&base, virtual_tokens);
        let write = |prompt: &mut Box<dyn PromptLearner + '_>, folder: &Path| -> Result<(), StageError> {
            Ok(Adapter { config: config.clone(), prompt: prompt.prompt()? }.write(folder)?)
        };
        let (recipe, checkpoints) = (keys.recipe(rows.len()), keys.checkpoints(context)?);
        let mut watch = Watch::new(context, &keys, Box::new(write))?;
        let training =
            Training { recipe: &recipe, rows: &rows, eval: &eval, checkpoints: Some(&checkpoints) };
        let course = training.run(&mut prompt, &mut watch)?;
        let more = json!({ "trainable_params": trainable, "all_params": all });
        watch.finish(&mut prompt, &course, &checkpoints, more)?;
        base.say_peak(context);
        write(&mut prompt, context.out)
    }
}

impl TrainSoftPrompt {
    /// What the keys say of the model.
    fn base(&self) -> base::Named<'_> {
        base::Named { location: self.model.as_ref(), revision: self.revision.as_deref() }
    }

    fn adapter_config(&self, base: &Base, virtual_tokens: usize) -> AdapterConfig {
        let name = self.base_model.as_ref().unwrap_or(&base.name);
        let mut config = AdapterConfig::prompt_tuning(name, virtual_tokens, base.model.decoder().shape());
        config.revision = self.revision.clone();
        match &self.init {
            Init::Text(text) => {
                config.prompt_tuning_init = Some("TEXT".into());
                config.prompt_tuning_init_text = Some(text.clone());
                config.tokenizer_name_or_path = Some(name.clone());
            }
            Init::SampleVocab => config.prompt_tuning_init = Some("SAMPLE_VOCAB".into()),
            // PEFT knows no file to start from; what it would do without one is RANDOM.
            Init::Random | Init::File(_) => {}
        }
        config
    }

    fn start(&self, base: &Base) -> Result<Tensor, StageError> {
        let model = base.model.decoder();
        let of_text = match &self.init {
            Init::Text(text) => base.tokenizer.encode(text, true)?,
            _ => Vec::new(),
        };
        let n = match self.num_virtual_tokens {
            VirtualTokens::Count(n) => n,
            VirtualTokens::OfInit(_) => of_text.len(),
        };
        Ok(match &self.init {
            Init::Text(_) => init::text(model, &of_text, n)?,
            Init::Random => init::random(model, n, self.seed)?,
            Init::SampleVocab => init::sample_vocabulary(model, n, self.seed)?,
            Init::File(location) => init::file(model, n, &place::local(location, "init.file")?)?,
        })
    }
}

/// Where positions run over padding, training sees a gap between prompt and text that inference does not have.
fn warn_of_the_gap(context: &Context<'_>, tokens: &Tokens, base: &Base) {
    if tokens.about.pads_before(0, 1) > 0 && base.model.decoder().shape().max_positions.is_some() {
        context.warn(
            "padding on the left puts a gap of positions between the prompt and the text, as PEFT does in \
             training; at inference there is none. `padding: none` in the tokenize stage trains without it",
        );
    }
}
