//! `relay demo`: the server and its four example services in one process, and the page that shows their results.
//!
//! The services are those of `relay-demo`. They speak HTTP with the server, over loopback, as they do when they are
//! programs of their own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, bail};
use relay_demo::{RunningService, SERVICES};
use relay_service::{RelayService, StartError, Stopped};
use tempfile::TempDir;
use tokio::process::Command;

use crate::cli::DemoArgs;
use crate::invitation::reachable;
use crate::serve::{ServerLog, Signals, check_stop, start_log};
use crate::settings::Settings;

/// The address of the page, if the port is free and no other is given.
const USUAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7400);
/// The commands that open a page in the desktop's browser.
const OPENERS: [&str; 2] = ["xdg-open", "open"];

pub(crate) async fn demo(args: DemoArgs) -> anyhow::Result<()> {
    let (data, temporary) = data_directory(args.data_dir)?;
    let mut settings = Settings { log_format: args.log_format, ..Settings::default() };
    // The services are on this machine.
    settings.router.outbound.allow_networks =
        [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].map(Into::into).to_vec();
    settings.log.directory = data;
    let log = start_log(&settings)?;
    let mut signals = Signals::new()?;
    let relay = tokio::select! {
        relay = start(settings, args.listen, &log) => relay?,
        name = signals.next() => bail!("stopped by {name} while starting"),
    };
    let address = reachable(relay.address().context("the server does not listen")?);
    let mut running = Vec::new();
    for profile in &SERVICES {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let service = RunningService::start(profile, &format!("http://{address}"), listen).await?;
        tracing::info!(service = profile.name, address = %service.address, "service started");
        running.push(service);
    }
    let page = format!("http://{address}/?document=demo&user=you");
    tracing::info!(%address, page, "the demo is running; Ctrl-C stops it");
    let opened = async {
        if !args.no_open {
            open(&page).await;
        }
        std::future::pending::<()>().await;
    };
    let name = tokio::select! {
        name = signals.next() => name,
        () = opened => bail!("the page's opener does not end"),
    };
    tracing::info!(signal = name, "stopping");
    let stopped = tokio::select! {
        stopped = stop(running, relay) => stopped?,
        () = signals.second_interrupt() => bail!("stopped at once by a second Ctrl-C (SIGINT)"),
    };
    tracing::info!(complete = stopped.complete, "stopped");
    if let Some(temporary) = temporary {
        temporary.close().context("the demo's temporary data cannot be removed")?;
    }
    check_stop(&stopped)
}

/// Returns the directory of the events: a temporary one, unless one is named.
fn data_directory(named: Option<PathBuf>) -> anyhow::Result<(PathBuf, Option<TempDir>)> {
    if let Some(data) = named {
        return Ok((data, None));
    }
    let temporary = tempfile::Builder::new().prefix("relay-demo-").tempdir();
    let temporary = temporary.context("no temporary directory can be made; name one with --data-dir")?;
    Ok((temporary.path().join("relay-data"), Some(temporary)))
}

/// Starts the server at `listen`, or else at the usual address, or else at any free port.
async fn start(
    settings: Settings,
    listen: Option<SocketAddr>,
    log: &ServerLog,
) -> anyhow::Result<RelayService> {
    let at = |listen| {
        let mut config = Settings { listen, ..settings.clone() }.service()?;
        log.attach(&mut config);
        anyhow::Ok(config)
    };
    match RelayService::start(at(listen.unwrap_or(USUAL))?).await {
        Err(StartError::Listen { .. }) if listen.is_none() => {
            let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            Ok(RelayService::start(at(free)?).await?)
        }
        started => Ok(started?),
    }
}

/// Stops the services, all at once, and then the server.
async fn stop(running: Vec<RunningService>, relay: RelayService) -> anyhow::Result<Stopped> {
    let ended = futures_util::future::join_all(running.into_iter().map(RunningService::stop)).await;
    let stopped = relay.stop().await?;
    ended.into_iter().collect::<anyhow::Result<()>>()?;
    Ok(stopped)
}

/// Opens `page` in the desktop's browser, if there is one. The log has the page's address in any case.
async fn open(page: &str) {
    for opener in OPENERS {
        let mut command = Command::new(opener);
        command.arg(page).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if command.status().await.is_ok_and(|status| status.success()) {
            return;
        }
    }
    tracing::info!(page, "no browser could be opened; open the page yourself");
}
