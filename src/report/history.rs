//! Runs that are over: the list, one of them, two side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::{console, number, seconds, table};
use crate::event::{RunRecord, RunStatus, StageRecord};
use crate::history::Found;
use crate::removal::Weight;
use crate::size::{bytes, grouped};

fn word(run: &Found) -> &'static str {
    match run.record.status {
        RunStatus::Running if run.going => "running",
        RunStatus::Running => "unfinished",
        RunStatus::Succeeded => "succeeded",
        RunStatus::Failed => "failed",
        RunStatus::Interrupted => "interrupted",
    }
}

/// `pipe runs`.
pub fn list(runs: &[Found]) -> String {
    if runs.is_empty() {
        return "there are no runs here yet\n".into();
    }
    let mut rows = vec![["RUN", "STATUS", "TIME", "RAN", "CACHED"].map(String::from).to_vec()];
    for run in runs {
        let record = &run.record;
        let count = |s| record.stages.iter().filter(|r| r.status == s).count().to_string();
        rows.push(vec![
            record.run.clone(),
            word(run).into(),
            seconds(record.seconds),
            count(crate::event::Status::Ran),
            count(crate::event::Status::Cached),
        ]);
    }
    table(&rows)
}

/// `pipe show RUN`.
pub fn show(run: &Found) -> String {
    let (record, folder) = (&run.record, &run.folder);
    let mut text = format!(
        "{} · {} · {} · started {}\n{}\n",
        record.run,
        word(run),
        seconds(record.seconds),
        record.started,
        folder.display()
    );
    for (name, value) in flat(&record.params) {
        text += &format!("  {name} = {value}\n");
    }
    let rows: Vec<Vec<String>> = record
        .stages
        .iter()
        .map(|s| {
            let time = if s.key.is_some() { seconds(s.seconds) } else { String::new() };
            let about = s.error.as_ref().map_or_else(
                || console::figures(&s.metrics).join(" · "),
                |e| e.message.lines().next().unwrap_or_default().to_string(),
            );
            let key = s.key.map(|k| k.short()).unwrap_or_default();
            vec![s.status.word().into(), s.stage.clone(), s.kind.clone(), time, key, about]
        })
        .collect();
    text + &table(&rows)
}

/// `pipe show RUN STAGE`.
pub fn show_stage(stage: &StageRecord, run_folder: &Path) -> String {
    let mut text = format!("{} · {} · {}\n", stage.stage, stage.kind, stage.status.word());
    if let Some(key) = &stage.key {
        text += &format!("key {key}\n");
    }
    for (port, from) in &stage.inputs {
        text += &format!("in   {port} ← {from}\n");
    }
    for (name, output) in &stage.outputs {
        text += &format!("out  {name} ({}) {}\n", output.kind.word(), output.digest.short());
    }
    for why in &stage.why {
        text += &format!("why  {why}\n");
    }
    for warning in &stage.warnings {
        text += &format!("warning  {warning}\n");
    }
    for (name, value) in &stage.metrics {
        text += &format!("  {name} = {}\n", number(*value));
    }
    if let Some(error) = &stage.error {
        text += &format!("error: {}\n", error.message);
        if let Some(help) = &error.help {
            text += &format!("  help: {help}\n");
        }
    }
    if let Some(folder) = &stage.folder {
        let folder = run_folder.join(folder);
        text += &format!("{}\n", folder.display());
        for file in crate::files::walk(&folder) {
            let size = fs::metadata(&file).map(|m| m.len()).unwrap_or(0);
            text +=
                &format!("  {}  {}\n", crate::files::RelPath::of(&file, &folder), crate::size::bytes(size));
        }
    }
    text
}

/// `pipe runs rm`: what was removed, or with `--dry-run` would be.
pub fn removed(removed: &[String], going: usize, weight: Weight, dry_run: bool) -> String {
    let mut text = String::new();
    if dry_run {
        removed.iter().for_each(|name| text += &format!("{name}\n"));
    }
    let runs = |n: usize| format!("{} run{}", grouped(n), if n == 1 { "" } else { "s" });
    let (done, frees) = if dry_run { ("would remove", "frees") } else { ("removed", "freed") };
    text += &format!("{done} {}, which {frees} {}", runs(removed.len()), bytes(weight.freed));
    if weight.cached > 0 {
        text +=
            &format!("; {} more are still in the cache: `pipe cache gc --size SIZE`", bytes(weight.cached));
    }
    if weight.elsewhere > 0 {
        text += &format!("; {} more are still in other runs", bytes(weight.elsewhere));
    }
    if going > 0 {
        text += &format!(
            "; {} going on and stays",
            if going == 1 { "1 run is".into() } else { runs(going) + " are" }
        );
    }
    text + "\n"
}

/// `pipe diff A B`: params and metrics that differ, side by side; the rest is counted.
pub fn diff(a: &RunRecord, b: &RunRecord) -> String {
    let mut rows = vec![vec![String::new(), a.run.clone(), b.run.clone()]];
    let mut same = 0;
    let sides = [facts(a), facts(b)];
    let names: BTreeSet<&String> = sides.iter().flat_map(BTreeMap::keys).collect();
    for name in names {
        let [left, right] = [0, 1].map(|i| sides[i].get(name).cloned().unwrap_or_else(|| "–".into()));
        if left == right { same += 1 } else { rows.push(vec![name.clone(), left, right]) }
    }
    if rows.len() == 1 {
        return format!("no difference: {same} params, keys and metrics are the same\n");
    }
    format!("{}{same} more are the same\n", table(&rows))
}

fn facts(record: &RunRecord) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    for (name, value) in flat(&record.params) {
        facts.insert(format!("params.{name}"), value);
    }
    for stage in &record.stages {
        facts.insert(format!("{}.status", stage.stage), stage.status.word().into());
        if let Some(key) = stage.key {
            facts.insert(format!("{}.key", stage.stage), key.short());
        }
        for (name, value) in &stage.metrics {
            facts.insert(format!("{}.{name}", stage.stage), number(*value));
        }
    }
    facts
}

fn flat(value: &serde_json::Value) -> Vec<(String, String)> {
    value.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.to_string())).collect()
}
