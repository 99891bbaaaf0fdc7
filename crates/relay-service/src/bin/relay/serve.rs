//! `relay serve`: the server until it is told to stop.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;

use anyhow::bail;
use relay_service::RelayService;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::cli::SettingsArgs;
use crate::settings::{Durability, LogFormat, Settings};

pub(crate) async fn serve(args: SettingsArgs) -> anyhow::Result<()> {
    let settings = args.load()?.settings;
    write_log(&settings)?;
    // From here on a signal stops the server; before, it would have ended the process.
    let mut signals = Signals::new()?;
    let service = tokio::select! {
        service = RelayService::start(settings.clone().service()) => service?,
        name = signals.next() => bail!("stopped by {name} while starting"),
    };
    if let Some(recovery) = service.recovery() {
        tracing::info!(?recovery, "log opened");
    }
    if let Some(address) = service.address() {
        announce(address, &settings)?;
    }
    let name = signals.next().await;
    tracing::info!(signal = name, "stopping");
    let stopped = tokio::select! {
        stopped = service.stop() => stopped?,
        name = signals.next() => bail!("stopped at once by a second signal ({name})"),
    };
    tracing::info!(complete = stopped.complete, "stopped");
    Ok(())
}

/// The signals that stop the server.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

fn write_log(settings: &Settings) -> anyhow::Result<()> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&settings.log_filter.0)?)
        .with_ansi(std::io::stdout().is_terminal());
    match settings.log_format {
        LogFormat::Pretty => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

fn announce(address: SocketAddr, settings: &Settings) -> std::io::Result<()> {
    tracing::info!(%address, durability = ?settings.durability, "listening");
    if !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "there is no authentication yet: everybody who reaches this address may read and write every document"
        );
    }
    if settings.durability == Durability::Memory {
        tracing::warn!("durability is `memory`: everything is gone when the server stops");
    }
    match settings.log_format {
        LogFormat::Pretty => std::io::stdout().write_all(invitation(address, settings).as_bytes()),
        LogFormat::Json => Ok(()),
    }
}

/// What to try first.
fn invitation(address: SocketAddr, settings: &Settings) -> String {
    let url = format!("http://{address}");
    let option = if address.port() == 7400 { String::new() } else { format!(" --url {url}") };
    let kept = match settings.durability {
        Durability::Memory => "in memory".to_owned(),
        Durability::Logged | Durability::Synced => settings.log.directory.display().to_string(),
    };
    format!(
        "\n  Relay is listening at {url}\n\n    \
         open      {url}/?document=notes   in two browser tabs, and type\n    \
         follow    relay tail notes{option}\n    \
         publish   relay publish notes x-note '{{\"text\": \"hello\"}}'{option}\n    \
         read      curl '{url}/v1/documents/notes/events?after_seq=0'\n    \
         kept      {kept}\n\n  \
         Ctrl-C stops it.\n\n"
    )
}
