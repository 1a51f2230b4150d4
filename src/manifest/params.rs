//! The params a run starts from: the manifest's, a profile's in their place, then the command line's.
//!
//! Knows who wins; does not know what `${…}` in a value stands for.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::document::Document;
use super::node::{Key, Node, Value};
use super::yaml;
use crate::diagnostic::{Diagnostic, Meant, Span, suggestion};

/// What the command line and the surroundings say about a manifest.
#[derive(Clone, Debug)]
pub struct Overrides {
    /// The profiles to apply; later ones win.
    pub profiles: Vec<String>,
    /// `param=value`, the value in YAML; later ones win, and all win over profiles.
    pub set: Vec<String>,
    /// The folder that a relative path in `set` starts from.
    pub folder: PathBuf,
    /// Looks up an environment variable.
    pub env: fn(&str) -> Option<String>,
}

impl Default for Overrides {
    /// Nothing replaced, in the working directory and environment of this process.
    fn default() -> Self {
        Self {
            profiles: Vec::new(),
            set: Vec::new(),
            folder: PathBuf::from("."),
            env: |name| std::env::var(name).ok(),
        }
    }
}

/// A param with the value it has in this run, as it was written.
pub struct Param {
    /// Its name and where it is declared.
    pub key: Key,
    /// Its value.
    pub node: Node,
    /// The argument of `--set` that gave the value, if one did.
    pub set: Option<String>,
}

/// Applies profiles and `--set`s to the manifest's params.
pub fn apply(document: &mut Document, overrides: &Overrides, faults: &mut Vec<Diagnostic>) -> Vec<Param> {
    let params = std::mem::take(&mut document.params);
    let mut params: Vec<Param> =
        params.into_iter().map(|(key, node)| Param { key, node, set: None }).collect();
    let index: HashMap<String, usize> =
        params.iter().enumerate().map(|(at, param)| (param.key.text.clone(), at)).collect();
    check_profiles(document, &params, &index, faults);
    for profile in &overrides.profiles {
        match document.profiles.iter().find(|(name, _)| name.text == *profile) {
            Some((_, replaced)) => {
                for (key, node) in replaced {
                    if let Some(at) = index.get(&key.text) {
                        params[*at].node = node.clone();
                    }
                }
            }
            None => {
                let known: Vec<&str> = document.profiles.iter().map(|(name, _)| name.text.as_str()).collect();
                let message = match known.is_empty() {
                    true => format!("`--profile {profile}`: this manifest has no profiles"),
                    false => format!("`--profile {profile}`: there is no such profile"),
                };
                let help = suggestion(profile, "the profiles are", &known);
                faults.push(Diagnostic::error(message).maybe_help(help));
            }
        }
    }
    let folder = Arc::new(overrides.folder.clone());
    for argument in &overrides.set {
        set(&mut params, argument, &folder, faults);
    }
    params
}

fn check_profiles(
    document: &Document,
    params: &[Param],
    index: &HashMap<String, usize>,
    faults: &mut Vec<Diagnostic>,
) {
    let known: Arc<[String]> = params.iter().map(|p| p.key.text.clone()).collect();
    for (profile, replaced) in &document.profiles {
        for (key, _) in replaced.iter().filter(|(key, _)| !index.contains_key(&key.text)) {
            let message =
                format!("the profile `{}` replaces `{}`, which is no param", profile.text, key.text);
            let among = known.clone();
            let meant = Meant { word: key.text.clone(), what: "the params are", among, but: None };
            faults.push(Diagnostic::error(message).at(key.span).meant(meant));
        }
    }
}

fn set(params: &mut [Param], argument: &str, folder: &Arc<PathBuf>, faults: &mut Vec<Diagnostic>) {
    let Some((name, text)) = argument.split_once('=') else {
        let fault = Diagnostic::error(format!("`--set {argument}` has no `=`"));
        faults.push(fault.help("write `--set param=value`"));
        return;
    };
    match params.iter().position(|p| p.key.text == name) {
        Some(index) => match value(text, folder) {
            Ok(node) => {
                params[index].node = node;
                params[index].set = Some(argument.into());
            }
            Err(why) => faults.push(Diagnostic::error(format!("`--set {argument}`: {why}"))),
        },
        None => {
            let known: Vec<&str> = params.iter().map(|p| p.key.text.as_str()).collect();
            let message = match known.is_empty() {
                true => format!("`--set {argument}`: this manifest has no params"),
                false => format!("`--set {argument}`: there is no param `{name}`"),
            };
            let help = suggestion(name, "the params are", &known);
            faults.push(Diagnostic::error(message).maybe_help(help));
        }
    }
}

/// A YAML scalar, `[…]` or `{…}`; what YAML would read as anything else is text to the letter, so that
/// nobody has to quote a colon or an at sign twice.
fn value(text: &str, folder: &Arc<PathBuf>) -> Result<Node, String> {
    let mut faults = Vec::new();
    let node = yaml::parse(text, folder, &mut faults);
    let plain = || Node { span: Span::default(), value: Value::Text(text.into()), base: folder.clone() };
    let trimmed = text.trim();
    if trimmed.starts_with(['[', '{']) {
        return match (node, faults.first()) {
            (Some(node), None) => Ok(node),
            (_, fault) => Err(fault.map_or("no value".into(), |f| f.message.clone())),
        };
    }
    let quoted = trimmed.starts_with(['"', '\'']);
    let null = matches!(trimmed, "" | "~" | "null" | "Null" | "NULL");
    Ok(match node {
        Some(node) => match node.value {
            Value::Null if null => node,
            Value::Text(_) if quoted => node,
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => node,
            _ => plain(),
        },
        None if null => Node { value: Value::Null, ..plain() },
        None => plain(),
    })
}
