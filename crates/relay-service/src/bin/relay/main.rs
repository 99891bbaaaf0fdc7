//! The `relay` command: the server, and the tools around it.

mod cli;
mod client;
mod config_command;
#[cfg(feature = "demo")]
mod demo;
mod invitation;
mod line_limit;
mod log_commands;
mod log_output;
mod plural;
mod publish;
mod routing;
mod serve;
mod settings;
mod sse;
mod stats;
mod tail;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, RelayCommand};

/// The allocator. That of the system keeps most of a peak's memory; this one returns it. docs/benchmarks.md has the curve.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, with the error and its causes. Where standard error is gone, there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "relay: {}", in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: RelayCommand) -> anyhow::Result<()> {
    match command {
        RelayCommand::Serve(args) => run_server(serve::serve(args)),
        #[cfg(feature = "demo")]
        RelayCommand::Demo(args) => run_server(demo::demo(args)),
        RelayCommand::Tail(args) => runtime()?.block_on(tail::tail(args)),
        RelayCommand::Publish(args) => runtime()?.block_on(publish::publish(args)),
        RelayCommand::Stats(args) => runtime()?.block_on(stats::stats(args)),
        RelayCommand::Services(args) => runtime()?.block_on(routing::services(args)),
        RelayCommand::Targets(args) => runtime()?.block_on(routing::targets(args)),
        RelayCommand::Rules(command) => runtime()?.block_on(routing::rules(command)),
        RelayCommand::Decisions(args) => runtime()?.block_on(routing::decisions(args)),
        RelayCommand::DeadLetters(command) => runtime()?.block_on(routing::dead_letters(command)),
        RelayCommand::Replay(args) => runtime()?.block_on(routing::replay(args)),
        RelayCommand::Log(command) => log_commands::run(command),
        RelayCommand::Config(args) => config_command::run(&args),
    }
}

/// Runs a server. What its stop has given up, such as a call that waits for a disk that hangs, ends with the process.
fn run_server(serving: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let ended = runtime.block_on(serving);
    runtime.shutdown_background();
    ended
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// The error and its causes in one line, without causes that the text quotes already.
fn in_one_line(error: &anyhow::Error) -> String {
    error.chain().skip(1).map(ToString::to_string).fold(error.to_string(), |text, cause| {
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

/// Returns true when the reader of the output has closed it (`relay tail notes | head`), which is no error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
