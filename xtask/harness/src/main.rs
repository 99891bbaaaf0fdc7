//! The command line of the harness, which `cargo xtask` calls with its own words.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use relay_harness::{conformance, load, replay};

/// The tasks that drive a real server from outside.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Puts the server and its peers under load.
    #[command(subcommand)]
    Bench(BenchTask),
    /// Runs one process of the load generator, for `bench load`.
    #[command(hide = true)]
    BenchWorker { assignment: String },
    /// Runs the baseline, for `bench load`.
    #[command(hide = true)]
    BenchBaseline { message_bytes: usize },
    /// Runs the cases of the Autobahn testsuite, and two more WebSocket clients, against the real server.
    Conformance(conformance::Options),
    /// Plays a recorded editing history through a server and checks the deliveries of every subscriber.
    Replay(replay::Options),
}

#[derive(Subcommand)]
enum BenchTask {
    /// Puts the server and its peers under the same load over real sockets, side by side.
    Load(load::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Bench(BenchTask::Load(options)) => load::run(&options),
        Task::BenchWorker { assignment } => load::run_worker(&assignment),
        Task::BenchBaseline { message_bytes } => load::run_baseline(message_bytes),
        Task::Conformance(options) => Ok(conformance::run(&options)),
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

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::Cli;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_system_that_cannot_be_measured_is_named() {
        let wrong = |argument: &str| {
            let words = ["xtask", "bench", "load", argument];
            Cli::try_parse_from(words).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(wrong("--seconds=0").contains("not a number above zero"));
        assert!(wrong("--systems=redis").contains("socket-io"), "{}", wrong("--systems=redis"));
        assert!(wrong("--workloads=none").contains("join-storm"), "{}", wrong("--workloads=none"));
    }
}
