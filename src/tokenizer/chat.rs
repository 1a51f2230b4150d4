//! Chat templates: the Jinja that a model was published with, rendered as transformers' `apply_chat_template`
//! does it (5.23): blocks trimmed, Python's string methods, `raise_exception`, its `tojson`.
//!
//! Knows nothing of tokens: special ones are text here. There is no `strftime_now`: what today's date goes into
//! comes out differently tomorrow, so templates that can do without it take their fixed date.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior, Value};
use minijinja_contrib::pycompat;

use crate::python;

/// The role whose messages a model writes.
pub const ASSISTANT: &str = "assistant";

/// The name of the one template in its environment.
const NAME: &str = "chat_template";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// What stands at the end of a rendered conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The last message.
    Message,
    /// What invites the assistant to speak (`add_generation_prompt`).
    Invitation,
}

/// Why a conversation can't be rendered.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChatError {
    /// The template is no Jinja, or none that is known here.
    #[error("the chat template can't be read: {0}")]
    Broken(String),
    /// The template calls `raise_exception`.
    #[error("the chat template refuses the conversation: {0}")]
    Refused(String),
    /// The template fails at something else.
    #[error("the chat template fails: {0}")]
    Failed(String),
    /// What invites the assistant is not what stands before its message.
    #[error(
        "the chat template puts something else before the assistant's message than when it asks for one: {asked:?} \
         is not the beginning of {whole:?}"
    )]
    NoPrefix {
        /// The conversation up to the assistant's message.
        asked: String,
        /// The whole of it.
        whole: String,
    },
}

/// A chat template ready to be rendered.
#[derive(Debug)]
pub struct ChatTemplate {
    jinja: Environment<'static>,
    special: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Reads a template; `special` are the texts of `bos_token`, `eos_token` and the like.
    pub fn new(source: &str, special: BTreeMap<String, String>) -> Result<Self, ChatError> {
        let broken = |e: &Error| ChatError::Broken(reason(e));
        let mut jinja = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        jinja.set_syntax(syntax.trim_blocks(true).lstrip_blocks(true).build().map_err(|e| broken(&e))?);
        jinja.set_undefined_behavior(UndefinedBehavior::Lenient);
        jinja.set_unknown_method_callback(method);
        jinja.set_formatter(|out, state, value| match value.kind() {
            ValueKind::None => Ok(out.write_str("None")?),
            ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
            _ => minijinja::escape_formatter(out, state, value),
        });
        jinja.add_filter("tojson", to_json);
        jinja.add_filter("trim", |text: String| python::strip(&text).to_owned());
        jinja.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Refusal(message)))
        });
        let source = without_generation_tags(source);
        jinja.add_template_owned(NAME, source).map_err(|e| broken(&e))?;
        Ok(Self { jinja, special })
    }

    /// A conversation as one text.
    pub fn render(&self, messages: &[Message], ending: Ending) -> Result<String, ChatError> {
        let messages = messages.iter().map(|message| {
            Value::from_pairs([("role", message.role.as_str()), ("content", message.content.as_str())])
        });
        let special = self.special.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str())));
        let variables = Value::from_pairs(special.chain([
            ("messages", messages.collect()),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(ending == Ending::Invitation)),
        ]));
        let template = self.jinja.get_template(NAME).map_err(|e| ChatError::Broken(reason(&e)))?;
        template.render(variables).map_err(|e| {
            let refusal = std::error::Error::source(&e).and_then(|source| source.downcast_ref::<Refusal>());
            match refusal {
                Some(Refusal(message)) => ChatError::Refused(message.clone()),
                None => ChatError::Failed(reason(&e)),
            }
        })
    }

    /// A conversation that ends with the assistant's message, cut in two: what stands before that message when
    /// the assistant is asked for it, and the rest.
    pub fn prompt_and_target(&self, messages: &[Message]) -> Result<(String, String), ChatError> {
        let before = &messages[..messages.len().saturating_sub(1)];
        let asked = self.render(before, Ending::Invitation)?;
        let whole = self.render(messages, Ending::Message)?;
        match whole.strip_prefix(&asked) {
            Some(target) => {
                let target = target.to_owned();
                Ok((asked, target))
            }
            None => Err(ChatError::NoPrefix { asked, whole }),
        }
    }
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn reason(error: &Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}

/// Python's methods; those that strip blanks strip Python's.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), name, args) {
        (Some(text), "strip", []) => Ok(Value::from(python::strip(text))),
        (Some(text), "lstrip", []) => Ok(Value::from(python::strip_start(text))),
        (Some(text), "rstrip", []) => Ok(Value::from(python::strip_end(text))),
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// transformers' `tojson`: `json.dumps` that leaves letters beyond ASCII as they are and escapes no HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    python::json(value, indent).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// `{% generation %}` marks what the assistant writes, for masks that transformers can give; the text between
/// is rendered as it stands.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        text.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (inside, after) = (&tag[2..end], &tag[end + 2..]);
        let stands_for = match inside.trim_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+')) {
            "generation" => inside.replace("generation", "if true"),
            "endgeneration" => inside.replace("endgeneration", "endif"),
            _ => inside.to_owned(),
        };
        text.extend(["{%", &stands_for, "%}"]);
        rest = after;
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use serde_json::Value as Json;

    use super::*;

    fn special() -> BTreeMap<String, String> {
        let tokens =
            [("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "<pad>"), ("unk_token", "<unk>")];
        tokens.map(|(name, token)| (name.to_owned(), token.to_owned())).into()
    }

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    /// `expected.json` is what transformers 5.23 makes of each conversation with each template, first without,
    /// then with `add_generation_prompt`, or what it raises:
    /// `tokenizer.apply_chat_template(conversation, chat_template=source, tokenize=False,
    /// add_generation_prompt=…)`.
    #[test]
    fn renders_what_transformers_renders() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chat");
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        let json = |name: &str| serde_json::from_str::<Json>(&read(name)).unwrap();
        let conversations = json("conversations.json");
        let expected = json("expected.json");
        let mut rendered = 0;
        for (name, expected) in expected.as_object().unwrap() {
            let template = ChatTemplate::new(&read(&format!("{name}.jinja")), special()).unwrap();
            for (at, expected) in expected.as_array().unwrap().iter().enumerate() {
                let conversation = conversations[at / 2].as_array().unwrap();
                let text = |m: &Json, key: &str| m[key].as_str().unwrap().to_owned();
                let messages: Vec<Message> =
                    conversation.iter().map(|m| message(&text(m, "role"), &text(m, "content"))).collect();
                let ending = if at % 2 == 0 { Ending::Message } else { Ending::Invitation };
                match (template.render(&messages, ending), &expected["refused"]) {
                    (Ok(text), Json::Null) => assert_eq!(text, expected.as_str().unwrap(), "{name}, {at}"),
                    (Err(ChatError::Refused(why)), expected) => assert_eq!(why, expected.as_str().unwrap()),
                    (other, expected) => panic!("{name}, {at}: {other:?}, not {expected:?}"),
                }
                rendered += 1;
            }
        }
        assert_eq!(rendered, 70);
    }

    #[test]
    fn the_prompt_is_what_stands_before_the_last_message() {
        let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}\
                      {% if add_generation_prompt %}<assistant>{% endif %}";
        let template = ChatTemplate::new(source, special()).unwrap();
        let messages = [message("user", "a?"), message("assistant", "b")];
        assert_eq!(
            template.prompt_and_target(&messages).unwrap(),
            ("<user>a?</s>\n<assistant>".into(), "b</s>\n".into())
        );
    }

    #[test]
    fn a_prompt_that_does_not_begin_the_whole_is_refused() {
        let source =
            "{% for m in messages %}{{ m.content }};{% endfor %}{% if add_generation_prompt %}>{% endif %}";
        let template = ChatTemplate::new(source, special()).unwrap();
        let messages = [message("user", "a"), message("assistant", "b")];
        assert_eq!(
            template.prompt_and_target(&messages).unwrap_err().to_string(),
            "the chat template puts something else before the assistant's message than when it asks for one: \
             \"a;>\" is not the beginning of \"a;b;\""
        );
    }

    #[test]
    fn what_can_not_be_read_or_called_is_told_with_its_line() {
        let broken = ChatTemplate::new("a\n{% for %}", special()).unwrap_err().to_string();
        assert_eq!(
            broken,
            "the chat template can't be read: line 2: syntax error: unexpected end of block, expected in"
        );
        let template = ChatTemplate::new("\n{{ strftime_now('%d') }}", special()).unwrap();
        assert_eq!(
            template.render(&[message("user", "a")], Ending::Message).unwrap_err().to_string(),
            "the chat template fails: line 2: unknown function: strftime_now is unknown"
        );
    }
}
