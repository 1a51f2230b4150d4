//! A fault with the place it is at, and how it is shown: rendered once, the same for every module.

use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet, normalize_untrusted_str};

use crate::secrets::Secrets;
use crate::size;
use crate::terminal::{harmless, harmless_in_place};

/// More than anybody reads at once: of more diagnostics the first are shown, and how many there are.
pub const SHOWN: usize = 100;
/// Candidates that an advice lists.
const LISTED: usize = 60;
/// Bytes of a line that are marked at most.
const MARKED: usize = 200;

/// A stretch of a source text, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// A text with the name it is shown under.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The path as the user gave it.
    pub name: String,
    /// All of it.
    pub text: String,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Nothing can run.
    Error,
    /// Worth a look; things run.
    Warning,
}

/// Something to tell about a source text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in a sentence without a full stop.
    pub message: String,
    /// Where, if it is about a place in the text.
    pub span: Option<Span>,
    /// A few words beside the caret.
    pub label: Option<String>,
    /// Other places that matter, each with a few words.
    pub related: Vec<(Span, String)>,
    /// What to do.
    pub help: Option<String>,
    /// What to do where the word may be a misspelt one.
    pub meant: Option<Meant>,
}

/// A word that names nothing, and the names that it may have been meant to be. Which is the nearest is looked for
/// when the fault is shown: a file may have thousands of faults about thousands of names.
#[derive(Clone, Debug)]
pub struct Meant {
    /// The word.
    pub word: String,
    /// What the names are: `the params are`.
    pub what: &'static str,
    /// The names.
    pub among: Arc<[String]>,
    /// One of them that can't have been meant.
    pub but: Option<String>,
}

impl Meant {
    fn help(&self) -> Option<String> {
        let among: Vec<&str> =
            self.among.iter().filter(|n| Some(*n) != self.but.as_ref()).map(String::as_str).collect();
        suggestion(&self.word, self.what, &among)
    }

    /// What makes two of them the same, without a look at all names.
    fn identity(&self) -> (&str, &str, usize, Option<&str>) {
        (&self.word, self.what, self.among.len(), self.but.as_deref())
    }
}

impl PartialEq for Meant {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Meant {}

impl Hash for Meant {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl Diagnostic {
    /// An error that has no place yet.
    pub fn error(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            span: None,
            label: None,
            related: Vec::new(),
            help: None,
            meant: None,
        }
    }

    /// A warning that has no place yet.
    pub fn warning(message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(message) }
    }

    /// The same at a place.
    pub fn at(mut self, span: Span) -> Self {
        self.span = Some(span);
        self
    }

    /// The same with words beside the caret.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// The same with another place.
    pub fn related(mut self, span: Span, label: impl Into<String>) -> Self {
        self.related.push((span, label.into()));
        self
    }

    /// The same with advice.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same with advice on a word that may be misspelt.
    pub fn meant(mut self, meant: Meant) -> Self {
        self.meant = Some(meant);
        self
    }

    /// The same without values that must not be shown, its advice looked for.
    fn ready(&self, secrets: &Secrets) -> Self {
        let hide = |text: &String| harmless(&secrets.hide(text));
        let help = self.help.clone().or_else(|| self.meant.as_ref()?.help());
        Self {
            message: hide(&self.message),
            label: self.label.as_ref().map(hide),
            related: self.related.iter().map(|(span, label)| (*span, hide(label))).collect(),
            help: help.as_ref().map(hide),
            ..self.clone()
        }
    }

    /// The same with advice, if there is any.
    pub fn maybe_help(mut self, help: Option<String>) -> Self {
        self.help = help;
        self
    }
}

/// Shows `diagnostics` in the order of their places, a blank line between two; ends without a newline. Of more than
/// [`SHOWN`], errors before warnings, the first are shown. No text has one of the `secrets` in it.
pub fn render(source: &Source, diagnostics: &[Diagnostic], secrets: &Secrets, color: bool) -> String {
    let renderer = if color { Renderer::styled().hyperlink(false) } else { Renderer::plain() };
    let lines = Lines::of(&source.text);
    let place = |d: &&Diagnostic| (d.span.map(|s| s.start), d.severity);
    let mut sorted: Vec<&Diagnostic> = diagnostics.iter().collect();
    sorted.sort_by_key(|d| (d.severity, place(d)));
    sorted.truncate(SHOWN);
    sorted.sort_by_key(place);
    let mut shown: Vec<String> =
        sorted.iter().map(|d| render_one(source, &lines, &d.ready(secrets), &renderer)).collect();
    let more = |severity| {
        let count = |list: &mut dyn Iterator<Item = Severity>| list.filter(|s| *s == severity).count();
        count(&mut diagnostics.iter().map(|d| d.severity)) - count(&mut sorted.iter().map(|d| d.severity))
    };
    match (more(Severity::Error), more(Severity::Warning)) {
        (0, 0) => {}
        (0, more) | (more, 0) => shown.push(format!("… and {} more", size::grouped(more))),
        (errors, warnings) => {
            let s = if warnings == 1 { "" } else { "s" };
            let (errors, warnings) = (size::grouped(errors), size::grouped(warnings));
            shown.push(format!("… and {errors} more, and {warnings} warning{s}"));
        }
    }
    shown.join("\n\n")
}

fn render_one(source: &Source, lines: &Lines<'_>, diagnostic: &Diagnostic, renderer: &Renderer) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level.primary_title(&diagnostic.message);
    let group = match diagnostic.span {
        None => Group::with_title(title),
        Some(span) => {
            // Only the lines from the first place to the last are handed over: a file may have thousands of
            // faults, and each is measured against all the text that is given.
            let spans = || std::iter::once(span).chain(diagnostic.related.iter().map(|(s, _)| *s));
            let first = spans().map(|s| lines.line_of(s.start)).min().unwrap_or(0);
            let last = spans().map(|s| lines.line_of(s.start)).max().unwrap_or(0);
            let from = lines.starts[first];
            let local = |span: Span| {
                let on_line = lines.within_line(span);
                on_line.start - from..on_line.end - from
            };
            let text = harmless_in_place(&source.text[from..lines.end_of(last)]);
            let mut snippet = Snippet::source(text)
                .path(harmless(&source.name))
                .line_start(first + 1)
                .annotation(AnnotationKind::Primary.span(local(span)).label(diagnostic.label.as_deref()));
            for (span, label) in &diagnostic.related {
                snippet =
                    snippet.annotation(AnnotationKind::Context.span(local(*span)).label(label.as_str()));
            }
            title.element(snippet)
        }
    };
    let help = diagnostic.help.as_deref().map(normalize_untrusted_str);
    match (help, diagnostic.span) {
        (None, _) => renderer.render(&[group]),
        (Some(help), Some(_)) => renderer.render(&[group.element(Level::HELP.message(help))]),
        (Some(help), None) => {
            // Beside no text there is no margin for it to hang on.
            let help = Group::with_title(Level::HELP.secondary_title(help));
            format!("{}\n{}", renderer.render(&[group]), renderer.render(&[help]))
        }
    }
}

/// Where the lines of a text start.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    /// The line a byte is on, from 0.
    fn line_of(&self, byte: usize) -> usize {
        self.starts.partition_point(|start| *start <= byte.min(self.text.len())).saturating_sub(1)
    }

    /// Where a line ends, without its line break.
    fn end_of(&self, line: usize) -> usize {
        let end = self.starts.get(line + 1).map_or(self.text.len(), |next| next - 1);
        let start = self.starts[line];
        start + self.text[start..end].trim_end_matches('\r').len()
    }

    /// The part of a span that is on its first line, on whole characters.
    fn within_line(&self, span: Span) -> Range<usize> {
        let end_of_line = self.end_of(self.line_of(span.start));
        let start = self.text.floor_char_boundary(span.start.min(end_of_line));
        // A mapping of thousands of keys on one line would be shown whole.
        let end = self.text.ceil_char_boundary(span.end.clamp(start, end_of_line.min(start + MARKED)));
        start..end
    }
}

/// The candidate a misspelt word most likely stands for.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let letters = word.chars().count();
    candidates
        .into_iter()
        .filter_map(|c| {
            let length = c.chars().count();
            let most = (length.min(letters) / 3).max(1);
            // What differs that much in length is not worth a comparison letter by letter.
            (length.abs_diff(letters) <= most)
                .then(|| (strsim::osa_distance(&word, &c.to_lowercase()), c))
                .filter(|(distance, _)| *distance <= most)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
}

/// Advice for a misspelt word: the nearest candidate, else all of them.
pub fn suggestion(word: &str, what: &str, candidates: &[&str]) -> Option<String> {
    match nearest(word, candidates.iter().copied()) {
        Some(near) => Some(format!("did you mean `{near}`?")),
        None if candidates.is_empty() => None,
        None if candidates.len() > LISTED => {
            let more = size::grouped(candidates.len() - LISTED);
            Some(format!("{what}: {} and {more} more", candidates[..LISTED].join(", ")))
        }
        None => Some(format!("{what}: {}", candidates.join(", "))),
    }
}

/// `a`, `a and b`, `a, b and c`.
pub fn list<S: AsRef<str>>(items: &[S], and: &str) -> String {
    match items {
        [] => String::new(),
        [one] => one.as_ref().to_string(),
        [most @ .., last] => {
            let most: Vec<&str> = most.iter().map(AsRef::as_ref).collect();
            format!("{} {and} {}", most.join(", "), last.as_ref())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source { name: "pipelines/x.yaml".into(), text: text.into() }
    }

    #[test]
    fn shows_place_line_caret_and_help() {
        let source = source("pipeline: x\nstages:\n  a: { usse: b }\n");
        let fault = Diagnostic::error("unknown key `usse`").at(Span { start: 27, end: 31 });
        let shown = render(&source, &[fault.help("did you mean `uses`?")], &Secrets::default(), false);
        let expected = "\
error: unknown key `usse`
 --> pipelines/x.yaml:3:8
  |
3 |   a: { usse: b }
  |        ^^^^
  |
  = help: did you mean `uses`?";
        assert_eq!(shown, expected);
    }

    #[test]
    fn sorts_by_place_and_points_at_related_places() {
        let source = source("a: 1\r\nb: 2\r\na: 3\r\n");
        let second = Diagnostic::error("the key `a` is given twice")
            .at(Span { start: 12, end: 13 })
            .related(Span { start: 0, end: 1 }, "first given here");
        let first = Diagnostic::warning("`b` is not used").at(Span { start: 6, end: 7 });
        let nowhere = Diagnostic::error("`--set c=1`: there is no param `c`");
        let shown = render(&source, &[second, first, nowhere], &Secrets::default(), false);
        let expected = "\
error: `--set c=1`: there is no param `c`

warning: `b` is not used
 --> pipelines/x.yaml:2:1
  |
2 | b: 2
  | ^

error: the key `a` is given twice
 --> pipelines/x.yaml:3:1
  |
1 | a: 1
  | - first given here
2 | b: 2
3 | a: 3
  | ^";
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_span_outside_the_text_or_inside_a_character_is_still_shown() {
        let source = source("ü: 물");
        for start in 0..20 {
            for end in 0..20 {
                let shown = render(
                    &source,
                    &[Diagnostic::error("odd").at(Span { start, end })],
                    &Secrets::default(),
                    false,
                );
                assert!(shown.contains("ü: 물"), "{start}..{end}: {shown}");
            }
        }
        let empty = Source::default();
        assert!(
            render(
                &empty,
                &[Diagnostic::error("odd").at(Span { start: 3, end: 9 })],
                &Secrets::default(),
                true
            )
            .contains("odd")
        );
    }

    #[test]
    fn the_nearest_name_is_near() {
        assert_eq!(nearest("learningrate", ["learning_rate", "epochs"]), Some("learning_rate"));
        assert_eq!(nearest("Uses", ["uses", "with"]), Some("uses"));
        assert_eq!(nearest("banana", ["uses", "with"]), None);
    }
}
