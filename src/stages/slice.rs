//! Rows of splits as Hugging Face `datasets` writes them: `train`, `train[:5000]`, `train[10%:]+test`.
//!
//! Follows `datasets/arrow_reader.py`: rows and percentages count from the end where they are negative,
//! percentages are rounded to the closest row, ties to the even one. One thing differs: `train[10%:50]`, which
//! is taken there as `train[10%:50%]`, is refused here. Does not know where the rows are.

use std::ops::Range;

use crate::artifact::dataset::check_split_name;

/// Slices of splits, one below the other.
#[derive(Debug, PartialEq)]
pub struct Selection<'a> {
    /// At least one.
    pub slices: Vec<Slice<'a>>,
}

/// A split, or rows of one that follow each other.
#[derive(Debug, PartialEq)]
pub struct Slice<'a> {
    text: &'a str,
    /// The split's name.
    pub split: &'a str,
    from: Option<i64>,
    to: Option<i64>,
    unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Unit {
    Rows,
    /// To the closest row.
    Percent,
    /// In steps of the rows that 1 % is, rounded down: all slices of one width have as many rows.
    DropRemainder,
}

impl<'a> Selection<'a> {
    /// Reads a selection; an error says what is wrong with it.
    pub fn parse(text: &'a str) -> Result<Self, String> {
        let slices = text.split('+').map(|slice| Slice::parse(slice.trim())).collect::<Result<_, _>>()?;
        Ok(Self { slices })
    }

    /// The name of the split it makes: that of the first split it takes from.
    pub fn name(&self) -> &'a str {
        self.slices.first().map_or("", |slice| slice.split)
    }
}

impl<'a> Slice<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither a split nor a slice of one");
        let Some((split, rest)) = text.split_once('[') else {
            check_split_name(text).map_err(|_| wrong())?;
            return Ok(Self { text, split: text, from: None, to: None, unit: Unit::Rows });
        };
        check_split_name(split).map_err(|_| wrong())?;
        let (bounds, rounding) = rest.split_once(']').ok_or_else(wrong)?;
        let (from, to) = bounds.split_once(':').ok_or_else(wrong)?;
        let bound = |text: &str| -> Result<Option<(i64, bool)>, String> {
            let text = text.trim();
            let (digits, percent) = text.strip_suffix('%').map_or((text, false), |digits| (digits, true));
            match digits.replace('_', "").parse() {
                _ if text.is_empty() => Ok(None),
                Ok(number) if !digits.starts_with('+') => Ok(Some((number, percent))),
                _ => Err(wrong()),
            }
        };
        let (from, to) = (bound(from)?, bound(to)?);
        let percent = match (from, to) {
            (Some((_, from)), Some((_, to))) if from != to => {
                return Err(format!("`{text}` counts one end in rows and the other in percent"));
            }
            (from, to) => from.or(to).is_some_and(|(_, percent)| percent),
        };
        let (from, to) = (from.map(|(number, _)| number), to.map(|(number, _)| number));
        let unit = match (percent, rounding) {
            (false, "") => Unit::Rows,
            (true, "" | "(closest)") => Unit::Percent,
            (true, "(pct1_dropremainder)") => Unit::DropRemainder,
            _ => return Err(wrong()),
        };
        if percent && [from, to].into_iter().flatten().any(|bound| !(-100..=100).contains(&bound)) {
            return Err(format!("`{text}` goes beyond 100 percent"));
        }
        Ok(Self { text, split, from, to, unit })
    }

    /// Which rows these are of a split that has so many. That there is none is an error.
    pub fn of(&self, rows: usize) -> Result<Range<usize>, String> {
        if self.unit == Unit::DropRemainder && rows < 100 {
            return Err(format!(
                "`{}` counts in whole hundredths, and split `{}` has {rows} rows",
                self.text, self.split
            ));
        }
        let all = rows as i64;
        let row = |bound: i64| {
            let row = match self.unit {
                Unit::Rows => bound,
                Unit::Percent => (bound as f64 * all as f64 / 100.0).round_ties_even() as i64,
                Unit::DropRemainder => bound * (all / 100),
            };
            (if row < 0 { row.saturating_add(all) } else { row }).clamp(0, all) as usize
        };
        let range = self.from.map_or(0, row)..self.to.map_or(rows, row);
        if range.is_empty() && (self.from.is_some() || self.to.is_some()) {
            return Err(format!("`{}` holds no row: split `{}` has {rows}", self.text, self.split));
        }
        Ok(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, rows: usize) -> Result<Vec<(&str, Range<usize>)>, String> {
        Selection::parse(text)?.slices.iter().map(|slice| Ok((slice.split, slice.of(rows)?))).collect()
    }

    fn one(text: &str, rows: usize) -> Range<usize> {
        of(text, rows).unwrap().remove(0).1
    }

    #[test]
    fn rows_are_those_of_datasets() {
        assert_eq!(one("train", 25), 0..25);
        assert_eq!(one("train[:]", 25), 0..25);
        assert_eq!(one("train[:10]", 25), 0..10);
        assert_eq!(one("train[10:20]", 25), 10..20);
        assert_eq!(one("train[-20:]", 25), 5..25);
        assert_eq!(one("train[-1000:-3]", 25), 0..22);
        assert_eq!(one("train[:1_0]", 25), 0..10);
        assert_eq!(one("train[:1000]", 25), 0..25);
        assert_eq!(of("train_asks[:5000]", 90_000).unwrap(), [("train_asks", 0..5000)]);
    }

    /// `datasets` 5.2: `ReadInstruction.from_spec(text).to_absolute({"train": rows})`.
    #[test]
    fn percentages_round_to_the_closest_row_and_ties_to_the_even_one() {
        for (text, rows, want) in [
            ("train[10%:]", 25, 2..25),
            ("train[30%:-10%]", 25, 8..23),
            ("train[50%:]", 3, 2..3),
            ("train[:50%]", 5, 0..2),
            ("train[:50%]", 7, 0..4),
            ("train[-50%:]", 5, 3..5),
            ("train[33%:66%]", 1000, 330..660),
            ("train[:1%]", 149, 0..1),
            ("train[:1%]", 151, 0..2),
            ("train[-80%:]", 299, 60..299),
            ("train[:10%](closest)", 199, 0..20),
            ("train[:10%](pct1_dropremainder)", 199, 0..10),
            ("train[90%:](pct1_dropremainder)", 199, 90..199),
        ] {
            assert_eq!(one(text, rows), want, "{text} of {rows}");
        }
    }

    #[test]
    fn slices_add_up_in_their_order() {
        let want = [("train", 0..20), ("train", 40..200), ("test", 0..200)];
        assert_eq!(of("train[:10%]+train[-80%:] + test", 200).unwrap(), want);
        assert_eq!(Selection::parse("train[:10%]+test").unwrap().name(), "train");
    }

    #[test]
    fn what_is_no_slice_is_said() {
        let refusal = |text| of(text, 25).unwrap_err();
        for text in ["train[1]", "train[:5", "train[a:]", "train[:5]x", "a b", "", "train[:5](closest)"] {
            assert_eq!(refusal(text), format!("`{text}` is neither a split nor a slice of one"));
        }
        assert_eq!(refusal("train[:5]+"), "`` is neither a split nor a slice of one");
        assert_eq!(
            refusal("train[10%:50]"),
            "`train[10%:50]` counts one end in rows and the other in percent"
        );
        assert_eq!(refusal("train[:101%]"), "`train[:101%]` goes beyond 100 percent");
        assert_eq!(refusal("train[7:7]"), "`train[7:7]` holds no row: split `train` has 25");
        assert_eq!(refusal("train[30:]"), "`train[30:]` holds no row: split `train` has 25");
        assert_eq!(
            refusal("train[:9%](pct1_dropremainder)"),
            "`train[:9%](pct1_dropremainder)` counts in whole hundredths, and split `train` has 25 rows"
        );
    }
}
