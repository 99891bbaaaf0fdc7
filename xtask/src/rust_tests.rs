//! The tests that cargo runs.

use crate::peers::NEXTEST;
use crate::process::{CountsOn, cargo, run_counted};
use crate::steps::Outcome;
use crate::test_counts::TestCounts;

/// Unit and integration tests of every crate, with nextest where it is installed.
pub(crate) fn run(counts: &mut TestCounts) -> anyhow::Result<Outcome> {
    let mut command = cargo();
    if NEXTEST.find().is_some() {
        command.args(["nextest", "run", "--workspace", "--no-tests", "pass"]);
        run_counted(
            &mut command,
            CountsOn::Stderr,
            counts,
            "read the failures above; one test: cargo nextest run <name>",
        )?;
    } else {
        command.args(["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"]);
        run_counted(
            &mut command,
            CountsOn::Stdout,
            counts,
            "read the failures above; one test: cargo test <name>",
        )?;
    }
    Ok(Outcome::Done)
}

/// The examples in the documentation.
pub(crate) fn run_doctests(counts: &mut TestCounts) -> anyhow::Result<Outcome> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--doc", "--no-fail-fast"]);
    run_counted(
        &mut command,
        CountsOn::Stdout,
        counts,
        "read the failures above; one crate: cargo test --doc -p <crate>",
    )?;
    Ok(Outcome::Done)
}
