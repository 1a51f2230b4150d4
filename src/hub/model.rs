//! Which files of a model repository a use of it needs: weights with their configuration, a tokenizer, an adapter.
//!
//! Knows the names of files; reads of them only an index of shards.

use std::collections::BTreeSet;

use super::error::HubError;
use super::repo::{RemoteFile, RepoName, is_safe_path};

/// What a tokenizer is read from.
const TOKENIZER: &[&str] =
    &["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The endings of pickles with weights.
const PICKLES: &[&str] = &[".bin", ".pt", ".pth", ".ckpt"];

fn unusable(repo: &RepoName, reason: impl Into<String>, help: impl Into<String>) -> HubError {
    HubError::Unusable { repo: repo.clone(), reason: reason.into(), help: help.into() }
}

fn named(listing: &[RemoteFile], names: &[&str]) -> Vec<RemoteFile> {
    listing.iter().filter(|file| names.contains(&file.path.as_str())).cloned().collect()
}

fn has(listing: &[RemoteFile], name: &str) -> bool {
    listing.iter().any(|file| file.path == name)
}

/// The weights with what tells their shape, and the tokenizer. `read` gives the content of a small file.
pub fn model(
    repo: &RepoName,
    listing: &[RemoteFile],
    read: &mut dyn FnMut(&RemoteFile) -> Result<Vec<u8>, HubError>,
) -> Result<Vec<RemoteFile>, HubError> {
    if has(listing, "adapter_config.json") && !has(listing, "config.json") {
        return Err(unusable(
            repo,
            "it is an adapter, no model",
            "name it under `adapter`; it brings its base model along",
        ));
    }
    if !has(listing, "config.json") {
        return Err(unusable(
            repo,
            "it has no config.json, so it is no model that can be read",
            "check the name",
        ));
    }
    let mut names: BTreeSet<String> = ["config.json", "generation_config.json"].map(String::from).into();
    names.extend(TOKENIZER.iter().map(|name| name.to_string()));
    if has(listing, WEIGHTS) {
        names.insert(WEIGHTS.into());
    } else if let Some(index) = listing.iter().find(|file| file.path == INDEX) {
        names.insert(INDEX.into());
        for shard in shards(repo, &read(index)?)? {
            if !has(listing, &shard) {
                let reason = format!("{INDEX} names {shard}, and there is no such file");
                return Err(unusable(repo, reason, "it was not uploaded whole; try another revision"));
            }
            names.insert(shard);
        }
    } else {
        return Err(without_weights(repo, listing));
    }
    Ok(listing.iter().filter(|file| names.contains(&file.path)).cloned().collect())
}

/// What the text of an index says of shards.
fn shards(repo: &RepoName, text: &[u8]) -> Result<BTreeSet<String>, HubError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let broken =
        |reason: String| unusable(repo, format!("{INDEX} is broken: {reason}"), "try another revision");
    let index: Index = serde_json::from_slice(text).map_err(|e| broken(e.to_string()))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    match shards.iter().find(|shard| !is_safe_path(shard) || !shard.ends_with(".safetensors")) {
        Some(odd) => Err(broken(format!("it names {odd:?}"))),
        None => Ok(shards),
    }
}

fn without_weights(repo: &RepoName, listing: &[RemoteFile]) -> HubError {
    let pickle = listing.iter().find(|file| PICKLES.iter().any(|ending| file.path.ends_with(ending)));
    let other = |ending: &str| listing.iter().find(|file| file.path.ends_with(ending));
    if let Some(pickle) = pickle {
        unusable(
            repo,
            format!(
                "its weights are only there as {}, a pickle, which can run any code when it is read",
                pickle.path
            ),
            "look for a revision with safetensors (often `refs/pr/1`, made by the Hub's own converter) and name it \
             under `revision`, or convert the model",
        )
    } else if let Some(gguf) = other(".gguf") {
        unusable(
            repo,
            "its weights are GGUF files",
            format!("download one, such as {}, and name the file under `model`", gguf.path),
        )
    } else {
        unusable(repo, "it has no model.safetensors", "check the name and the revision")
    }
}

/// What a tokenizer is read from.
pub fn tokenizer(repo: &RepoName, listing: &[RemoteFile]) -> Result<Vec<RemoteFile>, HubError> {
    if !has(listing, "tokenizer.json") {
        return Err(unusable(
            repo,
            "it has no tokenizer.json",
            "name a repository that has one; transformers writes it with \
             `AutoTokenizer.from_pretrained(…, use_fast=True).save_pretrained(…)`",
        ));
    }
    Ok(named(listing, TOKENIZER))
}

/// The two files of an adapter.
pub fn adapter(repo: &RepoName, listing: &[RemoteFile]) -> Result<Vec<RemoteFile>, HubError> {
    if !has(listing, "adapter_config.json") {
        return Err(unusable(repo, "it has no adapter_config.json, so it is no adapter", "check the name"));
    }
    if !has(listing, "adapter_model.safetensors") {
        let reason = match listing.iter().find(|file| PICKLES.iter().any(|e| file.path.ends_with(e))) {
            Some(pickle) => {
                format!(
                    "the adapter is only there as {}, a pickle, which can run any code when it is read",
                    pickle.path
                )
            }
            None => "it has no adapter_model.safetensors".into(),
        };
        let help =
            "save it with a newer PEFT (`save_pretrained` writes safetensors) and name that repository";
        return Err(unusable(repo, reason, help));
    }
    Ok(named(listing, &["adapter_config.json", "adapter_model.safetensors"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::FileDigest;

    fn listing(names: &[&str]) -> Vec<RemoteFile> {
        let file = |name: &&str| RemoteFile {
            path: name.to_string(),
            size: 1,
            digest: FileDigest::Sha1("a".repeat(40)),
        };
        names.iter().map(file).collect()
    }

    fn repo() -> RepoName {
        "a/b".parse().unwrap()
    }

    fn paths(files: Result<Vec<RemoteFile>, HubError>) -> Vec<String> {
        files.unwrap().into_iter().map(|file| file.path).collect()
    }

    fn refused(files: Result<Vec<RemoteFile>, HubError>) -> (String, String) {
        let error = files.unwrap_err();
        (error.to_string(), error.help().unwrap())
    }

    fn unread(_: &RemoteFile) -> Result<Vec<u8>, HubError> {
        panic!("nothing has to be read")
    }

    #[test]
    fn only_what_is_needed_is_taken() {
        let all = listing(&[
            "README.md",
            "config.json",
            "flax_model.msgpack",
            "model.safetensors",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "tokenizer.json",
            "tokenizer_config.json",
        ]);
        let model = paths(model(&repo(), &all, &mut unread));
        assert_eq!(model, ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
        assert_eq!(paths(tokenizer(&repo(), &all)), ["tokenizer.json", "tokenizer_config.json"]);
    }

    #[test]
    fn shards_are_those_of_the_index() {
        let shard = "model-00001-of-00002.safetensors";
        let all =
            listing(&["config.json", INDEX, shard, "model-00002-of-00002.safetensors", "old.safetensors"]);
        let index = format!(r#"{{"weight_map":{{"a":"{shard}","b":"model-00002-of-00002.safetensors"}}}}"#);
        let taken = paths(model(&repo(), &all, &mut |_| Ok(index.clone().into_bytes())));
        assert_eq!(taken, ["config.json", INDEX, shard, "model-00002-of-00002.safetensors"]);
        let odd = r#"{"weight_map":{"a":"../../x.safetensors"}}"#;
        let (message, _) = refused(model(&repo(), &all, &mut |_| Ok(odd.into())));
        assert_eq!(message, "a/b: model.safetensors.index.json is broken: it names \"../../x.safetensors\"");
        let gone = r#"{"weight_map":{"a":"gone.safetensors"}}"#;
        let (message, _) = refused(model(&repo(), &all, &mut |_| Ok(gone.into())));
        assert_eq!(
            message,
            "a/b: model.safetensors.index.json names gone.safetensors, and there is no such file"
        );
    }

    #[test]
    fn pickles_are_refused_with_the_reason() {
        let (message, help) =
            refused(model(&repo(), &listing(&["config.json", "pytorch_model.bin"]), &mut unread));
        assert_eq!(
            message,
            "a/b: its weights are only there as pytorch_model.bin, a pickle, which can run any code when it is read"
        );
        assert!(help.contains("refs/pr/1"));
        let (message, _) = refused(adapter(&repo(), &listing(&["adapter_config.json", "adapter_model.bin"])));
        assert_eq!(
            message,
            "a/b: the adapter is only there as adapter_model.bin, a pickle, which can run any code when it is read"
        );
        let (message, help) = refused(model(&repo(), &listing(&["adapter_config.json"]), &mut unread));
        assert_eq!(message, "a/b: it is an adapter, no model");
        assert_eq!(help, "name it under `adapter`; it brings its base model along");
    }
}
