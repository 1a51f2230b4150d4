//! What the server does wrong on purpose, where and how often.
//!
//! A fault is a line: `[METHOD] PATTERN WHAT [xCOUNT]`, such as `GET /cdn/*.safetensors cut=0.3 x1`. PATTERN is held
//! against the decoded path without the query; `*` stands for anything, slashes too. Without a count it never ends. WHAT:
//!
//! - `429`, `429=2` (with `Retry-After: 2`), `500`, `503`, `401`, `403`, `404`: that status instead of an answer
//! - `drop`: the connection is closed without an answer; `silent`: it is held open without one
//! - `loop`: a redirect to the same address, for ever; `elsewhere`: a redirect to the storage host, which has
//!   nothing at that path
//! - `die`: the server answers nothing any more, from this request on; `die-after`: this request still takes effect
//! - `lost`: the request takes effect, the answer gets lost
//! - `no-range`: the whole file where a range was asked for
//! - `cut=0.3`: that share of the body, then the connection is closed; `stall=0.3`: the same, held open
//! - `trickle=10`: so many bytes a second
//! - `corrupt`: the first byte of the body is another one
//! - `endless`: the body never ends; `endless-json`: nor does the JSON
//! - `hostile-names`: a listing gets files with names that lead out of a folder; `absurd-sizes`: its files are huge

use std::str::FromStr;

use serde_json::{Value, json};

use super::http::{Delivery, Reply, Request};

/// Names that no client may write to.
pub const HOSTILE_NAMES: [&str; 7] = [
    "../outside.json",
    "data/../../outside.json",
    "/tmp/outside.json",
    "..\\outside.json",
    "C:\\outside.json",
    "out\u{7}side\n.json",
    ".git/config",
];

/// What `absurd-sizes` says of every file.
pub const ABSURD_SIZE: u64 = 1 << 60;

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    Status(u16, Option<u32>),
    Drop,
    Silent,
    Loop,
    Elsewhere,
    Die,
    DieAfter,
    Lost,
    NoRange,
    Cut(f64),
    Stall(f64),
    Trickle(f64),
    Corrupt,
    Endless,
    EndlessJson,
    HostileNames,
    AbsurdSizes,
}

#[derive(Clone, Debug)]
pub struct Fault {
    method: Option<String>,
    pattern: String,
    what: What,
    /// How often it still happens; without a number, always.
    left: Option<u32>,
}

impl FromStr for Fault {
    type Err = String;
    fn from_str(line: &str) -> Result<Self, String> {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let method =
            words.first().filter(|word| word.chars().all(|c| c.is_ascii_uppercase())).map(|m| m.to_string());
        if method.is_some() {
            words.remove(0);
        }
        let count = words.last().and_then(|word| word.strip_prefix('x')?.parse().ok());
        if count.is_some() {
            words.pop();
        }
        let [pattern, what] = words[..] else {
            return Err(format!("`{line}` is no fault: [METHOD] PATTERN WHAT [xCOUNT]"));
        };
        let (name, value) = what.split_once('=').map_or((what, None), |(name, value)| (name, Some(value)));
        let number = |default: f64| value.map_or(Some(default), |text| text.parse().ok());
        let what = match name {
            "drop" => Some(What::Drop),
            "silent" => Some(What::Silent),
            "loop" => Some(What::Loop),
            "elsewhere" => Some(What::Elsewhere),
            "die" => Some(What::Die),
            "die-after" => Some(What::DieAfter),
            "lost" => Some(What::Lost),
            "no-range" => Some(What::NoRange),
            "cut" => number(0.5).map(What::Cut),
            "stall" => number(0.0).map(What::Stall),
            "trickle" => number(10.0).map(What::Trickle),
            "corrupt" => Some(What::Corrupt),
            "endless" => Some(What::Endless),
            "endless-json" => Some(What::EndlessJson),
            "hostile-names" => Some(What::HostileNames),
            "absurd-sizes" => Some(What::AbsurdSizes),
            _ => match (name.parse::<u16>(), value.map(str::parse::<u32>)) {
                (Ok(status), None) => Some(What::Status(status, None)),
                (Ok(status), Some(Ok(seconds))) => Some(What::Status(status, Some(seconds))),
                _ => None,
            },
        };
        let what = what.ok_or_else(|| format!("`{line}`: there is no fault `{}`", words[1]))?;
        Ok(Self { method, pattern: pattern.into(), what, left: count })
    }
}

impl TryFrom<&str> for Fault {
    type Error = String;
    fn try_from(line: &str) -> Result<Self, String> {
        line.parse()
    }
}

#[derive(Default)]
pub struct Faults(Vec<Fault>);

impl Faults {
    pub fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The first fault for this request that `fits`; it counts as used.
    fn take(&mut self, request: &Request, fits: impl Fn(&What) -> bool) -> Option<What> {
        let path = request.plain_path();
        let fault = self.0.iter_mut().find(|fault| {
            fault.left != Some(0)
                && fits(&fault.what)
                && fault.method.as_ref().is_none_or(|method| *method == request.method)
                && matches(&fault.pattern, &path)
        })?;
        fault.left = fault.left.map(|left| left - 1);
        Some(fault.what.clone())
    }

    /// What happens instead of handling the request.
    pub fn before(&mut self, request: &Request, is_storage: bool) -> Option<What> {
        self.take(request, |what| match what {
            What::Status(..) | What::Drop | What::Silent | What::Loop | What::Die => true,
            What::Elsewhere => !is_storage,
            What::NoRange => request.header("range").is_some(),
            _ => false,
        })
    }

    /// What happens to the answer. Faults of the body wait for an answer that has one.
    pub fn after(&mut self, request: &Request, reply: &Reply) -> Option<What> {
        let has_body =
            request.method != "HEAD" && (200..300).contains(&reply.status) && !reply.bytes().is_empty();
        self.take(request, |what| match what {
            What::DieAfter | What::Lost => true,
            What::Cut(_) | What::Stall(_) | What::Trickle(_) | What::Corrupt => has_body,
            What::Endless | What::EndlessJson | What::HostileNames | What::AbsurdSizes => has_body,
            _ => false,
        })
    }
}

/// Changes the answer as the fault says, and says how to deliver it.
pub fn spoil(what: &What, reply: &mut Reply) -> Delivery {
    match what {
        What::DieAfter | What::Lost => return Delivery::Drop,
        What::Cut(share) => return Delivery::Cut(*share),
        What::Stall(share) => return Delivery::Stall(*share),
        What::Trickle(rate) => return Delivery::Trickle(*rate),
        What::Endless => return Delivery::Endless(String::new(), "\0".into()),
        What::EndlessJson if reply.bytes().starts_with(b"[") => {
            let entry = json!({"type": "file", "path": "more.json", "size": 1, "oid": "0".repeat(40)});
            return Delivery::Endless("[".into(), format!("{entry},"));
        }
        What::EndlessJson => return Delivery::Endless("{\"sha\":\"".into(), "0".into()),
        What::Corrupt => {
            let mut bytes = reply.bytes().to_vec();
            bytes[0] ^= 0xff;
            *reply = reply.clone().body(bytes);
        }
        What::HostileNames => change_listing(reply, |files, key| {
            let oid = "0".repeat(40);
            let hostile = |name| json!({"type": "file", key: name, "size": 1, "oid": oid});
            files.extend(HOSTILE_NAMES.map(hostile));
        }),
        What::AbsurdSizes => change_listing(reply, |files, _| {
            for file in files {
                for place in ["/size", "/lfs/size"] {
                    if let Some(size) = file.pointer_mut(place) {
                        *size = ABSURD_SIZE.into();
                    }
                }
            }
        }),
        _ => {}
    }
    Delivery::Whole
}

/// The files of a tree listing or of a repository's description, and the key of their names.
fn change_listing(reply: &mut Reply, change: impl FnOnce(&mut Vec<Value>, &str)) {
    let Ok(mut value) = serde_json::from_slice::<Value>(reply.bytes()) else { return };
    if let Some(files) = value.as_array_mut() {
        change(files, "path");
    } else if let Some(files) = value.pointer_mut("/siblings").and_then(Value::as_array_mut) {
        change(files, "rfilename");
    }
    *reply = reply.clone().body(value.to_string().into_bytes());
}

/// Whether the text is the pattern, with `*` for anything.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|after| {
            after.char_indices().map(|(i, _)| i).chain([after.len()]).any(|i| matches(rest, &after[i..]))
        }),
    }
}
