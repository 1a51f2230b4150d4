//! Drafts to stages: their values filled in, their types read, their edges checked for what flows.
//!
//! Knows one stage after the other, each behind what feeds it; does not know how any of them works.

use std::sync::Arc;
use std::time::Duration;

use super::document::Draft;
use super::matrix::Instance;
use super::node::{Key, Node, Step, Value};
use super::scope::{Axes, Filled, Scope, scalar_text};
use super::typed;
use super::wiring::Wire;
use super::{Edge, On, StageDecl};
use crate::diagnostic::{Diagnostic, Span, list, suggestion};
use crate::location::Place;
use crate::schema::KindSchema;
use crate::stage::{AnyStage, Content, Kind, Output, Port};

/// What later stages need to know of one that has been looked at.
struct Built {
    name: String,
    on: On,
    with: Vec<(Key, Filled)>,
    links: Vec<Link>,
    /// `None` if the stage is too wrong to tell.
    outputs: Option<Vec<Output>>,
    decl: Option<StageDecl>,
}

/// A port with what comes in by it.
#[derive(Clone)]
struct Link {
    port: &'static Port,
    /// Its name under `inputs`, which a port for inputs of any name leaves to the manifest.
    name: String,
    /// The place of the stage among those built.
    from: usize,
    /// `None` if that stage is too wrong to tell.
    output: Option<String>,
}

/// Builds every instance; the result is in the order of the file and whole only if nothing was reported.
pub fn build(
    drafts: &[Draft],
    instances: Vec<Instance>,
    scope: &mut Scope<'_>,
    faults: &mut Vec<Diagnostic>,
) -> Vec<StageDecl> {
    let mut built: Vec<Built> = Vec::with_capacity(instances.len());
    for instance in &instances {
        let next = build_one(&drafts[instance.draft], instance, &built, scope, faults);
        built.push(next);
    }
    // Of one draft, the instances stand in the order of their combinations already.
    let mut stages: Vec<(usize, StageDecl)> =
        instances.iter().zip(built).filter_map(|(i, built)| Some((i.draft, built.decl?))).collect();
    stages.sort_by_key(|(draft, _)| *draft);
    stages.into_iter().map(|(_, stage)| stage).collect()
}

fn build_one(
    draft: &Draft,
    instance: &Instance,
    built: &[Built],
    scope: &mut Scope<'_>,
    faults: &mut Vec<Diagnostic>,
) -> Built {
    let mut links = links(draft, instance, built, faults);
    let runs = setting(&draft.when, "when", &instance.axes, "true or false", scope, faults, truth);
    let mut on = match (runs, links.iter().find(|link| link.port.required && is_off(link, built))) {
        (Some(false), _) => On::Off("`when` is false".into()),
        (_, Some(link)) => off_because(link, built),
        _ => On::On,
    };
    let (idle, mut links): (Vec<Link>, Vec<Link>) = match on {
        On::On => links.drain(..).partition(|link| is_off(link, built)),
        On::Off(_) => (Vec::new(), links),
    };

    // What a stage that is off would have read from the environment need not be there.
    scope.lenient = matches!(on, On::Off(_));
    let mut with: Vec<(Key, Filled)> = Vec::new();
    if let Some(Node { value: Value::Map(entries), .. }) = &draft.with {
        with.extend(entries.iter().map(|(key, node)| (key.clone(), scope.fill(node, &instance.axes))));
    }
    let span = draft.name.span;
    let axes = &instance.axes;
    let timeout = setting(
        &draft.timeout,
        "timeout",
        axes,
        "seconds, or text such as 90s, 15m or 2h, at most 10 years",
        scope,
        faults,
        duration,
    );
    let retries =
        setting(&draft.retries, "retries", axes, "a whole number from 0 to 10", scope, faults, retries);
    let device = setting(&draft.device, "device", axes, "auto, cpu, cuda or cuda:N", scope, faults, |node| {
        scalar_text(node)?.parse().ok()
    });
    scope.lenient = false;

    let mut result = Built {
        name: instance.id.to_string(),
        on: on.clone(),
        with,
        links: Vec::new(),
        outputs: None,
        decl: None,
    };
    let Some(kind) = draft.kind else { return result };
    bring_model(kind, &mut result.with, &mut links, built);
    missing_ports(draft, kind, &links, faults);
    links.sort_by_key(|link| {
        (kind.inputs.iter().position(|port| port.name == link.port.name), link.name.clone())
    });
    result.links = links;

    let base = draft.with.as_ref().map_or_else(|| Arc::new(".".into()), |node| node.base.clone());
    let Some(typed) = typed::read(kind, result.with.clone(), span, &base, faults) else { return result };
    result.outputs = Some(typed.stage.outputs());
    if on == On::On {
        let ports: Vec<&str> = result.links.iter().map(|link| link.name.as_str()).collect();
        let found = typed.stage.check(&ports);
        let with_idle: Vec<&str> =
            ports.into_iter().chain(idle.iter().map(|link| link.name.as_str())).collect();
        match idle.first() {
            // All would be well were it not for the stage that is off.
            Some(link) if !found.is_empty() && typed.stage.check(&with_idle).is_empty() => {
                on = off_because(link, built);
            }
            _ => faults.extend(found.into_iter().map(|fault| {
                let at = place(fault.key, &result.with).unwrap_or(span);
                Diagnostic::error(fault.message).at(at).maybe_help(fault.help)
            })),
        }
    }
    if on == On::On {
        faults.extend(missing_sources(typed.stage.as_ref(), &result.with, span));
    }
    let edge = |link: &Link| {
        let from = &instance_id(built, link.from)?;
        Some(Edge { port: link.name.clone(), from: from.clone(), output: link.output.clone()? })
    };
    let places = typed.stage.sources().into_iter().map(|source| {
        let at = place(&source.role, &result.with).unwrap_or(span);
        (source.role, at)
    });
    let places = places.collect();
    result.on = on.clone();
    result.decl = Some(StageDecl {
        id: instance.id.clone(),
        kind,
        stage: typed.stage,
        places,
        config: typed.config,
        inputs: result.links.iter().filter_map(edge).collect(),
        on,
        timeout,
        retries: retries.unwrap_or(0),
        device,
        span,
    });
    result
}

fn instance_id(built: &[Built], at: usize) -> Option<super::StageId> {
    built[at].decl.as_ref().map(|decl| decl.id.clone())
}

fn is_off(link: &Link, built: &[Built]) -> bool {
    matches!(built[link.from].on, On::Off(_))
}

fn off_because(link: &Link, built: &[Built]) -> On {
    On::Off(format!("`{}` is off", built[link.from].name))
}

fn link(port: &'static Port, wire: &Wire, from: usize, output: Option<String>) -> Link {
    Link { port, name: wire.port.clone(), from, output }
}

/// What comes in by each port, as far as the kinds fit.
fn links(draft: &Draft, instance: &Instance, built: &[Built], faults: &mut Vec<Diagnostic>) -> Vec<Link> {
    let Some(kind) = draft.kind else { return Vec::new() };
    let mut links = Vec::new();
    for (wire, from) in &instance.inputs {
        let Some(port) = kind.port(&wire.port) else { continue };
        let stage = &built[*from];
        let name = stage.name.split('[').next().unwrap_or_default();
        let Some(outputs) = &stage.outputs else {
            links.push(link(port, wire, *from, None));
            continue;
        };
        let takes = |output: &&Output| port.accepts.is_empty() || port.accepts.contains(&output.kind);
        let fitting = match &wire.output {
            None => outputs.iter().find(takes),
            Some(named) => match outputs.iter().find(|output| output.name == *named) {
                Some(output) => Some(output).filter(takes),
                None => {
                    let known: Vec<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
                    let message = format!("`{name}` has no output `{named}`");
                    let help = suggestion(named, "its outputs are", &known);
                    faults.push(Diagnostic::error(message).at(wire.span).maybe_help(help));
                    continue;
                }
            },
        };
        match fitting {
            Some(output) => links.push(link(port, wire, *from, Some(output.name.clone()))),
            None => {
                let accepted: Vec<&str> = port.accepts.iter().map(|kind| kind.word()).collect();
                let mut gives: Vec<&str> = Vec::new();
                for output in outputs.iter().filter(|o| wire.output.as_ref().is_none_or(|n| o.name == *n)) {
                    if !gives.contains(&output.kind.word()) {
                        gives.push(output.kind.word());
                    }
                }
                let given = match &wire.output {
                    Some(output) => format!("`{name}.{output}` is {}", list(&gives, "and")),
                    None if gives.is_empty() => format!("`{name}` gives nothing"),
                    None => format!("`{name}` gives {}", list(&gives, "and")),
                };
                let message = format!(
                    "port `{}` of `{}` takes {}, but {given}",
                    wire.port,
                    draft.name.text,
                    list(&accepted, "or"),
                );
                faults.push(Diagnostic::error(message).at(wire.span));
            }
        }
    }
    links
}

/// An adapter brings the model it was trained on along, where the stage names none of its own.
fn bring_model(kind: &Kind, with: &mut Vec<(Key, Filled)>, links: &mut Vec<Link>, built: &[Built]) {
    let names_one = with.iter().any(|(key, node)| key.text == "model" && node.real.value != Value::Null);
    if names_one || links.iter().any(|link| link.name == "model") {
        return;
    }
    let Some(adapter) = links.iter().find(|link| link.port.name == "adapter") else { return };
    let trained = &built[adapter.from];
    let schema = KindSchema::of(kind);
    let takes_key = schema.below(schema.root(), &Step::Key("model".into())).is_some();
    let key = trained.with.iter().find(|(key, _)| key.text == "model").filter(|_| takes_key);
    if key.is_some() {
        for name in ["model", "revision"] {
            let key = trained.with.iter().find(|(key, _)| key.text == name);
            with.retain(|(key, _)| key.text != name);
            with.extend(key.cloned());
        }
    }
    if key.is_none()
        && let Some(port) = kind.port("model")
        && let Some(link) = trained.links.iter().find(|link| link.name == "model")
    {
        links.push(Link { port, ..link.clone() });
    }
}

fn missing_ports(draft: &Draft, kind: &Kind, links: &[Link], faults: &mut Vec<Diagnostic>) {
    for port in kind.inputs.iter().filter(|port| port.required) {
        let connected = links.iter().any(|link| link.port.name == port.name);
        if connected || draft.inputs.iter().any(|(key, _)| key.text == port.name) {
            continue;
        }
        let message = format!("`{}` ({}) needs the input `{}`", draft.name.text, kind.name, port.name);
        let kinds: Vec<&str> = port.accepts.iter().map(|kind| kind.word()).collect();
        let takes = if kinds.is_empty() { "anything".into() } else { list(&kinds, "or") };
        let help = format!("add `inputs: {{ {}: STAGE }}`; the port takes {takes}", port.name);
        faults.push(Diagnostic::error(message).at(draft.name.span).help(help));
    }
}

/// Paths that a stage would read and at which there is nothing.
fn missing_sources(stage: &dyn AnyStage, with: &[(Key, Filled)], span: Span) -> Vec<Diagnostic> {
    let named = stage.sources().into_iter().filter(|s| !matches!(s.content, Content::BaseModel { .. }));
    let missing = named.filter_map(|source| match source.location.resolve() {
        Place::Missing(path) => {
            let fault = Diagnostic::error(format!("nothing is at {}", path.display()));
            Some(fault.at(place(&source.role, with).unwrap_or(span)).help(source.location.advice()))
        }
        _ => None,
    });
    missing.collect()
}

/// The place of the value at a key such as `files.train`.
fn place(key: &str, with: &[(Key, Filled)]) -> Option<Span> {
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    let (_, filled) = with.iter().find(|(key, _)| key.text == first)?;
    let inner = rest.and_then(|rest| rest.split('.').try_fold(&filled.real, |node, step| node.get(step)));
    Some(inner.unwrap_or(&filled.real).span)
}

/// A key beside `with`, its references followed; what does not fit is reported.
fn setting<T>(
    node: &Option<Node>,
    key: &str,
    axes: &Axes,
    takes: &str,
    scope: &mut Scope<'_>,
    faults: &mut Vec<Diagnostic>,
    read: fn(&Node) -> Option<T>,
) -> Option<T> {
    let filled = scope.fill(node.as_ref()?, axes);
    if filled.broken {
        return None;
    }
    let value = read(&filled.real);
    if value.is_none() {
        let found = match scalar_text(&filled.masked) {
            Some(text) => format!("`{text}`"),
            None => filled.masked.word().into(),
        };
        let message = format!("`{key}` takes {takes}, not {found}");
        faults.push(Diagnostic::error(message).at(filled.masked.span));
    }
    value
}

fn truth(node: &Node) -> Option<bool> {
    match &node.value {
        Value::Bool(b) => Some(*b),
        Value::Text(text) => text.parse().ok(),
        _ => None,
    }
}

fn retries(node: &Node) -> Option<u32> {
    scalar_text(node)?.parse().ok().filter(|n| *n <= 10)
}

/// A clock can't tell any time whatever from now.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 86400);

fn duration(node: &Node) -> Option<Duration> {
    let text = scalar_text(node)?;
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) if text.ends_with('m') => (number, 60.0),
        Some(number) if text.ends_with('h') => (number, 3600.0),
        Some(number) => (number, 1.0),
        None => (text.as_str(), 1.0),
    };
    let seconds: f64 = number.parse().ok()?;
    Duration::try_from_secs_f64(seconds * unit).ok().filter(|d| !d.is_zero() && *d <= LONGEST)
}
