//! What a person or a program is shown: all of it made from the event stream and the records.
//!
//! The only part of the library that prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

pub mod cache;
pub mod console;
pub mod devices;
pub mod graph;
pub mod history;
pub mod html;
pub mod kinds;
pub mod plan;

use std::io::{IsTerminal, Write};
use std::sync::Arc;

use crate::event::{Event, Listen};
use crate::history::json_line;
use crate::size;
use crate::terminal::{harmless, harmless_json};

/// Whether to colour what goes to standard error.
pub fn color() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && std::io::stderr().is_terminal()
}

/// `error: …` and `help: …` on standard error.
pub fn error(message: &str, help: Option<&str>) {
    let (red, bold, off) = if color() { ("\x1b[1;31m", "\x1b[1m", "\x1b[0m") } else { ("", "", "") };
    err(&format!("{red}error{off}{bold}:{off} {}\n", harmless(message)));
    if let Some(help) = help {
        err(&format!("  {bold}help:{off} {}\n", harmless(help)));
    }
}

/// JSON, on standard output; what a terminal would act on is escaped, which to a program is the same.
pub fn json(text: &str) {
    exact(&harmless_json(text));
}

/// Text for a person, on standard output. A reader that went away is no error.
pub fn out(text: &str) {
    exact(&harmless(text));
}

/// A drawing for a program, as it is, on standard output.
pub fn exact(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Text as it is, on standard error.
pub fn err(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Every event as a line of JSON on standard output.
pub struct Json;

impl Listen for Json {
    fn on(&self, event: &Event) {
        json(&(json_line(event) + "\n"));
    }
}

/// Several listeners as one.
pub struct All(pub Vec<Arc<dyn Listen>>);

impl Listen for All {
    fn on(&self, event: &Event) {
        for listener in &self.0 {
            listener.on(event);
        }
    }
}

/// A time in the unit that reads best.
pub fn seconds(s: f64) -> String {
    match s {
        s if s < 0.0995 => format!("{:.0} ms", s * 1e3),
        s if s < 9.95 => format!("{s:.2} s"),
        s if s < 99.5 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{:.0} min {:02.0} s", (s / 60.0).floor(), s % 60.0),
        s => format!("{:.0} h {:02.0} min", (s / 3600.0).floor(), (s % 3600.0) / 60.0),
    }
}

/// A number as wide as it is precise: four significant digits.
pub fn number(x: f64) -> String {
    match x.abs() {
        _ if x == x.trunc() && x.abs() < 1e12 => thousands(x),
        a if !(1e-3..1e6).contains(&a) => format!("{x:.3e}"),
        a if a >= 100.0 => format!("{x:.1}"),
        a if a >= 10.0 => format!("{x:.2}"),
        a if a >= 1.0 => format!("{x:.3}"),
        _ => format!("{x:.4}"),
    }
}

fn thousands(x: f64) -> String {
    let text = size::grouped(x.abs() as usize);
    if x < 0.0 { format!("-{text}") } else { text }
}

/// Columns of text, each as wide as its widest cell, two spaces between.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        for (x, text) in [
            (559222784.0, "559,222,784"),
            (0.5, "0.5000"),
            (12.345, "12.35"),
            (1.5e-5, "1.500e-5"),
            (-1200.0, "-1,200"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(x), text);
        }
        assert_eq!(seconds(0.012), "12 ms");
        assert_eq!(seconds(75.0), "75.0 s");
        assert_eq!(seconds(754.0), "12 min 34 s");
    }
}
