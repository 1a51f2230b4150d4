//! What each subcommand does: reads the manifest, calls the engine, shows the result, says the exit code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::about::About;
use crate::cache::{Cache, Limit};
use crate::cli::{CacheCommand, Cli, Command, EndedAs, Overrides, Planning, Run, RunsCommand, RunsToRemove};
use crate::device::{DeviceSpec, Seen};
use crate::diagnostic;
use crate::event::{Event, Hiding, Listen, RunStatus};
use crate::files::named;
use crate::history::{self, Found, HistoryError, Home, RunFolder};
use crate::hub::{self, Hub, LockRule};
use crate::job::Shared;
use crate::manifest::{self, Manifest};
use crate::plan::{self, Plan};
use crate::remembered::Remembered;
use crate::removal;
use crate::report;
use crate::report::graph::Format;
use crate::run::{Force, Message, Options};
use crate::scheduler::OnFailure;
use crate::secrets::Secrets;
use crate::sources::Sources;
use crate::stage::Cancel;
use crate::stages::KINDS;
use crate::terminal;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All well.
    Well,
    /// A stage failed.
    Failed,
    /// The manifest or the call is wrong.
    Wrong,
    /// Somebody stopped it.
    Interrupted,
}

impl Exit {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Well => 0,
            Self::Failed => 1,
            Self::Wrong => 2,
            Self::Interrupted => 130,
        }
    }
}

/// A call that can't be carried out: the message, what to do, the exit code.
struct Refusal {
    message: String,
    help: Option<String>,
    exit: Exit,
}

impl Refusal {
    fn wrong(message: impl ToString) -> Self {
        Self { message: message.to_string(), help: None, exit: Exit::Wrong }
    }
    fn failed(message: impl ToString) -> Self {
        Self { message: message.to_string(), help: None, exit: Exit::Failed }
    }
    fn without(self, secrets: &Secrets) -> Self {
        let hide = |text: String| secrets.hide(&text);
        Self { message: hide(self.message), help: self.help.map(hide), exit: self.exit }
    }
}

impl From<HistoryError> for Refusal {
    fn from(error: HistoryError) -> Self {
        Self { message: error.to_string(), help: error.help(), exit: Exit::Wrong }
    }
}

/// Carries out a call.
pub fn execute(cli: Cli) -> Exit {
    carry_out(cli.command).unwrap_or_else(|refusal| {
        report::error(&refusal.message, refusal.help.as_deref());
        refusal.exit
    })
}

/// The state, if it can be where it has to be.
fn state() -> Result<Home, Refusal> {
    let home = Home::find();
    home.check()?;
    Ok(home)
}

fn carry_out(command: Command) -> Result<Exit, Refusal> {
    match command {
        Command::Run(args) => run(&state()?, &args),
        Command::Plan(args) => planned(&state()?, &args),
        Command::Check { files, overrides } => Ok(check(&files, &overrides)),
        Command::Graph { file, format, overrides } => with_manifest(&file, &overrides, |manifest| {
            let plan = Plan::new(manifest, &[]).map_err(Refusal::wrong)?;
            match format {
                Format::Text => report::out(&report::graph::draw(&plan, format)),
                _ => report::exact(&report::graph::draw(&plan, format)),
            }
            Ok(Exit::Well)
        }),
        Command::Stages { kind } => stages(kind.as_deref()),
        Command::Devices { json } => {
            let seen = Seen::here();
            match json {
                true => report::json(&report::devices::json(&seen)),
                false => report::out(&report::devices::text(&seen)),
            }
            Ok(Exit::Well)
        }
        Command::Schema { out } => schema(&out),
        Command::Runs { command: None } => {
            report::out(&report::history::list(&state()?.all().collect::<Vec<_>>()));
            Ok(Exit::Well)
        }
        Command::Runs { command: Some(RunsCommand::Rm(args)) } => remove_runs(&state()?, &args),
        Command::Show { run, stage } => show(&state()?, &run, stage.as_deref()),
        Command::Diff { a, b } => {
            let home = state()?;
            report::out(&report::history::diff(&home.found(&a)?.record, &home.found(&b)?.record));
            Ok(Exit::Well)
        }
        Command::Report { run, out } => write_report(&state()?, &run, &out),
        Command::Cache(command) => cache(&state()?, &command),
    }
}

/// Loads a manifest, shows everything that is wrong with it; the exit code if it can't be used.
fn load(file: &Path, overrides: &Overrides) -> Result<Manifest, Exit> {
    let overrides = manifest::Overrides {
        profiles: overrides.profiles.clone(),
        set: overrides.sets.clone(),
        ..manifest::Overrides::default()
    };
    match manifest::load(file, &overrides, KINDS) {
        Ok(manifest) => {
            if !manifest.warnings.is_empty() {
                let text = diagnostic::render(
                    &manifest.source,
                    &manifest.warnings,
                    &manifest.secrets,
                    report::color(),
                );
                report::err(&(text + "\n"));
            }
            Ok(manifest)
        }
        Err(faults) => {
            let errors = faults.errors();
            let s = if errors == 1 { "" } else { "s" };
            report::err(&format!(
                "{}\n{}: {} error{s}\n",
                faults.render(report::color()),
                terminal::harmless(&file.display().to_string()),
                crate::size::grouped(errors),
            ));
            Err(Exit::Wrong)
        }
    }
}

fn with_manifest(
    file: &Path,
    overrides: &Overrides,
    then: impl FnOnce(&Manifest) -> Result<Exit, Refusal>,
) -> Result<Exit, Refusal> {
    match load(file, overrides) {
        Ok(manifest) => then(&manifest).map_err(|refusal| refusal.without(&manifest.secrets)),
        Err(exit) => Ok(exit),
    }
}

fn check(files: &[PathBuf], overrides: &Overrides) -> Exit {
    let mut exit = Exit::Well;
    for file in files {
        match load(file, overrides) {
            Ok(manifest) => {
                report::out(&format!("{}: ok, {} stages\n", file.display(), manifest.stages.len()));
            }
            Err(worse) => exit = worse,
        }
    }
    exit
}

fn device(text: &str) -> Result<DeviceSpec, Refusal> {
    text.parse().map_err(|e| Refusal::wrong(format!("--device: {e}")))
}

/// The outside sources of a manifest, names on the Hub as the lock and the flags have them.
fn sources(home: &Home, args: &Planning) -> Result<Sources, Refusal> {
    let mut settings = hub::Settings::from_environment();
    if args.offline {
        settings.network = hub::Network::Offline;
    }
    let rule = match (args.update, args.locked) {
        (true, _) => LockRule::Update,
        (_, true) => LockRule::Locked,
        _ => LockRule::Follow,
    };
    let remembered = Arc::new(Remembered::open(home.sources()));
    let hub = Hub::new(settings, rule, &args.file, remembered.clone());
    let hub = hub.map_err(|e| Refusal { message: e.to_string(), help: e.help(), exit: Exit::Wrong })?;
    Ok(Sources::new(remembered, hub))
}

/// What must never be shown: values of the environment that the manifest reads, and the Hub's token.
fn secrets(manifest: &Manifest, hub: &Hub) -> Secrets {
    let token = hub.settings().token.as_ref().map(hub::Token::expose);
    manifest.secrets.and(token)
}

/// Shows what names on the Hub can't be had; the exit code if there are any.
fn pin_names(manifest: &Manifest, plan: &Plan<'_>, sources: &Sources, cancel: &Cancel) -> Result<(), Exit> {
    let faults = plan::pin_names(plan, sources, cancel);
    if faults.is_empty() {
        return Ok(());
    }
    let text = diagnostic::render(&manifest.source, &faults, &manifest.secrets, report::color());
    report::err(&(text + "\n"));
    Err(if cancel.is_set() { Exit::Interrupted } else { Exit::Wrong })
}

fn planned(home: &Home, args: &Planning) -> Result<Exit, Refusal> {
    with_manifest(&args.file, &args.overrides, |manifest| {
        let plan = Plan::new(manifest, &args.stages).map_err(Refusal::wrong)?;
        let device = device(&args.device)?.open().map_err(Refusal::wrong)?;
        let sources = sources(home, args)?;
        if let Err(exit) = pin_names(manifest, &plan, &sources, &Cancel::default()) {
            return Ok(exit);
        }
        let fingerprints = home.last_fingerprints(&manifest.name);
        let last = |stage: &str| fingerprints.of(stage);
        let forecasts = plan::forecast(&plan, &Cache::new(&home.cache()), &sources, device, &last)
            .map_err(|e| Refusal { message: e.to_string(), help: e.help(), exit: Exit::Failed })?;
        match args.json {
            true => report::json(&report::plan::json(&plan, &forecasts)),
            false => report::out(&report::plan::text(&plan, &forecasts)),
        }
        Ok(Exit::Well)
    })
}

fn run(home: &Home, args: &Run) -> Result<Exit, Refusal> {
    with_manifest(&args.plan.file, &args.plan.overrides, |manifest| {
        let plan = Plan::new(manifest, &args.plan.stages).map_err(Refusal::wrong)?;
        let force = force(&args.force, manifest)?;
        let device = device(&args.plan.device)?.open().map_err(Refusal::wrong)?;
        let sources = sources(home, &args.plan)?;
        if let Err(exit) = pin_names(manifest, &plan, &sources, &Cancel::default()) {
            return Ok(exit);
        }
        let secrets = secrets(manifest, &sources.hub);
        let pinned = sources
            .hub
            .save(&secrets)
            .map_err(|e| Refusal::failed(format!("the lock can't be written: {e}")))?;
        let folder = RunFolder::create(home, &manifest.name, secrets.clone())
            .map_err(|e| Refusal::failed(format!("the folder for the run can't be made: {e}")))?;
        let folder = Arc::new(folder);
        // What a person reviews later is the manifest as it was.
        let copy = folder.path.join("manifest.yaml");
        fs::write(&copy, &manifest.source.text).map_err(named(&copy)).map_err(Refusal::failed)?;
        let screen: Arc<dyn Listen> = match args.plan.json {
            true => Arc::new(report::Json),
            false => Arc::new(report::console::Console::new()),
        };
        let hiding = |to| Arc::new(Hiding { secrets: secrets.clone(), to }) as Arc<dyn Listen>;
        let screen = hiding(screen);
        for text in pinned {
            screen.on(&Event::Note { text });
        }
        let cache = Cache::new(&home.cache());
        if let Some(earlier) = cache.earlier() {
            let earlier = earlier.display();
            let text = format!(
                "note: {earlier} is the cache of an earlier pipe and is not read: its results can't tell whether \
                 they are damaged; remove it once no earlier pipe uses it: rm -r {earlier}"
            );
            screen.on(&Event::Note { text });
        }
        let fingerprints = home.last_fingerprints(&manifest.name);
        let shared = Arc::new(Shared {
            cache,
            secrets: secrets.clone(),
            sources,
            device,
            cancel: Cancel::default(),
            listen: Arc::new(report::All(vec![hiding(folder.clone()), screen])),
            about: About::new(manifest, &args.plan.overrides.profiles, &args.plan.overrides.sets),
            last: Box::new(move |stage| fingerprints.of(stage)),
        });
        let (sender, messages) = channel();
        let stop = std::sync::Mutex::new(sender.clone());
        let mut asked = false;
        ctrlc::set_handler(move || {
            if std::mem::replace(&mut asked, true) {
                crate::subprocess::kill_all();
                std::process::exit(i32::from(Exit::Interrupted.code()));
            }
            if let Ok(stop) = stop.lock() {
                let _ = stop.send(Message::Stop);
            }
        })
        .map_err(Refusal::failed)?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let options = Options {
            jobs: args.jobs.unwrap_or(cores),
            on_failure: if args.keep_going { OnFailure::KeepGoing } else { OnFailure::Stop },
            force,
            manifest: args.plan.file.display().to_string(),
            profiles: args.plan.overrides.profiles.clone(),
            device: shared.device.to_string(),
        };
        let mut lanes = crate::lane::Threads::start();
        let record = crate::run::run(&plan, &options, &shared, &folder, &mut lanes, (&sender, &messages))
            .map_err(|e| Refusal::failed(format!("the run's record can't be written: {e}")))?;
        Ok(match record.status {
            RunStatus::Succeeded | RunStatus::Running => Exit::Well,
            RunStatus::Failed => Exit::Failed,
            RunStatus::Interrupted => Exit::Interrupted,
        })
    })
}

fn force(asked: &[String], manifest: &Manifest) -> Result<Force, Refusal> {
    if asked.is_empty() {
        return Ok(Force::Nothing);
    }
    if asked.iter().any(String::is_empty) {
        return Ok(Force::Everything);
    }
    // The same rule and the same error as for the stages to run.
    Plan::new(manifest, asked).map_err(Refusal::wrong)?;
    Ok(Force::Stages(asked.iter().cloned().collect::<BTreeSet<_>>()))
}

fn stages(kind: Option<&str>) -> Result<Exit, Refusal> {
    let Some(name) = kind else {
        report::out(&report::kinds::list(KINDS));
        return Ok(Exit::Well);
    };
    let kind = crate::stages::find(name).ok_or_else(|| Refusal {
        message: format!("there is no stage kind `{name}`"),
        help: Some(match diagnostic::nearest(name, KINDS.iter().map(|k| k.name)) {
            Some(near) => format!("did you mean `{near}`? `pipe stages` lists them"),
            None => "`pipe stages` lists them".into(),
        }),
        exit: Exit::Wrong,
    })?;
    report::out(&report::kinds::describe(kind));
    Ok(Exit::Well)
}

fn schema(out: &Path) -> Result<Exit, Refusal> {
    let path = out.join("pipeline.schema.json");
    let schema = serde_json::to_string_pretty(&crate::schema::pipeline(KINDS)).map_err(Refusal::failed)?;
    let text = schema + "\n";
    crate::files::write_atomically(&path, text.as_bytes())
        .map_err(crate::files::named(&path))
        .map_err(Refusal::failed)?;
    report::out(&format!("{}\n", path.display()));
    Ok(Exit::Well)
}

fn show(home: &Home, run: &str, stage: Option<&str>) -> Result<Exit, Refusal> {
    let found = home.found(run)?;
    report::out(&match stage {
        None => report::history::show(&found),
        Some(name) => {
            let record = &found.record;
            let stage = record.stages.iter().find(|s| s.stage == name).ok_or_else(|| {
                let names: Vec<&str> = record.stages.iter().map(|s| s.stage.as_str()).collect();
                Refusal::wrong(format!(
                    "run {} has no stage `{name}`; it has {}",
                    record.run,
                    names.join(", ")
                ))
            })?;
            report::history::show_stage(stage, &found.folder)
        }
    });
    Ok(Exit::Well)
}

fn write_report(home: &Home, run: &str, out: &Path) -> Result<Exit, Refusal> {
    let Found { record, folder, .. } = home.found(run)?;
    fs::write(out, report::html::page(&record, &folder)).map_err(named(out)).map_err(Refusal::failed)?;
    report::out(&format!("{}\n", out.display()));
    Ok(Exit::Well)
}

fn remove_runs(home: &Home, args: &RunsToRemove) -> Result<Exit, Refusal> {
    let RunsToRemove { runs, older_than, status, pipeline, keep, dry_run } = args;
    if runs.is_empty() && older_than.is_none() && status.is_empty() && pipeline.is_none() && keep.is_none() {
        return Err(Refusal {
            message: "nothing says which runs to remove".into(),
            help: Some("name them, or give --older-than, --status, --pipeline or --keep".into()),
            exit: Exit::Wrong,
        });
    }
    let age = older_than.as_deref().map(parse_age).transpose()?;
    let before = age.map(|age| crate::clock::before_now(age).unwrap_or_default());
    let named_ones = runs.iter().map(|name| home.run(name)).collect::<Result<BTreeSet<_>, _>>()?;
    if let Some(going) = named_ones.iter().find(|folder| history::is_going(folder)) {
        return Err(Refusal::wrong(format!("{}: the run is going on", going.display())));
    }
    let wanted = |folder: &Path| {
        let found = Found::at(folder.to_path_buf());
        let ended = match found.as_ref().map(|found| found.record.status) {
            Ok(RunStatus::Succeeded) => Some(EndedAs::Succeeded),
            Ok(RunStatus::Failed) => Some(EndedAs::Failed),
            Ok(RunStatus::Interrupted) => Some(EndedAs::Interrupted),
            Ok(RunStatus::Running) => Some(EndedAs::Unfinished),
            // It is not known how it ended, or whether it is a run at all.
            Err(_) => None,
        };
        let of = found.as_ref().ok().map(|found| found.record.pipeline.as_str());
        (named_ones.is_empty() || named_ones.contains(folder))
            && (status.is_empty() || ended.is_some_and(|ended| status.contains(&ended)))
            && pipeline.as_deref().is_none_or(|name| of == Some(name))
            && before.as_ref().is_none_or(|before| found.is_ok() && history::began(folder) < *before)
    };
    let (going, over): (Vec<PathBuf>, Vec<PathBuf>) =
        home.run_folders().into_iter().filter(|folder| wanted(folder)).partition(|f| history::is_going(f));
    let leave = keep.map_or(0, |keep| keep.saturating_sub(going.len()));
    let over: Vec<PathBuf> = over.into_iter().skip(leave).collect();
    let weight = removal::weigh(home, &over);
    let mut removed = Vec::new();
    for folder in &over {
        if *dry_run || removal::remove(folder).map_err(Refusal::failed)? {
            removed.push(folder.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    if !dry_run {
        removal::repoint_latest(home).map_err(Refusal::failed)?;
    }
    report::out(&report::history::removed(&removed, going.len(), weight, *dry_run));
    Ok(Exit::Well)
}

fn cache(home: &Home, command: &CacheCommand) -> Result<Exit, Refusal> {
    let cache = Cache::new(&home.cache());
    match command {
        CacheCommand::Ls => report::out(&report::cache::list(&cache.entries())),
        CacheCommand::Verify => {
            let damaged = cache.verify(&Cancel::default()).map_err(Refusal::failed)?;
            let records = home.set_damaged_records_aside().map_err(Refusal::failed)?;
            report::out(&report::cache::verified(&damaged, &records));
            if !damaged.is_empty() || !records.is_empty() {
                return Ok(Exit::Failed);
            }
        }
        CacheCommand::Gc { size, age, grace } => {
            if size.is_none() && age.is_none() {
                return Err(Refusal {
                    message: "nothing says what to keep".into(),
                    help: Some("give --size, such as --size 2GB, or --age, such as --age 30d".into()),
                    exit: Exit::Wrong,
                });
            }
            let limit = Limit {
                bytes: size.as_deref().map(parse_size).transpose()?,
                age: age.as_deref().map(parse_age).transpose()?,
                grace: parse_age(grace)?,
            };
            let in_use = home.keys_in_use();
            let collected = cache.gc(&limit, &in_use, &Cancel::default()).map_err(Refusal::failed)?;
            report::out(&report::cache::collected(&collected));
        }
    }
    Ok(Exit::Well)
}

/// A number and one of these units; the unit's factor.
fn with_unit(text: &str, units: &[(&str, f64)], what: &str) -> Result<f64, Refusal> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (value, unit) = text.split_at(split);
    let factor = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim())).map(|(_, f)| f);
    match (value.trim().parse::<f64>(), factor) {
        (Ok(value), Some(factor)) if value >= 0.0 => Ok(value * factor),
        _ => {
            let names: Vec<&str> = units.iter().map(|(n, _)| *n).filter(|n| !n.is_empty()).collect();
            Err(Refusal::wrong(format!("`{text}` is not {what}: a number and one of {}", names.join(", "))))
        }
    }
}

fn parse_size(text: &str) -> Result<u64, Refusal> {
    let units = [("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12), ("", 1.0)];
    Ok(with_unit(text, &units, "a size")? as u64)
}

fn parse_age(text: &str) -> Result<Duration, Refusal> {
    let units = [("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86400.0)];
    Duration::try_from_secs_f64(with_unit(text, &units, "an age")?)
        .map_err(|_| Refusal::wrong(format!("`{text}` is not an age: it is longer than time can be told")))
}
