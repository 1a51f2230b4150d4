//! Asking work to stop.
//!
//! Does not know who asks, nor what stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set once, read often: somebody asked to stop.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks everything that shares this to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
    /// Whether somebody asked.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
    /// Ends the work if somebody asked to stop; to be called often in long loops.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.is_set() { Err(Interrupted) } else { Ok(()) }
    }
}

/// Somebody asked to stop, and the work did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

impl Interrupted {
    /// Whether an error of the disk is this: what reads under a [`Cancel`] wraps it.
    pub fn is(error: &std::io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

impl From<Interrupted> for std::io::Error {
    fn from(interrupted: Interrupted) -> Self {
        // Not `ErrorKind::Interrupted`, after which readers try again.
        Self::other(interrupted)
    }
}
