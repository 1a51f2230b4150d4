//! The graph of stages of one run: what takes part, in which order, and which key each would have.
//!
//! Knows the manifest and the cache's entries; starts nothing and writes nothing.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::{Dfs, Reversed};

use crate::cache::{Cache, Entry};
use crate::device::Device;
use crate::diagnostic::Diagnostic;
use crate::fingerprint::{Aspect, Change, Digest, Fingerprint, Key, Writer};
use crate::hub::HubError;
use crate::location::Place;
use crate::manifest::{Manifest, On, StageDecl, StageId};
use crate::sources::{Pinned, SourceError, Sources};
use crate::stage::{Cancel, Content, Lane, Source};

/// The stages of a manifest as a graph, in an order in which every stage stands after what it needs.
pub struct Plan<'m> {
    /// The manifest it was made from.
    pub manifest: &'m Manifest,
    /// Edges run from a stage to those that need it.
    pub graph: DiGraph<usize, ()>,
    /// Numbers into `manifest.stages`, each after what it needs.
    pub order: Vec<usize>,
    /// The stages that take part: all, or those asked for and what they need.
    pub wanted: BTreeSet<usize>,
}

/// A stage that was asked for and is not there.
#[derive(Debug, thiserror::Error)]
#[error("the manifest has no stage `{name}`{}", .near.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
pub struct NoSuchStage {
    /// What was asked for.
    pub name: String,
    /// The nearest there is.
    pub near: Option<String>,
}

impl<'m> Plan<'m> {
    /// The plan for some stages and what they need; none named: all.
    pub fn new(manifest: &'m Manifest, asked: &[String]) -> Result<Self, NoSuchStage> {
        let mut graph = DiGraph::new();
        let nodes: Vec<NodeIndex> = (0..manifest.stages.len()).map(|i| graph.add_node(i)).collect();
        for (to, stage) in manifest.stages.iter().enumerate() {
            for edge in &stage.inputs {
                if let Some(from) = index_of(manifest, &edge.from) {
                    graph.add_edge(nodes[from], nodes[to], ());
                }
            }
        }
        let order = in_order(&graph);
        let mut wanted = BTreeSet::new();
        for name in asked {
            let matching: Vec<usize> = (0..manifest.stages.len())
                .filter(|i| manifest.stages[*i].id.as_str() == name || manifest.stages[*i].id.base() == name)
                .collect();
            if matching.is_empty() {
                let names = manifest.stages.iter().map(|s| s.id.as_str());
                let near = crate::diagnostic::nearest(name, names).map(str::to_string);
                return Err(NoSuchStage { name: name.clone(), near });
            }
            for index in matching {
                let back = Reversed(&graph);
                let mut dfs = Dfs::new(back, nodes[index]);
                while let Some(node) = dfs.next(back) {
                    wanted.insert(graph[node]);
                }
            }
        }
        if asked.is_empty() {
            wanted.extend(0..manifest.stages.len());
        }
        Ok(Self { manifest, graph, order, wanted })
    }

    /// The number of a stage.
    pub fn index(&self, id: &StageId) -> Option<usize> {
        index_of(self.manifest, id)
    }

    /// The stage of this number.
    pub fn stage(&self, index: usize) -> &'m StageDecl {
        &self.manifest.stages[index]
    }
}

fn index_of(manifest: &Manifest, id: &StageId) -> Option<usize> {
    manifest.stages.iter().position(|s| s.id == *id)
}

/// Kahn's order, the manifest's order among equals; a manifest without cycles was checked before.
fn in_order(graph: &DiGraph<usize, ()>) -> Vec<usize> {
    let mut waits: Vec<usize> = graph
        .node_indices()
        .map(|n| graph.neighbors_directed(n, petgraph::Direction::Incoming).count())
        .collect();
    let mut free: BTreeSet<usize> = (0..waits.len()).filter(|i| waits[*i] == 0).collect();
    let mut order = Vec::with_capacity(waits.len());
    while let Some(index) = free.pop_first() {
        order.push(index);
        for next in graph.neighbors(NodeIndex::new(index)) {
            waits[next.index()] -= 1;
            if waits[next.index()] == 0 {
                free.insert(next.index());
            }
        }
    }
    order
}

/// What a stage's key is made of, and the outside files behind it.
pub struct Keyed {
    /// The name of the result.
    pub key: Key,
    /// What it was made of.
    pub fingerprint: Fingerprint,
    /// The outside sources as they were looked at, with their roles.
    pub pinned: Vec<(String, Pinned)>,
}

/// The key of a stage, given the digest of what comes in at each port. The one place where keys are made.
///
/// Where files of this machine are is no part of it, only what they are: of byte-identical folders the first result is
/// taken. What it says of a model's path (`adapter_config.json` does) is where that one was read, which stays true.
pub fn key_of(
    stage: &StageDecl,
    inputs: &BTreeMap<String, Digest>,
    device: Device,
    sources: &Sources,
    cancel: &Cancel,
) -> Result<Keyed, SourceError> {
    let mut writer = Writer::new(stage.kind.name, stage.kind.version);
    let all = stage.stage.sources();
    let is_here = |source: &&Source| matches!(source.location.resolve(), Place::Local(_) | Place::Glob(_));
    let here: BTreeSet<&str> = all.iter().filter(is_here).map(|source| source.role.as_str()).collect();
    writer.config(&stage.config, &|leaf| here.contains(leaf));
    for (port, digest) in inputs {
        writer.part(Aspect::Input, port, &digest.to_string());
    }
    let mut pinned = Vec::new();
    for source in &all {
        let pin = sources.pin(source, cancel)?;
        writer.part(Aspect::Source, &source.role, &pin.value);
        pinned.push((source.role.clone(), pin));
    }
    if stage.kind.lane == Lane::Device {
        writer.part(Aspect::Device, "device", device.class());
    }
    let (key, fingerprint) = writer.finish();
    Ok(Keyed { key, fingerprint, pinned })
}

/// Asks what the names on the Hub stand for, before anything runs: a wrong one is to cost no work.
pub fn pin_names(plan: &Plan<'_>, sources: &Sources, cancel: &Cancel) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    for &index in plan.order.iter().filter(|i| plan.wanted.contains(i)) {
        let stage = plan.stage(index);
        if stage.on != On::On {
            continue;
        }
        for source in stage.stage.sources() {
            let on_hub = matches!(source.location.resolve(), Place::Hub(_));
            if !on_hub || source.content == Content::Files {
                continue;
            }
            let Err(error) = sources.pin(&source, cancel) else { continue };
            let at = stage.places.get(&source.role).copied().unwrap_or(stage.span);
            let fault = Diagnostic::error(error.to_string()).at(at).maybe_help(error.help());
            // Who can't be reached for one name can't be for the others.
            let alone =
                matches!(error, SourceError::Hub(HubError::Unreachable { .. } | HubError::Interrupted));
            faults.push(fault);
            if alone {
                return faults;
            }
        }
    }
    faults
}

/// What a run would do with a stage.
#[derive(Clone, Debug)]
pub enum Forecast {
    /// Its result is in the cache.
    Cached(Key),
    /// It would run: these differ from the last time; none: it never ran, or its result is gone.
    Run {
        /// The key it would have.
        key: Key,
        /// What differs from the last time.
        why: Vec<Change>,
        /// Whether it has run before.
        before: bool,
    },
    /// What it needs would run first; it runs unless that comes out as before.
    After(Vec<String>),
    /// It is off.
    Off(String),
}

/// What a run would do, stage by stage in the plan's order, reading nothing but keys and entries.
///
/// `last` gives the fingerprint with which a stage last ran.
pub fn forecast(
    plan: &Plan<'_>,
    cache: &Cache,
    sources: &Sources,
    device: Device,
    last: &dyn Fn(&str) -> Option<Fingerprint>,
) -> Result<Vec<(usize, Forecast)>, SourceError> {
    let mut known: BTreeMap<usize, Entry> = BTreeMap::new();
    let mut forecasts = Vec::new();
    for &index in plan.order.iter().filter(|i| plan.wanted.contains(i)) {
        let stage = plan.stage(index);
        if let On::Off(reason) = &stage.on {
            forecasts.push((index, Forecast::Off(reason.clone())));
            continue;
        }
        let mut inputs = BTreeMap::new();
        let mut first = BTreeSet::new();
        for edge in &stage.inputs {
            let entry = plan.index(&edge.from).and_then(|i| known.get(&i));
            match entry.and_then(|e| e.outputs.get(&edge.output)) {
                Some(output) => {
                    inputs.insert(edge.port.clone(), output.digest);
                }
                None => {
                    first.insert(edge.from.to_string());
                }
            }
        }
        if !first.is_empty() {
            forecasts.push((index, Forecast::After(first.into_iter().collect())));
            continue;
        }
        let device = stage.device_or(device).map_err(std::io::Error::other)?;
        let keyed = key_of(stage, &inputs, device, sources, &Cancel::default())?;
        let forecast = match cache.peek(&keyed.key, &Cancel::default()) {
            Some(entry) => {
                known.insert(index, entry);
                Forecast::Cached(keyed.key)
            }
            None => {
                let before = last(stage.id.as_str());
                let why = before.as_ref().map(|b| keyed.fingerprint.changes_since(b)).unwrap_or_default();
                Forecast::Run { key: keyed.key, why, before: before.is_some() }
            }
        };
        forecasts.push((index, forecast));
    }
    Ok(forecasts)
}
