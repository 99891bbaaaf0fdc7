//! The tests that cargo runs.

use xtask::peers::NEXTEST;
use xtask::process::{CountsOn, cargo, run_counted};
use xtask::steps::StepOutcome;
use xtask::test_counts::TestCounts;

/// Runs the unit and integration tests of every crate, with nextest where it is installed.
pub(crate) fn run(counts: &mut TestCounts) -> anyhow::Result<StepOutcome> {
    let mut command = cargo();
    let (counts_on, fix) = if NEXTEST.find().is_some() {
        command.args(["nextest", "run", "--workspace", "--no-tests", "pass"]);
        (CountsOn::Stderr, "read the failures above; one test: cargo nextest run <name>")
    } else {
        command.args(["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"]);
        (CountsOn::Stdout, "read the failures above; one test: cargo test <name>")
    };
    run_counted(&mut command, counts_on, counts, fix)?;
    Ok(StepOutcome::Done)
}

/// Runs the examples in the documentation.
pub(crate) fn run_doctests(counts: &mut TestCounts) -> anyhow::Result<StepOutcome> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--doc", "--no-fail-fast"]);
    let fix = "read the failures above; one crate: cargo test --doc -p <crate>";
    run_counted(&mut command, CountsOn::Stdout, counts, fix)?;
    Ok(StepOutcome::Done)
}
