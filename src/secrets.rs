//! Values of environment variables that a manifest reads, kept out of what is shown and written.
//!
//! Knows the values; does not know who shows a text, nor a value that was encoded or taken apart.

use std::cmp::Reverse;
use std::fmt;
use std::sync::Arc;

const HIDDEN: &str = "***";

impl fmt::Debug for Secrets {
    /// How many there are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.values.len())
    }
}

/// Values that no text may show. The default hides nothing.
#[derive(Clone, Default)]
pub struct Secrets {
    /// Longest first: one that begins with another has to be hidden whole.
    values: Arc<[String]>,
}

impl Secrets {
    /// Hides these values, and each line of one that has several: a key file is seldom printed in one piece.
    pub fn new(values: impl IntoIterator<Item: AsRef<str>>) -> Self {
        let mut hidden: Vec<String> = Vec::new();
        for value in values {
            let value = value.as_ref().trim();
            // A line of nothing but brackets is no secret.
            let lines = value.lines().filter(|line| line.contains(char::is_alphanumeric));
            hidden.extend(lines.chain([value]).map(|text| text.trim().to_owned()));
        }
        hidden.retain(|value| !value.is_empty());
        hidden.sort_by_key(|value| Reverse(value.len()));
        hidden.dedup();
        Self { values: hidden.into() }
    }

    /// Whether there is nothing to hide.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Whether a text has one of the values in it.
    pub fn are_in(&self, text: &str) -> bool {
        self.values.iter().any(|value| text.contains(value))
    }

    /// Those of more than this many bytes.
    pub fn longer_than(&self, bytes: usize) -> Self {
        Self { values: self.values.iter().filter(|value| value.len() > bytes).cloned().collect() }
    }

    /// These and more.
    pub fn and(&self, more: impl IntoIterator<Item: AsRef<str>>) -> Self {
        let all = self.values.iter().cloned().chain(more.into_iter().map(|text| text.as_ref().to_owned()));
        Self::new(all)
    }

    /// The text with `***` in place of each value.
    pub fn hide(&self, text: &str) -> String {
        self.values.iter().fold(text.to_owned(), |text, value| text.replace(value, HIDDEN))
    }

    /// As [`Secrets::hide`], for bytes of which some may be no UTF-8; those stay as they are.
    pub fn hide_in_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        let mut hidden = Vec::with_capacity(bytes.len());
        for chunk in bytes.utf8_chunks() {
            hidden.extend_from_slice(self.hide(chunk.valid()).as_bytes());
            hidden.extend_from_slice(chunk.invalid());
        }
        hidden
    }

    /// Bytes of the longest value; 0 if there is none.
    pub fn longest(&self) -> usize {
        self.values.first().map_or(0, String::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_begins_with_another_is_hidden_whole() {
        let secrets = Secrets::new(&["abc", "abcdef", ""]);
        assert_eq!(secrets.hide("abcdef and abc, not ab"), "*** and ***, not ab");
        assert_eq!(Secrets::default().hide("abc"), "abc");
    }

    #[test]
    fn a_value_of_many_lines_is_hidden_line_by_line() {
        let secrets = Secrets::new(&["{\n  \"key\": 1\n}\n"]);
        assert_eq!(secrets.hide("{\n  \"key\": 1\n}"), "***");
        assert_eq!(secrets.hide("    \"key\": 1"), "    ***");
        assert_eq!(secrets.hide("{}"), "{}");
    }

    #[test]
    fn bytes_that_are_no_text_stay() {
        assert_eq!(Secrets::new(&["abc"]).hide_in_bytes(b"\xffabc\xc3abc\xc3"), b"\xff***\xc3***\xc3");
    }
}
