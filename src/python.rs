//! Text as Python treats it, where Rust does otherwise: recipes written in Python have to come out the same.
//!
//! Knows nothing of what the text is for.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// `str.isspace` of one character: Unicode's white space and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str.strip` without an argument.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.lstrip` without an argument.
pub fn strip_start(text: &str) -> &str {
    text.trim_start_matches(is_space)
}

/// `str.rstrip` without an argument.
pub fn strip_end(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
pub fn json(value: &impl Serialize, indent: Option<usize>) -> Result<String, serde_json::Error> {
    let mut bytes = Vec::new();
    match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, OneLine))?,
        Some(width) => {
            let blanks = vec![b' '; width];
            let lines = PrettyFormatter::with_indent(&blanks);
            value.serialize(&mut Serializer::with_formatter(&mut bytes, lines))?;
        }
    }
    // serde_json writes nothing but UTF-8.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A blank behind every comma and colon.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_what_python_strips() {
        assert_eq!(strip("\u{3000}\x1c\x1f \n a\u{200b}\u{a0}\u{85}"), "a\u{200b}");
        assert_eq!((strip_start(" a "), strip_end(" a ")), ("a ", " a"));
    }

    #[test]
    fn writes_json_as_python_does() {
        let value = serde_json::json!({"a": [1, 2.5, null], "b": {"c": "é\n\u{1}\u{7f}"}, "d": []});
        let one_line = "{\"a\": [1, 2.5, null], \"b\": {\"c\": \"é\\n\\u0001\u{7f}\"}, \"d\": []}";
        assert_eq!(json(&value, None).unwrap(), one_line);
        let lines = "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}";
        assert_eq!(json(&serde_json::json!({"a": [1], "b": {}}), Some(2)).unwrap(), lines);
    }
}
