//! The tasks of this workspace: `cargo xtask <task>`.
//!
//! The list of tasks is [`cli::Task`], and only the match below dispatches them. Every task works from
//! any folder of the workspace, names the programs that it needs, and fails with the line that fixes it.

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{BenchTask, Cli, Task};

mod api;
mod bench;
mod ci;
mod cli;
mod harness;
mod layers;
mod rust_tests;
mod tidy;

fn main() -> ExitCode {
    if let Some(code) = api::stand_in_for_rustdoc() {
        return code;
    }
    let done = match Cli::parse().task {
        Task::Ci => Ok(ci::run()),
        Task::Test => Ok(ci::test()),
        Task::Bench(BenchTask::Criterion { options }) => bench::run(&options),
        Task::Bench(BenchTask::Load { options }) => harness::run(&["bench", "load"], &options),
        Task::Conformance { options } => harness::run(&["conformance"], &options),
        Task::Layers => layers::run(),
        Task::Tidy(options) => tidy::run(&options),
        Task::Api(options) => api::run(&options),
        Task::Replay { options } => harness::run(&["replay"], &options),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
