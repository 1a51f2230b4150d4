//! A run as a person follows it: bars on a terminal, plain lines anywhere else.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{DecimalBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{number, seconds};
use crate::event::{Event, Listen, RunRecord, RunStatus, StageRecord, Status};

/// How often a running stage says how far it is where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Shows a run on standard error and its summary on standard output.
pub struct Console {
    state: Mutex<State>,
    bars: Option<MultiProgress>,
    color: bool,
}

#[derive(Default)]
struct State {
    width: usize,
    running: BTreeMap<String, Running>,
}

struct Running {
    bar: Option<ProgressBar>,
    said: Instant,
}

impl Console {
    /// For this terminal, or for a file or pipe.
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bars = terminal.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));
        Self { state: Mutex::default(), bars, color: super::color() }
    }

    fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| super::err(&format!("{text}\n"))),
            None => super::err(&format!("{text}\n")),
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    fn status(&self, status: Status) -> String {
        let code = match status {
            Status::Ran => "32",
            Status::Cached => "36",
            Status::Failed => "1;31",
            Status::Interrupted => "33",
            Status::Skipped | Status::NotReached => "2",
        };
        // Padded before it is painted: colour codes have no width on the screen.
        self.paint(code, &format!("{:<11}", status.word()))
    }

    fn bar(&self) -> ProgressBar {
        match &self.bars {
            Some(bars) => bars.add(ProgressBar::new(0)),
            None => ProgressBar::hidden(),
        }
    }

    fn finished(&self, state: &mut State, record: &StageRecord) {
        if let Some(Running { bar: Some(bar), .. }) = state.running.remove(&record.stage) {
            bar.finish_and_clear();
        }
        let mut line = format!("  {} {:<w$}", self.status(record.status), record.stage, w = state.width);
        match record.status {
            Status::Ran | Status::Cached | Status::Failed => {
                line += &format!("  {}", seconds(record.seconds))
            }
            Status::Skipped if !record.why.is_empty() => line += &format!("  {}", record.why.join("; ")),
            _ => {}
        }
        let figures = figures(&record.metrics);
        if !figures.is_empty() {
            line += &format!("  {}", self.paint("2", &figures.join(" · ")));
        }
        self.line(line.trim_end());
        if let Some(error) = &record.error {
            let mut text = format!("{}: stage `{}` failed", self.paint("1;31", "error"), record.stage);
            text += &format!("\n  {}", error.message.replace('\n', "\n  "));
            if let Some(help) = &error.help {
                text += &format!("\n  {} {help}", self.paint("1", "help:"));
            }
            self.line(&text);
        }
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

/// The unit of downloads, which is shown as people say it.
const BYTES: &str = "bytes";

/// With an end in sight: a bar and the time that is left; else only what is being done.
fn style(total: u64, unit: &str) -> ProgressStyle {
    let template = match (total, unit) {
        (0, _) => "  {prefix} {wide_msg}",
        (_, BYTES) => {
            "  {prefix} {bar:16} {decimal_bytes}/{decimal_total_bytes} · {decimal_bytes_per_sec} · {eta} left · {wide_msg}"
        }
        _ => "  {prefix} {bar:16} {pos}/{len} · {eta} left · {wide_msg}",
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸ ")
}

/// Metrics in words; a figure of the untuned model stands behind the one it belongs to.
pub fn figures(metrics: &BTreeMap<String, f64>) -> Vec<String> {
    metrics
        .iter()
        .filter(|(name, _)| !name.starts_with("untuned."))
        .map(|(name, value)| {
            let base = metrics.get(&format!("untuned.{name}"));
            let base = base.map(|b| format!(" (untuned {})", number(*b))).unwrap_or_default();
            format!("{} {}{base}", name.replace('_', " "), number(*value))
        })
        .collect()
}

impl Listen for Console {
    fn on(&self, event: &Event) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let w = state.width;
        match &event.with_texts(&crate::terminal::harmless) {
            Event::RunStarted { pipeline, stages, .. } => {
                let pipeline = &crate::terminal::harmless(pipeline);
                state.width = stages.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
                self.line(&format!("{} · {} stages", self.paint("1", pipeline), stages.len()));
            }
            Event::StageWaiting { stage } => {
                self.line(&format!("  {:<11} {stage:<w$}  another pipe is making this result", "waiting"));
            }
            Event::StageStarted { stage, why, .. } => {
                let why: Vec<String> = why.iter().map(|c| c.to_string()).collect();
                // A first run has nothing to explain: what it does is seen soon enough.
                if !why.is_empty() {
                    self.line(&format!("  {:<11} {stage:<w$}  {}", "started", why.join("; ")));
                }
                let running = Running { bar: None, said: Instant::now() };
                state.running.insert(stage.clone(), running);
            }
            Event::StageProgress { stage, done, total, unit, detail } => {
                let Some(running) = state.running.get_mut(stage) else { return };
                if self.bars.is_some() {
                    let bar = running.bar.get_or_insert_with(|| self.bar());
                    bar.set_length(*total);
                    bar.set_position(*done);
                    bar.set_style(style(*total, unit));
                    bar.set_prefix(stage.clone());
                    bar.set_message(match *unit {
                        BYTES => detail.clone(),
                        unit => format!("{unit} {detail}"),
                    });
                } else if running.said.elapsed() >= PLAIN_EVERY {
                    running.said = Instant::now();
                    let far = match *unit {
                        BYTES => format!("{}/{}", DecimalBytes(*done), DecimalBytes(*total)),
                        unit => format!("{done}/{total} {unit}"),
                    };
                    self.line(&format!("  {:<11} {stage:<w$}  {far} {detail}", "…"));
                }
            }
            Event::StageNote { stage, text } => {
                self.line(&format!("  {:<11} {}", "", self.paint("2", &format!("{stage:<w$}  {text}"))));
            }
            Event::StageWarning { stage, text } => {
                self.line(&format!(
                    "  {} {stage:<w$}  {text}",
                    self.paint("33", &format!("{:<11}", "warning"))
                ));
            }
            Event::StageFinished(record) => self.finished(&mut state, record),
            Event::Note { text } => self.line(text),
            Event::Stopping => {
                self.line("stopping: what is under way is being ended; once more (Ctrl-C) to leave at once");
            }
            Event::RunFinished(record) => {
                for (_, running) in std::mem::take(&mut state.running) {
                    if let Some(bar) = running.bar {
                        bar.finish_and_clear();
                    }
                }
                super::out(&summary(record));
            }
        }
    }
}

/// The last lines of a run.
fn summary(record: &RunRecord) -> String {
    let count = |status| record.stages.iter().filter(|s| s.status == status).count();
    let mut counts = Vec::new();
    for status in [
        Status::Ran,
        Status::Cached,
        Status::Skipped,
        Status::Failed,
        Status::Interrupted,
        Status::NotReached,
    ] {
        if count(status) > 0 {
            counts.push(format!("{} {}", count(status), status.word()));
        }
    }
    let end = match record.status {
        RunStatus::Succeeded | RunStatus::Running => "done",
        RunStatus::Failed => "failed",
        RunStatus::Interrupted => "interrupted",
    };
    format!("{end} in {}: {} · run {}\n", seconds(record.seconds), counts.join(", "), record.run)
}
