//! Where a training stands, on disk: to go on after a kill as if nothing had been, or from a folder given.
//!
//! Knows tensors by name, the optimizer's moments and the loop's counters; does not know what is trained. A
//! checkpoint is a folder `step-N` with `state.json` and `tensors.safetensors`, sealed with their digests, written
//! under another name and renamed, so that a half one is never met and a damaged one never taken. Beside it,
//! `step-N.journal` knows what had been written down by then, which may be another text for the same training.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use safetensors::tensor::{Dtype, Metadata, View};
use serde::{Deserialize, Serialize};

use super::TrainError;
use super::recipe::Every;
use super::training::Course;
use crate::cancel::Cancel;
use crate::files;
use crate::fingerprint::Digest;
use crate::sealed;

/// The loop's counters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// How it went until here.
    pub course: Course,
    /// Steps of the epoch that is not over.
    pub in_epoch: usize,
    /// Sum of their losses.
    pub losses: f64,
    /// The best evaluation.
    pub best: Option<Best>,
    /// Evaluations since then.
    pub waited: usize,
}

/// What was written down until some step, to know it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    /// Its length in bytes.
    pub length: u64,
    /// Their digest.
    pub digest: Digest,
}

/// The best evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps done by then.
    pub step: usize,
    /// Its loss.
    pub loss: f64,
}

/// A tensor's numbers to be kept.
pub struct Numbers<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// As they are.
    pub now: &'a [f32],
    /// The optimizer's first moment.
    pub mean: &'a [f32],
    /// Its second.
    pub square: &'a [f32],
    /// As they were when they scored best.
    pub best: Option<&'a [f32]>,
}

/// A tensor's numbers as they were kept.
pub struct Found {
    /// As they were.
    pub now: Vec<f32>,
    /// The optimizer's first moment.
    pub mean: Vec<f32>,
    /// Its second.
    pub square: Vec<f32>,
    /// As they were when they scored best.
    pub best: Option<Vec<f32>>,
}

/// Why a checkpoint is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// It was asked for at this step: the newest few stay.
    Asked,
    /// So that a kill costs little; the next one takes its place.
    Interim,
}

/// Where checkpoints are, and how many of them.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    /// The folder they are in; made when the first is written.
    pub folder: PathBuf,
    /// When one is written that stays.
    pub every: Option<Every>,
    /// How many of those stay; the newest.
    pub keep: usize,
    /// The longest time without one.
    pub interval: Duration,
    /// A checkpoint to begin with if the folder has none.
    pub from: Option<PathBuf>,
    /// Whether to stop; heard while checkpoints are looked through.
    pub cancel: Cancel,
}

/// How training begins.
pub struct Beginning {
    /// The checkpoint it goes on from.
    pub resumed: Option<Resumed>,
    /// What was wrong with others.
    pub warnings: Vec<String>,
}

/// A checkpoint that fits.
pub struct Resumed {
    folder: PathBuf,
    state: State,
    journal: Option<Journal>,
    tensors: File,
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    start: u64,
}

/// Why a checkpoint can't be used.
enum Unusable {
    Interrupted,
    Damaged(String),
    Otherwise(String),
}

#[derive(Serialize, Deserialize)]
struct Index<S, M> {
    format: u32,
    made_with: M,
    state: S,
}

/// What [`journal_of`] a checkpoint holds.
#[derive(Serialize, Deserialize)]
struct Kept {
    journal: Option<Journal>,
}

const FORMAT: u32 = 2;
/// The format of checkpoints that had no seal.
const UNSEALED: u32 = 1;
const STATE: &str = "state.json";
const TENSORS: &str = "tensors.safetensors";
/// What the names of those begin with that were asked for.
const ASKED: &str = "step-";
/// And of the others.
const INTERIM: &str = "interim-";
/// The name of one that is being written.
const HALF: &str = "half";

impl Checkpoints {
    /// Whether one is asked for after this step.
    pub fn wants(&self, step: usize, ends_epoch: bool) -> bool {
        self.every.is_some_and(|every| every.is_due(step, ends_epoch))
    }

    /// The folders of those that stay, oldest first.
    pub fn kept(&self) -> Vec<PathBuf> {
        let mut kept = self.named(ASKED);
        kept.drain(..kept.len().saturating_sub(self.keep.max(1)));
        kept.into_iter().map(|(_, folder)| folder).collect()
    }

    /// The folders whose names are `prefix` and a step, by step.
    fn named(&self, prefix: &str) -> Vec<(usize, PathBuf)> {
        let Ok(read) = fs::read_dir(&self.folder) else { return Vec::new() };
        let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix(prefix)?.parse().ok();
        let mut found: Vec<(usize, PathBuf)> =
            read.flatten().filter_map(|entry| Some((step(&entry.path())?, entry.path()))).collect();
        found.sort();
        found
    }

    /// How training begins: after the newest checkpoint of the folder, else the one given. What can't be used in the
    /// folder is removed, and with one that was to stay all that came later, so that what stays in the end is what
    /// would be there without a fault. `has` says whether what was written down until then is still there.
    ///
    /// # Errors
    /// The one given is not there, is damaged, or was made otherwise; or somebody asked to stop.
    pub fn resume(
        &self,
        made_with: &BTreeMap<String, String>,
        has: &mut dyn FnMut(&Journal) -> Result<(), String>,
    ) -> Result<Beginning, TrainError> {
        let (mut resumed, mut faults) = (None, Vec::new());
        let mut own: Vec<(usize, Timing, PathBuf)> = [(INTERIM, Timing::Interim), (ASKED, Timing::Asked)]
            .into_iter()
            .flat_map(|(prefix, timing)| {
                self.named(prefix).into_iter().map(move |(step, folder)| (step, timing, folder))
            })
            .collect();
        own.sort_by_key(|(step, ..)| *step);
        let mut own = own.into_iter();
        while let Some((step, timing, folder)) = own.next() {
            let found = self.own(&folder, made_with).and_then(|found| {
                found.journal.as_ref().map_or(Ok(()), &mut *has).map_err(Unusable::Otherwise)?;
                Ok(found)
            });
            let fault = match found {
                Ok(found) => {
                    resumed = Some(found);
                    continue;
                }
                Err(Unusable::Interrupted) => return Err(TrainError::Interrupted),
                Err(Unusable::Damaged(reason)) => format!("is damaged: {reason}"),
                Err(Unusable::Otherwise(reason)) => format!("can't be gone on from: {reason}"),
            };
            faults.push(format!("the checkpoint after step {step} {fault}"));
            forget(&folder)?;
            if timing == Timing::Asked {
                own.by_ref().try_for_each(|(.., folder)| forget(&folder))?;
            }
        }
        let from = match (&resumed, &self.from) {
            (None, Some(folder)) => Some(self.given(folder, made_with)?),
            _ => None,
        };
        let goes = match (&resumed, &from) {
            (Some(resumed), _) => format!("goes on after step {}", resumed.state.course.steps),
            (None, Some(_)) => "begins with the one that is given".to_owned(),
            (None, None) => "starts over".to_owned(),
        };
        let warnings = faults.into_iter().map(|fault| format!("{fault}; training {goes}")).collect();
        Ok(Beginning { resumed: resumed.or(from), warnings })
    }

    /// A checkpoint of the folder.
    fn own(&self, folder: &Path, made_with: &BTreeMap<String, String>) -> Result<Resumed, Unusable> {
        self.check(folder)?;
        let mut found = Resumed::open(folder, made_with)?;
        let path = journal_of(folder);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let damaged = |reason: String| Unusable::Damaged(format!("{name}: {reason}"));
        let bytes = fs::read(&path).map_err(|e| damaged(e.to_string()))?;
        let kept: Kept = sealed::from_bytes(&bytes).map_err(|e| damaged(e.to_string()))?;
        found.journal = kept.journal;
        Ok(found)
    }

    /// Holds a checkpoint to its seal.
    fn check(&self, folder: &Path) -> Result<(), Unusable> {
        sealed::check_folder(folder, &self.cancel).map_err(|reason| match self.cancel.is_set() {
            true => Unusable::Interrupted,
            false => Unusable::Damaged(reason),
        })
    }

    /// The checkpoint that somebody named, which may be one from before there were seals.
    fn given(&self, folder: &Path, made_with: &BTreeMap<String, String>) -> Result<Resumed, TrainError> {
        let is_sealed = folder.join(sealed::SEAL).exists() || format_of(folder) != Some(UNSEALED);
        let is_there = folder.join(STATE).exists();
        let checked = if is_sealed && is_there { self.check(folder) } else { Ok(()) };
        checked.and_then(|()| Resumed::open(folder, made_with)).map_err(|fault| match fault {
            Unusable::Interrupted => TrainError::Interrupted,
            Unusable::Damaged(reason) => TrainError::Checkpoint {
                folder: folder.to_path_buf(),
                reason: format!("it is damaged: {reason}"),
            },
            Unusable::Otherwise(reason) => TrainError::Checkpoint { folder: folder.to_path_buf(), reason },
        })
    }

    /// Holds those that stay to their seals.
    ///
    /// # Errors
    /// One is damaged, or somebody asked to stop.
    pub fn verify_kept(&self) -> Result<(), TrainError> {
        for folder in self.kept() {
            self.check(&folder).map_err(|fault| match fault {
                Unusable::Interrupted => TrainError::Interrupted,
                Unusable::Damaged(reason) | Unusable::Otherwise(reason) => {
                    let reason = format!("it is damaged: {reason}; the next run makes it anew");
                    TrainError::Checkpoint { folder, reason }
                }
            })?;
        }
        Ok(())
    }

    /// Writes a checkpoint and lets go of those that are one too many.
    ///
    /// # Errors
    /// What the disk said.
    pub fn save(
        &self,
        state: &State,
        journal: Option<Journal>,
        made_with: &BTreeMap<String, String>,
        tensors: &[Numbers],
        timing: Timing,
    ) -> Result<(), TrainError> {
        let prefix = match timing {
            Timing::Asked => ASKED,
            Timing::Interim => INTERIM,
        };
        let (half, whole) =
            (self.folder.join(HALF), self.folder.join(format!("{prefix}{}", state.course.steps)));
        remove(&half)?;
        fs::create_dir_all(&half).map_err(at(&half))?;
        let views = tensors.iter().flat_map(|tensor| {
            let Numbers { name, shape, now, mean, square, best } = *tensor;
            let part = move |part: &str, numbers| (format!("{name}.{part}"), Plain { shape, numbers });
            [Some(part("now", now)), Some(part("mean", mean)), Some(part("square", square))]
                .into_iter()
                .chain([best.map(|best| part("best", best))])
                .flatten()
        });
        let path = half.join(TENSORS);
        safetensors::serialize_to_file(views, None, &path)
            .map_err(|e| TrainError::Checkpoint { folder: half.clone(), reason: e.to_string() })?;
        sync(&path)?;
        let path = half.join(STATE);
        let text = serde_json::to_vec_pretty(&Index { format: FORMAT, made_with, state })
            .map_err(|e| at(&path)(e.into()))?;
        fs::write(&path, text).map_err(at(&path))?;
        sync(&path)?;
        sealed::seal_folder(&half).map_err(at(&half))?;
        forget(&whole)?;
        let path = journal_of(&whole);
        sealed::to_bytes(&Kept { journal })
            .map_err(io::Error::from)
            .and_then(|bytes| files::write_atomically(&path, &bytes))
            .map_err(at(&path))?;
        fs::rename(&half, &whole).map_err(at(&whole))?;
        let mut named = self.named(prefix);
        let stay = match timing {
            Timing::Asked => self.keep.max(1),
            Timing::Interim => 1,
        };
        named.truncate(named.len().saturating_sub(stay));
        named.iter().try_for_each(|(_, old)| forget(old))
    }
}

/// Where it stands what had been written down when a checkpoint was made.
fn journal_of(folder: &Path) -> PathBuf {
    folder.with_extension("journal")
}

/// Removes a checkpoint.
fn forget(folder: &Path) -> Result<(), TrainError> {
    remove(folder)?;
    let path = journal_of(folder);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(&path)(e)),
        _ => Ok(()),
    }
}

/// The format that a checkpoint says it has.
fn format_of(folder: &Path) -> Option<u32> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let text = fs::read(folder.join(STATE)).ok()?;
    serde_json::from_slice::<Format>(&text).ok().map(|index| index.format)
}

impl Resumed {
    fn open(folder: &Path, made_with: &BTreeMap<String, String>) -> Result<Self, Unusable> {
        let damaged = |what: &str, reason: String| Unusable::Damaged(format!("{what}: {reason}"));
        let text = fs::read(folder.join(STATE)).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                Unusable::Otherwise(format!("no checkpoint is here (it has no {STATE})"))
            }
            _ => damaged(STATE, e.to_string()),
        })?;
        let index: Index<State, BTreeMap<String, String>> =
            serde_json::from_slice(&text).map_err(|e| damaged(STATE, e.to_string()))?;
        if ![FORMAT, UNSEALED].contains(&index.format) {
            let text = format!("its format is {}, this pipe writes {FORMAT}", index.format);
            return Err(Unusable::Otherwise(text));
        }
        let other = made_with.iter().find(|(key, value)| index.made_with.get(*key) != Some(value));
        if let Some((key, value)) = other {
            let before = index.made_with.get(key).map_or("nothing", String::as_str);
            let text = format!("it was made with {key} {before}, and this training has {value}");
            return Err(Unusable::Otherwise(text));
        }
        let tensors = File::open(folder.join(TENSORS)).map_err(|e| damaged(TENSORS, e.to_string()))?;
        let (start, metadata) = header(&tensors).map_err(|reason| damaged(TENSORS, reason))?;
        Ok(Self { folder: folder.to_path_buf(), state: index.state, journal: None, tensors, metadata, start })
    }

    /// The loop's counters.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What had been written down by then.
    pub fn journal(&self) -> Option<&Journal> {
        self.journal.as_ref()
    }

    /// The loop's counters.
    pub fn into_state(self) -> State {
        self.state
    }

    /// What was kept of a tensor of so many numbers.
    ///
    /// # Errors
    /// It is not there, or has another length.
    pub fn tensor(&self, name: &str, len: usize) -> Result<Found, TrainError> {
        let lacks = || TrainError::Checkpoint {
            folder: self.folder.clone(),
            reason: format!("{TENSORS} lacks `{name}`, or has it in another shape"),
        };
        Ok(Found {
            now: self.numbers(name, "now", len)?.ok_or_else(lacks)?,
            mean: self.numbers(name, "mean", len)?.ok_or_else(lacks)?,
            square: self.numbers(name, "square", len)?.ok_or_else(lacks)?,
            best: self.numbers(name, "best", len)?,
        })
    }

    /// Read, not mapped: a mapped file that shrinks meanwhile would end the process.
    fn numbers(&self, name: &str, part: &str, len: usize) -> Result<Option<Vec<f32>>, TrainError> {
        let Some(info) = self.metadata.info(&format!("{name}.{part}")) else { return Ok(None) };
        let (begin, end) = info.data_offsets;
        if info.dtype != Dtype::F32 || end - begin != 4 * len {
            return Ok(None);
        }
        let mut numbers = vec![0f32; len];
        let path = self.folder.join(TENSORS);
        self.tensors
            .read_exact_at(bytemuck::cast_slice_mut(&mut numbers), self.start + begin as u64)
            .map_err(at(&path))?;
        Ok(Some(numbers))
    }
}

/// Where the tensors of a safetensors file begin, and which there are.
fn header(mut file: &File) -> Result<(u64, Metadata), String> {
    let size = file.metadata().map_err(|e| e.to_string())?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| "it has no header".to_owned())?;
    let start = u64::from_le_bytes(length).checked_add(8).filter(|start| *start <= size);
    let start = start.ok_or("its header is cut off")?;
    let mut text = vec![0; (start - 8) as usize];
    file.read_exact(&mut text).map_err(|e| e.to_string())?;
    let metadata: Metadata = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    if start + metadata.data_len() as u64 != size {
        return Err(format!(
            "it has {size} bytes; its header tells of {}",
            start + metadata.data_len() as u64
        ));
    }
    Ok((start, metadata))
}

/// Numbers on their way to a file.
struct Plain<'a> {
    shape: &'a [usize],
    numbers: &'a [f32],
}

impl View for Plain<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(bytemuck::cast_slice(self.numbers))
    }
    fn data_len(&self) -> usize {
        size_of_val(self.numbers)
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> TrainError + '_ {
    move |error| TrainError::Disk { path: path.to_path_buf(), error }
}

fn sync(path: &Path) -> Result<(), TrainError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(at(path))
}

fn remove(folder: &Path) -> Result<(), TrainError> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(folder)(e)),
        _ => Ok(()),
    }
}
