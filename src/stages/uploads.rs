//! What of a trained result goes to the Hub, and under which names.
//!
//! Does not know where it goes.

use std::path::Path;

use crate::about::file_name;
use crate::artifact::adapter;
use crate::files::{RelPath, walk};
use crate::hub::HubError;
use crate::hub::push::{Content, Upload};
use crate::secrets::Secrets;

/// An adapter's two files. Where on this machine its model was is left out of its configuration: the last part
/// of the path stays.
pub fn adapter(folder: &Path, secrets: &Secrets) -> Result<Vec<Upload>, HubError> {
    let config = folder.join(adapter::CONFIG);
    let bytes = std::fs::read(&config).map_err(|source| HubError::Disk { path: config, source })?;
    let bytes = without_folders(&bytes).unwrap_or(bytes);
    Ok(vec![
        Upload { path: adapter::CONFIG.into(), content: Content::Bytes(secrets.hide_in_bytes(&bytes)) },
        Upload { path: adapter::WEIGHTS.into(), content: Content::File(folder.join(adapter::WEIGHTS)) },
    ])
}

/// What a training stage wrote into a folder: an adapter, or a model.
pub fn trained(folder: &Path, secrets: &Secrets) -> Result<Vec<Upload>, HubError> {
    if folder.join(adapter::CONFIG).exists() { adapter(folder, secrets) } else { Ok(files(folder)) }
}

/// A configuration without the folders of its absolute paths; none if it has no such paths.
fn without_folders(config: &[u8]) -> Option<Vec<u8>> {
    let mut config: serde_json::Value = serde_json::from_slice(config).ok()?;
    let mut changed = false;
    for key in ["base_model_name_or_path", "tokenizer_name_or_path"] {
        let Some(value) = config.get_mut(key) else { continue };
        if let Some(path) = value.as_str().map(Path::new).filter(|path| path.is_absolute()) {
            *value = file_name(path).into();
            changed = true;
        }
    }
    let text = serde_json::to_string_pretty(&config).ok()?;
    changed.then(|| adapter::ascii(&text).into_bytes())
}

/// A file under its own name, or all files of a folder; what begins with a dot stays here.
pub fn files(path: &Path) -> Vec<Upload> {
    if path.is_file() {
        return vec![Upload { path: file_name(path), content: Content::File(path.into()) }];
    }
    walk(path)
        .into_iter()
        .map(|file| Upload { path: RelPath::of(&file, path).to_string(), content: Content::File(file) })
        .filter(|upload| !upload.path.split('/').any(|part| part.starts_with('.')))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_does_not_tell_where_its_model_was() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join(adapter::CONFIG);
        let pushed = |text: &str| {
            std::fs::write(&config, text).unwrap();
            match &adapter(dir.path(), &Secrets::default()).unwrap()[0].content {
                Content::Bytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
                Content::File(path) => panic!("{}", path.display()),
            }
        };
        let text =
            pushed(r#"{"base_model_name_or_path": "/home/ada/é.gguf", "tokenizer_name_or_path": null}"#);
        assert_eq!(
            text,
            "{\n  \"base_model_name_or_path\": \"\\u00e9.gguf\",\n  \"tokenizer_name_or_path\": null\n}"
        );
        // What names no place goes as it is, byte for byte.
        let named = r#"{"base_model_name_or_path":   "bigscience/bloomz-560m"}"#;
        assert_eq!(pushed(named), named);
    }

    #[test]
    fn a_folder_goes_with_its_inner_folders_and_without_hidden_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        for name in ["config.json", "a/b.bin", ".cache"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let names = |path: &Path| files(path).into_iter().map(|u| u.path).collect::<Vec<_>>();
        assert_eq!(names(dir.path()), ["a/b.bin", "config.json"]);
        assert_eq!(names(&dir.path().join("a/b.bin")), ["b.bin"]);
    }
}
