//! `tokenize`: rows of a dataset become rows of token ids with labels.

use std::path::PathBuf;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::dataset::{Batch, Batches, Stored};
use crate::artifact::tokens::{About, Form, IGNORED, MadeBy, PadTo, Padding, Row, TokensWriter};
use crate::hub::{Reads, Want};
use crate::location::{Location, Place};
use crate::stage::{ArtifactKind, Content, Context, Fault, Lane, Output, Port, Source, Stage, StageError};
use crate::stages::chat::Chat;
use crate::stages::place;
use crate::stages::template::Wording;
use crate::tokenizer::chat::ChatTemplate;
use crate::tokenizer::{Side, Tokenizer};

/// Rows between two looks at whether to go on.
const BATCH: usize = 1024;
/// The ports that can bring a tokenizer.
const BRING_TOKENIZER: [&str; 2] = ["tokenizer", "model"];
/// Rows that a warning names.
const NAMED: usize = 10;

/// Turns each row into token ids: a prompt that is not learned and a target that is, or plain text.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tokenize {
    /// The tokenizer: a Hugging Face folder, a tokenizer.json, a .gguf file or a Hub name. Left out where the
    /// port `tokenizer` or `model` brings one.
    pub tokenizer: Option<Location>,
    /// The branch, tag or commit of a tokenizer on the Hub.
    #[serde(default)]
    pub revision: Option<String>,
    /// What comes before the target and is not learned (labels -100): text with `{column}` placeholders, `{{`
    /// and `}}` for braces; or `{ lines: […], then: … }`: lines joined by a newline and stripped at both ends,
    /// and what follows them.
    pub prompt: Option<Wording>,
    /// What is to be learned after the prompt, written like `prompt`. Tokenised by itself, then appended.
    pub target: Option<Wording>,
    /// Plain text that is learned whole, instead of `prompt` and `target`; written like `prompt`.
    pub text: Option<Wording>,
    /// A conversation in the tokenizer's chat template, instead of `prompt` and `target`: a list of messages,
    /// each with its `role` and a `text` written like `prompt`, or `{ column: NAME }` for a column that holds a
    /// list of `{role, content}`. What is learned is the last message, which is the assistant's, with all that
    /// the template puts behind it. The template writes every special token itself.
    pub chat: Option<Chat>,
    /// Whether prompt, target and text get the begin and end tokens that the tokenizer adds by default.
    /// Default: `true`; a `chat` never does.
    pub special_tokens: Option<bool>,
    /// The token appended to the target or text: `pad`, `eos` or `none`. Default: `pad` for prompt and target,
    /// `none` for text and chat.
    pub end: Option<End>,
    /// The most tokens a row may have, all of it counted; longer ones are cut. Default: no limit.
    #[schemars(range(min = 1))]
    pub max_length: Option<usize>,
    /// Which padding a row's positions are counted with: `none`, `left` or `right` (to `max_length`), or on the
    /// tokenizer's own side `longest` (of the batch) or `max_length`. Nothing is computed for padding. Default:
    /// `left` with `max_length`, `none` without.
    pub padding: Option<PaddingRule>,
    /// Where a row longer than `max_length` is cut: `right` (its end, and so the label) or `left` (the
    /// beginning of the prompt).
    #[serde(default)]
    pub truncation_side: Side,
}

/// The token appended to a target or text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The padding token; the one that ends a text where the tokenizer has none.
    Pad,
    /// The token that ends a text.
    Eos,
    /// Nothing.
    None,
}

/// Which padding a row's positions are counted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PaddingRule {
    /// None.
    None,
    /// Before the row, to `max_length`.
    Left,
    /// After the row.
    Right,
    /// To the longest row of the batch, on the tokenizer's side.
    Longest,
    /// To `max_length`, on the tokenizer's side.
    MaxLength,
}

impl Stage for Tokenize {
    const KIND: &'static str = "tokenize";
    const VERSION: u32 = 2;
    const LANE: Lane = Lane::Cpu;
    const ABOUT: &'static str =
        "Turns rows of text into token ids, with labels where something is to be learned.";
    const EXAMPLE: &'static str = r#"tokens:
  uses: tokenize
  inputs: { dataset: labelled }
  with:
    tokenizer: bigscience/bloomz-560m
    prompt: "Tweet text : {Tweet text} Label : "
    target: "{text_label}"
    max_length: 64
"#;
    const INPUTS: &'static [Port] = &[
        Port {
            name: "dataset",
            accepts: &[ArtifactKind::Dataset],
            required: true,
            about: "The rows; every split is tokenised.",
        },
        Port {
            name: "model",
            accepts: &[ArtifactKind::Model, ArtifactKind::Files],
            required: false,
            about: "A model whose tokenizer is used, instead of `tokenizer`.",
        },
        Port {
            name: "tokenizer",
            accepts: &[ArtifactKind::Files, ArtifactKind::Model],
            required: false,
            about: "A tokenizer that a stage made, instead of `tokenizer`.",
        },
    ];

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("tokens", ArtifactKind::Tokens, &["."])]
    }

    /// Of a model folder only what the tokenizer is read from: other weights don't change a token.
    fn sources(&self) -> Vec<Source> {
        let Some(tokenizer) = &self.tokenizer else { return Vec::new() };
        if let Place::Local(path) = tokenizer.resolve()
            && path.is_dir()
        {
            let files: Vec<String> = Tokenizer::files(&path).map(str::to_owned).collect();
            if !files.is_empty() {
                let content = Content::Named(files);
                return vec![Source { role: "tokenizer".into(), location: tokenizer.clone(), content }];
            }
        }
        vec![Source::repository("tokenizer", tokenizer.clone(), self.reads())]
    }

    fn check(&self, inputs: &[&str]) -> Vec<Fault> {
        let mut faults = Vec::new();
        let ports = BRING_TOKENIZER.into_iter().filter(|port| inputs.contains(port));
        let brings: Vec<String> = (self.tokenizer.iter().map(|_| "`tokenizer`".to_owned()))
            .chain(ports.map(|port| format!("the port `{port}`")))
            .collect();
        let key = if self.tokenizer.is_some() { "tokenizer" } else { "" };
        match brings.as_slice() {
            [] => faults.push(
                Fault::new("", "nothing brings a tokenizer")
                    .help("set `tokenizer`, or connect the port `tokenizer` or `model`"),
            ),
            [_] => {}
            several => faults.push(
                Fault::new(key, format!("both {} bring a tokenizer", several.join(" and ")))
                    .help("keep one of them"),
            ),
        }
        if let Some(chat) = &self.chat {
            faults.extend(chat.fault());
            let beside = [
                ("prompt", self.prompt.is_some()),
                ("target", self.target.is_some()),
                ("text", self.text.is_some()),
            ];
            for (key, _) in beside.into_iter().filter(|(_, is_set)| *is_set) {
                faults
                    .push(Fault::new(key, format!("`{key}` stands beside `chat`")).help(
                        "keep `chat` for the tokenizer's chat template, or write the texts without it",
                    ));
            }
            if self.special_tokens == Some(true) {
                faults.push(
                    Fault::new("special_tokens", "`special_tokens: true` stands beside `chat`")
                        .help("leave it out: a chat template writes every special token itself"),
                );
            }
        } else {
            faults.extend(self.fault_of_texts());
        }
        if self.max_length == Some(0) {
            faults.push(Fault::new("max_length", "`max_length: 0` leaves no token of any row"));
        }
        if self.max_length.is_none()
            && let Some(rule @ (PaddingRule::Left | PaddingRule::MaxLength)) = self.padding
        {
            let word = if rule == PaddingRule::Left { "left" } else { "max_length" };
            faults.push(
                Fault::new("padding", format!("`padding: {word}` needs `max_length`"))
                    .help("set `max_length`, or `padding: longest` to pad to the longest row of a batch"),
            );
        }
        faults
    }

    fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
        let (name, path) = self.tokenizer_at(context)?;
        let tokenizer = Tokenizer::open(&path)?;
        let job = self.job(&tokenizer)?;
        let dataset = Stored::open(&context.input("dataset")?.path, context.cancel)?;
        let splits = dataset.split_names();
        if splits.is_empty() {
            return Err(StageError::failed("the dataset has no splits"));
        }
        let mut total = 0;
        for split in &splits {
            let batches = dataset.batches(split)?;
            job.fits(&batches)?;
            total += batches.rows();
        }
        context.go_on()?;
        let mut done = 0;
        let mut tokens = TokensWriter::create(context.out, job.about(name));
        for name in &splits {
            let mut split = tokens.split(name)?;
            let mut losses = Losses::default();
            for batch in dataset.batches(name)? {
                let batch = batch?;
                for start in (0..batch.rows.rows()).step_by(BATCH) {
                    context.go_on()?;
                    let rows = start..batch.rows.rows().min(start + BATCH);
                    done += rows.len();
                    let encoded: Vec<_> = rows.into_par_iter().map(|row| job.row(&batch, row)).collect();
                    // One after another, so that of several errors it is always the first that is told.
                    let encoded = encoded.into_iter().map(|row| Ok(losses.count(row?)));
                    split.write(&encoded.collect::<Result<Vec<_>, StageError>>()?)?;
                    context.progress(done as u64, total as u64, "rows", name);
                }
            }
            split.end()?;
            self.tell_what_was_cut(context, name, &losses)?;
        }
        tokens.finish()?;
        Ok(())
    }
}

impl Tokenize {
    /// What is wrong with the texts of a stage without `chat`.
    fn fault_of_texts(&self) -> Option<Fault> {
        match (&self.prompt, &self.target, &self.text) {
            (Some(_), Some(_), None) | (None, None, Some(_)) => None,
            (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => Some(
                Fault::new("text", "`text` stands beside `prompt` or `target`")
                    .help("keep `text` for plain text, or `prompt` and `target` for labels after a prompt"),
            ),
            (Some(_), None, None) => Some(
                Fault::new("prompt", "`prompt` stands without `target`")
                    .help("set `target` to what is to be learned, or use `text` to learn all of it"),
            ),
            (None, Some(_), None) => Some(
                Fault::new("target", "`target` stands without `prompt`")
                    .help("set `prompt` to what comes before it, or use `text` to learn all of it"),
            ),
            (None, None, None) => Some(
                Fault::new("", "nothing says what to tokenize")
                    .help("set `prompt` and `target`, `chat`, or `text`"),
            ),
        }
    }

    /// What of a repository on the Hub is read.
    fn reads(&self) -> Reads {
        Reads { want: Want::Tokenizer, revision: self.revision.clone() }
    }

    /// The tokenizer's name as it is written down, and where it is.
    fn tokenizer_at(&self, context: &Context<'_>) -> Result<(String, PathBuf), StageError> {
        match &self.tokenizer {
            Some(location) => {
                let path = place::local_or_fetched(context, location, &self.reads(), "tokenizer")?;
                Ok((location.text().to_owned(), path))
            }
            None => {
                let port = BRING_TOKENIZER.into_iter().find(|port| context.inputs.contains_key(*port));
                let port = port.unwrap_or("tokenizer");
                let path = &context.input(port)?.path;
                // The name of a stage or of a folder in the cache says nothing about the tokenizer.
                let name = match path.file_name() {
                    Some(name) if path.is_file() => name.to_string_lossy().into_owned(),
                    _ => port.to_owned(),
                };
                Ok((name, path.clone()))
            }
        }
    }

    fn job<'a>(&'a self, tokenizer: &'a Tokenizer) -> Result<Job<'a>, StageError> {
        let texts = match (&self.prompt, &self.target, &self.chat, &self.text) {
            (Some(prompt), Some(target), None, None) => Texts::PromptTarget { prompt, target },
            (None, None, Some(chat), None) => {
                Texts::Chat { chat, template: Box::new(tokenizer.chat_template()?) }
            }
            (None, None, None, Some(text)) => Texts::Plain(text),
            _ => return Err(StageError::failed("`prompt` and `target`, `chat` or `text` is needed")),
        };
        let end = self.end.unwrap_or(match texts {
            Texts::PromptTarget { .. } => End::Pad,
            Texts::Chat { .. } | Texts::Plain(_) => End::None,
        });
        let special = self.special_tokens.unwrap_or(self.chat.is_none());
        let (end_id, word) = match end {
            End::None => (None, ""),
            End::Pad => {
                (tokenizer.pad_id(), "`end: pad`: the tokenizer has neither a padding token nor an end token")
            }
            End::Eos => (tokenizer.eos_id(), "`end: eos`: the tokenizer has no end token"),
        };
        if end != End::None && end_id.is_none() {
            return Err(StageError::with_help(
                word,
                "set `end: none`, or name `eos_token` in the tokenizer's tokenizer_config.json",
            ));
        }
        let own = tokenizer.padding_side();
        let rule = self.padding.unwrap_or(match self.max_length {
            Some(_) => PaddingRule::Left,
            None => PaddingRule::None,
        });
        let padding = match (rule, self.max_length) {
            (PaddingRule::None, _) => Padding { side: own, to: PadTo::None },
            (PaddingRule::Left, _) => Padding { side: Side::Left, to: PadTo::MaxLength },
            (PaddingRule::Right, Some(_)) => Padding { side: Side::Right, to: PadTo::MaxLength },
            (PaddingRule::Right, None) => Padding { side: Side::Right, to: PadTo::Longest },
            (PaddingRule::Longest, _) => Padding { side: own, to: PadTo::Longest },
            (PaddingRule::MaxLength, _) => Padding { side: own, to: PadTo::MaxLength },
        };
        let end_ids = end_id.into_iter().collect();
        let (max_length, cut) = (self.max_length, self.truncation_side);
        Ok(Job { tokenizer, texts, special, end_ids, max_length, cut, padding })
    }

    /// Names the rows of a split that lost tokens they were to be learned from; refuses it if nothing is left.
    fn tell_what_was_cut(
        &self,
        context: &Context<'_>,
        split: &str,
        losses: &Losses,
    ) -> Result<(), StageError> {
        let Some(max_length) = self.max_length else { return Ok(()) };
        let Losses { rows, longest, cut, wholly, .. } = losses;
        if self.text.is_some() {
            if *cut > 0 {
                context.note(format!(
                    "split `{split}`: {cut} of {rows} rows are cut to max_length {max_length}; the longest has \
                     {longest} tokens"
                ));
            }
            return Ok(());
        }
        let advice = match self.truncation_side {
            Side::Right => {
                format!(
                    "raise max_length (the longest row has {longest} tokens) or set truncation_side: left"
                )
            }
            Side::Left => format!("raise max_length (the longest row has {longest} tokens)"),
        };
        if wholly == rows {
            return Err(StageError::with_help(
                format!(
                    "split `{split}`: max_length {max_length} cuts off the label of every row ({wholly}), so \
                     there is nothing to learn"
                ),
                advice,
            ));
        }
        if *cut > 0 {
            let first: Vec<String> = losses.first.iter().map(u32::to_string).collect();
            let more = if *cut > NAMED { ", …" } else { "" };
            context.warn(format!(
                "split `{split}`: max_length {max_length} cuts off the label of {cut} of {rows} rows ({wholly} \
                 wholly, {} partly): rows {}{more} (from 0); {advice}",
                cut - wholly,
                first.join(", "),
            ));
        }
        Ok(())
    }
}

/// What was cut off the rows of a split.
#[derive(Default)]
struct Losses {
    rows: usize,
    /// The most tokens a row had before it was cut.
    longest: usize,
    /// Rows that lost labels.
    cut: usize,
    /// Of these, rows that lost all of them.
    wholly: usize,
    /// The first rows that lost labels.
    first: Vec<u32>,
}

impl Losses {
    /// Counts a row, and gives what is left of it.
    fn count(&mut self, encoded: Encoded) -> Row {
        self.rows += 1;
        self.longest = self.longest.max(encoded.full_len);
        if encoded.lost_labels > 0 {
            self.cut += 1;
            self.wholly += usize::from(encoded.is_unlearnable());
            if self.first.len() < NAMED {
                self.first.push(encoded.row.source);
            }
        }
        encoded.row
    }
}

/// The texts of a row.
enum Texts<'a> {
    PromptTarget { prompt: &'a Wording, target: &'a Wording },
    Chat { chat: &'a Chat, template: Box<ChatTemplate> },
    Plain(&'a Wording),
}

/// All that is decided before the first row.
struct Job<'a> {
    tokenizer: &'a Tokenizer,
    texts: Texts<'a>,
    /// Whether the tokenizer puts its own tokens around a text.
    special: bool,
    end_ids: Vec<u32>,
    max_length: Option<usize>,
    cut: Side,
    padding: Padding,
}

/// A row and what was cut off it.
struct Encoded {
    row: Row,
    /// Tokens before it was cut.
    full_len: usize,
    /// Labels that were cut off.
    lost_labels: usize,
}

impl Encoded {
    /// Whether every label was cut off.
    fn is_unlearnable(&self) -> bool {
        self.lost_labels > 0 && self.row.labels.iter().all(|&label| label == IGNORED)
    }
}

impl Job<'_> {
    fn about(&self, name: String) -> About {
        About {
            tokenizer: MadeBy {
                name,
                fingerprint: self.tokenizer.fingerprint(),
                vocab_size: self.tokenizer.vocab_size(),
                pad_token_id: self.tokenizer.pad_id(),
                eos_token_id: self.tokenizer.eos_id(),
            },
            form: match self.texts {
                Texts::PromptTarget { .. } | Texts::Chat { .. } => Form::PromptTarget,
                Texts::Plain(_) => Form::Text,
            },
            end_ids: self.end_ids.clone(),
            max_length: self.max_length,
            padding: self.padding,
        }
    }

    /// Refuses a split without rows or without a column the texts need.
    fn fits(&self, batches: &Batches) -> Result<(), StageError> {
        let split = &batches.header()?;
        if batches.rows() == 0 {
            return Err(StageError::with_help(
                format!("split `{}` of the dataset has no rows", split.name),
                "look at the stage that made it, or leave the split out",
            ));
        }
        match &self.texts {
            Texts::PromptTarget { prompt, target } => prompt.fits(split).and_then(|()| target.fits(split))?,
            Texts::Chat { chat, .. } => chat.fits(split)?,
            Texts::Plain(text) => text.fits(split)?,
        }
        Ok(())
    }

    fn row(&self, batch: &Batch, row: usize) -> Result<Encoded, StageError> {
        let at = batch.first + row;
        let split = &batch.rows.name;
        match &self.texts {
            Texts::PromptTarget { prompt, target } => {
                self.two_texts(split, at, &prompt.fill_in(batch, row)?, target.fill_in(batch, row)?)
            }
            Texts::Chat { chat, template } => {
                let messages = chat.messages(batch, row)?;
                let (prompt, target) = template
                    .prompt_and_target(&messages)
                    .map_err(|e| StageError::failed(format!("split `{split}`, row {at} (from 0): {e}")))?;
                self.two_texts(split, at, &prompt, target)
            }
            Texts::Plain(text) => {
                let mut ids = self.tokenizer.encode(&text.fill_in(batch, row)?, self.special)?;
                ids.extend(&self.end_ids);
                Ok(self.cut(Row { source: at as u32, labels: learned(&ids), ids, ..Row::default() }))
            }
        }
    }

    /// The row of a prompt that is not learned and a target that is.
    fn two_texts(&self, split: &str, at: usize, prompt: &str, target: String) -> Result<Encoded, StageError> {
        let mut ids = self.tokenizer.encode(prompt, self.special)?;
        let prompt_len = ids.len();
        let mut target_ids = self.tokenizer.encode(&target, self.special)?;
        target_ids.extend(&self.end_ids);
        if target_ids.is_empty() {
            return Err(StageError::with_help(
                format!("split `{split}`, row {at} (from 0): the target is empty"),
                "leave such rows out of the data, or let `end` append a token",
            ));
        }
        let mut labels = vec![IGNORED; prompt_len];
        labels.extend(learned(&target_ids));
        ids.extend(target_ids);
        Ok(self.cut(Row { source: at as u32, ids, labels, prompt_len, target: Some(target) }))
    }

    /// The row in at most `max_length` tokens.
    fn cut(&self, mut row: Row) -> Encoded {
        let full_len = row.ids.len();
        let over = full_len.saturating_sub(self.max_length.unwrap_or(full_len));
        let kept = |labels: &[i64]| labels.iter().filter(|&&label| label != IGNORED).count();
        let labels = kept(&row.labels);
        match self.cut {
            Side::Right => {
                row.ids.truncate(full_len - over);
                row.labels.truncate(full_len - over);
                row.prompt_len = row.prompt_len.min(full_len - over);
            }
            Side::Left => {
                row.ids.drain(..over);
                row.labels.drain(..over);
                row.prompt_len = row.prompt_len.saturating_sub(over);
            }
        }
        let lost_labels = labels - kept(&row.labels);
        Encoded { row, full_len, lost_labels }
    }
}

/// Labels of tokens that are to be predicted.
fn learned(ids: &[u32]) -> Vec<i64> {
    ids.iter().map(|&id| id.into()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::Mutex;

    use polars::df;
    use tempfile::TempDir;

    use super::*;
    use crate::artifact::dataset::{Dataset, Split};
    use crate::artifact::tokens::Tokens;
    use crate::secrets::Secrets;
    use crate::stage::{Artifact, Cancel, Saying};
    use crate::tokenizer::testing;

    const BOTH: &str = r#"{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}"#;

    /// A folder with a dataset, a tokenizer and a place for the result.
    struct Bench {
        dir: TempDir,
        said: Mutex<Vec<Saying>>,
        cancel: Cancel,
    }

    impl Bench {
        fn new(config: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["data", "tokenizer", "out"] {
                std::fs::create_dir(dir.path().join(name)).unwrap();
            }
            testing::write_folder(&dir.path().join("tokenizer"), config);
            let frame = df!("text" => ["abc", "abcdef", "a"], "label" => ["x", "yz", "x"]).unwrap();
            let bench = Self { dir, said: Mutex::default(), cancel: Cancel::default() };
            bench.set(&[("train", frame)]);
            bench
        }

        fn set(&self, splits: &[(&str, polars::frame::DataFrame)]) {
            let splits =
                splits.iter().map(|(name, frame)| Split { name: name.to_string(), frame: frame.clone() });
            let dataset = Dataset { splits: splits.collect(), ..Dataset::default() };
            dataset.save(&self.path("data")).unwrap();
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn run(&self, keys: &str) -> Result<Tokens, StageError> {
            let mut stage: Tokenize = serde_json::from_str(keys).unwrap();
            let mut inputs = BTreeMap::new();
            let artifact = |path: &Path, kind| Artifact { kind, path: path.into(), from: "rows".into() };
            inputs.insert("dataset".to_owned(), artifact(&self.path("data"), ArtifactKind::Dataset));
            if stage.tokenizer.is_none() {
                inputs.insert("model".to_owned(), artifact(&self.path("tokenizer"), ArtifactKind::Model));
            } else {
                stage.tokenizer = stage.tokenizer.map(|l| Location::new(l.text(), self.dir.path()));
            }
            let say = |saying| self.said.lock().unwrap().push(saying);
            stage.run(&Context {
                inputs: &inputs,
                out: &self.path("out"),
                unfinished: &self.path("unfinished"),
                lock: None,
                device: crate::device::Device::Cpu,
                hub: &crate::hub::Hub::nowhere(),
                say: &say,
                cancel: &self.cancel,
                secrets: &Secrets::default(),
                about: &crate::about::About::default(),
            })?;
            Ok(Tokens::open(&self.path("out")).unwrap())
        }

        fn warnings(&self) -> Vec<String> {
            let said = self.said.lock().unwrap();
            said.iter()
                .filter_map(|s| if let Saying::Warning(text) = s { Some(text.clone()) } else { None })
                .collect()
        }
    }

    fn ids(text: &str) -> Vec<u32> {
        testing::bytes().encode(text, false).unwrap().get_ids().to_vec()
    }

    fn refusal(result: Result<Tokens, StageError>) -> (String, Option<String>) {
        match result.unwrap_err() {
            StageError::Failed { message, help } => (message, help),
            StageError::Interrupted => panic!("interrupted"),
        }
    }

    #[test]
    fn a_prompt_is_masked_and_the_target_ends_in_the_padding_token() {
        let bench = Bench::new(BOTH);
        let tokens =
            bench.run(r#"{"tokenizer": "tokenizer", "prompt": "t: {text}", "target": "{label}"}"#).unwrap();
        let rows = tokens.rows("train").unwrap();
        assert_eq!(rows[1].ids, [ids("t: abcdef"), ids("yz"), vec![3]].concat());
        let learned: Vec<i64> = ids("yz").into_iter().chain([3]).map(i64::from).collect();
        assert_eq!(rows[1].labels, [vec![IGNORED; 9], learned].concat());
        assert_eq!((rows[1].prompt_len, rows[1].source), (9, 1));
        assert_eq!(rows[1].target.as_deref(), Some("yz"));
        assert_eq!(tokens.about.end_ids, [3]);
        assert_eq!(tokens.about.tokenizer.name, "tokenizer");
        assert_eq!(tokens.about.padding.to, PadTo::None);
        assert_eq!(bench.warnings(), Vec::<String>::new());
    }

    #[test]
    fn prompt_and_target_get_the_special_tokens_of_the_tokenizers_own_call() {
        let bench = Bench::new(r#"{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}"#);
        let keys = r#"{"prompt": "{text}", "target": "{label}", "end": "eos"}"#;
        let rows = bench.run(keys).unwrap().rows("train").unwrap();
        assert_eq!(rows[0].ids, [vec![1], ids("abc"), vec![1], ids("x"), vec![2]].concat());
        assert_eq!(rows[0].prompt_len, 4);
    }

    #[test]
    fn plain_text_is_learned_whole_and_ends_in_nothing() {
        let bench = Bench::new(BOTH);
        let tokens = bench.run(r#"{"tokenizer": "tokenizer", "text": "{text}", "max_length": 4}"#).unwrap();
        let rows = tokens.rows("train").unwrap();
        assert_eq!(rows[1].ids, ids("abcd"));
        assert_eq!(rows[1].labels, ids("abcd").into_iter().map(i64::from).collect::<Vec<_>>());
        assert_eq!((rows[1].prompt_len, rows[1].target.clone()), (0, None));
        assert_eq!(tokens.about.form, Form::Text);
        assert_eq!(bench.warnings(), Vec::<String>::new());
    }

    #[test]
    fn with_max_length_rows_count_positions_from_the_left_by_default() {
        let bench = Bench::new(BOTH);
        let tokens = bench
            .run(r#"{"tokenizer": "tokenizer", "prompt": "{text}", "target": "{label}", "max_length": 64}"#);
        let tokens = tokens.unwrap();
        let len = tokens.rows("train").unwrap()[0].ids.len();
        assert_eq!((len, tokens.about.pads_before(len, 9)), (5, 59));
    }

    #[test]
    fn rows_whose_label_is_cut_off_are_named() {
        let bench = Bench::new(BOTH);
        let keys = r#"{"tokenizer": "tokenizer", "prompt": "{text}", "target": "{label}", "max_length": 4}"#;
        let rows = bench.run(keys).unwrap().rows("train").unwrap();
        assert_eq!(rows[1].ids, ids("abcd"));
        assert_eq!(rows[1].prompt_len, 4);
        assert_eq!(
            bench.warnings(),
            [
                "split `train`: max_length 4 cuts off the label of 2 of 3 rows (1 wholly, 1 partly): rows 0, 1 \
                 (from 0); raise max_length (the longest row has 9 tokens) or set truncation_side: left"
            ]
        );
    }

    #[test]
    fn cutting_on_the_left_keeps_the_label() {
        let bench = Bench::new(BOTH);
        let keys = r#"{"tokenizer": "tokenizer", "prompt": "{text}", "target": "{label}", "max_length": 4,
            "truncation_side": "left"}"#;
        let rows = bench.run(keys).unwrap().rows("train").unwrap();
        assert_eq!(rows[1].ids, [ids("fyz"), vec![3]].concat());
        assert_eq!(rows[1].prompt_len, 1);
        assert_eq!(bench.warnings(), Vec::<String>::new());
    }

    #[test]
    fn a_split_that_loses_every_label_is_refused() {
        let bench = Bench::new(BOTH);
        let keys =
            r#"{"tokenizer": "tokenizer", "prompt": "t: {text}", "target": "{label}", "max_length": 4}"#;
        assert_eq!(
            refusal(bench.run(keys)),
            (
                "split `train`: max_length 4 cuts off the label of every row (3), so there is nothing to learn"
                    .into(),
                Some("raise max_length (the longest row has 12 tokens) or set truncation_side: left".into())
            )
        );
    }

    #[test]
    fn data_that_does_not_fit_is_refused_by_name() {
        let bench = Bench::new(BOTH);
        let keys = |target: &str| format!(r#"{{"prompt": "{{text}}", "target": "{target}"}}"#);
        assert_eq!(
            refusal(bench.run(&keys("{labels}"))).0,
            "no column `labels` in split `train` (did you mean `label`?); there are `text`, `label`"
        );
        let empty = df!("text" => Vec::<String>::new(), "label" => Vec::<String>::new()).unwrap();
        bench.set(&[("test", empty)]);
        assert_eq!(refusal(bench.run(&keys("{label}"))).0, "split `test` of the dataset has no rows");
        bench.set(&[("train", df!("text" => ["a"], "label" => [None::<&str>]).unwrap())]);
        assert_eq!(
            refusal(bench.run(&keys("{label}"))).0,
            "split `train`, row 0 (from 0): column `label` is null, and `{label}` needs it"
        );
    }

    #[test]
    fn an_end_token_that_does_not_exist_is_refused() {
        let bench = Bench::new("{}");
        assert_eq!(
            refusal(bench.run(r#"{"prompt": "{text}", "target": "{label}"}"#)).0,
            "`end: pad`: the tokenizer has neither a padding token nor an end token"
        );
        assert_eq!(
            refusal(bench.run(r#"{"text": "{text}", "end": "eos"}"#)).0,
            "`end: eos`: the tokenizer has no end token"
        );
    }

    #[test]
    fn stops_when_asked_to_and_leaves_nothing() {
        let bench = Bench::new(BOTH);
        bench.cancel.cancel();
        let result = bench.run(r#"{"text": "{text}"}"#);
        assert!(matches!(result, Err(StageError::Interrupted)));
        assert_eq!(std::fs::read_dir(bench.path("out")).unwrap().count(), 0);
    }

    #[test]
    fn what_can_be_known_without_running_is_checked() {
        let faults = |keys: &str, inputs: &[&str]| {
            let stage: Tokenize = serde_json::from_str(keys).unwrap();
            stage.check(inputs).into_iter().map(|f| format!("{}: {}", f.key, f.message)).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(faults(r#"{"tokenizer": "t", "text": "{a}"}"#, &["dataset"]), none);
        assert_eq!(faults(r#"{"prompt": "{a}", "target": "b"}"#, &["dataset", "model"]), none);
        assert_eq!(
            faults(r#"{"tokenizer": "t", "text": "{a}"}"#, &["dataset", "model"]),
            ["tokenizer: both `tokenizer` and the port `model` bring a tokenizer"]
        );
        assert_eq!(
            faults("{}", &["dataset"]),
            [": nothing brings a tokenizer", ": nothing says what to tokenize"]
        );
        assert_eq!(
            faults(r#"{"tokenizer": "t", "text": "{a}", "target": "{b}"}"#, &[]),
            ["text: `text` stands beside `prompt` or `target`"]
        );
        assert_eq!(
            faults(r#"{"tokenizer": "t", "prompt": "{a}"}"#, &[]),
            ["prompt: `prompt` stands without `target`"]
        );
        assert_eq!(
            faults(r#"{"tokenizer": "t", "target": "{a}", "max_length": 0}"#, &[]),
            [
                "target: `target` stands without `prompt`",
                "max_length: `max_length: 0` leaves no token of any row"
            ]
        );
        assert_eq!(
            faults(r#"{"tokenizer": "t", "text": "{a}", "padding": "left"}"#, &[]),
            ["padding: `padding: left` needs `max_length`"]
        );
        assert_eq!(faults(r#"{"tokenizer": "t", "text": "{a}", "padding": "longest"}"#, &[]), none);
    }

    #[test]
    fn only_the_tokenizers_files_of_a_model_folder_are_its_sources() {
        let bench = Bench::new(BOTH);
        std::fs::write(bench.path("tokenizer").join("model.safetensors"), "weights").unwrap();
        let mut stage: Tokenize = serde_json::from_str(r#"{"text": "{text}"}"#).unwrap();
        stage.tokenizer = Some(Location::new("tokenizer", bench.dir.path()));
        let names = ["tokenizer.json", "tokenizer_config.json"].map(String::from).to_vec();
        assert_eq!(stage.sources()[0].content, Content::Named(names));
        stage.tokenizer = Some(Location::new("owner/name", "/nowhere"));
        assert_eq!(stage.sources()[0].location.text(), "owner/name");
    }

    /// The guide's own encoding of RAFT's tweets, where the material is at hand.
    #[test]
    fn the_guides_rows_come_out_as_recorded() {
        let shared = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared"));
        let model = shared.join("reference/bloom");
        let (Ok(forward), Ok(tweets)) = (
            candle_core::safetensors::load(model.join("forward.safetensors"), &candle_core::Device::Cpu),
            std::fs::read_to_string(shared.join("data/raft_twitter_complaints.jsonl")),
        ) else {
            eprintln!("skipped: no reference material");
            return;
        };
        let names = ["Unlabeled", "complaint", "no complaint"];
        let (mut texts, mut labels) = (Vec::new(), Vec::new());
        for line in tweets.lines() {
            let tweet: serde_json::Value = serde_json::from_str(line).unwrap();
            texts.push(tweet["Tweet text"].as_str().unwrap().to_owned());
            labels.push(names[tweet["Label"].as_u64().unwrap() as usize]);
        }
        let bench = Bench::new(BOTH);
        bench.set(&[("train", df!("Tweet text" => texts, "text_label" => labels).unwrap())]);
        let keys = serde_json::json!({
            "tokenizer": model, "prompt": "Tweet text : {Tweet text} Label : ", "target": "{text_label}",
            "max_length": 160,
        });
        let tokens = bench.run(&keys.to_string()).unwrap();
        let rows = tokens.rows("train").unwrap();
        let recorded = |name: &str| forward[name].to_vec2::<i64>().unwrap();
        for (row, (ids, labels)) in rows.iter().zip(recorded("input_ids").iter().zip(recorded("labels"))) {
            let pads = tokens.about.pads_before(row.ids.len(), 0);
            let padded: Vec<i64> =
                vec![3; pads].into_iter().chain(row.ids.iter().map(|&id| id.into())).collect();
            assert_eq!(&padded, ids);
            assert_eq!([vec![IGNORED; pads], row.labels.clone()].concat(), labels);
        }
    }
}
