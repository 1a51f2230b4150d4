//! The graph of stages as text, Mermaid, Graphviz or SVG.

use std::fmt::Write;

use crate::manifest::On;
use crate::plan::Plan;

/// What a graph is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for a terminal.
    Text,
    /// A Mermaid flowchart.
    Mermaid,
    /// Graphviz.
    Dot,
    /// A picture.
    Svg,
}

/// The graph in this format.
pub fn draw(plan: &Plan<'_>, format: Format) -> String {
    match format {
        Format::Text => text(plan),
        Format::Mermaid => mermaid(plan),
        Format::Dot => dot(plan),
        Format::Svg => svg(&boxes(plan)),
    }
}

fn text(plan: &Plan<'_>) -> String {
    let rows: Vec<Vec<String>> = plan
        .order
        .iter()
        .map(|i| {
            let stage = plan.stage(*i);
            let needs: Vec<String> =
                stage.inputs.iter().map(|e| format!("{}.{}", e.from, e.output)).collect();
            let needs = if needs.is_empty() { String::new() } else { format!("← {}", needs.join(", ")) };
            let off = if stage.on == On::On { "" } else { "(off)" };
            vec![stage.id.to_string(), stage.kind.name.into(), needs, off.into()]
        })
        .collect();
    super::table(&rows)
}

fn mermaid(plan: &Plan<'_>) -> String {
    let mut text = "flowchart LR\n".to_string();
    for &i in &plan.order {
        let stage = plan.stage(i);
        let _ = writeln!(text, "  s{i}[\"{}<br/><small>{}</small>\"]", stage.id, stage.kind.name);
        for edge in &stage.inputs {
            if let Some(from) = plan.index(&edge.from) {
                let _ = writeln!(text, "  s{from} -->|{}| s{i}", edge.output);
            }
        }
    }
    text
}

fn dot(plan: &Plan<'_>) -> String {
    let mut text = format!("digraph {:?} {{\n  rankdir=LR; node [shape=box];\n", plan.manifest.name);
    for &i in &plan.order {
        let stage = plan.stage(i);
        let _ = writeln!(text, "  s{i} [label=\"{}\\n{}\"];", stage.id, stage.kind.name);
        for edge in &stage.inputs {
            if let Some(from) = plan.index(&edge.from) {
                let _ = writeln!(text, "  s{from} -> s{i} [label={:?}];", edge.output);
            }
        }
    }
    text + "}\n"
}

/// A stage as it is drawn.
#[derive(Clone, Debug)]
pub struct Box {
    /// Its name.
    pub title: String,
    /// The line below.
    pub subtitle: String,
    /// How it ended, or would: gives the colour.
    pub class: String,
    /// The boxes it needs.
    pub needs: Vec<usize>,
}

fn boxes(plan: &Plan<'_>) -> Vec<Box> {
    let place = |index: usize| plan.order.iter().position(|i| *i == index);
    plan.order
        .iter()
        .map(|i| {
            let stage = plan.stage(*i);
            let needs = stage.inputs.iter().filter_map(|e| place(plan.index(&e.from)?)).collect();
            let class = if stage.on == On::On { "plain" } else { "skipped" };
            Box { title: stage.id.to_string(), subtitle: stage.kind.name.into(), class: class.into(), needs }
        })
        .collect()
}

/// Boxes in columns by how many steps stand before them; needs stand before those that need them.
pub fn svg(boxes: &[Box]) -> String {
    const W: f64 = 210.0;
    const H: f64 = 46.0;
    const GAP_X: f64 = 56.0;
    const GAP_Y: f64 = 18.0;
    const PAD: f64 = 12.0;
    let mut column = vec![0usize; boxes.len()];
    for (i, b) in boxes.iter().enumerate() {
        column[i] = b.needs.iter().map(|n| column[*n] + 1).max().unwrap_or(0);
    }
    let columns = column.iter().max().map_or(0, |c| c + 1);
    let mut filled = vec![0usize; columns];
    let at: Vec<(f64, f64)> = column
        .iter()
        .map(|c| {
            let row = filled[*c];
            filled[*c] += 1;
            (PAD + *c as f64 * (W + GAP_X), PAD + row as f64 * (H + GAP_Y))
        })
        .collect();
    let width = PAD * 2.0 + columns as f64 * (W + GAP_X) - GAP_X;
    let rows = filled.iter().max().copied().unwrap_or(0) as f64;
    let height = PAD * 2.0 + rows * (H + GAP_Y) - GAP_Y;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"system-ui, sans-serif\">\n<style>\
         .box{{fill:#f4f5f7;stroke:#8a94a6}}.ran{{fill:#e3f4e6;stroke:#3d8b4f}}\
         .cached{{fill:#e3eff9;stroke:#3b79b5}}.failed{{fill:#fbe4e4;stroke:#c0392b}}\
         .skipped,.not_reached{{fill:#fafafa;stroke:#c5cad3;stroke-dasharray:4}}\
         .t{{font-size:13px;font-weight:600;fill:#1c2733}}.s{{font-size:11px;fill:#5a6675}}\
         .e{{fill:none;stroke:#8a94a6;stroke-width:1.4}}</style>\n"
    );
    for (i, b) in boxes.iter().enumerate() {
        let (x, y) = at[i];
        for n in &b.needs {
            let (fx, fy) = (at[*n].0 + W, at[*n].1 + H / 2.0);
            let (tx, ty) = (x, y + H / 2.0);
            let mid = (fx + tx) / 2.0;
            let _ = writeln!(text, "<path class=\"e\" d=\"M{fx} {fy}C{mid} {fy} {mid} {ty} {tx} {ty}\"/>");
        }
    }
    for (b, (x, y)) in boxes.iter().zip(&at) {
        let (title, subtitle) = (escape(&b.title), escape(&b.subtitle));
        let (tx, ty, sy) = (x + 10.0, y + 19.0, y + 35.0);
        let _ = writeln!(
            text,
            "<rect class=\"box {}\" x=\"{x}\" y=\"{y}\" width=\"{W}\" height=\"{H}\" rx=\"7\"/>\
             <text class=\"t\" x=\"{tx}\" y=\"{ty}\">{title}</text>\
             <text class=\"s\" x=\"{tx}\" y=\"{sy}\">{subtitle}</text>",
            b.class
        );
    }
    text + "</svg>\n"
}

/// Text that is safe inside HTML and SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
