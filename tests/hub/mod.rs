//! A Hugging Face Hub for tests: models and datasets in memory, behind the Hub's HTTP interface as `hf-hub` and Python's
//! `huggingface_hub` use it, with faults where a test wants them (`faults`). `tests/hub_truth.py` holds it against Python.
//!
//! It listens at two addresses, like the Hub: the endpoint, and a storage host that the endpoint redirects to for the
//! contents of large files and that takes them when they are pushed. A user's token has no business there.
//!
//! It keeps no account of users (whoever has the token may do everything), and no content beyond its own life.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod cas;
pub mod faults;
pub mod http;
pub mod reading;
pub mod repos;
pub mod writing;

use std::io::BufReader;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

use faults::{Fault, Faults, What};
use http::{Delivery, Reply, Request};
use repos::{All, Kind, Repo, Repos};

/// Whose token it is, whatever it is.
pub const USER: &str = "tester";

/// An answer, or a refusal.
pub type Answer = Result<Reply, Reply>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xet {
    /// Large files come as one PUT.
    Off,
    /// They come as xet's chunks if the client can do that.
    Push,
    /// What came as chunks is offered as chunks too.
    PushAndPull,
}

#[derive(Clone, Debug)]
pub struct Options {
    /// The only token that counts; without it any does.
    pub token: Option<String>,
    /// Entries of a listing that come at once.
    pub page_size: usize,
    pub xet: Xet,
    /// Of the endpoint; 0 for a free one.
    pub port: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self { token: None, page_size: 1000, xet: Xet::Push, port: 0 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    Endpoint,
    Storage,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub host: Host,
    pub method: String,
    /// Percent-encoded, with the query.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Bytes of the body.
    pub body: usize,
}

impl Recorded {
    /// Whether this text is anywhere in the address or the headers.
    pub fn mentions(&self, text: &str) -> bool {
        self.target.contains(text) || self.headers.iter().any(|(_, value)| value.contains(text))
    }

    pub fn to_json(&self) -> Value {
        json!({
            "host": match self.host { Host::Endpoint => "endpoint", Host::Storage => "storage" },
            "method": self.method, "target": self.target, "headers": self.headers, "body": self.body,
        })
    }
}

/// What both hosts share.
pub struct Hub {
    pub endpoint: String,
    pub storage: String,
    pub options: Options,
    pub repos: Mutex<Repos>,
    pub cas: Mutex<cas::Cas>,
    faults: Mutex<Faults>,
    requests: Mutex<Vec<Recorded>>,
    /// Told of each request as it comes.
    log: Box<dyn Fn(&Recorded) + Send + Sync>,
    stopped: AtomicBool,
    dead: AtomicBool,
}

/// A running Hub; it ends when this is dropped.
pub struct Server {
    pub endpoint: String,
    /// The address of the storage host.
    pub storage: String,
    hub: Arc<Hub>,
}

impl Server {
    pub fn start(options: Options) -> Self {
        Self::start_logging(options, Box::new(|_| {}))
    }

    pub fn start_logging(options: Options, log: Box<dyn Fn(&Recorded) + Send + Sync>) -> Self {
        let endpoint = TcpListener::bind(("127.0.0.1", options.port)).expect("the port is free");
        let storage = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let hub = Arc::new(Hub {
            endpoint: format!("http://{}", endpoint.local_addr().unwrap()),
            storage: format!("http://{}", storage.local_addr().unwrap()),
            options,
            repos: Mutex::default(),
            cas: Mutex::default(),
            faults: Mutex::default(),
            requests: Mutex::default(),
            log,
            stopped: AtomicBool::new(false),
            dead: AtomicBool::new(false),
        });
        for (listener, host) in [(endpoint, Host::Endpoint), (storage, Host::Storage)] {
            let hub = hub.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    if hub.stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    let hub = hub.clone();
                    std::thread::spawn(move || hub.serve(stream, host));
                }
            });
        }
        Self { endpoint: hub.endpoint.clone(), storage: hub.storage.clone(), hub }
    }

    /// Adds files to a branch in one commit and says its id; the repository and the branch are made where they are not.
    pub fn add(&self, kind: Kind, id: &str, branch: &str, files: &[(&str, &[u8])]) -> String {
        let files: Vec<_> = files.iter().map(|(path, bytes)| (path.to_string(), bytes.to_vec())).collect();
        self.hub.repos().add(kind, id, branch, &files)
    }

    /// The same with all files of a folder.
    pub fn add_folder(&self, kind: Kind, id: &str, branch: &str, folder: &Path) -> String {
        let mut files = Vec::new();
        repos::read_files(folder, "", &mut files);
        self.hub.repos().add(kind, id, branch, &files)
    }

    /// Everything in `models/OWNER/NAME/BRANCH/…` and `datasets/…`.
    pub fn load(&self, root: &Path) {
        self.hub.repos().load(root);
    }

    /// What is there now, to look at and to change: `private`, `gated`, branches, commits.
    pub fn with_repo<T>(&self, kind: Kind, id: &str, look: impl FnOnce(&mut Repo) -> T) -> T {
        let mut repos = self.hub.repos();
        look(repos.all.get_mut(&(kind, id.into())).expect("the repository is there"))
    }

    pub fn has(&self, kind: Kind, id: &str) -> bool {
        self.hub.repos().all.contains_key(&(kind, id.into()))
    }

    /// The content of a file, if it is there.
    pub fn read(&self, kind: Kind, id: &str, revision: &str, path: &str) -> Option<Vec<u8>> {
        let repos = self.hub.repos();
        let file = repos.all.get(&(kind, id.into()))?.at(revision)?.files.get(path)?;
        Some(file.bytes.to_vec())
    }

    /// The id of the commit that a branch is at.
    pub fn head(&self, kind: Kind, id: &str, branch: &str) -> String {
        self.with_repo(kind, id, |repo| repo.at(branch).expect("the branch is there").id.clone())
    }

    /// From now on; see `faults` for the words.
    pub fn fault(&self, fault: impl TryInto<Fault, Error: std::fmt::Display>) -> &Self {
        let fault = fault.try_into().unwrap_or_else(|error| panic!("{error}"));
        self.hub.faults.lock().unwrap().add(fault);
        self
    }

    /// No faults any more, and alive again after `die`.
    pub fn mend(&self) {
        self.hub.faults.lock().unwrap().clear();
        self.hub.dead.store(false, Ordering::SeqCst);
    }

    /// All requests so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Recorded> {
        self.hub.requests.lock().unwrap().clone()
    }

    pub fn forget_requests(&self) {
        self.hub.requests.lock().unwrap().clear();
    }

    /// How many requests so far have this method and this text in their address.
    pub fn count(&self, method: &str, text: &str) -> usize {
        self.requests().iter().filter(|r| r.method == method && r.target.contains(text)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.hub.stopped.store(true, Ordering::SeqCst);
        for address in [&self.endpoint, &self.storage] {
            // Wakes the thread that waits for connections, so that it sees the end and closes the door.
            let _ = TcpStream::connect(address.strip_prefix("http://").unwrap());
        }
    }
}

impl Hub {
    pub fn repos(&self) -> MutexGuard<'_, Repos> {
        self.repos.lock().unwrap()
    }

    /// One connection, request after request.
    fn serve(&self, stream: TcpStream, host: Host) {
        let _ = stream.set_nodelay(true);
        let Ok(mut out) = stream.try_clone() else { return };
        let mut stream = BufReader::new(stream);
        while let Ok(Some(request)) = Request::read(&mut stream) {
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            let recorded = Recorded {
                host,
                method: request.method.clone(),
                target: request.target.clone(),
                headers: request.headers.clone(),
                body: request.body.len(),
            };
            (self.log)(&recorded);
            self.requests.lock().unwrap().push(recorded);
            let method = request.method.clone();
            let (reply, delivery) = self.reply(request, host);
            if !matches!(http::send(&mut out, &method, &reply, &delivery, &self.stopped), Ok(true)) {
                let _ = out.shutdown(std::net::Shutdown::Both);
                return;
            }
        }
    }

    /// What to say to a request and how, faults included.
    fn reply(&self, mut request: Request, host: Host) -> (Reply, Delivery) {
        if self.dead.load(Ordering::SeqCst) {
            return (Reply::new(503), Delivery::Drop);
        }
        let before = self.faults.lock().unwrap().before(&request, host == Host::Storage);
        match before {
            Some(What::Status(status, wait)) => {
                let reply = refuse(status, "", "the server was told to say so");
                let reply = wait.into_iter().fold(reply, |reply, seconds| reply.with("Retry-After", seconds));
                return (reply, Delivery::Whole);
            }
            Some(What::Drop) => return (Reply::new(503), Delivery::Drop),
            Some(What::Silent) => return (Reply::new(503), Delivery::Silence),
            Some(What::Loop) => return (Reply::new(302).with("Location", &request.target), Delivery::Whole),
            Some(What::Elsewhere) => {
                let place = format!("{}{}", self.storage, request.target);
                return (Reply::new(302).with("Location", place), Delivery::Whole);
            }
            Some(What::Die) => {
                self.dead.store(true, Ordering::SeqCst);
                return (Reply::new(503), Delivery::Drop);
            }
            Some(What::NoRange) => request.headers.retain(|(name, _)| name != "range"),
            _ => {}
        }
        let mut reply = self.answer(&request, host).unwrap_or_else(|refusal| refusal);
        let after = self.faults.lock().unwrap().after(&request, &reply);
        if after == Some(What::DieAfter) {
            self.dead.store(true, Ordering::SeqCst);
        }
        let delivery = after.map_or(Delivery::Whole, |what| faults::spoil(&what, &mut reply));
        (reply, delivery)
    }

    fn answer(&self, request: &Request, host: Host) -> Answer {
        let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
        let is_read = matches!(request.method.as_str(), "GET" | "HEAD");
        if host == Host::Storage {
            return cas::answer(self, request, &path);
        }
        match path.as_slice() {
            ["api", "whoami-v2"] => reading::whoami(self, request),
            ["api", "repos", what] => writing::repository(self, request, what),
            ["api", "validate-yaml"] => Ok(Reply::json(200, &json!({ "errors": [], "warnings": [] }))),
            ["api", "resolve-cache", kind, owner, name, commit, file @ ..] if is_read => {
                let id = format!("{owner}/{name}");
                reading::cached(self, request, kind_of(kind)?, &id, commit, &file.join("/"))
            }
            ["api", kind, owner, name, rest @ ..] => {
                let (kind, id) = (kind_of(kind)?, format!("{owner}/{name}"));
                match rest {
                    [] | ["revision" | "tree" | "paths-info" | "refs" | "commits", ..] => {
                        reading::api(self, request, kind, &id, rest)
                    }
                    _ => writing::api(self, request, kind, &id, rest),
                }
            }
            ["datasets", owner, name, rest @ ..] => {
                self.address(request, Kind::Dataset, &format!("{owner}/{name}"), rest)
            }
            [owner, name, rest @ ..] => self.address(request, Kind::Model, &format!("{owner}/{name}"), rest),
            _ => Err(refuse(404, "", "Sorry, we can't find the page you are looking for.")),
        }
    }

    /// What is under a repository's own address, outside of `/api`.
    fn address(&self, request: &Request, kind: Kind, id: &str, rest: &[&str]) -> Answer {
        match (request.method.as_str(), rest) {
            ("GET" | "HEAD", [how @ ("resolve" | "raw"), rest @ ..]) => {
                let (revision, file) = revision_and_path(rest);
                reading::file(self, request, kind, id, how, &revision, &file)
            }
            ("POST", ["info", "lfs", "objects", what]) => {
                writing::lfs(self, request, kind, id.trim_end_matches(".git"), what)
            }
            _ => Err(refuse(404, "", "Sorry, we can't find the page you are looking for.")),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    Anonymous,
    Known,
}

/// Who asks; a wrong token is worse than none.
pub fn caller(hub: &Hub, request: &Request) -> Result<Caller, Reply> {
    match (request.bearer(), &hub.options.token) {
        (None, _) => Ok(Caller::Anonymous),
        (Some(token), Some(right)) if token != right => {
            Err(refuse(401, "", "Invalid credentials in Authorization header"))
        }
        _ => Ok(Caller::Known),
    }
}

/// The repository, if it is there for this caller. As on the Hub, who brings no token is not told whether what he may
/// not see is there.
pub fn find<'a>(all: &'a mut All, kind: Kind, id: &str, caller: Caller) -> Result<&'a mut Repo, Reply> {
    match all.get_mut(&(kind, id.into())) {
        Some(repo) if caller == Caller::Known || !repo.private => Ok(repo),
        _ if caller == Caller::Known => Err(refuse(404, "RepoNotFound", "Repository not found")),
        _ => Err(refuse(401, "RepoNotFound", "Invalid username or password.")),
    }
}

/// An error as the Hub words it: in two headers and in the body.
pub fn refuse(status: u16, code: &str, message: &str) -> Reply {
    let reply = Reply::json(status, &json!({ "error": message })).with("X-Error-Message", message);
    if code.is_empty() { reply } else { reply.with("X-Error-Code", code) }
}

pub fn no_revision(revision: &str) -> Reply {
    refuse(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"))
}

fn kind_of(word: &str) -> Result<Kind, Reply> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.plural() == word);
    kind.ok_or_else(|| refuse(404, "", "Sorry, we can't find the page you are looking for."))
}

/// `main`, `file…`; a revision that begins with `refs` may come with its slashes.
pub fn revision_and_path(parts: &[&str]) -> (String, String) {
    let length = if parts.first() == Some(&"refs") { 3 } else { 1 }.min(parts.len());
    (parts[..length].join("/"), parts[length..].join("/"))
}
