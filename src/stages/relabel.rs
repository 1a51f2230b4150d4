//! `relabel`: class ids into names, and values into other values.

use std::collections::BTreeMap;
use std::path::Path;

use polars::prelude::{AnyValue, Column, NamedFrom, Series};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::dataset::{Dataset, DatasetWriter, Split, text_of};
use crate::stage::{ArtifactKind, Context, Fault, Lane, Output, Port, Stage, StageError};

/// Turns a column of class ids, or of values, into text.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Relabel {
    /// The column to read.
    pub column: String,
    /// The column to write; the same one if not given.
    #[serde(default)]
    pub into: Option<String>,
    /// The name of each class, by its id from 0. If not given: the names the dataset brings along.
    #[serde(default)]
    pub names: Vec<String>,
    /// Instead of names by id: the text for each value of the column.
    #[serde(default)]
    pub map: BTreeMap<String, String>,
    /// Parts of every name to replace, such as `{ "_": " " }`; one after the other in alphabetical order.
    #[serde(default)]
    pub replace: BTreeMap<String, String>,
}

impl Stage for Relabel {
    const KIND: &'static str = "relabel";
    const VERSION: u32 = 1;
    const LANE: Lane = Lane::Cpu;
    const ABOUT: &'static str = "Turns class ids into their names, or values into others.";
    const EXAMPLE: &'static str = "\
labelled:
  uses: relabel
  inputs: { dataset: tweets }
  with: { column: Label, into: text_label, replace: { \"_\": \" \" } }
";
    const INPUTS: &'static [Port] = &[Port {
        name: "dataset",
        accepts: &[ArtifactKind::Dataset],
        required: true,
        about: "The rows to relabel, in every split.",
    }];

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("dataset", ArtifactKind::Dataset, &["."])]
    }

    fn check(&self, _inputs: &[&str]) -> Vec<Fault> {
        let mut faults = Vec::new();
        if !self.names.is_empty() && !self.map.is_empty() {
            faults.push(
                Fault::new("map", "`names` and `map` are both given")
                    .help("`names` is for class ids, `map` for any values"),
            );
        }
        if self.replace.contains_key("") {
            faults.push(Fault::new("replace", "an empty text can't be replaced"));
        }
        faults
    }

    fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
        let (this, folder) = (self.clone(), context.input("dataset")?.path.clone());
        let dataset = context.cancel.or_abandon(move || this.relabelled(&folder))??;
        Ok(dataset.write(DatasetWriter::create(context.out, context.cancel))?)
    }
}

impl Relabel {
    /// The dataset in this folder with the new column.
    fn relabelled(&self, folder: &Path) -> Result<Dataset, StageError> {
        let mut dataset = Dataset::load(folder)?;
        let into = self.into.as_deref().unwrap_or(&self.column);
        let names = self.class_names(&dataset);
        for split in &mut dataset.splits {
            if into != self.column && split.frame.column(into).is_ok() {
                return Err(StageError::with_help(
                    format!("column `{into}` is in split `{}` already", split.name),
                    "give `into` a name that is free",
                ));
            }
            let texts = self.texts(split, names.as_deref())?;
            let column = Column::from(Series::new(into.into(), texts));
            split.frame.with_column(column).map_err(|e| StageError::failed(e.to_string()))?;
        }
        dataset.features.remove(into);
        Ok(dataset)
    }
}

/// A value that has no text, as the errors call it: with its row, from 0.
fn no_text(value: &str, column: &str, split: &Split, row: usize, why: String, help: &str) -> StageError {
    let place = format!("column `{column}`, split `{}`, row {row} (from 0)", split.name);
    StageError::with_help(format!("{place}: {value} {why}"), help)
}

impl Relabel {
    /// The names of the classes, ready to be written.
    fn class_names(&self, dataset: &Dataset) -> Option<Vec<String>> {
        let own = || dataset.class_names(&self.column).map(<[String]>::to_vec);
        let names = if self.names.is_empty() { own()? } else { self.names.clone() };
        Some(names.iter().map(|name| self.replaced(name)).collect())
    }

    fn replaced(&self, name: &str) -> String {
        self.replace.iter().fold(name.to_owned(), |name, (part, by)| name.replace(part, by))
    }

    /// The new text of every row; null stays null.
    fn texts(&self, split: &Split, names: Option<&[String]>) -> Result<Vec<Option<String>>, StageError> {
        let column = split.column(&self.column)?;
        let rows = 0..split.rows();
        if !self.map.is_empty() {
            return rows.map(|row| self.mapped(split, column, row)).collect();
        }
        if column.dtype().is_integer() {
            let names = names.ok_or_else(|| {
                StageError::with_help(
                    format!(
                        "column `{}` holds class ids, and the dataset has no names for them",
                        self.column
                    ),
                    "give `names`, the name of class 0 first, such as `names: [Unlabeled, complaint]`",
                )
            })?;
            return rows.map(|row| self.named(split, column, row, names)).collect();
        }
        if self.replace.is_empty() || !self.names.is_empty() {
            return Err(StageError::with_help(
                format!("column `{}` holds {}, not class ids", self.column, column.dtype()),
                "give `map`, with the text for each value, or `replace` alone",
            ));
        }
        rows.map(|row| Ok(text_of(column, row)?.map(|text| self.replaced(&text)))).collect()
    }

    fn named(
        &self,
        split: &Split,
        column: &Column,
        row: usize,
        names: &[String],
    ) -> Result<Option<String>, StageError> {
        let value = column.get(row).map_err(|e| StageError::failed(e.to_string()))?;
        if value == AnyValue::Null {
            return Ok(None);
        }
        let name = value.extract::<usize>().and_then(|id| names.get(id));
        name.map(|name| Some(name.clone())).ok_or_else(|| {
            let listed: Vec<String> = names.iter().enumerate().map(|(id, n)| format!("{id} {n}")).collect();
            let why = format!("is not the id of a class; there are {}", listed.join(", "));
            no_text(&value.to_string(), &self.column, split, row, why, "correct the row, or give all `names`")
        })
    }

    fn mapped(&self, split: &Split, column: &Column, row: usize) -> Result<Option<String>, StageError> {
        let Some(value) = text_of(column, row)? else { return Ok(None) };
        let text = self.map.get(&value).ok_or_else(|| {
            let listed: Vec<&str> = self.map.keys().map(String::as_str).collect();
            let why = format!("is not in `map`, which has {}", listed.join(", "));
            no_text(&format!("`{value}`"), &self.column, split, row, why, "add it to `map`")
        })?;
        Ok(Some(self.replaced(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::dataset::Feature;
    use crate::stages::testing::{Refusal, fault, run_on};
    use polars::df;

    fn tweets() -> Dataset {
        let frame = df!(
            "Tweet text" => ["no water", "thanks", "hello"],
            "Label" => [Some(1i64), Some(2), None],
            "mood" => ["very_bad", "good", "good"],
        )
        .unwrap();
        let names = ["Unlabeled", "complaint", "no_complaint"].map(String::from).to_vec();
        Dataset {
            splits: vec![Split { name: "train".into(), frame }],
            features: [("Label".into(), Feature { class_names: Some(names) })].into(),
        }
    }

    fn relabel(with: &str, mut dataset: Dataset) -> Result<Dataset, Refusal> {
        let stage: Relabel = serde_json::from_str(with).unwrap();
        run_on(&stage, &mut dataset).map_err(fault)
    }

    fn column(dataset: &Dataset, name: &str) -> Vec<String> {
        let split = dataset.split("train").unwrap();
        (0..split.rows()).map(|row| split.text_at(name, row).unwrap().unwrap_or("null".into())).collect()
    }

    #[test]
    fn ids_become_the_datasets_own_names() {
        let out =
            relabel(r#"{"column": "Label", "into": "text_label", "replace": {"_": " "}}"#, tweets()).unwrap();
        assert_eq!(out.splits[0].column_names(), ["Tweet text", "Label", "mood", "text_label"]);
        assert_eq!(column(&out, "text_label"), ["complaint", "no complaint", "null"]);
        assert_eq!(column(&out, "Label"), ["1", "2", "null"]);
        assert!(out.class_names("Label").is_some());
    }

    #[test]
    fn given_names_count_before_the_datasets_and_the_column_may_stay() {
        let out = relabel(r#"{"column": "Label", "names": ["?", "bad", "fine"]}"#, tweets()).unwrap();
        assert_eq!(column(&out, "Label"), ["bad", "fine", "null"]);
        assert_eq!(out.splits[0].column_names(), ["Tweet text", "Label", "mood"]);
        assert_eq!(out.class_names("Label"), None);
    }

    #[test]
    fn values_are_mapped_and_replaced_in() {
        let with = r#"{"column": "mood", "map": {"very_bad": "1 star", "good": "5 stars"}}"#;
        assert_eq!(column(&relabel(with, tweets()).unwrap(), "mood"), ["1 star", "5 stars", "5 stars"]);
        let with = r#"{"column": "mood", "replace": {"_": " "}}"#;
        assert_eq!(column(&relabel(with, tweets()).unwrap(), "mood"), ["very bad", "good", "good"]);
        let with = r#"{"column": "Label", "map": {"1": "yes", "2": "no"}}"#;
        assert_eq!(column(&relabel(with, tweets()).unwrap(), "Label"), ["yes", "no", "null"]);
    }

    #[test]
    fn what_has_no_name_is_named_by_its_row() {
        let refusal = |with| relabel(with, tweets()).unwrap_err();
        assert_eq!(
            refusal(r#"{"column": "Label", "names": ["Unlabeled", "complaint"]}"#),
            (
                "column `Label`, split `train`, row 1 (from 0): 2 is not the id of a class; \
                 there are 0 Unlabeled, 1 complaint"
                    .into(),
                Some("correct the row, or give all `names`".into())
            )
        );
        assert_eq!(
            refusal(r#"{"column": "mood", "map": {"good": "fine"}}"#),
            (
                "column `mood`, split `train`, row 0 (from 0): `very_bad` is not in `map`, which has good"
                    .into(),
                Some("add it to `map`".into())
            )
        );
        let mut negative = tweets();
        negative.splits[0].frame = df!("Label" => [-1i64]).unwrap();
        assert_eq!(
            relabel(r#"{"column": "Label"}"#, negative).unwrap_err().0,
            "column `Label`, split `train`, row 0 (from 0): -1 is not the id of a class; \
             there are 0 Unlabeled, 1 complaint, 2 no_complaint"
        );
    }

    #[test]
    fn a_column_that_does_not_fit_says_what_to_do() {
        let refusal = |with| relabel(with, tweets()).unwrap_err();
        assert_eq!(
            refusal(r#"{"column": "label"}"#).0,
            "no column `label` in split `train` (did you mean `Label`?); there are `Tweet text`, `Label`, `mood`"
        );
        assert_eq!(
            refusal(r#"{"column": "mood"}"#),
            (
                "column `mood` holds str, not class ids".into(),
                Some("give `map`, with the text for each value, or `replace` alone".into())
            )
        );
        assert_eq!(
            refusal(r#"{"column": "Label", "into": "mood"}"#),
            (
                "column `mood` is in split `train` already".into(),
                Some("give `into` a name that is free".into())
            )
        );
        let mut nameless = tweets();
        nameless.features.clear();
        assert_eq!(
            relabel(r#"{"column": "Label"}"#, nameless).unwrap_err(),
            (
                "column `Label` holds class ids, and the dataset has no names for them".into(),
                Some(
                    "give `names`, the name of class 0 first, such as `names: [Unlabeled, complaint]`".into()
                )
            )
        );
    }

    #[test]
    fn contradictions_are_found_without_running() {
        let with = r#"{"column": "Label", "names": ["a"], "map": {"1": "a"}, "replace": {"": "x"}}"#;
        let stage: Relabel = serde_json::from_str(with).unwrap();
        let faults: Vec<String> = stage.check(&["dataset"]).into_iter().map(|f| f.message).collect();
        assert_eq!(faults, ["`names` and `map` are both given", "an empty text can't be replaced"]);
    }
}
