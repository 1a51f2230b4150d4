//! The programs under way, each under a supervisor, so that none of them and nothing they start outlives this process.
//!
//! A supervisor is this program started again. It holds the lock on the result until all that it watches is dead,
//! also if this process is ended by SIGKILL meanwhile: the connection between the two breaks then. Knows nothing of
//! stages, and not what the programs do.

mod supervisor;
mod system;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitCode, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::{Deserialize, Serialize};

/// The first argument of a supervisor.
const SUPERVISE: &str = "__supervise";
/// The first argument of the process that becomes the program.
const BECOME: &str = "__become";
/// How long the end of this process waits for all programs to be gone.
const FAREWELL: Duration = Duration::from_secs(1);

/// A program to be started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Its path, or its name to be looked for in `PATH`.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Environment variables to set.
    pub variables: Vec<(OsString, OsString)>,
    /// Where it runs.
    pub folder: PathBuf,
}

/// What this process asks of a supervisor; that it wants all dead at once it says by closing the connection.
#[derive(Serialize, Deserialize)]
enum Order {
    /// Send SIGTERM to the program's group.
    Terminate,
}

/// What a supervisor says.
#[derive(Serialize, Deserialize)]
enum Reply {
    /// The program runs.
    Started,
    /// It does not, because of this error of the system.
    NotStarted(i32),
    /// The program is over, and what it left behind as well, but for what is stuck.
    Ended { status: i32, left: Vec<Left>, stuck: Vec<Left> },
}

/// A process that was still there when the program that had started it was over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Left {
    /// Its number.
    pub id: i32,
    /// Its command line, which may hold secrets.
    pub command: String,
}

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its exit code or signal.
    pub status: ExitStatus,
    /// What it left behind, and what was killed.
    pub left: Vec<Left>,
    /// What could not be killed.
    pub stuck: Vec<Left>,
}

static CONNECTIONS: Mutex<BTreeMap<u32, UnixStream>> = Mutex::new(BTreeMap::new());

fn connections() -> MutexGuard<'static, BTreeMap<u32, UnixStream>> {
    CONNECTIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program under way; it and all it started are killed when this is dropped.
pub struct Program {
    supervisor: u32,
    connection: UnixStream,
}

/// Gives how a program ended.
pub struct Ending {
    replies: BufReader<UnixStream>,
    supervisor: Child,
}

/// What a program writes.
pub struct Outputs {
    /// On its standard output.
    pub out: ChildStdout,
    /// On its standard error.
    pub err: ChildStderr,
}

/// Starts a program. `lock` is held until all that it started is dead.
///
/// # Errors
/// What the system says: there is no such program, or no supervisor for it.
pub fn start(spec: &Spec, lock: Option<&File>) -> io::Result<(Program, Outputs, Ending)> {
    let (connection, theirs) = UnixStream::pair()?;
    let mut ours = Command::new(system::own_path()?);
    ours.arg0("pipe").arg(SUPERVISE).process_group(0);
    ours.stdin(OwnedFd::from(theirs)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (program, mut supervisor) = {
        // Held across the start: a program that `kill_all` does not see is not there yet.
        let mut connections = connections();
        let registered = connection.try_clone()?;
        let supervisor = ours.spawn()?;
        connections.insert(supervisor.id(), registered);
        (Program { supervisor: supervisor.id(), connection }, supervisor)
    };
    // It has a copy of the supervisor's end.
    drop(ours);
    let none = || io::Error::other("its supervisor has no outputs");
    let out = supervisor.stdout.take().ok_or_else(none)?;
    let err = supervisor.stderr.take().ok_or_else(none)?;
    let mut ending = Ending { replies: BufReader::new(program.connection.try_clone()?), supervisor };
    let error = match program.introduce(spec, lock).and_then(|()| ending.reply()) {
        Ok(Some(Reply::Started)) => return Ok((program, Outputs { out, err }, ending)),
        Ok(Some(Reply::NotStarted(number))) => io::Error::from_raw_os_error(number),
        Ok(Some(Reply::Ended { .. }) | None) => io::Error::other("its supervisor did not start it"),
        Err(error) => error,
    };
    drop(program);
    let _ = ending.supervisor.wait();
    Err(error)
}

impl Program {
    /// Tells the supervisor what to start, and hands it the lock.
    fn introduce(&self, spec: &Spec, lock: Option<&File>) -> io::Result<()> {
        let lock: Vec<_> = lock.iter().map(|lock| lock.as_raw_fd()).collect();
        let message = [ControlMessage::ScmRights(&lock)];
        let message = if lock.is_empty() { &[] } else { &message[..] };
        let first = [IoSlice::new(b"\n")];
        sendmsg::<()>(self.connection.as_raw_fd(), &first, message, MsgFlags::empty(), None)?;
        write_line(&self.connection, spec)
    }

    /// Asks the program to end: SIGTERM to its group.
    pub fn terminate(&self) {
        // The one failure there can be: the supervisor is gone, and so is the program.
        let _ = write_line(&self.connection, &Order::Terminate);
    }

    /// Kills the program and all it started.
    pub fn kill(&self) {
        let _ = self.connection.shutdown(Shutdown::Write);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        connections().remove(&self.supervisor);
    }
}

impl Ending {
    fn reply(&mut self) -> io::Result<Option<Reply>> {
        read_line(&mut self.replies)
    }

    /// Waits until the program is over.
    ///
    /// # Errors
    /// The supervisor is gone before that.
    pub fn wait(mut self) -> io::Result<Ended> {
        match self.reply() {
            Ok(Some(Reply::Ended { status, left, stuck })) => {
                // One that still watches what is stuck is left alone.
                if stuck.is_empty() {
                    self.supervisor.wait()?;
                }
                Ok(Ended { status: ExitStatus::from_raw(status), left, stuck })
            }
            Ok(_) | Err(_) => {
                let _ = self.supervisor.wait();
                Err(io::Error::other("the process that watched over it was killed"))
            }
        }
    }
}

/// Kills every program, for a process that ends now, and waits for a moment until they are gone: from here on none
/// can be started or let go, so whoever tries waits for that end.
pub fn kill_all() {
    let connections = connections();
    for connection in connections.values() {
        let _ = connection.shutdown(Shutdown::Write);
    }
    let began = Instant::now();
    for mut connection in connections.values() {
        loop {
            let left = FAREWELL.saturating_sub(began.elapsed());
            // A supervisor that is gone has closed its end.
            let waits = !left.is_zero() && connection.set_read_timeout(Some(left)).is_ok();
            if !waits || !matches!(connection.read(&mut [0; 1024]), Ok(1..)) {
                break;
            }
        }
    }
    std::mem::forget(connections);
}

/// Does what this process was started for if it is a supervisor, or is to become a program; none if it is neither.
pub fn called(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let name = arguments.nth(1)?;
    let outcome = if name == SUPERVISE {
        supervisor::supervise()
    } else if name == BECOME {
        supervisor::become_program(arguments)
    } else {
        return None;
    };
    Some(outcome.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
}

fn write_line(mut to: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)
}

fn read_line<T: serde::de::DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    from.read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}
