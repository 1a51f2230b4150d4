//! The soft prompt of a stage that scores or generates: found, loaded, held against the model.

use candle_core::Tensor;

use super::base::Base;
use super::place;
use crate::artifact::adapter::Adapter;
use crate::location::Location;
use crate::model::ModelError;
use crate::stage::{Context, Fault, Source, StageError};

/// A loaded soft prompt.
pub struct Prompt {
    /// `[n, hidden]`
    pub rows: Tensor,
}

impl Prompt {
    /// Loads what the port `adapter` or the key `adapter` names, if one does.
    pub fn load(
        context: &Context<'_>,
        named: Option<&Location>,
        base: &Base,
    ) -> Result<Option<Self>, StageError> {
        let folder = match (context.inputs.get("adapter"), named) {
            (Some(artifact), _) => artifact.path.clone(),
            (None, Some(location)) => place::local(location, "adapter")?,
            (None, None) => return Ok(None),
        };
        let adapter = Adapter::read(&folder)?;
        let (n, width) = adapter.prompt.dims2().map_err(ModelError::from)?;
        let hidden = base.model.shape().hidden;
        if width != hidden {
            return Err(StageError::with_help(
                format!("the adapter has {n} rows of {width} numbers, `{}` needs {hidden}", base.name),
                format!("it was trained on `{}`", adapter.config.base_model_name_or_path.unwrap_or_default()),
            ));
        }
        Ok(Some(Self { rows: adapter.prompt }))
    }

    /// Number of virtual tokens.
    pub fn len(&self) -> usize {
        self.rows.dims().first().copied().unwrap_or(0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The outside sources of a stage that takes `model` and `adapter`.
pub fn sources(model: Option<&Location>, adapter: Option<&Location>) -> Vec<Source> {
    let named = [("model", model), ("adapter", adapter)];
    let named = named.into_iter().filter_map(|(role, l)| Some((role, l?.clone())));
    named.map(|(role, location)| Source { role: role.into(), location }).collect()
}

/// The fault of a stage that is given two adapters.
pub fn check(named: Option<&Location>, inputs: &[&str]) -> Vec<Fault> {
    if named.is_some() && inputs.contains(&"adapter") {
        let fault =
            Fault::new("adapter", "the adapter is given twice: by `adapter` and by the port `adapter`");
        return vec![fault.help("keep one of them")];
    }
    Vec::new()
}
