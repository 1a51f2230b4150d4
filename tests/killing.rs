//! Kills, stops, two at once: nothing half is ever taken for a result.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod project;

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant, SystemTime};

use project::{Project, Summary};

/// Waits until the condition holds; a minute at most.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(child: &Child, signal: &str) {
    let status = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

/// Long enough that a kill finds it at work.
fn long(project: &Project) {
    project.edit("tweets.yaml", "epochs: 2", "epochs: 400");
}

fn steps_done(project: &Project) -> bool {
    let events = std::fs::read_to_string(project.path(".pipe/runs/latest/events.jsonl")).unwrap_or_default();
    events.lines().any(|l| l.contains("stage_progress") && l.contains("\"prompt\""))
}

#[test]
fn killed_in_training_the_next_run_comes_to_the_same_bytes() {
    let (undisturbed, project) = (Project::tweets(), Project::tweets());
    long(&undisturbed);
    undisturbed.run(0, &["tweets.yaml"]);
    long(&project);
    let mut child = project.start(&["run", "tweets.yaml"]);
    until("training begins", || steps_done(&project));
    signal(&child, "-KILL");
    child.wait().unwrap();
    let again = project.run(0, &["tweets.yaml"]);
    assert_eq!(again.with_status("cached"), ["tweets", "labelled", "tokens"]);
    assert_eq!(again.with_status("ran"), ["prompt", "scores", "answers"]);
    assert_eq!(project.adapter(), undisturbed.adapter());
}

#[test]
fn killed_at_any_moment_the_next_run_comes_to_the_same_bytes() {
    let (undisturbed, project) = (Project::tweets(), Project::tweets());
    undisturbed.run(0, &["tweets.yaml"]);
    for wait in [0, 10, 20, 30, 45, 60, 80, 100, 130, 170] {
        let mut child = project.start(&["run", "tweets.yaml"]);
        std::thread::sleep(Duration::from_millis(wait));
        let _ = child.kill();
        child.wait().unwrap();
    }
    project.run(0, &["tweets.yaml"]);
    assert_eq!(project.adapter(), undisturbed.adapter());
    let verified = project.pipe(&["cache", "verify"]);
    assert_eq!(verified.stdout, "every file is what its digest says\n");
}

#[test]
fn killed_three_times_training_goes_on_from_its_checkpoints_to_the_same_bytes() {
    let (undisturbed, project) = (Project::tweets(), Project::tweets());
    for project in [&undisturbed, &project] {
        long(project);
        project.edit("tweets.yaml", "batch_size: 4", "batch_size: 4\n      save_every: 20\n      keep: 2");
    }
    let steps = undisturbed.run(0, &["tweets.yaml"]);
    assert_eq!(steps.with_status("ran").len(), 6);
    let saved = || {
        let mut files = unfinished(&project);
        files.retain(|(path, _)| path.ends_with("state.json"));
        files.into_iter().map(|(path, _)| path).max()
    };
    let mut seen = None;
    for _ in 0..3 {
        let mut child = project.start(&["run", "tweets.yaml"]);
        until("another checkpoint", || saved() > seen || child.try_wait().unwrap().is_some());
        signal(&child, "-KILL");
        child.wait().unwrap();
        seen = saved();
    }
    let ran = project.pipe(&["run", "tweets.yaml"]);
    assert!(ran.stderr.contains("going on after step "), "{}", ran.stderr);
    assert_eq!(project.adapter(), undisturbed.adapter());
    let lines = |project: &Project| -> Vec<(u64, f64)> {
        let text = project.read(".pipe/runs/latest/stages/prompt/steps.jsonl");
        let line = |line: &str| -> serde_json::Value { serde_json::from_str(line).unwrap() };
        text.lines().map(line).map(|l| (l["step"].as_u64().unwrap(), l["loss"].as_f64().unwrap())).collect()
    };
    assert_eq!(lines(&project), lines(&undisturbed));
    let metrics = ".pipe/runs/latest/stages/prompt/metrics.json";
    assert_eq!(project.read(metrics), undisturbed.read(metrics));
    // Two checkpoints are part of the result, and nothing unfinished is left.
    let kept = std::fs::read_dir(project.path(".pipe/runs/latest/stages/prompt/checkpoints")).unwrap();
    assert_eq!(kept.count(), 2);
    assert!(unfinished(&project).is_empty());
}

/// What is kept of work that was not done, with the times at which it was written.
fn unfinished(project: &Project) -> Vec<(PathBuf, SystemTime)> {
    let files = project.files(".pipe/cache").into_iter();
    let is_part = |path: &Path| path.components().any(|part| part.as_os_str() == "unfinished");
    files.filter(|(path, ..)| is_part(path)).map(|(path, _, time)| (path, time)).collect()
}

#[test]
fn a_damaged_checkpoint_is_refused_and_training_comes_to_the_same_bytes() {
    let (undisturbed, project) = (Project::tweets(), Project::tweets());
    for project in [&undisturbed, &project] {
        long(project);
        project.edit("tweets.yaml", "batch_size: 4", "batch_size: 4\n      save_every: 20\n      keep: 2");
    }
    undisturbed.run(0, &["tweets.yaml"]);
    let mut expected = None;
    for (file, warning) in [
        ("tensors.safetensors", "is damaged: tensors.safetensors is not what its digest says; training "),
        ("state.json", "is damaged: state.json is not what its digest says; training "),
        ("steps.jsonl", "can't be gone on from: steps.jsonl is not what it was then; training starts over"),
    ] {
        let began = SystemTime::now();
        // What is being written is no checkpoint yet.
        let whole = || {
            let mut files = unfinished(&project);
            files.retain(|(path, _)| !path.components().any(|part| part.as_os_str() == "half"));
            files
        };
        let saved = || whole().iter().any(|(path, time)| path.ends_with("state.json") && *time > began);
        let mut child = project.start(&["run", "tweets.yaml", "--json"]);
        until("another checkpoint", || saved() || child.try_wait().unwrap().is_some());
        signal(&child, "-KILL");
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(expected.is_none_or(|expected| said.contains(expected)), "{expected:?}: {said}");
        let mut found = whole();
        found.retain(|(path, _)| path.ends_with(file));
        let (path, _) = found.into_iter().max_by_key(|(_, time)| *time).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = if file == "steps.jsonl" { 10 } else { bytes.len() - 7 };
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        expected = Some(warning);
    }
    let last = project.pipe(&["run", "tweets.yaml", "--json"]);
    assert_eq!(last.code, Some(0), "{}", last.stderr);
    assert!(last.stdout.contains(expected.unwrap()), "{}", last.stdout);
    assert_eq!(project.adapter(), undisturbed.adapter());
    let stage = ".pipe/runs/latest/stages/prompt";
    let steps = |project: &Project| project.read(&format!("{stage}/steps.jsonl")).lines().count();
    assert_eq!(steps(&project), steps(&undisturbed));
    for file in
        ["metrics.json", "checkpoints/step-1200/tensors.safetensors", "checkpoints/step-1180/seal.json"]
    {
        let read = |project: &Project| std::fs::read(project.path(&format!("{stage}/{file}"))).unwrap();
        assert!(read(&project) == read(&undisturbed), "{file}");
    }
}

#[test]
fn no_thread_of_candles_spins_beside_training() {
    let project = Project::tweets();
    long(&project);
    let mut child = project.start(&["run", "tweets.yaml"]);
    until("training begins", || steps_done(&project));
    let threads = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let names: Vec<String> =
        threads.flatten().filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok()).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(names.len() > 1 && !names.iter().any(|n| n.starts_with("candle")), "{names:?}");
}

#[test]
fn ctrl_c_ends_cleanly_with_130() {
    let project = Project::tweets();
    long(&project);
    let child = project.start(&["run", "tweets.yaml", "--json"]);
    until("training begins", || steps_done(&project));
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let summary = Summary::of(std::str::from_utf8(&output.stdout).unwrap());
    assert_eq!(summary.0["status"], "interrupted");
    assert_eq!(summary.stage("prompt")["status"], "interrupted");
    assert_eq!(summary.with_status("not_reached"), ["scores", "answers"]);
}

/// Whether a process is there and not merely waiting to be reaped by its parent.
fn is_running(process: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[test]
fn a_second_ctrl_c_leaves_nothing_running() {
    let project = Project::new();
    let processes = project.path("processes");
    // Two programs of two processes each, none of which minds being asked to stop.
    let run = format!("trap '' TERM INT; sleep 300 & echo $$ $! >> {}; sleep 300", processes.display());
    project.write(
        "p.yaml",
        &format!(
            "pipeline: p\nstages:\n  \
             one: {{ uses: command, with: {{ run: \"{run}\", outputs: {{ x: {{ path: x }} }} }} }}\n  \
             two: {{ uses: command, with: {{ run: \"{run}\", outputs: {{ y: {{ path: y }} }} }} }}\n"
        ),
    );
    let mut child = project.start(&["run", "p.yaml", "--jobs", "2"]);
    let begun = || -> Vec<String> {
        let text = std::fs::read_to_string(&processes).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    };
    until("both programs begin", || begun().len() == 4);
    signal(&child, "-INT");
    std::thread::sleep(Duration::from_millis(200));
    assert!(begun().iter().all(|process| is_running(process)));
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    until("the programs are gone", || !begun().iter().any(|process| is_running(process)));
}

#[test]
fn a_second_ctrl_c_leaves_at_once() {
    let project = Project::new();
    // It does not mind being asked to stop.
    project.write(
        "p.yaml",
        "pipeline: p\nstages:\n  slow:\n    uses: command\n    with: { run: \"trap '' TERM INT; touch begun; sleep 20 & wait; sleep 20\", outputs: { begun: { path: begun } } }\n",
    );
    let mut child = project.start(&["run", "p.yaml"]);
    until("the command begins", || project.files(".pipe/cache").iter().any(|(p, ..)| p.ends_with("begun")));
    let start = Instant::now();
    signal(&child, "-INT");
    std::thread::sleep(Duration::from_millis(200));
    if child.try_wait().unwrap().is_none() {
        signal(&child, "-INT");
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn two_runs_at_once_make_each_result_once() {
    let project = Project::tweets();
    project.edit("tweets.yaml", "epochs: 2", "epochs: 20");
    let children: Vec<Child> = (0..2).map(|_| project.start(&["run", "tweets.yaml", "--json"])).collect();
    let mut ran = Vec::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let summary = Summary::of(std::str::from_utf8(&output.stdout).unwrap());
        ran.extend(summary.with_status("ran").into_iter().map(str::to_string));
    }
    ran.sort();
    assert_eq!(ran, ["answers", "labelled", "prompt", "scores", "tokens", "tweets"]);
}

#[test]
fn a_failure_stops_what_depends_on_it_and_with_keep_going_nothing_else() {
    let project = Project::new();
    project.write(
        "p.yaml",
        r#"pipeline: p
stages:
  bad: { uses: command, with: { run: "echo no; exit 3", outputs: { x: { path: x } } } }
  after: { uses: command, inputs: { x: bad }, with: { run: "touch y", outputs: { y: { path: y } } } }
  first: { uses: command, with: { run: "echo 1 > one", outputs: { one: { path: one } } } }
  second: { uses: command, inputs: { x: first }, with: { run: "cat $PIPE_INPUT_X > two", outputs: { two: { path: two } } } }
"#,
    );
    let kept = project.run(1, &["p.yaml", "--keep-going", "--jobs", "1"]);
    assert_eq!(kept.with_status("failed"), ["bad"]);
    assert_eq!(kept.with_status("not_reached"), ["after"]);
    assert_eq!(kept.with_status("ran"), ["first", "second"]);
    let stopped = project.run(1, &["p.yaml", "--force", "--jobs", "1"]);
    assert_eq!(stopped.with_status("not_reached"), ["after", "first", "second"]);
}

#[test]
fn a_timeout_and_a_retry() {
    let project = Project::new();
    project.write(
        "p.yaml",
        "pipeline: p\nstages:\n  slow:\n    uses: command\n    timeout: 1s\n    with: { run: sleep 30, outputs: { x: { path: x } } }\n",
    );
    let ran = project.run(1, &["p.yaml"]);
    assert_eq!(ran.stage("slow")["error"]["message"], "not done after its timeout of 1 s");
    let count = project.path("count");
    project.write(
        "r.yaml",
        &format!(
            "pipeline: r\nstages:\n  flaky:\n    uses: command\n    retries: 2\n    with: {{ run: \"echo x >> {0}; test $(wc -l < {0}) = 3; touch x\", outputs: {{ x: {{ path: x }} }} }}\n",
            count.display()
        ),
    );
    let ran = project.run(0, &["r.yaml"]);
    assert_eq!(ran.with_status("ran"), ["flaky"]);
    assert_eq!(std::fs::read_to_string(count).unwrap().lines().count(), 3);
}
