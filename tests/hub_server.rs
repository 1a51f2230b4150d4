//! The Hub that other tests speak to, held against `hf-hub`'s own client, and its faults against what they promise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod hub;

use std::future::Future;
use std::time::Duration;

use futures_util::{StreamExt, pin_mut};
use hf_hub::repository::{CommitOperation, RepoTreeEntry};
use hf_hub::{HFClient, HFError, HFResult, RepoTypeModel};
use hub::faults::{ABSURD_SIZE, HOSTILE_NAMES};
use hub::repos::Kind;
use hub::{Host, Options, Server, Xet};
use serde_json::Value;

const TOKEN: &str = "hf_planted";

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(future)
}

fn client(server: &Server, cache: &tempfile::TempDir) -> HFClient {
    let builder = HFClient::builder().endpoint(&server.endpoint).token(TOKEN).cache_dir(cache.path());
    builder.retry_base_delay(Duration::from_millis(5)).build().unwrap()
}

/// Bytes that no compression makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(next).collect()
}

/// A Hub with one model: a small file, one in a folder and a large one.
fn tiny() -> (Server, Vec<u8>) {
    let (server, weights) = (Server::start(Options { page_size: 2, ..Options::default() }), noise(200_000));
    let files: [(&str, &[u8]); 3] = [
        ("config.json", b"{\"model_type\":\"bloom\"}"),
        ("sub/notes.txt", b"hello\n"),
        ("model.safetensors", &weights),
    ];
    server.add(Kind::Model, "ada/tiny", "main", &files);
    (server, weights)
}

async fn paths(client: &HFClient, id: &str) -> HFResult<Vec<String>> {
    let (owner, name) = hf_hub::split_id(id);
    let repo = client.model(owner, name);
    let entries = repo.list_tree().recursive(true).send()?;
    pin_mut!(entries);
    let mut paths = Vec::new();
    while let Some(entry) = entries.next().await {
        if let RepoTreeEntry::File { path, .. } = entry? {
            paths.push(path);
        }
    }
    Ok(paths)
}

#[test]
fn hf_hub_reads() {
    let (server, weights) = tiny();
    let cache = tempfile::tempdir().unwrap();
    let client = client(&server, &cache);
    run(async {
        let repo = client.model("ada", "tiny");
        let info = repo.info().send().await.unwrap();
        assert_eq!(info.sha, Some(server.head(Kind::Model, "ada/tiny", "main")));
        assert_eq!(
            paths(&client, "ada/tiny").await.unwrap(),
            ["config.json", "model.safetensors", "sub/notes.txt"]
        );
        assert_eq!(server.count("GET", "/tree/main"), 2);
        let file = repo.download_file().filename("model.safetensors").send().await.unwrap();
        assert_eq!(std::fs::read(file).unwrap(), weights);
        let file = repo.download_file().filename("sub/notes.txt").send().await.unwrap();
        assert_eq!(std::fs::read(file).unwrap(), b"hello\n");
        let missing = repo.download_file().filename("nothing").send().await;
        assert!(matches!(missing, Err(HFError::EntryNotFound { .. })), "{missing:?}");
        let missing = repo.info().revision("nothing").send().await;
        assert!(matches!(missing, Err(HFError::RevisionNotFound { .. })), "{missing:?}");
        let missing = client.model("ada", "nothing").info().send().await;
        assert!(matches!(missing, Err(HFError::RepoNotFound { .. })), "{missing:?}");
    });
    let (at_storage, at_endpoint): (Vec<_>, Vec<_>) =
        server.requests().into_iter().partition(|request| request.host == Host::Storage);
    assert_eq!(at_storage.len(), 1);
    assert!(!at_storage[0].mentions(TOKEN));
    assert!(at_endpoint.iter().all(|request| request.mentions(TOKEN)));
}

#[test]
fn the_same_content_makes_the_same_commit() {
    let ids: Vec<String> = (0..2).map(|_| tiny().0.head(Kind::Model, "ada/tiny", "main")).collect();
    assert_eq!(ids[0], ids[1]);
    let (server, _) = tiny();
    server.add(Kind::Model, "ada/tiny", "main", &[("config.json", b"{}")]);
    assert_ne!(server.head(Kind::Model, "ada/tiny", "main"), ids[0]);
}

async fn push(client: &HFClient, weights: &[u8]) -> HFResult<String> {
    let operations = vec![
        CommitOperation::add_bytes("config.json", &b"{}"[..]),
        CommitOperation::add_bytes("adapter_model.safetensors", weights.to_vec()),
    ];
    let repo = client.model("ada", "pushed");
    let commit = repo.create_commit().operations(operations).commit_message("Both").send().await?;
    Ok(commit.commit_oid.unwrap())
}

async fn create(client: &HFClient) -> HFResult<String> {
    Ok(client
        .create_repository()
        .repo_id("ada/pushed")
        .repo_type(RepoTypeModel)
        .private(true)
        .send()
        .await?
        .url)
}

#[test]
fn hf_hub_pushes_large_files_by_xet() {
    for (xet, comes_from) in [(Xet::Push, "/cdn/"), (Xet::PushAndPull, "/xorb/")] {
        let server = Server::start(Options { xet, ..Options::default() });
        let (cache, weights) = (tempfile::tempdir().unwrap(), noise(200_000));
        let client = client(&server, &cache);
        let read = |branch, path| server.read(Kind::Model, "ada/pushed", branch, path);
        run(async {
            assert_eq!(create(&client).await.unwrap(), format!("{}/ada/pushed", server.endpoint));
            assert!(matches!(create(&client).await, Err(HFError::Conflict { .. })));
            assert!(server.with_repo(Kind::Model, "ada/pushed", |repo| repo.private));
            assert_eq!(
                push(&client, &weights).await.unwrap(),
                server.head(Kind::Model, "ada/pushed", "main")
            );
            assert_eq!(read("main", "adapter_model.safetensors"), Some(weights.clone()));
            assert_eq!(read("main", "config.json").as_deref(), Some(&b"{}"[..]));
            let repo = client.model("ada", "pushed");
            let file = repo.download_file().filename("adapter_model.safetensors").send().await.unwrap();
            assert_eq!(std::fs::read(file).unwrap(), weights);
            let gone = vec![CommitOperation::delete("config.json")];
            let pull = repo.create_commit().operations(gone.clone()).commit_message("Gone").create_pr(true);
            let pull = pull.send().await.unwrap().commit_oid.unwrap();
            assert_eq!(pull, server.head(Kind::Model, "ada/pushed", "refs/pr/1"));
            assert_eq!(read("refs/pr/1", "config.json"), None);
            assert!(read("main", "config.json").is_some());
            repo.create_branch().branch("try").send().await.unwrap();
            repo.create_commit()
                .operations(gone)
                .commit_message("Gone")
                .revision("try")
                .send()
                .await
                .unwrap();
            assert_eq!(read("try", "config.json"), None);
            assert!(
                read("try", "adapter_model.safetensors").is_some() && read("main", "config.json").is_some()
            );
        });
        let storage: Vec<_> =
            server.requests().into_iter().filter(|request| request.host == Host::Storage).collect();
        assert!(storage.iter().any(|r| r.target.starts_with("/v1/xorbs/") && r.body >= weights.len()));
        assert!(storage.iter().any(|r| r.method == "GET" && r.target.starts_with(comes_from)));
        assert!(!storage.iter().any(|request| request.mentions(TOKEN)));
    }
}

#[test]
fn a_push_that_dies_leaves_the_branch_as_it_was() {
    for fault in
        ["POST */commit/* die", "POST /v1/shards die-after", "POST /v1/xorbs/* die", "POST */preupload/* die"]
    {
        let (server, weights) = tiny();
        let cache = tempfile::tempdir().unwrap();
        let builder = HFClient::builder().endpoint(&server.endpoint).token(TOKEN).cache_dir(cache.path());
        let client = builder.retry_max_attempts(0).build().unwrap();
        run(async {
            create(&client).await.unwrap();
            let head = server.head(Kind::Model, "ada/pushed", "main");
            server.fault(fault);
            let dead = tokio::time::timeout(Duration::from_secs(3), push(&client, &weights)).await;
            assert!(!matches!(dead, Ok(Ok(_))), "{fault}: {dead:?}");
            assert!(create(&client).await.is_err(), "{fault}: it answers");
            assert_eq!(server.head(Kind::Model, "ada/pushed", "main"), head, "{fault}");
        });
    }
}

#[test]
fn an_answer_can_get_lost_after_the_commit() {
    let (server, weights) = tiny();
    let cache = tempfile::tempdir().unwrap();
    let builder = HFClient::builder().endpoint(&server.endpoint).token(TOKEN).cache_dir(cache.path());
    let client = builder.retry_max_attempts(0).build().unwrap();
    run(async {
        create(&client).await.unwrap();
        server.fault("POST */commit/* lost x1");
        assert!(push(&client, &weights).await.is_err());
        assert_eq!(
            server.read(Kind::Model, "ada/pushed", "main", "adapter_model.safetensors"),
            Some(weights)
        );
    });
}

/// Status, headers and as much of the body as comes within a second.
async fn get(
    address: &str,
    range: Option<&str>,
) -> Result<(u16, reqwest::header::HeaderMap, Vec<u8>), String> {
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::limited(5)).build().unwrap();
    let request =
        range.into_iter().fold(client.get(address), |request, range| request.header("Range", range));
    let answer =
        tokio::time::timeout(Duration::from_secs(1), request.send()).await.map_err(|_| "no answer")?;
    let mut answer = answer.map_err(|error| if error.is_redirect() { "redirects" } else { "closed" })?;
    let (status, headers, mut body) = (answer.status().as_u16(), answer.headers().clone(), Vec::new());
    let all = async {
        while let Some(part) = answer.chunk().await.transpose() {
            match part {
                Ok(part) => body.extend_from_slice(&part),
                Err(_) => return Err(format!("closed after {} bytes", body.len())),
            }
        }
        Ok(())
    };
    match tokio::time::timeout(Duration::from_secs(1), all).await {
        Err(_) => Err(format!("open after {} bytes", body.len())),
        Ok(Err(reason)) => Err(reason),
        Ok(Ok(())) => Ok((status, headers, body)),
    }
}

#[test]
fn faults_do_what_they_say() {
    let (server, weights) = tiny();
    let file = |path: &str| format!("{}/ada/tiny/resolve/main/{path}", server.endpoint);
    let (large, tree) =
        (file("model.safetensors"), format!("{}/api/models/ada/tiny/tree/main", server.endpoint));
    let ask = |fault: &str, address: &str, range: Option<&str>| {
        server.mend();
        server.fault(fault);
        run(get(address, range))
    };
    let (status, headers, _) = ask("GET * 429=7 x1", &large, None).unwrap();
    assert_eq!((status, headers["Retry-After"].to_str().unwrap()), (429, "7"));
    assert_eq!(run(get(&large, None)).unwrap().2, weights, "only once");
    assert_eq!(ask("* 503", &large, None).unwrap().0, 503);
    assert_eq!(ask("GET /api/models/* 503", &large, None).unwrap().0, 200, "another path");
    assert_eq!(ask("POST * 503", &large, None).unwrap().0, 200, "another method");
    assert_eq!(ask("* drop", &large, None).unwrap_err(), "closed");
    assert_eq!(ask("* silent", &large, None).unwrap_err(), "no answer");
    assert_eq!(ask("* loop", &large, None).unwrap_err(), "redirects");
    assert_eq!(ask("*.safetensors cut=0.3 x1", &large, None).unwrap_err(), "closed after 60000 bytes");
    assert_eq!(ask("*.safetensors stall=0.3", &large, None).unwrap_err(), "open after 60000 bytes");
    assert_eq!(ask("*.safetensors trickle=20", &large, None).unwrap_err().split(' ').next(), Some("open"));
    let (status, _, body) = ask("*.safetensors corrupt", &large, None).unwrap();
    assert_eq!((status, body.len(), body[0] == weights[0]), (200, weights.len(), false));
    assert_eq!(body[1..], weights[1..]);
    let (status, _, body) = ask("*.json 404", &large, Some("bytes=100-109")).unwrap();
    assert_eq!((status, &body[..]), (206, &weights[100..110]));
    let (status, _, body) = ask("* no-range", &large, Some("bytes=100-109")).unwrap();
    assert_eq!((status, body.len()), (200, weights.len()));
    for fault in ["* endless", "* endless-json"] {
        let endless = ask(fault, &tree, None).unwrap_err();
        let bytes: usize = endless.split(' ').nth(2).unwrap().parse().unwrap();
        assert!(endless.starts_with("open") && bytes > 100_000, "{fault}: {endless}");
    }
    let listing = |fault| -> Value { serde_json::from_slice(&ask(fault, &tree, None).unwrap().2).unwrap() };
    let hostile = listing("* hostile-names x1");
    let names: Vec<&str> =
        hostile.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap()).collect();
    assert!(HOSTILE_NAMES.iter().all(|name| names.contains(name)), "{names:?}");
    let huge = listing("* absurd-sizes");
    assert!(huge.as_array().unwrap().iter().all(|entry| entry["size"] == ABSURD_SIZE), "{huge}");
    assert_eq!(huge[1]["lfs"]["size"], ABSURD_SIZE);
    server.forget_requests();
    assert_eq!(ask("/ada/tiny/* elsewhere", &large, None).unwrap().0, 404);
    assert_eq!(server.requests().last().map(|request| request.host), Some(Host::Storage));
    assert_eq!(ask("* die", &large, None).unwrap_err(), "closed");
    assert_eq!(run(get(&tree, None)).unwrap_err(), "closed", "dead for good");
    server.mend();
    assert_eq!(run(get(&tree, None)).unwrap().0, 200);
    drop(server);
    assert_eq!(run(get(&tree, None)).unwrap_err(), "closed");
}

#[test]
fn a_wrong_fault_says_what_is_wrong() {
    let wrong = |line: &str| line.parse::<hub::faults::Fault>().unwrap_err();
    assert_eq!(wrong("GET *"), "`GET *` is no fault: [METHOD] PATTERN WHAT [xCOUNT]");
    assert_eq!(wrong("GET * cu=0.3 x1"), "`GET * cu=0.3 x1`: there is no fault `cu=0.3`");
    assert_eq!(wrong("* cut=x"), "`* cut=x`: there is no fault `cut=x`");
}
