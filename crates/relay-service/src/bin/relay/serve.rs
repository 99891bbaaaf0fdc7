//! `relay serve`: the server, until a signal stops it.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{bail, ensure};
use relay_core::{Clock as _, SystemClock};
use relay_log::RecoveryReport;
use relay_router::{ActiveRules, Router};
use relay_service::{DroppedLogLines, RelayService, ServiceConfig, StopStep, Stopped};
use relay_tasks::Supervisor;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::SettingsArgs;
use crate::invitation::invitation;
use crate::line_limit::LineLimit;
use crate::log_output::{LogGuard, LogOutput};
use crate::settings::{self, DurabilityLevel, LogFormat, Settings};

pub(crate) async fn serve(args: SettingsArgs) -> anyhow::Result<()> {
    let settings = args.load()?.settings;
    let log = start_log(&settings)?;
    // From here on a signal stops the server; before, it would have ended the process.
    let mut signals = Signals::new()?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut config = settings.clone().service()?;
    log.attach(&mut config);
    let service = tokio::select! {
        service = RelayService::start(config) => service?,
        name = signals.next() => bail!("stopped by {name} while starting"),
    };
    if let Some(recovery) = service.recovery() {
        log_recovery(recovery);
    }
    if let Some(address) = service.address() {
        announce(address, &settings, &log.output);
    }
    let rules = settings.router_rules.clone();
    let name = loop {
        tokio::select! {
            name = signals.next() => break name,
            _ = hangup.recv() => reload(&service, rules.as_deref()).await,
        }
    };
    tracing::info!(signal = name, "stopping");
    let stopped = tokio::select! {
        stopped = service.stop() => stopped?,
        () = signals.second_interrupt() => bail!("stopped at once by a second Ctrl-C (SIGINT)"),
    };
    tracing::info!(complete = stopped.complete, "stopped");
    check_stop(&stopped)
}

/// Fails when the server has given up a step of its own. That clients do not read their answers is no failure of the server.
pub(crate) fn check_stop(stopped: &Stopped) -> anyhow::Result<()> {
    let own = stopped.given_up.iter().filter(|step| **step != StopStep::AnswerRequests);
    let own: Vec<_> = own.map(ToString::to_string).collect();
    ensure!(own.is_empty(), "the stop gave up {}; every acknowledged event is kept", own.join(", "));
    Ok(())
}

/// Logs the report of opening the log, with a warning for each finding that an operator may have to act on.
fn log_recovery(recovery: &RecoveryReport) {
    let last_offset = recovery.last_offset;
    if recovery.created {
        tracing::info!("log created");
    } else {
        tracing::info!(%last_offset, closed_in_order = recovery.clean_shutdown, "log opened");
    }
    if let Some(tail) = &recovery.torn_tail {
        tracing::warn!(
            file = %tail.file.display(),
            position = tail.position,
            bytes = tail.bytes,
            "the log's last write was torn and has been cut off; it was not acknowledged as synced"
        );
    }
    if recovery.without_marker {
        tracing::warn!(
            "the log's commit marker is missing or unreadable, so a loss at the log's very end could not be noticed"
        );
    }
    if recovery.new_epoch {
        tracing::warn!(
            "acknowledged events may be gone, since the machine went down under durability `logged`; \
             every document has a new epoch, so that clients start over"
        );
    }
}

/// Reads the rules and the certificate again.
async fn reload(service: &RelayService, rules: Option<&Path>) {
    if let (Some(router), Some(path)) = (service.router(), rules) {
        match read_rules(router, path).await {
            Ok(in_force) => {
                tracing::info!(version = in_force.version, source = ?in_force.source, "SIGHUP: the rules were read again");
            }
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "SIGHUP: the new rules are not used; the old ones stay"
            ),
        }
    }
    match service.reload_certificate().await {
        Ok(true) => tracing::info!("SIGHUP: the certificate was read again"),
        Ok(false) => tracing::info!(
            "SIGHUP: there is no certificate to read again; nothing else changes while running"
        ),
        Err(error) => tracing::error!(%error, "SIGHUP: the new certificate is not used; the old one stays"),
    }
}

async fn read_rules(router: &Router, path: &Path) -> anyhow::Result<ActiveRules> {
    let path = path.to_owned();
    let document = relay_tasks::call_blocking(move || settings::rules(&path)).await??;
    Ok(router.configure_rules(document).await?)
}

/// The signals that stop the server.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for a second Ctrl-C, with which a user at a terminal ends the server at once. A second SIGTERM has no such
    /// meaning: supervisors send it to a process and to its group alike.
    pub(crate) async fn second_interrupt(&mut self) {
        self.interrupt.recv().await;
    }

    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The log of a running server.
pub(crate) struct ServerLog {
    pub(crate) output: LogOutput,
    dropped: DroppedLogLines,
    supervisor: Supervisor,
    _guard: LogGuard,
}

impl ServerLog {
    /// Lets the service of `config` tell of dropped lines and of the thread that writes them.
    pub(crate) fn attach(&self, config: &mut ServiceConfig) {
        config.dropped_log_lines = self.dropped.clone();
        config.supervisor = self.supervisor.clone();
    }
}

/// Starts the log. Panics go there, too.
pub(crate) fn start_log(settings: &Settings) -> anyhow::Result<ServerLog> {
    let dropped = DroppedLogLines::default();
    let supervisor = Supervisor::default();
    let (output, guard) = LogOutput::start(std::io::stdout(), dropped.clone(), &supervisor.group())?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&settings.log_filter.0)?)
        .with_ansi(std::io::stdout().is_terminal())
        .with_writer(output.clone());
    let limit = LineLimit::new(output.clone());
    match settings.log_format {
        LogFormat::Pretty => log.with_target(false).finish().with(limit).init(),
        LogFormat::Json => log.json().flatten_event(true).finish().with(limit).init(),
    }
    // The usual hook writes to standard error, which may block as standard output may.
    let (format, panics) = (settings.log_format, output.clone());
    std::panic::set_hook(Box::new(move |panic| report_panic(panic, format, &panics)));
    Ok(ServerLog { output, dropped, supervisor, _guard: guard })
}

/// Logs a panic, whatever the log's filter is, and waits until the line is written, but not for long. After some panics the
/// process aborts.
fn report_panic(panic: &impl Display, format: LogFormat, output: &LogOutput) {
    let time = SystemClock::new().wall();
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    let message = format!("a thread panicked: {panic}");
    let line = match format {
        LogFormat::Pretty => format!("{time} ERROR {message}\n{}", backtrace.unwrap_or_default()),
        LogFormat::Json => {
            let mut line = json!({"timestamp": time, "level": "ERROR", "message": message});
            if let Some(backtrace) = backtrace {
                line["backtrace"] = backtrace.into();
            }
            format!("{line}\n")
        }
    };
    output.push(line.as_bytes());
    output.flush();
}

fn announce(address: SocketAddr, settings: &Settings, output: &LogOutput) {
    tracing::info!(%address, durability = ?settings.durability, "listening");
    if !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "there is no authentication yet: every client that reaches this address may read and write every document"
        );
    }
    if settings.durability == DurabilityLevel::Memory {
        tracing::warn!("durability is `memory`: all events are gone when the server stops");
    }
    match settings.log_format {
        LogFormat::Pretty => output.push(invitation(address, settings).as_bytes()),
        LogFormat::Json => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use serde_json::Value;

    use super::*;

    /// An output that keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn reported(format: LogFormat) -> String {
        let kept = Kept::default();
        let (output, _guard) =
            LogOutput::start(kept.clone(), DroppedLogLines::default(), &Supervisor::default().group())
                .unwrap();
        report_panic(&"at a \"place\":\nfor a reason", format, &output);
        String::from_utf8(kept.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_panic_is_written_when_the_report_returns() {
        let plain = reported(LogFormat::Pretty);
        assert!(plain.contains(" ERROR a thread panicked: at a \"place\":\nfor a reason\n"), "{plain}");
        let json = reported(LogFormat::Json);
        assert_eq!(json.matches('\n').count(), 1, "{json}");
        let line: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(line["level"], "ERROR");
        assert_eq!(line["message"], "a thread panicked: at a \"place\":\nfor a reason");
    }
}
