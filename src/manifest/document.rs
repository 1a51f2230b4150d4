//! The shape of a manifest: which keys there are, and which stages with which keys.
//!
//! Knows the fixed keys and the names of the stage kinds; does not know what `${…}` stands for, nor what a
//! kind makes of its `with`.

use super::node::{Key, Node, Value};
use crate::diagnostic::{Diagnostic, nearest, suggestion};
use crate::stage::Kind;

/// A manifest in its shape, its values as they are written.
pub struct Document {
    pub name: String,
    pub description: Option<String>,
    pub params: Vec<(Key, Node)>,
    pub profiles: Vec<(Key, Vec<(Key, Node)>)>,
    pub stages: Vec<Draft>,
}

/// A stage in its shape.
pub struct Draft {
    /// Its name under `stages`.
    pub name: Key,
    /// What `uses` names, if there is such a kind.
    pub kind: Option<&'static Kind>,
    /// Port and reference.
    pub inputs: Vec<(Key, Node)>,
    pub with: Option<Node>,
    pub when: Option<Node>,
    pub timeout: Option<Node>,
    pub retries: Option<Node>,
    pub device: Option<Node>,
    /// Axis and values.
    pub matrix: Vec<(Key, Vec<Node>)>,
}

/// The keys of a manifest.
pub const KEYS: &[&str] = &["pipeline", "description", "params", "profiles", "stages"];
/// The keys of a stage.
pub const STAGE_KEYS: &[&str] = &["uses", "inputs", "with", "when", "timeout", "retries", "device", "matrix"];

/// Reads the shape and reports all that is wrong with it; `None` if nothing useful is left.
pub fn read(root: Node, kinds: &'static [Kind], faults: &mut Vec<Diagnostic>) -> Option<Document> {
    let start = root.span;
    let Value::Map(entries) = root.value else {
        let found = match root.value {
            Value::Null => "nothing",
            _ => root.word(),
        };
        let message = format!("a manifest is a mapping with the keys pipeline and stages; here is {found}");
        faults.push(Diagnostic::error(message).at(start));
        return None;
    };
    let mut document = Document {
        name: String::new(),
        description: None,
        params: Vec::new(),
        profiles: Vec::new(),
        stages: Vec::new(),
    };
    let (mut has_name, mut has_stages) = (false, false);
    let first_key = entries.first().map_or(start, |(key, _)| key.span);
    for (key, node) in entries {
        match key.text.as_str() {
            "pipeline" => {
                has_name = true;
                document.name = line(&key, &node, faults).unwrap_or_default();
            }
            "description" => document.description = text(&key, &node, faults),
            "params" => document.params = names(mapping(&key, node, faults), "a param", faults),
            "profiles" => {
                for (name, node) in mapping(&key, node, faults) {
                    let replaced = mapping(&name, node, faults);
                    document.profiles.push((name, replaced));
                }
            }
            "stages" => {
                has_stages = true;
                let span = key.span;
                let stages = names(mapping(&key, node, faults), "a stage", faults);
                if stages.is_empty() && faults.is_empty() {
                    faults.push(Diagnostic::error("a manifest needs at least one stage").at(span));
                }
                document.stages =
                    stages.into_iter().filter_map(|(k, n)| draft(k, n, kinds, faults)).collect();
            }
            _ => {
                // That the key it was meant to be is missing only follows.
                let meant = nearest(&key.text, KEYS.iter().copied());
                has_name |= meant == Some("pipeline");
                has_stages |= meant == Some("stages");
                faults.push(unknown_key(&key, KEYS));
            }
        }
    }
    if !has_name {
        let help = "add a line such as `pipeline: my_experiment`";
        faults.push(Diagnostic::error("the key `pipeline` is missing").at(first_key).help(help));
    }
    if !has_stages {
        let help = "add `stages:` with at least one stage below it";
        faults.push(Diagnostic::error("the key `stages` is missing").at(first_key).help(help));
    }
    Some(document)
}

fn draft(name: Key, node: Node, kinds: &'static [Kind], faults: &mut Vec<Diagnostic>) -> Option<Draft> {
    let Value::Map(entries) = node.value else {
        let message = format!("the stage `{}` takes a mapping, not {}", name.text, node.word());
        faults.push(Diagnostic::error(message).at(node.span).help("say which kind it is: `uses: KIND`"));
        return None;
    };
    let mut uses = None;
    let mut meant_uses = false;
    let mut draft = Draft {
        name,
        kind: None,
        inputs: Vec::new(),
        with: None,
        when: None,
        timeout: None,
        retries: None,
        device: None,
        matrix: Vec::new(),
    };
    for (key, node) in entries {
        match key.text.as_str() {
            "uses" => uses = Some((key, node)),
            "inputs" => draft.inputs = mapping(&key, node, faults),
            "with" => match node.value {
                Value::Map(_) => draft.with = Some(node),
                _ => _ = mapping(&key, node, faults),
            },
            "when" => draft.when = Some(node),
            "timeout" => draft.timeout = Some(node),
            "retries" => draft.retries = Some(node),
            "device" => draft.device = Some(node),
            "matrix" => {
                let axes = names(mapping(&key, node, faults), "an axis", faults);
                draft.matrix = axes.into_iter().filter_map(|(k, n)| axis(k, n, faults)).collect();
            }
            _ => {
                meant_uses |= nearest(&key.text, STAGE_KEYS.iter().copied()) == Some("uses");
                faults.push(unknown_key(&key, STAGE_KEYS));
            }
        }
    }
    match uses {
        None if meant_uses => {}
        None => {
            let message = format!("the stage `{}` lacks the key `uses`", draft.name.text);
            let help = "say which kind it is: `uses: KIND`; `pipe stages` lists the kinds";
            faults.push(Diagnostic::error(message).at(draft.name.span).help(help));
        }
        Some((key, node)) => {
            if let Some(word) = text(&key, &node, faults) {
                draft.kind = kinds.iter().find(|k| k.name == word);
                if draft.kind.is_none() {
                    let known: Vec<&str> = kinds.iter().map(|k| k.name).collect();
                    let fault = Diagnostic::error(format!("there is no stage kind `{word}`")).at(node.span);
                    faults.push(fault.maybe_help(suggestion(&word, "the kinds are", &known)));
                }
            }
        }
    }
    Some(draft)
}

fn axis(key: Key, node: Node, faults: &mut Vec<Diagnostic>) -> Option<(Key, Vec<Node>)> {
    let scalars = match node.value {
        Value::List(items) if !items.is_empty() => items,
        _ => {
            let message = format!("the axis `{}` takes a list of values, not {}", key.text, node.word());
            faults.push(Diagnostic::error(message).at(node.span));
            return None;
        }
    };
    let mut values: Vec<Node> = Vec::new();
    for item in scalars {
        let at = |message: String| Diagnostic::error(message).at(item.span);
        if matches!(item.value, Value::Null | Value::List(_) | Value::Map(_)) {
            faults.push(at(format!("a value of the axis `{}` can't be {}", key.text, item.word())));
        } else if let Some(twin) = values.iter().find(|other| **other == item) {
            let fault = at(format!("the axis `{}` has a value twice", key.text));
            faults.push(fault.related(twin.span, "first given here"));
        } else {
            values.push(item);
        }
    }
    Some((key, values))
}

/// The entries of a mapping; nothing but null is an empty one.
fn mapping(key: &Key, node: Node, faults: &mut Vec<Diagnostic>) -> Vec<(Key, Node)> {
    match node.value {
        Value::Map(entries) => entries,
        Value::Null => Vec::new(),
        _ => {
            let message = format!("`{}` takes a mapping, not {}", key.text, node.word());
            faults.push(Diagnostic::error(message).at(node.span));
            Vec::new()
        }
    }
}

fn text(key: &Key, node: &Node, faults: &mut Vec<Diagnostic>) -> Option<String> {
    match &node.value {
        Value::Text(text) => Some(text.clone()),
        _ => {
            let message = format!("`{}` takes text, not {}", key.text, node.word());
            faults.push(Diagnostic::error(message).at(node.span));
            None
        }
    }
}

/// Text that can stand in a line: a name.
fn line(key: &Key, node: &Node, faults: &mut Vec<Diagnostic>) -> Option<String> {
    let text = text(key, node, faults)?;
    if text.trim().is_empty() || text.contains(char::is_control) {
        let message = format!("`{}` takes a name on one line", key.text);
        faults.push(Diagnostic::error(message).at(node.span));
        return None;
    }
    Some(text)
}

/// The entries whose keys are names that can be referred to; the others are reported.
fn names(entries: Vec<(Key, Node)>, what: &str, faults: &mut Vec<Diagnostic>) -> Vec<(Key, Node)> {
    let (good, bad): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(key, _)| is_name(&key.text));
    faults.extend(bad.into_iter().map(|(key, _)| {
        Diagnostic::error(format!("`{}` can't be the name of {what}", key.text))
            .at(key.span)
            .help("a name is a letter, then letters, digits, `_` and `-`")
    }));
    good
}

/// Whether a word can name a stage, a param or an axis.
pub fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}

fn unknown_key(key: &Key, known: &[&str]) -> Diagnostic {
    Diagnostic::error(format!("unknown key `{}`", key.text)).at(key.span).maybe_help(suggestion(
        &key.text,
        "the keys are",
        known,
    ))
}
