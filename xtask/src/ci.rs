//! The two tasks that run many steps: `ci` and `test`.

use std::process::ExitCode;

use xtask::e2e;
use xtask::peers::DENY;
use xtask::process::{cargo, run as run_command};
use xtask::steps::{StepOutcome, Steps};
use xtask::workspace;

use crate::{api, harness, layers, rust_tests, tidy};

/// Runs everything that continuous integration runs, the quick checks first.
pub(crate) fn run() -> ExitCode {
    let mut steps = Steps::default();
    steps.run("format", |_| done(run_command(cargo().args(["fmt", "--all", "--check"]), "cargo fmt --all")));
    steps.run("layers", |_| done(layers::check()));
    steps.run("tidy", |_| done(tidy::check()));
    steps.run("clippy", |_| {
        let mut command = cargo();
        command.args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]);
        done(run_command(&mut command, "correct what clippy names above"))
    });
    tests(&mut steps);
    steps.run("conformance", harness::quick_conformance);
    steps.run("replay of a short trace", |_| done(harness::short_replay()));
    steps.run("a little load", |_| done(harness::smoke_load()));
    steps.run("documentation", |_| {
        let mut command = cargo();
        command.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings");
        done(run_command(&mut command, "correct what rustdoc names above"))
    });
    steps.run("public items", |_| api::check());
    steps.run("packages", |_| done(package()));
    steps.run("licences and advisories", |_| deny());
    steps.finish()
}

/// Runs all tests.
pub(crate) fn test() -> ExitCode {
    let mut steps = Steps::default();
    tests(&mut steps);
    steps.finish()
}

fn tests(steps: &mut Steps) {
    steps.run("unit and integration tests", rust_tests::run);
    steps.run("documentation tests", rust_tests::run_doctests);
    steps.run("end-to-end tests", e2e::run);
}

/// Packages every crate that is published.
fn package() -> anyhow::Result<()> {
    let mut command = cargo();
    command.args(["package", "--allow-dirty", "--no-verify"]);
    for package in workspace::metadata()?.packages {
        if package.publish.is_none() {
            command.args(["--package", &package.name]);
        }
    }
    run_command(&mut command, "give the crate what cargo misses in its Cargo.toml")
}

fn deny() -> anyhow::Result<StepOutcome> {
    if DENY.find().is_none() {
        return Ok(StepOutcome::Skipped(DENY.missing()));
    }
    run_command(
        cargo().args(["deny", "--workspace", "check"]),
        "see deny.toml; without a network: cargo deny --workspace check bans licenses sources",
    )?;
    Ok(StepOutcome::Done)
}

fn done(result: anyhow::Result<()>) -> anyhow::Result<StepOutcome> {
    result.map(|()| StepOutcome::Done)
}
