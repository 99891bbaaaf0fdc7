//! The tests that cargo runs.

use xtask::peers::{NEXTEST, PYTHON, in_ci};
use xtask::process::{CountsOn, cargo, run_counted};
use xtask::steps::StepOutcome;
use xtask::test_counts::TestCounts;

/// The tests whose other end is written in Python.
const PYTHON_TESTS: [&str; 2] = [
    "others_verify_the_signatures_and_read_the_events_in_all_three_forms",
    "prometheus_reads_the_same_numbers",
];

/// Runs the unit and integration tests of every crate, with nextest where it is installed.
pub(crate) fn run(counts: &mut TestCounts) -> anyhow::Result<StepOutcome> {
    let mut command = cargo();
    // In continuous integration they are run in any case, and fail without Python.
    let skipped = if PYTHON.find().is_some() || in_ci() { &[][..] } else { &PYTHON_TESTS[..] };
    for name in skipped {
        println!("skipped: {name}: {}", PYTHON.missing());
    }
    let (counts_on, fix) = if NEXTEST.find().is_some() {
        command.args(["nextest", "run", "--workspace", "--no-tests", "pass"]);
        if !skipped.is_empty() {
            // Its summary counts them.
            command.args(["-E", &format!("not test(/{}/)", skipped.join("|"))]);
        }
        (CountsOn::Stderr, "read the failures above; one test: cargo nextest run <name>")
    } else {
        command.args(["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast", "--"]);
        command.args(skipped.iter().flat_map(|name| ["--skip", name]));
        counts.skipped += skipped.len() as u64;
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
