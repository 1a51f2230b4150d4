//! One self-contained page of a run: graph, timings, curves, metrics, samples. No script, nothing fetched.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::graph::{Box, escape, svg};
use super::{number, seconds};
use crate::event::{RunRecord, StageRecord};

/// Most rows of a sample that are shown.
const SAMPLES: usize = 20;

/// The page of a run whose folder is `folder`.
pub fn page(record: &RunRecord, folder: &Path) -> String {
    let mut body = format!(
        "<h1>{}</h1><p class=\"sub\">{} · {} · {} · pipe {} · {}</p>",
        escape(&record.pipeline),
        escape(&record.run),
        escape(&record.started),
        seconds(record.seconds),
        escape(&record.pipe),
        escape(&record.device),
    );
    let place = |name: &str| record.stages.iter().position(|s| s.stage == name);
    // Boxes have to stand after what they need, whatever the manifest's order.
    let order = needs_first(&record.stages);
    let boxes: Vec<Box> = order
        .iter()
        .map(|i| {
            let stage = &record.stages[*i];
            let needs = stage
                .inputs
                .values()
                .filter_map(|from| place(from.rsplit_once('.')?.0))
                .filter_map(|n| order.iter().position(|o| *o == n))
                .collect();
            let time = if stage.key.is_some() { seconds(stage.seconds) } else { String::new() };
            Box {
                title: stage.stage.clone(),
                subtitle: format!("{} · {} {time}", stage.kind, stage.status.word()),
                class: stage.status.word().replace(' ', "_"),
                needs,
            }
        })
        .collect();
    let _ = write!(body, "<section class=\"wide\">{}</section>", svg(&boxes));
    body += "<h2>Stages</h2><table><tr><th>stage</th><th>kind</th><th>status</th><th class=\"n\">time</th>\
             <th>key</th><th>why</th></tr>";
    for stage in &record.stages {
        let _ = write!(
            body,
            "<tr><td>{}</td><td>{}</td><td class=\"{}\">{}</td><td class=\"n\">{}</td><td><code>{}</code></td>\
             <td>{}</td></tr>",
            escape(&stage.stage),
            escape(&stage.kind),
            stage.status.word().replace(' ', "_"),
            stage.status.word(),
            if stage.key.is_some() { seconds(stage.seconds) } else { String::new() },
            stage.key.map(|k| k.short()).unwrap_or_default(),
            escape(&stage.error.as_ref().map_or_else(|| stage.why.join("; "), |e| e.message.clone())),
        );
    }
    body += "</table>";
    for stage in &record.stages {
        body += &section(stage, folder);
    }
    if let Some(params) = record.params.as_object().filter(|p| !p.is_empty()) {
        body += "<h2>Params</h2><table>";
        for (name, value) in params {
            let _ = write!(
                body,
                "<tr><td>{}</td><td><code>{}</code></td></tr>",
                escape(name),
                escape(&value.to_string())
            );
        }
        body += "</table>";
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{}</title><style>{STYLE}</style></head><body>{body}</body></html>\n",
        escape(&record.run)
    )
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;\
color:#1c2733}h1{margin:0}h2{margin:2rem 0 .5rem;font-size:1.15rem}.sub{color:#5a6675;margin:.2rem 0 1.5rem}\
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}\
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #e5e8ec;vertical-align:top}\
.n{text-align:right;font-variant-numeric:tabular-nums}code{font-size:.85em;word-break:break-all}\
.ran{color:#3d8b4f}.cached{color:#3b79b5}.failed{color:#c0392b}.skipped,.not_reached{color:#8a94a6}\
pre{background:#f4f5f7;padding:.6rem;white-space:pre-wrap;word-break:break-word}";

fn needs_first(stages: &[StageRecord]) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::new();
    while order.len() < stages.len() {
        let ready = |i: &usize| {
            !order.contains(i)
                && stages[*i].inputs.values().filter_map(|f| f.rsplit_once('.')).all(|(from, _)| {
                    stages.iter().position(|s| s.stage == from).is_none_or(|n| order.contains(&n))
                })
        };
        match (0..stages.len()).find(ready) {
            Some(next) => order.push(next),
            // A record that was changed by hand may have a cycle.
            None => order.extend((0..stages.len()).filter(|i| !order.contains(i)).collect::<Vec<_>>()),
        }
    }
    order
}

/// What a stage left: its metrics, the curve of its steps, the first of its texts.
fn section(stage: &StageRecord, run: &Path) -> String {
    let folder = stage.folder.as_ref().map(|f| run.join(f));
    let curve = folder.as_ref().map(|f| curve(&f.join("steps.jsonl"))).unwrap_or_default();
    let samples = folder
        .iter()
        .flat_map(|f| ["generations.jsonl", "predictions.jsonl"].map(|n| f.join(n)))
        .map(|p| samples(&p))
        .collect::<String>();
    if stage.metrics.is_empty() && curve.is_empty() && samples.is_empty() {
        return String::new();
    }
    let mut text = format!("<h2>{}</h2>", escape(&stage.stage));
    let rows: Vec<_> = stage.metrics.iter().filter(|(n, _)| !n.starts_with("untuned.")).collect();
    if !rows.is_empty() {
        let compared = stage.metrics.keys().any(|n| n.starts_with("untuned."));
        let head =
            if compared { "<th class=\"n\">tuned</th><th class=\"n\">untuned</th>" } else { "<th></th>" };
        let _ = write!(text, "<table><tr><th></th>{head}</tr>");
        for (name, value) in rows {
            let base = stage.metrics.get(&format!("untuned.{name}")).map(|b| number(*b)).unwrap_or_default();
            let base = if compared { format!("<td class=\"n\">{base}</td>") } else { String::new() };
            let name = escape(&name.replace('_', " "));
            let _ = write!(text, "<tr><td>{name}</td><td class=\"n\">{}</td>{base}</tr>", number(*value));
        }
        text += "</table>";
    }
    text + &curve + &samples
}

/// The loss of every step as a line.
fn curve(path: &Path) -> String {
    let Ok(text) = fs::read_to_string(path) else { return String::new() };
    let losses: Vec<f64> = text
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok()?.get("loss")?.as_f64())
        .filter(|l| l.is_finite())
        .collect();
    let (Some(first), Some(last)) = (losses.first(), losses.last()) else { return String::new() };
    let most = losses.iter().copied().fold(f64::MIN, f64::max).max(1e-9);
    let (w, h) = (900.0, 200.0);
    let x = |i: usize| 50.0 + i as f64 / (losses.len().max(2) - 1) as f64 * (w - 60.0);
    let y = |l: f64| 10.0 + (1.0 - l / most) * (h - 40.0);
    let points: Vec<String> =
        losses.iter().enumerate().map(|(i, l)| format!("{:.1},{:.1}", x(i), y(*l))).collect();
    format!(
        "<svg viewBox=\"0 0 {w} {h}\" width=\"100%\" role=\"img\" aria-label=\"loss by step\" font-size=\"11\" \
         fill=\"#5a6675\"><line x1=\"50\" y1=\"{b}\" x2=\"{r}\" y2=\"{b}\" stroke=\"#c5cad3\"/>\
         <text x=\"44\" y=\"16\" text-anchor=\"end\">{}</text><text x=\"44\" y=\"{b}\" text-anchor=\"end\">0</text>\
         <text x=\"50\" y=\"{t}\">step 1: {}</text><text x=\"{r}\" y=\"{t}\" text-anchor=\"end\">step {}: {}</text>\
         <polyline fill=\"none\" stroke=\"#3b79b5\" stroke-width=\"1.6\" points=\"{}\"/></svg>",
        number(most),
        number(*first),
        losses.len(),
        number(*last),
        points.join(" "),
        b = h - 30.0,
        r = w - 10.0,
        t = h - 12.0,
    )
}

fn samples(path: &Path) -> String {
    let Ok(text) = fs::read_to_string(path) else { return String::new() };
    let rows: Vec<serde_json::Map<String, serde_json::Value>> =
        text.lines().filter_map(|l| serde_json::from_str(l).ok()).take(SAMPLES).collect();
    let Some(first) = rows.first() else { return String::new() };
    // Lists of ids are for programs.
    let shown: Vec<&String> =
        first.iter().filter(|(_, v)| !v.is_array() && !v.is_object()).map(|(k, _)| k).collect();
    let mut html = "<table><tr>".to_string();
    for name in &shown {
        let _ = write!(html, "<th>{}</th>", escape(name));
    }
    html += "</tr>";
    for row in &rows {
        html += "<tr>";
        for name in &shown {
            let cell = match row.get(*name) {
                Some(serde_json::Value::String(s)) => s.clone(),
                Some(serde_json::Value::Number(n)) => n.as_f64().map(number).unwrap_or_default(),
                Some(serde_json::Value::Null) | None => String::new(),
                Some(other) => other.to_string(),
            };
            let _ = write!(html, "<td>{}</td>", escape(&cell));
        }
        html += "</tr>";
    }
    html += "</table>";
    let more = text.lines().count().saturating_sub(SAMPLES);
    if more > 0 {
        let _ = write!(html, "<p class=\"sub\">and {more} more rows</p>");
    }
    html
}
