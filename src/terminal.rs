//! Text as a terminal may show it: what it would act on, as characters that a person sees.
//!
//! Names and messages come from manifests, data, models and programs. Does not know who shows a text.

/// `␛` for what moves or colours, `\u{202e}` for what turns a line around. Line breaks and tabs stay.
pub fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => shown.push(c),
            '\0'..='\x1f' => shown.extend(char::from_u32(0x2400 + u32::from(c))),
            '\x7f' => shown.push('␡'),
            _ if acts(c) => shown.extend(c.escape_unicode()),
            _ => shown.push(c),
        }
    }
    shown
}

/// The same text with each byte where it was: a source whose places are told. Leaves ASCII as it is.
pub fn harmless_in_place(text: &str) -> String {
    let replaced = |c: char| if c.len_utf8() == '¤'.len_utf8() { '¤' } else { '�' };
    text.chars().map(|c| if acts(c) { replaced(c) } else { c }).collect()
}

/// The same JSON, with escapes.
pub fn harmless_json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\x7f' => escaped.push_str("\\u007f"),
            _ if acts(c) => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            _ => escaped.push(c),
        }
    }
    escaped
}

/// Whether a terminal acts on a character that is no ASCII.
fn acts(c: char) -> bool {
    matches!(
        c,
        '\u{80}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_shown_as_text() {
        let wild = "a\x1b[31mb\r\x08c\u{9b}2Jd\u{202e}e\x7f\n\tf 물 é";
        assert_eq!(harmless(wild), "a␛[31mb␍␈c\\u{9b}2Jd\\u{202e}e␡\n\tf 물 é");
        let wild = "c\u{9b}2J\u{202e}\u{61c}d";
        assert_eq!(harmless_in_place(wild), "c¤2J�¤d");
        assert_eq!(harmless_in_place(wild).len(), wild.len());
    }

    #[test]
    fn json_says_the_same() {
        let json = serde_json::to_string("\x1b \u{9b} \u{202e} \x7f é").unwrap();
        let escaped = harmless_json(&json);
        assert_eq!(escaped, r#""\u001b \u009b \u202e \u007f é""#);
        assert_eq!(
            serde_json::from_str::<String>(&json).unwrap(),
            serde_json::from_str::<String>(&escaped).unwrap()
        );
    }
}
