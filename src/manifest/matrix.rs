//! Stages with a `matrix`, and those that they feed, one instance for each combination of values.
//!
//! Knows axes and names; does not know what a stage does with its values.

use std::collections::HashSet;

use super::StageId;
use super::document::Draft;
use super::node::Node;
use super::scope::{Scope, scalar_text};
use super::wiring::{Wire, Wiring};
use crate::diagnostic::{Diagnostic, Span};

/// More combinations than anybody reads the results of.
const MAX_INSTANCES: usize = 1000;

/// One stage to be built: a draft under one combination of values.
pub struct Instance {
    /// The place of its draft.
    pub draft: usize,
    /// Its name, with the combination.
    pub id: StageId,
    /// The combination: axis and value.
    pub axes: Vec<(String, Node)>,
    /// What it takes, and the place of the instance it takes it from.
    pub inputs: Vec<(Wire, usize)>,
}

#[derive(Clone)]
struct Axis {
    name: String,
    span: Span,
    values: Vec<Node>,
}

/// The instances of all drafts, each behind all that feed it.
pub fn expand(
    drafts: &[Draft],
    wiring: &Wiring,
    scope: &mut Scope<'_>,
    faults: &mut Vec<Diagnostic>,
) -> Vec<Instance> {
    let mut axes: Vec<Vec<Axis>> = vec![Vec::new(); drafts.len()];
    let mut instances: Vec<Instance> = Vec::new();
    let mut names = HashSet::new();
    let mut of: Vec<Vec<usize>> = vec![Vec::new(); drafts.len()];
    let mut too_many = false;
    for at in wiring.order.iter().copied() {
        let mut own: Vec<Axis> = Vec::new();
        let inherited = wiring.wires[at].iter().flat_map(|wire| axes[wire.from].clone());
        for axis in inherited.chain(declared(&drafts[at], scope, faults)) {
            match own.iter().find(|a| a.name == axis.name) {
                Some(same) if same.values == axis.values => {}
                Some(other) => faults.push(
                    Diagnostic::error(format!("the axis `{}` has other values here", axis.name))
                        .at(axis.span)
                        .related(other.span, "than here")
                        .help("stages that meet line up by their axes: give one of the axes another name"),
                ),
                None => own.push(axis),
            }
        }
        let count = own.iter().fold(1usize, |n, axis| n.saturating_mul(axis.values.len()));
        if instances.len().saturating_add(count) > MAX_INSTANCES {
            if !std::mem::replace(&mut too_many, true) {
                let message = format!("the combinations make more than {MAX_INSTANCES} stages");
                faults.push(Diagnostic::error(message).at(drafts[at].name.span));
            }
            own.clear();
        }
        for combination in combinations(&own) {
            let id = name(&drafts[at].name.text, &combination);
            if !names.insert(id.clone()) {
                let message = format!("two combinations have the name `{id}`");
                let help = "names keep only letters, digits and `._+-` of a value";
                faults.push(Diagnostic::error(message).at(drafts[at].name.span).help(help));
            }
            let inputs = wiring.wires[at].iter().filter_map(|wire| {
                let lines_up = |i: &&usize| instances[**i].axes.iter().all(|a| combination.contains(a));
                Some((wire.clone(), *of[wire.from].iter().find(lines_up)?))
            });
            let inputs = inputs.collect();
            of[at].push(instances.len());
            instances.push(Instance { draft: at, id, axes: combination, inputs });
        }
        axes[at] = own;
    }
    instances
}

/// The axes that a draft itself declares, references followed.
fn declared(draft: &Draft, scope: &mut Scope<'_>, faults: &mut Vec<Diagnostic>) -> Vec<Axis> {
    let mut axes = Vec::new();
    for (key, values) in &draft.matrix {
        let mut filled = Vec::new();
        for value in values {
            let value = scope.fill(value, &[]);
            let at = |message: String| Diagnostic::error(message).at(value.real.span);
            if value.broken {
                continue;
            } else if value.has_env() {
                faults.push(at(
                    "a value of the environment can't be in a matrix: it would show in names".into()
                ));
            } else if scalar_text(&value.real).is_none() {
                let what = value.real.word();
                faults.push(at(format!("a value of the axis `{}` can't be {what}", key.text)));
            } else {
                filled.push(value.real);
            }
        }
        axes.push(Axis { name: key.text.clone(), span: key.span, values: filled });
    }
    axes
}

fn combinations(axes: &[Axis]) -> Vec<Vec<(String, Node)>> {
    let mut all = vec![Vec::new()];
    for axis in axes {
        let longer = |combination: &Vec<(String, Node)>| {
            let with = |value: &Node| {
                let mut longer = combination.clone();
                longer.push((axis.name.clone(), value.clone()));
                longer
            };
            axis.values.iter().map(with).collect::<Vec<_>>()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

/// `stage`, or `stage[axis=value,…]` in characters that a file name may have.
fn name(stage: &str, combination: &[(String, Node)]) -> StageId {
    if combination.is_empty() {
        return StageId(stage.into());
    }
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '-' };
    let pairs: Vec<String> = combination
        .iter()
        .map(|(axis, value)| {
            let value: String = scalar_text(value).unwrap_or_default().chars().map(safe).collect();
            format!("{axis}={value}")
        })
        .collect();
    StageId(format!("{stage}[{}]", pairs.join(",")))
}
