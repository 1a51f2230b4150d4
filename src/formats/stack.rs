//! The rows of one file below those of another.
//!
//! Knows which types of a column go together; does not know where rows came from.

use polars::prelude::{DataFrame, DataType, Series};

/// Puts one file's rows below another's. The reason why not is to be followed by the other file's name.
pub fn below(mut above: DataFrame, mut rows: DataFrame) -> Result<DataFrame, String> {
    let names = above.get_column_names_owned();
    if let Some(extra) = rows.get_column_names().into_iter().find(|n| !names.contains(n)) {
        return Err(format!("column `{extra}` is not in"));
    }
    let mut columns = Vec::with_capacity(names.len());
    for name in &names {
        let Ok(lower) = rows.column(name) else { return Err(format!("has no column `{name}`, as has")) };
        let upper = above.column(name).map_err(|e| e.to_string())?;
        let (upper_type, lower_type) = (upper.dtype().clone(), lower.dtype().clone());
        let common = match (&upper_type, &lower_type) {
            (a, b) if a == b => a.clone(),
            (DataType::Int64, DataType::Float64) | (DataType::Float64, DataType::Int64) => DataType::Float64,
            (a, _) if lower.null_count() == lower.len() => a.clone(),
            (_, b) if upper.null_count() == upper.len() => b.clone(),
            (a, b) => return Err(format!("column `{name}` is {} here and {} in", spelled(b), spelled(a))),
        };
        columns.push((name.clone(), common));
    }
    for frame in [&mut above, &mut rows] {
        let (height, mut fitted) = (frame.height(), Vec::with_capacity(columns.len()));
        for (name, kind) in &columns {
            let column = frame.column(name).map_err(|e| e.to_string())?;
            fitted.push(match column.null_count() == height && column.dtype() != kind {
                true => Series::full_null(name.clone(), height, kind).into(),
                false => column.cast(kind).map_err(|e| e.to_string())?,
            });
        }
        *frame = DataFrame::new(height, fitted).map_err(|e| e.to_string())?;
    }
    above.vstack_mut(&rows).map_err(|e| e.to_string())?;
    Ok(above)
}

/// A type in full, nested ones with what they hold.
pub fn spelled(kind: &DataType) -> String {
    match kind {
        DataType::List(inner) => format!("list[{}]", spelled(inner)),
        DataType::Struct(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|f| format!("{}: {}", f.name(), spelled(f.dtype()))).collect();
            format!("struct[{}]", fields.join(", "))
        }
        plain => plain.to_string(),
    }
}
