//! The tests of the server as a whole, most of them against the real `relay` program as a process of its own.
//!
//! Every test has a directory and a free port of its own, so tests may run side by side, in threads or in processes. What
//! needs most of a process's open files is in `churn.rs` beside this folder.
#![allow(clippy::disallowed_methods, reason = "a test ends with its tasks")]

mod bad_input;
mod causes;
mod classes;
mod command_line;
mod crash;
#[cfg(feature = "demo")]
mod demo;
mod documentation;
mod embedding;
#[cfg(target_os = "linux")]
mod failing_disk;
mod heads;
mod http;
mod limits;
mod log_output;
mod metrics;
mod pipelining;
mod restart;
mod routing;
mod routing_faults;
mod suites;
mod support;
mod tasks;
mod tls;
