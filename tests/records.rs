//! Records of runs and the state around them: which run is the latest, what is damaged, what is in the way, what goes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod project;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use project::{Project, Ran};

const TOUCH: &str =
    "stages:\n  a: { uses: command, with: { run: 'echo made > x', outputs: { x: { path: x } } } }\n";

fn manifest(project: &Project, pipeline: &str, stages: &str) -> String {
    let file = format!("{pipeline}.yaml");
    project.write(&file, &format!("pipeline: {pipeline}\n{stages}"));
    file
}

/// Runs a pipeline of this name; the run's name.
fn ran(project: &Project, pipeline: &str) -> String {
    let file = manifest(project, pipeline, TOUCH);
    project.run(0, &[&file]).0["run"].as_str().unwrap().to_string()
}

fn listed(project: &Project) -> Vec<String> {
    let list = project.pipe(&["runs"]).stdout;
    list.lines().skip(1).map(|line| line.split(' ').next().unwrap().to_string()).collect()
}

fn shown(project: &Project, run: &str) -> String {
    let show = project.pipe(&["show", run]);
    assert_eq!(show.code, Some(0), "{}", show.stderr);
    show.stdout.split(' ').next().unwrap().to_string()
}

fn wait_for(what: impl Fn() -> bool) {
    let begin = Instant::now();
    while !what() {
        assert!(begin.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn runs_of_one_second_stand_in_the_order_they_began() {
    let project = Project::new();
    let mut runs: Vec<String> =
        ["zeta", "alpha", "alpha", "mu", "alpha"].iter().map(|name| ran(&project, name)).collect();
    assert_eq!(shown(&project, "latest"), *runs.last().unwrap());
    runs.reverse();
    assert_eq!(listed(&project), runs);
}

#[test]
fn a_folder_that_is_no_run_is_passed_over() {
    let project = Project::new();
    let run = ran(&project, "p");
    let runs = project.path(".pipe/runs");
    fs::create_dir(runs.join("99991231-235959-x")).unwrap();
    fs::create_dir(runs.join("odd \n name")).unwrap();
    fs::write(runs.join("99991231-235959-file"), "").unwrap();
    symlink("nowhere", runs.join("99991231-235959-link")).unwrap();
    fs::create_dir_all(runs.join("99991231-235959-y/run.json")).unwrap();
    assert_eq!(listed(&project), [run.as_str()]);
    assert_eq!(shown(&project, "latest"), run);
    // What a kill leaves that comes before the first record: the link already points there.
    fs::remove_file(runs.join("latest")).unwrap();
    symlink("99991231-235959-x", runs.join("latest")).unwrap();
    assert_eq!(shown(&project, "latest"), run);
    let none = project.pipe(&["show", "99991231-235959-x"]);
    assert_eq!(none.code, Some(2));
    assert_eq!(
        none.stderr,
        "error: .pipe/runs/99991231-235959-x has no run.json: the run was ended before it wrote its record\n  \
         help: `pipe runs` lists the others\n"
    );
    fs::remove_file(runs.join("latest")).unwrap();
    assert_eq!(shown(&project, "latest"), run);
}

#[test]
fn a_damaged_record_is_named_and_left_out_of_lists() {
    let project = Project::new();
    let (first, second) = (ran(&project, "first"), ran(&project, "second"));
    let record = project.path(".pipe/runs").join(&second).join("run.json");
    let whole = fs::read(&record).unwrap();
    let mut bit = whole.clone();
    let at = whole.windows(9).position(|w| w == b"succeeded").unwrap();
    bit[at] ^= 1;
    // A number that is another one is as good JSON as before.
    let digit = String::from_utf8(whole.clone()).unwrap().replacen("\"seconds\": 0", "\"seconds\": 1", 1);
    for damaged in [bit, digit.into_bytes(), whole[..whole.len() / 2].to_vec(), Vec::new(), b"{}".to_vec()] {
        fs::write(&record, &damaged).unwrap();
        for run in [second.as_str(), "latest"] {
            let show = project.pipe(&["show", run]);
            assert_eq!(show.code, Some(2));
            let begin = format!("error: .pipe/runs/{second}/run.json: not the record of a run: it ");
            assert!(show.stderr.starts_with(&begin), "{}", show.stderr);
        }
        assert_eq!(listed(&project), [first.as_str()]);
        let home = pipe::history::Home::at(project.path(".pipe"));
        let damaged = home.damaged_records();
        assert!(damaged.len() == 1 && damaged[0].0 == record, "{damaged:?}");
    }
    assert_eq!(project.run(0, &["second.yaml"]).with_status("cached"), ["a"]);
}

#[test]
fn a_record_of_0_1_0_is_read_and_no_other_without_a_seal() {
    let project = Project::new();
    let run = ran(&project, "p");
    let record = project.path(".pipe/runs").join(&run).join("run.json");
    let text = fs::read_to_string(&record).unwrap();
    let (content, _) = text.split_once(",\n  \"seal\"").unwrap();
    let version = format!("\"pipe\": \"{}\"", env!("CARGO_PKG_VERSION"));
    fs::write(&record, content.replace(&version, "\"pipe\": \"0.1.0\"") + "\n}\n").unwrap();
    assert_eq!((listed(&project), shown(&project, "latest")), (vec![run.clone()], run));
    fs::write(&record, format!("{content}\n}}\n")).unwrap();
    assert!(listed(&project).is_empty());
}

#[test]
fn a_memory_of_sources_that_cannot_be_written_is_a_warning() {
    let project = Project::new();
    fs::create_dir_all(project.path(".pipe/cache/sources.json")).unwrap();
    project.write("r.csv", "a\n1\n");
    let file = manifest(&project, "p", "stages:\n  d: { uses: load_dataset, with: { path: r.csv } }\n");
    // A file written a moment ago is not remembered.
    std::thread::sleep(Duration::from_millis(200));
    let run = project.pipe(&["run", &file]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let warning = run.stderr.lines().find(|line| line.starts_with("warning: ")).unwrap_or(&run.stderr);
    assert!(warning.starts_with("warning: .pipe/cache/sources.json: Is a directory"), "{warning}");
}

#[test]
fn state_that_cannot_be_where_it_is_looked_for_is_named() {
    let project = Project::new();
    let file = manifest(&project, "p", TOUCH);
    project.write("a_file", "");
    symlink("nowhere", project.path("a_link")).unwrap();
    project.write("runs_is_a_file/runs", "");
    project.write("cache_is_a_file/cache", "");
    let at = |home: &str, arguments: &[&str]| {
        Ran::from(project.command(arguments).env("PIPE_HOME", home).output().unwrap())
    };
    for (home, named) in [
        ("a_file", "a_file"),
        ("a_link", "a_link"),
        ("runs_is_a_file", "runs_is_a_file/runs"),
        ("cache_is_a_file", "cache_is_a_file/cache"),
    ] {
        for arguments in [&["run", &file][..], &["plan", &file], &["runs"], &["show"], &["cache", "ls"]] {
            let ran = at(home, arguments);
            assert_eq!(ran.code, Some(2), "{home} {arguments:?}");
            let expected = format!(
                "error: {named} is no folder, and pipe keeps its state there\n  \
                 help: move it away, or name another folder in PIPE_HOME\n"
            );
            assert_eq!(ran.stderr, expected);
        }
    }
    let ran = at("a_file/below", &["run", &file]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.starts_with("error: a_file/below/runs: Not a directory"), "{}", ran.stderr);
    let ran = at("/proc/pipe", &["run", &file]);
    assert_eq!(ran.code, Some(1));
    let expected = "error: the folder for the run can't be made: /proc/pipe/runs: ";
    assert!(ran.stderr.starts_with(expected), "{}", ran.stderr);
}

#[test]
fn any_name_of_a_pipeline_makes_a_folder() {
    let project = Project::new();
    let long = "é".repeat(300);
    for name in ["a/b", "../../up", ".", "..", "/", "물 name", "a\u{202e}b", "latest", &long] {
        project.write("p.yaml", &format!("pipeline: \"{name}\"\n{TOUCH}"));
        let summary = project.run(0, &["p.yaml"]);
        let run = summary.0["run"].as_str().unwrap();
        assert!(!run.contains('/') && run.len() < 200, "{run}");
        assert!(project.path(".pipe/runs").join(run).join("run.json").exists());
        assert_eq!(summary.0["pipeline"], name);
        assert_eq!(shown(&project, "latest"), run);
    }
    assert_eq!(fs::read_dir(project.path(".pipe/runs")).unwrap().count(), 10);
    for name in ["", "  ", "a\\nb", "a\\u001bb"] {
        project.write("p.yaml", &format!("pipeline: \"{name}\"\n{TOUCH}"));
        let ran = project.pipe(&["run", "p.yaml"]);
        assert_eq!(ran.code, Some(2));
        assert!(ran.stderr.starts_with("error: `pipeline` takes a name on one line\n"), "{}", ran.stderr);
    }
}

#[test]
fn numbers_that_are_none_are_kept_in_records() {
    let mut record: pipe::event::RunRecord = serde_json::from_value(serde_json::json!({
        "run": "r", "pipeline": "p", "manifest": "p.yaml", "started": "", "seconds": 0.0, "status": "succeeded",
        "pipe": "", "device": "cpu", "params": {}, "profiles": [], "stages": [
            { "stage": "a", "kind": "evaluate", "status": "ran", "seconds": 0.0, "metrics": { "loss": 1.0 } }]
    }))
    .unwrap();
    record.stages[0].metrics.insert("loss".into(), f64::INFINITY);
    let bytes = serde_json::to_vec(&record).unwrap();
    let back: pipe::event::RunRecord = serde_json::from_slice(&bytes).unwrap();
    assert!(back.stages[0].metrics["loss"].is_nan());
}

#[test]
fn a_run_that_is_going_on_says_so_and_is_not_removed() {
    let project = Project::new();
    let over = ran(&project, "over");
    let stages = "stages:\n  a: { uses: command, with: { run: 'touch $FLAG; sleep 60; touch x', \
                  env: { FLAG: FLAG_PATH }, outputs: { x: { path: x } } } }\n";
    let flag = project.path("started");
    let file = manifest(&project, "long", &stages.replace("FLAG_PATH", flag.to_str().unwrap()));
    let mut child = project.start(&["run", &file]);
    wait_for(|| flag.exists());
    let list = project.pipe(&["runs"]).stdout;
    let long = list.lines().nth(1).unwrap().split(' ').next().unwrap().to_string();
    assert!(list.lines().nth(1).unwrap().contains("-long  running  "), "{list}");
    assert!(project.pipe(&["show"]).stdout.contains(" · running · "));
    let refused = project.pipe(&["runs", "rm", &long]);
    assert_eq!(refused.code, Some(2));
    assert_eq!(refused.stderr, format!("error: .pipe/runs/{long}: the run is going on\n"));
    let removed = project.pipe(&["runs", "rm", "--keep", "0"]).stdout;
    assert!(removed.starts_with("removed 1 run, which freed "), "{removed}");
    assert!(removed.ends_with("; 1 run is going on and stays\n"), "{removed}");
    assert_eq!(listed(&project), [long.as_str()]);
    assert!(!project.path(".pipe/runs").join(over).exists());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(project.pipe(&["runs"]).stdout.contains("-long  unfinished  "));
    assert_eq!(project.pipe(&["runs", "rm", "--status", "unfinished"]).code, Some(0));
    assert!(listed(&project).is_empty());
    assert!(fs::symlink_metadata(project.path(".pipe/runs/latest")).is_err());
}

#[test]
fn runs_are_removed_by_name_status_pipeline_and_age() {
    let project = Project::new();
    let size = |name: &str| fs::metadata(project.path(".pipe/runs").join(name)).is_ok();
    let nothing = project.pipe(&["runs", "rm"]);
    assert_eq!(nothing.code, Some(2));
    assert_eq!(
        nothing.stderr,
        "error: nothing says which runs to remove\n  \
         help: name them, or give --older-than, --status, --pipeline or --keep\n"
    );
    let made: Vec<String> = ["a", "a", "b", "a"].iter().map(|name| ran(&project, name)).collect();
    let wrong = manifest(&project, "wrong", &TOUCH.replace("echo made > x", "exit 3"));
    let failed = project.run(1, &[&wrong]).0["run"].as_str().unwrap().to_string();

    let none = project.pipe(&["runs", "rm", "--older-than", "1h"]).stdout;
    assert_eq!(none, "removed 0 runs, which freed 0 B\n");
    let dry = project.pipe(&["runs", "rm", "--status", "failed", "--dry-run"]).stdout;
    assert!(dry.starts_with(&format!("{failed}\nwould remove 1 run, which frees ")), "{dry}");
    assert!(size(&failed));
    project.pipe(&["runs", "rm", "--status", "failed"]);
    assert!(!size(&failed));
    // The newest is gone: the link points to the one before.
    assert_eq!(shown(&project, "latest"), made[3]);
    project.pipe(&["runs", "rm", "--pipeline", "a", "--keep", "1"]);
    assert_eq!(listed(&project), [made[3].as_str(), &made[2]]);
    let unknown = project.pipe(&["runs", "rm", "nothing"]);
    assert_eq!(unknown.stderr, "error: there is no run `nothing`; `pipe runs` lists them\n");
    let by_name = project.pipe(&["runs", "rm", &made[2], "latest", "--older-than", "0s"]).stdout;
    assert!(by_name.starts_with("removed 2 runs, "), "{by_name}");
    assert_eq!(project.pipe(&["runs"]).stdout, "there are no runs here yet\n");
}

#[test]
fn what_removal_frees_is_told_from_what_others_have() {
    let project = Project::new();
    let file = manifest(
        &project,
        "p",
        "stages:\n  a: { uses: command, with: { run: 'head -c 2000000 /dev/zero > x', outputs: { x: { path: x } } } }\n",
    );
    project.run(0, &[&file]);
    let weigh = |arguments: &[&str]| project.pipe(&[&["runs", "rm", "--dry-run"], arguments].concat()).stdout;
    let linked = |path: &Path| std::os::unix::fs::MetadataExt::nlink(&fs::metadata(path).unwrap()) > 1;
    assert!(linked(&project.path(".pipe/runs/latest/stages/a/x")), "the file system has no links");
    let told = weigh(&["latest"]);
    assert!(told.ends_with("; 2.0 MB more are still in the cache: `pipe cache gc --size SIZE`\n"), "{told}");
    project.run(0, &[&file]);
    project.pipe(&["cache", "gc", "--size", "0", "--grace", "0s"]);
    fs::remove_dir_all(project.path(".pipe/cache")).unwrap();
    let told = weigh(&["latest"]);
    assert!(told.ends_with("; 2.0 MB more are still in other runs\n"), "{told}");
    let told = weigh(&["--keep", "0"]);
    assert!(told.contains("would remove 2 runs, which frees 2.0 MB\n"), "{told}");
}

#[test]
fn what_is_not_known_to_be_an_old_or_unfinished_run_goes_only_by_its_name() {
    let project = Project::new();
    let run = ran(&project, "p");
    project.write(".pipe/runs/my-notes/notes.md", "lab book");
    project.write(&format!(".pipe/runs/{run}/run.json"), "{");
    for filter in [&["--older-than", "0s"][..], &["--status", "unfinished"]] {
        let removed = project.pipe(&[&["runs", "rm"], filter].concat());
        assert_eq!(removed.code, Some(0), "{}", removed.stderr);
        assert!(project.path(".pipe/runs/my-notes/notes.md").exists(), "{filter:?}");
        assert!(project.path(&format!(".pipe/runs/{run}/stages/a/x")).exists(), "{filter:?}");
    }
    assert_eq!(project.pipe(&["runs", "rm", &run]).code, Some(0));
    assert!(!project.path(&format!(".pipe/runs/{run}")).exists());
}
