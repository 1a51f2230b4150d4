//! Reads a model's config.json key by key, with errors that name file and key.
//!
//! Does not know what a key means to an architecture.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ModelError;

/// No size of a model is larger; products of two stay far within a usize.
const MOST: usize = 1 << 31;

/// A model's configuration in Hugging Face's form.
#[derive(Clone, Debug)]
pub struct Config {
    path: PathBuf,
    value: Value,
}

impl Config {
    /// A configuration that stands in `path`.
    pub fn new(path: impl Into<PathBuf>, value: Value) -> Self {
        Self { path: path.into(), value }
    }

    /// Reads a config.json.
    ///
    /// # Errors
    /// The file can't be read or is not JSON.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ModelError::Io { path: path.to_path_buf(), source })?;
        let value = serde_json::from_str(&text)
            .map_err(|e| ModelError::Config { path: path.to_path_buf(), reason: e.to_string() })?;
        Ok(Self::new(path, value))
    }

    /// The file it stands in.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of it.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The value at a key, `null` counting as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|v| !v.is_null())
    }

    /// The mapping at a key, as a configuration of its own.
    pub fn section(&self, key: &str) -> Option<Self> {
        self.get(key).map(|v| Self::new(&self.path, v.clone()))
    }

    /// The text at a key.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// A whole number above 0 under one of several names.
    ///
    /// # Errors
    /// No such key, or not such a number.
    pub fn count(&self, names: &[&str]) -> Result<usize, ModelError> {
        match self.maybe_count(names)? {
            Some(n) => Ok(n),
            None => Err(self.lacks(names.first().copied().unwrap_or_default())),
        }
    }

    /// Like [`Config::count`], where the key may be absent or null.
    ///
    /// # Errors
    /// There is something that is not a whole number above 0.
    pub fn maybe_count(&self, names: &[&str]) -> Result<Option<usize>, ModelError> {
        let Some((name, value)) = names.iter().find_map(|n| self.get(n).map(|v| (n, v))) else {
            return Ok(None);
        };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if n > MOST => Err(self.wrong(format!("`{name}` is {n}, more than any model has"))),
            Some(n) if n > 0 => Ok(Some(n)),
            _ => Err(self.wrong(format!("`{name}` is {value}, a whole number above 0 is needed"))),
        }
    }

    /// A finite number, or `default` where the key is absent.
    ///
    /// # Errors
    /// There is something that is not a number.
    pub fn number_or(&self, name: &str, default: f64) -> Result<f64, ModelError> {
        match self.get(name) {
            None => Ok(default),
            Some(v) => v.as_f64().ok_or_else(|| self.wrong(format!("`{name}` is {v}, a number is needed"))),
        }
    }

    /// A share from 0 up to but not including 1, or `default` where the key is absent.
    ///
    /// # Errors
    /// There is something else.
    pub fn share_or(&self, name: &str, default: f64) -> Result<f32, ModelError> {
        match self.number_or(name, default)? {
            share if (0.0..1.0).contains(&share) => Ok(share as f32),
            share => Err(self.wrong(format!("`{name}` is {share}, a number from 0 up to below 1 is needed"))),
        }
    }

    /// True or false, or `default` where the key is absent.
    ///
    /// # Errors
    /// There is something else.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(name) {
            None => Ok(default),
            Some(v) => {
                v.as_bool().ok_or_else(|| self.wrong(format!("`{name}` is {v}, true or false is needed")))
            }
        }
    }

    /// The error for a key that is not there.
    pub fn lacks(&self, key: &str) -> ModelError {
        self.wrong(format!("`{key}` is missing"))
    }

    /// An error about this file.
    pub fn wrong(&self, reason: impl Into<String>) -> ModelError {
        ModelError::Config { path: self.path.clone(), reason: reason.into() }
    }
}
