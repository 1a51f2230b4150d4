//! A conversation in a row of a dataset: messages worded in the manifest, or a column that holds a list of them.
//!
//! Does not know what a chat template makes of it.

use std::fmt;

use polars::prelude::{AnyValue, DataType, PolarsError};
use schemars::JsonSchema;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::template::Wording;
use crate::artifact::dataset::{Batch, Split};
use crate::stage::{Fault, StageError};
use crate::tokenizer::chat::{ASSISTANT, Message};

/// Where a row's conversation comes from. Its last message is the assistant's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Chat {
    /// These messages.
    Messages(Vec<Turn>),
    /// A column.
    Column(Conversation),
}

/// One message of every row's conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// `system`, `user`, `assistant`, or what else the chat template knows.
    pub role: String,
    /// What is said: text with `{column}` placeholders, or lines of it.
    pub text: Wording,
}

/// A column whose cells are whole conversations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Conversation {
    /// The column: a list of `{role, content}` in each row.
    pub column: String,
}

impl Chat {
    /// What is wrong with it, whatever the rows are.
    pub fn fault(&self) -> Option<Fault> {
        let Self::Messages(messages) = self else { return None };
        let fault = match messages.last() {
            None => Fault::new("chat", "`chat` has no message"),
            Some(last) if last.role != ASSISTANT => {
                Fault::new("chat", format!("the last message of `chat` has the role `{}`", last.role))
            }
            Some(_) => return None,
        };
        Some(fault.help("end with what is to be learned: a message of role `assistant`"))
    }

    /// Refuses a split that lacks a column it names.
    pub fn fits(&self, split: &Split) -> Result<(), StageError> {
        match self {
            Self::Messages(messages) => Ok(messages.iter().try_for_each(|turn| turn.text.fits(split))?),
            Self::Column(Conversation { column }) => {
                let kind = split.column(column)?.dtype();
                let is_fit = matches!(kind, DataType::List(inner) if is_message(inner));
                if is_fit { Ok(()) } else { Err(no_conversation(split, column, &kind.to_string())) }
            }
        }
    }

    /// The conversation of a row of a batch, counted from 0 there. One that does not end with the assistant's
    /// message is an error.
    pub fn messages(&self, batch: &Batch, row: usize) -> Result<Vec<Message>, StageError> {
        match self {
            Self::Messages(messages) => messages
                .iter()
                .map(|turn| Ok(Message { role: turn.role.clone(), content: turn.text.fill_in(batch, row)? }))
                .collect(),
            Self::Column(Conversation { column }) => {
                let at = format!("split `{}`, row {} (from 0)", batch.rows.name, batch.first + row);
                let messages = cell(&batch.rows, column, row)?.ok_or_else(|| {
                    StageError::failed(format!(
                        "{at}: column `{column}` has a message without role or content"
                    ))
                })?;
                match messages.last() {
                    Some(last) if last.role == ASSISTANT => Ok(messages),
                    last => Err(StageError::with_help(
                        match last {
                            None => format!("{at}: the conversation in column `{column}` is empty"),
                            Some(last) => format!(
                                "{at}: the conversation in column `{column}` ends with the role `{}`",
                                last.role
                            ),
                        },
                        "leave out of the data what does not end with a message of role `assistant`",
                    )),
                }
            }
        }
    }
}

/// The messages of a cell; none if one of them lacks its role or its content.
fn cell(split: &Split, column: &str, row: usize) -> Result<Option<Vec<Message>>, StageError> {
    let unreadable =
        |e: PolarsError| StageError::failed(format!("column `{column}` of split `{}`: {e}", split.name));
    let series = match split.column(column)?.get(row).map_err(unreadable)? {
        AnyValue::List(series) => series,
        _ => return Ok(Some(Vec::new())),
    };
    let messages = series.struct_().map_err(unreadable)?;
    let field = |name| messages.field_by_name(name).map_err(unreadable);
    let (roles, contents) = (field("role")?, field("content")?);
    let (roles, contents) = (roles.str().map_err(unreadable)?, contents.str().map_err(unreadable)?);
    let message = |(role, content): (Option<&str>, Option<&str>)| {
        Some(Message { role: role?.into(), content: content?.into() })
    };
    Ok(roles.iter().zip(contents.iter()).map(message).collect())
}

fn is_message(kind: &DataType) -> bool {
    let DataType::Struct(fields) = kind else { return false };
    ["role", "content"].into_iter().all(|name| {
        fields.iter().any(|field| field.name().as_str() == name && matches!(field.dtype(), DataType::String))
    })
}

fn no_conversation(split: &Split, column: &str, kind: &str) -> StageError {
    StageError::with_help(
        format!("column `{column}` of split `{}` holds {kind}, which is no conversation", split.name),
        "a conversation is a list of mappings with the texts `role` and `content`",
    )
}

/// By hand, because a derived one would tell nothing of what is wrong within.
impl<'de> Deserialize<'de> for Chat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Chat;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of messages, or a mapping with `column`")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Chat, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Chat::Messages)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Chat, A::Error> {
                Conversation::deserialize(MapAccessDeserializer::new(map)).map(Chat::Column)
            }
        }
        deserializer.deserialize_any(Either)
    }
}
