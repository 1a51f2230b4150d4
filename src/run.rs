//! One run of a plan: hands stages to lanes as they become ready, and keeps the record.
//!
//! Knows the scheduler's table and the jobs; does not know how anything is shown, nor what stages do.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use crate::cache::{Entry, Placed};
use crate::clock::timestamp;
use crate::event::{Event, RunRecord, RunStatus, StageRecord, Status};
use crate::history::RunFolder;
use crate::job::{Ended, Freshness, Input, Shared, Task};
use crate::lane::{Lanes, Track};
use crate::manifest::{On, StageDecl, StageId};
use crate::plan::Plan;
use crate::scheduler::{OnFailure, Outcome, Scheduler, State};
use crate::stage::Lane;

/// How often the record of a run that goes on is written, at most.
const RECORD_EVERY: Duration = Duration::from_secs(1);

/// Which stages must not be taken from the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Force {
    /// None.
    Nothing,
    /// Every stage that takes part.
    Everything,
    /// These.
    Stages(BTreeSet<String>),
}

impl Force {
    fn freshness(&self, stage: &StageId) -> Freshness {
        let forced = match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Stages(names) => names.contains(stage.as_str()) || names.contains(stage.base()),
        };
        if forced { Freshness::Forced } else { Freshness::Cached }
    }
}

/// How a plan is to be run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Processor stages at once.
    pub jobs: usize,
    /// What a failure means for the rest.
    pub on_failure: OnFailure,
    /// Which stages must not be taken from the cache.
    pub force: Force,
    /// The manifest's path as given.
    pub manifest: String,
    /// The profiles, in order.
    pub profiles: Vec<String>,
    /// The device as shown.
    pub device: String,
}

/// What reaches the loop from outside.
pub enum Message {
    /// A stage came back.
    Ended(usize, Box<Ended>),
    /// Somebody asked to stop.
    Stop,
}

/// Runs the plan to its end. `sender` is the other end of `messages`; jobs answer there, and so does whoever
/// wants to stop the run.
pub fn run(
    plan: &Plan<'_>,
    options: &Options,
    shared: &Arc<Shared>,
    folder: &RunFolder,
    lanes: &mut dyn Lanes,
    (sender, messages): (&Sender<Message>, &Receiver<Message>),
) -> io::Result<RunRecord> {
    let start = Instant::now();
    let mut record = RunRecord {
        run: folder.name.clone(),
        pipeline: plan.manifest.name.clone(),
        manifest: options.manifest.clone(),
        started: timestamp(),
        seconds: 0.0,
        status: RunStatus::Running,
        pipe: env!("CARGO_PKG_VERSION").into(),
        device: options.device.clone(),
        params: plan.manifest.params.clone(),
        profiles: options.profiles.clone(),
        stages: plan.manifest.stages.iter().map(|s| blank(s, plan)).collect(),
    };
    folder.write(&record)?;
    shared.listen.on(&Event::RunStarted {
        run: folder.name.clone(),
        pipeline: plan.manifest.name.clone(),
        stages: plan
            .wanted
            .iter()
            .map(|i| (plan.stage(*i).id.to_string(), plan.stage(*i).kind.name.to_string()))
            .collect(),
    });

    // The table's numbers are places in the plan's order, in which needs come first.
    let place: BTreeMap<usize, usize> = plan.order.iter().enumerate().map(|(place, i)| (*i, place)).collect();
    let mut table = Scheduler::new(&[(Track::Cpu, options.jobs.max(1))], options.on_failure);
    // A device that can't be had is the job's to report.
    let track = |stage: &StageDecl| match stage.kind.lane {
        Lane::Cpu => Track::Cpu,
        Lane::Device => Track::Device(stage.device_or(shared.device).unwrap_or(shared.device)),
    };
    for &index in &plan.order {
        let stage = plan.stage(index);
        let needs = stage.inputs.iter().filter_map(|e| plan.index(&e.from)).map(|i| place[&i]).collect();
        let takes_part = plan.wanted.contains(&index) && stage.on == On::On;
        table.add(track(stage), needs, if takes_part { State::Waiting } else { State::Out });
    }
    for &index in &plan.wanted {
        if let On::Off(reason) = &plan.stage(index).on {
            let stage = &mut record.stages[index];
            stage.status = Status::Skipped;
            stage.why = vec![reason.clone()];
            shared.listen.on(&Event::StageFinished(stage.clone()));
        }
    }

    let mut results: BTreeMap<usize, Entry> = BTreeMap::new();
    let mut recorded = Instant::now();
    let mut stopped = false;
    loop {
        for at in table.start() {
            let index = plan.order[at];
            let task = task(plan, index, options, &results, folder);
            let (shared, sender) = (shared.clone(), sender.clone());
            lanes.submit(
                track(plan.stage(index)),
                Box::new(move || {
                    let ended = task.run(&shared);
                    // Nobody listens any more only if the run itself is gone.
                    let _ = sender.send(Message::Ended(index, Box::new(ended)));
                }),
            );
        }
        if table.is_over() {
            break;
        }
        match messages.recv_timeout(Duration::from_secs(3600)) {
            Ok(Message::Ended(index, mut ended)) => {
                let outcome = match ended.status {
                    Status::Ran | Status::Cached => Outcome::Done,
                    _ => Outcome::Failed,
                };
                let entry = ended.entry.take();
                note_end(&mut record.stages[index], *ended, entry.as_ref());
                results.extend(entry.map(|entry| (index, entry)));
                shared.listen.on(&Event::StageFinished(record.stages[index].clone()));
                table.finish(place[&index], outcome);
                if recorded.elapsed() >= RECORD_EVERY {
                    // So that others see how far the run is and what it uses. The record at its end counts: only a
                    // fault there is one of the run.
                    let _ = folder.write(&record);
                    recorded = Instant::now();
                }
            }
            Ok(Message::Stop) if !stopped => {
                stopped = true;
                shared.cancel.cancel();
                shared.listen.on(&Event::Stopping);
                table.stop();
            }
            Ok(Message::Stop) | Err(_) => {}
        }
    }

    record.seconds = start.elapsed().as_secs_f64();
    let any = |status| record.stages.iter().any(|s| s.status == status);
    record.status = match () {
        () if stopped && (any(Status::Interrupted) || any(Status::NotReached)) => RunStatus::Interrupted,
        () if any(Status::Failed) => RunStatus::Failed,
        () => RunStatus::Succeeded,
    };
    folder.write(&record)?;
    if let Err(error) = shared.sources.save() {
        let text = format!("warning: {error}: what was read is not remembered and will be read again");
        shared.listen.on(&Event::Note { text });
    }
    shared.listen.on(&Event::RunFinished(record.clone()));
    Ok(record)
}

/// A stage's record before anything happened to it.
fn blank(stage: &StageDecl, plan: &Plan<'_>) -> StageRecord {
    let asked = plan.index(&stage.id).is_some_and(|i| plan.wanted.contains(&i));
    StageRecord {
        stage: stage.id.to_string(),
        kind: stage.kind.name.into(),
        status: if asked { Status::NotReached } else { Status::Skipped },
        seconds: 0.0,
        key: None,
        folder: None,
        outputs: BTreeMap::new(),
        metrics: BTreeMap::new(),
        why: if asked { Vec::new() } else { vec!["not asked for".into()] },
        warnings: Vec::new(),
        error: None,
        inputs: stage.inputs.iter().map(|e| (e.port.clone(), format!("{}.{}", e.from, e.output))).collect(),
        fingerprint: None,
    }
}

fn note_end(record: &mut StageRecord, ended: Ended, entry: Option<&Entry>) {
    record.status = ended.status;
    record.seconds = ended.seconds;
    record.why = ended.why.into_iter().map(|c| c.0).collect();
    record.error = ended.error;
    if let Some((key, fingerprint)) = ended.key {
        record.key = Some(key);
        record.fingerprint = Some(fingerprint);
    }
    if let Some(entry) = entry {
        record.folder = Some(format!("stages/{}", record.stage));
        record.outputs = entry.outputs.clone();
        record.metrics = entry.metrics.clone();
        record.warnings = entry.warnings.clone();
    }
}

/// The task of a stage whose needs are all there.
fn task(
    plan: &Plan<'_>,
    index: usize,
    options: &Options,
    results: &BTreeMap<usize, Entry>,
    folder: &RunFolder,
) -> Task {
    let decl = Arc::new(plan.stage(index).clone());
    let mut inputs = BTreeMap::new();
    for edge in &decl.inputs {
        let result = plan.index(&edge.from).and_then(|i| results.get(&i));
        let Some((result, output)) = result.and_then(|r| Some((r, r.outputs.get(&edge.output)?))) else {
            continue;
        };
        let from = format!("{}.{}", edge.from, edge.output);
        let placed = Placed::new(result, &edge.output, &folder.stage(edge.from.as_str()), from.clone());
        let input = Input { kind: output.kind, digest: output.digest, placed, from };
        inputs.insert(edge.port.clone(), input);
    }
    let folder = folder.stage(decl.id.as_str());
    Task { freshness: options.force.freshness(&decl.id), decl, inputs, folder }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::about::About;
    use crate::cache::Cache;
    use crate::device::Device;
    use crate::event::Listen;
    use crate::history::Home;
    use crate::lane::Job;
    use crate::manifest::{self, Overrides};
    use crate::remembered::Remembered;
    use crate::secrets::Secrets;
    use crate::sources::Sources;
    use crate::stage::{ArtifactKind, Cancel, Context, Kind, Output, Port, Stage, StageError};

    const BEFORE: &[Port] = &[
        Port { name: "a", accepts: &[], required: false, about: "" },
        Port { name: "b", accepts: &[], required: false, about: "" },
    ];

    /// Writes its text, or fails.
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Write {
        text: String,
    }

    impl Stage for Write {
        const KIND: &'static str = "write";
        const VERSION: u32 = 1;
        const LANE: Lane = Lane::Cpu;
        const ABOUT: &'static str = "";
        const EXAMPLE: &'static str = "";
        const INPUTS: &'static [Port] = BEFORE;
        fn outputs(&self) -> Vec<Output> {
            vec![Output::new("text", ArtifactKind::Text, &["text"])]
        }
        fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
            match self.text.as_str() {
                "fail" => Err(StageError::failed("asked to")),
                text => {
                    std::fs::write(context.out.join("text"), text).unwrap();
                    Ok(())
                }
            }
        }
    }

    /// The same on the model device.
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Think {
        text: String,
    }

    impl Stage for Think {
        const KIND: &'static str = "think";
        const VERSION: u32 = 1;
        const LANE: Lane = Lane::Device;
        const ABOUT: &'static str = "";
        const EXAMPLE: &'static str = "";
        const INPUTS: &'static [Port] = BEFORE;
        fn outputs(&self) -> Vec<Output> {
            vec![Output::new("text", ArtifactKind::Text, &["text"])]
        }
        fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
            Write { text: self.text.clone() }.run(context)
        }
    }

    static KINDS: &[Kind] = &[Kind::of::<Write>(), Kind::of::<Think>()];

    /// Starts nothing: keeps every job until the run waits, then does the newest first.
    #[derive(Clone, Default)]
    struct Mock {
        waiting: Arc<Mutex<Vec<(Track, Job)>>>,
        /// How many jobs each track held at once.
        most: Arc<Mutex<BTreeMap<Track, usize>>>,
    }

    impl Lanes for Mock {
        fn submit(&mut self, track: Track, job: Job) {
            let mut waiting = self.waiting.lock().unwrap();
            waiting.push((track, job));
            let held = waiting.iter().filter(|(t, _)| *t == track).count();
            let mut most = self.most.lock().unwrap();
            let most = most.entry(track).or_default();
            *most = held.max(*most);
        }
    }

    struct Deaf;
    impl Listen for Deaf {
        fn on(&self, _: &Event) {}
    }

    fn run_mocked(folder: &Path, stages: &str, on_failure: OnFailure) -> (RunRecord, BTreeMap<Track, usize>) {
        let path = folder.join("p.yaml");
        std::fs::write(&path, format!("pipeline: p\nstages:\n{stages}")).unwrap();
        let manifest = manifest::load(&path, &Overrides::default(), KINDS).unwrap();
        let plan = Plan::new(&manifest, &[]).unwrap();
        let home = Home::at(folder.join("state"));
        let run_folder = RunFolder::create(&home, "p", Secrets::default()).unwrap();
        let shared = Arc::new(Shared {
            cache: Cache::new(&home.cache()),
            sources: Sources::new(Arc::new(Remembered::open(home.sources())), crate::hub::Hub::nowhere()),
            device: Device::Cpu,
            cancel: Cancel::default(),
            listen: Arc::new(Deaf),
            secrets: Secrets::new(Vec::<String>::new()),
            about: About::default(),
            last: Box::new(|_| None),
        });
        let options = Options {
            jobs: 2,
            on_failure,
            force: Force::Nothing,
            manifest: "p.yaml".into(),
            profiles: Vec::new(),
            device: "cpu".into(),
        };
        let mock = Mock::default();
        let (sender, messages) = channel();
        let record = std::thread::scope(|scope| {
            let worker = mock.clone();
            let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
            let over = stop.clone();
            scope.spawn(move || {
                while !over.load(std::sync::atomic::Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(20));
                    let job = worker.waiting.lock().unwrap().pop();
                    if let Some((_, job)) = job {
                        job();
                    }
                }
            });
            let mut lanes = mock.clone();
            let record = run(&plan, &options, &shared, &run_folder, &mut lanes, (&sender, &messages));
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
            record.unwrap()
        });
        let most = mock.most.lock().unwrap().clone();
        (record, most)
    }

    fn statuses(record: &RunRecord) -> Vec<(&str, Status)> {
        record.stages.iter().map(|s| (s.stage.as_str(), s.status)).collect()
    }

    const GRAPH: &str = "  \
  one: { uses: write, with: { text: '1' } }
  two: { uses: write, inputs: { a: one }, with: { text: '2' } }
  three: { uses: think, inputs: { a: one }, with: { text: '3' } }
  four: { uses: think, with: { text: '4' } }
  five: { uses: write, inputs: { a: two, b: three }, with: { text: '5' } }
";

    #[test]
    fn both_lanes_are_used_and_the_device_never_twice() {
        let folder = tempfile::tempdir().unwrap();
        let (record, most) = run_mocked(folder.path(), GRAPH, OnFailure::Stop);
        assert_eq!(record.status, RunStatus::Succeeded);
        assert!(statuses(&record).iter().all(|(_, s)| *s == Status::Ran), "{:?}", statuses(&record));
        assert_eq!(most[&Track::Device(Device::Cpu)], 1);
        let (again, _) = run_mocked(folder.path(), GRAPH, OnFailure::Stop);
        assert!(statuses(&again).iter().all(|(_, s)| *s == Status::Cached), "{:?}", statuses(&again));
    }

    #[test]
    fn what_follows_a_failure_is_not_reached_and_the_rest_goes_on_if_asked() {
        let graph = GRAPH.replace("'3'", "fail");
        let folder = tempfile::tempdir().unwrap();
        let (record, _) = run_mocked(folder.path(), &graph, OnFailure::KeepGoing);
        assert_eq!(record.status, RunStatus::Failed);
        let expected = [
            ("one", Status::Ran),
            ("two", Status::Ran),
            ("three", Status::Failed),
            ("four", Status::Ran),
            ("five", Status::NotReached),
        ];
        assert_eq!(statuses(&record), expected);
        assert_eq!(record.stages[2].error.as_ref().unwrap().message, "asked to");
    }
}
