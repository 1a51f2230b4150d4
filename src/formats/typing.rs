//! The polars type that holds every value of a JSON column.

use polars::prelude::{AnyValue, DataType, Field, PolarsResult, Series};

use super::json::Json;
use super::named::Named;

/// What the values seen so far have in common.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Type {
    /// Nothing but null so far.
    Empty,
    Bool,
    Int,
    Float,
    Text,
    List(Box<Type>),
    Map(Named<Type>),
}

impl Type {
    /// Widens the type so that it holds `value` too: whole numbers become numbers, mappings gain keys.
    /// Anything else that doesn't fit is an error, which calls the value by `name`.
    pub(super) fn widen(&mut self, value: &Json, name: &str) -> Result<(), String> {
        match (&mut *self, value) {
            (_, Json::Null)
            | (Type::Bool, Json::Bool(_))
            | (Type::Int | Type::Float, Json::Int(_))
            | (Type::Float, Json::Float(_))
            | (Type::Text, Json::Text(_)) => {}
            (Type::Int, Json::Float(_)) => *self = Type::Float,
            (Type::List(inner), Json::List(items)) => {
                let name = format!("{name}[]");
                for item in items {
                    inner.widen(item, &name)?;
                }
            }
            (Type::Map(fields), Json::Map(entries)) => {
                for (near, (key, value)) in entries.iter().enumerate() {
                    fields.entry(key, near, || Type::Empty).widen(value, &format!("{name}.{key}"))?;
                }
            }
            (Type::Empty, _) => {
                *self = match value {
                    Json::Null => Type::Empty,
                    Json::Bool(_) => Type::Bool,
                    Json::Int(_) => Type::Int,
                    Json::Float(_) => Type::Float,
                    Json::Text(_) => Type::Text,
                    Json::List(_) => Type::List(Box::new(Type::Empty)),
                    Json::Map(_) => Type::Map(Named::default()),
                };
                self.widen(value, name)?;
            }
            (have, _) => {
                let mut found = Type::Empty;
                found.widen(value, name)?;
                return Err(format!("`{name}` is {} here and {} before", found.word(), have.word()));
            }
        }
        Ok(())
    }

    fn word(&self) -> &'static str {
        match self {
            Type::Empty => "null",
            Type::Bool => "true or false",
            Type::Int => "a whole number",
            Type::Float => "a number",
            Type::Text => "text",
            Type::List(_) => "a list",
            Type::Map(_) => "an object",
        }
    }

    /// The polars type. What was never more than null or `{}` is text, which every reader knows.
    fn polars(&self) -> DataType {
        match self {
            Type::Bool => DataType::Boolean,
            Type::Int => DataType::Int64,
            Type::Float => DataType::Float64,
            Type::List(inner) => DataType::List(Box::new(inner.polars())),
            Type::Map(fields) if !fields.is_empty() => DataType::Struct(polars_fields(fields)),
            Type::Empty | Type::Text | Type::Map(_) => DataType::String,
        }
    }
}

fn polars_fields(fields: &Named<Type>) -> Vec<Field> {
    fields.iter().map(|(name, kind)| Field::new(name.as_str().into(), kind.polars())).collect()
}

/// The values as a column of the type that was widened to hold them.
pub(super) fn series(name: &str, values: &[&Json], kind: &Type) -> PolarsResult<Series> {
    let cells = values.iter().map(|value| cell(value, kind)).collect::<PolarsResult<Vec<_>>>()?;
    Series::from_any_values_and_dtype(name.into(), &cells, &kind.polars(), true)
}

fn cell<'a>(value: &'a Json, kind: &Type) -> PolarsResult<AnyValue<'a>> {
    Ok(match (value, kind) {
        (Json::Bool(truth), _) => AnyValue::Boolean(*truth),
        // Past 2^53 a float can't hold every whole number: the rows that are fractions decide for floats.
        (Json::Int(number), Type::Float) => AnyValue::Float64(*number as f64),
        (Json::Int(number), _) => AnyValue::Int64(*number),
        (Json::Float(number), _) => AnyValue::Float64(*number),
        (Json::Text(text), _) => AnyValue::String(text),
        (Json::List(items), Type::List(inner)) => {
            AnyValue::List(series("", &items.iter().collect::<Vec<_>>(), inner)?)
        }
        (Json::Map(_), Type::Map(fields)) if !fields.is_empty() => {
            let cells = fields
                .iter()
                .enumerate()
                .map(|(near, (key, kind))| cell(value.get(key, near).unwrap_or(&Json::Null), kind))
                .collect::<PolarsResult<Vec<_>>>()?;
            AnyValue::StructOwned(Box::new((cells, polars_fields(fields))))
        }
        (Json::Null | Json::List(_) | Json::Map(_), _) => AnyValue::Null,
    })
}
