//! Manifests as users write them, right and wrong, over a few small stage kinds.

use std::path::Path;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::*;
use crate::diagnostic;
use crate::location::{Location, Place};
use crate::stage::{ANY_PORT, ArtifactKind, Context, Fault, Lane, Output, Port, Stage, StageError};

/// Reads rows.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Rows {
    /// A file.
    path: Location,
    /// Which rows.
    split: Option<String>,
    /// At most as many.
    #[serde(default)]
    limit: Option<u32>,
}

impl Stage for Rows {
    const KIND: &'static str = "rows";
    const VERSION: u32 = 1;
    const LANE: Lane = Lane::Cpu;
    const ABOUT: &'static str = "Reads rows.";
    const EXAMPLE: &'static str = "";
    const INPUTS: &'static [Port] = &[];
    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("dataset", ArtifactKind::Dataset, &["."])]
    }
    fn run(&self, _: &Context<'_>) -> Result<(), StageError> {
        Ok(())
    }
}

/// Makes tokens.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Tokenise {
    /// The tokenizer.
    tokenizer: Location,
    /// Longest row.
    #[serde(default)]
    max_length: Option<usize>,
    /// Which side is padded.
    #[serde(default)]
    padding: Padding,
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Padding {
    #[default]
    Left,
    Right,
}

const DATASET: Port =
    Port { name: "dataset", accepts: &[ArtifactKind::Dataset], required: true, about: "The rows." };
const TOKENS: Port =
    Port { name: "dataset", accepts: &[ArtifactKind::Tokens], required: true, about: "The tokens." };
const MODEL: Port =
    Port { name: "model", accepts: &[ArtifactKind::Model], required: false, about: "The base model." };

impl Stage for Tokenise {
    const KIND: &'static str = "tokenise";
    const VERSION: u32 = 1;
    const LANE: Lane = Lane::Cpu;
    const ABOUT: &'static str = "Makes tokens.";
    const EXAMPLE: &'static str = "";
    const INPUTS: &'static [Port] = &[DATASET];
    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("tokens", ArtifactKind::Tokens, &["."])]
    }
    fn run(&self, _: &Context<'_>) -> Result<(), StageError> {
        Ok(())
    }
}

/// Trains a prompt.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Train {
    /// The base model.
    model: Option<Location>,
    /// Passes over the rows.
    #[serde(default = "three")]
    epochs: u32,
    /// The step size.
    #[serde(default)]
    learning_rate: f64,
    /// What the prompt starts from.
    init: Option<Init>,
    /// Decay of the moments.
    #[serde(default = "betas")]
    betas: (f64, f64),
    /// A seed, or a file of one.
    seed: Option<Seed>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Init {
    /// The tokens of a text.
    Text(String),
    /// Random numbers.
    Random,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Seed {
    Number(u32),
    File { file: String },
}

fn three() -> u32 {
    3
}

fn betas() -> (f64, f64) {
    (0.9, 0.999)
}

impl Stage for Train {
    const KIND: &'static str = "train";
    const VERSION: u32 = 1;
    const LANE: Lane = Lane::Device;
    const ABOUT: &'static str = "Trains a prompt.";
    const EXAMPLE: &'static str = "";
    const INPUTS: &'static [Port] = &[TOKENS, MODEL];
    fn outputs(&self) -> Vec<Output> {
        vec![
            Output::new("adapter", ArtifactKind::Adapter, &["adapter"]),
            Output::new("metrics", ArtifactKind::Metrics, &["metrics.json"]),
        ]
    }
    fn check(&self, inputs: &[&str]) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.model.is_none() && !inputs.contains(&"model") {
            let fault = Fault::new("", "a model is needed: by the key `model` or the port `model`");
            faults.push(fault.help("add `model: NAME` under `with`"));
        }
        if self.epochs == 0 {
            faults.push(Fault::new("epochs", "`epochs` takes a whole number from 1, not 0"));
        }
        faults
    }
    fn run(&self, _: &Context<'_>) -> Result<(), StageError> {
        Ok(())
    }
}

/// Scores an adapter.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Score {
    /// The base model.
    model: Option<Location>,
}

impl Stage for Score {
    const KIND: &'static str = "score";
    const VERSION: u32 = 1;
    const LANE: Lane = Lane::Device;
    const ABOUT: &'static str = "Scores an adapter.";
    const EXAMPLE: &'static str = "";
    const INPUTS: &'static [Port] = &[
        TOKENS,
        Port {
            name: "adapter",
            accepts: &[ArtifactKind::Adapter],
            required: false,
            about: "The adapter; without it the bare model is scored.",
        },
        MODEL,
    ];
    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("metrics", ArtifactKind::Metrics, &["metrics.json"])]
    }
    fn run(&self, _: &Context<'_>) -> Result<(), StageError> {
        Ok(())
    }
}

/// Sends files away.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Share {
    /// Where to.
    repo: String,
    /// What opens it.
    token: Option<String>,
    /// Text for the top of the card, by language.
    #[serde(default)]
    card: std::collections::BTreeMap<String, String>,
}

impl Stage for Share {
    const KIND: &'static str = "share";
    const VERSION: u32 = 1;
    const LANE: Lane = Lane::Cpu;
    const ABOUT: &'static str = "Sends files away.";
    const EXAMPLE: &'static str = "";
    const INPUTS: &'static [Port] =
        &[Port { name: "files", accepts: &[], required: true, about: "What to send." }];
    fn outputs(&self) -> Vec<Output> {
        Vec::new()
    }
    fn check(&self, _: &[&str]) -> Vec<Fault> {
        match self.repo.contains('/') {
            true => Vec::new(),
            false => vec![Fault::new("repo", format!("`{}` is not `owner/name`", self.repo))],
        }
    }
    fn run(&self, _: &Context<'_>) -> Result<(), StageError> {
        Ok(())
    }
}

/// Runs anything over anything.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Anything {}

impl Stage for Anything {
    const KIND: &'static str = "anything";
    const VERSION: u32 = 1;
    const LANE: Lane = Lane::Cpu;
    const ABOUT: &'static str = "Runs anything.";
    const EXAMPLE: &'static str = "";
    const INPUTS: &'static [Port] =
        &[Port { name: ANY_PORT, accepts: &[], required: false, about: "Anything." }];
    fn outputs(&self) -> Vec<Output> {
        Vec::new()
    }
    fn run(&self, _: &Context<'_>) -> Result<(), StageError> {
        Ok(())
    }
}

static KINDS: &[Kind] = &[
    Kind::of::<Anything>(),
    Kind::of::<Rows>(),
    Kind::of::<Tokenise>(),
    Kind::of::<Train>(),
    Kind::of::<Score>(),
    Kind::of::<Share>(),
];

const GOOD: &str = r#"
pipeline: tweets
params:
  model: owner/base
  epochs: 2
  push: false
  sizes: { short: 64 }
profiles:
  small: { model: ./tiny, epochs: 1 }
stages:
  scores:
    uses: score
    inputs: { dataset: tokens, adapter: prompt }
  rows:
    uses: rows
    with: { path: data.csv, split: "train[:${params.epochs}]" }
  tokens:
    uses: tokenise
    inputs: { dataset: rows }
    with: { tokenizer: "${params.model}", max_length: "${params.sizes.short}" }
  prompt:
    uses: train
    timeout: 15m
    retries: 2
    device: cuda:1
    inputs: { dataset: tokens }
    with: { model: "${params.model}", epochs: "${params.epochs}", learning_rate: 3e-2, init: { text: "a: $${b}" } }
  share:
    uses: share
    inputs: { files: prompt }
    with: { repo: a/b, token: "${env.UNSET}" }
    when: ${params.push}
"#;

fn environment(name: &str) -> Option<String> {
    (name == "TOKEN").then(|| "s3cret".to_string())
}

fn overrides(profiles: &[&str], set: &[&str]) -> Overrides {
    Overrides {
        profiles: profiles.iter().map(|p| p.to_string()).collect(),
        set: set.iter().map(|s| s.to_string()).collect(),
        folder: PathBuf::from("/where/it/runs"),
        env: environment,
    }
}

fn load_text(text: &str, overrides: &Overrides) -> Result<Manifest, Faults> {
    let source = Source { name: "x.yaml".into(), text: text.into() };
    load_source(Path::new("/where/it/stands/x.yaml"), source, overrides, KINDS)
}

fn good(text: &str, overrides: &Overrides) -> Manifest {
    load_text(text, overrides).unwrap_or_else(|faults| panic!("{faults}"))
}

fn stage<'m>(manifest: &'m Manifest, id: &str) -> &'m StageDecl {
    let ids: Vec<&str> = manifest.stages.iter().map(|s| s.id.as_str()).collect();
    manifest.stages.iter().find(|s| s.id.as_str() == id).unwrap_or_else(|| panic!("no {id} in {ids:?}"))
}

#[test]
fn a_manifest_becomes_typed_and_wired_stages() {
    let manifest = good(GOOD, &overrides(&[], &[]));
    assert_eq!(manifest.name, "tweets");
    assert!(manifest.warnings.is_empty(), "{:?}", manifest.warnings);
    let ids: Vec<&str> = manifest.stages.iter().map(|s| s.id.as_str()).collect();
    assert_eq!(ids, ["scores", "rows", "tokens", "prompt", "share"]);

    let prompt = stage(&manifest, "prompt");
    assert_eq!(prompt.timeout, Some(Duration::from_secs(900)));
    assert_eq!((prompt.retries, prompt.device), (2, Some(DeviceSpec::Cuda(1))));
    assert_eq!(prompt.on, On::On);
    assert_eq!(
        prompt.config.to_string(),
        r#"{"betas":[0.9,0.999],"epochs":2,"init":{"text":"a: ${b}"},"learning_rate":0.03,"#.to_string()
            + r#""model":"owner/base","seed":null}"#
    );
    assert_eq!(stage(&manifest, "rows").config["split"], "train[:2]");
    assert_eq!(stage(&manifest, "tokens").config["max_length"], 64);
    let edge = |port: &str, from: &str, output: &str| Edge {
        port: port.into(),
        from: StageId(from.into()),
        output: output.into(),
    };
    assert_eq!(
        stage(&manifest, "scores").inputs,
        [edge("dataset", "tokens", "tokens"), edge("adapter", "prompt", "adapter")]
    );
    assert_eq!(stage(&manifest, "share").inputs, [edge("files", "prompt", "adapter")]);
}

#[test]
fn an_adapter_brings_its_model_along() {
    let manifest = good(GOOD, &overrides(&[], &[]));
    assert_eq!(stage(&manifest, "scores").config["model"], "owner/base");

    let null = GOOD.replace("adapter: prompt }", "adapter: prompt }\n    with: { model: null }");
    assert_eq!(stage(&good(&null, &overrides(&[], &[])), "scores").config["model"], "owner/base");

    let own = GOOD.replace("adapter: prompt }", "adapter: prompt }\n    with: { model: owner/other }");
    assert_eq!(stage(&good(&own, &overrides(&[], &[])), "scores").config["model"], "owner/other");
}

#[test]
fn null_leaves_a_key_out() {
    let text = GOOD.replace("learning_rate: 3e-2", "betas: null, learning_rate: null");
    let text = text.replace("small: {", "small: { sizes: { short: null },");
    let manifest = good(&text, &overrides(&["small"], &[]));
    assert_eq!(stage(&manifest, "prompt").config["betas"], serde_json::json!([0.9, 0.999]));
    assert_eq!(stage(&manifest, "tokens").config["max_length"], serde_json::Value::Null);
}

#[test]
fn a_port_of_any_name_keeps_the_name_it_is_given() {
    let text = "pipeline: x\nstages:\n  rows: { uses: rows, with: { path: a.csv } }\n  \
                all: { uses: anything, inputs: { one: rows, another: rows.dataset } }\n";
    let manifest = good(text, &overrides(&[], &[]));
    let ports: Vec<&str> = stage(&manifest, "all").inputs.iter().map(|e| e.port.as_str()).collect();
    assert_eq!(ports, ["another", "one"]);
}

#[test]
fn key_order_comments_quotes_and_anchors_change_no_configuration() {
    let other = r#"
# a comment
stages:
  prompt:
    with: {init: {'text': &t 'a: $${b}'}, "learning_rate": 0.03, epochs: 2, model: &m "owner/base"}
    uses: "train"
    inputs:
      dataset: tokens
  tokens: {inputs: {dataset: rows}, with: {max_length: 0x40, tokenizer: *m}, uses: tokenise}
  rows: {uses: rows, with: {split: 'train[:2]', path: "data.csv"}}
pipeline: tweets
"#;
    let (first, second) = (good(GOOD, &overrides(&[], &[])), good(other, &overrides(&[], &[])));
    for id in ["prompt", "tokens", "rows"] {
        assert_eq!(stage(&first, id).config.to_string(), stage(&second, id).config.to_string());
    }
}

#[test]
fn a_profile_replaces_params_and_set_replaces_both() {
    let manifest = good(GOOD, &overrides(&["small"], &[]));
    assert_eq!(manifest.params["model"], "./tiny");
    assert_eq!(stage(&manifest, "prompt").config["epochs"], 1);

    let manifest = good(GOOD, &overrides(&["small"], &["epochs=7", "model=@a: b"]));
    assert_eq!(stage(&manifest, "prompt").config["epochs"], 7);
    assert_eq!(stage(&manifest, "prompt").config["model"], "@a: b");
}

#[test]
fn a_path_starts_where_it_was_written() {
    let source = |manifest: &Manifest| {
        let with = format!("{:?}", manifest.stages[0].config["path"]);
        (with, manifest.dir.clone())
    };
    let text = "pipeline: x\nparams: { dir: d, file: a.csv }\nstages:\n  \
                rows: { uses: rows, with: { path: \"${params.dir}/x/${params.file}\" } }\n";
    // What the stage sees is not in its configuration: a kind that says where its path resolves to.
    static SEEN: std::sync::Mutex<Vec<Place>> = std::sync::Mutex::new(Vec::new());
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Seen {
        path: Location,
    }
    impl Stage for Seen {
        const KIND: &'static str = "rows";
        const VERSION: u32 = 1;
        const LANE: Lane = Lane::Cpu;
        const ABOUT: &'static str = "";
        const EXAMPLE: &'static str = "";
        const INPUTS: &'static [Port] = &[];
        fn outputs(&self) -> Vec<Output> {
            SEEN.lock().unwrap().push(self.path.resolve());
            Vec::new()
        }
        fn run(&self, _: &Context<'_>) -> Result<(), StageError> {
            Ok(())
        }
    }
    static SEEING: &[Kind] = &[Kind::of::<Seen>()];
    for (set, expected) in [
        (vec![], "/where/it/stands/d/x/a.csv"),
        (vec!["dir=e"], "/where/it/runs/e/x/a.csv"),
        (vec!["file=b.csv"], "/where/it/stands/d/x/b.csv"),
    ] {
        let text = Source { name: "x.yaml".into(), text: text.into() };
        let path = Path::new("/where/it/stands/x.yaml");
        let manifest = load_source(path, text, &overrides(&[], &set), SEEING).unwrap();
        assert_eq!(source(&manifest).1, Path::new("/where/it/stands"));
        assert_eq!(SEEN.lock().unwrap().pop(), Some(Place::Missing(expected.into())));
    }
}

#[test]
fn what_a_stage_that_is_off_feeds_is_off_unless_it_can_do_without() {
    let text = GOOD.replace("timeout: 15m", "when: false");
    let manifest = good(&text, &overrides(&[], &["push=true"]));
    assert_eq!(stage(&manifest, "prompt").on, On::Off("`when` is false".into()));
    assert_eq!(stage(&manifest, "share").on, On::Off("`prompt` is off".into()));
    let scores = stage(&manifest, "scores");
    assert_eq!(scores.on, On::On);
    let ports: Vec<&str> = scores.inputs.iter().map(|e| e.port.as_str()).collect();
    assert_eq!(ports, ["dataset"]);
}

#[test]
fn a_value_of_the_environment_is_nowhere_but_in_the_stage() {
    let text = "pipeline: x\nparams: { key: \"${env.TOKEN}\" }\nstages:\n  \
                rows: { uses: rows, with: { path: a.csv } }\n  \
                share: { uses: share, inputs: { files: rows }, with: { repo: a/b, token: \"Bearer ${params.key}\" } }\n";
    let manifest = good(text, &overrides(&[], &[]));
    let share = stage(&manifest, "share");
    assert_eq!(share.config["token"], "Bearer ${env.TOKEN}");
    assert_eq!(share.stage.canonical()["token"], "Bearer s3cret");
    assert_eq!(manifest.params["key"], "${env.TOKEN}");
    assert_eq!(manifest.secrets.hide("s3cret"), "***");

    let wrong = text.replace("repo: a/b", "repo: \"${env.TOKEN}\"");
    let shown = load_text(&wrong, &overrides(&[], &[])).err().unwrap().to_string();
    assert!(shown.contains("`***` is not `owner/name`") && !shown.contains("s3cret"), "{shown}");
}

#[test]
fn a_matrix_makes_an_instance_a_combination_and_takes_along_what_follows() {
    let text = "pipeline: x\nstages:\n  \
        rows: { uses: rows, with: { path: a.csv } }\n  \
        tokens: { uses: tokenise, inputs: { dataset: rows }, with: { tokenizer: a/b, max_length: \"${matrix.len}\" }, matrix: { len: [32, 64] } }\n  \
        prompt: { uses: train, inputs: { dataset: tokens }, with: { model: \"${matrix.model}\" }, matrix: { model: [a/b, c/d] } }\n  \
        scores: { uses: score, inputs: { dataset: tokens, adapter: prompt } }\n";
    let manifest = good(text, &overrides(&[], &[]));
    let ids: Vec<&str> = manifest.stages.iter().map(|s| s.id.as_str()).collect();
    assert_eq!(
        ids,
        [
            "rows",
            "tokens[len=32]",
            "tokens[len=64]",
            "prompt[len=32,model=a-b]",
            "prompt[len=32,model=c-d]",
            "prompt[len=64,model=a-b]",
            "prompt[len=64,model=c-d]",
            "scores[len=32,model=a-b]",
            "scores[len=32,model=c-d]",
            "scores[len=64,model=a-b]",
            "scores[len=64,model=c-d]",
        ]
    );
    let scores = stage(&manifest, "scores[len=64,model=c-d]");
    let from: Vec<&str> = scores.inputs.iter().map(|e| e.from.as_str()).collect();
    assert_eq!(from, ["tokens[len=64]", "prompt[len=64,model=c-d]"]);
    assert_eq!(scores.config["model"], "c/d");
    assert_eq!(scores.id.base(), "scores");
    assert_eq!(stage(&manifest, "tokens[len=64]").config["max_length"], 64);
}

/// Every wrong manifest of `tests/manifests` with what is shown for it, to the letter. A first line
/// `# --set a=b --profile c` gives the call's arguments. `PIPE_BLESS=1` writes what is shown now.
#[test]
fn wrong_manifests_are_shown_as_expected() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests");
    let mut wrong = Vec::new();
    let mut count = 0;
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    for path in paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "yaml")) {
        count += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        let arguments = text.lines().next().and_then(|line| line.strip_prefix("# --")).unwrap_or_default();
        let (mut profiles, mut set) = (Vec::new(), Vec::new());
        for argument in arguments.split(" --").flat_map(|a| a.trim_start_matches("--").split_once(' ')) {
            match argument {
                ("set", value) => set.push(value),
                ("profile", name) => profiles.push(name),
                other => panic!("{}: {other:?}", path.display()),
            }
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let source = Source { name, text: text.clone() };
        let shown = match load_source(&path, source.clone(), &overrides(&profiles, &set), KINDS) {
            Ok(manifest) => diagnostic::render(&source, &manifest.warnings, &manifest.secrets, false),
            Err(faults) => faults.to_string(),
        };
        let shown = format!("{shown}\n");
        let expected = path.with_extension("err");
        if std::env::var_os("PIPE_BLESS").is_some() {
            std::fs::write(&expected, &shown).unwrap();
        }
        if std::fs::read_to_string(&expected).ok().as_deref() != Some(&shown) {
            wrong.push(format!("{}:\n{shown}", source.name));
        }
    }
    assert!(wrong.is_empty(), "not as expected:\n{}", wrong.join("\n"));
    assert!(count >= 20, "only {count} wrong manifests");
}

#[test]
fn files_that_are_no_manifest_are_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let first_line = |name: &str| {
        let faults = load(&dir.path().join(name), &overrides(&[], &[]), KINDS).err().unwrap();
        let text = faults.to_string().replace(&dir.path().display().to_string(), "DIR");
        text.lines().next().unwrap().to_string()
    };
    assert_eq!(
        first_line("none.yaml"),
        "error: can't read `DIR/none.yaml`: No such file or directory (os error 2)"
    );
    assert_eq!(first_line(""), "error: `DIR/` is a folder; a manifest is a YAML file");
    std::fs::write(dir.path().join("large.yaml"), vec![b' '; (1 << 20) + 1]).unwrap();
    assert_eq!(
        first_line("large.yaml"),
        "error: `DIR/large.yaml` has 1048577 bytes; a manifest has at most 1048576"
    );
    std::fs::write(dir.path().join("latin.yaml"), b"pipeline: caf\xe9\n").unwrap();
    assert_eq!(first_line("latin.yaml"), "error: the file is not UTF-8 text");
    std::fs::write(dir.path().join("bom.yaml"), format!("\u{feff}{}", GOOD.replace('\n', "\r\n"))).unwrap();
    let manifest = load(&dir.path().join("bom.yaml"), &overrides(&[], &[]), KINDS).unwrap();
    assert_eq!(manifest.stages.len(), 5);
}

/// Texts made to cost time or stack: each is refused at once.
#[test]
fn bombs_are_refused_fast() {
    let aliases = {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let row = vec![format!("*a{}", level - 1); 9].join(", ");
            text += &format!("a{level}: &a{level} [{row}]\n");
        }
        text
    };
    let head = "pipeline: x\nstages: { a: { uses: rows, with: { path: \"${params.p0}\" } } }\nparams:\n";
    let doubling: String =
        (0..60).map(|i| format!("  p{i}: \"${{params.p{}}}${{params.p{0}}}\"\n", i + 1)).collect();
    let lists: String =
        (0..60).map(|i| format!("  p{i}: [\"${{params.p{}}}\", \"${{params.p{0}}}\"]\n", i + 1)).collect();
    let chain: String = (0..20_000).map(|i| format!("  p{i}: \"${{params.p{}}}\"\n", i + 1)).collect();
    let axes: String = (0..40).map(|i| format!("a{i}: [1, 2, 3, 4], ")).collect();
    let bombs = [
        "[".repeat(500_000),
        "{a: ".repeat(200_000),
        (0..2000).map(|i| format!("{}a:\n", " ".repeat(i))).collect(),
        "- ".repeat(300_000),
        aliases,
        format!("{head}{doubling}  p60: xx\n"),
        format!("{head}{lists}  p60: xx\n"),
        format!("{head}{chain}  p20000: xx\n"),
        format!("pipeline: x\nstages: {{ a: {{ uses: rows, with: {{ path: a }}, matrix: {{ {axes} }} }} }}"),
        "x".repeat(1 << 20),
        "${".repeat(1 << 19),
        "&a [*a]".into(),
        "\0\u{1}\u{2}".into(),
        "? ".repeat(100_000),
        "!!".repeat(100_000),
        (0..100_000).map(|i| format!("k{i}: v\n")).collect(),
        (0..9_000).map(|i| format!("k{i}: v\n")).collect(),
    ];
    for (number, bomb) in bombs.into_iter().enumerate() {
        let start = Instant::now();
        let faults = load_text(&bomb, &overrides(&[], &[])).err();
        let shown = faults.expect("a bomb is refused").to_string();
        let seconds = start.elapsed().as_secs_f64();
        let what: String = bomb.chars().take(40).collect();
        assert!(shown.starts_with("error"), "{what:?}: {shown}");
        assert!(seconds < 2.0, "{number}: {what:?} took {seconds} s");
    }
}

/// Whatever a file is cut to or changed to, it is read or refused, never a panic and never for long.
#[test]
fn damaged_manifests_never_panic() {
    let start = Instant::now();
    let all = overrides(&["small"], &["epochs=3"]);
    for end in (0..GOOD.len()).filter(|end| GOOD.is_char_boundary(*end)) {
        let _ = load_text(&GOOD[..end], &all).map_err(|faults| faults.to_string());
    }
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    const ODD: &[&str] = &[
        "\u{feff}", "물", "\r", "\t", "*a", "&a", "<<: ", "${", "}", "[", "{", ": ", "- ", "|\n", "!!x ",
        "\"", "#", "\0", "---\n", "%",
    ];
    for _ in 0..3000 {
        let mut bytes = GOOD.as_bytes().to_vec();
        for _ in 0..1 + random(6) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = random(256) as u8,
                1 => drop(bytes.remove(at)),
                2 => drop(bytes.splice(at..at, ODD[random(ODD.len())].bytes())),
                _ => {
                    let (from, length) = (random(bytes.len()), random(40));
                    let piece = bytes[from..(from + length).min(bytes.len())].to_vec();
                    drop(bytes.splice(at..at, piece));
                }
            }
        }
        let _ = load_text(&String::from_utf8_lossy(&bytes), &all).map_err(|faults| faults.render(true));
    }
    assert!(start.elapsed().as_secs() < 60, "took {:?}", start.elapsed());
}

/// A variable that a stage that is off does without is missed in one that is on.
#[test]
fn an_unset_variable_matters_only_where_it_is_used() {
    let text = "pipeline: x\nparams: { key: \"${env.UNSET}\" }\nstages:\n  \
        rows: { uses: rows, with: { path: a.csv } }\n  \
        off: { uses: share, inputs: { files: rows }, with: { repo: a/b, token: \"${params.key}\" }, when: false }\n";
    let manifest = good(text, &overrides(&[], &[]));
    assert_eq!(manifest.params["key"], "${env.UNSET}");

    let on =
        "  on: { uses: share, inputs: { files: rows }, with: { repo: a/b, token: \"${params.key}\" } }\n";
    let faults = load_text(&format!("{text}{on}"), &overrides(&[], &[])).err().unwrap();
    assert_eq!(faults.errors(), 1);
    assert_eq!(faults.list[0].message, "the environment variable `UNSET` is not set");
}

/// What the repository offers is without fault or warning, with every profile.
#[test]
fn the_pipelines_of_the_repository_are_well() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let manifests: Vec<PathBuf> = entries.filter(|p| p.extension().is_some_and(|e| e == "yaml")).collect();
    assert!(!manifests.is_empty());
    for path in manifests {
        let text = std::fs::read_to_string(&path).unwrap();
        let root = yaml::parse(&text, &std::sync::Arc::new(PathBuf::new()), &mut Vec::new()).unwrap();
        let profiles = root.get("profiles").map(|profiles| profiles.to_json());
        let names = profiles.iter().filter_map(|p| p.as_object()).flat_map(|p| p.keys());
        for profiles in std::iter::once(vec![]).chain(names.map(|name| vec![name.as_str()])) {
            match load(&path, &overrides(&profiles, &[]), crate::stages::KINDS) {
                Ok(manifest) => assert!(
                    manifest.warnings.is_empty(),
                    "{}",
                    diagnostic::render(&manifest.source, &manifest.warnings, &manifest.secrets, false)
                ),
                Err(faults) => panic!("{profiles:?}\n{faults}"),
            }
        }
    }
}
