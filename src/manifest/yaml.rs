//! YAML text to the spanned tree.
//!
//! Knows YAML and its dangers (depth, aliases that multiply, junk); does not know what the keys mean.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{DefaultMessageFormatter, Error, Location, MessageFormatter, Options, Spanned};

use super::node::{Key, Node, Value};
use crate::diagnostic::{Diagnostic, Source, Span};

/// A manifest is written by hand: what is larger is another file given by mistake.
const MAX_BYTES: u64 = 1 << 20;
const MAX_DEPTH: usize = 64;
const MAX_VALUES: usize = 50_000;

/// Reads a file; what is not valid UTF-8 is a fault with the place of the first bad byte.
pub fn read(path: &Path) -> (Source, Option<Diagnostic>) {
    let name = path.display().to_string();
    let unreadable =
        |why: String| (Source { name: name.clone(), text: String::new() }, Some(Diagnostic::error(why)));
    let size = match std::fs::metadata(path) {
        Ok(data) if data.is_dir() => {
            return unreadable(format!("`{name}` is a folder; a manifest is a YAML file"));
        }
        Ok(data) => data.len(),
        Err(error) => return unreadable(format!("can't read `{name}`: {error}")),
    };
    if size > MAX_BYTES {
        return unreadable(format!("`{name}` has {size} bytes; a manifest has at most {MAX_BYTES}"));
    }
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return unreadable(format!("can't read `{name}`: {error}")),
    };
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => (Source { name, text: text.into() }, None),
        Err(error) => {
            let start = error.valid_up_to();
            let text = String::from_utf8_lossy(bytes).into_owned();
            let fault = Diagnostic::error("the file is not UTF-8 text").at(Span { start, end: start + 3 });
            (Source { name, text }, Some(fault.label("the first byte that is not")))
        }
    }
}

/// Parses one document. Duplicate keys are faults beside a tree that keeps the first of them; anything else
/// that is wrong leaves no tree.
pub fn parse(text: &str, base: &Arc<PathBuf>, faults: &mut Vec<Diagnostic>) -> Option<Node> {
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options()) {
        Ok(raw) => Some(Builder { base, faults }.node(raw)),
        Err(error) => {
            faults.push(fault_of(error.without_snippet(), text));
            None
        }
    }
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_VALUES,
            max_events: 4 * MAX_VALUES,
            max_documents: 2,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_VALUES,
        },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        strict_booleans: true,
        underscored_numbers_as_strings: true,
        non_finite_float_policy: NonFiniteFloatPolicy::Reject,
        with_snippet: false,
    }
}

fn fault_of(error: &Error, text: &str) -> Diagnostic {
    let message = match error {
        Error::Budget { .. } | Error::AliasReplayLimitExceeded { .. } => format!(
            "the file is nested deeper than {MAX_DEPTH} levels or, its aliases followed, \
             has more than {MAX_VALUES} values"
        ),
        Error::MultipleDocuments { .. } => {
            "a manifest is one YAML document, and here a second one starts".into()
        }
        _ => format!("not valid YAML: {}", DefaultMessageFormatter.format_message(error)),
    };
    let fault = Diagnostic::error(message);
    let fault = match message_is_about_shape(&fault.message) {
        true => fault.help("is this line indented like those it belongs with?"),
        false => fault,
    };
    match error.location() {
        Some(location) => fault.at(span_of(location).unwrap_or_else(|| at_column(location, text))),
        None => fault,
    }
}

fn span_of(location: Location) -> Option<Span> {
    let span = location.span();
    let start = usize::try_from(span.byte_offset()?).ok()?;
    let length = usize::try_from(span.byte_len()?).ok()?;
    Some(Span { start, end: start.saturating_add(length) })
}

/// The parser's words for what most often is a matter of indentation.
fn message_is_about_shape(message: &str) -> bool {
    message.contains("did not find expected") || message.contains("mapping values are not allowed")
}

/// The place of a character that is known by line and column only.
fn at_column(location: Location, text: &str) -> Span {
    let index = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).saturating_sub(1);
    let before: usize = text.split_inclusive('\n').take(index(location.line())).map(str::len).sum();
    let line = text[before..].lines().next().unwrap_or_default();
    let column = line.char_indices().nth(index(location.column())).map_or(line.len(), |(at, _)| at);
    Span { start: before + column, end: before + column + 1 }
}

/// What serde hands over, before the faults that serde can't tell are looked for.
enum Raw {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Raw;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Raw, E> {
                Ok(Raw::Null)
            }
            fn visit_none<E>(self) -> Result<Raw, E> {
                Ok(Raw::Null)
            }
            fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Raw, D::Error> {
                d.deserialize_any(Any)
            }
            fn visit_bool<E>(self, b: bool) -> Result<Raw, E> {
                Ok(Raw::Bool(b))
            }
            fn visit_i64<E>(self, i: i64) -> Result<Raw, E> {
                Ok(Raw::Int(i))
            }
            fn visit_u64<E: de::Error>(self, u: u64) -> Result<Raw, E> {
                let too_large = || E::custom(format!("{u} is beyond the largest whole number, {}", i64::MAX));
                i64::try_from(u).map(Raw::Int).map_err(|_| too_large())
            }
            fn visit_f64<E>(self, x: f64) -> Result<Raw, E> {
                Ok(Raw::Float(x))
            }
            fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
                Ok(Raw::Text(text.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Raw::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Raw::Map(entries))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

struct Builder<'a> {
    base: &'a Arc<PathBuf>,
    faults: &'a mut Vec<Diagnostic>,
}

impl Builder<'_> {
    fn node(&mut self, raw: Spanned<Raw>) -> Node {
        let mut span = span_of(raw.referenced).unwrap_or_default();
        let value = match raw.value {
            Raw::Null => Value::Null,
            Raw::Bool(b) => Value::Bool(b),
            Raw::Int(i) => Value::Int(i),
            Raw::Float(x) => Value::Float(x),
            Raw::Text(text) => Value::Text(text),
            Raw::List(items) => Value::List(items.into_iter().map(|item| self.node(item)).collect()),
            Raw::Map(entries) => Value::Map(self.entries(entries)),
        };
        // A collection's own place is where it starts; it reaches to the end of its last value.
        let last = match &value {
            Value::List(items) => items.last(),
            Value::Map(entries) => entries.last().map(|(_, v)| v),
            _ => None,
        };
        span.end = span.end.max(last.map_or(0, |n| n.span.end));
        Node { span, value, base: self.base.clone() }
    }

    fn entries(&mut self, raw: Vec<(Spanned<String>, Spanned<Raw>)>) -> Vec<(Key, Node)> {
        let mut first: HashMap<String, Span> = HashMap::new();
        let mut entries = Vec::with_capacity(raw.len());
        for (key, value) in raw {
            let key = Key { span: span_of(key.referenced).unwrap_or_default(), text: key.value };
            let value = self.node(value);
            match first.get(&key.text) {
                Some(earlier) => self.faults.push(
                    Diagnostic::error(format!("the key `{}` is given twice", key.text))
                        .at(key.span)
                        .related(*earlier, "first given here")
                        .help("keep one of them"),
                ),
                None => {
                    first.insert(key.text.clone(), key.span);
                    entries.push((key, value));
                }
            }
        }
        entries
    }
}
