//! Puts what is trained where others find it as training goes on: into a folder, in place of what it had, or on the
//! Hub, from a thread of its own.
//!
//! Knows files; does not know what they hold.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;

use super::uploads;
use crate::hub::push::{self, Destination, Pushed, Visibility, Way};
use crate::hub::repo::MAIN;
use crate::hub::{HubError, Network, RepoName, Settings};
use crate::secrets::Secrets;
use crate::stage::{Cancel, Context, StageError};

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This folder.
    Folder(PathBuf),
    /// This repository; one that has to be created is private, as what is in it is not done.
    Hub(RepoName),
}

/// Leaves what is trained in a folder.
pub type Leave<'a, L> = Box<dyn FnMut(&mut L, &Path) -> Result<(), StageError> + 'a>;

/// Publishes one learner after the other.
pub struct Publisher<'a, L> {
    write: Leave<'a, L>,
    to: To,
}

enum To {
    Folder(PathBuf),
    Hub(Background),
}

impl<'a, L> Publisher<'a, L> {
    /// Refuses what could only fail after the first epoch: a push without a token, or offline.
    pub fn new(context: &Context<'_>, target: Target, write: Leave<'a, L>) -> Result<Self, StageError> {
        let to = match target {
            Target::Folder(folder) => To::Folder(folder),
            Target::Hub(repo) => To::Hub(Background::start(context, repo)?),
        };
        Ok(Self { write, to })
    }

    /// Whether it is at work behind the training's back.
    pub fn is_in_background(&self) -> bool {
        matches!(self.to, To::Hub(_))
    }

    /// Publishes what the learner is at `step`; `what` says it in words. The Hub has it later, or never if something
    /// newer comes before its turn.
    pub fn publish(
        &mut self,
        context: &Context<'_>,
        learner: &mut L,
        what: String,
        step: usize,
    ) -> Result<(), StageError> {
        match &mut self.to {
            To::Folder(folder) => publish(folder, |folder| (self.write)(learner, folder)),
            To::Hub(background) => {
                background.listen(context);
                let folder = context.unfinished;
                let folder = tempfile::Builder::new()
                    .prefix("push-")
                    .tempdir_in(folder)
                    .map_err(|e| StageError::io(folder, &e))?;
                (self.write)(learner, folder.path())?;
                background.hand_over(context, Snapshot { folder, what, step });
                Ok(())
            }
        }
    }

    /// Publishes what the learner came to at `step` if that has not been done, and waits until it is there.
    ///
    /// # Errors
    /// The last push failed, or somebody asked to stop.
    pub fn finish(mut self, context: &Context<'_>, learner: &mut L, step: usize) -> Result<(), StageError> {
        let To::Hub(background) = &self.to else { return Ok(()) };
        if background.handed != Some(step) {
            self.publish(context, learner, format!("step {step}"), step)?;
        }
        match self.to {
            To::Hub(background) => background.finish(context),
            To::Folder(_) => Ok(()),
        }
    }
}

/// What is trained as it was once, on its way to the Hub; its folder goes with it.
struct Snapshot {
    folder: TempDir,
    what: String,
    step: usize,
}

/// What the pushing thread says.
enum News {
    /// So many bytes of so many have gone.
    Bytes { what: String, done: u64, total: u64 },
    /// A line worth knowing.
    Said(String),
    /// A push is over.
    Over { what: String, outcome: Result<Pushed, HubError> },
}

/// What waits to be pushed.
#[derive(Default)]
struct Queue {
    /// Only the newest counts.
    next: Option<Snapshot>,
    /// Nothing more comes.
    closed: bool,
}

/// A thread that pushes what it is handed over, the newest first.
struct Background {
    repo: RepoName,
    queue: Arc<(Mutex<Queue>, Condvar)>,
    news: Receiver<News>,
    /// Ends the push that is under way; set when nobody waits for it any more.
    stop: Cancel,
    thread: Option<JoinHandle<()>>,
    /// The step of what was handed over last.
    handed: Option<usize>,
    /// Why the last push that is over failed.
    failed: Option<(String, HubError)>,
}

/// How often the end of training looks for news.
const GLANCE: Duration = Duration::from_millis(200);

impl Background {
    fn start(context: &Context<'_>, repo: RepoName) -> Result<Self, StageError> {
        let settings = context.hub.settings().clone();
        if settings.network == Network::Offline {
            return Err(HubError::OfflinePush { repo }.into());
        }
        if settings.token.is_none() {
            return Err(HubError::NoToken { repo }.into());
        }
        let (sender, news) = channel();
        let pusher = Pusher {
            settings,
            repo: repo.clone(),
            pipeline: context.about.pipeline.clone(),
            secrets: context.secrets.clone(),
            stops: [Cancel::default(), context.cancel.clone()],
            news: sender,
        };
        let (queue, stop) = (Arc::<(Mutex<Queue>, Condvar)>::default(), pusher.stops[0].clone());
        let shared = queue.clone();
        let thread = std::thread::Builder::new()
            .name("push".into())
            .spawn(move || pusher.work(&shared))
            .map_err(|error| StageError::failed(format!("no thread for pushing: {error}")))?;
        Ok(Self { repo, queue, news, stop, thread: Some(thread), handed: None, failed: None })
    }

    fn hand_over(&mut self, context: &Context<'_>, snapshot: Snapshot) {
        self.handed = Some(snapshot.step);
        let older = {
            let mut queue = self.queue.0.lock().unwrap_or_else(PoisonError::into_inner);
            queue.next.replace(snapshot)
        };
        self.queue.1.notify_all();
        if let Some(older) = older {
            context.note(format!("{} is not pushed to {}: newer is there", older.what, self.repo));
        }
    }

    /// Passes on what the thread said since the last time.
    fn listen(&mut self, context: &Context<'_>) {
        while let Ok(news) = self.news.try_recv() {
            self.hear(context, news);
        }
    }

    fn hear(&mut self, context: &Context<'_>, news: News) {
        match news {
            // While training goes on, the progress line is its own.
            News::Bytes { .. } => {}
            News::Said(text) => context.note(text),
            News::Over { what, outcome: Ok(pushed) } => {
                self.failed = None;
                context.note(format!("{what} is at {}", pushed.url));
            }
            News::Over { what, outcome: Err(error) } => {
                context.warn(format!("{what} was not pushed: {error}"));
                self.failed = Some((what, error));
            }
        }
    }

    /// Waits for the last push.
    fn finish(mut self, context: &Context<'_>) -> Result<(), StageError> {
        self.queue.0.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.queue.1.notify_all();
        loop {
            match self.news.recv_timeout(GLANCE) {
                Ok(News::Bytes { what, done, total }) => {
                    context.progress(done, total, "bytes", format!("pushing {what} to {}", self.repo));
                }
                Ok(news) => self.hear(context, news),
                Err(RecvTimeoutError::Timeout) => context.go_on()?,
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        context.go_on()?;
        match self.failed.take() {
            None => Ok(()),
            Some((what, error)) => Err(StageError::with_help(
                format!("training is done, and its last push failed ({what}): {error}"),
                format!(
                    "{}. What was trained is kept: the next run only pushes, or take `push_every` away",
                    error.help().unwrap_or_else(|| "run again".into())
                ),
            )),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.cancel();
        {
            let mut queue = self.queue.0.lock().unwrap_or_else(PoisonError::into_inner);
            (queue.next, queue.closed) = (None, true);
        }
        self.queue.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // It had nothing to say but what went through the channel.
            let _ = thread.join();
        }
    }
}

/// What the pushing thread has.
struct Pusher {
    settings: Settings,
    repo: RepoName,
    pipeline: String,
    secrets: Secrets,
    stops: [Cancel; 2],
    news: Sender<News>,
}

impl Pusher {
    fn work(&self, queue: &(Mutex<Queue>, Condvar)) {
        loop {
            let snapshot = {
                let queue_of = queue.0.lock().unwrap_or_else(PoisonError::into_inner);
                let idle = |queue: &mut Queue| queue.next.is_none() && !queue.closed;
                let mut held = queue.1.wait_while(queue_of, idle).unwrap_or_else(PoisonError::into_inner);
                held.next.take()
            };
            let Some(snapshot) = snapshot else { return };
            let outcome = self.push(&snapshot);
            // Nobody listens only if nobody waits.
            let _ = self.news.send(News::Over { what: snapshot.what, outcome });
        }
    }

    fn push(&self, snapshot: &Snapshot) -> Result<Pushed, HubError> {
        let uploads = uploads::trained(snapshot.folder.path(), &self.secrets)?;
        let to = Destination {
            repo: self.repo.clone(),
            branch: MAIN.into(),
            visibility: Visibility::PrivateIfNew,
            way: Way::Commit,
            message: self.secrets.hide(&format!("{}: {}", self.pipeline, snapshot.what)),
        };
        let tell = |news| {
            let _ = self.news.send(news);
        };
        let watch = push::Watch {
            bytes: &|done, total| tell(News::Bytes { what: snapshot.what.clone(), done, total }),
            say: &|text| tell(News::Said(text)),
            stop: &|| self.stops.iter().any(Cancel::is_set),
        };
        push::push(&self.settings, &uploads, &to, &watch)
    }
}

/// Lets `write` fill a new folder beside `folder`, then moves its files over: a reader finds each file whole, the
/// old one or the new one.
pub fn publish(folder: &Path, write: impl FnOnce(&Path) -> Result<(), StageError>) -> Result<(), StageError> {
    let at = |path: &Path| {
        let path = path.to_path_buf();
        move |error: std::io::Error| StageError::io(&path, &error)
    };
    std::fs::create_dir_all(folder).map_err(at(folder))?;
    let new = tempfile::Builder::new().prefix(".new-").tempdir_in(folder).map_err(at(folder))?;
    write(new.path())?;
    for entry in std::fs::read_dir(new.path()).map_err(at(new.path()))? {
        let entry = entry.map_err(at(new.path()))?;
        let to = folder.join(entry.file_name());
        std::fs::rename(entry.path(), &to).map_err(at(&to))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("pushed");
        let write = |text: &'static str| {
            move |folder: &Path| {
                std::fs::write(folder.join("a"), text).map_err(|e| StageError::io(folder, &e))
            }
        };
        publish(&folder, write("one")).unwrap();
        std::fs::write(folder.join("b"), "mine").unwrap();
        publish(&folder, write("two")).unwrap();
        publish(&folder, |_| Err(StageError::failed("no"))).unwrap_err();
        let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(std::fs::read_to_string(folder.join("a")).unwrap(), "two");
    }
}
