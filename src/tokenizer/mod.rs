//! Text to token ids and back, from a Hugging Face folder, a `tokenizer.json` or a GGUF file.
//!
//! Knows which tokens begin, end and pad a text; does not know what the ids are for.

pub mod chat;
mod words;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::model::gguf::{Gguf, GgufError};
use chat::{ChatError, ChatTemplate};
use words::Words;

/// The file of the tokenizers library.
pub const TOKENIZER: &str = "tokenizer.json";
/// The file that names special tokens and says how they are used.
pub const CONFIG: &str = "tokenizer_config.json";
/// The older file that names special tokens.
pub const SPECIAL_TOKENS: &str = "special_tokens_map.json";

/// The file of a chat template of its own; it goes before the one in [`CONFIG`].
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// The keys of [`CONFIG`] that name a token; a chat template knows the tokens by them.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// The left or the right end of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The beginning.
    Left,
    /// The end.
    #[default]
    Right,
}

/// Why there is no tokenizer, or why it can't do what is asked.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file can't be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The folder has none that this module reads.
    #[error("{}: no {TOKENIZER} in this folder", folder.display())]
    Absent {
        /// The folder.
        folder: PathBuf,
        /// What there is instead, and what to do about it.
        help: String,
    },
    /// A file is not what it has to be.
    #[error("{}: {reason}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A GGUF file without a tokenizer that can be used.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// There is no chat template.
    #[error("the tokenizer has no chat template")]
    NoChat,
    /// A chat template that is none.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// A text or ids that it can't take.
    #[error("the tokenizer fails: {0}")]
    Use(String),
}

impl TokenizerError {
    /// What to do about it, where that is known.
    pub fn help(&self) -> Option<&str> {
        match self {
            Self::Absent { help, .. } => Some(help),
            Self::NoChat => Some(
                "put the model's chat_template.jinja beside tokenizer.json, or write the conversation as `prompt` \
                 and `target`",
            ),
            _ => None,
        }
    }
}

/// A tokenizer with its special tokens.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    words: Option<Words>,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    padding_side: Side,
    /// The ids put before and after a text instead of what `tokenizer.json` itself puts there.
    frame: Option<(Option<u32>, Option<u32>)>,
    /// The source of its chat template.
    chat: Option<String>,
    /// The texts of the tokens that have a name, by it.
    special: BTreeMap<String, String>,
}

impl Tokenizer {
    /// Opens a Hugging Face folder, a `tokenizer.json` alone (then no token is known to begin or end a text)
    /// or a `.gguf` file.
    pub fn open(path: &Path) -> Result<Self, TokenizerError> {
        if path.is_dir() {
            Self::open_folder(path)
        } else if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            Self::open_gguf(path)
        } else {
            Self::with_settings(read_tokenizer(path)?, &Map::new(), None, path)
        }
    }

    /// The files of a folder that [`Tokenizer::open`] reads.
    pub fn files(folder: &Path) -> impl Iterator<Item = &'static str> {
        let folder = folder.to_path_buf();
        let names = [TOKENIZER, CONFIG, SPECIAL_TOKENS, CHAT_TEMPLATE];
        names.into_iter().filter(move |name| folder.join(name).is_file())
    }

    /// Writes a folder that [`Tokenizer::open`] and transformers' `AutoTokenizer` read.
    pub fn write(&self, folder: &Path) -> Result<(), TokenizerError> {
        let path = folder.join(TOKENIZER);
        self.inner
            .save(&path, true)
            .map_err(|e| TokenizerError::Broken { path: path.clone(), reason: e.to_string() })?;
        let mut settings = Map::from_iter([
            ("clean_up_tokenization_spaces".to_owned(), Value::Bool(false)),
            ("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into()),
        ]);
        settings.extend(self.special.iter().map(|(name, token)| (name.clone(), token.as_str().into())));
        if let Some((before, after)) = self.frame {
            settings.insert("add_bos_token".into(), before.is_some().into());
            settings.insert("add_eos_token".into(), after.is_some().into());
        }
        settings.extend(self.chat.as_deref().map(|source| ("chat_template".to_owned(), source.into())));
        let path = folder.join(CONFIG);
        let text = format!("{:#}\n", Value::Object(settings));
        std::fs::write(&path, text).map_err(|error| TokenizerError::Io { path, error })
    }

    fn open_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join(TOKENIZER);
        if !path.is_file() {
            return Err(TokenizerError::Absent { folder: folder.into(), help: instead_of_tokenizer(folder) });
        }
        let inner = read_tokenizer(&path)?;
        let mut settings = read_object(&folder.join(SPECIAL_TOKENS))?;
        // What tokenizer_config.json says goes before the older file, but a null there says nothing.
        let newer = read_object(&folder.join(CONFIG))?;
        settings.extend(newer.into_iter().filter(|(_, value)| !value.is_null()));
        let chat = read_text(&folder.join(CHAT_TEMPLATE))?;
        Self::with_settings(inner, &settings, chat, &folder.join(CONFIG))
    }

    fn open_gguf(path: &Path) -> Result<Self, TokenizerError> {
        let gguf = Gguf::open(path)?;
        let (bos, eos) = (gguf.bos_id(), gguf.eos_id());
        let inner = gguf.tokenizer()?;
        let named = [("bos_token", bos), ("eos_token", eos), ("pad_token", gguf.pad_id())];
        let text = |id: Option<u32>| id.and_then(|id| inner.id_to_token(id));
        let special = named.into_iter().filter_map(|(name, id)| Some((name.to_owned(), text(id)?))).collect();
        Ok(Self {
            special,
            chat: gguf.chat_template().map(str::to_owned),
            words: Words::of(&inner),
            inner,
            bos,
            eos,
            pad: gguf.pad_id().or(eos),
            padding_side: Side::Right,
            frame: Some((bos.filter(|_| gguf.adds_bos()), eos.filter(|_| gguf.adds_eos()))),
        })
    }

    /// `settings` are the keys of `tokenizer_config.json`, which `path` stands for in errors; `chat` is a chat
    /// template that goes before the one among them.
    fn with_settings(
        mut inner: tokenizers::Tokenizer,
        settings: &Map<String, Value>,
        chat: Option<String>,
        path: &Path,
    ) -> Result<Self, TokenizerError> {
        let broken = |reason: String| TokenizerError::Broken { path: path.into(), reason };
        // A row's length is decided by whoever asks for ids, never by what was once saved along.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| broken(e.to_string()))?;

        let mut named = Vec::new();
        for key in NAMED {
            let Some(value) = settings.get(key).filter(|value| !value.is_null()) else { continue };
            let token = special_token(value).ok_or_else(|| broken(format!("`{key}` is not a token")))?;
            named.push((key, token));
        }
        add_missing(&mut inner, settings, named.iter().map(|(_, token)| token.clone())).map_err(broken)?;
        let special: BTreeMap<String, String> =
            named.into_iter().map(|(key, token)| (key.to_owned(), token.content)).collect();
        let id = |key: &str| special.get(key).and_then(|token| inner.token_to_id(token));
        let (bos, eos, pad) = (id("bos_token"), id("eos_token"), id("pad_token"));
        let chat = chat.or_else(|| settings.get("chat_template").and_then(default_template));

        let flag = |key: &str| settings.get(key).map(|value| value.as_bool().unwrap_or(false));
        let frame = match (flag("add_bos_token"), flag("add_eos_token")) {
            (None, None) => None,
            (begin, end) => {
                Some((bos.filter(|_| begin.unwrap_or(false)), eos.filter(|_| end.unwrap_or(false))))
            }
        };
        let padding_side = match settings.get("padding_side").and_then(Value::as_str) {
            Some("left") => Side::Left,
            _ => Side::Right,
        };
        let words = Words::of(&inner);
        Ok(Self { inner, words, bos, eos, pad: pad.or(eos), padding_side, frame, chat, special })
    }

    /// The ids of a text; `special`: with the tokens that the tokenizer puts around a text by default.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizerError> {
        let ids = self.ids(text, special && self.frame.is_none());
        let ids = ids.map_err(|e| TokenizerError::Use(e.to_string()))?;
        Ok(match self.frame {
            Some((before, after)) if special => before.into_iter().chain(ids).chain(after).collect(),
            _ => ids,
        })
    }

    /// The ids of a text, `special` as `tokenizer.json` itself frames it.
    fn ids(&self, text: &str, special: bool) -> tokenizers::Result<Vec<u32>> {
        if let Some(words) = &self.words
            && let Some(ids) = words.encode(&self.inner, text, special)?
        {
            return Ok(ids);
        }
        Ok(self.inner.encode_fast(text, special)?.get_ids().to_vec())
    }

    /// The ids of many texts, in their order, worked out in parallel.
    pub fn encode_all<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        special: bool,
    ) -> Result<Vec<Vec<u32>>, TokenizerError> {
        let rows: Vec<_> = texts.par_iter().map(|text| self.encode(text.as_ref(), special)).collect();
        // Gathered one after another, so that of several errors it is always the first that is told.
        rows.into_iter().collect()
    }

    /// The text of ids; `skip_special`: without tokens such as `</s>`.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        self.inner.decode(ids, skip_special).map_err(|e| TokenizerError::Use(e.to_string()))
    }

    /// The token that begins a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// The token that fills rows up; the one that ends a text where there is none of its own.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// The side on which rows are filled up.
    pub fn padding_side(&self) -> Side {
        self.padding_side
    }

    /// The chat template it was published with.
    pub fn chat_template(&self) -> Result<ChatTemplate, TokenizerError> {
        let source = self.chat.as_deref().ok_or(TokenizerError::NoChat)?;
        Ok(ChatTemplate::new(source, self.special.clone())?)
    }

    /// The token of an id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// How many tokens there are, those added to the vocabulary included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// BLAKE3 over every token and its id: two tokenizers with the same fingerprint give ids the same meaning.
    pub fn fingerprint(&self) -> String {
        let mut tokens: Vec<(u32, String)> =
            self.inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        tokens.sort_unstable();
        let mut hasher = blake3::Hasher::new();
        for (id, token) in tokens {
            hasher.update(&id.to_le_bytes());
            hasher.update(&(token.len() as u64).to_le_bytes());
            hasher.update(token.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

fn read_tokenizer(path: &Path) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let bytes = fs::read(path).map_err(|error| TokenizerError::Io { path: path.into(), error })?;
    tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| TokenizerError::Broken {
        path: path.into(),
        reason: format!("not a tokenizer of the tokenizers library: {e}"),
    })
}

/// The keys of a JSON file; none if there is no such file.
fn read_object(path: &Path) -> Result<Map<String, Value>, TokenizerError> {
    let Some(text) = read_text(path)? else { return Ok(Map::new()) };
    serde_json::from_str(&text)
        .map_err(|e| TokenizerError::Broken { path: path.into(), reason: format!("not a JSON object: {e}") })
}

/// The text of a file, if there is one.
fn read_text(path: &Path) -> Result<Option<String>, TokenizerError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TokenizerError::Io { path: path.into(), error }),
    }
}

/// The chat template in `tokenizer_config.json`: the only one, or of several with names the `default`.
fn default_template(value: &Value) -> Option<String> {
    let template = match value {
        Value::Array(several) => several
            .iter()
            .find(|one| one.get("name").and_then(Value::as_str) == Some("default"))?
            .get("template")?,
        only => only,
    };
    template.as_str().map(str::to_owned)
}

/// What a folder without `tokenizer.json` holds instead, and what to do about it.
fn instead_of_tokenizer(folder: &Path) -> String {
    let has = |name: &str| folder.join(name).is_file();
    let gguf = fs::read_dir(folder).ok().and_then(|entries| {
        let mut names: Vec<String> = entries
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .filter(|name| name.ends_with(".gguf"))
            .collect();
        names.sort();
        names.into_iter().next()
    });
    let slow = ["tokenizer.model", "spiece.model", "vocab.json", "vocab.txt"].into_iter().find(|n| has(n));
    match (gguf, slow) {
        (Some(file), _) => format!("it has {file}: name that file"),
        (None, Some(file)) => format!(
            "it has {file}, a slow tokenizer, which is not supported: Python's AutoTokenizer writes a \
             {TOKENIZER} with save_pretrained"
        ),
        (None, None) => {
            "name a folder that has one, or a .gguf file; a slow (sentencepiece-only) tokenizer is not supported"
                .into()
        }
    }
}

/// A special token as `tokenizer_config.json` writes it: its text, or an object with its text and how it is
/// found in a text.
fn special_token(value: &Value) -> Option<AddedToken> {
    match value {
        Value::String(text) => Some(AddedToken::from(text.as_str(), true).normalized(false)),
        Value::Object(fields) => {
            let flag = |key: &str| fields.get(key).and_then(Value::as_bool).unwrap_or(false);
            let text = fields.get("content")?.as_str()?;
            let token = AddedToken::from(text, true).normalized(flag("normalized"));
            Some(token.lstrip(flag("lstrip")).rstrip(flag("rstrip")).single_word(flag("single_word")))
        }
        _ => None,
    }
}

/// Adds what the settings name and `tokenizer.json` does not have, as Python does: first the tokens listed by
/// id, then the named ones.
fn add_missing(
    inner: &mut tokenizers::Tokenizer,
    settings: &Map<String, Value>,
    named: impl Iterator<Item = AddedToken>,
) -> Result<(), String> {
    let mut listed = Vec::new();
    if let Some(Value::Object(tokens)) = settings.get("added_tokens_decoder") {
        for (id, token) in tokens {
            let wrong = || format!("`added_tokens_decoder`: `{id}` is not an id with its token");
            let number: u32 = id.parse().map_err(|_| wrong())?;
            let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
            listed.push((number, special_token(token).ok_or_else(wrong)?.special(special)));
        }
    }
    listed.sort_by_key(|(id, _)| *id);
    for token in listed.into_iter().map(|(_, token)| token).chain(named) {
        if !inner.get_added_vocabulary().get_vocab().contains_key(&token.content) {
            inner.add_tokens([token]).map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

/// A tokenizer for tests: `<unk> <s> </s> <pad>` are 0 to 3, every byte is a token of its own from 4 on.
#[cfg(test)]
pub(crate) mod testing {
    use std::path::Path;

    use tokenizers::models::bpe::{BPE, Vocab};
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::{AddedToken, Tokenizer};

    /// The special tokens, by id.
    pub const SPECIAL: [&str; 4] = ["<unk>", "<s>", "</s>", "<pad>"];

    /// The tokenizer itself.
    pub fn bytes() -> Tokenizer {
        let mut alphabet: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
        alphabet.sort();
        let tokens = SPECIAL.iter().map(|token| token.to_string()).chain(alphabet);
        let vocabulary: Vocab = tokens.zip(0..).collect();
        let model = BPE::builder().vocab_and_merges(vocabulary, Vec::new()).build().unwrap();
        let mut tokenizer = Tokenizer::new(model);
        tokenizer
            .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
            .with_decoder(Some(ByteLevel::default()));
        let special = SPECIAL.map(|token| AddedToken::from(token, true).normalized(false));
        tokenizer.add_special_tokens(special).unwrap();
        tokenizer
    }

    /// Writes it as a Hugging Face folder with this `tokenizer_config.json`.
    pub fn write_folder(dir: &Path, config: &str) {
        bytes().save(dir.join(super::TOKENIZER), false).unwrap();
        std::fs::write(dir.join(super::CONFIG), config).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::{PaddingParams, TruncationParams};

    use super::*;

    const CONFIG_TEXT: &str = r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<pad>",
        "unk_token": null, "padding_side": "left"}"#;

    fn open(config: &str) -> Tokenizer {
        let dir = tempfile::tempdir().unwrap();
        testing::write_folder(dir.path(), config);
        Tokenizer::open(dir.path()).unwrap()
    }

    #[test]
    fn special_tokens_come_from_the_config_as_text_or_object() {
        let tokenizer = open(CONFIG_TEXT);
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (Some(1), Some(2), Some(3)));
        assert_eq!(tokenizer.padding_side(), Side::Left);
        assert_eq!(tokenizer.vocab_size(), 260);
    }

    #[test]
    fn special_tokens_map_fills_in_what_the_config_leaves_out() {
        let dir = tempfile::tempdir().unwrap();
        testing::write_folder(dir.path(), r#"{"eos_token": "</s>", "pad_token": null}"#);
        let map = r#"{"eos_token": "<s>", "pad_token": {"content": "<pad>"}}"#;
        fs::write(dir.path().join(SPECIAL_TOKENS), map).unwrap();
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        assert_eq!((tokenizer.eos_id(), tokenizer.pad_id()), (Some(2), Some(3)));
    }

    #[test]
    fn without_a_padding_token_the_end_token_pads() {
        assert_eq!(open(r#"{"eos_token": "</s>"}"#).pad_id(), Some(2));
        assert_eq!(open("{}").pad_id(), None);
    }

    #[test]
    fn text_comes_back_from_its_ids() {
        let tokenizer = open(CONFIG_TEXT);
        let ids = tokenizer.encode("불만 123</s>", true).unwrap();
        assert_eq!(ids.len(), "불만 123".len() + 1);
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "불만 123</s>");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "불만 123");
    }

    #[test]
    fn begin_and_end_tokens_are_added_where_the_config_says_so() {
        let plain = open(CONFIG_TEXT).encode("ab", true).unwrap();
        let config =
            r#"{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true, "add_eos_token": true}"#;
        let tokenizer = open(config);
        assert_eq!(tokenizer.encode("ab", true).unwrap(), [&[1], plain.as_slice(), &[2]].concat());
        assert_eq!(tokenizer.encode("ab", false).unwrap(), plain);
    }

    #[test]
    fn a_saved_limit_or_padding_does_not_touch_rows() {
        let dir = tempfile::tempdir().unwrap();
        let mut inner = testing::bytes();
        inner.with_truncation(Some(TruncationParams { max_length: 3, ..Default::default() })).unwrap();
        inner.with_padding(Some(PaddingParams::default()));
        inner.save(dir.path().join(TOKENIZER), false).unwrap();
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        let rows = tokenizer.encode_all(&["a", "abcdef"], true).unwrap();
        assert_eq!(rows.iter().map(Vec::len).collect::<Vec<_>>(), [1, 6]);
    }

    #[test]
    fn a_special_token_that_only_the_config_knows_is_added_behind_the_vocabulary() {
        let tokenizer = open(r#"{"pad_token": "[PAD]"}"#);
        assert_eq!((tokenizer.pad_id(), tokenizer.vocab_size()), (Some(260), 261));
        assert_eq!(tokenizer.encode("[PAD]", true).unwrap(), [260]);
    }

    #[test]
    fn the_fingerprint_tells_vocabularies_apart_and_nothing_else() {
        let one = open(CONFIG_TEXT);
        assert_eq!(one.fingerprint(), open(r#"{"padding_side": "right"}"#).fingerprint());
        assert_ne!(one.fingerprint(), open(r#"{"pad_token": "[PAD]"}"#).fingerprint());
    }

    #[test]
    fn many_texts_come_in_their_order() {
        let tokenizer = open(CONFIG_TEXT);
        let texts: Vec<String> = (0..500).map(|i| format!("text {i}")).collect();
        for (text, ids) in texts.iter().zip(tokenizer.encode_all(&texts, true).unwrap()) {
            assert_eq!(&tokenizer.decode(&ids, true).unwrap(), text);
        }
    }

    #[test]
    fn a_folder_without_tokenizer_json_says_what_it_has_instead() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = || Tokenizer::open(dir.path()).unwrap_err();
        assert_eq!(
            refusal().to_string(),
            format!("{}: no tokenizer.json in this folder", dir.path().display())
        );
        assert_eq!(
            refusal().help(),
            Some(
                "name a folder that has one, or a .gguf file; a slow (sentencepiece-only) tokenizer is not \
                 supported"
            )
        );
        fs::write(dir.path().join("tokenizer.model"), "").unwrap();
        assert_eq!(
            refusal().help(),
            Some(
                "it has tokenizer.model, a slow tokenizer, which is not supported: Python's AutoTokenizer writes \
                 a tokenizer.json with save_pretrained"
            )
        );
        fs::write(dir.path().join("tiny.gguf"), "").unwrap();
        assert_eq!(refusal().help(), Some("it has tiny.gguf: name that file"));
    }

    #[test]
    fn broken_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = || Tokenizer::open(dir.path()).unwrap_err().to_string();
        fs::write(dir.path().join(TOKENIZER), "{ nonsense").unwrap();
        let path = dir.path().join(TOKENIZER);
        assert_eq!(
            refusal(),
            format!(
                "{}: not a tokenizer of the tokenizers library: key must be a string at line 1 column 3",
                path.display()
            )
        );
        testing::write_folder(dir.path(), "[1]");
        let path = dir.path().join(CONFIG);
        assert_eq!(
            refusal(),
            format!(
                "{}: not a JSON object: invalid type: sequence, expected a map at line 1 column 0",
                path.display()
            )
        );
        testing::write_folder(dir.path(), r#"{"eos_token": 2}"#);
        assert_eq!(refusal(), format!("{}: `eos_token` is not a token", path.display()));
    }
}
