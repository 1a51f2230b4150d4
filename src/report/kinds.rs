//! The stage kinds in words: the list, and one with its ports, keys, defaults and an example.

use super::table;
use crate::schema;
use crate::stage::{Kind, Lane};

/// `pipe stages`.
pub fn list(kinds: &[Kind]) -> String {
    let rows: Vec<Vec<String>> =
        kinds.iter().map(|k| vec![k.name.to_string(), k.about.to_string()]).collect();
    format!("{}`pipe stages KIND` describes one\n", table(&rows))
}

/// `pipe stages KIND`.
pub fn describe(kind: &'static Kind) -> String {
    let lane = match kind.lane {
        Lane::Cpu => "on the processor, beside others",
        Lane::Device => "on the model device, one at a time",
    };
    let mut text = format!("{}: {}\nruns {lane}\n", kind.name, kind.about);
    if !kind.inputs.is_empty() {
        text += "\ninputs\n";
        let rows: Vec<Vec<String>> = kind
            .inputs
            .iter()
            .map(|p| {
                let kinds: Vec<&str> = p.accepts.iter().map(|k| k.word()).collect();
                let kinds = if kinds.is_empty() { "anything".into() } else { kinds.join(" or ") };
                let need = if p.required { "" } else { "(optional) " };
                vec![format!("  {}", p.name), kinds, format!("{need}{}", p.about)]
            })
            .collect();
        text += &table(&rows);
    }
    text += "\nwith\n";
    for key in schema::describe(kind) {
        let default = match (&key.default, key.required) {
            (_, true) => ", required".to_string(),
            (Some(value), _) if !value.is_null() => format!(", default {value}"),
            _ => String::new(),
        };
        text += &format!("  {} ({}{default})\n", key.name, key.takes);
        for line in key.about.lines() {
            text += &format!("      {line}\n");
        }
    }
    text += "\nexample\n";
    for line in kind.example.trim_end().lines() {
        text += &format!("  {line}\n");
    }
    text
}
