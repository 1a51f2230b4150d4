//! The Hub that other tests speak to, held against `hf-hub`'s own client.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod hub;

use std::future::Future;
use std::time::Duration;

use futures_util::{StreamExt, pin_mut};
use hf_hub::repository::{AddSource, CommitOperation, RepoTreeEntry};
use hf_hub::{HFClient, HFError, RepoTypeDataset, RepoTypeModel};
use hub::repos::Kind;
use hub::{Host, Options, Server};

const TOKEN: &str = "hf_planted";

fn client(server: &Server, cache: &tempfile::TempDir) -> HFClient {
    let builder = HFClient::builder().endpoint(&server.endpoint).token(TOKEN).cache_dir(cache.path());
    builder.retry_base_delay(Duration::from_millis(5)).build().unwrap()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(future)
}
