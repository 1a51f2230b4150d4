//! From a place a manifest names to a path that is there, or the error that says why not.
//!
//! Knows nothing of what the path holds.

use std::path::PathBuf;

use crate::files::shown;
use crate::hub::{HubError, Pin, Reads, RepoName};
use crate::location::{Location, Place};
use crate::stage::{Context, StageError};

/// The file or folder `location` names; `what` is the word for it in errors (`init.file`).
pub fn local(location: &Location, what: &str) -> Result<PathBuf, StageError> {
    match location.resolve() {
        Place::Local(path) => Ok(path),
        Place::Hub(name) => Err(StageError::with_help(
            format!("{what}: nothing is at {name}, and a name on the Hub is not taken here"),
            location.advice(),
        )),
        Place::Missing(path) => {
            Err(StageError::with_help(format!("{what}: nothing is at {}", shown(&path)), location.advice()))
        }
        Place::Glob(glob) => Err(StageError::with_help(
            format!("{what}: {glob} is a pattern, and one file or folder is needed"),
            "write the path without `*`, `?` and `[`",
        )),
    }
}

/// The same, or the folder that holds what `reads` wants of the repository `location` names.
pub fn local_or_fetched(
    context: &Context<'_>,
    location: &Location,
    reads: &Reads,
    what: &str,
) -> Result<PathBuf, StageError> {
    match location.resolve() {
        Place::Hub(name) => Ok(fetched(context, &name.parse()?, reads)?.0),
        _ => local(location, what),
    }
}

/// The folder with the pinned files of a repository, once all of them are in it.
pub fn fetched(context: &Context<'_>, name: &RepoName, reads: &Reads) -> Result<(PathBuf, Pin), StageError> {
    let pin = context.hub.pin(name, reads, context.cancel)?;
    let branch = pin.branch.as_ref().map(|branch| format!(", converted ({branch})")).unwrap_or_default();
    context.note(format!("{} at {}{branch}", pin.repo, pin.commit.short()));
    let tell = |done: u64, total: u64| {
        context.progress(done, total, "bytes", format!("of {name}"));
    };
    let folder = context.hub.fetch(&pin, &tell, context.cancel)?;
    Ok((folder, pin))
}

impl From<HubError> for StageError {
    fn from(error: HubError) -> Self {
        match error {
            HubError::Interrupted => Self::Interrupted,
            other => Self::Failed { help: other.help(), message: other.to_string() },
        }
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
    fn a_missing_path_says_where_it_was_looked_for() {
        let (message, help) = refusal("models/smol.gguf");
        assert_eq!(message, "tokenizer: nothing is at /nowhere/models/smol.gguf");
        let expected = "`models/smol.gguf` is looked for in /nowhere: a relative path starts from the manifest's \
                        folder, and one given with --set from the folder the command runs in";
        assert_eq!(help, expected);
        let (message, _) = refusal("owner/name");
        assert_eq!(message, "tokenizer: nothing is at owner/name, and a name on the Hub is not taken here");
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
