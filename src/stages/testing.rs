//! Runs a stage by hand, for the stages' own tests.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use crate::about::About;
use crate::artifact::dataset::Dataset;
use crate::device::Device;
use crate::hub::Hub;
use crate::secrets::Secrets;
use crate::stage::{Artifact, ArtifactKind, Cancel, Context, Saying, Stage, StageError};

/// Runs a stage without inputs into `out`; gives what it said.
pub(crate) fn run<S: Stage>(stage: &S, out: &Path, cancel: &Cancel) -> (Result<(), StageError>, Vec<Saying>) {
    run_with(stage, &BTreeMap::new(), out, cancel)
}

/// Runs a stage on these inputs into `out`; gives what it said.
pub(crate) fn run_with<S: Stage>(
    stage: &S,
    inputs: &BTreeMap<String, Artifact>,
    out: &Path,
    cancel: &Cancel,
) -> (Result<(), StageError>, Vec<Saying>) {
    with_context(inputs, out, cancel, |context| stage.run(context))
}

/// Does some of a stage's work; gives what was said.
pub(crate) fn with_context<T>(
    inputs: &BTreeMap<String, Artifact>,
    out: &Path,
    cancel: &Cancel,
    work: impl FnOnce(&Context<'_>) -> T,
) -> (T, Vec<Saying>) {
    let said = Mutex::new(Vec::new());
    let say = |saying| said.lock().unwrap().push(saying);
    let secrets = Secrets::default();
    let unfinished = tempfile::tempdir().unwrap();
    let result = work(&Context {
        inputs,
        out,
        unfinished: unfinished.path(),
        lock: None,
        device: Device::Cpu,
        hub: &Hub::nowhere(),
        say: &say,
        cancel,
        secrets: &secrets,
        about: &About::default(),
    });
    (result, said.into_inner().unwrap())
}

/// An input at a port.
pub(crate) fn input(port: &str, kind: ArtifactKind, path: &Path) -> (String, Artifact) {
    (port.into(), Artifact { kind, path: path.into(), from: "before".into() })
}

/// Runs a stage from dataset to dataset.
pub(crate) fn run_on<S: Stage>(stage: &S, dataset: &mut Dataset) -> Result<Dataset, StageError> {
    let (before, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    dataset.save(before.path()).unwrap();
    let inputs = BTreeMap::from([input("dataset", ArtifactKind::Dataset, before.path())]);
    run_with(stage, &inputs, out.path(), &Cancel::default()).0?;
    Ok(Dataset::load(out.path()).unwrap())
}

/// A failure's message and advice.
pub(crate) type Refusal = (String, Option<String>);

/// What a failure says.
pub(crate) fn fault(error: StageError) -> Refusal {
    match error {
        StageError::Failed { message, help } => (message, help),
        StageError::Interrupted => ("interrupted".into(), None),
    }
}
