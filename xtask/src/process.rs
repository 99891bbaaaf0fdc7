//! Running other programs. Each command is printed, and a failure names it.

use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::test_counts::TestCounts;

/// Returns a command for the cargo that runs this task, in the workspace's folder.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(crate::workspace::root());
    command
}

/// Runs a command to its end; `fix` is the line that helps when it fails.
///
/// # Errors
/// When the command does not start or ends without success.
pub fn run(command: &mut Command, fix: &str) -> anyhow::Result<()> {
    let line = announce(command);
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("`{line}` does not start"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}\nfix: {fix}");
    }
    Ok(())
}

/// The stream on which a test runner prints its counts.
#[derive(Clone, Copy)]
pub enum CountsOn {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Runs a test runner, passing on its output and adding its counts to `counts`.
///
/// # Errors
/// When the runner does not start or ends without success.
pub fn run_counted(
    command: &mut Command,
    counts_on: CountsOn,
    counts: &mut TestCounts,
    fix: &str,
) -> anyhow::Result<()> {
    let line = announce(command);
    command.stdin(Stdio::null());
    match counts_on {
        CountsOn::Stdout => command.stdout(Stdio::piped()),
        CountsOn::Stderr => command.stderr(Stdio::piped()),
    };
    let mut child = command.spawn().with_context(|| format!("`{line}` does not start"))?;
    if let Some(output) = child.stdout.take() {
        count(output, counts)?;
    } else if let Some(output) = child.stderr.take() {
        count(output, counts)?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{line}` ended with {status}\nfix: {fix}");
    }
    Ok(())
}

fn count(output: impl Read, counts: &mut TestCounts) -> anyhow::Result<()> {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    let mut stdout = std::io::stdout();
    while output.read_until(b'\n', &mut line)? > 0 {
        stdout.write_all(&line)?;
        stdout.flush()?;
        *counts += TestCounts::of_line(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok(())
}

/// Prints the command in the form in which it can be typed.
fn announce(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        words.extend(value.map(|value| format!("{}={}", name.display(), value.display())));
    }
    // Cargo is called by its full path; its name says enough.
    let program = Path::new(command.get_program());
    words.push(program.file_name().unwrap_or(program.as_os_str()).display().to_string());
    words.extend(command.get_args().map(|argument| argument.display().to_string()));
    let line = words.join(" ");
    println!("$ {line}");
    line
}
