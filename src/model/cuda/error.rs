//! What can go wrong on a card.

/// Why a card did not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CardError {
    /// There is no room for what is needed.
    #[error("the GPU has no room for another {} MiB ({} MiB are in use)", needed >> 20, used >> 20)]
    OutOfMemory {
        /// Bytes that were asked for.
        needed: u64,
        /// Bytes in use.
        used: u64,
    },
    /// The driver or a library refuses.
    #[error("the GPU failed at {what}: {reason}")]
    Failed {
        /// What was to be done.
        what: String,
        /// What the driver or the library says.
        reason: String,
    },
}
