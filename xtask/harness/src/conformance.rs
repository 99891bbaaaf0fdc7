//! `cargo xtask conformance`: the WebSocket implementations of others against the real server over real sockets.
//!
//! They are the cases of the Autobahn testsuite (see `suite.py`), the npm package `ws` and the Python package
//! `websockets`. The server echoes at `/socket/echo`, with the same framing code that serves documents.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use clap::Args;
use xtask::peers::{NODE, NPM, PYTHON, in_ci, missing};
use xtask::process::{cargo, run as run_command};
use xtask::steps::{StepOutcome, Steps};
use xtask::test_counts::TestCounts;
use xtask::{e2e, workspace};

use self::report::Results;
use crate::relay_server::RelayServer;

mod report;

/// The server's settings: an echo, compression, frames as large as the largest case, and no limit on the rate of
/// connections from one address.
const SETTINGS: [&str; 6] = [
    "ws.echo=true",
    "ws.compression=true",
    "ws.max_frame_bytes=16777216",
    "memory.max_connection_bytes=68157440",
    "ws.admission_rate=10000",
    "ws.admission_burst=10000",
];
/// The sections of the suite.
const ALL: [&str; 11] = ["1", "2", "3", "4", "5", "6", "7", "9", "10", "12", "13"];
/// All sections and cases that send little, and one case of each kind that sends much.
const QUICK: [&str; 24] = [
    "1", "2", "3", "4", "5", "6", "7", "10", "9.1.1", "9.2.1", "9.3.5", "9.7", "9.8", "12.1.5", "12.2.5",
    "12.3.5", "12.4.5", "12.5.15", "13.1.5", "13.2.5", "13.3.5", "13.4.5", "13.5.5", "13.7.11",
];
/// Messages of a case that sends very many, one after another. The suite's own number is 1,000, which takes a quarter of
/// an hour over all such cases and finds nothing more.
const MESSAGES: &str = "100";
/// The same number with `--quick`.
const QUICK_MESSAGES: &str = "20";

/// The options of `conformance`.
#[derive(Args)]
pub struct Options {
    /// Uses the development build, and leaves out or shortens the cases that send much. Writes nothing.
    #[arg(long)]
    quick: bool,
}

/// Runs the task.
pub fn run(options: &Options) -> ExitCode {
    let mut steps = Steps::default();
    if options.quick {
        steps.run("development build", |_| e2e::build_server().map(|()| StepOutcome::Done));
        steps.run("conformance", |counts| judge("debug", false, counts));
    } else {
        steps.run("release build", |_| {
            let mut build = cargo();
            build.args(["build", "--release", "--package", "relay-service"]);
            run_command(&mut build, "correct what the compiler names above").map(|()| StepOutcome::Done)
        });
        steps.run("conformance", |counts| judge("release", true, counts));
    }
    steps.finish()
}

fn judge(profile: &str, whole: bool, counts: &mut TestCounts) -> anyhow::Result<StepOutcome> {
    let missing = missing(&[PYTHON, NODE, NPM]);
    if in_ci() && !missing.is_empty() {
        bail!("{}", missing.join("\n"));
    }
    let server = RelayServer::start_with(&workspace::built(profile, "relay")?, &SETTINGS)?;
    let url = format!("{}/socket/echo", server.url());
    if PYTHON.find().is_some() {
        autobahn(&url, whole, counts)?;
        client(Command::new(python()?).arg(here("websockets_client.py")).arg(&url), counts)?;
    } else {
        println!("skipped: the cases of the Autobahn testsuite\nskipped: the client websockets");
        counts.skipped += 2;
    }
    if NODE.find().is_some() && NPM.find().is_some() {
        e2e::install_packages()?;
        client(Command::new("node").arg(workspace::root().join("e2e/echo.mjs")).arg(&url), counts)?;
    } else {
        println!("skipped: the client ws");
        counts.skipped += 1;
    }
    server.stop()?;
    Ok(if missing.is_empty() { StepOutcome::Done } else { StepOutcome::Skipped(missing.join("\n")) })
}

/// Runs the suite, and writes the page of a whole run.
fn autobahn(url: &str, whole: bool, counts: &mut TestCounts) -> anyhow::Result<()> {
    let file = folder()?.join("results.json");
    let mut suite = Command::new(python()?);
    suite.arg(here("suite.py")).arg(url).arg(&file);
    if whole {
        suite.args(ALL).args(["--messages", MESSAGES]);
    } else {
        suite.args(QUICK).args(["--messages", QUICK_MESSAGES]);
    }
    run_command(&mut suite, "read what the suite says above")?;
    let text = fs::read_to_string(&file).with_context(|| format!("{} cannot be read", file.display()))?;
    let results: Results = serde_json::from_str(&text).context("the suite's results cannot be read")?;
    let failed: Vec<String> = results.failed().map(|case| format!("{}: {}", case.id, case.reason)).collect();
    counts.failed += failed.len() as u64;
    counts.passed += (results.cases.len() - failed.len()) as u64;
    if whole {
        fs::write(workspace::root().join("docs/conformance.md"), results.page())?;
    }
    if !failed.is_empty() {
        bail!("cases of the Autobahn testsuite failed:\n{}", failed.join("\n"));
    }
    Ok(())
}

/// Runs a client, which counts as one test.
fn client(command: &mut Command, counts: &mut TestCounts) -> anyhow::Result<()> {
    run_command(command, "read what the client says above")?;
    counts.passed += 1;
    Ok(())
}

/// Returns the Python that has the packages, and installs them where they are missing.
fn python() -> anyhow::Result<PathBuf> {
    let venv = folder()?.join("python");
    let python = venv.join("bin/python");
    let wanted = [here("requirements.txt"), here("suite.requirements.txt")];
    let (mut lists, stamp) = (String::new(), venv.join("installed.txt"));
    for list in &wanted {
        lists.push_str(&fs::read_to_string(list)?);
    }
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == lists) {
        return Ok(python);
    }
    run_command(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv), PYTHON.install)?;
    let fix = "pip needs PyPI once: check the network";
    let install = || {
        let mut command = Command::new(&python);
        command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        command
    };
    run_command(install().arg("--requirement").arg(&wanted[0]), fix)?;
    run_command(install().args(["--no-deps", "--no-compile", "--requirement"]).arg(&wanted[1]), fix)?;
    fs::write(stamp, lists)?;
    Ok(python)
}

/// Returns the folder of the packages and results, in the target folder.
fn folder() -> anyhow::Result<PathBuf> {
    let folder = workspace::metadata()?.target_directory.into_std_path_buf().join("conformance");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Returns the path of a file in the folder of this module.
fn here(name: &str) -> PathBuf {
    workspace::root().join("xtask/harness/src/conformance").join(name)
}
