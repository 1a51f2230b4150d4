//! Asking work to stop.
//!
//! Does not know who asks, nor what stops.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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

    /// The result of work that can't look at this itself, such as a reader of another crate. It is done on a thread of
    /// its own, and nobody waits for it any more once somebody asked to stop: it must write nothing and hold no lock.
    ///
    /// # Errors
    /// Somebody asked to stop.
    pub fn or_abandon<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Interrupted> {
        const LOOK: Duration = Duration::from_millis(50);
        self.check()?;
        let (sender, result) = channel();
        // Where no thread can be had, the work is still here and is done here.
        let work = Arc::new(Mutex::new(Some(work)));
        let take = |work: &Mutex<Option<_>>| work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = std::thread::Builder::new().name("aside".into()).spawn({
            let work = work.clone();
            move || {
                if let Some(work) = take(&work) {
                    // Nobody takes it if the work was abandoned.
                    let _ = sender.send(work());
                }
            }
        });
        let Ok(thread) = thread else {
            return take(&work).map(|work| work()).ok_or(Interrupted);
        };
        loop {
            match result.recv_timeout(LOOK) {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Timeout) => self.check()?,
                // It ended without a result: in a panic, which is passed on.
                Err(RecvTimeoutError::Disconnected) => match thread.join() {
                    Err(panic) => std::panic::resume_unwind(panic),
                    Ok(()) => return Err(Interrupted),
                },
            }
        }
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

/// Bytes that are read only until somebody asks to stop.
#[derive(Debug)]
pub struct Until<T> {
    /// Where they come from.
    pub inner: T,
    /// Who may ask.
    pub cancel: Cancel,
}

impl<R: std::io::Read> std::io::Read for Until<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.cancel.check()?;
        self.inner.read(into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn work_that_takes_too_long_is_left_alone() {
        let cancel = Cancel::default();
        assert_eq!(cancel.or_abandon(|| 7), Ok(7));
        let (start, asked) = (Instant::now(), cancel.clone());
        let (_hold, held) = channel::<()>();
        let waited = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            asked.cancel();
        });
        // It would end when this test does.
        assert_eq!(cancel.or_abandon(move || held.recv().is_ok()), Err(Interrupted));
        assert!(start.elapsed() < Duration::from_secs(5));
        waited.join().unwrap();
        assert_eq!(cancel.or_abandon(|| 7), Err(Interrupted));
    }

    #[test]
    fn a_panic_beside_is_a_panic_here() {
        let panic = std::panic::catch_unwind(|| Cancel::default().or_abandon(|| panic!("odd"))).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"odd"));
    }
}
