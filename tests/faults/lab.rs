//! The project that is run, its right bytes, and what is looked at to tell.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Commands that write slowly, leave daemons and change their inputs; data, training, evaluation, text. What a daemon
/// writes comes long after its program is over, so that it is never part of the right bytes.
const MANIFEST: &str = r#"pipeline: faults
stages:
  slow:
    uses: command
    with:
      run: |
        for i in 1 2 3 4 5 6 7 8; do echo "line $i" >> "$PIPE_OUTPUT/out.txt"; sleep 0.02; done
        mkdir empty; printf '#!/bin/sh\necho ran\n' > run.sh; chmod +x run.sh
      outputs: { out: { path: out.txt }, all: { path: . } }
  daemon:
    uses: command
    with:
      run: |
        printf 'accuracy 0.50\n' > out.txt
        export LEADER=$$
        late='while kill -0 $LEADER 2> /dev/null; do sleep 0.05; done; sleep 2'
        setsid sh -c "exec 3<>out.txt; $late; echo late; printf 'accuracy 0.99\n' >&3; sleep 30" &
        (setsid sh -c "trap : TERM HUP; $late; while :; do sleep 0.05; echo more >> late.txt; done" > /dev/null 2>&1 &)
        sleep 0.05
      outputs: { out: { path: out.txt } }
  edits:
    uses: command
    inputs: { lines: slow.out, number: daemon.out }
    with:
      run: |
        sed -i 's/line/LINE/' "$PIPE_INPUT_LINES" || true
        echo more >> "$PIPE_INPUT_NUMBER" || true
        cat "$PIPE_INPUT_LINES" "$PIPE_INPUT_NUMBER" > out.txt
      outputs: { out: { path: out.txt } }
  reads:
    uses: command
    inputs: { lines: slow.out, edited: edits.out }
    with:
      run: 'cat "$PIPE_INPUT_LINES" "$PIPE_INPUT_EDITED" > out.txt; sleep 0.05'
      outputs: { out: { path: out.txt } }
  tweets:
    uses: load_dataset
    with: { path: data }
  halves:
    uses: split
    inputs: { dataset: tweets }
    with: { of: train, test_size: 0.25, seed: 3 }
  named:
    uses: transform
    inputs: { dataset: halves }
    with: { steps: [ { rename: { "Tweet text": text } }, { drop: [ID] } ] }
  labelled:
    uses: relabel
    inputs: { dataset: named }
    with: { column: Label, into: label, names: [Unlabeled, complaint, no_complaint] }
  tokens:
    uses: tokenize
    inputs: { dataset: labelled }
    with: { tokenizer: model, prompt: "Tweet text : {text} Label : ", target: "{label}" }
  prompt:
    uses: train_soft_prompt
    inputs: { dataset: tokens }
    with: { model: model, num_virtual_tokens: 4, learning_rate: 0.01, epochs: 30, batch_size: 4, save_every: 20, keep: 2 }
  scores:
    uses: evaluate
    inputs: { dataset: tokens, adapter: prompt }
  answers:
    uses: generate
    inputs: { adapter: prompt }
    with: { prompts: ["Tweet text : it is bad Label : "], max_new_tokens: 4 }
"#;

/// Stages that take something from another.
pub const FOLLOWING: [&str; 9] =
    ["edits", "reads", "halves", "named", "labelled", "tokens", "prompt", "scores", "answers"];

/// What a run left: every file of its stages, by path, with whether it is executable.
pub type Outputs = BTreeMap<PathBuf, (Vec<u8>, bool)>;

pub struct Lab {
    folder: Option<tempfile::TempDir>,
    root: PathBuf,
    pipe: PathBuf,
    pub right: Outputs,
    /// What the entry of each key says of its outputs.
    pub entries: BTreeMap<String, Value>,
    /// How long an undisturbed run takes.
    pub takes: Duration,
}

impl Lab {
    /// Makes the project, and runs it undisturbed, twice: what differs between two such runs can't be held to anything.
    pub fn new(pipe: &Path) -> Result<Self, String> {
        let folder = tempfile::Builder::new().prefix("faults-").tempdir().map_err(|e| e.to_string())?;
        let root = folder.path().to_path_buf();
        let mut csv = "Tweet text,ID,Label\n".to_owned();
        for i in 0..24 {
            let (text, label) = if i % 2 == 0 { ("it is bad", 1) } else { ("thank you", 2) };
            csv += &format!("{text} {i},{i},{label}\n");
        }
        fs::create_dir(root.join("data")).unwrap();
        fs::write(root.join("data/train.csv"), csv).unwrap();
        fs::write(root.join("p.yaml"), MANIFEST).unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bloom");
        std::os::unix::fs::symlink(model, root.join("model")).unwrap();
        let mut lab = Self {
            folder: Some(folder),
            root,
            pipe: pipe.into(),
            right: Outputs::new(),
            entries: BTreeMap::new(),
            takes: Duration::ZERO,
        };
        let mut seen = Vec::new();
        for name in ["clean-1", "clean-2"] {
            let home = lab.home(name);
            let began = Instant::now();
            let ran = home.run(&[]);
            let takes = began.elapsed();
            if !ran.status.success() {
                return Err(format!("the undisturbed run failed:\n{}", String::from_utf8_lossy(&ran.stderr)));
            }
            seen.push((home.outputs(), home.entries()));
            lab.takes = takes;
        }
        let (outputs, entries) = seen.remove(0);
        let lines = |word: &str| (1..=8).map(|i| format!("{word} {i}\n")).collect::<String>();
        let number = "accuracy 0.50\n";
        let edited = format!("{}{number}more\n", lines("LINE"));
        for (path, text) in [
            ("slow/out.txt", lines("line")),
            ("daemon/out.txt", number.to_owned()),
            ("edits/out.txt", edited.clone()),
            ("reads/out.txt", lines("line") + &edited),
        ] {
            let found = outputs.get(Path::new(path)).map(|(bytes, _)| String::from_utf8_lossy(bytes));
            if found.as_deref() != Some(&text) {
                return Err(format!("{path} is wrong in an undisturbed run: {found:?}, {text:?} is right"));
            }
        }
        if let Some(text) = difference(&outputs, &seen[0].0) {
            return Err(format!("two undisturbed runs differ: {text}"));
        }
        if entries != seen[0].1 {
            return Err("two undisturbed runs differ in what their entries say of outputs".into());
        }
        (lab.right, lab.entries) = (outputs, entries);
        Ok(lab)
    }

    pub fn home(&self, name: &str) -> Home<'_> {
        Home { lab: self, folder: self.root.join(name) }
    }

    /// Leaves everything where it is.
    pub fn keep(&mut self) -> PathBuf {
        self.folder.take().map_or_else(|| self.root.clone(), tempfile::TempDir::keep)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        end_all(&self.root);
    }
}

/// A state of its own.
pub struct Home<'a> {
    lab: &'a Lab,
    pub folder: PathBuf,
}

impl Home<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.lab.pipe);
        command.args(arguments).current_dir(&self.lab.root);
        command.env("PIPE_HOME", &self.folder).env("NO_COLOR", "1").env("HF_HUB_OFFLINE", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn pipe(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn run(&self, more: &[&str]) -> Output {
        self.pipe(&[&["run", "p.yaml"], more].concat())
    }

    pub fn start(&self, more: &[&str]) -> Child {
        let mut command = self.command(&[&["run", "p.yaml"], more].concat());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// The folder of the newest layout of the cache.
    pub fn cache(&self) -> PathBuf {
        let mut layouts: Vec<(u32, PathBuf)> = listed(&self.folder.join("cache"))
            .into_iter()
            .filter_map(|path| Some((path.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()?, path)))
            .collect();
        layouts.sort();
        layouts.pop().map_or_else(|| self.folder.join("cache"), |(_, path)| path)
    }

    /// What the newest run left.
    pub fn outputs(&self) -> Outputs {
        let stages = self.folder.join("runs/latest/stages");
        let mut outputs = Outputs::new();
        for path in files(&stages) {
            let bytes = fs::read(&path).unwrap_or_default();
            let is_executable = fs::metadata(&path).is_ok_and(|m| m.permissions().mode() & 0o111 != 0);
            let name = path.strip_prefix(&stages).unwrap().to_path_buf();
            let bytes = if name.ends_with("steps.jsonl") { without_seconds(&bytes) } else { bytes };
            outputs.insert(name, (bytes, is_executable));
        }
        outputs
    }

    /// By key, what each entry says of its outputs; none for what is no JSON.
    pub fn entries(&self) -> BTreeMap<String, Value> {
        let mut entries = BTreeMap::new();
        for path in listed(&self.cache().join("entries")) {
            let Ok(entry) = serde_json::from_slice::<Value>(&fs::read(&path).unwrap_or_default()) else {
                continue;
            };
            let key = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            entries.insert(key, entry["outputs"].clone());
        }
        entries
    }

    /// What is wrong in the newest run, if anything is; `below` a stage, or in all.
    pub fn fault(&self, below: &str) -> Option<String> {
        let only = |outputs: &Outputs| -> Outputs {
            outputs
                .iter()
                .filter(|(path, _)| path.starts_with(below))
                .map(|(p, o)| (p.clone(), o.clone()))
                .collect()
        };
        difference(&only(&self.lab.right), &only(&self.outputs()))
    }

    /// Which key has an entry that names other outputs than the right ones.
    pub fn wrong_entry(&self) -> Option<String> {
        let wrong = |(key, outputs): &(&String, &Value)| {
            self.lab.entries.get(*key).is_some_and(|right| right != *outputs)
        };
        let entries = self.entries();
        entries.iter().find(wrong).map(|(key, _)| format!("the entry {key} names other outputs"))
    }

    pub fn remove(&self) {
        // What is left of a killed run may still write for a moment.
        for _ in 0..100 {
            if fs::remove_dir_all(&self.folder).is_ok() || !self.folder.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// In what two results differ.
fn difference(right: &Outputs, found: &Outputs) -> Option<String> {
    for (path, (bytes, is_executable)) in right {
        let Some((other, also)) = found.get(path) else {
            return Some(format!("{} is missing", path.display()));
        };
        if bytes != other {
            let at =
                bytes.iter().zip(other).position(|(a, b)| a != b).unwrap_or(bytes.len().min(other.len()));
            return Some(format!(
                "{} differs at byte {at} ({} bytes, {} are right)",
                path.display(),
                other.len(),
                bytes.len()
            ));
        }
        if is_executable != also {
            return Some(format!("{} has another mode", path.display()));
        }
    }
    found
        .keys()
        .find(|path| !right.contains_key(*path))
        .map(|path| format!("{} is one too many", path.display()))
}

/// The times that steps took differ from run to run.
fn without_seconds(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    let line = |line: &str| match serde_json::from_str::<Value>(line) {
        Ok(Value::Object(mut step)) => {
            step.remove("seconds");
            Value::Object(step).to_string() + "\n"
        }
        _ => line.to_owned() + "\n",
    };
    text.lines().map(line).collect::<String>().into_bytes()
}

/// What is in a folder, sorted.
pub fn listed(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    found.sort();
    found
}

/// Every file below a folder, sorted; links to folders are not followed below it.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in listed(folder) {
        if fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            found.extend(files(&path))
        } else {
            found.push(path)
        }
    }
    found
}

/// The processes that run for a state or a project: they have its path in their environment. Those that are over and
/// not yet buried have none.
pub fn processes(of: &Path) -> Vec<u32> {
    let needle = of.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for path in listed(Path::new("/proc")) {
        let Some(id) = path.file_name().and_then(|n| n.to_str()?.parse::<u32>().ok()) else { continue };
        let environment = fs::read(path.join("environ")).unwrap_or_default();
        let holds = environment.windows(needle.len()).any(|part| part == needle);
        if holds && id != std::process::id() {
            found.push(id);
        }
    }
    found
}

/// Kills a process.
pub fn signal(name: &str, process: u32) {
    let _ = Command::new("kill").args([name, &process.to_string()]).stderr(Stdio::null()).status();
}

/// Kills what runs for a project until nothing does.
pub fn end_all(of: &Path) {
    for _ in 0..100 {
        let left = processes(of);
        if left.is_empty() {
            return;
        }
        left.into_iter().for_each(|process| signal("-KILL", process));
        std::thread::sleep(Duration::from_millis(10));
    }
}
