//! Files from outside: what is read of them is what the key says, whatever they are called; and nothing that is read
//! holds up whoever wants to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod project;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::process::Child;
use std::time::{Duration, Instant};

use polars::prelude::{Column, DataFrame};
use project::{Project, Ran};

/// A pipeline that loads `path`, in seconds at most `timeout`.
fn loading(project: &Project, path: &str, timeout: &str) {
    let text = format!(
        "pipeline: p\nstages:\n  d: {{ uses: load_dataset, timeout: {timeout}, with: {{ path: {path:?} }} }}\n"
    );
    project.write("p.yaml", &text);
}

/// Status and rows of the stage in a run that has to go well.
fn rows(project: &Project, path: &str) -> (String, f64) {
    loading(project, path, "60s");
    let summary = project.run(0, &["p.yaml"]);
    let stage = summary.stage("d");
    (stage["status"].as_str().unwrap().to_owned(), stage["metrics"]["rows.train"].as_f64().unwrap())
}

fn ran(rows: f64) -> (String, f64) {
    ("ran".into(), rows)
}

fn cached(rows: f64) -> (String, f64) {
    ("cached".into(), rows)
}

#[test]
fn what_is_behind_links_is_read_once_and_in_the_key() {
    let project = Project::new();
    project.write("data/a.csv", "x\n1\n");
    project.write("elsewhere/b.csv", "x\n2\n");
    symlink("../elsewhere", project.path("data/link")).unwrap();
    symlink(".", project.path("data/again")).unwrap();
    symlink("..", project.path("elsewhere/up")).unwrap();
    fs::create_dir(project.path("data/deeper")).unwrap();
    symlink("../..", project.path("data/deeper/.hidden")).unwrap();
    symlink("..", project.path("data/deeper/up")).unwrap();
    fs::remove_file(project.path("elsewhere/up")).unwrap();
    assert_eq!(rows(&project, "data"), ran(2.0));
    assert_eq!(rows(&project, "data"), cached(2.0));
    project.write("elsewhere/b.csv", "x\n2\n3\n");
    assert_eq!(rows(&project, "data"), ran(3.0));
    project.write("data/link/c.csv", "x\n4\n");
    assert_eq!(rows(&project, "data"), ran(4.0));
    assert_eq!(rows(&project, "data/*/*.csv"), ran(3.0));
}

#[test]
fn names_are_bytes_and_only_what_the_user_wrote_is_a_pattern() {
    let project = Project::new();
    let at = |name: &[u8]| project.path("run [1]/data").join(OsStr::from_bytes(name));
    project.write("run [1]/data/train-1.csv", "x\n1\n");
    fs::write(at(b"train-\xe9.csv"), "x\n2\n").unwrap();
    fs::write(at(b"notes-\xe9.pdf"), "").unwrap();
    assert_eq!(rows(&project, "run [1]/data"), ran(2.0));
    assert_eq!(rows(&project, "run [1]/data/train-*.csv"), ran(2.0));
    assert_eq!(rows(&project, "run*/data/train-?.csv").1, 2.0);
    let manifest = project.path("p.yaml");
    let inside = project.path("run [1]/p.yaml");
    for (path, from) in [("data/*.csv", "run [1]"), ("data/*.csv", "."), ("data", "run [1]")] {
        loading(&project, path, "60s");
        fs::copy(&manifest, &inside).unwrap();
        let mut command = project.command(&["run", inside.to_str().unwrap(), "--json"]);
        let ran = Ran::from(command.current_dir(project.path(from)).output().unwrap());
        assert_eq!(ran.code, Some(0), "{path} from {from}: {}", ran.stderr);
        let mut command = project.command(&["run", "p.yaml"]);
        if from == "run [1]" {
            let ran = Ran::from(command.current_dir(project.path(from)).output().unwrap());
            assert_eq!(ran.code, Some(0), "{path} from {from}: {}", ran.stderr);
        }
    }
    fs::write(at(b"train-\xe9.csv"), "y\n2\n").unwrap();
    loading(&project, "run [1]/data", "60s");
    let error = project.pipe(&["run", "p.yaml"]).stderr;
    assert!(error.contains(r"train-\xE9.csv"), "{error}");
}

#[test]
fn a_time_that_was_set_back_hides_no_change() {
    let project = Project::new();
    let write = |text: &str| {
        project.write("d.csv", text);
        let old = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        fs::File::options().write(true).open(project.path("d.csv")).unwrap().set_modified(old).unwrap();
    };
    write("x\n1\n");
    assert_eq!(rows(&project, "d.csv"), ran(1.0));
    write("x\n2\n");
    assert_eq!(rows(&project, "d.csv"), ran(1.0));
    assert_eq!(rows(&project, "d.csv"), cached(1.0));
}

#[test]
fn of_a_path_only_what_changes_the_rows_is_in_the_key() {
    let project = Project::new();
    for name in ["a.csv", "other/b.csv", "a.txt", "one/a.csv", "two/a.csv", "two/b.md"] {
        project.write(name, "x\n1\n");
    }
    assert_eq!(rows(&project, "a.csv"), ran(1.0));
    assert_eq!(rows(&project, "other/b.csv"), cached(1.0));
    assert_eq!(rows(&project, "a.txt"), ran(2.0));
    assert_eq!(rows(&project, "one"), ran(1.0));
    assert_eq!(rows(&project, "two/a*"), ran(1.0));
    assert_eq!(rows(&project, "one/*.csv"), cached(1.0));
    fs::rename(project.path("one/a.csv"), project.path("one/test.csv")).unwrap();
    loading(&project, "one", "60s");
    let summary = project.run(0, &["p.yaml"]);
    assert_eq!(summary.stage("d")["metrics"]["rows.test"], 1.0);
}

#[test]
fn a_byte_identical_model_elsewhere_reruns_nothing() {
    let project = Project::tweets();
    for folder in ["models/one", "models/two"] {
        fs::create_dir_all(project.path(folder)).unwrap();
        for file in fs::read_dir(project.path("model")).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), project.path(folder).join(file.file_name())).unwrap();
        }
    }
    let first = project.run(0, &["tweets.yaml", "--set", "model=models/one"]);
    assert_eq!(first.with_status("ran").len(), 6);
    let second = project.run(0, &["tweets.yaml", "--set", "model=models/two"]);
    assert_eq!(second.with_status("cached").len(), 6, "{:?}", second.with_status("ran"));
    // It is the first result, and says where that came from.
    let config = project.read(".pipe/runs/latest/stages/prompt/adapter_config.json");
    assert!(config.contains("models/one"), "{config}");
    // Another tokenizer setting is another model and another tokenizer.
    let config = project.read("models/two/tokenizer_config.json");
    project.write("models/two/tokenizer_config.json", &format!("{config}\n"));
    let third = project.run(0, &["tweets.yaml", "--set", "model=models/two"]);
    assert!(third.with_status("ran").contains(&"tokens"));
}

#[test]
fn what_is_no_file_or_is_gone_is_named() {
    let project = Project::new();
    let refusal = |path: &str| {
        loading(&project, path, "60s");
        let ran = project.pipe(&["run", "p.yaml"]);
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        ran.stderr
    };
    let pipe = std::process::Command::new("mkfifo").arg(project.path("pipe.csv")).status().unwrap();
    assert!(pipe.success());
    let _socket = std::os::unix::net::UnixListener::bind(project.path("socket.csv")).unwrap();
    assert!(refusal("pipe.csv").contains("pipe.csv: this is a named pipe, and a file is needed"));
    assert!(refusal("*.csv").contains(".csv: this is a "));
    assert!(refusal("socket.csv").contains("socket.csv: this is a socket, and a file is needed"));
    assert!(refusal("/dev/zero").contains("/dev/zero: this is a device, and a file is needed"));
    fs::create_dir(project.path("data")).unwrap();
    symlink("nowhere.csv", project.path("data/gone.csv")).unwrap();
    let error = refusal("data");
    assert!(error.contains("gone.csv: No such file or directory"), "{error}");
}

fn interrupt(child: &Child) {
    let status = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

/// How long the child still runs, and its exit code.
fn end(mut child: Child) -> (Duration, Option<i32>) {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    (start.elapsed(), child.wait().unwrap().code())
}

const LONG: Duration = Duration::from_secs(5);

/// A short timeout ends the loading of this, and so does Ctrl-C.
fn ends_early(project: &Project, path: &str) {
    loading(project, path, "0.3s");
    let start = Instant::now();
    let ran = project.pipe(&["run", "p.yaml"]);
    assert_eq!(ran.code, Some(1), "{path}: {}", ran.stderr);
    assert!(ran.stderr.contains("not done after its timeout of 0.3 s"), "{path}: {}", ran.stderr);
    assert!(start.elapsed() < LONG, "{path} took {:?}", start.elapsed());

    loading(project, path, "600s");
    fs::remove_dir_all(project.path(".pipe")).unwrap();
    let child = project.start(&["run", "p.yaml"]);
    // The record is there before the first stage starts.
    let start = Instant::now();
    while !project.path(".pipe/runs/latest/run.json").exists() {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(200));
    interrupt(&child);
    let (took, code) = end(child);
    assert_eq!(code, Some(130), "{path}");
    assert!(took < LONG, "{path} took {took:?}");
}

#[test]
fn hashing_is_stopped_at_once() {
    let project = Project::new();
    fs::File::create(project.path("huge.csv")).unwrap().set_len(1 << 42).unwrap();
    ends_early(&project, "huge.csv");
    // Before a run begins nothing is there to be ended in order.
    let child = project.start(&["plan", "p.yaml"]);
    std::thread::sleep(Duration::from_millis(500));
    interrupt(&child);
    let (took, code) = end(child);
    assert!(took < LONG && code != Some(0), "{took:?} {code:?}");
}

#[test]
fn reading_rows_is_stopped_at_once() {
    let project = Project::new();
    let names = |many: usize| (0..many).map(|n| format!("c{n}")).collect::<Vec<_>>();
    // A column has a price of its own when it is written, and so have the keys of an object.
    let wide = names(1_000_000);
    project.write("wide.csv", &format!("{}\n{}1\n", wide.join(","), "1,".repeat(wide.len() - 1)));
    ends_early(&project, "wide.csv");
    let keys: Vec<String> = names(200_000).iter().map(|name| format!("\"{name}\":1")).collect();
    project.write("deep.jsonl", &format!("{{\"a\":{{{}}}}}\n", keys.join(",")));
    ends_early(&project, "deep.jsonl");
}

#[test]
fn decoding_parquet_is_stopped_at_once() {
    let project = Project::new();
    // Rows that take no room in the file, and much of it in memory.
    let column = Column::new("x".into(), vec![7i64; 1 << 22]);
    let columns = (0..24).map(|n| column.clone().with_name(format!("c{n}").as_str().into())).collect();
    let frame = DataFrame::new(1 << 22, columns).unwrap();
    pipe::artifact::parquet::write_parquet(&frame, &project.path("big.parquet")).unwrap();
    ends_early(&project, "big.parquet");
}
