//! What changes repositories: creating them, large files on their way in, commits, branches, pull requests.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::http::{Reply, Request};
use super::repos::{DATE, File, Files, Kind, Objects, Repo, Repos, is_lfs, is_too_large_for_git};
use super::{Answer, Caller, Hub, USER, Xet, caller, cas, find, no_revision, refuse};

/// Only with a token.
fn writer(hub: &Hub, request: &Request) -> Result<Caller, Reply> {
    match caller(hub, request)? {
        Caller::Anonymous => Err(refuse(401, "", "Invalid username or password.")),
        known => Ok(known),
    }
}

/// `/api/repos/create` and `/api/repos/delete`.
pub fn repository(hub: &Hub, request: &Request, what: &str) -> Answer {
    writer(hub, request)?;
    let body = request.json();
    let kind = if body["type"] == "dataset" { Kind::Dataset } else { Kind::Model };
    let Some(name) = body["name"].as_str().filter(|name| !name.contains('/')) else {
        return Err(refuse(400, "", "\"name\" must be a name"));
    };
    let id = format!("{}/{name}", body["organization"].as_str().unwrap_or(USER));
    let url = format!("{}/{}{id}", hub.endpoint, kind.prefix());
    let mut repos = hub.repos();
    let key = (kind, id.clone());
    match (request.method.as_str(), what) {
        ("POST", "create") if repos.all.contains_key(&key) => {
            let message =
                format!("You already created this {} repo: {id}", kind.plural().trim_end_matches('s'));
            let body = json!({ "error": message, "url": url });
            Err(Reply::json(409, &body).with("X-Error-Message", message))
        }
        ("POST", "create") => {
            let private = body["private"] == true || body["visibility"] == "private";
            repos.all.insert(key, Repo::new(private));
            Ok(Reply::json(200, &json!({ "url": url, "name": id, "id": id })))
        }
        ("DELETE", "delete") => match repos.all.remove(&key) {
            Some(_) => Ok(Reply::json(200, &json!({}))),
            None => Err(refuse(404, "RepoNotFound", "Repository not found")),
        },
        _ => Err(refuse(404, "", "Sorry, we can't find the page you are looking for.")),
    }
}

/// What is under `/api/models/OWNER/NAME` to write, and the tokens for xet.
pub fn api(hub: &Hub, request: &Request, kind: Kind, id: &str, rest: &[&str]) -> Answer {
    let caller = match rest {
        ["xet-read-token", ..] => caller(hub, request)?,
        _ => writer(hub, request)?,
    };
    let mut repos = hub.repos();
    let Repos { all, objects } = &mut *repos;
    let repo = find(all, kind, id, caller)?;
    match (request.method.as_str(), rest) {
        ("GET", [what @ ("xet-read-token" | "xet-write-token"), revision @ ..]) => {
            let revision = revision.join("/");
            // On the way to a new pull request there is no revision yet: Python says `None`.
            if request.query("create_pr").is_none() {
                repo.at(&revision).ok_or_else(|| no_revision(&revision))?;
            }
            Ok(cas::token(hub, what))
        }
        ("POST", ["commit", revision @ ..]) => {
            commit(hub, request, (kind, id), repo, objects, &revision.join("/"))
        }
        ("POST", ["preupload", revision @ ..]) => preupload(request, repo, &revision.join("/")),
        ("POST", [what @ ("branch" | "tag"), name @ ..]) => {
            let body = request.json();
            // A branch is named in the address, a tag in the body, behind the revision it is for.
            let (name, start) = match (*what, body["tag"].as_str()) {
                ("tag", Some(tag)) => (tag.to_owned(), name.join("/")),
                _ => (name.join("/"), body["startingPoint"].as_str().unwrap_or("main").to_owned()),
            };
            if name.starts_with("refs/") {
                return Err(refuse(400, "", &format!("Invalid reference for a {what}: {name}")));
            }
            let commit = repo.at(&start).ok_or_else(|| no_revision(&start))?.id.clone();
            let all = if *what == "tag" { &mut repo.tags } else { &mut repo.branches };
            if all.contains_key(&name) {
                return Err(refuse(409, "", &format!("Reference already exists: {name}")));
            }
            all.insert(name, commit);
            Ok(Reply::json(201, &json!({})))
        }
        ("DELETE", [what @ ("branch" | "tag"), name @ ..]) => {
            let all = if *what == "tag" { &mut repo.tags } else { &mut repo.branches };
            let name = name.join("/");
            all.remove(&name).map(|_| Reply::json(200, &json!({}))).ok_or_else(|| no_revision(&name))
        }
        ("POST", ["discussions"]) => {
            let number = open_pull_request(repo, &repo.branches["main"].clone());
            let url = pull_request_url(hub, kind, id, number);
            Ok(Reply::json(200, &json!({ "num": number, "pullRequest": true, "url": url })))
        }
        ("GET", ["discussions", number]) if repo.branches.contains_key(&format!("refs/pr/{number}")) => {
            let number: usize = number.parse().unwrap_or_default();
            let changes = json!({ "base": "refs/heads/main", "mergeCommitId": null });
            Ok(Reply::json(
                200,
                &json!({
                    "num": number, "title": "Pull request", "status": "draft", "isPullRequest": true,
                    "author": { "name": USER }, "createdAt": DATE, "events": [], "changes": changes,
                    "filesWithConflicts": [], "diffUrl": null, "repo": { "name": id, "type": kind.plural() },
                }),
            ))
        }
        _ => Err(refuse(404, "", "Sorry, we can't find the page you are looking for.")),
    }
}

/// Which files are to come by LFS, and which are there already.
fn preupload(request: &Request, repo: &Repo, revision: &str) -> Answer {
    let commit = repo.at(revision).ok_or_else(|| no_revision(revision))?;
    let body = request.json();
    let files = body["files"].as_array().ok_or_else(|| refuse(400, "", "\"files\" is required"))?;
    let mode = |file: &Value| {
        let path = file["path"].as_str().unwrap_or_default();
        let size = file["size"].as_u64().unwrap_or_default() as usize;
        let mode = if is_lfs(path, size) { "lfs" } else { "regular" };
        let there = commit.files.get(path).map(File::etag);
        json!({ "path": path, "uploadMode": mode, "shouldIgnore": false, "oid": there })
    };
    let modes: Vec<Value> = files.iter().map(mode).collect();
    Ok(Reply::json(200, &json!({ "commitOid": commit.id, "files": modes })))
}

/// Git LFS: `batch` says how the objects come, `verify` whether one came.
pub fn lfs(hub: &Hub, request: &Request, kind: Kind, id: &str, what: &str) -> Answer {
    let caller = writer(hub, request)?;
    let mut repos = hub.repos();
    find(&mut repos.all, kind, id, caller)?;
    let body = request.json();
    let stored = |object: &Value| repos.objects.get(object["oid"].as_str()?).map(|bytes| bytes.len());
    if what == "verify" {
        return match stored(&body) {
            Some(size) if body["size"] == size => Ok(Reply::json(200, &json!({}))),
            _ => Err(refuse(404, "", "Object does not exist")),
        };
    }
    let objects = body["objects"].as_array().ok_or_else(|| refuse(400, "", "\"objects\" is required"))?;
    let with_xet = hub.options.xet != Xet::Off
        && body["transfers"].as_array().is_some_and(|t| t.contains(&"xet".into()));
    let address = format!("{}/{}{id}.git/info/lfs/objects/verify", hub.endpoint, kind.prefix());
    let answer = |object: &Value| {
        let mut answer = json!({ "oid": object["oid"], "size": object["size"] });
        if stored(object).is_none() && !with_xet {
            let place =
                format!("{}/lfs/{}?signature=push", hub.storage, object["oid"].as_str().unwrap_or_default());
            answer["actions"] = json!({ "upload": { "href": place }, "verify": { "href": address } });
        }
        answer
    };
    let objects: Vec<Value> = objects.iter().map(answer).collect();
    let transfer = if with_xet { "xet" } else { "basic" };
    let reply = Reply::json(200, &json!({ "transfer": transfer, "objects": objects }));
    Ok(reply)
}

/// A commit, wholly or not at all.
fn commit(
    hub: &Hub,
    request: &Request,
    (kind, id): (Kind, &str),
    repo: &mut Repo,
    objects: &Objects,
    revision: &str,
) -> Answer {
    let head = repo.at(revision).ok_or_else(|| no_revision(revision))?.clone();
    let to_pull_request = request.query("create_pr") == Some("1");
    if !to_pull_request && !repo.branches.contains_key(revision) {
        return Err(refuse(400, "", &format!("{revision} is no branch")));
    }
    let mut files = head.files.clone();
    let mut title = None;
    let text = String::from_utf8_lossy(&request.body);
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let line: Value = serde_json::from_str(line).map_err(|error| refuse(400, "", &error.to_string()))?;
        let value = &line["value"];
        match line["key"].as_str() {
            Some("header") => {
                title = value["summary"].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
                if value["parentCommit"].as_str().is_some_and(|parent| parent != head.id) {
                    let message = "A commit has happened since. Please refresh and try again.";
                    return Err(refuse(412, "", message));
                }
            }
            Some(what) => change(&mut files, what, value, objects)?,
            None => return Err(refuse(400, "", "each line has a \"key\"")),
        }
    }
    let title = title.ok_or_else(|| refuse(400, "", "\"summary\" is required in the header"))?;
    let mut answer = json!({ "success": true, "hookOutput": "" });
    let branch = if to_pull_request {
        let number = open_pull_request(repo, &head.id);
        answer["pullRequestUrl"] = pull_request_url(hub, kind, id, number).into();
        format!("refs/pr/{number}")
    } else {
        revision.to_owned()
    };
    let oid = repo.commit(&branch, &title, files).id.clone();
    answer["commitUrl"] = format!("{}/{}{id}/commit/{oid}", hub.endpoint, kind.prefix()).into();
    answer["commitOid"] = oid.into();
    Ok(Reply::json(200, &answer))
}

/// One line of a commit.
fn change(files: &mut Files, what: &str, value: &Value, objects: &Objects) -> Result<(), Reply> {
    let path = value["path"].as_str().unwrap_or_default();
    if path.is_empty() || path.split('/').any(|part| matches!(part, "" | "." | ".." | ".git")) {
        return Err(refuse(400, "", &format!("\"{path}\" is no path for a file")));
    }
    match what {
        "file" => {
            let content = value["content"].as_str().unwrap_or_default();
            let bytes = match value["encoding"].as_str() {
                Some("base64") => {
                    STANDARD.decode(content).map_err(|error| refuse(400, "", &error.to_string()))?
                }
                _ => content.as_bytes().to_vec(),
            };
            if is_too_large_for_git(bytes.len()) {
                return Err(refuse(400, "", &format!("{path} is larger than 10 MiB and has to go to LFS")));
            }
            files.insert(path.into(), File::new(path, Arc::new(bytes)));
        }
        "lfsFile" => {
            let sha256 = value["oid"].as_str().unwrap_or_default();
            let Some(bytes) = objects.get(sha256) else {
                let message =
                    format!("LFS pointer pointed to a file that does not exist: \"{path}\" ({sha256})");
                return Err(refuse(400, "", &message));
            };
            if value["size"].as_u64().is_some_and(|size| size != bytes.len() as u64) {
                return Err(refuse(400, "", &format!("{path} has another size than its LFS object")));
            }
            files.insert(path.into(), File::in_lfs(bytes.clone()));
        }
        "deletedFile" => {
            let there = files.remove(path);
            there.ok_or_else(|| refuse(404, "EntryNotFound", &format!("{path} is not there to delete")))?;
        }
        "deletedFolder" => {
            files.retain(|name, _| !name.starts_with(&format!("{}/", path.trim_end_matches('/'))))
        }
        _ => return Err(refuse(400, "", &format!("\"{what}\" is no change"))),
    }
    Ok(())
}

/// The next `refs/pr/N`, at that commit.
fn open_pull_request(repo: &mut Repo, commit: &str) -> usize {
    let number = 1 + repo.branches.keys().filter(|name| name.starts_with("refs/pr/")).count();
    repo.branches.insert(format!("refs/pr/{number}"), commit.into());
    number
}

fn pull_request_url(hub: &Hub, kind: Kind, id: &str, number: usize) -> String {
    format!("{}/{}{id}/discussions/{number}", hub.endpoint, kind.prefix())
}
