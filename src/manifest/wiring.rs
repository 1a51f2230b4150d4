//! Which stage feeds which: the references under `inputs` as edges between stages, without circles.
//!
//! Knows names; does not know what flows, nor what a matrix makes of a stage.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use super::document::Draft;
use super::node::Value;
use crate::diagnostic::{Diagnostic, Meant, Span, suggestion};

/// A reference under `inputs` that leads to a stage.
#[derive(Clone, Debug)]
pub struct Wire {
    /// The port it is for.
    pub port: String,
    /// The place of the stage it takes from, among the drafts.
    pub from: usize,
    /// The output behind the dot, if one is named.
    pub output: Option<String>,
    /// Where the reference stands.
    pub span: Span,
}

/// The edges between stages.
pub struct Wiring {
    /// For every draft, what it takes.
    pub wires: Vec<Vec<Wire>>,
    /// The drafts so that each comes behind all that feed it.
    pub order: Vec<usize>,
}

/// Follows every reference; circles are reported and then cut, so that all else can be looked at.
pub fn connect(drafts: &[Draft], faults: &mut Vec<Diagnostic>) -> Wiring {
    let names: Arc<[String]> = drafts.iter().map(|draft| draft.name.text.clone()).collect();
    let index = names.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
    let mut wires: Vec<Vec<Wire>> =
        drafts.iter().map(|draft| wires_of(draft, &names, &index, faults)).collect();
    let groups = strongly_connected(&wires);
    for group in &groups {
        let inside: HashSet<usize> = group.iter().copied().collect();
        if let Some(circle) = circle_in(&inside, &wires) {
            faults.push(circle_fault(&circle, drafts));
            group.iter().for_each(|at| wires[*at].retain(|wire| !inside.contains(&wire.from)));
        }
    }
    let order = strongly_connected(&wires).into_iter().flatten().collect();
    Wiring { wires, order }
}

fn wires_of(
    draft: &Draft,
    names: &Arc<[String]>,
    index: &HashMap<&str, usize>,
    faults: &mut Vec<Diagnostic>,
) -> Vec<Wire> {
    let mut wires = Vec::new();
    for (port, node) in &draft.inputs {
        if let Some(kind) = draft.kind
            && kind.port(&port.text).is_none()
        {
            let known: Vec<&str> = kind.inputs.iter().map(|p| p.name).collect();
            let message = match known.is_empty() {
                true => format!("`{}` takes no inputs", kind.name),
                false => format!("`{}` has no port `{}`", kind.name, port.text),
            };
            let help = suggestion(&port.text, "its ports are", &known);
            faults.push(Diagnostic::error(message).at(port.span).maybe_help(help));
        }
        let Value::Text(reference) = &node.value else {
            let message = format!("the port `{}` takes the name of a stage, not {}", port.text, node.word());
            faults.push(Diagnostic::error(message).at(node.span).help("write `stage` or `stage.output`"));
            continue;
        };
        let (stage, output) = match reference.split_once('.') {
            Some((stage, output)) => (stage, Some(output.to_string())),
            None => (reference.as_str(), None),
        };
        match index.get(stage) {
            Some(&from) => wires.push(Wire { port: port.text.clone(), from, output, span: node.span }),
            None => {
                let fault = Diagnostic::error(format!("there is no stage `{stage}`")).at(node.span);
                faults.push(fault.meant(Meant {
                    word: stage.into(),
                    what: "the stages are",
                    among: names.clone(),
                    but: Some(draft.name.text.clone()),
                }));
            }
        }
    }
    wires
}

/// Groups of stages that feed each other, what feeds before what is fed.
fn strongly_connected(wires: &[Vec<Wire>]) -> Vec<Vec<usize>> {
    let mut graph = DiGraph::<(), ()>::with_capacity(wires.len(), wires.len());
    let nodes: Vec<NodeIndex> = wires.iter().map(|_| graph.add_node(())).collect();
    for (to, wires) in wires.iter().enumerate() {
        for wire in wires {
            graph.add_edge(nodes[to], nodes[wire.from], ());
        }
    }
    tarjan_scc(&graph).into_iter().map(|group| group.into_iter().map(|n| n.index()).collect()).collect()
}

/// A circle within a group: each stage with the wire that it takes from the next one by.
fn circle_in<'w>(group: &HashSet<usize>, wires: &'w [Vec<Wire>]) -> Option<Vec<(usize, &'w Wire)>> {
    let mut walk: Vec<(usize, &Wire)> = Vec::new();
    let mut places: HashMap<usize, usize> = HashMap::new();
    let mut at = *group.iter().min()?;
    loop {
        if let Some(start) = places.insert(at, walk.len()) {
            return Some(walk.split_off(start));
        }
        let wire = wires[at].iter().find(|wire| group.contains(&wire.from))?;
        walk.push((at, wire));
        at = wire.from;
    }
}

/// Of a longer circle this many stages are shown at its beginning and at its end.
const CIRCLE: usize = 10;

fn circle_fault(circle: &[(usize, &Wire)], drafts: &[Draft]) -> Diagnostic {
    let name = |at: usize| drafts[at].name.text.as_str();
    // The walk goes against the flow: what is shown follows it.
    let first = circle.first().map_or("", |(at, _)| name(*at));
    let mut names: Vec<&str> = circle.iter().map(|(_, wire)| name(wire.from)).collect();
    names.reverse();
    names.push(names[0]);
    let more = names.len().saturating_sub(2 * CIRCLE);
    let names = match more {
        0 => names.join(" -> "),
        _ => {
            let (begin, end) = (&names[..CIRCLE], &names[names.len() - CIRCLE..]);
            format!("{} -> … {more} more … -> {}", begin.join(" -> "), end.join(" -> "))
        }
    };
    let message = match circle {
        [_] => format!("`{first}` takes its own result"),
        _ => format!("these stages wait for each other: {names}"),
    };
    let mut fault = Diagnostic::error(message).help("a stage can only take from stages that don't need it");
    for (index, (at, wire)) in circle.iter().enumerate().take(2 * CIRCLE) {
        let label = format!("`{}` waits for `{}`", name(*at), name(wire.from));
        fault = match index {
            0 => fault.at(wire.span).label(label),
            _ => fault.related(wire.span, label),
        };
    }
    fault
}
