//! The decision log: why each event went where it went.
