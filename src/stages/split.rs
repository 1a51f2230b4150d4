//! `split`: one split into `train` and `test`.
//!
//! The sizes are scikit-learn's and `datasets`': a share of the test rows is rounded up, of the train rows
//! down. The order is this program's own: Fisher–Yates over SplitMix64, so that a seed gives the same rows
//! on every machine and in every version.

use std::collections::BTreeMap;
use std::path::Path;

use polars::prelude::{IdxCa, IdxSize, NamedFrom};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::dataset::{Dataset, DatasetWriter, Split};
use crate::stage::{ArtifactKind, Context, Fault, Lane, Output, Port, Stage, StageError};

/// Divides a split into `train` and `test`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SplitRows {
    /// How much goes to `test`: a share between 0 and 1, or a number of rows from 1.
    pub test_size: f64,
    /// How much goes to `train`, likewise; if not given, all that is left.
    #[serde(default)]
    pub train_size: Option<f64>,
    /// Which order the rows are shuffled into. The parts are as large as those of Python's `train_test_split`, but
    /// a seed doesn't draw the rows that numpy draws with it.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Whether to shuffle; if not, `train` are the first rows and `test` those that follow.
    #[serde(default = "default_shuffle")]
    pub shuffle: bool,
    /// A column whose values shall have the same shares in both.
    #[serde(default)]
    pub stratify: Option<String>,
    /// The split to divide; if not given, the only one, or `train`.
    #[serde(default)]
    pub of: Option<String>,
}

fn default_seed() -> u64 {
    42
}

fn default_shuffle() -> bool {
    true
}

impl Stage for SplitRows {
    const KIND: &'static str = "split";
    const VERSION: u32 = 1;
    const LANE: Lane = Lane::Cpu;
    const ABOUT: &'static str = "Divides a split into train and test.";
    const EXAMPLE: &'static str = "\
halves:
  uses: split
  inputs: { dataset: tweets }
  with: { test_size: 0.2, seed: 7, stratify: Label }
";
    const INPUTS: &'static [Port] = &[Port {
        name: "dataset",
        accepts: &[ArtifactKind::Dataset],
        required: true,
        about: "The rows to divide; its other splits are passed on.",
    }];

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("dataset", ArtifactKind::Dataset, &["."])]
    }

    fn check(&self, _inputs: &[&str]) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (key, size) in [("test_size", Some(self.test_size)), ("train_size", self.train_size)] {
            if let Some(size) = size
                && !is_size(size)
            {
                faults.push(
                    Fault::new(key, format!("{size} is neither a share nor a number of rows"))
                        .help("a share is between 0 and 1 (0.2), a number of rows is whole (20)"),
                );
            }
        }
        if let Some(train) = self.train_size
            && train < 1.0
            && self.test_size < 1.0
            && train + self.test_size > 1.0
        {
            let sum = train + self.test_size;
            faults.push(Fault::new("train_size", format!("the shares of train and test add up to {sum}")));
        }
        if self.stratify.is_some() && !self.shuffle {
            faults.push(
                Fault::new("stratify", "rows that aren't shuffled can't be stratified")
                    .help("leave out `shuffle: false` or `stratify`"),
            );
        }
        faults
    }

    fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
        let (this, folder) = (self.clone(), context.input("dataset")?.path.clone());
        let dataset = context.cancel.or_abandon(move || this.parts(&folder))??;
        for part in ["train", "test"] {
            context.metric(format!("rows.{part}"), dataset.split(part)?.rows() as f64);
        }
        Ok(dataset.write(DatasetWriter::create(context.out, context.cancel))?)
    }
}

fn is_size(size: f64) -> bool {
    (size > 0.0 && size < 1.0) || (size >= 1.0 && size.fract() == 0.0 && size.is_finite())
}

impl SplitRows {
    /// The dataset in this folder, divided.
    fn parts(&self, folder: &Path) -> Result<Dataset, StageError> {
        let mut dataset = Dataset::load(folder)?;
        let of = self.divided(&dataset)?;
        for name in ["train", "test"] {
            if name != of && dataset.split(name).is_ok() {
                return Err(StageError::with_help(
                    format!("there is a split `{name}` already, beside the one to divide, `{of}`"),
                    "use it as it is, or keep one split with `split:` in `load_dataset`",
                ));
            }
        }
        let whole = dataset.split(&of)?.clone();
        let (train, test) = self.sizes(whole.rows())?;
        let (train, test) = match &self.stratify {
            _ if !self.shuffle => ((0..train).collect(), (train..train + test).collect()),
            None => {
                let mut rows: Vec<usize> = (0..whole.rows()).collect();
                SplitMix64(self.seed).shuffle(&mut rows);
                // As scikit-learn has it: the test rows are the first of the shuffled ones.
                (rows[test..test + train].to_vec(), rows[..test].to_vec())
            }
            Some(column) => self.stratified(&whole, column, train, test)?,
        };
        let mut parts = Vec::new();
        for (name, rows) in [("train", train), ("test", test)] {
            let rows: Vec<IdxSize> = rows.into_iter().map(|row| row as IdxSize).collect();
            let frame = whole
                .frame
                .take(&IdxCa::new("".into(), rows))
                .map_err(|e| StageError::failed(e.to_string()))?;
            parts.push(Split { name: name.into(), frame });
        }
        parts.extend(dataset.splits.into_iter().filter(|s| s.name != of));
        dataset.splits = parts;
        Ok(dataset)
    }

    /// The name of the split to divide.
    fn divided(&self, dataset: &Dataset) -> Result<String, StageError> {
        match (&self.of, dataset.splits.as_slice()) {
            (Some(of), _) => Ok(dataset.split(of)?.name.clone()),
            (None, [only]) => Ok(only.name.clone()),
            (None, _) => Ok(dataset.split("train")?.name.clone()),
        }
    }

    /// How many of `rows` go to train and to test.
    fn sizes(&self, rows: usize) -> Result<(usize, usize), StageError> {
        let all = rows as f64;
        let test = if self.test_size < 1.0 { (self.test_size * all).ceil() } else { self.test_size };
        let train = match self.train_size {
            None => all - test,
            Some(size) if size < 1.0 => (size * all).floor(),
            Some(size) => size,
        };
        let help = "change `test_size` or `train_size`";
        if train + test > all || train < 0.0 {
            let asked = if self.train_size.is_some() { train + test } else { test };
            return Err(StageError::with_help(
                format!("{asked} rows are asked for, and there are {rows}"),
                help,
            ));
        }
        for (name, size) in [("train", train), ("test", test)] {
            if size < 1.0 {
                return Err(StageError::with_help(
                    format!("of {rows} rows, none is left for `{name}`"),
                    help,
                ));
            }
        }
        Ok((train as usize, test as usize))
    }

    /// Rows for train and test in which every value of the column has its share.
    fn stratified(
        &self,
        whole: &Split,
        column: &str,
        train: usize,
        test: usize,
    ) -> Result<(Vec<usize>, Vec<usize>), StageError> {
        whole.column(column)?;
        let mut classes: BTreeMap<Option<String>, Vec<usize>> = BTreeMap::new();
        for row in 0..whole.rows() {
            classes.entry(whole.text_at(column, row)?).or_default().push(row);
        }
        if let Some((value, rows)) = classes.iter().find(|(_, rows)| rows.len() < 2) {
            let value = value.as_deref().map_or("null".into(), |v| format!("`{v}`"));
            return Err(StageError::with_help(
                format!(
                    "column `{column}`: {value} is in one row only (row {} from 0), too few for both parts",
                    rows[0]
                ),
                "drop `stratify`, or the row",
            ));
        }
        for (name, size) in [("train", train), ("test", test)] {
            if size < classes.len() {
                return Err(StageError::with_help(
                    format!("`{name}` gets {size} rows, and column `{column}` has {} values", classes.len()),
                    "change `test_size` or `train_size`",
                ));
            }
        }
        let counts: Vec<usize> = classes.values().map(Vec::len).collect();
        let for_test = apportion(test, &counts);
        let left: Vec<usize> = counts.iter().zip(&for_test).map(|(count, taken)| count - taken).collect();
        let for_train = apportion(train, &left);
        let mut generator = SplitMix64(self.seed);
        let (mut train, mut test) = (Vec::new(), Vec::new());
        for (mut rows, (test_rows, train_rows)) in
            classes.into_values().zip(for_test.into_iter().zip(for_train))
        {
            generator.shuffle(&mut rows);
            test.extend_from_slice(&rows[..test_rows]);
            train.extend_from_slice(&rows[test_rows..test_rows + train_rows]);
        }
        generator.shuffle(&mut train);
        generator.shuffle(&mut test);
        Ok((train, test))
    }
}

/// `total` divided in proportion to `counts`, none above its count: whole parts first, then one each by the
/// largest remainder, the earlier at a tie.
fn apportion(total: usize, counts: &[usize]) -> Vec<usize> {
    let all: usize = counts.iter().sum::<usize>().max(1);
    let mut shares: Vec<usize> = counts.iter().map(|count| total * count / all).collect();
    let mut by_remainder: Vec<usize> = (0..counts.len()).collect();
    by_remainder.sort_by_key(|at| std::cmp::Reverse(total * counts[*at] % all));
    let missing = total - shares.iter().sum::<usize>();
    for at in by_remainder.into_iter().take(missing) {
        shares[at] += 1;
    }
    shares
}

/// Steele, Lea and Flood's generator: a counter, mixed.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, all equally likely: draws that would favour small ones are thrown away.
    fn below(&mut self, bound: u64) -> u64 {
        let uneven = (u64::MAX % bound + 1) % bound;
        loop {
            let draw = self.next();
            if draw <= u64::MAX - uneven {
                return draw % bound;
            }
        }
    }

    fn shuffle(&mut self, rows: &mut [usize]) {
        for last in (1..rows.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            rows.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::testing::{Refusal, fault, run_on};
    use polars::df;

    /// 20 rows, every fifth of class 1.
    fn tweets() -> Dataset {
        let ids: Vec<i64> = (0..20).collect();
        let labels: Vec<i64> = ids.iter().map(|id| i64::from(id % 5 == 0)).collect();
        let frame = df!("ID" => ids, "Label" => labels).unwrap();
        Dataset { splits: vec![Split { name: "train".into(), frame }], ..Dataset::default() }
    }

    fn divide(with: &str, mut dataset: Dataset) -> Result<Dataset, Refusal> {
        let stage: SplitRows = serde_json::from_str(with).unwrap();
        run_on(&stage, &mut dataset).map_err(fault)
    }

    fn ids(dataset: &Dataset, split: &str) -> Vec<i64> {
        let split = dataset.split(split).unwrap();
        split.column("ID").unwrap().i64().unwrap().into_no_null_iter().collect()
    }

    #[test]
    fn every_row_goes_to_one_side_in_an_order_the_seed_fixes() {
        let out = divide(r#"{"test_size": 0.21}"#, tweets()).unwrap();
        assert_eq!(out.split_names(), ["train", "test"]);
        let (train, test) = (ids(&out, "train"), ids(&out, "test"));
        assert_eq!((train.len(), test.len()), (15, 5));
        let mut all = [train.clone(), test.clone()].concat();
        all.sort();
        assert_eq!(all, (0..20).collect::<Vec<_>>());
        assert_eq!(ids(&divide(r#"{"test_size": 5, "seed": 42}"#, tweets()).unwrap(), "test"), test);
        assert_ne!(ids(&divide(r#"{"test_size": 5, "seed": 43}"#, tweets()).unwrap(), "test"), test);
    }

    /// `len` of what `datasets` 5.2's `train_test_split` gives.
    #[test]
    fn sizes_are_those_of_datasets() {
        let sizes = |rows, share: f64| {
            let stage: SplitRows = serde_json::from_str(&format!("{{\"test_size\": {share}}}")).unwrap();
            stage.sizes(rows).unwrap()
        };
        assert_eq!(sizes(5, 0.2), (4, 1));
        assert_eq!(sizes(7, 0.3), (4, 3));
        assert_eq!(sizes(299, 0.2), (239, 60));
        assert_eq!(sizes(1001, 0.1), (900, 101));
        assert_eq!(sizes(5000, 0.2), (4000, 1000));
        assert_eq!(sizes(5000, 1.0 / 3.0), (3333, 1667));
    }

    #[test]
    fn the_generator_gives_its_published_numbers() {
        let mut generator = SplitMix64(1234567);
        let drawn: Vec<u64> = (0..3).map(|_| generator.next()).collect();
        assert_eq!(drawn, [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn without_shuffling_the_rows_keep_their_order() {
        let out = divide(r#"{"test_size": 3, "train_size": 0.5, "shuffle": false}"#, tweets()).unwrap();
        assert_eq!(ids(&out, "train"), (0..10).collect::<Vec<_>>());
        assert_eq!(ids(&out, "test"), [10, 11, 12]);
    }

    #[test]
    fn stratified_parts_keep_the_shares() {
        let out = divide(r#"{"test_size": 0.5, "stratify": "Label"}"#, tweets()).unwrap();
        for part in ["train", "test"] {
            let fifth = ids(&out, part).iter().filter(|id| *id % 5 == 0).count();
            assert_eq!((ids(&out, part).len(), fifth), (10, 2), "{part}");
        }
    }

    #[test]
    fn other_splits_are_passed_on_and_a_second_test_is_refused() {
        let mut dataset = tweets();
        dataset.splits.push(Split { name: "extra".into(), ..dataset.splits[0].clone() });
        let out = divide(r#"{"test_size": 0.5}"#, dataset.clone()).unwrap();
        assert_eq!(out.split_names(), ["train", "test", "extra"]);
        dataset.splits[1].name = "test".into();
        assert_eq!(
            divide(r#"{"test_size": 0.5}"#, dataset.clone()).unwrap_err(),
            (
                "there is a split `test` already, beside the one to divide, `train`".into(),
                Some("use it as it is, or keep one split with `split:` in `load_dataset`".into())
            )
        );
        assert_eq!(
            divide(r#"{"test_size": 0.5, "of": "tests"}"#, dataset).unwrap_err().0,
            "no split `tests` (did you mean `test`?); there are `train`, `test`"
        );
    }

    #[test]
    fn sizes_that_leave_nothing_are_refused() {
        let refusal = |with| divide(with, tweets()).unwrap_err().0;
        assert_eq!(refusal(r#"{"test_size": 20}"#), "of 20 rows, none is left for `train`");
        assert_eq!(refusal(r#"{"test_size": 0.99}"#), "of 20 rows, none is left for `train`");
        assert_eq!(refusal(r#"{"test_size": 21}"#), "21 rows are asked for, and there are 20");
        assert_eq!(
            refusal(r#"{"test_size": 1, "stratify": "Label"}"#),
            "`test` gets 1 rows, and column `Label` has 2 values"
        );
        assert_eq!(
            refusal(r#"{"test_size": 0.5, "stratify": "ID"}"#),
            "column `ID`: `0` is in one row only (row 0 from 0), too few for both parts"
        );
        assert_eq!(
            refusal(r#"{"test_size": 0.5, "stratify": "Labels"}"#),
            "no column `Labels` in split `train` (did you mean `Label`?); there are `ID`, `Label`"
        );
    }

    #[test]
    fn wrong_sizes_are_found_without_running() {
        let faults = |with: &str| -> Vec<(&str, String)> {
            let stage: SplitRows = serde_json::from_str(with).unwrap();
            stage.check(&["dataset"]).into_iter().map(|f| (f.key, f.message)).collect()
        };
        assert_eq!(
            faults(r#"{"test_size": 0, "train_size": 1.5}"#),
            [
                ("test_size", "0 is neither a share nor a number of rows".to_owned()),
                ("train_size", "1.5 is neither a share nor a number of rows".to_owned())
            ]
        );
        assert_eq!(
            faults(r#"{"test_size": 0.5, "train_size": 0.75, "shuffle": false, "stratify": "Label"}"#),
            [
                ("train_size", "the shares of train and test add up to 1.25".to_owned()),
                ("stratify", "rows that aren't shuffled can't be stratified".to_owned())
            ]
        );
        assert_eq!(faults(r#"{"test_size": 5, "train_size": 0.25}"#), []);
    }
}
