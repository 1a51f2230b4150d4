//! From a place a manifest names to a path that is there, or the error that says why not.
//!
//! Knows nothing of what the path holds.

use std::path::PathBuf;

use crate::location::{Location, Place};
use crate::stage::StageError;

/// The file or folder `location` names; `what` is the word for it in errors (`tokenizer`, `model`).
pub fn local(location: &Location, what: &str) -> Result<PathBuf, StageError> {
    match location.resolve() {
        Place::Local(path) => Ok(path),
        Place::Hub(name) => Err(StageError::with_help(
            format!("{what}: {name} is a Hub repository, and pipe can't fetch from the Hub yet"),
            "name a local folder, or run with a profile that needs no network, such as `--profile embedded` \
             where the manifest has one",
        )),
        Place::Missing(path) => {
            Err(StageError::with_help(format!("{what}: nothing is at {}", path.display()), location.advice()))
        }
        Place::Glob(pattern) => Err(StageError::with_help(
            format!("{what}: {pattern} is a pattern, and one file or folder is needed"),
            "write the path without `*`, `?` and `[`",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> (String, String) {
        match local(&Location::new(text, "/nowhere"), "tokenizer") {
            Err(StageError::Failed { message, help: Some(help) }) => (message, help),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_path_that_exists_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("model")).unwrap();
        let path = local(&Location::new("model", dir.path()), "model").unwrap();
        assert_eq!(path, dir.path().join("model"));
    }

    #[test]
    fn a_hub_name_says_what_to_do_without_a_network() {
        let (message, help) = refusal("bigscience/bloomz-560m");
        assert_eq!(
            message,
            "tokenizer: bigscience/bloomz-560m is a Hub repository, and pipe can't fetch from the Hub yet"
        );
        assert_eq!(
            help,
            "name a local folder, or run with a profile that needs no network, such as `--profile embedded` \
             where the manifest has one"
        );
    }

    #[test]
    fn a_missing_path_says_where_it_was_looked_for() {
        let (message, help) = refusal("models/smol.gguf");
        assert_eq!(message, "tokenizer: nothing is at /nowhere/models/smol.gguf");
        assert_eq!(
            help,
            "`models/smol.gguf` is looked for in /nowhere: a relative path starts from the manifest's folder, \
             and one given with --set from the folder the command runs in"
        );
    }

    #[test]
    fn a_pattern_is_no_single_file() {
        let (message, _) = refusal("models/*.gguf");
        assert_eq!(
            message,
            "tokenizer: /nowhere/models/*.gguf is a pattern, and one file or folder is needed"
        );
    }
}
