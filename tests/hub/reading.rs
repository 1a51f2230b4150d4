//! What the Hub says of repositories and files: descriptions, listings, contents.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::http::{Reply, Request, encoded, pairs};
use super::repos::{Commit, DATE, File, Kind};
use super::{Answer, Caller, Hub, USER, Xet, caller, cas, find, no_revision, refuse, revision_and_path};

pub fn whoami(hub: &Hub, request: &Request) -> Answer {
    match caller(hub, request)? {
        Caller::Anonymous => Err(refuse(401, "", "Invalid username or password.")),
        Caller::Known => Ok(Reply::json(
            200,
            &json!({
                "type": "user", "id": "0", "name": USER, "fullname": USER, "email": "tester@localhost", "orgs": [],
                "isPro": false,
                "auth": { "type": "access_token", "accessToken": { "displayName": "test", "role": "write" } },
            }),
        )),
    }
}

/// What is under `/api/models/OWNER/NAME` to read.
pub fn api(hub: &Hub, request: &Request, kind: Kind, id: &str, rest: &[&str]) -> Answer {
    let caller = caller(hub, request)?;
    let mut repos = hub.repos();
    let repo = find(&mut repos.all, kind, id, caller)?;
    let (what, rest) = rest.split_first().map_or(("revision", &["main"][..]), |(what, rest)| (*what, rest));
    if what == "refs" {
        let branch = |(name, commit): (&String, &String)| {
            let full = if name.starts_with("refs/") { name.clone() } else { format!("refs/heads/{name}") };
            let short =
                name.strip_prefix("refs/convert/").or_else(|| name.strip_prefix("refs/pr/")).unwrap_or(name);
            json!({ "name": short, "ref": full, "targetCommit": commit })
        };
        let of = |start: &str| -> Vec<Value> {
            repo.branches.iter().filter(|(name, _)| name.starts_with(start)).map(branch).collect()
        };
        let branches: Vec<Value> =
            repo.branches.iter().filter(|(name, _)| !name.starts_with("refs/")).map(branch).collect();
        let tag = |(name, commit)| json!({ "name": name, "ref": format!("refs/tags/{name}"), "targetCommit": commit });
        let tags: Vec<Value> = repo.tags.iter().map(tag).collect();
        let mut refs = json!({ "branches": branches, "converts": of("refs/convert/"), "tags": tags });
        if request.query("include_prs").is_some() {
            refs["pullRequests"] = of("refs/pr/").into();
        }
        return Ok(Reply::json(200, &refs));
    }
    let (revision, path) = revision_and_path(rest);
    let commit = repo.at(&revision).ok_or_else(|| no_revision(&revision))?;
    match (request.method.as_str(), what) {
        ("GET", "revision") => {
            let mut value = description(kind, id, commit, request.query("blobs").is_some());
            value["private"] = repo.private.into();
            value["gated"] = if repo.gated { "manual".into() } else { false.into() };
            let wanted: Vec<&str> =
                request.query.iter().filter(|(k, _)| k == "expand").map(|(_, v)| &**v).collect();
            if let (false, Some(fields)) = (wanted.is_empty(), value.as_object_mut()) {
                fields.retain(|name, _| {
                    matches!(name.as_str(), "_id" | "id") || wanted.contains(&name.as_str())
                });
            }
            Ok(Reply::json(200, &value))
        }
        ("GET", "tree") => listing(hub, request, commit, &path),
        ("POST", "paths-info") => {
            let body = request.json();
            let form = pairs(&String::from_utf8_lossy(&request.body));
            let in_form =
                || form.iter().filter(|(name, _)| name == "paths").map(|(_, path)| path.as_str()).collect();
            let paths: Vec<&str> = match body["paths"].as_array() {
                Some(paths) => paths.iter().filter_map(Value::as_str).collect(),
                None => in_form(),
            };
            let expand = body["expand"] == true
                || form.iter().any(|(name, value)| name == "expand" && value == "true");
            let entries: Vec<Value> =
                paths.iter().filter_map(|path| entry(hub, commit, path.trim_matches('/'), expand)).collect();
            Ok(Reply::json(200, &entries.into()))
        }
        ("GET", "commits") => {
            let about = |commit: &Commit| {
                let author = json!({ "user": USER });
                json!({ "id": commit.id, "title": commit.title, "message": "", "authors": [author], "date": DATE })
            };
            Ok(Reply::json(200, &repo.history(commit).iter().map(about).collect()))
        }
        _ => Err(refuse(404, "", "Sorry, we can't find the page you are looking for.")),
    }
}

fn description(kind: Kind, id: &str, commit: &Commit, with_blobs: bool) -> Value {
    let sibling = |(path, file): (&String, &File)| {
        let mut value = json!({ "rfilename": path });
        if with_blobs {
            value["size"] = file.bytes.len().into();
            value["blobId"] = file.oid.clone().into();
            if let Some(sha256) = &file.sha256 {
                let pointer = file.pointer_size;
                value["lfs"] = json!({ "sha256": sha256, "size": file.bytes.len(), "pointerSize": pointer });
            }
        }
        value
    };
    let siblings: Vec<Value> = commit.files.iter().map(sibling).collect();
    let card = card(commit);
    let mut value = json!({
        "_id": commit.id[..24], "id": id, "author": id.split('/').next(), "sha": commit.id, "disabled": false,
        "lastModified": DATE, "createdAt": DATE, "downloads": 0, "likes": 0, "tags": tags(&card),
        "siblings": siblings, "cardData": card, "usedStorage": 0,
    });
    if kind == Kind::Model {
        value["modelId"] = id.into();
        for key in ["library_name", "pipeline_tag"] {
            if let Some(text) = card.get(key) {
                value[key] = text.clone();
            }
        }
    }
    value
}

/// What a README says between its first lines of `---`.
fn card(commit: &Commit) -> Value {
    let readme = commit.files.get("README.md").map(|file| String::from_utf8_lossy(&file.bytes).into_owned());
    let text = readme.unwrap_or_default();
    let yaml = text.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---"));
    yaml.and_then(|(yaml, _)| serde_saphyr::from_str(yaml).ok()).unwrap_or(Value::Object(Map::new()))
}

/// The tags that the Hub makes of a card.
fn tags(card: &Value) -> Vec<Value> {
    let texts = |key: &str| match &card[key] {
        Value::Array(all) => all.clone(),
        Value::Null => Vec::new(),
        one => vec![one.clone()],
    };
    let mut tags: Vec<Value> = ["library_name", "tags"].into_iter().flat_map(texts).collect();
    for (key, name) in [("base_model", "base_model"), ("datasets", "dataset"), ("license", "license")] {
        tags.extend(texts(key).iter().filter_map(Value::as_str).map(|text| format!("{name}:{text}").into()));
    }
    tags
}

/// `/tree/REVISION/PATH`, a page of it.
fn listing(hub: &Hub, request: &Request, commit: &Commit, path: &str) -> Answer {
    if !commit.folders.contains_key(path) {
        return Err(refuse(404, "EntryNotFound", &format!("{path} does not exist on \"{}\"", commit.id)));
    }
    let is_yes = |name| request.query(name) == Some("true");
    let (recursive, expand) = (is_yes("recursive"), is_yes("expand"));
    let start = if path.is_empty() { String::new() } else { format!("{path}/") };
    let mut paths: Vec<&String> = commit.folders.keys().chain(commit.files.keys()).collect();
    paths.retain(|p| {
        p.strip_prefix(&start).is_some_and(|name| !name.is_empty() && (recursive || !name.contains('/')))
    });
    paths.sort();
    let after = request.query("cursor").and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
    let size = request.query("limit").and_then(|limit| limit.parse().ok()).unwrap_or(hub.options.page_size);
    let entries: Vec<Value> =
        paths.iter().skip(after).take(size).filter_map(|path| entry(hub, commit, path, expand)).collect();
    let reply = Reply::json(200, &entries.into());
    if after + size >= paths.len() {
        return Ok(reply);
    }
    let kept = request.query.iter().filter(|(name, _)| name != "cursor");
    let query: String = kept.map(|(name, value)| format!("{name}={}&", encoded(value, ""))).collect();
    let address = request.target.split('?').next().unwrap_or_default();
    let next = format!("<{}{address}?{query}cursor={}>; rel=\"next\"", hub.endpoint, after + size);
    Ok(reply.with("Link", next))
}

/// A file or a folder of a listing.
fn entry(hub: &Hub, commit: &Commit, path: &str, expand: bool) -> Option<Value> {
    let mut value = match (commit.files.get(path), commit.folders.get(path)) {
        (Some(file), _) => {
            let size = file.bytes.len();
            let mut value = json!({ "type": "file", "oid": file.oid, "size": size, "path": path });
            if let Some(sha256) = &file.sha256 {
                value["lfs"] = json!({ "oid": sha256, "size": size, "pointerSize": file.pointer_size });
            }
            if let Some(hash) = xet_hash(hub, file) {
                value["xetHash"] = hash.into();
            }
            value
        }
        (None, Some(oid)) => json!({ "type": "directory", "oid": oid, "size": 0, "path": path }),
        (None, None) => return None,
    };
    if expand {
        value["lastCommit"] = json!({ "id": commit.id, "title": commit.title, "date": DATE });
    }
    Some(value)
}

fn xet_hash(hub: &Hub, file: &File) -> Option<String> {
    let sha256 = file.sha256.as_ref().filter(|_| hub.options.xet == Xet::PushAndPull)?;
    hub.cas.lock().unwrap().hash_of(sha256)
}

/// `/OWNER/NAME/resolve/REVISION/PATH`: a small file is a redirect to the same host, a large one to the storage host.
pub fn file(
    hub: &Hub,
    request: &Request,
    kind: Kind,
    id: &str,
    how: &str,
    revision: &str,
    path: &str,
) -> Answer {
    let caller = caller(hub, request)?;
    let mut repos = hub.repos();
    let repo = find(&mut repos.all, kind, id, caller)?;
    if repo.gated {
        return Err(match caller {
            Caller::Anonymous => {
                refuse(401, "GatedRepo", &format!("Access to {id} is restricted. Please log in."))
            }
            Caller::Known => {
                let text = format!("Access to {id} is restricted and you are not in the authorized list.");
                refuse(403, "GatedRepo", &text)
            }
        });
    }
    let commit = repo.at(revision).ok_or_else(|| no_revision(revision))?;
    let Some(file) = commit.files.get(path) else {
        return Err(refuse(404, "EntryNotFound", "Entry not found").with("X-Repo-Commit", &commit.id));
    };
    let about = |reply: Reply| reply.with("X-Repo-Commit", &commit.id);
    if how == "raw" {
        return Ok(about(Reply::content(request, file.in_git())).with("ETag", quoted(&file.oid)));
    }
    if request.header("if-none-match") == Some(&quoted(file.etag())) {
        return Ok(about(Reply::new(304)).with("ETag", quoted(file.etag())));
    }
    let about = |reply| {
        let reply = about(reply).with("X-Linked-Etag", quoted(file.etag()));
        reply.with("X-Linked-Size", file.bytes.len()).with("Accept-Ranges", "bytes")
    };
    let encoded_path = encoded(path, "/");
    let Some(sha256) = &file.sha256 else {
        let place = format!("/api/resolve-cache/{}/{id}/{}/{encoded_path}", kind.plural(), commit.id);
        return Ok(about(Reply::new(307)).with("Location", place));
    };
    let place = format!("{}/cdn/{sha256}/{encoded_path}?signature={}", hub.storage, &sha256[..16]);
    let reply = about(Reply::new(302)).with("Location", place).with("ETag", quoted(&file.oid));
    Ok(match xet_hash(hub, file) {
        None => reply,
        Some(hash) => {
            let token = format!("{}/api/{}/{id}/xet-read-token/{}", hub.endpoint, kind.plural(), commit.id);
            let links = format!(
                "<{token}>; rel=\"xet-auth\", <{}>; rel=\"xet-reconstruction-info\"",
                cas::place(hub, &hash)
            );
            reply.with("X-Xet-Hash", hash).with("Link", links)
        }
    })
}

/// Where `file` redirects to for small files.
pub fn cached(hub: &Hub, request: &Request, kind: Kind, id: &str, commit: &str, path: &str) -> Answer {
    let caller = caller(hub, request)?;
    let mut repos = hub.repos();
    let repo = find(&mut repos.all, kind, id, caller)?;
    let commit = repo.at(commit).ok_or_else(|| no_revision(commit))?;
    let file = commit.files.get(path).ok_or_else(|| refuse(404, "EntryNotFound", "Entry not found"))?;
    let reply = Reply::content(request, Arc::clone(&file.bytes));
    Ok(reply.with("ETag", quoted(file.etag())).with("X-Repo-Commit", &commit.id))
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}
