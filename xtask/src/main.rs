//! The tasks of this workspace: `cargo xtask <task>`.
//!
//! The list of tasks is [`cli::Task`], and the match below is the only place that dispatches them. Every task works
//! from any folder of the workspace, says what it needs, and fails with the line that fixes it.

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{BenchTask, Cli, Task};

mod bench;
mod ci;
mod cli;
mod conformance;
mod e2e;
mod layers;
mod load;
mod peers;
mod process;
mod replay;
mod rust_tests;
mod steps;
mod test_counts;
mod tidy;
mod workspace;

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Ci => Ok(ci::run()),
        Task::Test => Ok(ci::test()),
        Task::Bench(BenchTask::Criterion { options }) => bench::run(&options),
        Task::Bench(BenchTask::Load(options)) => load::run(&options),
        Task::BenchWorker { assignment } => load::run_worker(&assignment),
        Task::BenchBaseline { message_bytes } => load::run_baseline(message_bytes),
        Task::Conformance(options) => Ok(conformance::run(&options)),
        Task::Layers => layers::run(),
        Task::Tidy(options) => tidy::run(&options),
        Task::Replay(options) => replay::run(&options),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
