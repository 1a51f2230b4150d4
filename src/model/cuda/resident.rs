//! The frozen model that each card holds, for the stages that follow each other there.
//!
//! Weights are loaded once a process; another model, or the same one in other numbers, takes their place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::super::{ModelError, Numerics, Precision, load};
use super::card::Card;
use super::driver::{Cuda, open};
use super::engine::{Engine, Training};

/// What a model is known by: its place, its files as they are, and what it computes in.
#[derive(PartialEq)]
struct Identity {
    path: PathBuf,
    files: Vec<(PathBuf, u64, Option<SystemTime>)>,
    numerics: Numerics,
}

impl Identity {
    fn of(path: &Path, numerics: Numerics) -> Self {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let about = |file: PathBuf| {
            let meta = std::fs::metadata(&file).ok()?;
            Some((file, meta.len(), meta.modified().ok()))
        };
        let inside = std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut files: Vec<_> = std::iter::once(path.clone()).chain(inside).filter_map(about).collect();
        files.sort();
        Self { path, files, numerics }
    }
}

type Held = BTreeMap<usize, (Identity, Arc<Engine<Cuda>>)>;

static HELD: Mutex<Held> = Mutex::new(BTreeMap::new());

/// The model in a folder or file on the card of this number, every weight frozen.
///
/// # Errors
/// A model that can't be loaded, or a card that fails or has no room.
pub fn resident(path: &Path, number: usize, numerics: Numerics) -> Result<Arc<Engine<Cuda>>, ModelError> {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let identity = Identity::of(path, numerics);
    if let Some((known, engine)) = held.get(&number)
        && *known == identity
    {
        engine.card().forget_peak();
        return Ok(engine.clone());
    }
    // Two models may not have room beside each other.
    held.remove(&number);
    let decoder = load(path, Precision::F32)?;
    let card = open(number, numerics)?;
    card.trim();
    let engine = Arc::new(Engine::new(card, decoder, Training::Frozen)?);
    held.insert(number, (identity, engine.clone()));
    Ok(engine)
}

/// Lets go of the model that the card of this number holds: all of its weights are going to be trained.
pub fn release(number: usize) {
    HELD.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
}
