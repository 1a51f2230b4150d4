//! What a supervisor does: starts the program, ends what it leaves behind, and keeps the lock until then.
//!
//! Is a process of its own, in a group of its own, so that the terminal's Ctrl-C does not reach it. Knows processes by
//! number; does not know what they do.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::socket::{ControlMessageOwned, recvmsg};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, getpid, getppid};

use super::{BECOME, Left, Order, Reply, Spec, read_line, system, write_line};

/// What still runs when the program ends may be about to end as well, as `tee` behind its output.
const GRACE: Duration = Duration::from_millis(100);
/// How often is looked whether a process is gone.
const TICK: Duration = Duration::from_millis(3);
/// What is not dead so long after SIGKILL is stuck.
const STUCK: Duration = Duration::from_secs(5);

/// Carries out what comes over the standard input.
///
/// # Errors
/// There is nobody there, or the system does not let it watch over others.
pub fn supervise() -> io::Result<()> {
    // Who asks all processes of a terminal or of this name to end, asks the other one, which says what to do.
    let asked = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
    asked.into_iter().collect::<SigSet>().thread_block()?;
    system::adopt_orphans()?;
    let connection = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // Never closed: the end of this process lets go of the lock.
    let _lock: Vec<RawFd> = receive(&connection)?;
    let mut orders = BufReader::new(connection.try_clone()?);
    let Some(spec) = read_line::<Spec>(&mut orders)? else { return Ok(()) };
    let program = match launch(&spec) {
        Ok(program) => program,
        Err(error) => return write_line(&connection, &Reply::NotStarted(error.raw_os_error().unwrap_or(0))),
    };
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    std::env::set_current_dir("/")?;
    let watch = Watch::new(&program);
    let listener = watch.clone();
    thread::Builder::new().spawn(move || listener.listen(orders))?;
    // Whoever waits for this may be gone: the programs end then, and the rest is as ever.
    let _ = write_line(&connection, &Reply::Started);
    let status = watch.wait(program)?;
    watch.clear(|left, stuck| {
        let _ = write_line(&connection, &Reply::Ended { status: status.into_raw(), left, stuck });
    });
    Ok(())
}

/// The descriptors that come before everything else.
fn receive(connection: &UnixStream) -> io::Result<Vec<RawFd>> {
    let mut first = [0];
    let mut parts = [IoSliceMut::new(&mut first)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = recvmsg::<()>(connection.as_raw_fd(), &mut parts, Some(&mut space), system::PRIVATE)?;
    let mut received = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part {
            received.extend(descriptors);
        }
    }
    Ok(received)
}

/// Starts the program in a group of its own.
fn launch(spec: &Spec) -> io::Result<Child> {
    let (mut trouble, theirs) = io::pipe()?;
    let mut process = Command::new(system::own_path()?);
    process.arg0("pipe").arg(BECOME).arg(getpid().to_string()).arg(&spec.program).args(&spec.arguments);
    process.envs(spec.variables.iter().map(|(name, value)| (name, value)));
    process.current_dir(&spec.folder).process_group(0).stdin(theirs);
    let mut child = process.spawn()?;
    drop(process);
    // Closed without a word once the program is there.
    let mut number = Vec::new();
    trouble.read_to_end(&mut number)?;
    match number.try_into() {
        Ok(number) => {
            child.wait()?;
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(number)))
        }
        Err(_) => Ok(child),
    }
}

/// Becomes the program: the arguments are the supervisor's number, the program, and its arguments. Says over the
/// standard input why it can't.
///
/// # Errors
/// Always: what does not fail does not come back.
pub fn become_program(mut arguments: impl Iterator<Item = OsString>) -> io::Result<()> {
    system::die_with_parent()?;
    let supervisor = arguments.next();
    if supervisor != Some(getppid().to_string().into()) {
        return Err(io::Error::other("its supervisor is gone"));
    }
    let trouble = io::stdin().as_fd().try_clone_to_owned()?;
    let program = arguments.next().unwrap_or_default();
    let error = Command::new(program).args(arguments).stdin(Stdio::null()).exec();
    File::from(trouble).write_all(&error.raw_os_error().unwrap_or(0).to_ne_bytes())?;
    Err(error)
}

/// The program and all it started.
#[derive(Clone)]
struct Watch {
    /// Its group, until its number may mean another.
    group: Arc<Mutex<Option<Pid>>>,
    /// Whether all is to be dead at once.
    over: Arc<AtomicBool>,
}

impl Watch {
    fn new(program: &Child) -> Self {
        let group = Pid::from_raw(program.id().cast_signed());
        Self { group: Arc::new(Mutex::new(Some(group))), over: Arc::default() }
    }

    /// Sends the signal to the program's group, while there is one.
    fn signal(&self, signal: Signal) {
        let group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = *group {
            // The one failure there can be: nothing is left in it.
            let _ = killpg(group, signal);
        }
    }

    /// Does as it is told until nobody is there to tell it; then sees to it that all is dead.
    fn listen(&self, mut orders: BufReader<UnixStream>) {
        while let Ok(Some(Order::Terminate)) = read_line(&mut orders) {
            self.signal(Signal::SIGTERM);
        }
        self.over.store(true, Ordering::SeqCst);
        loop {
            self.signal(Signal::SIGKILL);
            system::kill_descendants();
            thread::sleep(TICK * 10);
        }
    }

    /// Waits until the program is over.
    fn wait(&self, mut program: Child) -> io::Result<std::process::ExitStatus> {
        system::wait_for(&mut program)?;
        let mut group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        // What is left of its group can't do anything more where there is no other way to find it.
        if let Some(group) = group.take().filter(|_| !system::FINDS_ALL) {
            let _ = killpg(group, Signal::SIGKILL);
        }
        program.wait()
    }

    /// Ends what the program left behind. `tell` gets it, and what does not die, once; this comes back when nothing
    /// is left.
    fn clear(&self, tell: impl FnOnce(Vec<Left>, Vec<Left>)) {
        let began = Instant::now();
        while system::has_children() && began.elapsed() < GRACE && !self.over.load(Ordering::SeqCst) {
            thread::sleep(TICK);
        }
        if !system::has_children() {
            return tell(Vec::new(), Vec::new());
        }
        system::freeze_descendants();
        let left = system::describe_descendants();
        let mut tell = Some(|stuck| tell(left, stuck));
        let began = Instant::now();
        while system::has_children() {
            system::kill_descendants();
            if began.elapsed() < STUCK {
                thread::sleep(TICK);
                continue;
            }
            if let Some(tell) = tell.take() {
                tell(system::describe_descendants());
            }
            thread::sleep(TICK * 30);
        }
        if let Some(tell) = tell.take() {
            tell(Vec::new());
        }
    }
}
