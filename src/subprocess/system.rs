//! What the system offers a supervisor. On Linux every descendant is found, whatever group or session it is in;
//! elsewhere the program's group is all that is known of them.

use std::io;
use std::path::PathBuf;
use std::process::Child;

pub use here::*;

#[cfg(target_os = "linux")]
mod here {
    use std::collections::{BTreeMap, BTreeSet};

    use nix::errno::Errno;
    use nix::sys::prctl;
    use nix::sys::signal::{Signal, kill};
    use nix::sys::socket::MsgFlags;
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
    use nix::unistd::{Pid, getpid};

    use super::super::Left;
    use super::*;

    /// Whether descendants outside the program's group are found.
    pub const FINDS_ALL: bool = true;
    /// What is received is not passed on to programs.
    pub const PRIVATE: MsgFlags = MsgFlags::MSG_CMSG_CLOEXEC;
    /// Bytes of a command line that are told.
    const COMMAND: usize = 4096;
    /// Looks at all processes until no new one appears, at most; what forks faster than that is killed on the run.
    const PASSES: usize = 200;

    /// This program, also if its file was replaced meanwhile.
    pub fn own_path() -> io::Result<PathBuf> {
        Ok("/proc/self/exe".into())
    }

    /// Makes this process the parent of every descendant whose own parent ends.
    pub fn adopt_orphans() -> io::Result<()> {
        prctl::set_name(c"pipe-supervise")?;
        Ok(prctl::set_child_subreaper(true)?)
    }

    /// Has this process killed when the thread ends that started it.
    pub fn die_with_parent() -> io::Result<()> {
        Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)
    }

    /// Waits until a child is over, and leaves its number taken; buries all other children that end before.
    pub fn wait_for(child: &mut Child) -> io::Result<()> {
        let own = Pid::from_raw(child.id().cast_signed());
        loop {
            match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                Ok(status) if status.pid() == Some(own) => return Ok(()),
                Ok(status) => {
                    if let Some(other) = status.pid() {
                        bury(Some(other));
                    }
                }
                // Ended by a real-time signal, for which there is no name.
                Err(Errno::EINVAL) => match waitid(Id::Pid(own), WaitPidFlag::WEXITED | GLANCE) {
                    Ok(WaitStatus::StillAlive) => bury(None),
                    _ => return Ok(()),
                },
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    const GLANCE: WaitPidFlag = WaitPidFlag::WNOWAIT.union(WaitPidFlag::WNOHANG);

    fn bury(child: Option<Pid>) {
        let _ = waitpid(child, Some(WaitPidFlag::WNOHANG));
    }

    /// Whether any child is left; buries those that are over. Without children there are no descendants: they would
    /// have been adopted.
    pub fn has_children() -> bool {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return true,
                Err(Errno::ECHILD) => return false,
                _ => {}
            }
        }
    }

    /// Stops all descendants, so that none starts another while they are looked at.
    pub fn freeze_descendants() {
        let mut frozen = BTreeSet::new();
        for _ in 0..PASSES {
            let before = frozen.len();
            for process in descendants() {
                if frozen.insert(process) {
                    let _ = kill(process, Signal::SIGSTOP);
                }
            }
            if frozen.len() == before {
                return;
            }
        }
    }

    /// Kills all descendants that there are now.
    pub fn kill_descendants() {
        for process in descendants() {
            let _ = kill(process, Signal::SIGKILL);
        }
    }

    /// The command lines of all descendants.
    pub fn describe_descendants() -> Vec<Left> {
        descendants().into_iter().map(|id| Left { id: id.as_raw(), command: command_line(id) }).collect()
    }

    fn command_line(process: Pid) -> String {
        let read = |name: &str| std::fs::read(format!("/proc/{process}/{name}")).unwrap_or_default();
        let mut line = read("cmdline");
        if line.is_empty() {
            line = read("comm");
        }
        line.truncate(COMMAND);
        let words = String::from_utf8_lossy(&line).replace('\0', " ");
        words.trim_end().to_owned()
    }

    /// All that are alive, parents before their children.
    fn descendants() -> Vec<Pid> {
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        let mut dead = BTreeSet::new();
        for item in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(id) = item.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let Ok(stat) = std::fs::read(item.path().join("stat")) else { continue };
            let Some((state, parent)) = state_and_parent(&stat) else { continue };
            if matches!(state, b'Z' | b'X' | b'x') {
                dead.insert(id);
            }
            children.entry(parent).or_default().push(id);
        }
        let mut found = vec![getpid().as_raw()];
        let mut next = 0;
        while let Some(parent) = found.get(next) {
            found.extend(children.remove(parent).unwrap_or_default());
            next += 1;
        }
        found.into_iter().skip(1).filter(|id| !dead.contains(id)).map(Pid::from_raw).collect()
    }

    /// From `1234 (any (name)) S 1 …`.
    fn state_and_parent(stat: &[u8]) -> Option<(u8, i32)> {
        let behind_name = stat.iter().rposition(|b| *b == b')')? + 1;
        let mut words = std::str::from_utf8(&stat[behind_name..]).ok()?.split_ascii_whitespace();
        Some((*words.next()?.as_bytes().first()?, words.next()?.parse().ok()?))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_name_with_brackets_does_not_hide_the_parent() {
            assert_eq!(state_and_parent(b"12 (a) Z 1 (b)) S 34 12 12 0"), Some((b'S', 34)));
            assert_eq!(state_and_parent(b"12 (a"), None);
            assert_eq!(state_and_parent(b""), None);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod here {
    use nix::sys::socket::MsgFlags;

    use super::super::Left;
    use super::*;

    /// Whether descendants outside the program's group are found.
    pub const FINDS_ALL: bool = false;
    /// Nothing more can be asked for here.
    pub const PRIVATE: MsgFlags = MsgFlags::empty();

    /// This program.
    pub fn own_path() -> io::Result<PathBuf> {
        std::env::current_exe()
    }

    /// There is no such thing here.
    pub fn adopt_orphans() -> io::Result<()> {
        Ok(())
    }

    /// There is no such thing here.
    pub fn die_with_parent() -> io::Result<()> {
        Ok(())
    }

    /// Waits until the child is over.
    pub fn wait_for(child: &mut Child) -> io::Result<()> {
        child.wait().map(|_| ())
    }

    /// None is known.
    pub fn has_children() -> bool {
        false
    }

    /// None is known.
    pub fn freeze_descendants() {}

    /// None is known.
    pub fn kill_descendants() {}

    /// None is known.
    pub fn describe_descendants() -> Vec<Left> {
        Vec::new()
    }
}
