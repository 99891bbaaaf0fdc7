//! [`Version`]: the order of all changes of presence.

/// The number of a change, among those of all documents. Later changes have larger numbers.
pub(crate) type Version = u64;
