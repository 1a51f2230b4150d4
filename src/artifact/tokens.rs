//! Tokenised splits: rows of token ids with labels, parquet on disk, described by `tokens.json`. Of plain text
//! only the ids are on disk, because its labels are its ids.
//!
//! Rows are kept without padding: what padding was asked for is written down, and [`About::pads_before`] says
//! which positions it would have given a row. Knows nothing of batches, models or how the ids came about.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use polars::prelude::{
    Column, DataFrame, DataType, Int64Type, IntoSeries, ListBuilderTrait, ListPrimitiveChunkedBuilder,
    PolarsError, PolarsNumericType, Schema, UInt32Type,
};
use serde::{Deserialize, Serialize};

use crate::artifact::dataset::{DatasetError, check_split_name};
use crate::artifact::parquet::{RowGroupWriter, RowGroups};
use crate::cancel::Cancel;
use crate::tokenizer::{Side, Tokenizer};

/// The file that names the splits and describes the rows.
const INDEX: &str = "tokens.json";

/// The label of a position that is not learned.
pub const IGNORED: i64 = -100;

/// One row, without padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// The row of the dataset's split it was made from, from 0.
    pub source: u32,
    /// The tokens.
    pub ids: Vec<u32>,
    /// What is to be predicted, as long as `ids` and not shifted: the token itself, or [`IGNORED`].
    pub labels: Vec<i64>,
    /// How many of the first `ids` are the prompt; 0 in plain text.
    pub prompt_len: usize,
    /// The text of the target, whole even where its tokens were cut off; none in plain text.
    pub target: Option<String>,
}

/// What rows are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// A prompt whose labels are ignored and a target that is learned.
    PromptTarget,
    /// Text that is learned whole.
    Text,
}

/// How far rows are filled up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PadTo {
    /// Not at all.
    None,
    /// To the longest row of the batch.
    Longest,
    /// To `max_length`.
    MaxLength,
}

/// The padding that was asked for: positions, not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Padding {
    /// Where the padding stands.
    pub side: Side,
    /// How far it goes.
    pub to: PadTo,
}

/// The tokenizer that made the ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeBy {
    /// Its name as it was written.
    pub name: String,
    /// See [`Tokenizer::fingerprint`].
    pub fingerprint: String,
    /// How many tokens it has.
    pub vocab_size: usize,
    /// The padding token, or the one that ends a text where there is none.
    pub pad_token_id: Option<u32>,
    /// The token that ends a text.
    pub eos_token_id: Option<u32>,
}

/// What is true of every row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// What made the ids.
    pub tokenizer: MadeBy,
    /// What rows are made of.
    pub form: Form,
    /// The tokens put behind every target or text.
    pub end_ids: Vec<u32>,
    /// The most tokens a row may have.
    pub max_length: Option<usize>,
    /// The padding that was asked for.
    pub padding: Padding,
}

impl About {
    /// How many padding tokens would stand before a row of `row_len` tokens in a batch whose longest row has
    /// `longest_in_batch`: where a model counts positions over padding, the row's first token has this one.
    pub fn pads_before(&self, row_len: usize, longest_in_batch: usize) -> usize {
        let width = match (self.padding.side, self.padding.to) {
            (Side::Right, _) | (_, PadTo::None) => row_len,
            (Side::Left, PadTo::Longest) => longest_in_batch,
            (Side::Left, PadTo::MaxLength) => self.max_length.unwrap_or(row_len),
        };
        width.saturating_sub(row_len)
    }
}

/// A split without its rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitSize {
    /// `train`, `test`, …
    pub name: String,
    /// How many rows it has.
    pub rows: usize,
}

/// A folder of tokenised splits: the description in memory, rows read by [`Tokens::rows`] or
/// [`Tokens::batches`].
#[derive(Clone, Debug)]
pub struct Tokens {
    dir: PathBuf,
    /// What is true of every row.
    pub about: About,
    /// The splits, in their order.
    pub splits: Vec<SplitSize>,
}

/// Why tokens can't be read, written or used.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The folder holds none.
    #[error("{}: no tokens here (it has no {INDEX})", .0.display())]
    Absent(PathBuf),
    /// A file can't be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file isn't what it has to be.
    #[error("{}: {reason}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The rows of a split can't be read or written, or there is no such split.
    #[error(transparent)]
    Rows(#[from] DatasetError),
    /// Another tokenizer than the model's made the ids.
    #[error(
        "the tokens were made with the tokenizer of {} ({} tokens), and {model} has another vocabulary ({size} \
         tokens): tokenize with the model's own", made_by.name, made_by.vocab_size
    )]
    Foreign {
        /// What made the ids.
        made_by: MadeBy,
        /// The model's name.
        model: String,
        /// How many tokens its own tokenizer has.
        size: usize,
    },
}

/// What [`INDEX`] holds.
#[derive(Serialize, Deserialize)]
struct Index {
    splits: Vec<SplitSize>,
    #[serde(flatten)]
    about: About,
}

impl Tokens {
    /// Reads the description of what a [`TokensWriter`] wrote.
    pub fn open(dir: &Path) -> Result<Self, TokensError> {
        let path = dir.join(INDEX);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(TokensError::Absent(dir.into()));
            }
            Err(error) => return Err(TokensError::Io { path, error }),
        };
        let Index { splits, about } =
            serde_json::from_str(&text).map_err(|e| TokensError::Broken { path, reason: e.to_string() })?;
        for split in &splits {
            check_split_name(&split.name)?;
        }
        Ok(Self { dir: dir.into(), about, splits })
    }

    /// Whether there is a split of this name.
    pub fn has(&self, split: &str) -> bool {
        self.splits.iter().any(|s| s.name == split)
    }

    /// Reads the rows of one split.
    pub fn rows(&self, split: &str) -> Result<Vec<Row>, TokensError> {
        let batches = self.batches(split)?;
        let mut rows = Vec::with_capacity(batches.groups.rows());
        for batch in batches {
            rows.extend(batch?);
        }
        Ok(rows)
    }

    /// The rows of one split, some thousand at a time, in their order.
    pub fn batches(&self, split: &str) -> Result<Batches, TokensError> {
        let Some(size) = self.splits.iter().find(|s| s.name == split) else {
            let have = self.splits.iter().map(|s| s.name.clone()).collect();
            return Err(DatasetError::NoSplit { name: split.into(), have }.into());
        };
        let path = path(&self.dir, split);
        let groups = RowGroups::open(&path, &Cancel::default())?;
        if groups.rows() != size.rows {
            let reason = format!("has {} rows, {INDEX} says {}", groups.rows(), size.rows);
            return Err(TokensError::Broken { path, reason });
        }
        Ok(Batches { path, groups, form: self.about.form, first: 0 })
    }

    /// Refuses a model whose tokenizer gives these ids another meaning.
    pub fn belong_to(&self, model: &str, tokenizer: &Tokenizer) -> Result<(), TokensError> {
        if tokenizer.fingerprint() == self.about.tokenizer.fingerprint {
            return Ok(());
        }
        Err(TokensError::Foreign {
            made_by: self.about.tokenizer.clone(),
            model: model.into(),
            size: tokenizer.vocab_size(),
        })
    }
}

fn path(dir: &Path, split: &str) -> PathBuf {
    dir.join(format!("{split}.parquet"))
}

/// The rows of one split, batch by batch.
pub struct Batches {
    path: PathBuf,
    groups: RowGroups,
    form: Form,
    /// How many rows the batches so far had.
    first: usize,
}

impl Batches {
    /// How many rows the split has.
    pub fn rows(&self) -> usize {
        self.groups.rows()
    }

    fn batch(&mut self, frame: &DataFrame) -> Result<Vec<Row>, TokensError> {
        let broken = |reason| TokensError::Broken { path: self.path.clone(), reason };
        let rows = from_frame(frame, self.form, self.first as u32).map_err(|e| broken(e.to_string()))?;
        let uneven = |row: &Row| row.labels.len() != row.ids.len() || row.prompt_len > row.ids.len();
        if let Some(at) = rows.iter().position(uneven) {
            let at = self.first + at;
            return Err(broken(format!("row {at}: ids, labels and prompt don't have the same length")));
        }
        self.first += rows.len();
        Ok(rows)
    }
}

impl Iterator for Batches {
    type Item = Result<Vec<Row>, TokensError>;

    fn next(&mut self) -> Option<Self::Item> {
        let frame = self.groups.next()?;
        Some(frame.map_err(TokensError::from).and_then(|frame| self.batch(&frame)))
    }
}

/// Tokens in the making: one split after the other, rows as they come.
pub struct TokensWriter {
    tokens: Tokens,
}

/// A split in the making; it counts once it is [ended](SplitWriter::end).
pub struct SplitWriter<'a> {
    splits: &'a mut Vec<SplitSize>,
    form: Form,
    name: String,
    path: PathBuf,
    file: RowGroupWriter,
}

impl TokensWriter {
    /// Tokens in a folder that exists.
    pub fn create(dir: &Path, about: About) -> Self {
        Self { tokens: Tokens { dir: dir.into(), about, splits: Vec::new() } }
    }

    /// Begins the next split.
    pub fn split(&mut self, name: &str) -> Result<SplitWriter<'_>, TokensError> {
        check_split_name(name)?;
        let Tokens { dir, about, splits } = &mut self.tokens;
        let path = path(dir, name);
        let file = RowGroupWriter::create(&path, &schema(about.form), &Cancel::default())?;
        Ok(SplitWriter { splits, form: about.form, name: name.into(), path, file })
    }

    /// Writes [`INDEX`], without which there are no tokens.
    pub fn finish(self) -> Result<Tokens, TokensError> {
        let path = self.tokens.dir.join(INDEX);
        let index = Index { splits: self.tokens.splits.clone(), about: self.tokens.about.clone() };
        let mut text = serde_json::to_string_pretty(&index)
            .map_err(|e| TokensError::Broken { path: path.clone(), reason: e.to_string() })?;
        text.push('\n');
        fs::write(&path, text).map_err(|error| TokensError::Io { path, error })?;
        Ok(self.tokens)
    }
}

impl SplitWriter<'_> {
    /// Puts rows below those written so far. Of plain text only the ids are taken.
    pub fn write(&mut self, rows: &[Row]) -> Result<(), TokensError> {
        let frame = to_frame(rows, self.form)
            .map_err(|e| TokensError::Broken { path: self.path.clone(), reason: e.to_string() })?;
        Ok(self.file.write(&frame)?)
    }

    /// Puts blocks of plain text below the rows written so far.
    pub fn write_blocks<'a>(&mut self, blocks: impl Iterator<Item = &'a [u32]>) -> Result<(), TokensError> {
        let frame = texts(blocks)
            .map_err(|e| TokensError::Broken { path: self.path.clone(), reason: e.to_string() })?;
        Ok(self.file.write(&frame)?)
    }

    /// Ends the split; tells how many rows it has.
    pub fn end(self) -> Result<usize, TokensError> {
        let rows = self.file.finish()?;
        self.splits.push(SplitSize { name: self.name, rows });
        Ok(rows)
    }
}

fn list<T: PolarsNumericType>(name: &str, rows: usize, tokens: usize) -> ListPrimitiveChunkedBuilder<T> {
    ListPrimitiveChunkedBuilder::new(name.into(), rows, tokens, T::get_static_dtype())
}

fn schema(form: Form) -> Schema {
    let of = |inner| DataType::List(Box::new(inner));
    let ids = ("input_ids".into(), of(DataType::UInt32));
    match form {
        Form::Text => Schema::from_iter([ids]),
        Form::PromptTarget => Schema::from_iter([
            ids,
            ("labels".into(), of(DataType::Int64)),
            ("row".into(), DataType::UInt32),
            ("prompt_length".into(), DataType::UInt32),
            ("target".into(), DataType::String),
        ]),
    }
}

fn texts<'a>(texts: impl Iterator<Item = &'a [u32]>) -> Result<DataFrame, PolarsError> {
    let mut ids = list::<UInt32Type>("input_ids", 0, 0);
    let mut rows = 0;
    for text in texts {
        ids.append_slice(text);
        rows += 1;
    }
    DataFrame::new(rows, vec![ids.finish().into_series().into()])
}

fn to_frame(rows: &[Row], form: Form) -> Result<DataFrame, PolarsError> {
    if form == Form::Text {
        return texts(rows.iter().map(|row| row.ids.as_slice()));
    }
    let tokens = rows.iter().map(|r| r.ids.len()).sum();
    let mut ids = list::<UInt32Type>("input_ids", rows.len(), tokens);
    let mut labels = list::<Int64Type>("labels", rows.len(), tokens);
    for row in rows {
        ids.append_slice(&row.ids);
        labels.append_slice(&row.labels);
    }
    let sources: Vec<u32> = rows.iter().map(|r| r.source).collect();
    let prompts: Vec<u32> = rows.iter().map(|r| r.prompt_len as u32).collect();
    let targets: Vec<Option<&str>> = rows.iter().map(|r| r.target.as_deref()).collect();
    DataFrame::new(
        rows.len(),
        vec![
            ids.finish().into_series().into(),
            labels.finish().into_series().into(),
            Column::new("row".into(), sources),
            Column::new("prompt_length".into(), prompts),
            Column::new("target".into(), targets),
        ],
    )
}

/// The rows of a frame; `first` is the place of the first one in its split.
fn from_frame(frame: &DataFrame, form: Form, first: u32) -> Result<Vec<Row>, PolarsError> {
    let empty = |name: &str| PolarsError::ComputeError(format!("an empty cell in column `{name}`").into());
    let all_ids = lists::<UInt32Type>(frame, "input_ids")?;
    if form == Form::Text {
        let row = |(source, ids): (u32, Vec<u32>)| {
            let labels = ids.iter().map(|&id| id.into()).collect();
            Row { source, ids, labels, ..Row::default() }
        };
        return Ok((first..).zip(all_ids).map(row).collect());
    }
    let all_labels = lists::<Int64Type>(frame, "labels")?;
    let (sources, prompts) = (frame.column("row")?.u32()?, frame.column("prompt_length")?.u32()?);
    let targets = frame.column("target")?.str()?;
    let lists = all_ids.into_iter().zip(all_labels).enumerate();
    lists
        .map(|(at, (ids, labels))| {
            Ok(Row {
                source: sources.get(at).ok_or_else(|| empty("row"))?,
                ids,
                labels,
                prompt_len: prompts.get(at).ok_or_else(|| empty("prompt_length"))? as usize,
                target: targets.get(at).map(str::to_owned),
            })
        })
        .collect()
}

/// The cells of a column of lists of numbers.
fn lists<T: PolarsNumericType>(frame: &DataFrame, name: &str) -> Result<Vec<Vec<T::Native>>, PolarsError> {
    let empty = || PolarsError::ComputeError(format!("an empty cell in column `{name}`").into());
    let column = frame.column(name)?.list()?;
    (0..column.len())
        .map(|at| {
            let cell = column.get_as_series(at).ok_or_else(empty)?;
            let numbers = cell.unpack::<T>()?;
            // In one piece and without a null is how a writer leaves them.
            Ok(numbers.cont_slice().map_err(|_| empty())?.to_vec())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(side: Side, to: PadTo, max_length: Option<usize>) -> About {
        About {
            tokenizer: MadeBy {
                name: "models/tiny".into(),
                fingerprint: "0".repeat(64),
                vocab_size: 260,
                pad_token_id: Some(3),
                eos_token_id: None,
            },
            form: Form::PromptTarget,
            end_ids: vec![3],
            max_length,
            padding: Padding { side, to },
        }
    }

    fn rows() -> Vec<Row> {
        vec![
            Row {
                source: 4,
                ids: vec![7, 8, 9, 3],
                labels: vec![IGNORED, IGNORED, 9, 3],
                prompt_len: 2,
                target: Some("불만".into()),
            },
            Row { source: 5, ..Row::default() },
        ]
    }

    fn save(dir: &Path, about: About, splits: &[(&str, Vec<Row>)]) -> Tokens {
        let mut tokens = TokensWriter::create(dir, about);
        for (name, rows) in splits {
            let mut split = tokens.split(name).unwrap();
            split.write(rows).unwrap();
            assert_eq!(split.end().unwrap(), rows.len());
        }
        tokens.finish().unwrap()
    }

    #[test]
    fn plain_text_is_its_ids_and_comes_in_batches() {
        let dir = tempfile::tempdir().unwrap();
        let row = |source: u32| Row {
            source,
            ids: vec![source, 7],
            labels: vec![source.into(), 7],
            ..Row::default()
        };
        let rows: Vec<Row> = (0..20_000).map(row).collect();
        let about = About { form: Form::Text, ..about(Side::Right, PadTo::None, None) };
        let tokens = save(dir.path(), about, &[("train", rows.clone())]);
        assert_eq!(tokens.rows("train").unwrap(), rows);
        let sizes: Vec<usize> = tokens.batches("train").unwrap().map(|rows| rows.unwrap().len()).collect();
        assert_eq!(sizes, [16_384, 3_616]);
    }

    #[test]
    fn padding_is_positions_before_a_row() {
        let before = |side, to, max| about(side, to, max).pads_before(10, 25);
        assert_eq!(before(Side::Left, PadTo::None, Some(64)), 0);
        assert_eq!(before(Side::Left, PadTo::MaxLength, Some(64)), 54);
        assert_eq!(before(Side::Left, PadTo::Longest, Some(64)), 15);
        assert_eq!(before(Side::Right, PadTo::MaxLength, Some(64)), 0);
        assert_eq!(before(Side::Right, PadTo::Longest, None), 0);
    }

    #[test]
    fn comes_back_as_it_was_saved_and_saves_the_same_bytes_again() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let splits = [("train", rows()), ("test", rows()[..1].to_vec())];
        let about = about(Side::Left, PadTo::MaxLength, Some(64));
        save(one.path(), about.clone(), &splits);
        let back = Tokens::open(one.path()).unwrap();
        assert_eq!(back.about, about);
        assert_eq!(back.rows("train").unwrap(), rows());
        assert_eq!(back.rows("test").unwrap(), rows()[..1]);

        save(two.path(), about, &splits);
        for file in ["train.parquet", "test.parquet", INDEX] {
            assert_eq!(fs::read(one.path().join(file)).unwrap(), fs::read(two.path().join(file)).unwrap());
        }
    }

    #[test]
    fn only_the_splits_asked_for_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let splits = [("train", rows()), ("test", rows())];
        save(dir.path(), about(Side::Left, PadTo::None, None), &splits);
        fs::remove_file(dir.path().join("test.parquet")).unwrap();
        assert_eq!(Tokens::open(dir.path()).unwrap().rows("train").unwrap().len(), 2);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let absent = Tokens::open(dir.path()).unwrap_err();
        assert_eq!(
            absent.to_string(),
            format!("{}: no tokens here (it has no tokens.json)", dir.path().display())
        );
        let tokens = save(dir.path(), about(Side::Left, PadTo::None, None), &[("train", rows())]);
        assert_eq!(
            tokens.rows("trian").unwrap_err().to_string(),
            "no split `trian` (did you mean `train`?); there is `train`"
        );
    }

    #[test]
    fn a_file_that_does_not_fit_its_description_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), about(Side::Left, PadTo::None, None), &[("train", rows())]);
        let index = dir.path().join(INDEX);
        let text = fs::read_to_string(&index).unwrap().replace("\"rows\": 2", "\"rows\": 3");
        fs::write(&index, text).unwrap();
        let path = dir.path().join("train.parquet");
        assert_eq!(
            Tokens::open(dir.path()).unwrap().rows("train").unwrap_err().to_string(),
            format!("{}: has 2 rows, tokens.json says 3", path.display())
        );
    }

    #[test]
    fn a_model_with_another_vocabulary_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        crate::tokenizer::testing::write_folder(dir.path(), "{}");
        let own = Tokenizer::open(dir.path()).unwrap();
        let mut about = about(Side::Left, PadTo::None, None);
        about.tokenizer.fingerprint = own.fingerprint();
        let tokens = save(dir.path(), about, &[]);
        tokens.belong_to("models/tiny", &own).unwrap();

        crate::tokenizer::testing::write_folder(dir.path(), r#"{"pad_token": "[PAD]"}"#);
        let other = Tokenizer::open(dir.path()).unwrap();
        assert_eq!(
            tokens.belong_to("models/other", &other).unwrap_err().to_string(),
            "the tokens were made with the tokenizer of models/tiny (260 tokens), and models/other has \
             another vocabulary (261 tokens): tokenize with the model's own"
        );
    }
}
