//! Models, datasets and adapters by their names on the Hub: pinned, fetched, kept, refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod hub;
mod project;

use std::path::{Path, PathBuf};
use std::process::Command;

use hub::repos::Kind;
use hub::{Host, Options, Server};
use project::{Project, Ran, Summary, tiny_model};

const TOKEN: &str = "hf_aSecretThatNobodyMaySee";
const GUIDE: &str = "pipelines/twitter_prompt_tuning.yaml";

/// ought/raft as it is on the Hub (a loading script, its rows converted to parquet) and a small BLOOM.
fn server() -> Server {
    let server = Server::start(Options::default());
    let card = b"---\nlicense: other\n---\n# RAFT\n";
    server.add(
        Kind::Dataset,
        "ought/raft",
        "main",
        &[("raft.py", b"import datasets\n"), ("README.md", card)],
    );
    let rows = std::fs::read(from_root("tests/data/raft/0000.parquet")).unwrap();
    let path = "twitter_complaints/train/0000.parquet";
    server.add(Kind::Dataset, "ought/raft", "refs/convert/parquet", &[(path, &rows)]);
    server.add_folder(Kind::Model, "tester/bloom", "main", &tiny_model());
    server
}

fn from_root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A project with the guide's pipeline as the repository has it.
fn guide() -> Project {
    let project = Project::new();
    project.write(GUIDE, &std::fs::read_to_string(from_root(GUIDE)).unwrap());
    project
}

/// A project that tokenizes two rows with a tokenizer of the Hub.
fn tokenizing() -> Project {
    let project = Project::new();
    project.write("data.csv", "text\nit is bad\nthank you\n");
    project.write("p.yaml", TOKENIZING);
    project
}

const TOKENIZING: &str = r#"pipeline: p
stages:
  rows:
    uses: load_dataset
    with: { path: data.csv }
  tokens:
    uses: tokenize
    inputs: { dataset: rows }
    with: { tokenizer: tester/bloom, text: "{text}" }
"#;

/// The binary in a project, with its own Hugging Face home.
fn command(project: &Project, server: &Server, arguments: &[&str]) -> Command {
    let mut command = project.command(arguments);
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("HF_") || name.starts_with("HUGGING"))
    {
        command.env_remove(name);
    }
    command.env("HF_HOME", project.path("hf")).env("HF_ENDPOINT", &server.endpoint);
    command.env("HF_HUB_DOWNLOAD_TIMEOUT", "1").env("NO_PROXY", "127.0.0.1");
    command
}

fn pipe(project: &Project, server: &Server, arguments: &[&str]) -> Ran {
    command(project, server, arguments).output().unwrap().into()
}

fn run(project: &Project, server: &Server, code: i32, arguments: &[&str]) -> Ran {
    let ran = pipe(project, server, &[&["run"], arguments].concat());
    assert_eq!(ran.code, Some(code), "{}\n{}", ran.stdout, ran.stderr);
    ran
}

fn summary(project: &Project, server: &Server, arguments: &[&str]) -> Summary {
    Summary::of(&run(project, server, 0, &[arguments, &["--json"]].concat()).stdout)
}

/// Every content in the cache of the Hub, which has to be what its name says.
fn blobs(project: &Project) -> Vec<String> {
    let mut names = Vec::new();
    for (path, ..) in project.files("hf") {
        let folder = path.parent().unwrap().file_name().unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if folder != "blobs" || name.ends_with(".incomplete") {
            continue;
        }
        let content = std::fs::read(&path).unwrap();
        let digest = match name.len() {
            64 => hub::repos::sha256(&content),
            _ => hub::repos::blob_oid(&content),
        };
        assert_eq!(digest, name, "{}", path.display());
        names.push(name);
    }
    names
}

const GUIDE_ON_TINY: &[&str] =
    &[GUIDE, "--set", "model=tester/bloom", "--set", "epochs=1", "--set", "learning_rate=0.01"];

#[test]
fn the_guide_runs_from_the_hub_and_again_without_it() {
    let (project, server) = (guide(), server());
    let first = summary(&project, &server, GUIDE_ON_TINY);
    assert_eq!(first.stage("tweets")["metrics"]["rows.train"], 12.0);
    let adapter = project.adapter();
    let lock = project.read("pipelines/twitter_prompt_tuning.lock");
    let commit = |kind, id, branch| server.head(kind, id, branch);
    for text in [
        "name: ought/raft".to_owned(),
        "branch: refs/convert/parquet".to_owned(),
        commit(Kind::Dataset, "ought/raft", "refs/convert/parquet"),
        "- twitter_complaints/train/0000.parquet".to_owned(),
        "name: tester/bloom".to_owned(),
        commit(Kind::Model, "tester/bloom", "main"),
    ] {
        assert!(lock.contains(&text), "{text} is not in\n{lock}");
    }
    // What no stage reads was not fetched.
    assert_eq!(server.count("GET", "raft.py"), 0);
    blobs(&project);

    let endpoint = server.endpoint.clone();
    drop(server);
    let gone = Server::start(Options::default());
    let mut command = command(&project, &gone, &[&["run"], GUIDE_ON_TINY, &["--json"]].concat());
    let again: Ran = command.env("HF_ENDPOINT", &endpoint).output().unwrap().into();
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(Summary::of(&again.stdout).with_status("ran").is_empty());

    std::fs::remove_dir_all(project.path(".pipe")).unwrap();
    let mut command = self::command(&project, &gone, &[&["run"], GUIDE_ON_TINY, &["--json"]].concat());
    let anew: Ran = command.env("HF_ENDPOINT", &endpoint).output().unwrap().into();
    assert_eq!(anew.code, Some(0), "{}", anew.stderr);
    assert_eq!(project.adapter(), adapter);
    assert_eq!(project.read("pipelines/twitter_prompt_tuning.lock"), lock);
}

#[test]
fn offline_with_an_empty_cache_says_what_is_missing() {
    let (project, server) = (tokenizing(), server());
    let ran = run(&project, &server, 2, &["p.yaml", "--offline"]);
    assert_eq!(
        ran.stderr,
        "\
error: model tester/bloom at revision `main` is not on this machine, and pipe is offline
 --> p.yaml:9:24
  |
9 |     with: { tokenizer: tester/bloom, text: \"{text}\" }
  |                        ^^^^^^^^^^^^
  |
  = help: run once without --offline (and without HF_HUB_OFFLINE) where there is a network; the files stay in the cache
"
    );
    assert!(server.requests().is_empty());
    assert!(!project.path("p.lock").exists());

    // With the lock but without the files it is known what they are.
    run(&project, &server, 0, &["p.yaml"]);
    std::fs::remove_dir_all(project.path("hf")).unwrap();
    std::fs::remove_dir_all(project.path(".pipe")).unwrap();
    let mut offline = command(&project, &server, &["run", "p.yaml"]);
    let ran: Ran = offline.env("HF_HUB_OFFLINE", "1").output().unwrap().into();
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let commit = &server.head(Kind::Model, "tester/bloom", "main")[..8];
    let expected = format!("of model tester/bloom at {commit} (");
    assert!(ran.stderr.contains(&expected), "{}", ran.stderr);
    assert!(ran.stderr.contains("is not on this machine, and pipe is offline"), "{}", ran.stderr);
}

#[test]
fn what_python_would_find_in_the_cache_is_found_offline_without_a_lock() {
    let (project, server) = (tokenizing(), server());
    run(&project, &server, 0, &["p.yaml"]);
    std::fs::remove_file(project.path("p.lock")).unwrap();
    std::fs::remove_dir_all(project.path(".pipe")).unwrap();
    server.forget_requests();
    run(&project, &server, 0, &["p.yaml", "--offline"]);
    assert!(server.requests().is_empty());
    let root = project.path("hf/hub/models--tester--bloom");
    let head = std::fs::read_to_string(root.join("refs/main")).unwrap();
    assert_eq!(head, server.head(Kind::Model, "tester/bloom", "main"));
    let link = std::fs::read_link(root.join("snapshots").join(head).join("tokenizer.json")).unwrap();
    assert!(link.starts_with("../../blobs"), "{link:?}");
}

#[test]
fn the_lock_holds_until_it_is_moved() {
    let (project, server) = (tokenizing(), server());
    let refused = run(&project, &server, 2, &["p.yaml", "--locked"]);
    assert_eq!(
        refused.stderr,
        format!(
            "\
error: model tester/bloom (tokenizer, revision `main`) is not in p.lock, and pipe is to hold to the lock
 --> p.yaml:9:24
  |
9 |     with: {{ tokenizer: tester/bloom, text: \"{{text}}\" }}
  |                        ^^^^^^^^^^^^
  |
  = help: run once without --locked and keep the lock under version control
"
        )
    );
    let first = run(&project, &server, 0, &["p.yaml"]);
    let old = server.head(Kind::Model, "tester/bloom", "main");
    assert!(
        first.stderr.contains(&format!("model tester/bloom is pinned to {}", &old[..8])),
        "{}",
        first.stderr
    );
    let lock = project.read("p.lock");

    // The branch moves on; a pinned pipeline does not.
    let config = std::fs::read_to_string(tiny_model().join("tokenizer_config.json")).unwrap();
    let config = config.replacen('{', "{ \"moved\": true,", 1);
    server.add(Kind::Model, "tester/bloom", "main", &[("tokenizer_config.json", config.as_bytes())]);
    let new = server.head(Kind::Model, "tester/bloom", "main");
    server.forget_requests();
    let again = summary(&project, &server, &["p.yaml", "--locked"]);
    assert!(again.with_status("ran").is_empty());
    assert!(server.requests().is_empty());

    let plan = pipe(&project, &server, &["plan", "p.yaml", "--update"]);
    assert!(
        plan.stdout.contains("run     tokens  tokenize      the content of `tokenizer` changed"),
        "{}",
        plan.stdout
    );
    assert_eq!(project.read("p.lock"), lock);
    let moved = run(&project, &server, 0, &["p.yaml", "--update"]);
    let line = format!("model tester/bloom moves from {} to {}", &old[..8], &new[..8]);
    assert!(moved.stderr.contains(&line), "{}", moved.stderr);
    assert!(project.read("p.lock").contains(&new));
}

#[test]
fn a_revision_is_a_branch_a_tag_or_a_commit() {
    let (project, server) = (tokenizing(), server());
    let old = server.head(Kind::Model, "tester/bloom", "main");
    server.add(Kind::Model, "tester/bloom", "main", &[("tokenizer.json", b"{}")]);
    project.edit("p.yaml", "tester/bloom,", &format!("tester/bloom, revision: {old},"));
    run(&project, &server, 0, &["p.yaml"]);
    project.edit("p.yaml", &old, "no-such-branch");
    let ran = run(&project, &server, 2, &["p.yaml"]);
    let expected = format!(
        "error: revision `no-such-branch` of model tester/bloom is not on {}\n --> p.yaml:9:24",
        server.endpoint
    );
    assert!(ran.stderr.starts_with(&expected), "{}", ran.stderr);
}

#[test]
fn a_name_that_is_not_there_costs_no_work() {
    let (project, server) = (tokenizing(), server());
    project.edit("p.yaml", "tester/bloom", "tester/blom");
    let ran = run(&project, &server, 2, &["p.yaml"]);
    assert_eq!(
        ran.stderr,
        format!(
            "\
error: model tester/blom is not on {}
 --> p.yaml:9:24
  |
9 |     with: {{ tokenizer: tester/blom, text: \"{{text}}\" }}
  |                        ^^^^^^^^^^^
  |
  = help: check the name and the revision; if the repository is private, set HF_TOKEN, or write the token to the file `token` in HF_HOME
",
            server.endpoint
        )
    );
    assert!(!project.path(".pipe/runs").exists());
}

#[test]
fn pickled_weights_are_refused_before_anything_runs() {
    let (project, server) = (guide(), server());
    server.add(Kind::Model, "tester/old", "main", &[("config.json", b"{}"), ("pytorch_model.bin", b"x")]);
    let ran = run(&project, &server, 2, &[GUIDE, "--set", "model=tester/old"]);
    let reason = "error: tester/old: its weights are only there as pytorch_model.bin, a pickle, which can run any code \
                  when it is read";
    assert!(ran.stderr.contains(reason), "{}", ran.stderr);
}

#[test]
fn an_answer_that_next_to_never_ends_is_given_up() {
    let (project, server) = (tokenizing(), server());
    server.fault("GET *tokenizer.json trickle=10");
    let mut command = command(&project, &server, &["run", "p.yaml"]);
    let start = std::time::Instant::now();
    let ran: Ran = command.env("HF_HUB_DOWNLOAD_TIMEOUT", "0.2").output().unwrap().into();
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("next to nothing comes ("), "{}", ran.stderr);
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

#[test]
fn a_model_of_absurd_sizes_is_refused() {
    for (config, expected) in [
        (("\"n_layer\": 2", "\"n_layer\": 1000000"), "tensor `transformer.h.2."),
        (
            ("\"hidden_size\": 24", "\"hidden_size\": 3298534883328"),
            "`hidden_size` is 3298534883328, more than any model has",
        ),
        (
            ("\"vocab_size\": 80", "\"vocab_size\": 2000000000"),
            "has shape [80, 24], the configuration needs [2000000000, 24]",
        ),
    ] {
        let (project, server) = (guide(), server());
        let text = std::fs::read_to_string(tiny_model().join("config.json")).unwrap();
        assert!(text.contains(config.0), "{}", config.0);
        let text = text.replace(config.0, config.1);
        server.add(Kind::Model, "tester/bloom", "main", &[("config.json", text.as_bytes())]);
        let ran = run(&project, &server, 1, GUIDE_ON_TINY);
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    }
    // A header that is longer than the file.
    let (project, server) = (guide(), server());
    let mut weights = std::fs::read(tiny_model().join("model.safetensors")).unwrap();
    weights[7] = 16;
    server.add(Kind::Model, "tester/bloom", "main", &[("model.safetensors", &weights)]);
    let ran = run(&project, &server, 1, GUIDE_ON_TINY);
    assert!(ran.stderr.contains("model.safetensors: damaged or cut off: header too large"), "{}", ran.stderr);
}

/// A broken answer once or twice, after which all is well.
#[test]
fn what_a_retry_can_mend_is_mended() {
    for fault in [
        "GET *tokenizer.json cut=0.3 x2",
        "GET *tokenizer.json drop x1",
        "GET *tokenizer.json stall=0.5 x1",
        "GET */revision/* 429=1 x2",
        "GET */tree/* 503 x2",
        "GET *tokenizer.json 429=1 x1",
        "GET */tree/* cut=0.5 x1",
        "GET */revision/* silent x1",
    ] {
        let (project, server) = (tokenizing(), server());
        server.fault(fault);
        run(&project, &server, 0, &["p.yaml"]);
        assert!(!blobs(&project).is_empty(), "{fault}");
    }
}

#[test]
fn a_broken_download_goes_on_where_it_was() {
    let (project, server) = (tokenizing(), server());
    server.fault("GET *tokenizer.json cut=0.3");
    let ran = run(&project, &server, 1, &["p.yaml"]);
    assert!(
        ran.stderr.contains("can't be reached for tokenizer.json of model tester/bloom: "),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("what has come so far is kept and gone on with"), "{}", ran.stderr);
    let size = std::fs::metadata(tiny_model().join("tokenizer.json")).unwrap().len();
    let kept =
        project.files("hf").into_iter().find(|(path, ..)| path.to_string_lossy().ends_with(".incomplete"));
    let (_, kept, _) = kept.expect("what came is kept");
    assert!(kept > size * 3 / 10 && kept < size, "{kept} of {size}");
    server.mend();
    server.forget_requests();
    run(&project, &server, 0, &["p.yaml"]);
    let range = format!("bytes={kept}-");
    assert!(server.requests().iter().any(|r| r.mentions(&range)), "{range}: {:#?}", server.requests());
    blobs(&project);

    // A server that does not know ranges costs the beginning, not the file.
    let (project, server) = (tokenizing(), self::server());
    server.fault("GET *tokenizer.json no-range").fault("GET *tokenizer.json cut=0.6 x1");
    run(&project, &server, 0, &["p.yaml"]);
    blobs(&project);
}

#[test]
fn what_no_retry_can_mend_is_an_error_and_leaves_the_cache_whole() {
    for (fault, code, expected) in [
        (
            "GET */revision/* 401",
            2,
            "refuses model tester/bloom: 401 Unauthorized, the server was told to say so",
        ),
        (
            "GET */revision/* 403",
            2,
            "refuses model tester/bloom: 403 Forbidden, the server was told to say so",
        ),
        ("GET */tree/* 404", 2, "the files of model tester/bloom is not on "),
        (
            "GET *tokenizer.json corrupt",
            1,
            "tokenizer.json of tester/bloom came with other content than its digest says",
        ),
        ("GET *tokenizer.json endless", 1, "more comes than the "),
        ("GET *tokenizer.json loop", 1, "more than 10 redirects, one after the other"),
        ("GET */revision/* loop", 2, "more than 10 redirects, one after the other"),
        ("GET */tree/* endless-json", 2, "it is longer than 16 MB"),
        ("GET */tree/* hostile-names", 2, "which leaves the folder it is put into"),
        ("GET */tree/* absurd-sizes", 2, "is said to have 1152921.5 TB"),
        ("GET */revision/* drop", 2, "can't be reached for model tester/bloom: "),
    ] {
        let (project, server) = (tokenizing(), server());
        server.fault(fault);
        let ran = run(&project, &server, code, &["p.yaml"]);
        assert!(ran.stderr.contains(expected), "{fault}: {}", ran.stderr);
        blobs(&project);
        for (path, ..) in project.files("") {
            assert!(!path.to_string_lossy().contains("outside"), "{fault}: {}", path.display());
        }
        server.mend();
        run(&project, &server, 0, &["p.yaml"]);
        blobs(&project);
    }
    assert!(!Path::new("/tmp/outside.json").exists());
}

#[test]
fn the_token_goes_to_its_endpoint_and_nowhere_else() {
    let server = Server::start(Options { token: Some(TOKEN.into()), ..Options::default() });
    server.add_folder(Kind::Model, "tester/bloom", "main", &tiny_model());
    server.with_repo(Kind::Model, "tester/bloom", |repo| repo.private = true);
    let project = tokenizing();
    let ran = run(&project, &server, 2, &["p.yaml"]);
    assert!(ran.stderr.contains("if the repository is private, set HF_TOKEN"), "{}", ran.stderr);

    project.edit("p.yaml", "rows:", "model:\n    uses: fine_tune\n    inputs: { dataset: tokens }\n    with: { model: tester/bloom, max_steps: 1 }\n  rows:");
    let mut ran = command(&project, &server, &["run", "p.yaml", "--json"]);
    let ran: Ran = ran.env("HF_TOKEN", TOKEN).env("RUST_LOG", "trace").output().unwrap().into();
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let report = pipe(&project, &server, &["report", "latest", "-o", "report.html"]);
    assert_eq!(report.code, Some(0));
    let storage: Vec<_> = server.requests().into_iter().filter(|r| r.host == Host::Storage).collect();
    assert!(!storage.is_empty(), "weights come from the storage host");
    assert!(storage.iter().all(|r| !r.mentions(TOKEN) && !r.mentions("Bearer")));
    assert!(server.requests().iter().any(|r| r.host == Host::Endpoint && r.mentions(TOKEN)));
    assert!(!ran.stdout.contains(TOKEN) && !ran.stderr.contains(TOKEN));
    for (path, ..) in project.files("") {
        let Ok(content) = std::fs::read(&path) else { continue };
        let found = content.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes());
        assert!(!found, "{}", path.display());
    }
}

#[test]
fn an_adapter_of_the_hub_brings_its_model_along() {
    let (project, server) = (guide(), server());
    run(&project, &server, 0, GUIDE_ON_TINY);
    let folder = project.path(".pipe/runs/latest/stages/prompt");
    let name = "stevhliu/bloomz-560m_PROMPT_TUNING_CAUSAL_LM";
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let content = std::fs::read(folder.join(file)).unwrap();
        server.add(Kind::Model, name, "main", &[(file, &content)]);
    }
    let made = project.read(".pipe/runs/latest/stages/answers/generations.jsonl");

    let other = Project::new();
    let manifest = "pipelines/generate_from_hub.yaml";
    other.write(manifest, &std::fs::read_to_string(from_root(manifest)).unwrap());
    run(&other, &server, 0, &[manifest]);
    assert_eq!(other.read(".pipe/runs/latest/stages/answers/generations.jsonl"), made);
    let lock = other.read("pipelines/generate_from_hub.lock");
    assert!(lock.contains(&format!("name: {name}")) && lock.contains("name: tester/bloom"), "{lock}");
}

/// A tokenizer of a megabyte.
fn large_tokenizer(server: &Server) {
    let mut tokenizer = std::fs::read(tiny_model().join("tokenizer.json")).unwrap();
    tokenizer.resize(1_000_000, b' ');
    server.add(Kind::Model, "tester/bloom", "main", &[("tokenizer.json", &tokenizer)]);
}

#[test]
fn a_disk_that_is_full_is_said_to_be() {
    let (project, server) = (tokenizing(), server());
    large_tokenizer(&server);
    let home = project.path("hf");
    std::fs::create_dir(&home).unwrap();
    // A file system of its own, as nobody but root may mount one, in namespaces of its own.
    let script = format!("mount -t tmpfs -o size=64k tmpfs {0} && exec \"$@\"", home.display());
    let mut shell = Command::new("unshare");
    shell.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"]);
    shell.arg(env!("CARGO_BIN_EXE_pipe")).args(["run", "p.yaml"]).current_dir(project.path(""));
    shell.env("HF_HOME", &home).env("HF_ENDPOINT", &server.endpoint).env("NO_COLOR", "1");
    let ran = shell.output().map(Ran::from);
    let Some(ran) = ran.ok().filter(|ran| !ran.stderr.contains("unshare") && !ran.stderr.contains("mount:"))
    else {
        println!("skipped: no file system can be mounted here");
        return;
    };
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("1.0 MB would come, and "), "{}", ran.stderr);
    assert!(ran.stderr.contains("make room, or move the cache with HF_HUB_CACHE"), "{}", ran.stderr);
}

#[test]
fn a_disk_that_fills_up_on_the_way_keeps_what_came() {
    let (project, server) = (tokenizing(), server());
    large_tokenizer(&server);
    // No file may grow beyond 200 blocks of 512 bytes; the signal that says so is ignored, the error is not.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$@\"", "sh"]);
    shell.arg(env!("CARGO_BIN_EXE_pipe")).args(["run", "p.yaml"]).current_dir(project.path(""));
    shell.env("HF_HOME", project.path("hf")).env("HF_ENDPOINT", &server.endpoint).env("NO_COLOR", "1");
    let ran: Ran = shell.output().unwrap().into();
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains(".incomplete: File too large"), "{}", ran.stderr);
    assert!(ran.stderr.contains("make room, or move the cache with HF_HUB_CACHE"), "{}", ran.stderr);
    server.forget_requests();
    run(&project, &server, 0, &["p.yaml"]);
    assert!(server.requests().iter().any(|r| r.mentions("bytes=102400-")), "{:#?}", server.requests());
    blobs(&project);
}

/// A file in the cache of the Hub with another letter in it; its size and time stay.
fn damage(project: &Project, what: &str) -> PathBuf {
    let files = project.files("hf").into_iter().map(|(path, ..)| path);
    let mut snapshots = files.filter(|path| path.ends_with(what) && path.is_file());
    let path = snapshots.next().unwrap();
    let blob = path.canonicalize().unwrap();
    let time = std::fs::metadata(&blob).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&blob).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    std::fs::File::options().write(true).open(&blob).unwrap().set_modified(time).unwrap();
    path
}

#[test]
fn a_file_that_was_damaged_since_it_came_is_not_computed_from() {
    let (project, server) = (tokenizing(), server());
    run(&project, &server, 0, &["p.yaml"]);
    // Nothing is asked again as long as nothing was touched.
    let before = server.count("GET", "tokenizer.json");
    run(&project, &server, 0, &["p.yaml", "--force=tokens"]);
    assert_eq!(server.count("GET", "tokenizer.json"), before);

    let path = damage(&project, "tokenizer.json");
    let ran = run(&project, &server, 1, &["p.yaml", "--force=tokens", "--offline"]);
    let expected = format!(
        "error: stage `tokens` failed\n  {} of tester/bloom has other content than its digest says, and pipe is \
         offline\n  help: run once without --offline (and without HF_HUB_OFFLINE): it comes anew\n",
        path.display()
    );
    assert!(ran.stderr.contains(&expected), "{}\n{expected}", ran.stderr);
    run(&project, &server, 0, &["p.yaml", "--force=tokens"]);
    assert_eq!(server.count("GET", "tokenizer.json"), 2 * before, "it came anew");
    blobs(&project);
}
