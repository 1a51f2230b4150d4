//! What a run would do, and why.

use super::table;
use crate::plan::{Forecast, Plan};

/// `pipe plan` in text: a line a stage.
pub fn text(plan: &Plan<'_>, forecasts: &[(usize, Forecast)]) -> String {
    let rows: Vec<Vec<String>> = forecasts
        .iter()
        .map(|(index, forecast)| {
            let stage = plan.stage(*index);
            let (word, why) = words(forecast);
            vec![word.to_string(), stage.id.to_string(), stage.kind.name.to_string(), why]
        })
        .collect();
    let run =
        forecasts.iter().filter(|(_, f)| matches!(f, Forecast::Run { .. } | Forecast::After(_))).count();
    let cached = forecasts.iter().filter(|(_, f)| matches!(f, Forecast::Cached(_))).count();
    format!("{}{run} to run, {cached} cached\n", table(&rows))
}

/// The same as JSON: an object a stage.
pub fn json(plan: &Plan<'_>, forecasts: &[(usize, Forecast)]) -> String {
    let stages: Vec<serde_json::Value> = forecasts
        .iter()
        .map(|(index, forecast)| {
            let stage = plan.stage(*index);
            let (word, why) = words(forecast);
            let key = match forecast {
                Forecast::Cached(key) | Forecast::Run { key, .. } => Some(key),
                _ => None,
            };
            serde_json::json!({
                "stage": stage.id.as_str(), "kind": stage.kind.name, "plan": word, "why": why, "key": key,
            })
        })
        .collect();
    stages.iter().map(|s| s.to_string() + "\n").collect()
}

fn words(forecast: &Forecast) -> (&'static str, String) {
    match forecast {
        Forecast::Cached(_) => ("cached", String::new()),
        Forecast::Run { before: false, .. } => ("run", "has not run here before".into()),
        Forecast::Run { why, .. } if why.is_empty() => ("run", "its result is no longer in the cache".into()),
        Forecast::Run { why, .. } => {
            ("run", why.iter().map(|c| c.to_string()).collect::<Vec<_>>().join("; "))
        }
        Forecast::After(first) => ("maybe", format!("runs if {} comes out different", first.join(" or "))),
        Forecast::Off(reason) => ("skipped", reason.clone()),
    }
}
