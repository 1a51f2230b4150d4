//! HTTP/1.1 as far as the server needs it: a request is read whole, an answer is sent the way it is told to, which
//! may be a bad one. Does not know what is asked for.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// As it came: percent-encoded, with the query.
    pub target: String,
    /// The parts of the path between slashes, decoded: `refs%2Fpr%2F1` is one part.
    pub path: Vec<String>,
    pub query: Vec<(String, String)>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// The next one on a connection, or nothing where the client is done.
    pub fn read(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Self>> {
        let Some(first) = line(stream)? else { return Ok(None) };
        let mut words = first.split(' ');
        let (Some(method), Some(target)) = (words.next(), words.next()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, first));
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Self {
            method: method.into(),
            target: target.into(),
            path: path.split('/').filter(|part| !part.is_empty()).map(decoded).collect(),
            query: pairs(query),
            headers: Vec::new(),
            body: Vec::new(),
        };
        while let Some(header) = line(stream)?.filter(|text| !text.is_empty()) {
            if let Some((name, value)) = header.split_once(':') {
                request.headers.push((name.to_lowercase(), value.trim().into()));
            }
        }
        if request.header("expect") == Some("100-continue") {
            stream.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if request.header("transfer-encoding") == Some("chunked") {
            while let Some(size) = line(stream)? {
                let size = usize::from_str_radix(size.split(';').next().unwrap(), 16).unwrap();
                stream.take(size as u64).read_to_end(&mut request.body)?;
                line(stream)?;
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = request.header("content-length") {
            let length = length.parse().unwrap();
            stream.take(length).read_to_end(&mut request.body)?;
        }
        Ok(Some(request))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The path, decoded, as faults look at it.
    pub fn plain_path(&self) -> String {
        format!("/{}", self.path.join("/"))
    }

    /// The token of `Authorization: Bearer`.
    pub fn bearer(&self) -> Option<&str> {
        self.header("authorization")?.strip_prefix("Bearer ")
    }

    /// The body, JSON or null.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// First and last byte of `Range: bytes=…` in a body of that length, or nothing where there is no such header.
    pub fn range(&self, length: usize) -> Option<Range<usize>> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        if first.is_empty() {
            return Some(length.saturating_sub(last.parse().ok()?)..length);
        }
        let end =
            if last.is_empty() { length } else { last.parse::<usize>().ok()?.saturating_add(1).min(length) };
        Some(first.parse().ok()?..end)
    }
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    bytes: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), bytes: Arc::default(), range: 0..0 }
    }

    pub fn json(status: u16, value: &Value) -> Self {
        Self::new(status)
            .with("Content-Type", "application/json; charset=utf-8")
            .body(value.to_string().into_bytes())
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.into(), value.to_string()));
        self
    }

    pub fn body(self, bytes: Vec<u8>) -> Self {
        self.shared(Arc::new(bytes))
    }

    pub fn shared(mut self, bytes: Arc<Vec<u8>>) -> Self {
        self.range = 0..bytes.len();
        self.bytes = bytes;
        self
    }

    /// A file's content, or the part of it that the request wants.
    pub fn content(request: &Request, bytes: Arc<Vec<u8>>) -> Self {
        let length = bytes.len();
        match request.range(length) {
            None => Self::new(200).with("Accept-Ranges", "bytes").shared(bytes),
            Some(range) if range.start >= range.end => {
                Self::new(416).with("Content-Range", format!("bytes */{length}"))
            }
            Some(range) => {
                let place = format!("bytes {}-{}/{length}", range.start, range.end - 1);
                let mut reply =
                    Self::new(206).with("Accept-Ranges", "bytes").with("Content-Range", place).shared(bytes);
                reply.range = range;
                reply
            }
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }
}

/// How an answer goes over the wire.
#[derive(Clone, Debug, PartialEq)]
pub enum Delivery {
    Whole,
    /// This share of the body, then the connection is closed.
    Cut(f64),
    /// This share of the body, then nothing more, the connection stays open.
    Stall(f64),
    /// So many bytes a second.
    Trickle(f64),
    /// The first text, then the second over and over.
    Endless(String, String),
    /// Not even a status; the connection stays open.
    Silence,
    /// Not even a status; the connection is closed.
    Drop,
}

/// Sends it; says whether the connection can go on.
pub fn send(
    stream: &mut TcpStream,
    method: &str,
    reply: &Reply,
    delivery: &Delivery,
    stopped: &AtomicBool,
) -> io::Result<bool> {
    match delivery {
        Delivery::Drop => return Ok(false),
        Delivery::Silence => return wait(stream, stopped),
        _ => {}
    }
    let mut head = format!("HTTP/1.1 {} {}\r\n", reply.status, reason(reply.status));
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let body = reply.bytes();
    if matches!(delivery, Delivery::Endless(..)) {
        head += "Transfer-Encoding: chunked\r\n";
    } else if reply.status != 304 && reply.status != 204 {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    if method == "HEAD" {
        return Ok(true);
    }
    match delivery {
        Delivery::Cut(share) => {
            stream.write_all(&body[..part(body, *share)])?;
            Ok(false)
        }
        Delivery::Stall(share) => {
            stream.write_all(&body[..part(body, *share)])?;
            wait(stream, stopped)
        }
        Delivery::Trickle(rate) => {
            for byte in body {
                if stopped.load(Ordering::SeqCst) {
                    return Ok(false);
                }
                stream.write_all(&[*byte])?;
                std::thread::sleep(Duration::from_secs_f64(1.0 / rate));
            }
            Ok(true)
        }
        Delivery::Endless(first, again) => {
            let again = again.repeat(65_536 / again.len());
            chunk(stream, first)?;
            while !stopped.load(Ordering::SeqCst) {
                chunk(stream, &again)?;
            }
            Ok(false)
        }
        _ => {
            stream.write_all(body)?;
            Ok(true)
        }
    }
}

fn chunk(stream: &mut TcpStream, text: &str) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
}

fn part(body: &[u8], share: f64) -> usize {
    (body.len() as f64 * share) as usize
}

/// Until the client gives up or the server ends.
fn wait(stream: &mut TcpStream, stopped: &AtomicBool) -> io::Result<bool> {
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    while !stopped.load(Ordering::SeqCst) {
        match stream.read(&mut [0]) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            _ => break,
        }
    }
    Ok(false)
}

fn line(stream: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut text = String::new();
    let count = stream.read_line(&mut text)?;
    Ok((count > 0).then(|| text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// The pairs of a query or a form.
pub fn pairs(text: &str) -> Vec<(String, String)> {
    let pair = |part: &str| {
        let part = part.replace('+', " ");
        let (name, value) = part.split_once('=').unwrap_or((&part, ""));
        (decoded(name), decoded(value))
    };
    text.split('&').filter(|part| !part.is_empty()).map(pair).collect()
}

/// Percent-encoding undone.
pub fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match code.and_then(|two| u8::from_str_radix(two, 16).ok()).filter(|_| first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Everything but letters, digits and `-_.~` percent-encoded, and but for the characters in `spare`.
pub fn encoded(text: &str, spare: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        let plain =
            byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || spare.as_bytes().contains(&byte);
        if plain { out.push(byte as char) } else { out += &format!("%{byte:02X}") }
    }
    out
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        206 => "Partial Content",
        302 => "Found",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        409 => "Conflict",
        412 => "Precondition Failed",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Status",
    }
}
