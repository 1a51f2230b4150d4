//! JSON: an array of objects, or one object a line. Keys become columns in the order they first appear.
//!
//! A key that a row lacks is null there. Objects become structs and arrays lists.

use std::fmt;

use polars::prelude::{Column, DataFrame};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::Flaw;
use super::named::Named;
use super::typing::{Type, series};
use crate::cancel::Cancel;

/// Rows between two looks at whether to stop.
const LOOK: usize = 1 << 10;

/// A JSON value whose objects keep their order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Json>),
    Map(Named<Json>),
}

impl Json {
    /// The value at a key of a mapping; `near` is where to look first.
    pub(super) fn get(&self, key: &str, near: usize) -> Option<&Json> {
        match self {
            Json::Map(entries) => entries.get(key, near),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Json;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
                Ok(Json::Bool(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
                Ok(Json::Int(value))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Json, E> {
                i64::try_from(value)
                    .map(Json::Int)
                    .map_err(|_| E::custom(format!("{value} is too large for a 64-bit whole number")))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
                Ok(Json::Float(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Json, E> {
                Ok(Json::Text(value.into()))
            }
            fn visit_string<E>(self, value: String) -> Result<Json, E> {
                Ok(Json::Text(value))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Json::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let mut entries = Named::default();
                while let Some((key, value)) = map.next_entry::<String, Json>()? {
                    if entries.position(&key, 0).is_some() {
                        return Err(de::Error::custom(format!("key `{key}` is there twice")));
                    }
                    entries.push(key, value);
                }
                Ok(Json::Map(entries))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Where a row stands, for messages.
#[derive(Clone, Copy)]
enum Row {
    Line(usize),
    /// In an array, from 0.
    Index(usize),
}

impl Row {
    fn flaw(self, reason: String) -> Flaw {
        match self {
            Row::Line(line) => Flaw::line(line, reason),
            Row::Index(index) => Flaw::whole(format!("row {index} (from 0): {reason}")),
        }
    }
}

/// The rows of an array of objects, or, where the text starts with an object, of one object a line.
pub(super) fn read(text: &str, cancel: &Cancel) -> Result<DataFrame, Flaw> {
    if !text.trim_start().starts_with('[') {
        return read_lines(text, cancel).map_err(|flaw| {
            let hint = "a .json file holds an array of objects or one object a line";
            Flaw { reason: format!("{}; {hint}", flaw.reason), ..flaw }
        });
    }
    let rows: Vec<Json> = serde_json::from_str(text).map_err(|e| Flaw::line(e.line(), syntax(&e)))?;
    frame(rows.into_iter().enumerate().map(|(index, row)| (Row::Index(index), row)).collect(), cancel)
}

/// The rows of one object a line; blank lines are none.
pub(super) fn read_lines(text: &str, cancel: &Cancel) -> Result<DataFrame, Flaw> {
    let mut rows = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        if at % LOOK == 0 {
            cancel.check()?;
        }
        let row = serde_json::from_str(line).map_err(|e| Flaw::line(at + 1, syntax(&e)))?;
        rows.push((Row::Line(at + 1), row));
    }
    frame(rows, cancel)
}

/// serde_json's words, with its line, which the caller knows better, taken off.
fn syntax(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let what = text.strip_suffix(&place).unwrap_or(&text);
    format!("not readable as JSON: {what} (column {})", error.column())
}

fn frame(rows: Vec<(Row, Json)>, cancel: &Cancel) -> Result<DataFrame, Flaw> {
    let mut columns: Named<Type> = Named::default();
    for (at, (row, value)) in rows.iter().enumerate() {
        if at % LOOK == 0 {
            cancel.check()?;
        }
        let Json::Map(entries) = value else {
            return Err(row.flaw("not an object: every row has to be `{…}`".into()));
        };
        for (near, (key, value)) in entries.iter().enumerate() {
            let kind = columns.entry(key, near, || Type::Empty);
            kind.widen(value, key).map_err(|reason| row.flaw(reason))?;
        }
    }
    let columns: Vec<Column> = columns
        .iter()
        .enumerate()
        .map(|(near, (name, kind))| {
            cancel.check()?;
            let cells: Vec<&Json> =
                rows.iter().map(|(_, row)| row.get(name, near).unwrap_or(&Json::Null)).collect();
            series(name, &cells, kind).map(Column::from).map_err(|e| Flaw::whole(e.to_string()))
        })
        .collect::<Result<_, _>>()?;
    DataFrame::new(rows.len(), columns).map_err(|e| Flaw::whole(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::df;

    fn read(text: &str) -> Result<DataFrame, Flaw> {
        super::read(text, &Cancel::default())
    }

    fn read_lines(text: &str) -> Result<DataFrame, Flaw> {
        super::read_lines(text, &Cancel::default())
    }

    fn refusal(result: Result<DataFrame, Flaw>) -> (Option<usize>, String) {
        let flaw = result.unwrap_err();
        (flaw.line, flaw.reason)
    }

    fn types(frame: &DataFrame) -> Vec<String> {
        frame.dtypes().iter().map(|t| t.to_string()).collect()
    }

    #[test]
    fn lines_and_an_array_give_the_same_rows_in_the_order_of_the_keys() {
        let want =
            df!("Tweet text" => ["no water", "naïve 트윗"], "ID" => [0i64, 1], "B" => [None, Some(true)])
                .unwrap();
        let first = r#"{"Tweet text": "no water", "ID": 0}"#;
        let second = r#"{"ID": 1, "Tweet text": "naïve \ud2b8윗", "B": true}"#;
        let lines = read_lines(&format!("{first}\n\n{second}\r\n")).unwrap();
        assert!(lines.equals_missing(&want), "{lines}");
        assert!(read(&format!(" [{first},\n{second}]")).unwrap().equals_missing(&want));
        assert!(read(&format!("{first}\n{second}")).unwrap().equals_missing(&want));
    }

    #[test]
    fn types_come_from_every_row() {
        let mut text = String::new();
        for row in 0..300 {
            text += &format!("{{\"x\": {row}, \"late\": null}}\n");
        }
        text += "{\"x\": 0.5, \"late\": [1, 2], \"never\": null}\n";
        assert_eq!(types(&read_lines(&text).unwrap()), ["f64", "list[i64]", "str"]);
    }

    #[test]
    fn nested_values_become_structs_and_lists() {
        let frame = read_lines(
            "{\"q\": \"a\", \"answers\": {\"text\": [\"x\", \"y\"], \"score\": [1, 2.5]}}\n\
             {\"q\": \"b\", \"answers\": {\"text\": [], \"score\": []}}\n\
             {\"q\": \"c\", \"answers\": null}\n",
        )
        .unwrap();
        assert_eq!(types(&frame), ["str", "struct[2]"]);
        let answers = frame.column("answers").unwrap().struct_().unwrap().clone();
        let text = answers.field_by_name("text").unwrap();
        assert_eq!(text.dtype().to_string(), "list[str]");
        assert_eq!(text.list().unwrap().get_as_series(0).unwrap().len(), 2);
        assert_eq!(answers.field_by_name("score").unwrap().dtype().to_string(), "list[f64]");
        assert_eq!(frame.column("answers").unwrap().null_count(), 1);
    }

    #[test]
    fn a_malformed_line_is_named() {
        assert_eq!(
            refusal(read_lines("{\"a\": 1}\n\n{\"a\": }\n")),
            (Some(3), "not readable as JSON: expected value (column 7)".into())
        );
        assert_eq!(
            refusal(read_lines("{\"a\": 1}\n[1]\n")),
            (Some(2), "not an object: every row has to be `{…}`".into())
        );
        assert_eq!(
            refusal(read_lines("{\"a\": 1, \"a\": 2}\n")),
            (Some(1), "not readable as JSON: key `a` is there twice (column 16)".into())
        );
        assert_eq!(
            refusal(read("[{\"a\": 1},\n {\"a\" 2}]")),
            (Some(2), "not readable as JSON: expected `:` (column 7)".into())
        );
        assert_eq!(
            refusal(read("{\n  \"a\": 1\n}")),
            (
                Some(1),
                "not readable as JSON: EOF while parsing an object (column 1); \
                 a .json file holds an array of objects or one object a line"
                    .into()
            )
        );
    }

    #[test]
    fn a_column_of_two_types_is_named_with_its_row() {
        assert_eq!(
            refusal(read_lines("{\"a\": 1}\n{\"a\": \"x\"}\n")),
            (Some(2), "`a` is text here and a whole number before".into())
        );
        assert_eq!(
            refusal(read("[{\"a\": {\"b\": [true]}}, {\"a\": {\"b\": [2]}}]")),
            (None, "row 1 (from 0): `a.b[]` is a whole number here and true or false before".into())
        );
    }
}
