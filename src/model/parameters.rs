//! All weights of a model, by name, to be trained.
//!
//! Which tensors there are is what the architecture asks for when it is built; this module knows their order, where
//! their first numbers come from and which of them decay. Does not know how they change.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::config::Config;
use super::random::Key;
use super::rows::Pool;
use super::weights::Trained;
use super::{Decoder, Gradients, ModelError, Precision, Weights, architecture};

/// A model's tensors in f32, each once, sorted by name; a tied head is the embeddings.
#[derive(Debug)]
pub struct Parameters {
    config: Config,
    /// What the source's generation_config.json says, if there is one.
    pub(super) generation: Option<Value>,
    tensors: Vec<Parameter>,
    /// Memory for what goes through the models built over these, one after the other.
    pool: Pool,
}

/// A tensor.
#[derive(Debug)]
pub struct Parameter {
    name: String,
    shape: Vec<usize>,
    numbers: Arc<Vec<f32>>,
}

impl Parameter {
    /// Its name, as transformers' `…ForCausalLM` has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its numbers, row by row.
    pub fn numbers(&self) -> &[f32] {
        &self.numbers
    }

    /// Its numbers, to change them. While a model that was built over them is still there, it keeps the old ones, which
    /// costs a copy.
    pub fn numbers_mut(&mut self) -> &mut [f32] {
        let numbers: &mut Vec<f32> = Arc::make_mut(&mut self.numbers);
        numbers
    }

    /// Its name, its shape, and its numbers to be changed as by [`Parameter::numbers_mut`].
    pub fn parts_mut(&mut self) -> (&str, &[usize], &mut [f32]) {
        let numbers: &mut Vec<f32> = Arc::make_mut(&mut self.numbers);
        (&self.name, &self.shape, numbers)
    }

    /// Whether weight decay applies: transformers' Trainer spares biases and norms, which are the vectors.
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }
}

impl Parameters {
    /// The weights of the model in a Hugging Face folder or a GGUF file, widened to f32.
    ///
    /// # Errors
    /// As [`super::load`].
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let weights = Weights::open(path)?;
        let widened = |name: &str, shape: &[usize]| Ok(weights.tensor(name, shape)?.to_f32());
        let mut parameters = Self::asked_for(&weights, widened)?;
        let generation = path.join("generation_config.json");
        if generation.is_file() {
            parameters.generation = Some(Config::read(&generation)?.value().clone());
        }
        Ok(parameters)
    }

    /// Fresh weights for a model of this configuration, drawn as transformers draws them, though not the same numbers:
    /// matrices from N(0, `initializer_range`²), GPT-2's projections onto the residual stream narrower by the root of
    /// their number, biases 0, norms 1, the embedding of Llama's padding token 0.
    ///
    /// # Errors
    /// An architecture that is not known, or a key that is missing or can't be used.
    pub fn fresh(config: Config, seed: u64) -> Result<Self, ModelError> {
        let range = config.number_or("initializer_range", 0.02)?;
        let residual = match config.text("model_type") {
            Some("gpt2") => range / (2.0 * config.count(&["n_layer", "num_hidden_layers"])? as f64).sqrt(),
            _ => range,
        };
        let weights = Weights::nowhere(config);
        let mut drawn = 0;
        let draw = |name: &str, shape: &[usize]| {
            drawn += 1;
            Ok(match (shape, name.ends_with(".bias")) {
                ([len], bias) => vec![f32::from(u8::from(!bias)); *len],
                _ => {
                    let deviation = if name.ends_with(".c_proj.weight") { residual } else { range };
                    Key::new(seed).then(drawn).normals(shape.iter().product(), deviation)
                }
            })
        };
        let mut parameters = Self::asked_for(&weights, draw)?;
        let padding = parameters.model(Precision::F32)?.padding();
        let table = parameters.tensors.iter_mut().find(|t| t.name == "model.embed_tokens.weight");
        if let (Some(padding), Some(table)) = (padding, table) {
            let width = table.shape[1];
            let row = table.numbers_mut().chunks_exact_mut(width).nth(padding as usize);
            row.into_iter().for_each(|row| row.fill(0.0));
        }
        Ok(parameters)
    }

    /// What the architecture takes from these weights.
    fn asked_for(
        weights: &Weights,
        mut numbers: impl FnMut(&str, &[usize]) -> Result<Vec<f32>, ModelError>,
    ) -> Result<Self, ModelError> {
        let config = weights.config().clone();
        (architecture(&config)?.load)(weights, Precision::F32)?;
        let parameter = |(name, shape): (String, Vec<usize>)| {
            let numbers = Arc::new(numbers(&name, &shape)?);
            Ok(Parameter { name, shape, numbers })
        };
        let tensors = weights.handed_out().into_iter().map(parameter).collect::<Result<_, ModelError>>()?;
        Ok(Self { config, generation: None, tensors, pool: Pool::default() })
    }

    /// A model over these numbers as they are now, to compute in this precision. Its matrices are views: let go of it
    /// before the numbers are changed.
    ///
    /// # Errors
    /// None that is known of: the architecture has been built before.
    pub fn model(&self, precision: Precision) -> Result<Decoder, ModelError> {
        let trained = |(id, tensor): (usize, &Parameter)| {
            let Parameter { name, shape, numbers } = tensor;
            (name.clone(), Trained { id, shape: shape.clone(), numbers: numbers.clone() })
        };
        let tensors = self.tensors.iter().enumerate().map(trained).collect();
        let weights = Weights::trained(self.config.clone(), tensors);
        let mut model = (architecture(&self.config)?.load)(&weights, precision)?;
        model.pool = self.pool.clone();
        Ok(model)
    }

    /// Zeros for the gradient of each tensor.
    pub fn gradients(&self) -> Gradients {
        Gradients::zeros(self.tensors.iter().map(|tensor| tensor.numbers.len()))
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The tensors.
    pub fn tensors(&self) -> &[Parameter] {
        &self.tensors
    }

    /// The tensors, to change their numbers.
    pub fn tensors_mut(&mut self) -> &mut [Parameter] {
        &mut self.tensors
    }

    /// How many numbers there are in all.
    pub fn count(&self) -> usize {
        self.tensors.iter().map(|tensor| tensor.numbers.len()).sum()
    }
}
