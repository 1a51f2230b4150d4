//! `group_texts`: rows of plain text end to end, cut into blocks of equal length.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::tokens::{About, Form, PadTo, Padding, SplitWriter, Tokens, TokensWriter};
use crate::stage::{ArtifactKind, Context, Fault, Lane, Output, Port, Stage, StageError};

/// Joins the rows of every split and cuts them into blocks.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupTexts {
    /// How many tokens a block has.
    #[serde(default = "block_size")]
    #[schemars(range(min = 1))]
    pub block_size: usize,
    /// What becomes of the tokens at the end that fill no block: `drop`, or `keep` as a shorter one.
    #[serde(default)]
    pub remainder: Remainder,
    /// Join only so many rows at a time, each time with a remainder of its own, as Python's batched `map` does
    /// (1000 by its default; rows that fill no block together are then kept as one shorter block, as the guide's
    /// function does). Default: the whole split is one stream.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub window: Option<usize>,
}

/// What becomes of tokens that fill no block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Remainder {
    /// They are left out.
    #[default]
    Drop,
    /// They are a shorter block.
    Keep,
}

fn block_size() -> usize {
    128
}

impl Stage for GroupTexts {
    const KIND: &'static str = "group_texts";
    const VERSION: u32 = 1;
    const LANE: Lane = Lane::Cpu;
    const ABOUT: &'static str = "Joins rows of plain text and cuts them into blocks of equal length.";
    const EXAMPLE: &'static str = r#"blocks:
  uses: group_texts
  inputs: { dataset: tokens }
  with: { block_size: 128 }
"#;
    const INPUTS: &'static [Port] = &[Port {
        name: "dataset",
        accepts: &[ArtifactKind::Tokens],
        required: true,
        about: "The rows; every split is cut into blocks.",
    }];

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("tokens", ArtifactKind::Tokens, &["."])]
    }

    fn check(&self, _: &[&str]) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.block_size == 0 {
            faults.push(Fault::new("block_size", "`block_size: 0` makes blocks without a token"));
        }
        if self.window == Some(0) {
            faults.push(
                Fault::new("window", "`window: 0` joins no rows").help("leave it out to join all of a split"),
            );
        }
        faults
    }

    fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
        let tokens = Tokens::open(&context.input("dataset")?.path)?;
        if tokens.about.form != Form::Text {
            return Err(StageError::with_help(
                "the tokens are prompts with targets, and only plain text can be joined",
                "tokenize with `text` instead of `prompt` and `target`",
            ));
        }
        let about = About {
            end_ids: Vec::new(),
            max_length: Some(self.block_size),
            padding: Padding { to: PadTo::None, ..tokens.about.padding },
            ..tokens.about.clone()
        };
        let total: usize = tokens.splits.iter().map(|split| split.rows).sum();
        let mut done = 0;
        let mut blocks = TokensWriter::create(context.out, about);
        for split in &tokens.splits {
            let mut stream = Stream::new(self, blocks.split(&split.name)?);
            for rows in tokens.batches(&split.name)? {
                context.go_on()?;
                let rows = rows?;
                for row in &rows {
                    stream.take(&row.ids)?;
                }
                done += rows.len();
                context.progress(done as u64, total as u64, "rows", &split.name);
            }
            let cut = stream.end()?;
            self.tell(context, &split.name, split.rows, &cut)?;
        }
        blocks.finish()?;
        Ok(())
    }
}

impl GroupTexts {
    /// Says what became of a split; refuses one without a block.
    fn tell(&self, context: &Context<'_>, split: &str, rows: usize, cut: &Cut) -> Result<(), StageError> {
        let Cut { tokens, blocks, dropped } = cut;
        if rows == 0 {
            return Err(StageError::with_help(
                format!("split `{split}` has no rows"),
                "look at the stage that made it, or leave the split out",
            ));
        }
        if *blocks == 0 {
            return Err(StageError::with_help(
                format!(
                    "split `{split}`: its {tokens} tokens ({rows} rows) do not fill one block of {}",
                    self.block_size
                ),
                "lower `block_size`, set `remainder: keep`, or give the split more text",
            ));
        }
        context.note(format!(
            "split `{split}`: {tokens} tokens in {rows} rows are {blocks} blocks; {dropped} tokens are left over \
             and dropped"
        ));
        context.metric(format!("blocks.{split}"), *blocks as f64);
        Ok(())
    }
}

/// What became of a split.
struct Cut {
    /// Tokens that came in.
    tokens: usize,
    /// Blocks that went out.
    blocks: usize,
    /// Tokens that are in none of them.
    dropped: usize,
}

/// A split on its way through: holds no more than what fills no block yet, and the blocks of one piece written
/// at once.
struct Stream<'a> {
    stage: &'a GroupTexts,
    out: SplitWriter<'a>,
    /// Tokens whose block is not written yet.
    held: Vec<u32>,
    /// Rows of the window so far.
    rows: usize,
    /// Whether a block of the window is written.
    has_block: bool,
    cut: Cut,
}

/// Tokens held before the blocks among them are written.
const HELD: usize = 1 << 20;

impl<'a> Stream<'a> {
    fn new(stage: &'a GroupTexts, out: SplitWriter<'a>) -> Self {
        let cut = Cut { tokens: 0, blocks: 0, dropped: 0 };
        Self { stage, out, held: Vec::new(), rows: 0, has_block: false, cut }
    }

    fn take(&mut self, ids: &[u32]) -> Result<(), StageError> {
        self.held.extend_from_slice(ids);
        self.cut.tokens += ids.len();
        self.rows += 1;
        if self.stage.window == Some(self.rows) {
            self.end_window()
        } else if self.held.len() >= HELD {
            self.write_blocks()
        } else {
            Ok(())
        }
    }

    /// Writes the full blocks among what is held.
    fn write_blocks(&mut self) -> Result<(), StageError> {
        let size = self.stage.block_size;
        let full = self.held.len() / size;
        if full > 0 {
            self.out.write_blocks(self.held.chunks_exact(size))?;
            self.held.drain(..full * size);
            self.cut.blocks += full;
            self.has_block = true;
        }
        Ok(())
    }

    fn end_window(&mut self) -> Result<(), StageError> {
        self.write_blocks()?;
        let is_kept = match self.stage.remainder {
            Remainder::Keep => true,
            // The guide's function cuts nothing off what is shorter than a block.
            Remainder::Drop => self.stage.window.is_some() && !self.has_block,
        };
        if is_kept && !self.held.is_empty() {
            self.out.write_blocks(std::iter::once(self.held.as_slice()))?;
            self.cut.blocks += 1;
        } else {
            self.cut.dropped += self.held.len();
        }
        self.held.clear();
        (self.rows, self.has_block) = (0, false);
        Ok(())
    }

    fn end(mut self) -> Result<Cut, StageError> {
        if self.rows > 0 {
            self.end_window()?;
        }
        self.out.end()?;
        Ok(self.cut)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::artifact::tokens::{MadeBy, Row};
    use crate::stage::Cancel;
    use crate::stages::testing::{Refusal, fault, input, run_with};
    use crate::tokenizer::Side;

    fn about(form: Form) -> About {
        About {
            tokenizer: MadeBy {
                name: "t".into(),
                fingerprint: "0".into(),
                vocab_size: 99,
                pad_token_id: None,
                eos_token_id: Some(2),
            },
            form,
            end_ids: vec![2],
            max_length: Some(64),
            padding: Padding { side: Side::Left, to: PadTo::MaxLength },
        }
    }

    /// The blocks of rows of these lengths, whose tokens count on from 0.
    fn blocks(keys: &str, form: Form, lengths: &[u32]) -> Result<(Vec<Vec<u32>>, About), Refusal> {
        let (before, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut next = 0;
        let rows: Vec<Row> = lengths
            .iter()
            .map(|length| {
                let ids: Vec<u32> = (next..next + length).collect();
                next += length;
                Row { labels: ids.iter().map(|&id| id.into()).collect(), ids, ..Row::default() }
            })
            .collect();
        let mut tokens = TokensWriter::create(before.path(), about(form));
        let mut split = tokens.split("train").unwrap();
        split.write(&rows).unwrap();
        split.end().unwrap();
        tokens.finish().unwrap();
        let stage: GroupTexts = serde_json::from_str(keys).unwrap();
        let inputs = BTreeMap::from([input("dataset", ArtifactKind::Tokens, before.path())]);
        run_with(&stage, &inputs, after.path(), &Cancel::default()).0.map_err(fault)?;
        let tokens = Tokens::open(after.path()).unwrap();
        let rows = tokens.rows("train").unwrap();
        assert!(rows.iter().all(|row| row.labels.iter().zip(&row.ids).all(|(&l, &id)| l == i64::from(id))));
        Ok((rows.into_iter().map(|row| row.ids).collect(), tokens.about))
    }

    fn lengths(keys: &str, rows: &[u32]) -> Vec<usize> {
        blocks(keys, Form::Text, rows).unwrap().0.iter().map(Vec::len).collect()
    }

    #[test]
    fn rows_are_joined_and_cut_and_the_remainder_is_dropped() {
        let (blocks, about) = blocks(r#"{"block_size": 4}"#, Form::Text, &[3, 0, 2, 5]).unwrap();
        assert_eq!(blocks, [[0, 1, 2, 3], [4, 5, 6, 7]]);
        assert_eq!((about.max_length, about.padding.to, about.end_ids), (Some(4), PadTo::None, vec![]));
    }

    #[test]
    fn the_remainder_can_be_kept() {
        assert_eq!(lengths(r#"{"block_size": 4, "remainder": "keep"}"#, &[3, 2, 5]), [4, 4, 2]);
        assert_eq!(lengths(r#"{"block_size": 4, "remainder": "keep"}"#, &[3]), [3]);
    }

    /// What `map(group_texts, batched=True, batch_size=2)` gives with the guide's function.
    #[test]
    fn a_window_drops_its_own_remainder_and_is_kept_where_it_fills_no_block() {
        assert_eq!(lengths(r#"{"block_size": 4, "window": 2}"#, &[3, 2, 1, 2, 9, 1, 5]), [4, 3, 4, 4, 4]);
        assert_eq!(lengths(r#"{"block_size": 4, "window": 2}"#, &[0, 0, 4]), [4]);
    }

    #[test]
    fn long_rows_go_through_in_pieces() {
        let long = HELD as u32 + 5;
        let cut = lengths(r#"{"block_size": 1000}"#, &[long, 7, long]);
        assert_eq!(cut.len(), (2 * long + 7) as usize / 1000);
    }

    #[test]
    fn a_split_without_a_block_is_refused() {
        assert_eq!(
            blocks("{}", Form::Text, &[50, 7]).unwrap_err(),
            (
                "split `train`: its 57 tokens (2 rows) do not fill one block of 128".into(),
                Some("lower `block_size`, set `remainder: keep`, or give the split more text".into())
            )
        );
        assert_eq!(blocks("{}", Form::Text, &[]).unwrap_err().0, "split `train` has no rows");
    }

    #[test]
    fn prompts_with_targets_are_refused() {
        assert_eq!(
            blocks("{}", Form::PromptTarget, &[5]).unwrap_err().0,
            "the tokens are prompts with targets, and only plain text can be joined"
        );
    }
}
