//! `train_tokenizer`: a byte-level BPE tokenizer, learned from the text of a dataset.

use std::fs;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use crate::artifact::dataset::{Batch, Stored};
use crate::stage::{ArtifactKind, Context, Fault, Lane, Output, Port, Stage, StageError};
use crate::stages::template::Wording;
use crate::tokenizer::{CONFIG, TOKENIZER};

/// What GPT-2 ends a text with.
const END_OF_TEXT: &str = "<|endoftext|>";
/// The tokens of single bytes, which every text can be written in.
const BYTES: usize = 256;

/// Learns a byte-level BPE tokenizer.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainTokenizer {
    /// How many tokens it has, special ones and the 256 bytes included.
    #[schemars(range(min = 257))]
    pub vocab_size: usize,
    /// The text of a row: `{column}` placeholders as in `tokenize`.
    pub text: Wording,
    /// The split to learn from.
    #[serde(default = "train_split")]
    pub split: String,
    /// How often a pair of tokens has to stand in the text to become one.
    #[serde(default)]
    pub min_frequency: u64,
    /// The special tokens.
    #[serde(default)]
    pub special_tokens: SpecialTokens,
}

/// Tokens with a meaning of their own; their ids are the first, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SpecialTokens {
    /// What stands for the unknown; nothing is unknown to bytes. `null`: none.
    pub unk: Option<String>,
    /// What begins a text. `null`: none.
    pub bos: Option<String>,
    /// What ends a text. `null`: none.
    pub eos: Option<String>,
    /// What fills rows up. `null`: none.
    pub pad: Option<String>,
    /// Others, such as those of a chat template.
    pub more: Vec<String>,
}

impl Default for SpecialTokens {
    fn default() -> Self {
        let token = || Some(END_OF_TEXT.to_owned());
        Self { unk: token(), bos: token(), eos: token(), pad: token(), more: Vec::new() }
    }
}

impl SpecialTokens {
    fn named(&self) -> [(&'static str, Option<&str>); 4] {
        let Self { unk, bos, eos, pad, .. } = self;
        [("unk_token", unk), ("bos_token", bos), ("eos_token", eos), ("pad_token", pad)]
            .map(|(name, token)| (name, token.as_deref()))
    }

    /// Each token once, in the order of their ids.
    fn distinct(&self) -> Vec<&str> {
        let mut tokens = Vec::new();
        let named = self.named().into_iter().filter_map(|(_, token)| token);
        for token in named.chain(self.more.iter().map(String::as_str)) {
            if !tokens.contains(&token) {
                tokens.push(token);
            }
        }
        tokens
    }
}

fn train_split() -> String {
    "train".into()
}

impl Stage for TrainTokenizer {
    const KIND: &'static str = "train_tokenizer";
    const VERSION: u32 = 1;
    const LANE: Lane = Lane::Cpu;
    const ABOUT: &'static str =
        "Learns a byte-level BPE tokenizer of a given size from the text of a dataset.";
    const EXAMPLE: &'static str = r#"tokenizer:
  uses: train_tokenizer
  inputs: { dataset: texts }
  with: { text: "{text}", vocab_size: 4096 }
"#;
    const INPUTS: &'static [Port] = &[Port {
        name: "dataset",
        accepts: &[ArtifactKind::Dataset],
        required: true,
        about: "The text to learn from.",
    }];

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("tokenizer", ArtifactKind::Files, &["."])]
    }

    fn check(&self, _: &[&str]) -> Vec<Fault> {
        let mut faults = Vec::new();
        let tokens = self.special_tokens.distinct();
        let least = BYTES + tokens.len();
        if self.vocab_size < least {
            faults.push(
                Fault::new(
                    "vocab_size",
                    format!(
                        "{} tokens have no room for the 256 bytes and the special tokens",
                        self.vocab_size
                    ),
                )
                .help(format!("set `vocab_size` to {least} or more")),
            );
        }
        if tokens.contains(&"") {
            faults.push(
                Fault::new("special_tokens", "a special token is empty").help("write `null` for none at all"),
            );
        }
        faults
    }

    fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
        let dataset = Stored::open(&context.input("dataset")?.path, context.cancel)?;
        let batches = dataset.batches(&self.split)?;
        self.text.fits(&batches.header()?)?;
        let total = batches.rows();
        if total == 0 {
            return Err(StageError::failed(format!("split `{}` has no rows to learn from", self.split)));
        }
        // Training can't be stopped, so it is left alone if it has to be: its texts come to it over here.
        let (sender, texts) = std::sync::mpsc::sync_channel::<Vec<String>>(1);
        let this = self.clone();
        let tokenizer = std::thread::scope(|scope| {
            let trained =
                scope.spawn(|| context.cancel.or_abandon(move || this.train(texts.into_iter().flatten())));
            for batch in batches {
                // Whoever takes no more of them has failed, and says why.
                if sender.send(self.texts(context, &batch?, total)?).is_err() {
                    break;
                }
            }
            drop(sender);
            Ok::<_, StageError>(trained.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
        })?;
        let tokenizer =
            tokenizer.map_err(|e| StageError::failed(format!("the tokenizer can't be trained: {e}")))?;
        context.go_on()?;
        let size = tokenizer.get_vocab_size(true);
        if size < self.vocab_size {
            context.warn(format!(
                "the text of split `{}` gives {size} tokens, not {}: no pair is left that stands in it {} times",
                self.split,
                self.vocab_size,
                self.min_frequency.max(1)
            ));
        }
        context.metric("vocab_size", size as f64);
        self.save(context, &tokenizer)
    }
}

impl TrainTokenizer {
    fn texts(&self, context: &Context<'_>, batch: &Batch, total: usize) -> Result<Vec<String>, StageError> {
        context.go_on()?;
        let rows = batch.rows.rows();
        let texts = (0..rows).map(|row| self.text.fill_in(batch, row)).collect();
        context.progress((batch.first + rows) as u64, total as u64, "rows", "reading");
        texts
    }

    fn train(&self, texts: impl Iterator<Item = String> + Send) -> tokenizers::Result<Tokenizer> {
        let special = self.special_tokens.distinct().into_iter().map(|token| AddedToken::from(token, true));
        let trainer = BpeTrainer::builder()
            .vocab_size(self.vocab_size)
            .min_frequency(self.min_frequency)
            .special_tokens(special.collect())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .show_progress(false)
            .build();
        let mut tokenizer = Tokenizer::new(BPE::default());
        tokenizer
            .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
            .with_decoder(Some(ByteLevel::default()));
        tokenizer.train(&mut TrainerWrapper::BpeTrainer(trainer), texts)?;
        Ok(tokenizer)
    }

    /// Writes the folder that transformers' `AutoTokenizer` loads.
    fn save(&self, context: &Context<'_>, tokenizer: &Tokenizer) -> Result<(), StageError> {
        let path = context.out.join(TOKENIZER);
        let failed = |e: tokenizers::Error| StageError::failed(format!("{}: {e}", path.display()));
        tokenizer.save(&path, true).map_err(failed)?;
        let mut config = json!({
            "clean_up_tokenization_spaces": false,
            "tokenizer_class": "PreTrainedTokenizerFast",
        });
        for (name, token) in self.special_tokens.named() {
            if let Some(token) = token {
                config[name] = token.into();
            }
        }
        if !self.special_tokens.more.is_empty() {
            config["additional_special_tokens"] = json!(self.special_tokens.more);
        }
        let path = context.out.join(CONFIG);
        fs::write(&path, format!("{config:#}\n")).map_err(|e| StageError::io(&path, &e))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use polars::df;

    use super::*;
    use crate::artifact::dataset::{Dataset, Split};
    use crate::stage::{Cancel, Saying};
    use crate::stages::testing::{Refusal, fault, input, run_with};

    fn stage(keys: &str) -> TrainTokenizer {
        serde_json::from_str(keys).unwrap()
    }

    /// Trains on these rows of a column `text`; gives what was said.
    fn train(keys: &str, rows: &[&str], out: &Path) -> Result<Vec<Saying>, Refusal> {
        let before = tempfile::tempdir().unwrap();
        let frame = df!("text" => rows).unwrap();
        let splits = vec![Split { name: "train".into(), frame }];
        Dataset { splits, ..Dataset::default() }.save(before.path()).unwrap();
        let inputs = BTreeMap::from([input("dataset", ArtifactKind::Dataset, before.path())]);
        let (result, said) = run_with(&stage(keys), &inputs, out, &Cancel::default());
        result.map(|()| said).map_err(fault)
    }

    #[test]
    fn pairs_that_stand_often_become_tokens_and_any_text_comes_back() {
        let out = tempfile::tempdir().unwrap();
        train(r#"{"text": "{text}", "vocab_size": 259}"#, &["abab ab", "ab 불만"], out.path()).unwrap();
        let tokenizer = crate::tokenizer::Tokenizer::open(out.path()).unwrap();
        assert_eq!(tokenizer.vocab_size(), 259);
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (Some(0), Some(0), Some(0)));
        let ids = tokenizer.encode("ab zab 🙂", true).unwrap();
        assert_eq!(&ids[..1], [257]);
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "ab zab 🙂");
    }

    #[test]
    fn special_tokens_come_first_in_their_order() {
        let out = tempfile::tempdir().unwrap();
        let keys = r#"{"text": "{text}", "vocab_size": 262, "special_tokens": {"unk": null, "bos": "<s>",
            "eos": "</s>", "pad": "</s>", "more": ["<user>"]}}"#;
        train(keys, &["abab"], out.path()).unwrap();
        let tokenizer = crate::tokenizer::Tokenizer::open(out.path()).unwrap();
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (Some(0), Some(1), Some(1)));
        assert_eq!(tokenizer.encode("<user>", true).unwrap(), [2]);
    }

    #[test]
    fn too_little_text_is_told() {
        let out = tempfile::tempdir().unwrap();
        let said = train(r#"{"text": "{text}", "vocab_size": 300}"#, &["ab"], out.path()).unwrap();
        let warnings: Vec<&str> = said
            .iter()
            .filter_map(|saying| match saying {
                Saying::Warning(text) => Some(text.as_str()),
                _ => None,
            })
            .collect();
        let told =
            "the text of split `train` gives 258 tokens, not 300: no pair is left that stands in it 1 times";
        assert_eq!(warnings, [told]);
    }

    #[test]
    fn an_absent_column_or_no_rows_are_refused() {
        let out = tempfile::tempdir().unwrap();
        let refusal = |keys: &str, rows: &[&str]| train(keys, rows, out.path()).unwrap_err().0;
        assert_eq!(
            refusal(r#"{"text": "{texts}", "vocab_size": 300}"#, &["ab"]),
            "no column `texts` in split `train` (did you mean `text`?); there is `text`"
        );
        assert_eq!(
            refusal(r#"{"text": "{text}", "vocab_size": 300}"#, &[]),
            "split `train` has no rows to learn from"
        );
    }

    #[test]
    fn a_vocabulary_without_room_for_the_bytes_is_a_fault() {
        let faults = stage(r#"{"text": "{text}", "vocab_size": 256}"#).check(&["dataset"]);
        let message = "256 tokens have no room for the 256 bytes and the special tokens";
        assert_eq!(faults, [Fault::new("vocab_size", message).help("set `vocab_size` to 257 or more")]);
    }

    /// The reference models' tokenizer, trained by Python's tokenizers on the same texts.
    #[test]
    fn what_python_trains_comes_out() {
        let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
        let lines = |name: &str, column: &str| {
            let text = fs::read_to_string(shared.join("data").join(name)).ok()?;
            let cell = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()[column].clone();
            Some(text.lines().map(|line| cell(line).as_str().unwrap().to_owned()).collect::<Vec<_>>())
        };
        let (Some(tweets), Some(answers), Ok(reference)) = (
            lines("raft_twitter_complaints.jsonl", "Tweet text"),
            lines("alpaca_zh_sample.jsonl", "output"),
            fs::read_to_string(shared.join("reference/gpt2/tokenizer.json")),
        ) else {
            eprintln!("skipped: no reference material");
            return;
        };
        let rows: Vec<&str> = tweets.iter().chain(&answers).map(String::as_str).collect();
        let out = tempfile::tempdir().unwrap();
        let keys = r#"{"text": "{text}", "vocab_size": 600, "special_tokens": {"unk": "<unk>", "bos": "<s>",
            "eos": "</s>", "pad": "<pad>"}}"#;
        train(keys, &rows, out.path()).unwrap();
        let own = fs::read_to_string(out.path().join(TOKENIZER)).unwrap();
        let model = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["model"].clone();
        let (own, reference) = (model(&own), model(&reference));
        assert_eq!(own["vocab"], reference["vocab"]);
        assert_eq!(own["merges"], reference["merges"]);
    }
}
