//! Programs of `command` stages: what is heard of them, and that nothing they start outlives them or writes into
//! another's result.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod project;

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use project::{Project, Ran, Summary};
use serde_json::{Value, json};

/// Waits until the condition holds; a minute at most.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(name: &str, process: &str) -> bool {
    let ran = Command::new("kill").args([name, process]).output();
    ran.unwrap().status.success()
}

/// Whether a process is there and not merely waiting to be reaped by its parent.
fn is_running(process: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// A project with one stage, `a`, whose program writes the numbers of its processes into a file; what is left of them
/// ends with the test.
struct Stage {
    project: Project,
    processes: PathBuf,
}

impl Stage {
    /// `PIDS` in the program's text stands for the file.
    fn new(run: &str) -> Self {
        Self::with(&json!({ "run": run, "outputs": { "x": { "path": "x" } } }), &json!({}))
    }

    fn with(with: &Value, keys: &Value) -> Self {
        let project = Project::new();
        let processes = project.path("processes");
        let mut stage = json!({ "uses": "command", "with": with });
        for (key, value) in keys.as_object().unwrap() {
            stage[key] = value.clone();
        }
        let manifest = json!({ "pipeline": "p", "stages": { "a": stage } }).to_string();
        project.write("p.yaml", &manifest.replace("PIDS", processes.to_str().unwrap()));
        Self { project, processes }
    }

    fn processes(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.processes).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn running(&self) -> Vec<String> {
        self.processes().into_iter().filter(|process| is_running(process)).collect()
    }

    /// Starts a run and waits until so many processes are there.
    fn start(&self, count: usize) -> Child {
        let child = self.project.start(&["run", "p.yaml", "--json"]);
        until("the program begins", || self.processes().len() == count);
        child
    }

    fn run(&self, code: i32) -> Heard {
        Heard::of(self.project.pipe(&["run", "p.yaml", "--json"]), code)
    }

    fn result(&self, name: &str) -> String {
        self.project.read(&format!(".pipe/runs/latest/stages/a/{name}"))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for process in self.running() {
            signal("-KILL", &process);
        }
    }
}

/// What a run said.
struct Heard {
    summary: Summary,
    notes: Vec<String>,
    warnings: Vec<String>,
}

impl Heard {
    fn of(ran: Ran, code: i32) -> Self {
        assert_eq!(ran.code, Some(code), "{}\n{}", ran.stdout, ran.stderr);
        let events: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let texts = |name: &str| {
            let named = events.iter().filter(|event| event["event"] == name);
            named.map(|event| event["text"].as_str().unwrap().to_owned()).collect()
        };
        let (notes, warnings) = (texts("stage_note"), texts("stage_warning"));
        Self { summary: Summary::of(&ran.stdout), notes, warnings }
    }

    fn error(&self) -> &str {
        self.summary.stage("a")["error"]["message"].as_str().unwrap()
    }
}

fn failure(run: &str) -> String {
    Stage::new(run).run(1).error().to_owned()
}

#[test]
fn a_program_reads_its_inputs_and_writes_into_its_folder() {
    let project = Project::new();
    project.write(
        "p.yaml",
        r#"pipeline: p
stages:
  before: { uses: command, with: { run: "printf 'a\n1\n' > in.csv", outputs: { rows: { path: in.csv } } } }
  a:
    uses: command
    inputs: { raw-rows: before }
    with:
      run: |
        cat "$PIPE_INPUT_RAW_ROWS" > "$PIPE_OUTPUT/table.csv"
        echo $GREETING
        echo low >&2
      outputs: { table: { path: table.csv } }
      env: { GREETING: hello }
"#,
    );
    let mut heard = Heard::of(project.pipe(&["run", "p.yaml", "--json"]), 0);
    heard.notes.sort();
    assert_eq!(heard.notes, ["hello", "low"]);
    assert_eq!(project.read(".pipe/runs/latest/stages/a/table.csv"), "a\n1\n");
    let log = project.read(".pipe/runs/latest/stages/a/command.log");
    assert!(log == "hello\nlow\n" || log == "low\nhello\n", "{log}");
}

#[test]
fn a_list_is_run_without_a_shell() {
    let with = json!({ "run": ["printf", "%s\\n", "$HOME; a b"], "outputs": { "all": { "path": "." } } });
    assert_eq!(Stage::with(&with, &json!({})).run(0).notes, ["$HOME; a b"]);
}

#[test]
fn a_failure_shows_the_code_and_the_last_lines() {
    let last: Vec<String> = (6..=25).map(|i| format!("\n  line {i}")).collect();
    assert_eq!(
        failure("for i in $(seq 1 25); do echo line $i; done; exit 3"),
        format!("the program ended with exit code 3; its last lines:{}", last.concat())
    );
    assert_eq!(failure("kill -9 $$"), "the program was ended by signal 9, and wrote nothing");
    assert_eq!(failure("kill -40 $$"), "the program was ended by signal 40, and wrote nothing");
    // The first line that fails ends it.
    assert_eq!(failure("false\necho on > x"), "the program ended with exit code 1, and wrote nothing");
    let absent = json!({ "run": ["no-such-program"], "outputs": { "a": { "path": "a" } } });
    assert_eq!(
        Stage::with(&absent, &json!({})).run(1).error(),
        "`no-such-program` can't be started: No such file or directory (os error 2)"
    );
}

#[test]
fn an_output_that_is_not_there_is_named() {
    let heard = Stage::new("touch x.tsv").run(1);
    assert_eq!(heard.error(), "the program ended well, but did not write `x`, its output `x`");
    assert_eq!(
        heard.summary.stage("a")["error"]["help"],
        "paths are relative to the folder it runs in, $PIPE_OUTPUT"
    );
    assert_eq!(failure("ln -s /etc/passwd x"), "output `x`: `x` is a link out of the stage's folder");
}

#[test]
fn much_output_is_passed_on_in_part_and_logged_whole() {
    let stage = Stage::new("seq 1 5000; printf '10%%\\r100%%\\n'; touch x");
    let heard = stage.run(0);
    assert_eq!(heard.notes.len(), 201);
    assert_eq!(heard.notes[200], "… the rest is in command.log");
    let whole: String = (1..=5000).map(|i| format!("{i}\n")).collect();
    assert_eq!(stage.result("command.log"), whole + "10%\r100%\n");
}

#[test]
fn the_log_is_written_by_pipe_alone() {
    let stage =
        Stage::new("touch x ../victim; ln -s ../victim command.log; echo mine > command.log; echo said");
    let heard = stage.run(0);
    assert_eq!(stage.result("command.log"), "said\n");
    assert_eq!(
        heard.warnings,
        ["the program wrote `command.log`, where pipe keeps what it says; its own file is not kept"]
    );
}

#[test]
fn what_a_program_leaves_running_ends_with_it_and_is_named() {
    let stage = Stage::new("sleep 301 & echo $! > PIDS; touch x");
    let heard = stage.run(0);
    assert_eq!(stage.running(), [""; 0]);
    let left = &stage.processes()[0];
    let text = format!("the program left a process behind, which was ended: sleep 301 (pid {left})");
    assert_eq!(heard.warnings, [text]);
}

#[test]
fn what_ends_by_itself_right_after_the_program_may_finish_its_work() {
    // As `tee` behind the output of a shell that does not wait for it.
    let heard = Stage::new("(sleep 0.02; echo whole > x) & touch x").run(0);
    assert_eq!(heard.warnings, [""; 0]);
}

#[test]
fn a_daemon_ends_with_its_program_whatever_it_did_to_get_away() {
    for (run, count) in [
        // A session of its own, and a file held open.
        (
            "printf 0.50 > x; setsid sh -c 'exec 3<>x; echo $$ >> PIDS; sleep 302; printf 0.99 >&3' & until test -s PIDS; do sleep 0.01; done",
            1,
        ),
        // Adopted by another process, twice over, outputs closed.
        (
            "printf 0.50 > x; (setsid sh -c '(sh -c \"echo \\$\\$ >> PIDS; trap : HUP TERM INT; while :; do sleep 302; done\" &) ' >/dev/null 2>&1 &); until test -s PIDS; do sleep 0.01; done",
            1,
        ),
        // Starts another as soon as it can.
        (
            "printf 0.50 > x; setsid sh -c 'echo $$ >> PIDS; while :; do sleep 0.001 & done' & until test -s PIDS; do sleep 0.01; done",
            1,
        ),
    ] {
        let stage = Stage::new(run);
        let heard = stage.run(0);
        assert_eq!(stage.processes().len(), count, "{run}");
        assert_eq!(stage.running(), [""; 0], "{run}");
        assert!(heard.warnings[0].contains("behind, which w"), "{:?}", heard.warnings);
        assert_eq!(stage.result("x"), "0.50");
        assert_eq!(stage.project.pipe(&["cache", "verify"]).code, Some(0));
    }
}

/// A server started for a test, its log on the program's output.
const CHATTY: &str =
    "setsid sh -c 'echo $$ > PIDS; while :; do echo hi; done' & until test -s PIDS; do sleep 0.01; done; ";

#[test]
fn a_chatty_daemon_does_not_hold_the_stage_up() {
    let stage = Stage::new(&format!("{CHATTY} touch x"));
    let began = Instant::now();
    let heard = stage.run(0);
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(heard.warnings.len(), 1, "{:?}", heard.warnings);
    assert_eq!(stage.running(), [""; 0]);
}

#[test]
fn a_chatty_program_hears_timeouts_and_ctrl_c() {
    let with = json!({ "run": format!("{CHATTY} sleep 303"), "outputs": { "x": { "path": "x" } } });
    let slow = Stage::with(&with, &json!({ "timeout": "1s" }));
    assert_eq!(slow.run(1).error(), "not done after its timeout of 1 s");
    assert_eq!(slow.running(), [""; 0]);
    let stage = Stage::with(&with, &json!({}));
    let child = stage.start(1);
    signal("-INT", &child.id().to_string());
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    assert_eq!(stage.running(), [""; 0]);
}

#[test]
fn an_interrupt_or_a_timeout_ends_the_program_and_all_it_started() {
    for run in [
        "sleep 304 & echo $$ $! > PIDS; wait",
        "trap '' TERM INT; (trap '' TERM INT; sleep 304) & echo $$ $! > PIDS; while :; do sleep 1; done",
    ] {
        let stage = Stage::new(run);
        let child = stage.start(2);
        signal("-INT", &child.id().to_string());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(stage.running(), [""; 0], "{run}");
        let with = json!({ "run": run, "outputs": { "x": { "path": "x" } } });
        let slow = Stage::with(&with, &json!({ "timeout": "1s" }));
        assert_eq!(slow.run(1).error(), "not done after its timeout of 1 s");
        assert_eq!((slow.processes().len(), slow.running()), (2, Vec::new()), "{run}");
    }
}

#[test]
fn a_program_that_closed_its_outputs_is_waited_for() {
    let stage = Stage::new("exec >&- 2>&-; sleep 0.3; echo done > x");
    stage.run(0);
    assert_eq!(stage.result("x"), "done\n");
}

/// Ten lines, one after the other.
const TEN: &str =
    "echo $$ >> PIDS; for i in 1 2 3 4 5 6 7 8 9 10; do echo line $i >> \"$PIPE_OUTPUT/x\"; sleep 0.05; done";

/// The processes between a run and its programs.
fn supervisors(run: &Child) -> Vec<String> {
    let children = format!("/proc/{0}/task/{0}/children", run.id());
    let mut found: Vec<String> = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", run.id())).unwrap().flatten() {
        let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(text.split_whitespace().map(str::to_owned));
    }
    assert!(!found.is_empty(), "{children}");
    found
}

#[test]
fn killed_at_any_moment_a_run_leaves_nothing_that_writes_into_the_next() {
    let lines: String = (1..=10).map(|i| format!("line {i}\n")).collect();
    for both in [false, true] {
        let stage = Stage::new(TEN);
        let mut child = stage.start(1);
        let watching = supervisors(&child);
        signal("-KILL", &child.id().to_string());
        if both {
            for supervisor in watching {
                signal("-KILL", &supervisor);
            }
        }
        child.wait().unwrap();
        stage.run(0);
        assert_eq!(stage.result("x"), lines, "both {both}");
        assert_eq!(stage.running(), [""; 0], "both {both}");
    }
}

#[test]
fn the_next_run_waits_until_all_of_a_killed_one_is_dead() {
    // A process that does not mind being asked, out of the group, and the result it would write into.
    let stage = Stage::new(
        "setsid sh -c 'trap : TERM HUP INT; echo $$ >> PIDS; while :; do echo more >> x; sleep 0.01; done' & \
         until test -s x; do sleep 0.01; done; if test $(wc -l < PIDS) = 1; then sleep 305; fi",
    );
    let mut child = stage.start(1);
    let first = stage.processes();
    child.kill().unwrap();
    child.wait().unwrap();
    stage.run(0);
    assert!(!is_running(&first[0]));
    assert_eq!((stage.processes().len(), stage.running()), (2, Vec::new()));
    let before = stage.result("x");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(stage.result("x"), before);
}

#[test]
fn a_supervisor_that_is_killed_fails_the_stage() {
    let stage = Stage::new("echo $$ > PIDS; exec sleep 306");
    let child = stage.start(1);
    for supervisor in supervisors(&child) {
        signal("-KILL", &supervisor);
    }
    let heard = Heard::of(child.wait_with_output().unwrap().into(), 1);
    assert_eq!(heard.error(), "the program can't be waited for: the process that watched over it was killed");
    until("the program dies with it", || stage.running().is_empty());
}

#[test]
fn the_hidden_commands_are_not_shown() {
    let help = Project::new().pipe(&["--help"]);
    assert!(!help.stdout.contains("__"), "{}", help.stdout);
}
