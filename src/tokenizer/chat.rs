//! Chat templates: the Jinja that a model was published with, rendered as transformers' `apply_chat_template`
//! does it (5.23): blocks trimmed, Python's string methods, `raise_exception`, its `tojson`.
//!
//! Knows nothing of tokens: special ones are text here. There is no `strftime_now`: what today's date goes into
//! comes out differently tomorrow, so templates that can do without it take their fixed date.

use std::collections::BTreeMap;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::syntax::SyntaxConfig;
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
