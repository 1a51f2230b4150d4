//! How much memory this process may still take, and the refusal of what would take more.
//!
//! An allocation that fails ends the process; so whatever an input or a setting makes large is asked for here before
//! it is allocated. Does not know what is allocated, nor whether it is ever used.

use std::fs;

use crate::size;

/// What would take more memory than there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} would take {} of memory, and {} is free", shown(*bytes), size::bytes(*free))]
pub struct TooLarge {
    /// What it is, and the setting or file it comes from.
    pub what: String,
    /// How many bytes it would take; none where the number is beyond what a machine can count.
    pub bytes: Option<u64>,
    /// How many bytes there are.
    pub free: u64,
}

fn shown(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "more than 16 exabytes".into(), size::bytes)
}

/// Refuses what doesn't fit into the memory that is free. `factors` are multiplied to the number of bytes: rows,
/// columns, bytes of a number.
///
/// # Errors
/// It would take more than [`free`] says; `what` begins the message.
pub fn fits(factors: &[u64], what: impl FnOnce() -> String) -> Result<(), TooLarge> {
    let bytes = factors.iter().try_fold(1u64, |product, factor| product.checked_mul(*factor));
    // Most of what is asked for is small; the system is asked only about the rest.
    if bytes.is_some_and(|bytes| bytes <= UNASKED) {
        return Ok(());
    }
    let free = free();
    match bytes {
        Some(bytes) if bytes <= free => Ok(()),
        _ => Err(TooLarge { what: what(), bytes, free }),
    }
}

/// So few bytes are there anywhere a model is tuned.
const UNASKED: u64 = 32 << 20;

/// How many bytes this process may still take: the least of what the system has available, what the control group
/// leaves and what the limit on address space leaves. All there is where none of them is known.
pub fn free() -> u64 {
    [available(), group(), address_space()].into_iter().flatten().min().unwrap_or(u64::MAX)
}

/// Memory that can be had without swapping, as the kernel estimates it.
fn available() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// What the control group of this process leaves (version 2; version 1 where that stands at its usual place).
fn group() -> Option<u64> {
    // Pages of files that nobody has looked at for long are given up when memory is needed.
    let cached = |path: &str| {
        let table = fs::read_to_string(path).unwrap_or_default();
        table.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse().ok()).unwrap_or(0)
    };
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let folder = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_owned();
    let second = |folder: &str| {
        let limit = number(&format!("/sys/fs/cgroup{folder}/memory.max"))?;
        let used = number(&format!("/sys/fs/cgroup{folder}/memory.current"))?;
        Some(limit.saturating_sub(used - used.min(cached(&format!("/sys/fs/cgroup{folder}/memory.stat")))))
    };
    let first = || {
        let limit = number("/sys/fs/cgroup/memory/memory.limit_in_bytes")?;
        let used = number("/sys/fs/cgroup/memory/memory.usage_in_bytes")?;
        Some(limit.saturating_sub(used - used.min(cached("/sys/fs/cgroup/memory/memory.stat"))))
    };
    second(folder.trim_end_matches('/')).or_else(|| second("")).or_else(first)
}

/// What `ulimit -v` leaves.
fn address_space() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    let used = kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmSize:")?;
    Some(limit.saturating_sub(used))
}

/// The number behind a name in one of the kernel's tables, there in kB, here in bytes.
fn kilobytes(table: &str, name: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_let_through_and_what_does_not_is_named() {
        assert_eq!(fits(&[1000, 1000, 4], || unreachable!()), Ok(()));
        let free = free();
        assert!(free > UNASKED, "{free}");
        let refused = fits(&[1 << 30, 1 << 20], || "`num_virtual_tokens` 1073741824".into()).unwrap_err();
        let text = refused.to_string();
        assert!(
            text.starts_with("`num_virtual_tokens` 1073741824 would take 1125.9 TB of memory, and "),
            "{text}"
        );
        let beyond = fits(&[u64::MAX, 4], || "it".into()).unwrap_err().to_string();
        assert!(beyond.starts_with("it would take more than 16 exabytes of memory, and "), "{beyond}");
        assert_eq!(fits(&[u64::MAX, 0], || unreachable!()), Ok(()));
    }

    #[test]
    fn the_kernels_tables_are_read() {
        let table = "MemTotal:       24000 kB\nMemAvailable:   16 kB\n";
        assert_eq!(kilobytes(table, "MemAvailable:"), Some(16 << 10));
        assert_eq!(kilobytes(table, "VmSize:"), None);
    }
}
