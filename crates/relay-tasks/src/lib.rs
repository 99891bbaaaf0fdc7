//! Tasks and threads with an owner.
//!
#![doc = include_str!("../README.md")]
#![allow(clippy::disallowed_methods, reason = "the one place where tasks and threads are made")]

mod group;
mod kind;
mod supervisor;

pub use group::{OnPanic, Pulse, TaskGroup, call_blocking};
pub use kind::{TaskFailure, TaskName, TaskStats};
pub use supervisor::Supervisor;
