//! Patterns over paths (`data/**/*.csv`), as Hugging Face `datasets` reads them: `*` and `?` stay within a part of the
//! path, `**` stands for any number of parts, `[a-z]` and `[!a-z]` for one character; braces mean nothing.
//!
//! Knows text only, never the disk. The time a match takes grows with the product of the two lengths, whatever
//! pattern somebody thinks of.

/// A pattern, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    parts: Vec<Part>,
}

/// What matches between two slashes.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    /// `**`: any number of parts, also none.
    Any,
    One(Vec<Token>),
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// `*`: any number of characters, also none.
    Many,
    /// `?`
    Single,
    Char(char),
    Set {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// Whether a text is a pattern, and not simply a path.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

impl Pattern {
    /// Reads a pattern; none where `**` does not stand alone between slashes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = Vec::new();
        for part in text.split('/') {
            parts.push(match part {
                "**" => Part::Any,
                part if part.contains("**") => return None,
                part => Part::One(tokens(part)),
            });
        }
        if parts.last() == Some(&Part::Any) {
            // What ends in `**` is about what is in the folder, not about a file of the folder's name.
            parts.push(Part::One(vec![Token::Many]));
        }
        Some(Self { parts })
    }

    /// Whether a path, its parts joined by `/`, is one of those meant.
    pub fn matches(&self, path: &str) -> bool {
        let path: Vec<&str> = path.split('/').collect();
        wild(&self.parts, &path, |part| matches!(part, Part::Any), |part, text| part.matches(text))
    }

    /// Whether one of those meant may be in this folder or below it.
    pub fn leads_into(&self, folder: &str) -> bool {
        for (at, name) in folder.split('/').enumerate() {
            match self.parts.get(at) {
                Some(Part::Any) => return true,
                Some(part) if part.matches(name) && at + 1 < self.parts.len() => {}
                _ => return false,
            }
        }
        true
    }
}

impl Part {
    fn matches(&self, text: &str) -> bool {
        let Self::One(tokens) = self else { return false };
        let text: Vec<char> = text.chars().collect();
        wild(tokens, &text, |token| matches!(token, Token::Many), |token, c| token.matches(*c))
    }
}

impl Token {
    fn matches(&self, c: char) -> bool {
        match self {
            Self::Many => false,
            Self::Single => true,
            Self::Char(own) => *own == c,
            Self::Set { negated, ranges } => {
                ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)) != *negated
            }
        }
    }
}

/// Whether items match patterns of which some stand for any number of items. Only the last of those that was met is
/// ever tried again one item further: had an earlier one to take more, this one could take less.
fn wild<P, T>(
    patterns: &[P],
    items: &[T],
    is_any: impl Fn(&P) -> bool,
    matches: impl Fn(&P, &T) -> bool,
) -> bool {
    let (mut at, mut item, mut again) = (0, 0, None);
    while item < items.len() {
        match patterns.get(at) {
            Some(pattern) if is_any(pattern) => {
                again = Some((at, item));
                at += 1;
            }
            Some(pattern) if matches(pattern, &items[item]) => {
                at += 1;
                item += 1;
            }
            _ => match again {
                Some((any, from)) => {
                    again = Some((any, from + 1));
                    at = any + 1;
                    item = from + 1;
                }
                None => return false,
            },
        }
    }
    patterns[at..].iter().all(is_any)
}

fn tokens(part: &str) -> Vec<Token> {
    let part: Vec<char> = part.chars().collect();
    let mut tokens = Vec::with_capacity(part.len());
    let mut at = 0;
    while at < part.len() {
        let (token, length) = match part[at] {
            '*' => (Token::Many, 1),
            '?' => (Token::Single, 1),
            '[' => set(&part[at..]).unwrap_or((Token::Char('['), 1)),
            c => (Token::Char(c), 1),
        };
        tokens.push(token);
        at += length;
    }
    tokens
}

/// The set that starts here and how long it is; none where no `]` ends it.
fn set(text: &[char]) -> Option<(Token, usize)> {
    let negated = text.get(1) == Some(&'!');
    let start = if negated { 2 } else { 1 };
    // A `]` right at the start is one of the characters.
    let end = start + 1 + text.get(start + 1..)?.iter().position(|c| *c == ']')?;
    let (mut ranges, mut at) = (Vec::new(), start);
    while at < end {
        if at + 2 < end && text[at + 1] == '-' {
            ranges.push((text[at], text[at + 2]));
            at += 3;
        } else {
            ranges.push((text[at], text[at]));
            at += 1;
        }
    }
    Some((Token::Set { negated, ranges }, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_choose_as_in_python() {
        // As `fsspec.utils.glob_translate` decides, which `datasets` asks.
        for (pattern, path, want) in [
            ("*.csv", "a.csv", true),
            ("*.csv", "d/a.csv", false),
            ("*", "a", true),
            ("**", "a", true),
            ("**", "a/b", true),
            ("d/**", "d/a/b", true),
            ("d/**", "d", false),
            ("**/a.csv", "a.csv", true),
            ("**/a.csv", "x/y/a.csv", true),
            ("d/**/a.csv", "d/a.csv", true),
            ("d/*/a.csv", "d/a.csv", false),
            ("**/*/a.csv", "a.csv", false),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[!a-c]x", "dx", true),
            ("[]a]x", "]x", true),
            ("[-._ 0-9]x", "-x", true),
            ("[-._ 0-9]x", "7x", true),
            ("[-._ 0-9]x", "ax", false),
            ("[z-a]x", "bx", false),
            ("[a-]x", "-x", true),
            ("a[b", "a[b", true),
            ("{a,b}.csv", "a.csv", false),
            ("{a,b}.csv", "{a,b}.csv", true),
            ("*a*b*", "xaybz", true),
            ("*a*b*", "xbya", false),
            ("A.csv", "a.csv", false),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(path), want, "{pattern} on {path}");
        }
        assert_eq!(Pattern::parse("a**/b"), None);
    }

    #[test]
    fn only_folders_that_may_hold_a_match_are_looked_into() {
        for (pattern, folder, want) in [
            ("*.csv", "a", false),
            ("*/x.csv", "a", true),
            ("*/x.csv", "a/b", false),
            ("a?/b/*", "ab", true),
            ("a?/b/*", "ab/c", false),
            ("a/**/x", "a/b/c", true),
            ("a/**", "b", false),
            ("**", "b", true),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().leads_into(folder), want, "{pattern} into {folder}");
        }
    }

    #[test]
    fn no_pattern_explodes() {
        let (many, deep) = ("a".repeat(250), ["a"; 500].join("/"));
        let started = std::time::Instant::now();
        assert!(!Pattern::parse(&format!("{}b", "*a".repeat(120))).unwrap().matches(&many));
        assert!(!Pattern::parse(&format!("{}b", "**/*a*/".repeat(120))).unwrap().matches(&deep));
        assert!(started.elapsed().as_secs() < 5);
    }
}
