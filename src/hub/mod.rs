//! The Hugging Face Hub: names become pinned commits, commits become files on this machine, results go up.
//!
//! The only module that speaks to the Hub. Knows repositories and files; does not know stages, keys or runs.

pub mod error;
pub mod repo;
pub mod settings;

pub use error::HubError;
pub use repo::{Commit, FileDigest, RemoteFile, RepoKind, RepoName};
pub use settings::{Network, Settings, Token};
