//! The parts that the tasks of this workspace share with its other tools.
//!
//! [`workspace`] finds folders and built programs, [`process`] runs commands, [`peers`] finds programs that are not part
//! of a Rust installation, and [`steps`] runs named steps and sums them up in [`test_counts`].

pub mod e2e;
pub mod peers;
pub mod process;
pub mod steps;
pub mod test_counts;
pub mod workspace;
