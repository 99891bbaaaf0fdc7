//! The command line: the commands, their options and their help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::client::ServerArgs;
use crate::routing::args::{
    DeadLettersCommand, DecisionsArgs, ReplayArgs, RulesCommand, ServicesArgs, TargetsArgs,
};
use crate::settings::error::SettingsError;
use crate::settings::layers::{Layered, ValueSource};
#[cfg(feature = "demo")]
use crate::settings::{LogFormat, value::SettingValue as _};

/// Events of shared documents: ordered, kept, and sent to every client that follows.
#[derive(Debug, Parser)]
#[command(name = "relay", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: RelayCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RelayCommand {
    /// Run the server.
    Serve(SettingsArgs),
    /// Run a server with four example services, and open a page that shows their results while you type.
    #[cfg(feature = "demo")]
    Demo(DemoArgs),
    /// Follow a document: print its events, one line each, until interrupted.
    Tail(TailArgs),
    /// Publish one event, and print its receipt.
    Publish(PublishArgs),
    /// Show the counters and gauges of a server.
    Stats(StatsArgs),
    /// List the services that have registered.
    Services(ServicesArgs),
    /// List the targets, with the events that wait for each.
    Targets(TargetsArgs),
    /// Show, check and change the rules by which events go to services.
    #[command(subcommand)]
    Rules(RulesCommand),
    /// Show the decisions about events, with their reasons.
    Decisions(DecisionsArgs),
    /// Show, retry or drop the events that targets did not accept.
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Send history to a target again.
    Replay(ReplayArgs),
    /// Check, export or repair a log on disk that no server has open.
    #[command(subcommand)]
    Log(LogCommand),
    /// Print the configuration in force, with the source of each value, and check it as `relay serve` does.
    Config(ConfigArgs),
}

/// The sources of the configuration of `relay serve`. Later ones win: defaults, file, environment, flags.
#[derive(Debug, Args)]
pub(crate) struct SettingsArgs {
    /// The TOML file. Without it `relay.toml` is read if it exists.
    #[arg(long, value_name = "FILE", env = "RELAY_CONFIG")]
    config: Option<PathBuf>,
    /// The address to listen at, for instance 127.0.0.1:7400; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// The PEM file with the certificate, to serve over TLS. SIGHUP reads it again.
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// The PEM file with the certificate's private key.
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// The directory of the log.
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<String>,
    /// The durability of an event before it is acknowledged and shown: memory (gone when the server stops), logged (written), synced (on disk).
    #[arg(long, value_name = "LEVEL")]
    durability: Option<String>,
    /// The format of the server's own log: pretty or json.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Any key of the configuration, for instance --set `ws.max_topics=50`; `relay config` shows all. Repeatable.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// The file that is read when none is named.
const DEFAULT_FILE: &str = "relay.toml";
/// Variables that are not keys: this command line reads them itself.
const RESERVED_VARIABLES: [&str; 3] = ["RELAY_CA", "RELAY_CONFIG", "RELAY_URL"];

impl SettingsArgs {
    /// Reads all layers, one over the other.
    pub(crate) fn load(&self) -> Result<Layered, SettingsError> {
        let mut layered = Layered::defaults();
        let default_file = PathBuf::from(DEFAULT_FILE);
        match &self.config {
            Some(file) => layered.file(file)?,
            None if default_file.exists() => layered.file(&default_file)?,
            None => {}
        }
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        });
        layered.environment(variables, &RESERVED_VARIABLES)?;
        for assignment in &self.set {
            layered.assignment(assignment)?;
        }
        let flags = [
            ("listen", "--listen", &self.listen),
            ("tls.cert", "--tls-cert", &self.tls_cert),
            ("tls.key", "--tls-key", &self.tls_key),
            ("data_dir", "--data-dir", &self.data_dir),
            ("durability", "--durability", &self.durability),
            ("log_format", "--log-format", &self.log_format),
        ];
        for (key, flag, value) in flags {
            if let Some(value) = value {
                layered.set(key, value, ValueSource::Flag(flag.to_owned()))?;
            }
        }
        Ok(layered)
    }
}

/// The demo.
#[cfg(feature = "demo")]
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// The address to listen at; port 0 takes a free one. Without it: 127.0.0.1:7400, or a free port when that is taken.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<std::net::SocketAddr>,
    /// The directory of the events. Without it they are gone when the demo ends.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Do not open the page; its address is in the log.
    #[arg(long)]
    pub(crate) no_open: bool,
    /// The format of the log: pretty or json.
    #[arg(long, value_name = "FORMAT", default_value = "pretty", value_parser = log_format)]
    pub(crate) log_format: LogFormat,
}

#[cfg(feature = "demo")]
fn log_format(text: &str) -> Result<LogFormat, String> {
    LogFormat::read(text).ok_or_else(|| format!("it must be {}", LogFormat::allowed()))
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    /// Print the reference of all keys instead, as Markdown.
    #[arg(long)]
    pub(crate) reference: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    /// The document.
    pub(crate) document: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Begin after this event; 0 begins with the earliest that is kept. Without it: only new events.
    #[arg(long, value_name = "SEQ")]
    pub(crate) after_seq: Option<u64>,
    /// Print each event's whole JSON envelope.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PublishArgs {
    /// The document.
    pub(crate) document: String,
    /// The event's kind, such as document.saved, or your own beginning with x-.
    pub(crate) kind: String,
    /// The payload, JSON; `-` reads it from standard input.
    pub(crate) payload: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// The author: `user:<id>`, `service:<name>` or system.
    #[arg(long)]
    pub(crate) actor: Option<String>,
    /// The event's id, a UUID: to publish the same id again makes no second event.
    #[arg(long, value_name = "UUID")]
    pub(crate) id: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Print all numbers as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print the numbers again every two seconds, until interrupted.
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Read all of a log and report damage. Changes nothing.
    Check(LogArgs),
    /// Print every event that can be read, one JSON envelope per line, in the order of the log.
    Export(LogArgs),
    /// Make a damaged log usable again, keeping every event that can be read.
    Repair(LogArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// The log's directory, for instance relay-data.
    pub(crate) directory: PathBuf,
}
