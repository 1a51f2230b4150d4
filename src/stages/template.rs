//! Text with `{column}` placeholders, filled in from a row of a dataset: one text, or lines that are joined and
//! stripped as recipes in Python do it.
//!
//! Knows how placeholders are written; does not know what the text is for.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::artifact::dataset::{Batch, DatasetError, Split};
use crate::python;
use crate::stage::StageError;

/// Text with `{column}` placeholders; `{{` and `}}` stand for braces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Column(String),
}

/// Why a text is no template.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TemplateError {
    /// A `{` without its `}`.
    #[error("`{{` in `{0}` is never closed: write `{{{{` for a brace in the text")]
    Open(String),
    /// A `}` without its `{`.
    #[error("`}}` in `{0}` closes nothing: write `}}}}` for a brace in the text")]
    Stray(String),
    /// `{}`.
    #[error("`{{}}` in `{0}` names no column: write the column's name between the braces")]
    Nameless(String),
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, brace) = rest.split_at(at);
            plain.push_str(before);
            if let Some(after) = brace.strip_prefix("{{") {
                plain.push('{');
                rest = after;
            } else if let Some(after) = brace.strip_prefix("}}") {
                plain.push('}');
                rest = after;
            } else if let Some(after) = brace.strip_prefix('{') {
                let (name, after) = after.split_once('}').ok_or_else(|| TemplateError::Open(text.into()))?;
                if name.is_empty() {
                    return Err(TemplateError::Nameless(text.into()));
                }
                if name.contains('{') {
                    return Err(TemplateError::Open(text.into()));
                }
                if !plain.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                }
                parts.push(Part::Column(name.into()));
                rest = after;
            } else {
                return Err(TemplateError::Stray(text.into()));
            }
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self { text: text.into(), parts })
    }

    /// The columns it names, in their order.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Column(name) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    /// Refuses a split that lacks a column it names.
    pub fn fits(&self, split: &Split) -> Result<(), DatasetError> {
        self.columns().try_for_each(|name| split.column(name).map(|_| ()))
    }

    /// The text of a row, counted from 0. A null cell is an error.
    pub fn fill(&self, split: &Split, row: usize) -> Result<String, StageError> {
        self.filled(split, row, 0)
    }

    /// The text of a row of a batch, counted from 0 there; an error counts it in the whole split.
    pub fn fill_in(&self, batch: &Batch, row: usize) -> Result<String, StageError> {
        self.filled(&batch.rows, row, batch.first)
    }

    fn filled(&self, split: &Split, row: usize, first: usize) -> Result<String, StageError> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Column(name) => match split.text_at(name, row)? {
                    Some(cell) => text.push_str(&cell),
                    None => {
                        return Err(StageError::with_help(
                            format!(
                                "split `{}`, row {} (from 0): column `{name}` is null, and `{}` needs it",
                                split.name,
                                first + row,
                                self.text
                            ),
                            "fill the cell, or leave such rows out of the data",
                        ));
                    }
                },
            }
        }
        Ok(text)
    }
}

/// The wording of a text: a template as it stands, or lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Wording {
    /// As it stands.
    Plain(Template),
    /// Joined and stripped.
    Lines(Lines),
}

/// Lines joined by a newline; what is blank at both ends of the whole is stripped, as Python's `str.strip` does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lines {
    /// The lines.
    pub lines: Vec<Template>,
    /// What follows the stripped lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<Template>,
}

impl Wording {
    fn templates(&self) -> impl Iterator<Item = &Template> {
        let (lines, then) = match self {
            Self::Plain(template) => (std::slice::from_ref(template), None),
            Self::Lines(Lines { lines, then }) => (lines.as_slice(), then.as_ref()),
        };
        lines.iter().chain(then)
    }

    /// Refuses a split that lacks a column it names.
    pub fn fits(&self, split: &Split) -> Result<(), DatasetError> {
        self.templates().try_for_each(|template| template.fits(split))
    }

    /// The text of a row of a batch, counted from 0 there. A null cell is an error.
    pub fn fill_in(&self, batch: &Batch, row: usize) -> Result<String, StageError> {
        let Lines { lines, then } = match self {
            Self::Plain(template) => return template.fill_in(batch, row),
            Self::Lines(lines) => lines,
        };
        let lines = lines.iter().map(|line| line.fill_in(batch, row)).collect::<Result<Vec<_>, _>>()?;
        let mut text = python::strip(&lines.join("\n")).to_owned();
        if let Some(then) = then {
            text.push_str(&then.fill_in(batch, row)?);
        }
        Ok(text)
    }
}

/// By hand, because a derived one would tell nothing of what is wrong within.
impl<'de> Deserialize<'de> for Wording {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Wording;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("text, or a mapping with `lines`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Wording, E> {
                Template::parse(text).map(Wording::Plain).map_err(E::custom)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Wording, A::Error> {
                Lines::deserialize(MapAccessDeserializer::new(map)).map(Wording::Lines)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl TryFrom<String> for Template {
    type Error = TemplateError;
    fn try_from(text: String) -> Result<Self, TemplateError> {
        Self::parse(&text)
    }
}

impl From<Template> for String {
    fn from(template: Template) -> Self {
        template.text
    }
}

impl JsonSchema for Template {
    fn schema_name() -> Cow<'static, str> {
        "Template".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::df;

    fn split() -> Split {
        let frame =
            df!("Tweet text" => [Some("no water"), None], "Label" => [1i64, 2], "words" => ["a", "b"])
                .unwrap();
        Split { name: "train".into(), frame }
    }

    fn filled(text: &str, row: usize) -> Result<String, StageError> {
        Template::parse(text).unwrap().fill(&split(), row)
    }

    #[test]
    fn placeholders_become_the_cells_of_the_row() {
        assert_eq!(
            filled("Tweet text : {Tweet text} Label : ", 0).unwrap(),
            "Tweet text : no water Label : "
        );
        assert_eq!(filled("{Label}{words}", 1).unwrap(), "2b");
        assert_eq!(filled("{{\"id\": {Label}}}", 1).unwrap(), "{\"id\": 2}");
        assert_eq!(filled("트윗 {words}", 0).unwrap(), "트윗 a");
    }

    #[test]
    fn lines_are_joined_stripped_and_followed() {
        let batch = Batch { first: 0, rows: split() };
        let wording = |keys: &str| serde_json::from_str::<Wording>(keys).unwrap().fill_in(&batch, 0).unwrap();
        assert_eq!(
            wording(r#"{"lines": ["\t Human: {words}", " \u001c "], "then": "\n\nAssistant: "}"#),
            "Human: a\n\nAssistant: "
        );
        assert_eq!(wording(r#"{"lines": ["{words}", "", "{Label} "]}"#), "a\n\n1");
        assert_eq!(wording(r#"" {words} ""#), " a ");
        let refusal = serde_json::from_str::<Wording>(r#"{"lines": ["{a"]}"#).unwrap_err().to_string();
        assert!(refusal.starts_with("`{` in `{a` is never closed"), "{refusal}");
    }

    #[test]
    fn a_null_cell_is_named_by_its_row() {
        assert_eq!(
            filled("T: {Tweet text}", 1).unwrap_err().to_string(),
            "split `train`, row 1 (from 0): column `Tweet text` is null, and `T: {Tweet text}` needs it"
        );
        let template = Template::parse("T: {Tweet text}").unwrap();
        let later = Batch { first: 16_384, rows: split() };
        assert_eq!(template.fill_in(&later, 0).unwrap(), "T: no water");
        assert_eq!(
            template.fill_in(&later, 1).unwrap_err().to_string(),
            "split `train`, row 16385 (from 0): column `Tweet text` is null, and `T: {Tweet text}` needs it"
        );
    }

    #[test]
    fn an_unknown_column_is_told_with_the_nearest() {
        let template = Template::parse("{Tweet txt}").unwrap();
        assert_eq!(
            template.fits(&split()).unwrap_err().to_string(),
            "no column `Tweet txt` in split `train` (did you mean `Tweet text`?); there are `Tweet text`, \
             `Label`, `words`"
        );
    }

    #[test]
    fn braces_that_do_not_match_are_refused() {
        let refusal = |text| Template::parse(text).unwrap_err().to_string();
        assert_eq!(refusal("a {b"), "`{` in `a {b` is never closed: write `{{` for a brace in the text");
        assert_eq!(refusal("{a {b}"), "`{` in `{a {b}` is never closed: write `{{` for a brace in the text");
        assert_eq!(refusal("a} b"), "`}` in `a} b` closes nothing: write `}}` for a brace in the text");
        assert_eq!(refusal("{}"), "`{}` in `{}` names no column: write the column's name between the braces");
    }
}
