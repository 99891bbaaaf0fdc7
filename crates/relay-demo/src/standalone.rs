//! A service as a program of its own: its command line, and its end on SIGTERM or Ctrl-C.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{RunningService, SERVICES};

/// A service that works for a relay.
#[derive(Debug, Parser)]
struct Arguments {
    /// The relay's address.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7400")]
    relay: String,
    /// The address at which the relay reaches this service; port 0 takes a free one. The relay refuses loopback addresses
    /// unless its `router.allow_networks` has them.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

/// Runs the service of that name until SIGTERM or Ctrl-C.
pub fn run_alone(name: &str) -> ExitCode {
    tracing_subscriber::fmt().with_env_filter(EnvFilter::new("info")).with_target(false).init();
    match serve(name, &Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(name: &str, arguments: &Arguments) -> anyhow::Result<()> {
    let profile = SERVICES.iter().find(|profile| profile.name == name).context("there is no such service")?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let running = RunningService::start(profile, &arguments.relay, arguments.listen).await?;
    tracing::info!(address = %running.address, capability = profile.capability, "listening");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    running.stop().await
}
