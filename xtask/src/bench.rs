//! The criterion benchmarks of all crates.

use std::process::ExitCode;

use cargo_metadata::TargetKind;
use xtask::process::{self, cargo};
use xtask::workspace;

/// Runs every benchmark of the workspace. Each one is named, since `cargo bench` alone also runs the libraries' unit
/// tests, which do not take criterion's options.
pub(crate) fn run(options: &[String]) -> anyhow::Result<ExitCode> {
    let metadata = workspace::metadata()?;
    let mut command = cargo();
    command.arg("bench");
    for package in &metadata.packages {
        let benches = package.targets.iter().filter(|target| target.kind.contains(&TargetKind::Bench));
        for (index, target) in benches.enumerate() {
            if index == 0 {
                command.args(["--package", &package.name]);
            }
            command.args(["--bench", &target.name]);
        }
    }
    command.arg("--").args(options);
    process::run(&mut command, "read the error above; the list: cargo xtask bench criterion --list")?;
    Ok(ExitCode::SUCCESS)
}
