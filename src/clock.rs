//! The time now, as records and names write it.

use std::time::SystemTime;

fn utc() -> chrono::DateTime<chrono::Utc> {
    SystemTime::now().into()
}

/// In RFC 3339, to the microsecond.
pub fn timestamp() -> String {
    utc().to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

/// What [`timestamp`] would have said this long ago; none before all time.
pub fn before_now(age: std::time::Duration) -> Option<String> {
    let age = chrono::Duration::from_std(age).ok()?;
    Some(utc().checked_sub_signed(age)?.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
}

/// To the second, in characters that any file name may have: names sort by time.
pub fn name() -> String {
    utc().format("%Y%m%d-%H%M%S").to_string()
}
