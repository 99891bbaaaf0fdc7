//! The tasks that drive a real server, carried out by the program `relay-harness`.
//!
//! It is a crate and a process of its own, so that the other tasks build without its dependencies. Its command line
//! has the same words as this one's.

use std::env;
use std::process::{Command, ExitCode};

use anyhow::Context;
use xtask::peers::{NODE, NPM, PYTHON, missing};
use xtask::process::{self, CountsOn, cargo, run_counted};
use xtask::steps::StepOutcome;
use xtask::test_counts::TestCounts;
use xtask::workspace;

/// The trace that comes with the repository: a page of typing with corrections.
const SHORT_TRACE: &str = "xtask/harness/traces/typed-page.json.gz";

/// Runs a task of the harness with the options of the command line.
pub(crate) fn run(task: &[&str], options: &[String]) -> anyhow::Result<ExitCode> {
    let mut command = command(task);
    // Paths among the options are relative to the caller's folder.
    command.args(options).current_dir(env::current_dir()?);
    let status = command.status().context("the harness does not start")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the quick part of the conformance tests.
pub(crate) fn quick_conformance(counts: &mut TestCounts) -> anyhow::Result<StepOutcome> {
    let mut command = command(&["conformance", "--quick"]);
    run_counted(&mut command, CountsOn::Stdout, counts, "read the failures above")?;
    let missing = missing(&[PYTHON, NODE, NPM]);
    Ok(if missing.is_empty() { StepOutcome::Done } else { StepOutcome::Skipped(missing.join("\n")) })
}

/// Plays the short trace through the development build.
pub(crate) fn short_replay() -> anyhow::Result<()> {
    let options = ["--dev", "--subscribers", "5", "--documents", "2", "--window", "64"];
    process::run(command(&["replay", SHORT_TRACE]).args(options), "read the failure above")
}

/// Puts the baseline and the development build under a little load.
pub(crate) fn smoke_load() -> anyhow::Result<()> {
    process::run(&mut command(&["bench", "load", "--smoke"]), "read the failure above")
}

fn command(task: &[&str]) -> Command {
    let mut command = cargo();
    command.args(["run", "--quiet", "--manifest-path"]).arg(workspace::root().join("Cargo.toml"));
    command.args(["--package", "relay-harness", "--"]).args(task);
    command
}
