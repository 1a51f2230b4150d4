//! The time now, as records and names write it.

use std::time::SystemTime;

fn utc() -> chrono::DateTime<chrono::Utc> {
    SystemTime::now().into()
}

/// In RFC 3339, to the microsecond.
pub fn timestamp() -> String {
    utc().to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

/// To the second, in characters that any file name may have: names sort by time.
pub fn name() -> String {
    utc().format("%Y%m%d-%H%M%S").to_string()
}
