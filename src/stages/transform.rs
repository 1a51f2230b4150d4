//! `transform`: steps that change the columns of a dataset, or leave out rows.
//!
//! Every step looks at one row at a time, so rows go through in pieces and are never all held. Knows which
//! columns each step needs; does not know what they are for.

use std::collections::{BTreeMap, BTreeSet};

use polars::prelude::{BooleanChunked, Column, DataFrame, DataType, NamedFrom, NewChunkedArray, Series};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::dataset::{Batch, DatasetError, DatasetWriter, Feature, Split, Stored, text_of};
use crate::diagnostic::nearest;
use crate::stage::{ArtifactKind, Context, Fault, Lane, Output, Port, Stage, StageError};
use crate::stages::template::Template;

/// Changes columns and leaves out rows, step by step, in every split.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Transform {
    /// What to do, one after the other; each step is one of `flatten`, `join`, `template`, `select`, `drop`,
    /// `rename`, `filter`.
    pub steps: Vec<Step>,
}

/// One change.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Mappings into a column for each key: `answers` with the key `text` becomes `answers.text`, as
    /// `Dataset.flatten` has it. The columns to flatten, or `true` for all that are mappings.
    Flatten(Flatten),
    /// The texts of a list into one text.
    Join(Join),
    /// A column of text put together from others.
    Template(Fill),
    /// Keeps these columns alone, in this order.
    Select(Vec<String>),
    /// Leaves these columns out.
    Drop(Vec<String>),
    /// Gives columns new names, `old: new`, all at once.
    Rename(BTreeMap<String, String>),
    /// Keeps the rows that meet every condition.
    Filter(Filter),
}

/// Which columns to flatten.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "`flatten` takes a list of columns, or true for every mapping")]
pub enum Flatten {
    /// These.
    Columns(Vec<String>),
    /// Every one that is a mapping (`true`).
    All(bool),
}

/// A list of texts into one text. A null list is an empty text, and a null in a list is left out.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// The column of lists.
    pub column: String,
    /// What stands between two texts.
    #[serde(default = "space")]
    pub with: String,
    /// The column to write; the same one if not given.
    #[serde(default)]
    pub into: Option<String>,
}

fn space() -> String {
    " ".into()
}

/// A column of text put together from others.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fill {
    /// The column to write: a new one, or one that the text names.
    pub into: String,
    /// Text with `{column}` placeholders; `{{` and `}}` stand for braces.
    pub text: Template,
}

/// Conditions on the cell of a column. A null cell meets `not` alone.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// The column that decides.
    pub column: String,
    /// The cell is this.
    #[serde(default)]
    pub equals: Option<Scalar>,
    /// The cell is anything but this.
    #[serde(default)]
    pub not: Option<Scalar>,
    /// The cell is one of these.
    #[serde(default, rename = "in")]
    pub one_of: Option<Vec<Scalar>>,
    /// The number is at least this.
    #[serde(default)]
    pub min: Option<f64>,
    /// The number is at most this.
    #[serde(default)]
    pub max: Option<f64>,
    /// The cell is not null, not an empty text and not an empty list.
    #[serde(default)]
    pub not_empty: bool,
    /// The text has at least so many characters, the list so many items.
    #[serde(default)]
    pub min_length: Option<usize>,
    /// The text has at most so many characters, the list so many items.
    #[serde(default)]
    pub max_length: Option<usize>,
}

/// What a cell is compared with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a cell is compared with text, a number, true or false")]
pub enum Scalar {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// Text.
    Text(String),
}

impl Stage for Transform {
    const KIND: &'static str = "transform";
    const VERSION: u32 = 1;
    const LANE: Lane = Lane::Cpu;
    const ABOUT: &'static str = "Flattens, joins, renames and filters: changes columns and leaves out rows.";
    const EXAMPLE: &'static str = "\
answers:
  uses: transform
  inputs: { dataset: questions }
  with:
    steps:
      - flatten: [answers]
      - join: { column: answers.text, with: \" \", into: text }
      - filter: { column: text, not_empty: true }
      - select: [q_id, text]
";
    const INPUTS: &'static [Port] = &[Port {
        name: "dataset",
        accepts: &[ArtifactKind::Dataset],
        required: true,
        about: "The rows to change, in every split.",
    }];

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("dataset", ArtifactKind::Dataset, &["."])]
    }

    fn check(&self, _inputs: &[&str]) -> Vec<Fault> {
        if self.steps.is_empty() {
            return vec![Fault::new("steps", "there is no step").help("write one as `- flatten: true`")];
        }
        let mut known = Known::default();
        let mut faults = Vec::new();
        for (at, step) in self.steps.iter().enumerate() {
            let wrong = step.contradiction().or_else(|| known.after(at, step).err());
            faults.extend(wrong.map(|reason| Fault::new("steps", format!("{}: {reason}", named(at, step)))));
        }
        faults
    }

    fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
        let stored = Stored::open(&context.input("dataset")?.path, context.cancel)?;
        let mut writer = DatasetWriter::create(context.out, context.cancel);
        let mut features = stored.features.clone();
        for name in stored.split_names() {
            let batches = stored.batches(&name)?;
            let (all, mut done) = (batches.rows(), 0);
            // Without a row first: a column that is missing is told before anything is written.
            let mut left = vec![0; self.steps.len()];
            let header = self.changed(Rows { split: batches.header()?, at: Vec::new() }, &mut left)?;
            let mut split = writer.split(&name, header.split.frame.schema())?;
            for batch in batches {
                context.go_on()?;
                let Batch { first, rows } = batch?;
                done += rows.rows();
                let at = (first..first + rows.rows()).collect();
                split.write(&self.changed(Rows { split: rows, at }, &mut left)?.split.frame)?;
                context.progress(done as u64, all as u64, "rows", "");
            }
            if split.end()? == 0 {
                return Err(self.nothing_left(&name, all, &left));
            }
            context.metric(format!("rows.{name}"), left.last().copied().unwrap_or(all) as f64);
            features = self.features(&stored.features, &header.split);
        }
        Ok(writer.finish(features)?)
    }
}

/// Rows of a split on their way through the steps.
struct Rows {
    split: Split,
    /// Which row of the whole split, before the first step, each of them was.
    at: Vec<usize>,
}

impl Transform {
    /// The rows behind the last step; `left` counts the rows behind each.
    fn changed(&self, mut rows: Rows, left: &mut [usize]) -> Result<Rows, StageError> {
        for (at, (step, left)) in self.steps.iter().zip(left).enumerate() {
            step.change(&mut rows).map_err(|wrong| StageError::Failed {
                message: format!("{}: {}", named(at, step), wrong.message),
                help: wrong.help,
            })?;
            *left += rows.split.rows();
        }
        Ok(rows)
    }

    fn nothing_left(&self, split: &str, all: usize, left: &[usize]) -> StageError {
        let emptied = left.iter().position(|left| *left == 0);
        match emptied.and_then(|at| Some((at, self.steps.get(at)?))) {
            Some((at, step)) if all > 0 => StageError::with_help(
                format!("{}: no row of split `{split}` is left, of {all}", named(at, step)),
                "loosen the condition, or keep the other splits alone with `split:` in `load_dataset`",
            ),
            _ => StageError::failed(format!("split `{split}` has no rows")),
        }
    }

    /// What is still known of the columns of a split behind the last step.
    fn features(&self, before: &BTreeMap<String, Feature>, split: &Split) -> BTreeMap<String, Feature> {
        let mut features = before.clone();
        for step in &self.steps {
            match step {
                Step::Join(Join { column, into, .. }) => {
                    features.remove(into.as_ref().unwrap_or(column));
                }
                Step::Template(Fill { into, .. }) => {
                    features.remove(into);
                }
                Step::Rename(names) => {
                    let renamed = |(name, feature)| (names.get(&name).cloned().unwrap_or(name), feature);
                    features = features.into_iter().map(renamed).collect();
                }
                Step::Drop(columns) => features.retain(|name, _| !columns.contains(name)),
                Step::Select(columns) => features.retain(|name, _| columns.contains(name)),
                Step::Flatten(_) | Step::Filter(_) => {}
            }
        }
        features.retain(|name, _| split.frame.column(name).is_ok());
        features
    }
}

/// `step 2 (join)`, counted from 1.
fn named(at: usize, step: &Step) -> String {
    format!("step {} ({})", at + 1, step.word())
}

/// Why a step can't be done.
struct Wrong {
    message: String,
    help: Option<String>,
}

impl Wrong {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None }
    }

    fn help(mut self, help: &str) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl From<DatasetError> for Wrong {
    fn from(error: DatasetError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<polars::error::PolarsError> for Wrong {
    fn from(error: polars::error::PolarsError) -> Self {
        Self::new(error.to_string())
    }
}

impl Step {
    fn word(&self) -> &'static str {
        match self {
            Self::Flatten(_) => "flatten",
            Self::Join(_) => "join",
            Self::Template(_) => "template",
            Self::Select(_) => "select",
            Self::Drop(_) => "drop",
            Self::Rename(_) => "rename",
            Self::Filter(_) => "filter",
        }
    }

    /// What is wrong with the step itself, whatever the columns are.
    fn contradiction(&self) -> Option<String> {
        match self {
            Self::Flatten(Flatten::All(false)) => Some("`false` flattens nothing".into()),
            Self::Flatten(Flatten::Columns(names)) | Self::Select(names) | Self::Drop(names) => {
                let twice = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name));
                match twice {
                    _ if names.is_empty() => Some("no column is named".into()),
                    twice => twice.map(|(_, name)| format!("column `{name}` is named twice")),
                }
            }
            Self::Rename(names) => {
                let mut new = BTreeSet::new();
                match names.values().find(|name| !new.insert(*name)) {
                    _ if names.is_empty() => Some("no column is named".into()),
                    twice => twice.map(|name| format!("two columns would be called `{name}`")),
                }
            }
            Self::Filter(filter) => filter.contradiction(),
            Self::Flatten(Flatten::All(true)) | Self::Join(_) | Self::Template(_) => None,
        }
    }

    fn change(&self, rows: &mut Rows) -> Result<(), Wrong> {
        let split = &mut rows.split;
        match self {
            Self::Flatten(flatten) => split.frame = flatten.flattened(split)?,
            Self::Join(join) => {
                let into = join.into.as_ref().unwrap_or(&join.column);
                is_free(split, into, [join.column.as_str()])?;
                let texts = Series::new(into.as_str().into(), join.texts(split)?);
                split.frame.with_column(texts.into())?;
            }
            Self::Template(Fill { into, text }) => {
                text.fits(split)?;
                is_free(split, into, text.columns())?;
                no_nulls(rows, text)?;
                let split = &mut rows.split;
                let texts: Result<Vec<String>, StageError> =
                    (0..split.rows()).map(|row| text.fill(split, row)).collect();
                let texts = texts.map_err(|e| Wrong::new(e.to_string()))?;
                split.frame.with_column(Series::new(into.as_str().into(), texts).into())?;
            }
            Self::Select(columns) => {
                columns.iter().try_for_each(|name| split.column(name).map(|_| ()))?;
                split.frame = split.frame.select(columns)?;
            }
            Self::Drop(columns) => {
                columns.iter().try_for_each(|name| split.column(name).map(|_| ()))?;
                let kept: Vec<String> =
                    split.column_names().into_iter().filter(|name| !columns.contains(name)).collect();
                if kept.is_empty() {
                    return Err(Wrong::new(format!("no column of split `{}` is left", split.name)));
                }
                split.frame = split.frame.select(kept)?;
            }
            Self::Rename(names) => {
                names.keys().try_for_each(|name| split.column(name).map(|_| ()))?;
                let new =
                    split.column_names().into_iter().map(|name| names.get(&name).cloned().unwrap_or(name));
                let columns = split.frame.columns().iter().zip(new);
                let columns = columns.map(|(column, name)| column.clone().with_name(name.into())).collect();
                split.frame = put_together(split, columns)?;
            }
            Self::Filter(filter) => {
                let keep = filter.kept(split)?;
                let mut kept = keep.iter();
                rows.at.retain(|_| kept.next().is_some_and(|keep| *keep));
                split.frame = split.frame.filter(&BooleanChunked::from_slice("".into(), &keep))?;
            }
        }
        Ok(())
    }
}

/// Refuses to write over a column that is not one of the step's own.
fn is_free<'a>(split: &Split, into: &str, own: impl IntoIterator<Item = &'a str>) -> Result<(), Wrong> {
    if split.frame.column(into).is_err() || own.into_iter().any(|name| name == into) {
        return Ok(());
    }
    Err(Wrong::new(format!("column `{into}` is in split `{}` already", split.name))
        .help("give `into` a name that is free, or drop that column in a step before"))
}

/// Refuses a null cell that a template needs, by its row in the split before the first step.
fn no_nulls(rows: &Rows, text: &Template) -> Result<(), Wrong> {
    for name in text.columns() {
        let column = rows.split.column(name)?;
        let null = (0..rows.split.rows()).find(|row| column.null_count() > 0 && is_null(column, *row));
        if let Some(row) = null {
            let (split, row) = (&rows.split.name, rows.at.get(row).copied().unwrap_or(row));
            return Err(Wrong::new(format!("split `{split}`, row {row} (from 0): column `{name}` is null"))
                .help("leave such rows out in a step before: `filter: { column: …, not_empty: true }`"));
        }
    }
    Ok(())
}

fn is_null(column: &Column, row: usize) -> bool {
    column.get(row).is_ok_and(|value| value.is_null())
}

/// A frame of these columns, which may not have a name twice.
fn put_together(split: &Split, columns: Vec<Column>) -> Result<DataFrame, Wrong> {
    let mut names = BTreeSet::new();
    if let Some(twice) = columns.iter().find(|column| !names.insert(column.name().clone())) {
        let message = format!("split `{}` would have two columns `{}`", split.name, twice.name());
        return Err(Wrong::new(message).help("drop or rename one of them in a step before"));
    }
    Ok(DataFrame::new(split.rows(), columns)?)
}

impl Flatten {
    fn flattened(&self, split: &Split) -> Result<DataFrame, Wrong> {
        if let Self::Columns(names) = self {
            for name in names {
                let column = split.column(name)?;
                if !matches!(column.dtype(), DataType::Struct(_)) {
                    let (kind, split) = (column.dtype(), &split.name);
                    return Err(Wrong::new(format!(
                        "column `{name}` of split `{split}` holds {kind}, no mapping"
                    )));
                }
            }
        }
        let mut columns = Vec::new();
        for column in split.frame.columns() {
            match self {
                Self::Columns(names) if names.iter().all(|name| *name != column.name().as_str()) => {
                    columns.push(column.clone());
                }
                _ => keys(column.as_materialized_series().clone(), &mut columns)?,
            }
        }
        put_together(split, columns)
    }
}

/// A column for each key of a mapping, and of the mappings in it; any other column as it is.
fn keys(series: Series, columns: &mut Vec<Column>) -> Result<(), Wrong> {
    if !matches!(series.dtype(), DataType::Struct(_)) {
        columns.push(series.into());
        return Ok(());
    }
    // Where a mapping is null, so are its keys, whatever lies beneath.
    let series = series.propagate_nulls().unwrap_or(series);
    for mut key in series.struct_()?.fields_as_series() {
        key.rename(format!("{}.{}", series.name(), key.name()).into());
        keys(key, columns)?;
    }
    Ok(())
}

impl Join {
    fn texts(&self, split: &Split) -> Result<Vec<String>, Wrong> {
        let column = split.column(&self.column)?;
        let (name, kind) = (&self.column, column.dtype());
        match kind {
            DataType::List(inner) if !inner.is_nested() => {}
            kind => {
                let split = &split.name;
                return Err(Wrong::new(format!(
                    "column `{name}` of split `{split}` holds {kind}, no list of texts"
                )));
            }
        }
        let lists = column.list()?;
        let joined = |row| {
            let Some(list) = lists.get_as_series(row) else { return Ok(String::new()) };
            let items = Column::from(list);
            let texts = (0..items.len()).filter_map(|item| text_of(&items, item).transpose());
            Ok(texts.collect::<Result<Vec<_>, DatasetError>>()?.join(&self.with))
        };
        (0..split.rows()).map(joined).collect()
    }
}

impl Filter {
    fn contradiction(&self) -> Option<String> {
        let least = |min: Option<f64>, max: Option<f64>| min.zip(max).is_some_and(|(min, max)| min > max);
        let length = |length: Option<usize>| length.map(|length| length as f64);
        let bounds = [self.min, self.max, length(self.min_length), length(self.max_length)];
        if self.compared().next().is_none() && !self.not_empty && bounds.iter().all(Option::is_none) {
            return Some("there is no condition".into());
        }
        if least(self.min, self.max) || least(length(self.min_length), length(self.max_length)) {
            return Some("the least is above the most, so no row can be left".into());
        }
        None
    }

    /// What the cell is compared with, by the key that says so.
    fn compared(&self) -> impl Iterator<Item = (&'static str, &Scalar)> {
        let listed = self.one_of.iter().flatten().map(|scalar| ("in", scalar));
        self.equals.iter().map(|s| ("equals", s)).chain(self.not.iter().map(|s| ("not", s))).chain(listed)
    }

    /// Whether each row is kept.
    fn kept(&self, split: &Split) -> Result<Vec<bool>, Wrong> {
        let column = split.column(&self.column)?;
        self.fits(column, &split.name)?;
        (0..split.rows()).map(|row| Ok(self.keeps(column, row)?)).collect()
    }

    /// Refuses a column of a type that a condition makes no sense for.
    fn fits(&self, column: &Column, split: &str) -> Result<(), Wrong> {
        let kind = column.dtype();
        let holds = format!("column `{}` of split `{split}` holds {kind}", self.column);
        if matches!(kind, DataType::Null) {
            return Ok(());
        }
        for (key, scalar) in self.compared() {
            let (fits, word) = match scalar {
                Scalar::Bool(_) => (kind.is_bool(), "true or false"),
                Scalar::Int(_) | Scalar::Float(_) => (kind.is_primitive_numeric(), "a number"),
                Scalar::Text(_) => (kind.is_string(), "text"),
            };
            if !fits {
                return Err(Wrong::new(format!("{holds}, and `{key}` compares it with {word}")));
            }
        }
        let number = [("min", self.min), ("max", self.max)].into_iter().find(|(_, bound)| bound.is_some());
        if let Some((key, _)) = number.filter(|_| !kind.is_primitive_numeric()) {
            return Err(Wrong::new(format!("{holds}, and `{key}` is for numbers")));
        }
        let lengths = [("min_length", self.min_length), ("max_length", self.max_length)];
        let length = lengths.into_iter().find(|(_, bound)| bound.is_some());
        if let Some((key, _)) = length.filter(|_| !kind.is_string() && !kind.is_list()) {
            return Err(Wrong::new(format!("{holds}, and `{key}` is for texts and lists")));
        }
        Ok(())
    }

    fn keeps(&self, column: &Column, row: usize) -> Result<bool, polars::error::PolarsError> {
        use polars::prelude::AnyValue;
        let value = column.get(row)?;
        let is = |scalar: &Scalar| match scalar {
            Scalar::Bool(truth) => value == AnyValue::Boolean(*truth),
            Scalar::Text(text) => value.get_str() == Some(text),
            Scalar::Int(number) if column.dtype().is_integer() => value.extract::<i64>() == Some(*number),
            Scalar::Int(number) => value.extract::<f64>() == Some(*number as f64),
            Scalar::Float(number) => value.extract::<f64>() == Some(*number),
        };
        let length = match &value {
            AnyValue::List(items) => Some(items.len()),
            value => value.get_str().map(|text| text.chars().count()),
        };
        let number = |holds: &dyn Fn(f64) -> bool| value.extract::<f64>().is_some_and(holds);
        let long = |holds: &dyn Fn(usize) -> bool| length.is_some_and(holds);
        Ok(self.equals.as_ref().is_none_or(is)
            && self.not.as_ref().is_none_or(|scalar| !is(scalar))
            && self.one_of.as_ref().is_none_or(|scalars| scalars.iter().any(is))
            && self.min.is_none_or(|min| number(&|number| number >= min))
            && self.max.is_none_or(|max| number(&|number| number <= max))
            && (!self.not_empty || (!value.is_null() && length != Some(0)))
            && self.min_length.is_none_or(|min| long(&|length| length >= min))
            && self.max_length.is_none_or(|max| long(&|length| length <= max)))
    }
}

/// What the steps alone tell of the columns.
#[derive(Default)]
struct Known {
    /// Exactly these, from a `select` on.
    columns: Option<BTreeSet<String>>,
    /// Those that a step took away, with the step.
    gone: BTreeMap<String, String>,
}

impl Known {
    /// Takes a step into account; a column that can't be there any more is an error.
    fn after(&mut self, at: usize, step: &Step) -> Result<(), String> {
        match step {
            Step::Flatten(Flatten::All(_)) => {
                self.columns = None;
                self.gone.clear();
            }
            Step::Flatten(Flatten::Columns(names)) => {
                self.need(names)?;
                self.columns = None;
                self.gone.retain(|name, _| !names.iter().any(|flat| name.starts_with(&format!("{flat}."))));
                self.leave(names, at, step);
            }
            Step::Join(Join { column, into, .. }) => {
                self.need([column])?;
                self.come(into.iter());
            }
            Step::Template(Fill { into, text }) => {
                self.need(&text.columns().map(str::to_owned).collect::<Vec<_>>())?;
                self.come([into]);
            }
            Step::Select(names) => {
                self.need(names)?;
                self.columns = Some(names.iter().cloned().collect());
            }
            Step::Drop(names) => {
                self.need(names)?;
                self.leave(names, at, step);
            }
            Step::Rename(names) => {
                self.need(names.keys())?;
                self.leave(names.keys(), at, step);
                self.come(names.values());
            }
            Step::Filter(filter) => self.need([&filter.column])?,
        }
        Ok(())
    }

    fn need<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> Result<(), String> {
        for name in names {
            if let Some(step) = self.gone.get(name) {
                return Err(format!("column `{name}` is no longer there after {step}"));
            }
            if let Some(columns) = &self.columns
                && !columns.contains(name)
            {
                let have: Vec<&str> = columns.iter().map(String::as_str).collect();
                let near = nearest(name, have.iter().copied());
                let near = near.map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
                return Err(format!("no column `{name}`{near}; the steps before leave {}", have.join(", ")));
            }
        }
        Ok(())
    }

    fn come<'a>(&mut self, names: impl IntoIterator<Item = &'a String>) {
        for name in names {
            self.gone.remove(name);
            self.columns.iter_mut().for_each(|columns| {
                columns.insert(name.clone());
            });
        }
    }

    fn leave<'a>(&mut self, names: impl IntoIterator<Item = &'a String>, at: usize, step: &Step) {
        for name in names {
            self.gone.insert(name.clone(), named(at, step));
            self.columns.iter_mut().for_each(|columns| {
                columns.remove(name);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::dataset::Dataset;
    use crate::artifact::parquet::ROW_GROUP;
    use crate::formats;
    use crate::stages::testing::{Refusal, fault, run_on};
    use polars::df;

    fn questions() -> Dataset {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("questions.jsonl");
        let rows = [
            r#"{"id": 0, "q": "why", "answers": {"text": ["a", "b"], "by": {"name": "x", "age": [1, 2]}}, "score": 3}"#,
            r#"{"id": 1, "q": null, "answers": {"text": [], "by": null}, "score": 5}"#,
            r#"{"id": 2, "q": "how", "answers": {"text": ["c", null, "d"], "by": {"name": "y", "age": []}}, "score": null}"#,
            r#"{"id": 3, "q": "", "answers": null, "score": 4}"#,
        ];
        std::fs::write(&path, rows.join("\n")).unwrap();
        let frame = formats::read(&path, &Default::default()).unwrap().frame;
        let names = Feature { class_names: Some(vec!["no".into(), "yes".into()]) };
        let features = [("score".into(), names.clone()), ("id".into(), names)].into();
        Dataset { splits: vec![Split { name: "train".into(), frame }], features }
    }

    fn stage(steps: &str) -> Transform {
        serde_json::from_str(&format!("{{\"steps\": [{steps}]}}")).unwrap()
    }

    fn change(steps: &str) -> Result<Dataset, Refusal> {
        run_on(&stage(steps), &mut questions()).map_err(fault)
    }

    fn refusal(steps: &str) -> String {
        change(steps).unwrap_err().0
    }

    fn columns(dataset: &Dataset) -> Vec<String> {
        dataset.splits[0].column_names()
    }

    fn texts(dataset: &Dataset, column: &str) -> Vec<Option<String>> {
        let split = &dataset.splits[0];
        (0..split.rows()).map(|row| split.text_at(column, row).unwrap()).collect()
    }

    fn some(texts: &[&str]) -> Vec<Option<String>> {
        texts.iter().map(|text| Some(text.to_string())).collect()
    }

    #[test]
    fn mappings_become_columns_in_their_place() {
        let out = change(r#"{"flatten": ["answers"]}"#).unwrap();
        let want = ["id", "q", "answers.text", "answers.by.name", "answers.by.age", "score"];
        assert_eq!(columns(&out), want);
        assert_eq!(texts(&out, "answers.by.name"), [Some("x".into()), None, Some("y".into()), None]);
        assert_eq!(out.splits[0].column("answers.text").unwrap().null_count(), 1);
        assert_eq!(columns(&change(r#"{"flatten": true}"#).unwrap()), want);
        assert_eq!(
            refusal(r#"{"flatten": ["q"]}"#),
            "step 1 (flatten): column `q` of split `train` holds str, no mapping"
        );
        assert_eq!(
            refusal(r#"{"rename": {"q": "answers.text"}}, {"flatten": true}"#),
            "step 2 (flatten): split `train` would have two columns `answers.text`"
        );
    }

    #[test]
    fn lists_become_text() {
        let out =
            change(r#"{"flatten": true}, {"join": {"column": "answers.text", "into": "text"}}"#).unwrap();
        assert_eq!(texts(&out, "text"), some(&["a b", "", "c d", ""]));
        assert_eq!(columns(&out).last().unwrap(), "text");
        let out =
            change(r#"{"flatten": true}, {"join": {"column": "answers.by.age", "with": "-"}}"#).unwrap();
        assert_eq!(texts(&out, "answers.by.age"), some(&["1-2", "", "", ""]));
        assert_eq!(columns(&out)[4], "answers.by.age");
        assert_eq!(
            refusal(r#"{"join": {"column": "q"}}"#),
            "step 1 (join): column `q` of split `train` holds str, no list of texts"
        );
        assert_eq!(
            refusal(r#"{"flatten": true}, {"join": {"column": "answers.text", "into": "q"}}"#),
            "step 2 (join): column `q` is in split `train` already"
        );
        assert_eq!(
            refusal(r#"{"flatten": true}, {"join": {"column": "answer.text"}}"#),
            "step 2 (join): no column `answer.text` in split `train` (did you mean `answers.text`?); there are `id`, \
             `q`, `answers.text`, `answers.by.name`, `answers.by.age`, `score`"
        );
    }

    #[test]
    fn templates_fill_a_column_or_change_their_own() {
        let filled = r#"{"filter": {"column": "q", "not_empty": true}}, {"template": {"into": "q", "text": "Q{id}: {q}?"}}"#;
        let out = change(filled).unwrap();
        assert_eq!(texts(&out, "q"), some(&["Q0: why?", "Q2: how?"]));
        // Row 2 of the split, though the filter before left row 1 out.
        let (message, help) = change(
            r#"{"filter": {"column": "q", "not": ""}}, {"filter": {"column": "q", "in": ["how"]}},
               {"template": {"into": "t", "text": "{score}"}}"#,
        )
        .unwrap_err();
        assert_eq!(message, "step 3 (template): split `train`, row 2 (from 0): column `score` is null");
        assert_eq!(
            help.unwrap(),
            "leave such rows out in a step before: `filter: { column: …, not_empty: true }`"
        );
        assert_eq!(
            refusal(r#"{"template": {"into": "id", "text": "{q}"}}"#),
            "step 1 (template): column `id` is in split `train` already"
        );
    }

    #[test]
    fn columns_are_kept_left_out_and_renamed_with_what_is_known_of_them() {
        let out =
            change(r#"{"select": ["score", "id"]}, {"rename": {"score": "id", "id": "score"}}"#).unwrap();
        assert_eq!(columns(&out), ["id", "score"]);
        assert_eq!(texts(&out, "score"), some(&["0", "1", "2", "3"]));
        assert_eq!(out.features.len(), 2);
        let out = change(r#"{"drop": ["answers", "score"]}"#).unwrap();
        assert_eq!((columns(&out), out.features.len()), (vec!["id".to_owned(), "q".into()], 1));
        let out = change(r#"{"template": {"into": "id", "text": "{id}"}}"#).unwrap();
        assert_eq!(out.features.keys().collect::<Vec<_>>(), ["score"]);
        assert_eq!(
            refusal(r#"{"rename": {"q": "id"}}"#),
            "step 1 (rename): split `train` would have two columns `id`"
        );
        assert_eq!(
            refusal(r#"{"select": ["id"]}, {"drop": ["id"]}"#),
            "step 2 (drop): no column of split `train` is left"
        );
    }

    #[test]
    fn rows_that_meet_every_condition_are_kept() {
        let kept = |filter: &str| -> Vec<String> {
            let out = change(&format!("{{\"flatten\": true}}, {{\"filter\": {filter}}}")).unwrap();
            texts(&out, "id").into_iter().flatten().collect()
        };
        assert_eq!(kept(r#"{"column": "q", "equals": "why"}"#), ["0"]);
        assert_eq!(kept(r#"{"column": "q", "not": "why"}"#), ["1", "2", "3"]);
        assert_eq!(kept(r#"{"column": "q", "in": ["why", "how"]}"#), ["0", "2"]);
        assert_eq!(kept(r#"{"column": "q", "not_empty": true}"#), ["0", "2"]);
        assert_eq!(kept(r#"{"column": "q", "max_length": 2}"#), ["3"]);
        assert_eq!(kept(r#"{"column": "score", "min": 4}"#), ["1", "3"]);
        assert_eq!(kept(r#"{"column": "score", "min": 3, "max": 4.5, "not": 4}"#), ["0"]);
        assert_eq!(kept(r#"{"column": "score", "equals": 3.0}"#), ["0"]);
        assert_eq!(kept(r#"{"column": "answers.text", "min_length": 3}"#), ["2"]);
        assert_eq!(kept(r#"{"column": "answers.text", "not_empty": true}"#), ["0", "2"]);
        let wrong = |filter: &str| refusal(&format!("{{\"filter\": {filter}}}"));
        assert_eq!(
            wrong(r#"{"column": "score", "equals": "3"}"#),
            "step 1 (filter): column `score` of split `train` holds i64, and `equals` compares it with text"
        );
        assert_eq!(
            wrong(r#"{"column": "q", "min": 3}"#),
            "step 1 (filter): column `q` of split `train` holds str, and `min` is for numbers"
        );
        assert_eq!(
            wrong(r#"{"column": "score", "min_length": 3}"#),
            "step 1 (filter): column `score` of split `train` holds i64, and `min_length` is for texts and lists"
        );
        assert_eq!(
            wrong(r#"{"column": "score", "min": 6}"#),
            "step 1 (filter): no row of split `train` is left, of 4"
        );
    }

    #[test]
    fn pieces_are_changed_as_the_whole_would_be() {
        let rows = ROW_GROUP as i64 + 3;
        let frame = df!("n" => (0..rows).collect::<Vec<_>>()).unwrap();
        let mut dataset =
            Dataset { splits: vec![Split { name: "train".into(), frame }], ..Dataset::default() };
        let steps = stage(
            r#"{"filter": {"column": "n", "min": 16382}}, {"template": {"into": "t", "text": "<{n}>"}}"#,
        );
        let out = run_on(&steps, &mut dataset).unwrap();
        assert_eq!(texts(&out, "t"), some(&["<16382>", "<16383>", "<16384>", "<16385>", "<16386>"]));
        dataset.splits[0].frame = dataset.splits[0].frame.head(Some(0));
        assert_eq!(fault(run_on(&steps, &mut dataset).unwrap_err()).0, "split `train` has no rows");
    }

    #[test]
    fn what_no_data_can_mend_is_found_without_running() {
        let faults = |steps: &str| -> Vec<String> {
            stage(steps).check(&["dataset"]).into_iter().map(|f| f.message).collect()
        };
        assert_eq!(faults(""), ["there is no step"]);
        assert_eq!(
            faults(
                r#"{"flatten": false}, {"flatten": []}, {"select": ["a", "a"]}, {"rename": {"a": "c", "b": "c"}},
                   {"filter": {"column": "a"}}, {"filter": {"column": "a", "min": 2, "max": 1}}"#
            ),
            [
                "step 1 (flatten): `false` flattens nothing",
                "step 2 (flatten): no column is named",
                "step 3 (select): column `a` is named twice",
                "step 4 (rename): two columns would be called `c`",
                "step 5 (filter): there is no condition",
                "step 6 (filter): the least is above the most, so no row can be left",
            ]
        );
        assert_eq!(
            faults(
                r#"{"flatten": ["answers"]}, {"join": {"column": "answers"}}, {"rename": {"answers.text": "text"}},
                   {"drop": ["answers.text"]}, {"select": ["text", "id"]}, {"template": {"into": "t", "text": "{txt}"}},
                   {"drop": ["id"]}, {"filter": {"column": "id", "min": 0}}"#
            ),
            [
                "step 2 (join): column `answers` is no longer there after step 1 (flatten)",
                "step 4 (drop): column `answers.text` is no longer there after step 3 (rename)",
                "step 6 (template): no column `txt` (did you mean `text`?); the steps before leave id, text",
                "step 8 (filter): column `id` is no longer there after step 7 (drop)",
            ]
        );
        let used_again = r#"{"drop": ["a"]}, {"template": {"into": "a", "text": "{b}"}}, {"select": ["a"]}"#;
        assert_eq!(faults(used_again), [""; 0]);
    }
}
