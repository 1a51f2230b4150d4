//! The smaller commands, as a user types them, and what they print.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod project;

use project::{Project, Ran};

#[test]
fn the_schema_is_the_committed_one() {
    let project = Project::new();
    let ran = project.pipe(&["schema", "--out", "made"]);
    assert_eq!(ran.stdout, "made/pipeline.schema.json\n");
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/pipeline.schema.json");
    let committed = std::fs::read_to_string(committed).unwrap();
    assert!(project.read("made/pipeline.schema.json") == committed, "run `pipe schema` and commit schemas/");
}

#[test]
fn check_takes_many_files_and_says_ok_or_what_is_wrong() {
    let project = Project::tweets();
    project.write("wrong.yaml", "pipeline: wrong\nstages:\n  a: { uses: relable, with: { column: x } }\n");
    let ran = project.pipe(&["check", "tweets.yaml", "wrong.yaml"]);
    assert_eq!(ran.code, Some(2));
    assert_eq!(ran.stdout, "tweets.yaml: ok, 6 stages\n");
    assert!(ran.stderr.contains("--> wrong.yaml:3:14"), "{}", ran.stderr);
    assert!(ran.stderr.contains("did you mean `relabel`?"), "{}", ran.stderr);
    assert!(ran.stderr.ends_with("wrong.yaml: 1 error\n"), "{}", ran.stderr);
}

#[test]
fn every_stage_kind_describes_itself_and_its_example_is_right() {
    let project = Project::new();
    let list = project.pipe(&["stages"]).stdout;
    for kind in pipe::stages::KINDS {
        assert!(list.contains(kind.name), "{list}");
        let about = project.pipe(&["stages", kind.name]);
        assert_eq!(about.code, Some(0));
        for port in kind.inputs {
            assert!(about.stdout.contains(port.about), "{}", about.stdout);
        }
        assert!(!kind.example.contains('\t') && kind.example.contains(kind.name), "{}", kind.example);
    }
    let wrong = project.pipe(&["stages", "evalute"]);
    assert_eq!(wrong.code, Some(2));
    assert_eq!(
        wrong.stderr,
        "error: there is no stage kind `evalute`\n  help: did you mean `evaluate`? `pipe stages` lists them\n"
    );
}

#[test]
fn the_graph_in_each_format() {
    let project = Project::tweets();
    let text = project.pipe(&["graph", "tweets.yaml"]).stdout;
    assert_eq!(text.lines().nth(3), Some("prompt    train_soft_prompt  ← tokens.tokens"));
    let mermaid = project.pipe(&["graph", "tweets.yaml", "--format", "mermaid"]).stdout;
    assert!(mermaid.starts_with("flowchart LR\n") && mermaid.contains("s2 -->|tokens| s3"), "{mermaid}");
    let dot = project.pipe(&["graph", "tweets.yaml", "--format", "dot"]).stdout;
    assert!(
        dot.starts_with("digraph \"tweets\" {") && dot.contains("s3 -> s4 [label=\"adapter\"];"),
        "{dot}"
    );
    let svg = project.pipe(&["graph", "tweets.yaml", "--format", "svg"]).stdout;
    assert_eq!((svg.matches("<rect").count(), svg.matches("<path").count()), (6, 6), "{svg}");
}

#[test]
fn runs_can_be_listed_shown_compared_and_reported() {
    let project = Project::tweets();
    assert_eq!(project.pipe(&["runs"]).stdout, "there are no runs here yet\n");
    let a = project.run(0, &["tweets.yaml"]).0["run"].as_str().unwrap().to_string();
    let b = project.run(0, &["tweets.yaml", "--set", "learning_rate=0.02"]).0["run"]
        .as_str()
        .unwrap()
        .to_string();
    let runs = project.pipe(&["runs"]).stdout;
    assert!(
        runs.lines().nth(1).unwrap().starts_with(&b) && runs.lines().nth(2).unwrap().starts_with(&a),
        "{runs}"
    );
    let show = project.pipe(&["show", &a]).stdout;
    assert!(show.contains("  learning_rate = 0.01\n") && show.contains("accuracy"), "{show}");
    let stage = project.pipe(&["show", "latest", "prompt"]).stdout;
    assert!(stage.contains("why  learning_rate changed from 0.01 to 0.02\n"), "{stage}");
    assert!(stage.contains("adapter_model.safetensors"), "{stage}");
    let diff = project.pipe(&["diff", &a, &b]).stdout;
    assert!(diff.contains("params.learning_rate"), "{diff}");
    assert!(!diff.contains("params.model") && !diff.contains("tokens.key"), "{diff}");
    assert_eq!(project.pipe(&["report", &a, "-o", "a.html"]).code, Some(0));
    let page = project.read("a.html");
    for part in ["<svg", "train_soft_prompt", "untuned", "loss by step", "it is bad"] {
        assert!(page.contains(part), "the page has no {part}");
    }
    assert!(!page.contains("http://") || page.matches("http").count() == page.matches("www.w3.org").count());
    let none = project.pipe(&["show", "nothing"]);
    assert_eq!(none.code, Some(2));
    assert_eq!(none.stderr, "error: there is no run `nothing`; `pipe runs` lists them\n");
}

#[test]
fn the_cache_can_be_listed_verified_and_collected() {
    let project = Project::tweets();
    project.run(0, &["tweets.yaml"]);
    let list = project.pipe(&["cache", "ls"]).stdout;
    assert!(list.ends_with("on disk\n") && list.contains("6 results"), "{list}");
    assert_eq!(project.pipe(&["cache", "gc"]).code, Some(2));
    let kept = project.pipe(&["cache", "gc", "--size", "0"]).stdout;
    assert_eq!(kept, "removed 0 results and 0 files, 0 B\n");
    let gone = project.pipe(&["cache", "gc", "--size", "0", "--grace", "0s"]).stdout;
    assert!(gone.starts_with("removed 6 results"), "{gone}");
    assert_eq!(project.run(0, &["tweets.yaml"]).with_status("ran").len(), 6);
}

#[test]
fn an_environment_value_is_found_nowhere() {
    let project = Project::new();
    project.write(
        "p.yaml",
        "pipeline: p\nstages:\n  a:\n    uses: command\n    with:\n      run: \"test -n \\\"$TOKEN\\\"; echo I have $TOKEN; echo $TOKEN | wc -c > out; test -e nothing\"\n      outputs: { out: { path: out } }\n      env: { TOKEN: \"${env.PLANTED}\" }\n",
    );
    for (manifest, code) in [("p.yaml", 1), ("q.yaml", 0)] {
        let mut command = project.command(&["run", manifest]);
        let output = command.env("PLANTED", "hf_planted").output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
        for text in [&output.stdout, &output.stderr] {
            assert!(!String::from_utf8_lossy(text).contains("hf_planted"));
        }
        // The same without printing it to its log.
        let quiet =
            project.read("p.yaml").replace("echo I have $TOKEN; ", "").replace("; test -e nothing", "");
        project.write("q.yaml", &quiet);
    }
    for (path, ..) in project.files(".pipe") {
        let bytes = std::fs::read(&path).unwrap_or_default();
        assert!(!bytes.windows(10).any(|w| w == b"hf_planted"), "{}", path.display());
    }
    let unset = project.pipe(&["check", "p.yaml"]);
    assert_eq!(unset.code, Some(2));
    assert!(unset.stderr.contains("PLANTED"), "{}", unset.stderr);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let project = Project::tweets();
    let mut child = project.start(&["graph", "tweets.yaml", "--format", "svg"]);
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_a_program_prints_of_the_environment_is_hidden() {
    let (token, key) = ("tok-5f0c-a1", "key-line-1\nkey-line-2");
    let project = Project::new();
    // Alone, in a line that is cut in two within it, over two lines, and without a line end.
    project.write(
        "p.yaml",
        r#"pipeline: p
stages:
  talk:
    uses: command
    with:
      run: |
        echo "out $TOKEN."
        echo "err $TOKEN." >&2
        head -c 16380 /dev/zero | tr '\0' x
        echo "$TOKEN."
        echo "$KEY"
        printf "last $TOKEN"
        touch done
      env: { TOKEN: "${env.PIPE_TEST_TOKEN}", KEY: "${env.PIPE_TEST_KEY}" }
      outputs: { done: { path: done } }
"#,
    );
    for arguments in [&["run", "p.yaml"][..], &["run", "p.yaml", "--force", "--json"]] {
        let mut pipe = project.command(arguments);
        let ran = Ran::from(pipe.env("PIPE_TEST_TOKEN", token).env("PIPE_TEST_KEY", key).output().unwrap());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let mut written = vec![("what is printed".into(), ran.stdout + &ran.stderr)];
        for (path, ..) in project.files(".pipe").into_iter().filter(|(path, ..)| path.is_file()) {
            let bytes = std::fs::read(&path).unwrap();
            written.push((path, String::from_utf8_lossy(&bytes).into_owned()));
        }
        for (place, text) in &written {
            for secret in [token, "key-line-1", "key-line-2"] {
                assert!(!text.contains(secret), "{}: {text}", place.display());
            }
        }
        let log = project.read(".pipe/runs/latest/stages/talk/command.log");
        for line in ["out ***.\n", "err ***.\n", "xxx***.\n", "***\n***\n", "last ***"] {
            assert!(log.contains(line), "{line:?}: {log}");
        }
    }
}

/// Why there is no GPU here; `None` on a machine with an NVIDIA driver.
fn no_cards() -> Option<&'static str> {
    if !cfg!(feature = "cuda") {
        return Some(
            "this build of pipe has no CUDA: use `cpu`, or build with `cargo build --release --features cuda`",
        );
    }
    let driver = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/nvidia/lib64", "/usr/lib/wsl/lib"];
    let there = driver.iter().any(|folder| std::path::Path::new(folder).join("libcuda.so.1").exists());
    (!there).then_some("there is no NVIDIA driver here: libcuda.so.1 is not found")
}

#[test]
fn devices_are_listed_and_what_is_missing_says_why() {
    let Some(reason) = no_cards() else { return };
    let project = Project::new();
    let text = project.pipe(&["devices"]).stdout;
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("cpu   ") && lines[0].contains(" core"), "{text}");
    assert_eq!(lines[1..], [format!("cuda  none: {reason}").as_str(), "auto  means cpu here"]);
    let json = project.pipe(&["devices", "--json"]).stdout;
    let json: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let cuda = serde_json::json!({ "device": "cuda", "usable": false, "auto": false, "why": reason });
    assert_eq!((&json[0]["device"], &json[0]["auto"], &json[1]), (&"cpu".into(), &true.into(), &cuda));
}

#[test]
fn cuda_is_refused_where_there_is_none() {
    let Some(reason) = no_cards() else { return };
    let project = Project::tweets();
    for command in ["run", "plan"] {
        let ran = project.pipe(&[command, "tweets.yaml", "--device", "cuda:0"]);
        assert_eq!(ran.code, Some(2));
        assert_eq!(ran.stderr, format!("error: `cuda:0` was asked for, but {reason}\n"));
    }
}
