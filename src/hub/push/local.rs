//! A file to be pushed, held against what a repository has.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{Content, Upload};
use crate::hub::error::HubError;
use crate::hub::repo::{FileDigest, RemoteFile};

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// An [`Upload`] with its size.
#[derive(Debug)]
pub(super) struct Local<'a> {
    pub path: &'a str,
    pub content: &'a Content,
    pub size: u64,
}

impl<'a> Local<'a> {
    pub fn of(upload: &'a Upload) -> Result<Self, HubError> {
        let size = match &upload.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File(path) => path.metadata().map_err(|e| disk(path, e))?.len(),
        };
        Ok(Self { path: &upload.path, content: &upload.content, size })
    }

    /// Whether its content is that of a file in a repository; reads it only if the sizes agree.
    pub fn is(&self, remote: &RemoteFile, stop: &dyn Fn() -> bool) -> Result<bool, HubError> {
        if remote.size != self.size {
            return Ok(false);
        }
        let digits = match remote.digest {
            FileDigest::Sha1(_) => {
                self.digest(Sha1::new().chain_update(format!("blob {}\0", self.size)), stop)
            }
            FileDigest::Sha256(_) => self.digest(Sha256::new(), stop),
        };
        Ok(digits? == remote.digest.hex())
    }

    fn digest<D: Digest>(&self, mut hasher: D, stop: &dyn Fn() -> bool) -> Result<String, HubError> {
        match self.content {
            Content::Bytes(bytes) => hasher.update(bytes),
            Content::File(path) => {
                let mut file = File::open(path).map_err(|e| disk(path, e))?;
                let mut chunk = vec![0; CHUNK];
                loop {
                    if stop() {
                        return Err(HubError::Interrupted);
                    }
                    match file.read(&mut chunk).map_err(|e| disk(path, e))? {
                        0 => break,
                        n => hasher.update(&chunk[..n]),
                    }
                }
            }
        }
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

fn disk(path: &Path, source: io::Error) -> HubError {
    HubError::Disk { path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf 'hello\n' | git hash-object --stdin`, and `| sha256sum`.
    const GIT: &str = "ce013625030ba8dba906f756967f9e9ca394464a";
    const SHA256: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    fn remote(size: u64, digits: &str) -> RemoteFile {
        RemoteFile { path: "a".into(), size, digest: FileDigest::from_hex(digits).unwrap() }
    }

    #[test]
    fn content_is_known_by_either_digest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hello");
        std::fs::write(&path, "hello\n").unwrap();
        for content in [Content::File(path), Content::Bytes(b"hello\n".to_vec())] {
            let upload = Upload { path: "a".into(), content };
            let local = Local::of(&upload).unwrap();
            let is = |remote: &RemoteFile| local.is(remote, &|| false).unwrap();
            assert!(is(&remote(6, GIT)));
            assert!(is(&remote(6, SHA256)));
            assert!(!is(&remote(6, &"a".repeat(64))));
            assert!(!is(&remote(7, SHA256)));
        }
    }

    #[test]
    fn a_long_file_is_not_read_to_its_end_once_it_is_to_stop() {
        let upload = Upload { path: "a".into(), content: Content::File("/dev/null".into()) };
        let local = Local::of(&upload).unwrap();
        let stopped = local.is(&remote(0, GIT), &|| true);
        assert!(matches!(stopped, Err(HubError::Interrupted)), "{stopped:?}");
    }
}
