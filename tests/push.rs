//! What goes to the Hub, and what becomes of a push when the Hub fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod hub;
mod project;

use std::process::Command;
use std::time::{Duration, Instant};

use hub::repos::Kind;
use hub::{Host, Options, Server};
use project::{Project, Ran, Summary};
use serde_json::Value;

const TOKEN: &str = "hf_planted0123456789";
const REPO: &str = "ada/tweets";

/// The tweets' pipeline with a stage that pushes, and these keys beside its repository.
fn sharing(keys: &str) -> Project {
    let project = Project::tweets();
    let share = format!(
        "  share:\n    uses: push_to_hub\n    inputs: {{ adapter: prompt, metrics: scores }}\n    with: {{ repo: \
         {REPO}{keys} }}\n"
    );
    project.write("tweets.yaml", &(project.read("tweets.yaml") + &share));
    project
}

/// `pipe run tweets.yaml`, with the token, against this Hub.
fn command(project: &Project, server: &Server, arguments: &[&str]) -> Command {
    let mut command = project.command(&[&["run", "tweets.yaml"], arguments].concat());
    command.env("HF_ENDPOINT", &server.endpoint).env("HF_TOKEN", TOKEN).env("HF_HOME", project.path("hf"));
    for name in ["HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_IMPLICIT_TOKEN"] {
        command.env_remove(name);
    }
    command
}

fn run(project: &Project, server: &Server, arguments: &[&str]) -> Ran {
    command(project, server, arguments).output().unwrap().into()
}

/// The same, which has to end well; the summary.
fn push(project: &Project, server: &Server, arguments: &[&str]) -> Summary {
    let ran = run(project, server, &[arguments, &["--json"]].concat());
    assert_eq!(ran.code, Some(0), "{}\n{}", ran.stdout, ran.stderr);
    Summary::of(&ran.stdout)
}

/// The same, which has to fail; what it says of the error.
fn refusal(mut command: Command) -> String {
    let ran: Ran = command.arg("--json").output().unwrap().into();
    assert_eq!(ran.code, Some(1), "{}\n{}", ran.stdout, ran.stderr);
    let summary = Summary::of(&ran.stdout);
    let stages = summary.0["stages"].as_array().unwrap();
    let error = stages.iter().map(|stage| &stage["error"]).find(|error| error.is_object()).unwrap();
    format!("{}\n{}", error["message"].as_str().unwrap(), error["help"].as_str().unwrap_or("no help"))
}

fn result(project: &Project, stage: &str, file: &str) -> Value {
    serde_json::from_str(&project.read(&format!(".pipe/runs/latest/stages/{stage}/{file}"))).unwrap()
}

fn pushed(server: &Server, branch: &str, path: &str) -> Option<Vec<u8>> {
    server.read(Kind::Model, REPO, branch, path)
}

fn commits(server: &Server) -> usize {
    server.count("POST", "/commit/")
}

#[test]
fn a_push_makes_the_repository_and_the_next_sends_only_what_changed() {
    let server = Server::start(Options::default());
    let project = sharing("");
    push(&project, &server, &[]);
    assert_eq!(pushed(&server, "main", "adapter_model.safetensors").unwrap(), project.adapter());
    let manifest = String::from_utf8(pushed(&server, "main", "pipe/manifest.yaml").unwrap()).unwrap();
    assert_eq!(manifest, project.read("tweets.yaml"));
    let card = String::from_utf8(pushed(&server, "main", "README.md").unwrap()).unwrap();
    for text in [
        "\nlibrary_name: peft\n",
        "\npipeline_tag: text-generation\n",
        "    - name: Accuracy\n",
        "pipe run tweets.yaml",
    ] {
        assert!(card.contains(text), "{text}\n{card}");
    }
    // The model is a folder of this machine: nobody finds it under that name on the Hub.
    assert!(!card.contains("base_model:"), "{card}");
    assert!(!server.with_repo(Kind::Model, REPO, |repo| repo.private));
    let first = server.head(Kind::Model, REPO, "main");
    let commit = result(&project, "share", "commit.json");
    assert_eq!(commit["commit"], first.as_str());
    assert_eq!(commit["url"], format!("{}/{REPO}/commit/{first}", server.endpoint));
    assert_eq!(commit["pull_request"], Value::Null);
    assert_eq!(
        commit["sent"],
        serde_json::json!([
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            "pipe/manifest.yaml"
        ])
    );

    // From the cache: the Hub is not asked.
    server.forget_requests();
    assert_eq!(push(&project, &server, &[]).stage("share")["status"], "cached");
    assert_eq!(server.requests().len(), 0);

    // Once more: it looks, and there is nothing to do.
    push(&project, &server, &["--force", "share"]);
    assert_eq!((commits(&server), server.head(Kind::Model, REPO, "main")), (0, first.clone()));
    let again = result(&project, "share", "commit.json");
    assert_eq!((&again["commit"], &again["sent"]), (&first.as_str().into(), &serde_json::json!([])));

    // Another adapter: its configuration is as it was.
    push(&project, &server, &["--set", "learning_rate=0.02"]);
    assert_eq!(commits(&server), 1);
    assert_eq!(pushed(&server, "main", "adapter_model.safetensors").unwrap(), project.adapter());
    let third = result(&project, "share", "commit.json");
    assert_eq!(third["sent"], serde_json::json!(["README.md", "adapter_model.safetensors"]));
    assert_eq!(third["unchanged"], serde_json::json!(["adapter_config.json", "pipe/manifest.yaml"]));
}

#[test]
fn a_push_goes_to_a_private_repository_a_branch_or_a_pull_request() {
    let server = Server::start(Options::default());
    let project = sharing(", private: true, branch: trials/one, message: One");
    push(&project, &server, &[]);
    assert!(server.with_repo(Kind::Model, REPO, |repo| repo.private));
    assert_eq!(pushed(&server, "trials/one", "adapter_model.safetensors").unwrap(), project.adapter());
    assert_eq!(pushed(&server, "main", "adapter_model.safetensors"), None);

    project.edit("tweets.yaml", ", branch: trials/one, message: One", ", pull_request: true");
    let before = server.head(Kind::Model, REPO, "main");
    push(&project, &server, &[]);
    assert_eq!(server.head(Kind::Model, REPO, "main"), before);
    assert_eq!(pushed(&server, "refs/pr/1", "adapter_model.safetensors").unwrap(), project.adapter());
    let commit = result(&project, "share", "commit.json");
    assert_eq!(
        commit["pull_request"],
        serde_json::json!({ "number": 1, "url": format!("{}/{REPO}/discussions/1", server.endpoint) })
    );

    // What is to be private does not go where all can see it.
    server.with_repo(Kind::Model, REPO, |repo| repo.private = false);
    let before = commits(&server);
    assert_eq!(
        refusal(command(&project, &server, &["--force", "share"])),
        "ada/tweets is there already and public; what is pushed is to be private\nmake ada/tweets private in its \
         settings on the Hub, push under another name, or take `private: true` away"
    );
    assert_eq!(commits(&server), before);
}

#[test]
fn a_model_goes_with_all_its_files() {
    let server = Server::start(Options::default());
    let project = Project::fine_tuning();
    let share = "  share:\n    uses: push_to_hub\n    inputs: { model: tuned, metrics: tuned, files: more }\n    with: { repo: \
                 ada/tweets, license: mit }\n";
    project.write("tweets.yaml", &(project.read("tweets.yaml") + share));
    push(&project, &server, &[]);
    let folder = project.path(".pipe/runs/latest/stages/tuned/model");
    let mut count = 0;
    for file in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = file.file_name().into_string().unwrap();
        assert_eq!(pushed(&server, "main", &name), Some(std::fs::read(file.path()).unwrap()), "{name}");
        count += 1;
    }
    assert!(count >= 3, "{count}");
    assert!(pushed(&server, "main", "generations.jsonl").is_some());
    let card = String::from_utf8(pushed(&server, "main", "README.md").unwrap()).unwrap();
    for text in ["\nlibrary_name: transformers\n", "\nlicense: mit\n", "\n| train\\_loss | ", "\n| 3 | "] {
        assert!(card.contains(text), "{text}\n{card}");
    }
}

#[test]
fn a_dry_run_says_what_would_go_and_leaves_no_commit() {
    let server = Server::start(Options::default());
    let project = sharing(", dry_run: true");
    let changes = |plan: &Value| -> Vec<String> {
        let files = plan["files"].as_array().unwrap();
        files
            .iter()
            .map(|f| format!("{} {}", f["path"].as_str().unwrap(), f["change"].as_str().unwrap()))
            .collect()
    };
    let ran = run(&project, &server, &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("ada/tweets is not there and would be created"), "{}", ran.stderr);
    let plan = result(&project, "share", "dry_run.json");
    assert_eq!(plan["found"], "no_repository");
    let new = [
        "README.md new",
        "adapter_config.json new",
        "adapter_model.safetensors new",
        "pipe/manifest.yaml new",
    ];
    assert_eq!(changes(&plan), new);
    assert!(!server.has(Kind::Model, REPO));

    server.add(
        Kind::Model,
        REPO,
        "main",
        &[("README.md", b"mine"), ("adapter_model.safetensors", &project.adapter())],
    );
    push(&project, &server, &["--force", "share"]);
    let plan = result(&project, "share", "dry_run.json");
    assert_eq!(plan["found"]["head"], server.head(Kind::Model, REPO, "main").as_str());
    assert_eq!(
        changes(&plan),
        [
            "README.md changed",
            "adapter_config.json new",
            "adapter_model.safetensors unchanged",
            "pipe/manifest.yaml new"
        ]
    );
    assert_eq!(
        server.requests().iter().filter(|r| r.method == "POST" && !r.target.contains("/paths-info/")).count(),
        0
    );

    // Nobody to ask: what would go is known all the same.
    drop(server);
    let server = Server::start(Options::default());
    server.fault("* 401");
    let ran: Ran =
        command(&project, &server, &["--force", "share"]).env("HF_HUB_OFFLINE", "1").output().unwrap().into();
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("what ada/tweets has is not known: pipe is offline"), "{}", ran.stderr);
    assert_eq!(server.requests().len(), 0);
    let plan = result(&project, "share", "dry_run.json");
    assert!(changes(&plan).iter().all(|change| change.ends_with(" unknown")), "{plan}");
}

#[test]
fn who_may_not_push_is_told_why() {
    let server = Server::start(Options { token: Some(TOKEN.into()), ..Options::default() });
    let project = sharing("");
    let mut none = command(&project, &server, &[]);
    none.env_remove("HF_TOKEN");
    assert_eq!(
        refusal(none),
        "pushing to ada/tweets takes a token, and there is none\nmake one that may write \
         (huggingface.co/settings/tokens) and set HF_TOKEN, or write the token to the file `token` in HF_HOME"
    );
    assert_eq!(server.requests().len(), 0);

    let mut wrong = command(&project, &server, &[]);
    wrong.env("HF_TOKEN", "hf_wrong");
    let (endpoint, rights) = (
        &server.endpoint,
        "check that the token is valid and has the right to do this (huggingface.co/settings/tokens)",
    );
    assert_eq!(
        refusal(wrong),
        format!(
            "{endpoint} refuses main of ada/tweets: 401 Unauthorized: Invalid credentials in Authorization header\n{rights}"
        )
    );

    server.fault("POST /api/repos/create 403");
    assert_eq!(
        refusal(command(&project, &server, &[])),
        format!(
            "{endpoint} refuses a new repository ada/tweets: 403 Forbidden: the server was told to say so\n{rights}"
        )
    );

    let mut offline = command(&project, &server, &[]);
    offline.env("HF_HUB_OFFLINE", "1");
    assert_eq!(
        refusal(offline),
        "nothing can be pushed to ada/tweets: pipe is offline\nrun without --offline (and without HF_HUB_OFFLINE), or \
         with `dry_run: true` to see what would go"
    );

    // The file in HF_HOME counts as well.
    server.mend();
    project.write("hf/token", &format!("{TOKEN}\n"));
    let mut file = command(&project, &server, &[]);
    let ran: Ran = file.env_remove("HF_TOKEN").output().unwrap().into();
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

#[test]
fn what_passes_is_tried_again_and_nothing_is_committed_twice() {
    let server = Server::start(Options::default());
    let project = sharing("");
    server.fault("GET /api/models/ada/tweets/revision/main 429=1 x1");
    server.fault("POST /api/repos/create 503 x1");
    server.fault("POST /api/models/ada/tweets/preupload/main drop x1");
    let ran = run(&project, &server, &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("the Hub asks to slow down: trying again in 1s"), "{}", ran.stderr);
    assert_eq!(server.count("POST", "/preupload/"), 2);
    assert_eq!(commits(&server), 1);

    // The Hub commits, and its answer is lost.
    server.forget_requests();
    server.fault("POST */commit/* lost x1");
    push(&project, &server, &["--set", "learning_rate=0.02"]);
    assert_eq!(commits(&server), 1);
    let head = server.head(Kind::Model, REPO, "main");
    assert_eq!(result(&project, "share", "commit.json")["commit"], head.as_str());
    assert_eq!(pushed(&server, "main", "adapter_model.safetensors").unwrap(), project.adapter());

    // The same for a pull request.
    server.forget_requests();
    server.fault("POST */commit/* lost x1");
    project.edit("tweets.yaml", "repo: ada/tweets", "repo: ada/tweets, pull_request: true");
    push(&project, &server, &[]);
    assert_eq!(commits(&server), 1);
    assert_eq!(result(&project, "share", "commit.json")["pull_request"]["number"], 1);
    assert_eq!(server.head(Kind::Model, REPO, "main"), head);
}

#[test]
fn a_hub_that_dies_before_the_commit_has_all_or_nothing() {
    let server = Server::start(Options::default());
    let project = sharing("");
    server.fault("POST */commit/* die");
    let error = refusal(command(&project, &server, &[]));
    let (message, help) = error.split_once('\n').unwrap();
    assert!(
        message.starts_with(&format!("{} can't be reached for the commit to ada/tweets: ", server.endpoint)),
        "{message}"
    );
    assert!(message.ends_with("; whether it was made can't be told"), "{message}");
    assert_eq!(
        help,
        "check the network and HF_ENDPOINT and run again: a push is one commit, there whole or not at all, and one \
         that is there is not made twice"
    );
    assert_eq!(pushed(&server, "main", "README.md"), None);
    assert_eq!(pushed(&server, "main", "adapter_model.safetensors"), None);

    server.mend();
    let summary = push(&project, &server, &[]);
    assert_eq!(summary.with_status("ran"), ["share"]);
    assert_eq!(pushed(&server, "main", "adapter_model.safetensors").unwrap(), project.adapter());
}

#[test]
fn a_commit_of_somebody_else_in_between_is_not_mixed_with() {
    let server = Server::start(Options::default());
    let was = server.add(Kind::Model, REPO, "main", &[("README.md", b"mine")]);
    let project = sharing("");
    // Long enough to commit something meanwhile.
    server.fault("POST */preupload/* trickle=150 x1");
    let child = command(&project, &server, &["--json"]).spawn().unwrap();
    let start = Instant::now();
    while server.count("POST", "/preupload/") == 0 {
        assert!(start.elapsed() < Duration::from_secs(120), "the push never began");
        std::thread::sleep(Duration::from_millis(20));
    }
    let theirs = server.add(Kind::Model, REPO, "main", &[("adapter_config.json", b"{}")]);
    let ran: Ran = child.wait_with_output().unwrap().into();
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let error = Summary::of(&ran.stdout).stage("share")["error"].clone();
    assert_eq!(
        error["message"],
        format!(
            "main of ada/tweets moved on while this was being pushed (it was at {}); nothing was committed",
            &was[..8]
        )
    );
    assert_eq!(error["help"], "run again: it will be held against what is there by then");
    assert_eq!(server.head(Kind::Model, REPO, "main"), theirs);
}

#[test]
fn the_token_is_found_nowhere_but_in_requests_to_the_hub() {
    let server = Server::start(Options::default());
    let project = sharing("");
    project.edit("tweets.yaml", "  share:\n", "  told:\n    uses: command\n    with: { run: \"echo $HF_TOKEN; echo ok > out.txt\", outputs: { file: { path: out.txt, kind: text } } }\n  share:\n");
    server.fault("POST /api/models/ada/tweets/preupload/main 503 x1");
    let mut said = String::new();
    for arguments in [&["--json"][..], &["--force"], &["--force", "share", "--set", "learning_rate=0.02"]] {
        let mut command = command(&project, &server, arguments);
        command.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full").env("HF_XET_LOG_LEVEL", "trace");
        let ran: Ran = command.output().unwrap().into();
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        said += &ran.stdout;
        said += &ran.stderr;
    }
    server.fault("* 500");
    said += &refusal(command(&project, &server, &["--force", "share"]));
    project.pipe(&["report", "latest", "-o", "run.html"]);
    assert!(!said.contains(TOKEN), "{said}");
    for (path, _, _) in [project.files(".pipe"), project.files("hf"), project.files("")].concat() {
        let bytes = std::fs::read(&path).unwrap_or_default();
        let found = bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes());
        assert!(!found, "{}", path.display());
    }
    let requests = server.requests();
    assert!(requests.iter().any(|r| r.host == Host::Storage), "nothing went to the storage host");
    assert!(requests.iter().filter(|r| r.host == Host::Storage).all(|r| !r.mentions(TOKEN)));
    assert!(requests.iter().all(|r| !r.target.contains(TOKEN)));
}

/// A pipeline that pushes after every epoch of training.
fn pushing_every_epoch() -> Project {
    let project = Project::tweets();
    project.edit("tweets.yaml", "epochs: 2", "epochs: 4\n      push_every: epoch\n      push_to: ada/tweets");
    project
}

#[test]
fn every_epoch_goes_to_the_hub_beside_training() {
    let server = Server::start(Options::default());
    let project = pushing_every_epoch();
    let mut none = command(&project, &server, &["prompt"]);
    none.env_remove("HF_TOKEN");
    assert!(refusal(none).starts_with("pushing to ada/tweets takes a token, and there is none\n"));

    push(&project, &server, &["prompt"]);
    assert!(server.with_repo(Kind::Model, REPO, |repo| repo.private));
    assert_eq!(pushed(&server, "main", "adapter_model.safetensors").unwrap(), project.adapter());
    let made = commits(&server);
    assert!((1..=4).contains(&made), "{made}");
    // It changes nothing of what is trained.
    let alone = Project::tweets();
    alone.edit("tweets.yaml", "epochs: 2", "epochs: 4");
    push(&alone, &server, &["prompt"]);
    assert_eq!(alone.adapter(), project.adapter());
}

#[test]
fn a_slow_push_holds_no_step_up_and_what_is_overtaken_is_left_out() {
    let server = Server::start(Options::default());
    let project = pushing_every_epoch();
    // Longer than the whole training.
    server.fault("POST */preupload/* trickle=20 x1");
    let ran = run(&project, &server, &["prompt", "--json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let at = |text: &str| ran.stdout.find(text).unwrap_or_else(|| panic!("no {text:?} in {}", ran.stdout));
    let trained = at("epoch 4  train loss");
    assert!(at("epoch 2 is not pushed to ada/tweets: newer is there") < trained);
    assert!(trained < at("epoch 1 is at "));
    assert!(at("epoch 1 is at ") < at("epoch 4 is at "));
    assert_eq!(commits(&server), 2);
    assert_eq!(pushed(&server, "main", "adapter_model.safetensors").unwrap(), project.adapter());
}

#[test]
fn a_failed_last_push_costs_no_training() {
    let server = Server::start(Options::default());
    let project = pushing_every_epoch();
    server.fault("* 403");
    let error = refusal(command(&project, &server, &["prompt"]));
    let (message, help) = error.split_once('\n').unwrap();
    assert_eq!(
        message,
        format!(
            "training is done, and its last push failed (epoch 4): {} refuses main of ada/tweets: 403 Forbidden: the \
             server was told to say so",
            server.endpoint
        )
    );
    assert_eq!(
        help,
        "check that the token is valid and has the right to do this (huggingface.co/settings/tokens). What was trained \
         is kept: the next run only pushes, or take `push_every` away"
    );

    server.mend();
    let ran = run(&project, &server, &["prompt"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    // 12 rows in batches of 4, 4 epochs: all of them were done.
    assert!(ran.stderr.contains("going on after step 12"), "{}", ran.stderr);
    assert_eq!(pushed(&server, "main", "adapter_model.safetensors").unwrap(), project.adapter());
    let steps = project.read(".pipe/runs/latest/stages/prompt/steps.jsonl");
    assert_eq!(steps.lines().count(), 12);
}
