//! Where a training stands, on disk: to go on after a kill as if nothing had been, or from a folder given.
//!
//! Knows tensors by name, the optimizer's moments and the loop's counters; does not know what is trained. A
//! checkpoint is a folder `step-N` with `state.json` and `tensors.safetensors`, written under another name and
//! renamed, so that a half one is never met.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};

use super::TrainError;
use super::recipe::Every;
use super::training::Course;

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
}

/// A checkpoint that fits.
pub struct Resumed {
    folder: PathBuf,
    state: State,
    map: Mmap,
}

#[derive(Serialize, Deserialize)]
struct Index<S, M> {
    format: u32,
    made_with: M,
    state: S,
}

const FORMAT: u32 = 1;
const STATE: &str = "state.json";
const TENSORS: &str = "tensors.safetensors";
const INTERIM: &str = "interim";

impl Checkpoints {
    /// Whether one is asked for after this step.
    pub fn wants(&self, step: usize, ends_epoch: bool) -> bool {
        self.every.is_some_and(|every| every.is_due(step, ends_epoch))
    }

    /// The folders of those that stay, oldest first.
    pub fn kept(&self) -> Vec<PathBuf> {
        let Ok(read) = fs::read_dir(&self.folder) else { return Vec::new() };
        let step = |path: &Path| -> Option<usize> {
            path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
        };
        let mut found: Vec<(usize, PathBuf)> =
            read.flatten().filter_map(|entry| Some((step(&entry.path())?, entry.path()))).collect();
        found.sort();
        found.into_iter().map(|(_, path)| path).collect()
    }

    /// The checkpoint to go on from, if there is one: the newest of the folder, else the one given.
    ///
    /// # Errors
    /// The one given is not there, is damaged, or was made otherwise.
    pub fn resume(&self, made_with: &BTreeMap<String, String>) -> Result<Option<Resumed>, TrainError> {
        let mut own: Vec<Resumed> = self
            .kept()
            .into_iter()
            .chain([self.folder.join(INTERIM)])
            .filter_map(|folder| Resumed::open(&folder, made_with).ok())
            .collect();
        own.sort_by_key(|resumed| resumed.state.course.steps);
        match (own.pop(), &self.from) {
            (Some(newest), _) => Ok(Some(newest)),
            (None, Some(folder)) => Resumed::open(folder, made_with).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Writes a checkpoint and lets go of those that are one too many.
    ///
    /// # Errors
    /// What the disk said.
    pub fn save(
        &self,
        state: &State,
        made_with: &BTreeMap<String, String>,
        tensors: &[Numbers],
        timing: Timing,
    ) -> Result<(), TrainError> {
        let name = match timing {
            Timing::Asked => format!("step-{}", state.course.steps),
            Timing::Interim => INTERIM.to_owned(),
        };
        let (half, whole) = (self.folder.join(format!("{name}.half")), self.folder.join(&name));
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
        if timing == Timing::Interim && whole.exists() {
            // A kill between the two renames leaves the older one under a name that `resume` does not know, and
            // the kept ones; at worst some steps are done again.
            let old = self.folder.join("interim.old");
            remove(&old)?;
            fs::rename(&whole, &old).map_err(at(&whole))?;
            fs::rename(&half, &whole).map_err(at(&whole))?;
            return remove(&old);
        }
        remove(&whole)?;
        fs::rename(&half, &whole).map_err(at(&whole))?;
        let kept = self.kept();
        for old in &kept[..kept.len().saturating_sub(self.keep.max(1))] {
            remove(old)?;
        }
        Ok(())
    }
}

impl Resumed {
    fn open(folder: &Path, made_with: &BTreeMap<String, String>) -> Result<Self, TrainError> {
        let wrong = |reason: String| TrainError::Checkpoint { folder: folder.to_path_buf(), reason };
        let path = folder.join(STATE);
        let text = fs::read(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => wrong(format!("no checkpoint is here (it has no {STATE})")),
            _ => wrong(format!("{STATE}: {e}")),
        })?;
        let index: Index<State, BTreeMap<String, String>> =
            serde_json::from_slice(&text).map_err(|e| wrong(format!("{STATE}: {e}")))?;
        if index.format != FORMAT {
            return Err(wrong(format!("its format is {}, this pipe writes {FORMAT}", index.format)));
        }
        let other = made_with.iter().find(|(key, value)| index.made_with.get(*key) != Some(value));
        if let Some((key, value)) = other {
            let before = index.made_with.get(key).map_or("nothing", String::as_str);
            return Err(wrong(format!("it was made with {key} {before}, and this training has {value}")));
        }
        let path = folder.join(TENSORS);
        let file = File::open(&path).map_err(|e| wrong(format!("{TENSORS}: {e}")))?;
        // SAFETY: only read, and copied before training goes on; nobody but the holder of the stage's lock writes
        // in its folder, and nothing is ever changed in place.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| wrong(format!("{TENSORS}: {e}")))?;
        SafeTensors::deserialize(&map).map_err(|e| wrong(format!("{TENSORS}: {e}")))?;
        Ok(Self { folder: folder.to_path_buf(), state: index.state, map })
    }

    /// The loop's counters.
    pub fn state(&self) -> &State {
        &self.state
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
        let wrong = |reason: String| TrainError::Checkpoint { folder: self.folder.clone(), reason };
        let tensors = SafeTensors::deserialize(&self.map).map_err(|e| wrong(format!("{TENSORS}: {e}")))?;
        let read = |part: &str| -> Option<Vec<f32>> {
            let tensor = tensors.tensor(&format!("{name}.{part}")).ok()?;
            let fits = tensor.dtype() == Dtype::F32 && tensor.data().len() == 4 * len;
            fits.then(|| tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
        };
        let lacks = || wrong(format!("{TENSORS} lacks `{name}`, or has it in another shape"));
        Ok(Found {
            now: read("now").ok_or_else(lacks)?,
            mean: read("mean").ok_or_else(lacks)?,
            square: read("square").ok_or_else(lacks)?,
            best: read("best"),
        })
    }
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
