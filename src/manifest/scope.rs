//! What `${…}` stands for: params, the environment, the values of a matrix.
//!
//! Every value is made twice: as it runs, and with `${env.NAME}` left as it is written, which is all that
//! keys and records ever see of the environment. Does not know what the values are for.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::node::{Node, Value};
use super::params::Param;
use crate::diagnostic::{Diagnostic, Meant, Source, Span, suggestion};

/// How far params may refer to params that refer to params, and how deep a value may become.
const MAX_DEPTH: usize = 64;
/// Bytes that all references together may insert: what is beyond multiplies itself.
const MAX_INSERTED: usize = 8 << 20;
/// What a value counts for beside its text, in bytes.
const VALUE_BYTES: usize = 64;

/// A value with its references followed.
#[derive(Clone, Debug)]
pub struct Filled {
    /// As it runs.
    pub real: Node,
    /// With `${env.NAME}` in place of the environment's values.
    pub masked: Node,
    /// Whether a reference in it leads nowhere; reported already.
    pub broken: bool,
}

impl Filled {
    /// A value without references.
    pub fn plain(node: Node) -> Self {
        Self { real: node.clone(), masked: node, broken: false }
    }

    fn broken(node: &Node) -> Self {
        let null = Node { value: Value::Null, ..node.clone() };
        Self { broken: true, ..Self::plain(null) }
    }

    /// Whether a value of the environment is in it.
    pub fn has_env(&self) -> bool {
        self.real != self.masked
    }
}

/// The values of a combination of a matrix: axis and value.
pub type Axes = [(String, Node)];

/// All that references can name, and what was found out while following them.
pub struct Scope<'a> {
    source: &'a Source,
    params: &'a [Param],
    env: fn(&str) -> Option<String>,
    /// Whether an unset environment variable is left as it is: true for a stage that is off.
    pub lenient: bool,
    /// What is wrong with the references followed so far.
    pub faults: Vec<Diagnostic>,
    /// The environment's values that were used.
    pub secrets: BTreeSet<String>,
    index: HashMap<&'a str, usize>,
    names: Arc<[String]>,
    /// The keys of params that are mappings, by the way to them, for advice.
    keys: HashMap<String, Arc<[String]>>,
    /// By param and leniency: what is left out for a stage that is off is missed in one that is on.
    filled: HashMap<(usize, bool), Arc<Filled>>,
    open: Vec<usize>,
    used: HashSet<usize>,
    inserted: usize,
}

/// Where a text with references stands.
struct Site<'s> {
    node: &'s Node,
    axes: &'s Axes,
    set: Option<&'s str>,
}

impl<'a> Scope<'a> {
    /// A scope with these params.
    pub fn new(source: &'a Source, params: &'a [Param], env: fn(&str) -> Option<String>) -> Self {
        Self {
            source,
            params,
            env,
            lenient: false,
            faults: Vec::new(),
            secrets: BTreeSet::new(),
            index: params.iter().enumerate().map(|(at, param)| (param.key.text.as_str(), at)).collect(),
            names: params.iter().map(|param| param.key.text.clone()).collect(),
            keys: HashMap::new(),
            filled: HashMap::new(),
            open: Vec::new(),
            used: HashSet::new(),
            inserted: 0,
        }
    }

    /// Follows every reference in `node`; faults are gathered in the scope.
    pub fn fill(&mut self, node: &Node, axes: &Axes) -> Filled {
        self.fill_from(node, axes, None)
    }

    /// The params that nothing has referred to yet.
    pub fn unused(&self) -> impl Iterator<Item = &'a Param> {
        let params = self.params.iter().enumerate();
        params.filter(|(index, _)| !self.used.contains(index)).map(|(_, param)| param)
    }

    /// Adds to a fault about a value that is one `${params.…}` where that value was given.
    pub fn trace(&self, fault: Diagnostic) -> Diagnostic {
        let text = fault.span.and_then(|span| self.source.text.get(span.start..span.end)).unwrap_or_default();
        let text = text.trim_matches(['"', '\'']);
        let path = text.strip_prefix("${params.").and_then(|rest| rest.strip_suffix('}'));
        let name = path.and_then(|path| path.split('.').next());
        match name.and_then(|name| self.index.get(name)).map(|index| &self.params[*index]) {
            Some(Param { set: Some(argument), .. }) => fault.label(format!("given by `--set {argument}`")),
            Some(param) => fault.related(param.node.span, "given here"),
            None => fault,
        }
    }

    /// Every param with its value, `${env.NAME}` left as it is, set or not.
    pub fn masked_params(&mut self) -> serde_json::Map<String, serde_json::Value> {
        let used = self.used.clone();
        self.lenient = true;
        let mut values: Vec<(String, serde_json::Value)> = Vec::new();
        for index in 0..self.params.len() {
            let value = self.param(index).map_or(serde_json::Value::Null, |filled| filled.masked.to_json());
            values.push((self.params[index].key.text.clone(), value));
        }
        self.used = used;
        self.lenient = false;
        values.sort_by(|(a, _), (b, _)| a.cmp(b));
        values.into_iter().collect()
    }

    fn fill_from(&mut self, node: &Node, axes: &Axes, set: Option<&str>) -> Filled {
        match &node.value {
            Value::List(items) => {
                let items: Vec<Filled> = items.iter().map(|item| self.fill_from(item, axes, set)).collect();
                let broken = items.iter().any(|item| item.broken);
                let (real, masked) = items.into_iter().map(|item| (item.real, item.masked)).unzip();
                collection(node, Value::List(real), Value::List(masked), broken)
            }
            Value::Map(entries) => {
                let mut broken = false;
                let (mut real, mut masked) = (Vec::new(), Vec::new());
                for (key, value) in entries {
                    let value = self.fill_from(value, axes, set);
                    broken |= value.broken;
                    real.push((key.clone(), value.real));
                    masked.push((key.clone(), value.masked));
                }
                collection(node, Value::Map(real), Value::Map(masked), broken)
            }
            Value::Text(text) if text.contains("${") => {
                let site = Site { node, axes, set };
                self.text(text, &site).unwrap_or_else(|| Filled::broken(node))
            }
            _ => Filled::plain(node.clone()),
        }
    }

    fn text(&mut self, text: &str, site: &Site<'_>) -> Option<Filled> {
        let Some(pieces) = pieces(text) else {
            let help = "write `${params.NAME}`, or `$${` for the characters `${`";
            self.fault(site, "${", "`${` without its `}`", Some(help.into()));
            return None;
        };
        if let [Piece::Reference(reference)] = pieces.as_slice() {
            return self.reference(reference, site);
        }
        let (mut real, mut masked) = (String::new(), String::new());
        let mut base = site.node.base.clone();
        let mut whole = true;
        for (index, piece) in pieces.iter().enumerate() {
            match piece {
                Piece::Literal(literal) => {
                    real.push_str(literal);
                    masked.push_str(literal);
                }
                Piece::Reference(reference) => match self.reference(reference, site) {
                    None => whole = false,
                    Some(filled) => match (scalar_text(&filled.real), scalar_text(&filled.masked)) {
                        (Some(r), Some(m)) => {
                            real.push_str(&r);
                            masked.push_str(&m);
                            // `${params.folder}/train.csv` starts where the folder does.
                            if index == 0 {
                                base = filled.real.base.clone();
                            }
                        }
                        _ => {
                            let what = filled.real.word();
                            let message = format!("`${{{reference}}}` is {what} and can't stand within text");
                            self.fault(site, &format!("${{{reference}}}"), &message, None);
                            whole = false;
                        }
                    },
                },
            }
        }
        self.count(real.len() + masked.len(), site)?;
        let node = |text| Node { span: site.node.span, value: Value::Text(text), base: base.clone() };
        whole.then(|| Filled { real: node(real), masked: node(masked), broken: false })
    }

    /// What a reference names, standing where the reference stands.
    fn reference(&mut self, reference: &str, site: &Site<'_>) -> Option<Filled> {
        if self.inserted > MAX_INSERTED {
            return None;
        }
        let whole = format!("${{{reference}}}");
        let mut filled = match reference.split_once('.') {
            Some(("params", path)) => self.param_at(path, &whole, site),
            Some(("env", name)) => self.environment(name, &whole, site),
            Some(("matrix", axis)) => {
                let value = site.axes.iter().find(|(name, _)| name == axis);
                if value.is_none() {
                    let known: Vec<&str> = site.axes.iter().map(|(name, _)| name.as_str()).collect();
                    let help = suggestion(axis, "the axes are", &known).or(Some(
                        "neither this stage nor one it takes its inputs from has a `matrix`".into(),
                    ));
                    self.fault(site, &whole, &format!("there is no matrix axis `{axis}` here"), help);
                }
                value.map(|(_, node)| Filled::plain(node.clone()))
            }
            _ => {
                let help = "a reference starts with `params.`, `env.` or `matrix.`; \
                            write `$${` for the characters `${`";
                self.fault(site, &whole, &format!("`{whole}` names nothing"), Some(help.into()));
                None
            }
        }?;
        let (size, depth) = measure(&filled.real);
        self.count(size, site)?;
        if depth > MAX_DEPTH {
            let message = format!("`{whole}` is nested deeper than {MAX_DEPTH} levels");
            self.fault(site, &whole, &message, None);
            return None;
        }
        move_to(&mut filled.real, site.node.span);
        move_to(&mut filled.masked, site.node.span);
        Some(filled)
    }

    fn param_at(&mut self, path: &str, whole: &str, site: &Site<'_>) -> Option<Filled> {
        let mut steps = path.split('.');
        let name = steps.next().unwrap_or_default();
        let Some(index) = self.index.get(name).copied() else {
            let message = format!("there is no param `{name}`");
            if self.names.is_empty() {
                self.fault(site, whole, &message, Some("this manifest has no `params`".into()));
            } else {
                let among = self.names.clone();
                self.misspelt(site, whole, &message, (name, "the params are", among));
            }
            return None;
        };
        if let Some(first) = self.open.iter().position(|open| *open == index) {
            let names = |i: &usize| self.params[*i].key.text.clone();
            let circle: Vec<String> =
                self.open[first..].iter().chain(std::iter::once(&index)).map(names).collect();
            let message = format!("the param `{name}` refers to itself: {}", circle.join(" -> "));
            self.fault(site, whole, &message, Some("break the circle".into()));
            return None;
        }
        if self.open.len() >= MAX_DEPTH {
            let message = format!("params refer to params more than {MAX_DEPTH} deep");
            self.fault(site, whole, &message, None);
            return None;
        }
        let filled = self.param(index)?;
        let (mut real, mut masked) = (&filled.real, &filled.masked);
        let mut way = name.len();
        for step in steps {
            match (real.get(step), masked.get(step)) {
                (Some(r), Some(m)) => (real, masked) = (r, m),
                _ => {
                    let Value::Map(entries) = &real.value else {
                        self.fault(site, whole, &format!("the param `{name}` has no key `{step}`"), None);
                        return None;
                    };
                    let keys = || entries.iter().map(|(key, _)| key.text.clone()).collect();
                    let among = self.keys.entry(path[..way].into()).or_insert_with(keys).clone();
                    let message = format!("the param `{name}` has no key `{step}`");
                    self.misspelt(site, whole, &message, (step, "its keys are", among));
                    return None;
                }
            }
            way += 1 + step.len();
        }
        Some(Filled { real: real.clone(), masked: masked.clone(), broken: false })
    }

    /// The value of a param, its own references followed; `None` if one of them leads nowhere.
    fn param(&mut self, index: usize) -> Option<Arc<Filled>> {
        self.used.insert(index);
        let filled = match self.filled.get(&(index, self.lenient)) {
            Some(filled) => filled.clone(),
            None => {
                let params = self.params;
                self.open.push(index);
                let filled = self.fill_from(&params[index].node, &[], params[index].set.as_deref());
                let filled = Arc::new(filled);
                self.open.pop();
                self.filled.insert((index, self.lenient), filled.clone());
                filled
            }
        };
        (!filled.broken).then_some(filled)
    }

    fn environment(&mut self, name: &str, whole: &str, site: &Site<'_>) -> Option<Filled> {
        let text = |text: String| Node { value: Value::Text(text), ..site.node.clone() };
        match (self.env)(name) {
            Some(value) => {
                if !value.is_empty() {
                    self.secrets.insert(value.clone());
                }
                Some(Filled { real: text(value), masked: text(whole.into()), broken: false })
            }
            None if self.lenient => Some(Filled::plain(text(whole.into()))),
            None => {
                let message = format!("the environment variable `{name}` is not set");
                self.fault(site, whole, &message, Some(format!("set it: `export {name}=…`")));
                None
            }
        }
    }

    fn count(&mut self, size: usize, site: &Site<'_>) -> Option<()> {
        let before = self.inserted;
        self.inserted = before.saturating_add(size);
        if self.inserted <= MAX_INSERTED {
            return Some(());
        }
        if before <= MAX_INSERTED {
            let message = format!("what the references insert grows beyond {} MiB", MAX_INSERTED >> 20);
            self.fault(site, "${", &message, None);
        }
        None
    }

    fn fault(&mut self, site: &Site<'_>, written: &str, message: &str, help: Option<String>) {
        let fault = match site.set {
            Some(argument) => Diagnostic::error(format!("`--set {argument}`: {message}")),
            None => Diagnostic::error(message).at(self.place_of(written, site.node.span)),
        };
        self.faults.push(fault.maybe_help(help));
    }

    /// A fault about a word, with what its names are and the names that it may have been meant to be.
    fn misspelt(
        &mut self,
        site: &Site<'_>,
        written: &str,
        message: &str,
        (word, what, among): (&str, &'static str, Arc<[String]>),
    ) {
        self.fault(site, written, message, None);
        if let Some(fault) = self.faults.last_mut() {
            fault.meant = Some(Meant { word: word.into(), what, among, but: None });
        }
    }

    /// The place of a reference within its text; the whole text where quoting or an alias hides it.
    fn place_of(&self, written: &str, span: Span) -> Span {
        let text = self.source.text.get(span.start..span.end).unwrap_or_default();
        match text.find(written) {
            Some(at) => Span { start: span.start + at, end: span.start + at + written.len() },
            None => span,
        }
    }
}

fn collection(node: &Node, real: Value, masked: Value, broken: bool) -> Filled {
    let make = |value| Node { span: node.span, value, base: node.base.clone() };
    Filled { real: make(real), masked: make(masked), broken }
}

enum Piece<'t> {
    Literal(&'t str),
    Reference(&'t str),
}

/// Text cut at its references; `None` if one is not closed.
fn pieces(text: &str) -> Option<Vec<Piece<'_>>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            pieces.push(Piece::Literal(&rest[..at - 1]));
            pieces.push(Piece::Literal("${"));
            rest = &rest[at + 2..];
            continue;
        }
        if at > 0 {
            pieces.push(Piece::Literal(&rest[..at]));
        }
        let end = rest[at..].find('}')?;
        pieces.push(Piece::Reference(rest[at + 2..at + end].trim()));
        rest = &rest[at + end + 1..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Literal(rest));
    }
    Some(pieces)
}

/// A scalar as it stands within text.
pub fn scalar_text(node: &Node) -> Option<String> {
    match &node.value {
        Value::Bool(b) => Some(b.to_string()),
        Value::Int(i) => Some(i.to_string()),
        Value::Float(x) => Some(x.to_string()),
        Value::Text(text) => Some(text.clone()),
        Value::Null | Value::List(_) | Value::Map(_) => None,
    }
}

/// The bytes of a tree, about, and its depth.
fn measure(node: &Node) -> (usize, usize) {
    let inside = |(size, depth): (usize, usize), node: &Node| {
        let (s, d) = measure(node);
        (size + s, depth.max(d))
    };
    let (size, depth) = match &node.value {
        Value::Text(text) => (text.len(), 0),
        Value::List(items) => items.iter().fold((0, 0), inside),
        Value::Map(entries) => entries.iter().map(|(_, value)| value).fold((0, 0), inside),
        _ => (0, 0),
    };
    (size + VALUE_BYTES, depth + 1)
}

/// Has a tree stand where it is used.
fn move_to(node: &mut Node, span: Span) {
    node.span = span;
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| move_to(item, span)),
        Value::Map(entries) => entries.iter_mut().for_each(|(key, value)| {
            key.span = span;
            move_to(value, span);
        }),
        _ => {}
    }
}
