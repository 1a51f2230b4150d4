//! Values of the environment: where a manifest can bring them to, and that they are not found there afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod project;

use std::fs;
use std::path::PathBuf;

use project::{Project, Ran};

const SECRET: &str = "s3cr3t-Passw0rd";

fn pipe(project: &Project, arguments: &[&str]) -> Ran {
    let mut command = project.command(arguments);
    command.env("MY_PASSWORD", SECRET).env("HF_HUB_OFFLINE", "1").env("HF_HOME", project.path("hub"));
    command.output().unwrap().into()
}

/// Every file of the state and the lock, but what stages made, that has the value in it.
fn told(project: &Project) -> Vec<PathBuf> {
    let made =
        |path: &PathBuf| path.components().any(|c| c.as_os_str() == "stages" || c.as_os_str() == "blobs");
    let files = project.files(".pipe").into_iter().map(|(path, ..)| path).filter(|path| !made(path));
    let lock = project.path("p.lock");
    let has_it = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap_or_default();
        bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes())
    };
    files.chain([lock]).filter(has_it).collect()
}

fn stages(project: &Project, stages: &str) {
    project.write(
        "p.yaml",
        &format!("pipeline: p\nparams: {{ secret: '${{env.MY_PASSWORD}}' }}\nstages:\n{stages}\n"),
    );
}

#[test]
fn the_path_of_an_output_takes_no_value_of_the_environment() {
    let project = Project::new();
    for path in ["${env.MY_PASSWORD}", "out/${env.MY_PASSWORD}.txt", "${params.secret}"] {
        stages(
            &project,
            &format!(
                "  a: {{ uses: command, with: {{ run: 'touch x', outputs: {{ x: {{ path: '{path}' }} }} }} }}"
            ),
        );
        for command in ["check", "run", "plan"] {
            let ran = pipe(&project, &[command, "p.yaml"]);
            assert_eq!(ran.code, Some(2), "{}", ran.stderr);
            assert!(
                ran.stderr.contains(
                    "error: a value of the environment can't be in `outputs`: it would show in names and records\n \
                     --> p.yaml:4:69\n"
                ),
                "{}",
                ran.stderr
            );
            assert!(!(ran.stdout + &ran.stderr).contains(SECRET));
        }
    }
}

#[test]
fn a_file_that_a_program_names_by_it_is_refused() {
    let project = Project::new();
    stages(
        &project,
        "  a: { uses: command, with: { run: 'mkdir out; touch \"out/$PW\"', env: { PW: '${env.MY_PASSWORD}' }, \
         outputs: { x: { path: out } } } }",
    );
    let ran = pipe(&project, &["run", "p.yaml"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("the program wrote `out/***`, which is named by a value"), "{}", ran.stderr);
    assert_eq!(told(&project), Vec::<PathBuf>::new());
}

#[test]
fn errors_of_check_plan_and_run_do_not_show_it() {
    for (stages_text, code) in [
        ("  d: { uses: load_dataset, with: { path: 'owner/${env.MY_PASSWORD}' } }", 2),
        ("  d: { uses: load_dataset, with: { path: './${env.MY_PASSWORD}/none.csv' } }", 2),
        ("  d: { uses: load_dataset, with: { path: '${env.MY_PASSWORD}' } }", 2),
        ("  d: { uses: load_dataset, with: { path: 'data/${env.MY_PASSWORD}/*.csv' } }", 1),
        ("  d: { uses: load_dataset, with: { path: data.csv, split: '${env.MY_PASSWORD}' } }", 1),
        ("  d: { uses: load_dataset, when: '${env.MY_PASSWORD}', with: { path: data.csv } }", 2),
        ("  d: { uses: load_dataset, device: '${params.secret}', with: { path: data.csv } }", 2),
        ("  d: { uses: load_dataset, timeout: '${env.MY_PASSWORD}', with: { path: data.csv } }", 2),
        (
            "  d: { uses: load_dataset, with: { path: data.csv } }\n  r: { uses: relabel, inputs: { dataset: d }, \
          with: { column: '${params.secret}', map: { a: b } } }",
            1,
        ),
        (
            "  d: { uses: load_dataset, with: { path: data.csv } }\n  t: { uses: tokenize, inputs: { dataset: d }, \
          with: { tokenizer: '${env.MY_PASSWORD}/none', text: '{a}' } }",
            2,
        ),
        ("  c: { uses: command, with: { run: ['${env.MY_PASSWORD}'], outputs: { x: { path: x } } } }", 1),
        (
            "  c: { uses: command, with: { run: ok, env: { '': '${env.MY_PASSWORD}' }, outputs: { x: { path: x } } } }",
            2,
        ),
    ] {
        let project = Project::new();
        project.write("data.csv", "a,b\n1,2\n");
        stages(&project, stages_text);
        for command in
            [&["check", "p.yaml"][..], &["plan", "p.yaml"], &["run", "p.yaml", "--json"], &["run", "p.yaml"]]
        {
            let ran = pipe(&project, command);
            if command[0] == "run" {
                assert_eq!(ran.code, Some(code), "{stages_text}: {}{}", ran.stdout, ran.stderr);
            }
            assert!(
                !(ran.stdout.clone() + &ran.stderr).contains(SECRET),
                "{command:?}: {}{}",
                ran.stdout,
                ran.stderr
            );
        }
        assert_eq!(told(&project), Vec::<PathBuf>::new(), "{stages_text}");
    }
}

#[test]
fn a_path_with_it_is_read_and_not_written_down() {
    let project = Project::new();
    project.write(&format!("{SECRET}/x.csv"), "a\n1\n");
    project.write("y.csv", "a\n1\n");
    stages(
        &project,
        "  d: { uses: load_dataset, with: { path: './${env.MY_PASSWORD}/x.csv' } }\n  \
         e: { uses: load_dataset, with: { path: y.csv } }",
    );
    // A file written a moment ago is not remembered whatever its name.
    std::thread::sleep(std::time::Duration::from_millis(200));
    for _ in 0..2 {
        let ran = pipe(&project, &["run", "p.yaml"]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert!(!(ran.stdout + &ran.stderr).contains(SECRET));
    }
    // Both are remembered, by digests of their paths.
    let remembered: serde_json::Value =
        serde_json::from_str(&project.read(".pipe/cache/sources.json")).unwrap();
    assert_eq!(remembered["files"].as_object().unwrap().len(), 2);
    assert_eq!(told(&project), Vec::<PathBuf>::new());
}

#[test]
fn what_a_stage_says_with_it_is_hidden_everywhere() {
    let project = Project::new();
    stages(
        &project,
        "  a: { uses: command, retries: 1, with: { run: 'echo \"I have $PW\"; touch x; exit 3', \
         env: { PW: '${params.secret}' }, outputs: { x: { path: x } } } }",
    );
    for arguments in [&["run", "p.yaml"][..], &["run", "p.yaml", "--json"]] {
        let ran = pipe(&project, arguments);
        assert_eq!(ran.code, Some(1));
        let all = ran.stdout + &ran.stderr;
        assert!(all.contains("I have ***") && !all.contains(SECRET), "{all}");
    }
    let show = pipe(&project, &["show", "latest", "a"]).stdout;
    assert!(show.contains("I have ***"), "{show}");
    assert_eq!(told(&project), Vec::<PathBuf>::new());
}

#[test]
fn a_folder_of_a_result_that_is_named_by_it_is_refused() {
    let project = Project::new();
    stages(
        &project,
        "  a: { uses: command, with: { run: 'mkdir -p \"d/$PW/e\"', env: { PW: '${params.secret}' }, outputs: { x: { path: d } } } }",
    );
    let ran = pipe(&project, &["run", "p.yaml"]);
    let expected = "error: stage `a` failed\n  the program wrote `d/***/e`, which is named by a value of the \
                    environment\n  help: give it another name: names stand in records\n";
    assert!(ran.code == Some(1) && ran.stderr.contains(expected), "{}", ran.stderr);
    assert_eq!(told(&project), Vec::<PathBuf>::new());
}
