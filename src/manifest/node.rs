//! The spanned tree of a manifest, and serde's way into it.
//!
//! Knows where every value stands and which folder its relative paths start from; does not know what the
//! keys mean.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use crate::diagnostic::{Span, list, nearest, suggestion};
use crate::location::LOCATION;

/// A value with the place it stands at.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it stands in the manifest.
    pub span: Span,
    /// What it is.
    pub value: Value,
    /// The folder that a relative path in it starts from.
    pub base: Arc<PathBuf>,
}

/// A YAML value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

impl PartialEq for Node {
    /// By value: where it stands makes no difference.
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

/// A key of a mapping with the place it stands at.
#[derive(Clone, Debug)]
pub struct Key {
    /// The key.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Node {
    /// What it is, in the word an error uses.
    pub fn word(&self) -> &'static str {
        match self.value {
            Value::Null => "null",
            Value::Bool(_) => "true or false",
            Value::Int(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// The value at a key, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(k, _)| k.text == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The same value as JSON, keys sorted.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(b) => (*b).into(),
            Value::Int(i) => (*i).into(),
            Value::Float(f) => (*f).into(),
            Value::Text(s) => s.as_str().into(),
            Value::List(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(entries) => {
                let sorted: BTreeMap<&String, &Node> = entries.iter().map(|(k, v)| (&k.text, v)).collect();
                sorted.into_iter().map(|(k, v)| (k.clone(), v.to_json())).collect()
            }
        }
    }
}

/// Why a tree does not fit a type.
#[derive(Clone, Debug)]
pub struct NodeError {
    /// What is wrong.
    pub problem: Problem,
    /// The way from the tree's root to the value it is about.
    pub path: Vec<Step>,
    /// Where that value, or its key, stands.
    pub span: Option<Span>,
}

/// What does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A value of another type, or out of range: what is expected and what is there, in words.
    Type(String, String),
    /// A key that has to be there is not.
    Missing(&'static str),
    /// A key that means nothing here, and those that do.
    UnknownKey(String, &'static [&'static str]),
    /// A word that means nothing here, and those that do.
    UnknownWord(String, &'static [&'static str]),
    /// In the words of the type itself.
    Other(String),
}

/// One step into a tree.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// To the value at a key.
    Key(String),
    /// To an item of a list, counted from 0.
    Item(usize),
}

impl NodeError {
    fn new(problem: Problem) -> Self {
        Self { problem, path: Vec::new(), span: None }
    }

    fn at(mut self, span: Span) -> Self {
        self.span.get_or_insert(span);
        self
    }

    fn below(mut self, step: Step) -> Self {
        self.path.insert(0, step);
        self
    }

    /// What to do.
    pub fn help(&self) -> Option<String> {
        match &self.problem {
            Problem::UnknownKey(key, known) => suggestion(key, "the keys are", known),
            Problem::UnknownWord(word, known) => {
                nearest(word, known.iter().copied()).map(|near| format!("did you mean `{near}`?"))
            }
            _ => None,
        }
    }
}

impl std::error::Error for NodeError {}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = path_text(&self.path);
        let name = if path.is_empty() { "with" } else { &path };
        match &self.problem {
            Problem::Type(expected, found) => write!(f, "`{name}` takes {expected}, not {found}"),
            Problem::Missing(key) if path.is_empty() => write!(f, "the key `{key}` is missing"),
            Problem::Missing(key) => write!(f, "`{name}` lacks the key `{key}`"),
            Problem::UnknownKey(key, _) if path.is_empty() => write!(f, "unknown key `{key}`"),
            Problem::UnknownKey(key, _) => write!(f, "unknown key `{key}` in `{name}`"),
            Problem::UnknownWord(word, known) => {
                write!(f, "`{name}` takes {}, not `{word}`", words(known))
            }
            Problem::Other(message) if path.is_empty() => f.write_str(message),
            Problem::Other(message) => write!(f, "`{name}`: {message}"),
        }
    }
}

/// `` `a`, `b` or `c` ``
fn words(known: &[&str]) -> String {
    let quoted: Vec<String> = known.iter().map(|word| format!("`{word}`")).collect();
    list(&quoted, "or")
}

/// A path as a manifest's reader would write it: `init.text`, `prompts[2]`.
pub fn path_text(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.extend([".", key]),
            Step::Item(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

impl de::Error for NodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Problem::Other(message.to_string()))
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let found = match found {
            de::Unexpected::Bool(b) => format!("`{b}`"),
            de::Unexpected::Unsigned(_) | de::Unexpected::Signed(_) => "a whole number".into(),
            de::Unexpected::Float(x) => format!("{x:?}"),
            de::Unexpected::Str(_) | de::Unexpected::Char(_) => "text".into(),
            de::Unexpected::Unit | de::Unexpected::Option => "null".into(),
            de::Unexpected::Seq => "a list".into(),
            de::Unexpected::Map => "a mapping".into(),
            other => other.to_string(),
        };
        Self::new(Problem::Type(expected_words(&expected.to_string(), false), found))
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let found = match found {
            de::Unexpected::Str(text) => format!("`{text}`"),
            de::Unexpected::Unsigned(n) => n.to_string(),
            de::Unexpected::Signed(n) => n.to_string(),
            de::Unexpected::Float(x) => format!("{x:?}"),
            other => other.to_string(),
        };
        Self::new(Problem::Type(expected_words(&expected.to_string(), true), found))
    }

    fn invalid_length(length: usize, expected: &dyn de::Expected) -> Self {
        let found = format!("of {length}");
        Self::new(Problem::Type(expected_words(&expected.to_string(), false), found))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Problem::Missing(field))
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self::new(Problem::UnknownKey(field.into(), known))
    }

    fn unknown_variant(word: &str, known: &'static [&'static str]) -> Self {
        Self::new(Problem::UnknownWord(word.into(), known))
    }
}

/// serde's name for a type, in the words of someone who writes a manifest.
fn expected_words(expected: &str, with_range: bool) -> String {
    match (expected, with_range) {
        ("u8", true) => "a whole number from 0 to 255".into(),
        ("u16", true) => "a whole number from 0 to 65535".into(),
        ("u32", true) => format!("a whole number from 0 to {}", u32::MAX),
        ("u64" | "usize" | "u128", true) => "a whole number from 0".into(),
        ("i8" | "i16" | "i32" | "i64" | "i128" | "isize", _) => "a whole number".into(),
        ("u8" | "u16" | "u32" | "u64" | "u128" | "usize", false) => "a whole number".into(),
        ("f32" | "f64", _) => "a number".into(),
        ("a boolean", _) => "true or false".into(),
        ("a string" | "a borrowed string" | "string", _) => "text".into(),
        ("a sequence", _) => "a list".into(),
        ("a map", _) => "a mapping".into(),
        ("unit", _) => "null".into(),
        (other, _) if other.starts_with("a nonzero ") => "a whole number from 1".into(),
        (other, _) if other.starts_with("struct ") => "a mapping".into(),
        (other, _) => match other.rsplit_once(' ') {
            Some((what, n)) if what.ends_with("of size") || what.ends_with("of length") => {
                format!("a list of {n}")
            }
            _ => other.into(),
        },
    }
}

impl<'de> Deserializer<'de> for Node {
    type Error = NodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        let span = self.span;
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(b),
            Value::Int(i) if i >= 0 => visitor.visit_u64(i.unsigned_abs()),
            Value::Int(i) => visitor.visit_i64(i),
            Value::Float(f) => visitor.visit_f64(f),
            Value::Text(s) => visitor.visit_string(s),
            Value::List(items) => {
                let length = items.len();
                let mut items = Items(items.into_iter().enumerate());
                visitor.visit_seq(&mut items).and_then(|value| match items.0.len() {
                    0 => Ok(value),
                    // A pair does not ask for a third; it would go unnoticed.
                    more => Err(NodeError::new(Problem::Type(
                        format!("a list of {}", length - more),
                        format!("of {length}"),
                    ))),
                })
            }
            Value::Map(entries) => visitor.visit_map(Entries { rest: entries.into_iter(), value: None }),
        }
        .map_err(|e: NodeError| e.at(span))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        match (&self.value, name) {
            (Value::Text(text), LOCATION) => {
                let parts = [text.clone(), self.base.to_string_lossy().into_owned()];
                visitor.visit_newtype_struct(de::value::SeqDeserializer::new(parts.into_iter()))
            }
            // A list of places is one of lists, not of pairs.
            (_, LOCATION) => self.deserialize_any(visitor),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        let span = self.span;
        match self.value {
            Value::Text(s) => visitor.visit_enum(IntoDeserializer::<NodeError>::into_deserializer(s)),
            Value::Map(entries) if entries.len() != 1 => Err(NodeError::new(Problem::Type(
                "a mapping with one key".into(),
                format!("one with {}", entries.len()),
            ))),
            Value::Map(entries) => visitor.visit_enum(de::value::MapAccessDeserializer::new(Entries {
                rest: entries.into_iter(),
                value: None,
            })),
            _ => self.deserialize_any(Unexpected { name, variants, visitor }),
        }
        .map_err(|e: NodeError| e.at(span))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// Stands in for an enum's visitor where the value is neither a word nor a mapping.
struct Unexpected<V> {
    name: &'static str,
    variants: &'static [&'static str],
    visitor: V,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Unexpected<V> {
    type Value = V::Value;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = (self.name, &self.visitor);
        f.write_str(&words(self.variants))
    }
}

struct Items(std::iter::Enumerate<std::vec::IntoIter<Node>>);

impl<'de> SeqAccess<'de> for Items {
    type Error = NodeError;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, NodeError> {
        let Some((index, node)) = self.0.next() else { return Ok(None) };
        let span = node.span;
        seed.deserialize(node).map(Some).map_err(|e| e.at(span).below(Step::Item(index)))
    }
}

struct Entries {
    rest: std::vec::IntoIter<(Key, Node)>,
    value: Option<(Key, Node)>,
}

impl<'de> MapAccess<'de> for Entries {
    type Error = NodeError;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, NodeError> {
        let Some((key, value)) = self.rest.next() else { return Ok(None) };
        let (key, _) = self.value.insert((key, value));
        let text = StrDeserializer::new(&key.text);
        seed.deserialize(text).map(Some).map_err(|e: NodeError| e.at(key.span))
    }
    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, NodeError> {
        let entry = self.value.take();
        let (key, node) = entry.ok_or_else(|| de::Error::custom("value asked for before its key"))?;
        let span = node.span;
        seed.deserialize(node).map_err(|e| e.at(span).below(Step::Key(key.text)))
    }
}
