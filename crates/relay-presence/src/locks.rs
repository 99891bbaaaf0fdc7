//! Exclusive editing locks.
