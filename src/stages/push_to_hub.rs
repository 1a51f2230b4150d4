//! Brings an adapter or a model to the Hub, with a card that says how it was made.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::uploads;
use crate::about::{About, Told, file_name};
use crate::artifact::adapter::{AdapterConfig, CONFIG, PEFT_VERSION};
use crate::hub::card::{BaseModel, Card, Data, Holds, Point};
use crate::hub::push::{
    self, Change, Content, Destination, Found, Plan, Pushed, Upload, Visibility, Watch, Way,
};
use crate::hub::repo::MAIN;
use crate::hub::{RepoName, Settings, lock};
use crate::location::{Location, Place};
use crate::stage::{Artifact, ArtifactKind, Context, Fault, Lane, Output, Port, Stage, StageError};

/// The configuration.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PushToHub {
    /// The repository, `owner/name`; created if it is not there.
    pub repo: String,
    /// Only its owner may see it; a repository that is there and public is refused.
    #[serde(default)]
    pub private: bool,
    /// The branch; created from `main` if it is not there.
    #[serde(default = "main")]
    pub branch: String,
    /// Propose the commit as a pull request.
    #[serde(default)]
    pub pull_request: bool,
    /// The commit's first line; default: the pipeline's name.
    #[serde(default)]
    pub message: Option<String>,
    /// The license as the Hub writes it, such as `apache-2.0`; it is yours to choose.
    #[serde(default)]
    pub license: Option<String>,
    /// Languages for the model card, such as `en`.
    #[serde(default)]
    pub language: Vec<String>,
    /// More tags for the model card.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Only say what would go, and leave it in `dry_run.json`. Kept like any result: `--force` looks again.
    #[serde(default)]
    pub dry_run: bool,
    /// Which Hub it is, of `HF_ENDPOINT`: what one has, another has not.
    #[serde(skip_deserializing, default = "endpoint")]
    #[schemars(skip)]
    pub endpoint: String,
}

fn main() -> String {
    MAIN.into()
}
fn endpoint() -> String {
    Settings::from_environment().endpoint
}

/// The result: the commit.
const COMMIT: &str = "commit.json";
/// The result of a dry run: what would go.
const DRY_RUN: &str = "dry_run.json";
/// The points of the curve that a card shows: the last of the last epochs.
const POINTS: usize = 5;
/// The keys of a training stage that a card shows.
const RECIPE: &[&str] = &[
    "num_virtual_tokens",
    "init",
    "epochs",
    "max_steps",
    "batch_size",
    "gradient_accumulation",
    "learning_rate",
    "schedule",
    "warmup",
    "weight_decay",
    "max_grad_norm",
    "seed",
    "dtype",
];

impl Stage for PushToHub {
    const KIND: &'static str = "push_to_hub";
    const VERSION: u32 = 1;
    const LANE: Lane = Lane::Cpu;
    const ABOUT: &'static str = "Pushes an adapter or a model to the Hub in one commit, with a model card, the manifest and the lock.";
    const EXAMPLE: &'static str = "\
share:
  uses: push_to_hub
  inputs: { adapter: prompt, metrics: scores }
  with: { repo: your-name/bloomz-560m_PROMPT_TUNING_CAUSAL_LM, license: apache-2.0 }
";
    const INPUTS: &'static [Port] = &[
        Port {
            name: "adapter",
            accepts: &[ArtifactKind::Adapter],
            required: false,
            about: "the adapter, or connect `model`",
        },
        Port {
            name: "model",
            accepts: &[ArtifactKind::Model],
            required: false,
            about: "the model, or connect `adapter`",
        },
        Port {
            name: "metrics",
            accepts: &[ArtifactKind::Metrics],
            required: false,
            about: "the numbers for the model card",
        },
        Port {
            name: "files",
            accepts: &[ArtifactKind::Files, ArtifactKind::Text],
            required: false,
            about: "more files, which go under their own names",
        },
    ];

    fn outputs(&self) -> Vec<Output> {
        vec![match self.dry_run {
            true => Output::new("dry_run", ArtifactKind::Files, &[DRY_RUN]),
            false => Output::new("commit", ArtifactKind::Files, &[COMMIT]),
        }]
    }

    fn check(&self, inputs: &[&str]) -> Vec<Fault> {
        let mut faults = Vec::new();
        if let Err(error) = self.repo.parse::<RepoName>() {
            faults.push(Fault::new("repo", error.to_string()));
        }
        if !push::is_branch(&self.branch) {
            faults.push(
                Fault::new("branch", format!("`{}` is no name of a branch", self.branch))
                    .help("letters, digits, `-`, `_`, `.`, and `/` between them"),
            );
        }
        match (inputs.contains(&"adapter"), inputs.contains(&"model")) {
            (true, true) => {
                faults.push(Fault::new("", "an adapter and a model can't both be pushed").help(
                    "keep one of the ports `adapter` and `model`, and give the other a stage of its own",
                ))
            }
            (false, false) => faults.push(
                Fault::new("", "nothing is given to be pushed").help("connect the port `adapter` or `model`"),
            ),
            _ => {}
        }
        faults
    }

    fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
        let settings = context.hub.settings();
        let repo: RepoName = self.repo.parse()?;
        let uploads = self.uploads(context, &repo)?;
        let to = Destination {
            repo,
            branch: self.branch.clone(),
            visibility: if self.private { Visibility::Private } else { Visibility::Public },
            way: if self.pull_request { Way::PullRequest } else { Way::Commit },
            message: context
                .secrets
                .hide(self.message.as_deref().unwrap_or(&format!("{} with pipe", context.about.pipeline))),
        };
        let watch = Watch {
            bytes: &|done, total| context.progress(done, total, "bytes", to.repo.as_str()),
            say: &|text| context.note(text),
            stop: &|| context.cancel.is_set(),
        };
        if self.dry_run {
            let plan = push::plan(settings, &uploads, &to, &watch)?;
            tell_plan(context, &plan);
            return write(&context.out.join(DRY_RUN), &plan);
        }
        let pushed = push::push(settings, &uploads, &to, &watch)?;
        tell(context, &pushed);
        write(&context.out.join(COMMIT), &pushed)
    }
}

impl PushToHub {
    /// All that goes: what was trained, the card, the manifest and the lock.
    fn uploads(&self, context: &Context<'_>, repo: &RepoName) -> Result<Vec<Upload>, StageError> {
        let hide = |text: &str| context.secrets.hide(text);
        let trained = match context.inputs.get("adapter") {
            Some(adapter) => adapter,
            None => context.input("model")?,
        };
        let mut uploads = match trained.kind {
            ArtifactKind::Adapter => uploads::adapter(&trained.path, context.secrets)?,
            _ => uploads::files(&trained.path),
        };
        // The card of a model that began as another one is not its own.
        uploads.retain(|upload| upload.path != "README.md");
        if let Some(files) = context.inputs.get("files") {
            uploads.extend(uploads::files(&files.path));
        }
        let about = context.about;
        let lock = lock(context)?;
        let card = self.card(context, repo, trained, lock.as_ref())?;
        let mut text = |path: &str, text: &str| {
            uploads.push(Upload { path: path.into(), content: Content::Bytes(hide(text).into_bytes()) });
        };
        text("README.md", &card.text());
        text("pipe/manifest.yaml", &about.manifest);
        if let Some((_, lock)) = &lock {
            text("pipe/manifest.lock", lock);
        }
        Ok(uploads)
    }

    fn card(
        &self,
        context: &Context<'_>,
        repo: &RepoName,
        trained: &Artifact,
        lock: Option<&(String, String)>,
    ) -> Result<Card, StageError> {
        let about = context.about;
        let lineage = about.lineage(stage_of(trained));
        let training = lineage.iter().rev().find(|told| told.name == stage_of(trained));
        let (holds, base_model) = match trained.kind {
            ArtifactKind::Adapter => {
                let path = trained.path.join(CONFIG);
                let bytes = std::fs::read(&path).map_err(|e| StageError::io(&path, &e))?;
                let config: AdapterConfig = serde_json::from_slice(&bytes)
                    .map_err(|e| StageError::failed(format!("{}: {e}", path.display())))?;
                let holds = Holds::SoftPrompt { virtual_tokens: config.num_virtual_tokens };
                (holds, config.base_model_name_or_path.map(|name| named_model(&name, about)))
            }
            _ => (Holds::Model, training.and_then(|told| beginning(told, about))),
        };
        if let (Some(BaseModel::Local(name)), Holds::SoftPrompt { .. }) = (&base_model, &holds) {
            context.warn(format!(
                "the adapter's base model `{name}` is no repository on the Hub: who loads the adapter has to have \
                 it. `base_model: owner/name` in the training stage names the repository it is from"
            ));
        }
        let (metrics, split) = match context.inputs.get("metrics") {
            Some(artifact) => {
                let scored = about.lineage(stage_of(artifact)).into_iter().next_back();
                let split = scored.and_then(|told| told.config.get("split")?.as_str().map(str::to_owned));
                (metrics(&artifact.path)?, split)
            }
            None => (BTreeMap::new(), None),
        };
        let data = lineage.iter().filter(|told| told.kind == "load_dataset");
        let recipe = training.map(|told| recipe(told)).unwrap_or_default();
        Ok(Card {
            repo: repo.clone(),
            holds,
            base_model,
            data: data.filter_map(|told| dataset(told, about)).collect(),
            split,
            license: self.license.clone(),
            language: self.language.clone(),
            tags: self.tags.clone(),
            metrics,
            curve: curve(&trained.path),
            recipe,
            pipeline: (about.pipeline.clone(), about.description.clone()),
            command: about.command.clone(),
            manifest: (about.file(), about.manifest.clone()),
            lock: lock.cloned(),
            versions: vec![
                ("pipe".into(), env!("CARGO_PKG_VERSION").into()),
                ("PEFT's format".into(), PEFT_VERSION.into()),
            ],
        })
    }
}

/// The lock's file name and text, if there is one.
fn lock(context: &Context<'_>) -> Result<Option<(String, String)>, StageError> {
    let path = lock::beside(&context.about.path);
    if !path.exists() {
        return Ok(None);
    }
    let text = context.hub.lock_text().map_err(|e| StageError::io(&path, &e))?;
    Ok(Some((file_name(&path), text)))
}

/// The stage an artifact is from, of `stage.output`.
fn stage_of(artifact: &Artifact) -> &str {
    artifact.from.rsplit_once('.').map_or(artifact.from.as_str(), |(stage, _)| stage)
}

/// A name that has no path here is a repository.
fn on_hub(name: &str, about: &About) -> Option<RepoName> {
    let folder = about.path.parent().unwrap_or(Path::new(""));
    let hub = |base: &Path| matches!(Location::new(name, base).resolve(), Place::Hub(_));
    name.parse().ok().filter(|_| hub(folder) && hub(Path::new(".")))
}

/// What the model of a training stage began as, where its keys say so.
fn beginning(training: &Told, about: &About) -> Option<BaseModel> {
    let key = |key: &str| training.config.get(key).filter(|value| !value.is_null());
    match (key("model"), key("config")) {
        (Some(model), _) => Some(named_model(model.as_str()?, about)),
        (None, Some(_)) if training.kind == "fine_tune" => Some(BaseModel::Fresh),
        _ => None,
    }
}

fn named_model(name: &str, about: &About) -> BaseModel {
    match on_hub(name, about) {
        Some(repo) => BaseModel::Hub(repo),
        None => BaseModel::Local(told_path(name)),
    }
}

/// A path as it is told to others: without the folders of this machine.
fn told_path(path: &str) -> String {
    if Path::new(path).is_absolute() { file_name(Path::new(path)) } else { path.to_owned() }
}

/// What a `load_dataset` stage took.
fn dataset(told: &Told, about: &About) -> Option<Data> {
    let text = |key: &str| told.config.get(key).and_then(Value::as_str).map(str::to_owned);
    let path = text("path")?;
    let on_hub = on_hub(&path, about);
    Some(Data { name: told_path(&path), on_hub, config: text("name"), revision: text("revision") })
}

fn recipe(training: &Told) -> Vec<(String, Value)> {
    let given = |key: &&str| {
        let value = training.config.get(*key).filter(|value| !value.is_null())?;
        Some((key.to_string(), value.clone()))
    };
    RECIPE.iter().filter_map(given).collect()
}

/// The numbers of a metrics file: those of `evaluate` as they are, of a training stage the last of each.
fn metrics(path: &Path) -> Result<BTreeMap<String, f64>, StageError> {
    let bytes = std::fs::read(path).map_err(|e| StageError::io(path, &e))?;
    let value: Value = serde_json::from_slice(&bytes)
        .map_err(|e| StageError::failed(format!("{}: no JSON: {e}", path.display())))?;
    let last = |list: &str, key: &str| value.get(list)?.as_array()?.last()?.get(key)?.as_f64();
    if value.get("epochs").is_some_and(Value::is_array) {
        let taken = [
            ("train_loss", last("epochs", "train_loss")),
            ("eval_loss", last("evaluations", "loss")),
            ("eval_perplexity", last("evaluations", "loss").map(f64::exp)),
        ];
        return Ok(taken.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect());
    }
    let numbers = value.as_object().into_iter().flatten();
    Ok(numbers.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect())
}

/// The last step of each of the last epochs in `steps.jsonl`, which training leaves beside its result.
fn curve(trained: &Path) -> Vec<Point> {
    let beside = [Some(trained), trained.parent()].into_iter().flatten().map(|f| f.join("steps.jsonl"));
    let Some(file) = beside.filter_map(|path| std::fs::File::open(path).ok()).next() else {
        return Vec::new();
    };
    let mut points: Vec<Point> = Vec::new();
    for line in BufReader::new(file).lines().map_while(Result::ok) {
        let Ok(step) = serde_json::from_str::<Value>(&line) else { continue };
        let number = |key: &str| step.get(key).and_then(Value::as_f64);
        let whole = |key: &str| step.get(key).and_then(Value::as_u64);
        let (Some(epoch), Some(at), Some(learning_rate), Some(loss)) =
            (whole("epoch"), whole("step"), number("learning_rate"), number("loss"))
        else {
            continue;
        };
        points.retain(|point| point.epoch != epoch);
        points.push(Point { epoch, step: at, learning_rate, loss });
    }
    points.split_off(points.len().saturating_sub(POINTS))
}

/// Says what a push did.
fn tell(context: &Context<'_>, pushed: &Pushed) {
    let files = |n: usize| format!("{n} file{}", if n == 1 { "" } else { "s" });
    context.note(match (&pushed.pull_request, pushed.sent.len()) {
        (_, 0) => format!("nothing has changed: {} holds it all", pushed.url),
        (Some(request), n) => format!("{} in pull request {}: {}", files(n), request.number, request.url),
        (None, n) => format!("{} in {}", files(n), pushed.url),
    });
}

/// Says what a push would do.
fn tell_plan(context: &Context<'_>, plan: &Plan) {
    context.note(match &plan.found {
        Found::NoRepository => format!("{} is not there and would be created", plan.repo),
        Found::NoBranch(_) => format!("the branch {} of {} would be created", plan.branch, plan.repo),
        Found::Empty => format!("{} of {} is empty", plan.branch, plan.repo),
        Found::Head(commit) => format!("{} of {} is at {}", plan.branch, plan.repo, commit.short()),
        Found::Unknown(reason) => format!("what {} has is not known: {reason}", plan.repo),
    });
    for file in &plan.files {
        context.note(format!("{:<9}  {:>11} bytes  {}", file.change.word(), file.bytes, file.path));
    }
    if plan.files.iter().all(|file| file.change == Change::Unchanged) {
        context.note("nothing would be committed");
    }
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), StageError> {
    let text = serde_json::to_string_pretty(value).unwrap_or_default() + "\n";
    std::fs::write(path, text).map_err(|e| StageError::io(path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(yaml: &str) -> PushToHub {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn faults(yaml: &str, inputs: &[&str]) -> Vec<(&'static str, String)> {
        stage(yaml).check(inputs).into_iter().map(|f| (f.key, f.message)).collect()
    }

    #[test]
    fn a_wrong_name_and_a_missing_port_show_before_anything_runs() {
        assert_eq!(faults("{ repo: ada/x, branch: epochs/v1.2 }", &["model"]), []);
        assert_eq!(
            faults("{ repo: tweets, branch: a..b }", &["metrics"]),
            [
                (
                    "repo",
                    "`tweets` is no name of a repository: it is `owner/name` in letters, digits, `-`, `_` and `.`"
                        .into()
                ),
                ("branch", "`a..b` is no name of a branch".into()),
                ("", "nothing is given to be pushed".into()),
            ]
        );
        let both = faults("{ repo: ada/x }", &["model", "adapter"]);
        assert_eq!(both, [("", "an adapter and a model can't both be pushed".into())]);
    }

    #[test]
    fn the_curve_ends_with_the_last_step_of_each_of_the_last_epochs() {
        let dir = tempfile::tempdir().unwrap();
        let mut text = String::new();
        for step in 1..=14 {
            let epoch = (step + 1) / 2;
            text += &format!(
                "{{\"step\": {step}, \"epoch\": {epoch}, \"learning_rate\": 0.5, \"loss\": {step}.5}}\n"
            );
        }
        std::fs::write(dir.path().join("steps.jsonl"), text).unwrap();
        let model = dir.path().join("model");
        std::fs::create_dir(&model).unwrap();
        let points: Vec<_> = curve(&model).iter().map(|p| (p.epoch, p.step, p.loss)).collect();
        assert_eq!(points, [(3, 6, 6.5), (4, 8, 8.5), (5, 10, 10.5), (6, 12, 12.5), (7, 14, 14.5)]);
        assert_eq!(curve(dir.path()), curve(&model));
        assert_eq!(curve(Path::new("/nowhere")), []);
    }

    #[test]
    fn metrics_of_training_are_the_last_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            metrics(&path).unwrap().into_iter().collect::<Vec<_>>()
        };
        assert_eq!(
            read(r#"{"loss": 0.5, "untuned.loss": 2, "note": "x"}"#),
            [("loss".into(), 0.5), ("untuned.loss".into(), 2.0)]
        );
        let course =
            r#"{"epochs": [{"train_loss": 2.0}, {"train_loss": 1.0}], "evaluations": [], "steps": 9}"#;
        assert_eq!(read(course), [("train_loss".into(), 1.0)]);
    }
}
