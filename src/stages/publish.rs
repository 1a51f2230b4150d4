//! Puts a finished set of files into a folder that others read, in place of what it had.
//!
//! Knows files; does not know what they hold.

use std::path::Path;

use crate::stage::StageError;

/// Lets `write` fill a new folder beside `folder`, then moves its files over: a reader finds each file whole, the
/// old one or the new one.
pub fn publish(folder: &Path, write: impl FnOnce(&Path) -> Result<(), StageError>) -> Result<(), StageError> {
    let at = |path: &Path| {
        let path = path.to_path_buf();
        move |error: std::io::Error| StageError::io(&path, &error)
    };
    std::fs::create_dir_all(folder).map_err(at(folder))?;
    let new = tempfile::Builder::new().prefix(".new-").tempdir_in(folder).map_err(at(folder))?;
    write(new.path())?;
    for entry in std::fs::read_dir(new.path()).map_err(at(new.path()))? {
        let entry = entry.map_err(at(new.path()))?;
        let to = folder.join(entry.file_name());
        std::fs::rename(entry.path(), &to).map_err(at(&to))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("pushed");
        let write = |text: &'static str| {
            move |folder: &Path| {
                std::fs::write(folder.join("a"), text).map_err(|e| StageError::io(folder, &e))
            }
        };
        publish(&folder, write("one")).unwrap();
        std::fs::write(folder.join("b"), "mine").unwrap();
        publish(&folder, write("two")).unwrap();
        publish(&folder, |_| Err(StageError::failed("no"))).unwrap_err();
        let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(std::fs::read_to_string(folder.join("a")).unwrap(), "two");
    }
}
