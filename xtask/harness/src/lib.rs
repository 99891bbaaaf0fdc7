//! Programs that drive a real Relay server from outside, over real sockets.
//!
//! [`load`] puts the server and its peers under the same load, [`replay`] plays recorded editing histories and checks
//! every delivery, and [`conformance`] runs the WebSocket test suites of others.
#![allow(clippy::disallowed_methods, reason = "a program beside the server")]

use std::process::ExitCode;

pub mod conformance;
pub mod load;
mod relay_server;
pub mod replay;

/// Runs the release build of this program, which must be there, with the arguments of this one: a slow client would
/// measure itself.
fn run_release_build() -> anyhow::Result<ExitCode> {
    let mut release = std::process::Command::new(xtask::workspace::built("release", env!("CARGO_PKG_NAME"))?);
    let status = release.args(std::env::args_os().skip(1)).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads a number above zero from the command line.
fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err(format!("`{text}` is not a number above zero")),
    }
}
