//! What stands under `with`, read as the type of its stage kind; every key that is wrong is reported.
//!
//! Knows a kind's schema and its parser; does not know other stages.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::node::{Key, Node, NodeError, Problem, Step, Value, path_text};
use super::scope::Filled;
use crate::diagnostic::{self, Diagnostic, Span, nearest, suggestion};
use crate::schema::{self, KindSchema};
use crate::stage::{AnyStage, Kind};

/// A configuration in its type.
pub struct Typed {
    /// With the environment's values.
    pub stage: Arc<dyn AnyStage>,
    /// Every key, sorted, without the environment's values.
    pub config: serde_json::Value,
}

/// Reads the entries of `with`; `at` is the place of a fault about all of them.
pub fn read(
    kind: &'static Kind,
    entries: Vec<(Key, Filled)>,
    at: Span,
    base: &Arc<PathBuf>,
    faults: &mut Vec<Diagnostic>,
) -> Option<Typed> {
    let schema = KindSchema::of(kind);
    let before = faults.len();
    let mut removed: HashSet<Vec<Step>> = HashSet::new();
    let (mut real, mut masked) = (Vec::new(), Vec::new());
    let mut broken = false;
    for (key, value) in entries {
        if value.broken {
            broken = true;
            removed.insert(vec![Step::Key(key.text)]);
        } else if !is_left_out(&key.text, &value, &schema) {
            real.push((key.clone(), value.real));
            masked.push((key, value.masked));
        }
    }
    let tree = |entries| Node { span: at, value: Value::Map(entries), base: base.clone() };
    let (real, mut masked) = (tree(real), tree(masked));
    unknown_keys(kind, &schema, &mut masked, &mut removed, faults);
    for key in schema.required() {
        let step = vec![Step::Key(key.to_string())];
        if masked.get(key).is_none() && removed.insert(step) {
            faults.push(missing(kind, key, at));
        }
    }
    let in_outputs = real.get("outputs").zip(masked.get("outputs")).and_then(|(r, m)| difference(r, m));
    let stage = loop {
        match (kind.parse)(kind, masked.clone()) {
            Ok(stage) => break Some(stage),
            // Each try reads all of it again: beyond what is shown of a file, the rest of this one is let be.
            Err(_) if faults.len() - before > diagnostic::SHOWN => break None,
            Err(error) => {
                faults.extend(fault_of(kind, &schema, &error, &masked, &removed, at));
                if !cut(&mut masked, &error, &mut removed) {
                    break None;
                }
            }
        }
    };
    let stage = stage.filter(|_| faults.len() == before && !broken)?;
    let config = schema::sorted(stage.canonical());
    if real == masked {
        return Some(Typed { stage, config });
    }
    match (kind.parse)(kind, real) {
        Ok(with_values) if with_values.outputs() != stage.outputs() => {
            let message =
                "a value of the environment can't be in `outputs`: it would show in names and records";
            faults.push(Diagnostic::error(message).at(in_outputs.unwrap_or(at)));
            None
        }
        Ok(stage) => Some(Typed { stage, config }),
        Err(error) => {
            // Its own words could show the value.
            let message = format!("`{}` can't take this value of the environment", path_text(&error.path));
            faults.push(Diagnostic::error(message).at(error.span.unwrap_or(at)));
            None
        }
    }
}

/// The place of the first value that two trees of one shape differ in.
fn difference(a: &Node, b: &Node) -> Option<Span> {
    let inside = match (&a.value, &b.value) {
        (Value::Map(a), Value::Map(b)) => a.iter().zip(b).find_map(|((_, a), (_, b))| difference(a, b)),
        (Value::List(a), Value::List(b)) => a.iter().zip(b).find_map(|(a, b)| difference(a, b)),
        _ => None,
    };
    inside.or_else(|| (a != b).then_some(a.span))
}

/// A profile leaves a key out by `null`; so does a stage, unless null is a value of that key.
fn is_left_out(key: &str, value: &Filled, schema: &KindSchema) -> bool {
    let here = schema.below(schema.root(), &Step::Key(key.into()));
    value.real.value == Value::Null
        && !schema.required().contains(&key)
        && here.is_some_and(|here| !schema.takes_null(here))
}

fn missing(kind: &Kind, key: &str, at: Span) -> Diagnostic {
    Diagnostic::error(format!("`{}` needs the key `{key}` under `with`", kind.name))
        .at(at)
        .help(format!("`pipe stages {}` shows its keys and an example", kind.name))
}

/// Reports and removes the keys that the schema does not have, at any depth. A key that one of them is most
/// likely meant to be counts as removed too: that it is missing only follows.
fn unknown_keys(
    kind: &Kind,
    schema: &KindSchema,
    tree: &mut Node,
    removed: &mut HashSet<Vec<Step>>,
    faults: &mut Vec<Diagnostic>,
) {
    let mut visit: Vec<(&mut Node, &serde_json::Value, Vec<Step>)> = vec![(tree, schema.root(), Vec::new())];
    while let Some((node, here, path)) = visit.pop() {
        let join = |step: Step| path.iter().cloned().chain(std::iter::once(step)).collect::<Vec<Step>>();
        match &mut node.value {
            Value::Map(entries) => {
                if let Some(known) = schema.keys(here) {
                    let stays = |(key, _): &(Key, Node)| known.contains(&key.text.as_str());
                    for (key, _) in entries.iter().filter(|entry| !stays(entry)) {
                        let place = if path.is_empty() { kind.name.into() } else { path_text(&path) };
                        let message = format!("`{place}` has no key `{}`", key.text);
                        let help = suggestion(&key.text, "the keys are", &known);
                        faults.push(Diagnostic::error(message).at(key.span).maybe_help(help));
                        removed.insert(join(Step::Key(key.text.clone())));
                        let meant = nearest(&key.text, known.iter().copied());
                        removed.extend(meant.map(|meant| join(Step::Key(meant.into()))));
                    }
                    entries.retain(stays);
                }
                for (key, value) in entries {
                    let step = Step::Key(key.text.clone());
                    if let Some(below) = schema.below(here, &step) {
                        visit.push((value, below, join(step)));
                    }
                }
            }
            Value::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    if let Some(below) = schema.below(here, &Step::Item(index)) {
                        visit.push((item, below, join(Step::Item(index))));
                    }
                }
            }
            _ => {}
        }
    }
}

/// The fault an error stands for; none if it only follows from one that was reported.
fn fault_of(
    kind: &Kind,
    schema: &KindSchema,
    error: &NodeError,
    tree: &Node,
    removed: &HashSet<Vec<Step>>,
    at: Span,
) -> Option<Diagnostic> {
    let span = error.span.unwrap_or(at);
    if let Problem::Missing(key) = error.problem {
        let mut path = error.path.clone();
        path.push(Step::Key(key.into()));
        if removed.contains(&path) {
            return None;
        }
        if error.path.is_empty() {
            return Some(missing(kind, key, at));
        }
    }
    // What something was taken from may no longer fit, whatever is wrong with it now.
    let is_damaged = |gone: &Vec<Step>| gone.len() > error.path.len() && gone.starts_with(&error.path);
    if removed.iter().any(is_damaged) {
        return None;
    }
    let node = error.path.iter().try_fold(tree, |node, step| match (step, &node.value) {
        (Step::Key(key), _) => node.get(key),
        (Step::Item(index), Value::List(items)) => items.get(*index),
        _ => None,
    });
    if node.is_some_and(|node| matches!(&node.value, Value::Text(text) if text.contains("${env."))) {
        let message = format!(
            "`{}` can't come from the environment: only a key that takes any text can",
            path_text(&error.path)
        );
        return Some(Diagnostic::error(message).at(span));
    }
    let words = error.path.iter().try_fold(schema.root(), |here, step| schema.below(here, step));
    let message = match (&error.problem, words, node) {
        // serde does not say what an untagged enum takes; the schema does.
        (Problem::Other(message), Some(here), Some(node)) if message.starts_with("data did not match") => {
            format!("`{}` takes {}, not {}", path_text(&error.path), schema.words(here), node.word())
        }
        _ => error.to_string(),
    };
    Some(Diagnostic::error(message).at(span).maybe_help(error.help()))
}

/// Removes what an error is about, so that the next one shows; `false` if that is the whole tree.
fn cut(tree: &mut Node, error: &NodeError, removed: &mut HashSet<Vec<Step>>) -> bool {
    // An item can't be taken from a list without moving the others: the list goes as a whole.
    let keys = error.path.iter().take_while(|step| matches!(step, Step::Key(_)));
    let path: Vec<Step> = keys.cloned().collect();
    let Some((Step::Key(last), parents)) = path.split_last() else { return false };
    let mut node = tree;
    for step in parents {
        let (Step::Key(key), Value::Map(entries)) = (step, &mut node.value) else { return false };
        let Some((_, below)) = entries.iter_mut().find(|(k, _)| k.text == *key) else { return false };
        node = below;
    }
    let Value::Map(entries) = &mut node.value else { return false };
    let before = entries.len();
    entries.retain(|(key, _)| key.text != *last);
    let cut = entries.len() < before;
    removed.insert(path);
    cut
}
