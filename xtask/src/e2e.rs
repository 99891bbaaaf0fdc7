//! The end-to-end tests in `e2e/`: the real server with the unmodified npm client, in Node and in Chromium.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::peers::{CHROMIUM, NODE, NPM, in_ci, missing};
use crate::process::{CountsOn, cargo, run as run_command, run_counted};
use crate::steps::StepOutcome;
use crate::test_counts::TestCounts;
use crate::workspace;

/// Builds the server, installs the npm packages where they are missing, and runs the tests with node's test runner.
///
/// Without node or npm the tests are named and counted as skipped.
///
/// # Errors
/// When a test fails. With `CI=true` also when node, npm or Chromium is missing.
pub fn run(counts: &mut TestCounts) -> anyhow::Result<StepOutcome> {
    let folder = workspace::root().join("e2e");
    let mut tests = test_files(&folder)?;
    // The page's own tests, which need node alone.
    tests.extend(test_files(&workspace::root().join("crates/relay-service/tests"))?);
    let missing = missing(&[NODE, NPM, CHROMIUM]);
    if in_ci() && !missing.is_empty() {
        bail!("{}", missing.join("\n"));
    }
    if NODE.find().is_none() || NPM.find().is_none() {
        for file in &tests {
            for name in test_names(&fs::read_to_string(file)?) {
                println!("skipped: {name}");
                counts.skipped += 1;
            }
        }
        return Ok(StepOutcome::Skipped(missing.join("\n")));
    }
    build_server()?;
    install_packages()?;
    let mut command = Command::new("node");
    command
        .args(["--test", "--test-reporter=spec", "--test-concurrency=1"])
        .args(&tests)
        .current_dir(&folder);
    command.env("RELAY_BIN", workspace::built("debug", "relay")?);
    if let Some(chromium) = CHROMIUM.find() {
        command.env("CHROMIUM_BIN", chromium);
    }
    run_counted(
        &mut command,
        CountsOn::Stdout,
        counts,
        "read the failures above; one file: node --test e2e/<file>",
    )?;
    Ok(StepOutcome::Done)
}

/// Builds the development server with the features that the other tests build it with, so that it is built once.
///
/// # Errors
/// When it does not compile.
pub fn build_server() -> anyhow::Result<()> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-run", "--quiet"]);
    run_command(&mut command, "correct what the compiler names above")
}

/// Installs the npm packages of the lock file, unless they are installed already.
///
/// # Errors
/// When npm fails.
pub fn install_packages() -> anyhow::Result<()> {
    let folder = workspace::root().join("e2e");
    let modified = |file: PathBuf| fs::metadata(file).and_then(|metadata| metadata.modified()).ok();
    let locked = modified(folder.join("package-lock.json"));
    let installed = modified(folder.join("node_modules/.package-lock.json"));
    if installed.is_some() && installed >= locked {
        return Ok(());
    }
    let mut command = Command::new("npm");
    command.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(folder);
    run_command(&mut command, "npm needs its registry once: check the network, then: cd e2e && npm ci")
}

fn test_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    let mut files = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    files.retain(|file| file.to_string_lossy().ends_with(".test.mjs"));
    files.sort();
    Ok(files)
}

/// Returns the names of a file's tests: the first argument of every `test(` at the beginning of a line.
fn test_names(source: &str) -> impl Iterator<Item = &str> {
    source.lines().filter_map(|line| line.strip_prefix("test(\"")).filter_map(|rest| rest.split('"').next())
}

#[cfg(test)]
mod tests {
    use super::test_names;

    #[test]
    fn the_tests_of_a_file_are_named_without_running_it() {
        let source = "import x\ntest(\"a client joins\", async () => {\n  test(\"inner\")\n})\ntest(\"it leaves\", {}, f)\n";
        assert_eq!(test_names(source).collect::<Vec<_>>(), ["a client joins", "it leaves"]);
    }
}
