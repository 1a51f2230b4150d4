//! The soft prompt of a stage that scores or generates: found, loaded, held against the model.

use candle_core::Tensor;

use super::base::{self, Base};
use super::place;
use crate::artifact::adapter::Adapter;
use crate::hub::{Reads, Want};
use crate::location::Location;
use crate::model::ModelError;
use crate::sources::{self, BaseModel, SourceError};
use crate::stage::{Content, Context, Fault, Source, StageError};

/// What a stage's keys say of its adapter.
#[derive(Clone, Copy)]
pub struct Named<'a> {
    /// `adapter`
    pub location: Option<&'a Location>,
    /// `adapter_revision`
    pub revision: Option<&'a str>,
}

impl Named<'_> {
    fn reads(&self) -> Reads {
        Reads { want: Want::Adapter, revision: self.revision.map(str::to_owned) }
    }

    /// The model that the adapter's own configuration names.
    pub fn base_model(&self, context: &Context<'_>) -> Result<Option<BaseModel>, StageError> {
        let base = self
            .location
            .map(|adapter| sources::base_model(context.hub, adapter, self.revision, context.cancel));
        base.transpose().map_err(StageError::from)
    }
}

impl From<SourceError> for StageError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Hub(error) => error.into(),
            SourceError::Interrupted(interrupted) => interrupted.into(),
            other => Self::Failed { help: other.help(), message: other.to_string() },
        }
    }
}

/// A loaded soft prompt.
pub struct Prompt {
    /// `[n, hidden]`
    pub rows: Tensor,
}

impl Prompt {
    /// Loads what the port `adapter` or the key `adapter` names, if one does.
    pub fn load(context: &Context<'_>, named: Named<'_>, base: &Base) -> Result<Option<Self>, StageError> {
        let folder = match (context.inputs.get("adapter"), named.location) {
            (Some(artifact), _) => artifact.path.clone(),
            (None, Some(location)) => place::local_or_fetched(context, location, &named.reads(), "adapter")?,
            (None, None) => return Ok(None),
        };
        let adapter = Adapter::read(&folder)?;
        let (n, width) = adapter.prompt.dims2().map_err(ModelError::from)?;
        let hidden = base.model.decoder().shape().hidden;
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
pub fn sources(model: base::Named<'_>, adapter: Named<'_>) -> Vec<Source> {
    let mut sources: Vec<Source> = model.source().into_iter().collect();
    if let Some(location) = adapter.location {
        sources.push(Source::repository("adapter", location.clone(), adapter.reads()));
        if model.location.is_none() {
            let content = Content::BaseModel { revision: adapter.revision.map(str::to_owned) };
            sources.push(Source { role: "adapter.model".into(), location: location.clone(), content });
        }
    }
    sources
}

/// The faults of a stage that is given two adapters, or no model.
pub fn check(model: base::Named<'_>, adapter: Named<'_>, inputs: &[&str]) -> Vec<Fault> {
    let mut faults = Vec::new();
    if adapter.location.is_some() && inputs.contains(&"adapter") {
        let fault =
            Fault::new("adapter", "the adapter is given twice: by `adapter` and by the port `adapter`");
        faults.push(fault.help("keep one of them"));
    }
    // An adapter that is named tells its model.
    if adapter.location.is_none() || model.location.is_some() {
        faults.extend(base::check(model.location, inputs));
    }
    faults
}
