//! The storage host: contents of large files as plain downloads and uploads, and xet's content-addressed store, to which
//! files come as chunks in xorbs, and the recipes of files in shards. Knows no repositories.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

use serde_json::{Value, json};
use xet_core_structures::metadata_shard::streaming_shard::MDBMinimalShard;
use xet_core_structures::xorb_object::deserialize_chunk;

use super::http::{Reply, Request};
use super::repos::sha256;
use super::{Answer, Hub, refuse};

/// Far in the future.
const EXPIRES: u64 = 4_102_444_800;

#[derive(Default)]
pub struct Cas {
    /// By hash: the serialized chunks, one behind the other.
    xorbs: BTreeMap<String, Arc<Vec<u8>>>,
    /// By xet's hash of a file.
    files: BTreeMap<String, Vec<Term>>,
    /// SHA-256 of a file → xet's hash.
    hashes: BTreeMap<String, String>,
}

/// A run of chunks that a file is made of.
#[derive(Clone, Debug)]
struct Term {
    xorb: String,
    first: u32,
    end: u32,
    bytes: usize,
}

impl Cas {
    /// Under which hash xet knows a file.
    pub fn hash_of(&self, sha256: &str) -> Option<String> {
        self.hashes.get(sha256).cloned()
    }
}

/// Where xet asks for a file's recipe.
pub fn place(hub: &Hub, hash: &str) -> String {
    format!("{}/v1/reconstructions/{hash}", hub.storage)
}

/// What lets into the store, in the body for `hf-hub`, in the headers for Python.
pub fn token(hub: &Hub, what: &str) -> Reply {
    let reply = Reply::json(200, &json!({ "casUrl": hub.storage, "exp": EXPIRES, "accessToken": what }));
    let reply = reply.with("X-Xet-Cas-Url", &hub.storage).with("X-Xet-Token-Expiration", EXPIRES);
    reply.with("X-Xet-Access-Token", what)
}

pub fn answer(hub: &Hub, request: &Request, path: &[&str]) -> Answer {
    match (request.method.as_str(), path) {
        ("GET" | "HEAD", ["cdn", oid, ..]) => {
            without_token(request)?;
            let bytes = hub.repos().objects.get(*oid).cloned();
            let bytes = bytes.ok_or_else(|| refuse(404, "", "NoSuchKey"))?;
            Ok(Reply::content(request, bytes).with("ETag", format!("\"{}\"", &oid[..32])))
        }
        ("PUT", ["lfs", oid]) => {
            without_token(request)?;
            if sha256(&request.body) != *oid {
                return Err(refuse(400, "", "the content is not what its SHA-256 says"));
            }
            hub.repos().objects.insert((*oid).into(), Arc::new(request.body.clone()));
            Ok(Reply::new(200).with("ETag", format!("\"{}\"", &oid[..32])))
        }
        ("GET", ["xorb", hash]) => {
            without_token(request)?;
            let bytes = hub.cas.lock().unwrap().xorbs.get(*hash).cloned();
            Ok(Reply::content(request, bytes.ok_or_else(|| refuse(404, "", "NoSuchKey"))?))
        }
        ("POST", ["v1", "xorbs", _, hash]) => {
            with_token(request, "xet-write-token")?;
            let there = hub.cas.lock().unwrap().xorbs.insert((*hash).into(), Arc::new(request.body.clone()));
            Ok(Reply::json(200, &json!({ "was_inserted": there.is_none() })))
        }
        ("POST", ["v1", "shards"]) => {
            with_token(request, "xet-write-token")?;
            take_shard(hub, &request.body).map_err(|reason| refuse(400, "", &reason))?;
            Ok(Reply::json(200, &json!({ "result": 1 })))
        }
        ("GET", ["v1", "reconstructions", hash]) => {
            with_token(request, "xet-read-token")?;
            reconstruction(hub, request, hash)
        }
        // Newer ways to do the same: clients fall back from them. Nor is a chunk ever said to be here already.
        _ => Err(refuse(404, "", "not here")),
    }
}

/// A signed address and a token: real stores refuse that, and a user's token has no business here.
fn without_token(request: &Request) -> Result<(), Reply> {
    match request.header("authorization") {
        Some(_) => Err(refuse(400, "", "Only one auth mechanism allowed")),
        None => Ok(()),
    }
}

fn with_token(request: &Request, what: &str) -> Result<(), Reply> {
    match request.bearer() == Some(what) {
        true => Ok(()),
        false => Err(refuse(401, "", "this needs a token of its own")),
    }
}

/// Puts together the files that a shard tells of, from the xorbs that came before it.
fn take_shard(hub: &Hub, bytes: &[u8]) -> Result<(), String> {
    let shard = MDBMinimalShard::from_reader(&mut Cursor::new(bytes), true, true)
        .map_err(|error| error.to_string())?;
    let (mut cas, mut contents) = (hub.cas.lock().unwrap(), Vec::new());
    for view in (0..shard.num_files()).filter_map(|i| shard.file(i)) {
        let entries = (0..view.num_entries()).map(|i| view.entry(i));
        let terms: Vec<Term> = entries
            .map(|entry| Term {
                xorb: entry.xorb_hash.hex(),
                first: entry.chunk_index_start,
                end: entry.chunk_index_end,
                bytes: entry.unpacked_segment_bytes as usize,
            })
            .collect();
        let mut content = Vec::new();
        for term in &terms {
            let chunks =
                chunks(cas.xorbs.get(&term.xorb).ok_or_else(|| format!("xorb {} never came", term.xorb))?)?;
            let part =
                chunks.get(term.first as usize..term.end as usize).ok_or("a chunk that its xorb lacks")?;
            content.extend(part.iter().flat_map(|chunk| &chunk.content));
        }
        let (hash, sha256) = (view.file_hash().hex(), sha256(&content));
        if view.metadata_ext().is_some_and(|said| said.sha256.hex() != sha256) {
            return Err(format!("{hash} has another SHA-256 than its shard says"));
        }
        cas.hashes.insert(sha256.clone(), hash.clone());
        cas.files.insert(hash, terms);
        contents.push((sha256, Arc::new(content)));
    }
    drop(cas);
    hub.repos().objects.extend(contents);
    Ok(())
}

/// How a file is put together: runs of chunks, and where in which xorb they are.
fn reconstruction(hub: &Hub, request: &Request, hash: &str) -> Answer {
    let cas = hub.cas.lock().unwrap();
    let terms = cas.files.get(hash).ok_or_else(|| refuse(404, "", "no such file"))?;
    let length = terms.iter().map(|term| term.bytes).sum();
    let wanted = request.range(length).unwrap_or(0..length);
    if wanted.start >= wanted.end {
        return Err(refuse(416, "", "behind the end of the file"));
    }
    let (mut at, mut offset) = (0, None);
    let (mut recipe, mut fetch) = (Vec::new(), BTreeMap::<&str, Vec<Value>>::new());
    for term in terms {
        let start = at;
        at += term.bytes;
        if at <= wanted.start || start >= wanted.end {
            continue;
        }
        offset.get_or_insert_with(|| wanted.start - start);
        let range = json!({ "start": term.first, "end": term.end });
        recipe.push(json!({ "hash": term.xorb, "unpacked_length": term.bytes, "range": range }));
        let chunks = chunks(&cas.xorbs[&term.xorb]).map_err(|reason| refuse(500, "", &reason))?;
        let (first, last) = (&chunks[term.first as usize], &chunks[term.end as usize - 1]);
        let place = format!("{}/xorb/{}", hub.storage, term.xorb);
        let bytes = json!({ "start": first.start, "end": last.end - 1 });
        fetch
            .entry(&term.xorb)
            .or_default()
            .push(json!({ "range": range, "url": place, "url_range": bytes }));
    }
    let answer =
        json!({ "offset_into_first_range": offset.unwrap_or(0), "terms": recipe, "fetch_info": fetch });
    Ok(Reply::json(200, &answer))
}

/// A chunk and where its serialized form begins and ends.
struct Chunk {
    start: u64,
    end: u64,
    content: Vec<u8>,
}

/// The chunks of a serialized xorb, up to where its list of them begins, if it has one.
fn chunks(xorb: &[u8]) -> Result<Vec<Chunk>, String> {
    let mut reader = Cursor::new(xorb);
    let mut chunks = Vec::new();
    while (reader.position() as usize) < xorb.len()
        && !xorb[reader.position() as usize..].starts_with(b"XETBLOB")
    {
        let start = reader.position();
        let (content, ..) = deserialize_chunk(&mut reader).map_err(|error| error.to_string())?;
        chunks.push(Chunk { start, end: reader.position(), content });
    }
    Ok(chunks)
}
