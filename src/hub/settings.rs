//! Where the Hub is, who asks, and where its files are kept: read from the environment as Python's
//! `huggingface_hub` reads it.
//!
//! Does not ask the Hub anything.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An access token. Shows itself nowhere; [`Token::expose`] is for the one header it belongs in.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// Whether the Hub may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// It may.
    Online,
    /// Only what is on this machine counts (`--offline`, `HF_HUB_OFFLINE`).
    Offline,
}

/// How the Hub is reached.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `https://huggingface.co`, or `HF_ENDPOINT`; without a slash at the end.
    pub endpoint: String,
    /// `HF_TOKEN`, else the file at `HF_TOKEN_PATH`, else `token` in `HF_HOME`.
    pub token: Option<Token>,
    /// The cache that Python's `huggingface_hub` uses: `HF_HUB_CACHE`, else `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// Whether the Hub may be asked.
    pub network: Network,
    /// How long a connection may take, or stay silent: `HF_HUB_DOWNLOAD_TIMEOUT` in seconds.
    pub timeout: Duration,
}

/// The Hub itself.
const ENDPOINT: &str = "https://huggingface.co";

/// `huggingface_hub` waits 10 seconds.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Settings {
    /// As the environment of this process has it.
    pub fn from_environment() -> Self {
        Self::read(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// As `var` answers for the names of environment variables.
    fn read(var: &dyn Fn(&str) -> Option<String>) -> Self {
        let user = || PathBuf::from(var("HOME").unwrap_or_else(|| "/tmp".into()));
        let home = var("HF_HOME").map(|path| expand(&path, &user())).unwrap_or_else(|| {
            let cache = var("XDG_CACHE_HOME").map_or_else(|| user().join(".cache"), PathBuf::from);
            cache.join("huggingface")
        });
        let yes = |name| {
            var(name).is_some_and(|v| matches!(v.to_lowercase().as_str(), "1" | "on" | "yes" | "true"))
        };
        let file = |path: PathBuf| std::fs::read_to_string(path).ok();
        let token = if yes("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            None
        } else {
            var("HF_TOKEN")
                .or_else(|| file(var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from)))
                .map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty())
                .map(Token)
        };
        let cache = var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE"));
        let seconds = var("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.parse::<f64>().ok());
        let seconds = seconds.filter(|s| s.is_finite() && *s > 0.0);
        Self {
            endpoint: var("HF_ENDPOINT")
                .map_or_else(|| ENDPOINT.into(), |e| e.trim_end_matches('/').to_owned()),
            token,
            cache: cache.map_or_else(|| home.join("hub"), |path| expand(&path, &user())),
            network: if yes("HF_HUB_OFFLINE") { Network::Offline } else { Network::Online },
            timeout: seconds.map_or(TIMEOUT, Duration::from_secs_f64),
        }
    }
}

/// `~/…` from the user's folder.
fn expand(path: &str, user: &Path) -> PathBuf {
    match path.strip_prefix("~/") {
        Some(rest) => user.join(rest),
        None => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Settings {
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Settings::read(&|name| pairs.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    }

    #[test]
    fn the_places_are_those_of_python() {
        let plain = read(&[("HOME", "/home/ada")]);
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache, Path::new("/home/ada/.cache/huggingface/hub"));
        assert_eq!(plain.network, Network::Online);
        let moved = read(&[("HOME", "/home/ada"), ("HF_HOME", "~/hf"), ("HF_ENDPOINT", "http://here:1/")]);
        assert_eq!(moved.cache, Path::new("/home/ada/hf/hub"));
        assert_eq!(moved.endpoint, "http://here:1");
        let cache = read(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/elsewhere"), ("HF_HUB_OFFLINE", "YES")]);
        assert_eq!(cache.cache, Path::new("/elsewhere"));
        assert_eq!(cache.network, Network::Offline);
        assert_eq!(read(&[("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
    }

    #[test]
    fn a_token_comes_from_the_variable_or_the_file_and_shows_itself_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        let home = dir.path().to_str().unwrap();
        let expose = |s: Settings| s.token.map(|t| t.expose().to_owned());
        assert_eq!(expose(read(&[("HF_HOME", home)])).as_deref(), Some("hf_file"));
        assert_eq!(expose(read(&[("HF_HOME", home), ("HF_TOKEN", "hf_env")])).as_deref(), Some("hf_env"));
        let off = read(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]);
        assert_eq!(expose(off), None);
        assert!(!format!("{:?}", read(&[("HF_TOKEN", "hf_env")])).contains("hf_env"));
    }
}
