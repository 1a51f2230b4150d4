//! Comma-separated values as RFC 4180 has them: a header, quotes, commas and line ends within quotes.
//!
//! Knows what makes a table of the records that the csv crate reads. Every row must have as many fields as
//! the header; a row that doesn't is named by its line, and so is a quote that the crate would let pass. An
//! empty field is null. A column's type is the narrowest of whole number, number, truth value and text that
//! holds every row of the file. Does not know where the text comes from.

use std::collections::HashSet;

use csv::{ReaderBuilder, StringRecord};
use polars::prelude::{
    BooleanChunked, Column, DataFrame, Float64Chunked, Int64Chunked, IntoColumn, NewChunkedArray,
    StringChunked, StringChunkedBuilder,
};

use super::Flaw;
use crate::cancel::Cancel;

/// Rows between two looks at whether to stop.
const LOOK: usize = 1 << 10;

/// What a field ends with.
const BORDER: [char; 3] = [',', '\n', '\r'];

/// The rows of a csv text whose first row is the header.
pub(super) fn read(text: &str, cancel: &Cancel) -> Result<DataFrame, Flaw> {
    check_quotes(text)?;
    let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    let mut next =
        |record: &mut StringRecord| reader.read_record(record).map_err(|e| Flaw::whole(e.to_string()));
    let mut header = StringRecord::new();
    if !next(&mut header)? {
        return Err(Flaw::whole("the file is empty"));
    }
    let mut earlier = HashSet::with_capacity(header.len());
    for (at, name) in header.iter().enumerate() {
        let reason = if name.is_empty() {
            format!("column {} of the header has no name", at + 1)
        } else if !earlier.insert(name) {
            format!("the header names column `{name}` twice")
        } else {
            continue;
        };
        return Err(Flaw::line(line_of(&header, text), reason));
    }
    let mut columns: Vec<_> = header.iter().map(|name| StringChunkedBuilder::new(name.into(), 0)).collect();
    let (mut rows, mut record) = (0, StringRecord::new());
    while next(&mut record)? {
        if rows % LOOK == 0 {
            cancel.check()?;
        }
        let (found, expected) = (record.len(), header.len());
        if found != expected {
            let fields = if found == 1 { "field" } else { "fields" };
            let hint = if found > expected { "; a field with commas needs quotes around it" } else { "" };
            let reason = format!("this row has {found} {fields}, the header has {expected}{hint}");
            return Err(Flaw::line(line_of(&record, text), reason));
        }
        for (column, field) in columns.iter_mut().zip(&record) {
            column.append_option((!field.is_empty()).then_some(field));
        }
        rows += 1;
    }
    let typed = |cells: StringChunkedBuilder| -> Result<Column, Flaw> {
        cancel.check()?;
        Ok(typed(cells.finish()))
    };
    let columns = columns.into_iter().map(typed).collect::<Result<_, _>>()?;
    DataFrame::new(rows, columns).map_err(|e| Flaw::whole(e.to_string()))
}

/// The line at a byte of the text.
fn line_at(text: &str, byte: usize) -> usize {
    1 + text.bytes().take(byte).filter(|b| *b == b'\n').count()
}

/// The line a record starts at; the crate counts the blank lines before a record to it.
fn line_of(record: &StringRecord, text: &str) -> usize {
    let from = record.position().map_or(0, |p| p.byte() as usize);
    let blank = text.bytes().skip(from).take_while(|b| matches!(b, b'\n' | b'\r')).count();
    line_at(text, from + blank)
}

/// Finds what the crate reads without a word: a quote that is never closed takes the rest of the file into
/// one cell, and what follows a closing quote is added to the cell.
fn check_quotes(text: &str) -> Result<(), Flaw> {
    let mut quotes = text.match_indices('"').map(|(at, _)| at).peekable();
    while let Some(opening) = quotes.next() {
        if opening > 0 && !text[..opening].ends_with(BORDER) {
            // Within a field that began without one, a quote is content.
            continue;
        }
        let closing = loop {
            let Some(quote) = quotes.next() else {
                let reason = "a quote that is opened here is never closed";
                return Err(Flaw::line(line_at(text, opening), reason));
            };
            if quotes.next_if_eq(&(quote + 1)).is_none() {
                break quote;
            }
        };
        if let Some(other) = text[closing + 1..].chars().next().filter(|c| !BORDER.contains(c)) {
            let reason = format!(
                "`{other}` follows a closing quote where a comma or the line's end has to; \
                 a quote within quotes is written twice"
            );
            return Err(Flaw::line(line_at(text, closing), reason));
        }
    }
    Ok(())
}

/// A column in the narrowest type that holds every cell; without any value it is text.
fn typed(cells: StringChunked) -> Column {
    let name = cells.name().clone();
    let all = |holds: fn(&str) -> bool| cells.iter().flatten().all(holds);
    if cells.null_count() == cells.len() {
        cells.into_column()
    } else if all(|c| c.parse::<i64>().is_ok()) {
        Int64Chunked::from_iter_options(name, cells.iter().map(|c| c?.parse().ok())).into_column()
    } else if all(|c| number(c).is_some()) {
        Float64Chunked::from_iter_options(name, cells.iter().map(|c| number(c?))).into_column()
    } else if all(|c| truth(c).is_some()) {
        BooleanChunked::from_iter_options(name, cells.iter().map(|c| truth(c?))).into_column()
    } else {
        cells.into_column()
    }
}

/// Digits, point and exponent; the words that Rust also takes (`inf`, `nan`, `infinity`) stay text.
fn number(cell: &str) -> Option<f64> {
    let plain = cell.chars().all(|c| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E'));
    if plain { cell.parse().ok() } else { None }
}

fn truth(cell: &str) -> Option<bool> {
    match cell {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::df;

    fn read(text: &str) -> Result<DataFrame, Flaw> {
        super::read(text, &Cancel::default())
    }

    fn refusal(text: &str) -> (Option<usize>, String) {
        let flaw = read(text).unwrap_err();
        (flaw.line, flaw.reason)
    }

    #[test]
    fn quotes_commas_and_line_ends_in_cells() {
        let frame = read("text,ID\r\n\"a, \"\"b\"\"\",1\r\n\r\n\"two\nlines\",2\r\n plain ,3").unwrap();
        let want = df!("text" => ["a, \"b\"", "two\nlines", " plain "], "ID" => [1i64, 2, 3]).unwrap();
        assert_eq!(frame, want);
    }

    #[test]
    fn types_come_from_every_row() {
        let mut text = String::from("n,x,t,s,gap,none\n");
        for row in 0..300 {
            text += &format!("{row},{row},True,{row},,\n");
        }
        text += "300,0.5,false,x,7,\n";
        let frame = read(&text).unwrap();
        let types: Vec<String> = frame.dtypes().iter().map(|t| t.to_string()).collect();
        assert_eq!(types, ["i64", "f64", "bool", "str", "i64", "str"]);
        assert_eq!(frame.column("gap").unwrap().null_count(), 300);
        assert_eq!(frame.height(), 301);
    }

    #[test]
    fn a_broken_row_is_named_by_its_line() {
        assert_eq!(
            refusal("text,Label\n\"one\nrow\",1\ntoo, many,2\n"),
            (
                Some(4),
                "this row has 3 fields, the header has 2; a field with commas needs quotes around it".into()
            )
        );
        assert_eq!(
            refusal("text,Label\na,1\n\nalone\n"),
            (Some(4), "this row has 1 field, the header has 2".into())
        );
        assert_eq!(
            refusal("text,Label\na,1\n\"never closed,2\nb,3\n"),
            (Some(3), "a quote that is opened here is never closed".into())
        );
        assert_eq!(
            refusal("text,Label\r\n\"a \"\"b\"\"\",1\r\n\r\n\"c\"\"\r\nd,2\r\n"),
            (Some(4), "a quote that is opened here is never closed".into())
        );
        assert_eq!(
            refusal("text,Label\r\na,1\r\n\r\nalone\r\n"),
            (Some(4), "this row has 1 field, the header has 2".into())
        );
        assert_eq!(
            refusal("text,Label\n\"a\" b,1\n"),
            (
                Some(2),
                "` ` follows a closing quote where a comma or the line's end has to; \
                 a quote within quotes is written twice"
                    .into()
            )
        );
    }

    #[test]
    fn a_header_must_name_every_column_once() {
        assert_eq!(refusal("a,,b\n1,2,3\n"), (Some(1), "column 2 of the header has no name".into()));
        assert_eq!(refusal("a,b,a\n1,2,3\n"), (Some(1), "the header names column `a` twice".into()));
    }

    #[test]
    fn a_quoted_empty_cell_is_a_row_and_a_blank_line_is_none() {
        let frame = read("\ntext\n\"\"\n\nb").unwrap();
        assert!(frame.equals_missing(&df!("text" => [None, Some("b")]).unwrap()));
    }

    #[test]
    fn a_quote_within_a_field_that_began_without_one_is_content() {
        let frame = read("size,ID\n5\" disk,1\n6\" ,2\n").unwrap();
        assert_eq!(frame, df!("size" => ["5\" disk", "6\" "], "ID" => [1i64, 2]).unwrap());
    }

    #[test]
    fn a_header_alone_is_a_table_without_rows() {
        let frame = read("text,Label\n").unwrap();
        assert_eq!((frame.height(), frame.width()), (0, 2));
    }
}
