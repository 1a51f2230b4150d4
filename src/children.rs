//! The programs under way, so that none of them outlives this process.
//!
//! Knows the process group of each from its start until it is let go; does not know what runs in a group, nor
//! a process that left it. Where this process is itself ended by SIGKILL, the groups stay.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

static GROUPS: Mutex<BTreeSet<Pid>> = Mutex::new(BTreeSet::new());

fn groups() -> MutexGuard<'static, BTreeSet<Pid>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A group that [`kill_all`] ends; let go when this is dropped.
pub struct Registered(Pid);

impl Registered {
    /// Sends the signal to all that is in the group.
    pub fn signal(&self, signal: Signal) {
        // The one failure there can be: nothing is left in it.
        let _ = killpg(self.0, signal);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        groups().remove(&self.0);
    }
}

/// Starts a program as the leader of a group of its own.
pub fn start(program: &mut Command) -> io::Result<(Child, Registered)> {
    // Held across the start: a program that `kill_all` does not see is not there yet.
    let mut groups = groups();
    let leader = program.process_group(0).spawn()?;
    let group = Pid::from_raw(leader.id().cast_signed());
    groups.insert(group);
    Ok((leader, Registered(group)))
}

/// Kills every group, for a process that ends now: from here on none can be started or let go, so whoever
/// tries waits for that end.
pub fn kill_all() {
    let groups = groups();
    for group in groups.iter() {
        let _ = killpg(*group, Signal::SIGKILL);
    }
    std::mem::forget(groups);
}
