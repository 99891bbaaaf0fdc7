//! The lists of public items: one file per published crate, made from rustdoc's JSON and checked in, so that a change of
//! a crate's interface is seen in review.
//!
//! Rustdoc writes JSON only with unstable options, and their format changes between compilers. The lists therefore name
//! the compiler that they were made with, and with another compiler the check is skipped.

use std::collections::HashSet;
use std::env;
use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail, ensure};
use cargo_metadata::{Package, TargetKind};
use public_api::PublicApi;
use xtask::process::{cargo, run as run_command};
use xtask::steps::StepOutcome;
use xtask::workspace;

use crate::cli::ApiOptions;

/// The list's file, in the crate's folder.
const FILE: &str = "public-api.txt";
/// The start of a list's first line, before the version of the compiler.
const HEADER: &str = "# The crate's public items, by `cargo xtask api` with rustc ";
/// The variable that makes this program stand in for rustdoc, and names the real one.
const RUSTDOC: &str = "XTASK_API_RUSTDOC";

pub(crate) fn run(options: &ApiOptions) -> anyhow::Result<ExitCode> {
    if !options.check {
        write()?;
    } else if let StepOutcome::Skipped(reason) = check()? {
        println!("skipped: {reason}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Compares the lists with the crates.
///
/// # Errors
/// Names every crate whose public items differ from its list, with the lines that differ.
pub(crate) fn check() -> anyhow::Result<StepOutcome> {
    let compiler = compiler()?;
    let mut wrong = Vec::new();
    for package in packages()? {
        let list = list(&package);
        let found = fs::read_to_string(&list).unwrap_or_default();
        if let Some(other) = made_with(&found).filter(|other| *other != compiler) {
            return Ok(StepOutcome::Skipped(format!(
                "the lists of public items were made with rustc {other}, and this is {compiler}; to check them: \
                 cargo +{other} xtask api --check"
            )));
        }
        let differences = differences(&found, &items(&package, &compiler)?);
        if !differences.is_empty() {
            wrong.push(format!("{} differs from the crate:\n{differences}", list.display()));
        }
    }
    if !wrong.is_empty() {
        bail!("{}\nfix: cargo xtask api, and show the new lists in review", wrong.join("\n"));
    }
    println!("the public items of every crate are those of its {FILE}");
    Ok(StepOutcome::Done)
}

fn write() -> anyhow::Result<()> {
    let compiler = compiler()?;
    for package in packages()? {
        let list = list(&package);
        fs::write(&list, items(&package, &compiler)?)?;
        println!("written: {}", list.display());
    }
    Ok(())
}

/// Returns the published crates that have a library.
fn packages() -> anyhow::Result<Vec<Package>> {
    let has_library =
        |package: &Package| package.targets.iter().any(|target| target.kind.contains(&TargetKind::Lib));
    let packages = workspace::metadata()?.packages.into_iter();
    Ok(packages.filter(|package| package.publish.is_none() && has_library(package)).collect())
}

fn list(package: &Package) -> PathBuf {
    package.manifest_path.with_file_name(FILE).into_std_path_buf()
}

/// Returns the list of a crate's public items, without those that every type has and those that are derived.
fn items(package: &Package, compiler: &str) -> anyhow::Result<String> {
    let mut list = format!("{HEADER}{compiler}.\n");
    let api = public_api::Builder::from_rustdoc_json(rustdoc_json(package)?)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build();
    let api: PublicApi = api.with_context(|| {
        format!("the JSON of rustdoc {compiler} cannot be read; another version of `public-api` may read it")
    })?;
    for item in api.items() {
        writeln!(list, "{item}")?;
    }
    Ok(list)
}

/// Lets rustdoc write the crate's JSON, and returns its file.
fn rustdoc_json(package: &Package) -> anyhow::Result<PathBuf> {
    let mut command = cargo();
    command.args(["rustdoc", "--quiet", "--lib", "--package", &package.name, "--"]);
    command.args(["-Z", "unstable-options", "--output-format", "json", "--cap-lints", "allow"]);
    command.env(RUSTDOC, env::var_os("RUSTDOC").unwrap_or_else(|| OsString::from("rustdoc")));
    command.env("RUSTDOC", env::current_exe()?);
    run_command(&mut command, "correct what the compiler names above")?;
    let target = workspace::metadata()?.target_directory.into_std_path_buf();
    Ok(target.join("doc").join(format!("{}.json", package.name.replace('-', "_"))))
}

/// Runs the real rustdoc with unstable options allowed, if this process was started instead of it.
///
/// Only rustdoc gets `RUSTC_BOOTSTRAP`. In cargo's own environment the variable would make the build scripts of many
/// dependencies run again, and everything above them.
pub(crate) fn stand_in_for_rustdoc() -> Option<ExitCode> {
    let rustdoc = env::var_os(RUSTDOC)?;
    let mut command = Command::new(&rustdoc);
    command.args(env::args_os().skip(1)).env("RUSTC_BOOTSTRAP", "1").env_remove(RUSTDOC);
    match command.status() {
        Ok(status) if status.success() => Some(ExitCode::SUCCESS),
        Ok(_) => Some(ExitCode::FAILURE),
        Err(error) => {
            eprintln!("error: {} does not start: {error}", Path::new(&rustdoc).display());
            Some(ExitCode::FAILURE)
        }
    }
}

/// Returns the version of the compiler, for instance `1.95.0`.
fn compiler() -> anyhow::Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let output = Command::new(rustc).arg("--version").output().context("rustc does not start")?;
    ensure!(output.status.success(), "`rustc --version` ended with {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().nth(1).context("`rustc --version` names no version")?.to_owned())
}

/// Returns the version of the compiler that a list was made with.
fn made_with(list: &str) -> Option<&str> {
    list.lines().next()?.strip_prefix(HEADER)?.strip_suffix('.')
}

/// Returns the lines that are in one list alone, `-` before those of `old` and `+` before those of `new`.
fn differences(old: &str, new: &str) -> String {
    let mut differences = Vec::new();
    for (sign, lines, others) in [('-', old, new), ('+', new, old)] {
        let others = others.lines().collect::<HashSet<_>>();
        let alone = lines.lines().filter(|line| !others.contains(line));
        differences.extend(alone.map(|line| format!("  {sign} {line}")));
    }
    differences.join("\n")
}

#[cfg(test)]
mod tests {
    use super::{HEADER, differences, made_with};

    #[test]
    fn a_list_names_its_compiler() {
        assert_eq!(made_with(&format!("{HEADER}1.95.0.\npub mod a\n")), Some("1.95.0"));
        assert_eq!(made_with("pub mod a\n"), None);
        assert_eq!(made_with(""), None);
    }

    #[test]
    fn items_that_came_and_went_are_shown() {
        assert_eq!(differences("a\nb\nc\n", "a\nc\nd\n"), "  - b\n  + d");
        assert_eq!(differences("a\n", "a\n"), "");
    }
}
