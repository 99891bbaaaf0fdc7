//! The arguments of the routing commands.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::client::ServerArgs;

#[derive(Debug, Args)]
pub(crate) struct ServicesArgs {
    /// List only services with this capability.
    #[arg(long)]
    pub(crate) capability: Option<String>,
    /// List only services in this state: unknown, healthy, degraded, unhealthy, draining or gone.
    #[arg(long)]
    pub(crate) state: Option<String>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct TargetsArgs {
    #[command(flatten)]
    pub(crate) output: Output,
}

/// The server to ask, and the form of the output.
#[derive(Debug, Args)]
pub(crate) struct Output {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Print the server's answer as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLettersCommand {
    /// List a target's dead letters, the oldest events first.
    List {
        #[command(flatten)]
        target: TargetArg,
        /// The most dead letters to list, 1 to 1000.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// List only dead letters after this one.
        #[arg(long, value_name = "ID")]
        after: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Show a dead letter with its event and every attempt, as JSON.
    Show {
        /// The id of the dead letter.
        id: String,
        #[command(flatten)]
        target: TargetArg,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Retry one dead letter, or all.
    Retry(Chosen),
    /// Drop one dead letter for good, or all.
    Drop(Chosen),
}

#[derive(Debug, Args)]
pub(crate) struct TargetArg {
    /// The target.
    #[arg(long)]
    pub(crate) target: String,
}

/// One dead letter of a target, or all.
#[derive(Debug, Args)]
#[group(id = "which", required = true, multiple = false, args = ["id", "all"])]
pub(crate) struct Chosen {
    /// The id of the dead letter.
    pub(crate) id: Option<String>,
    /// Take all dead letters of the target.
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) target: TargetArg,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct ReplayArgs {
    #[command(subcommand)]
    pub(crate) command: Option<ReplayCommand>,
    /// The target that history is sent to.
    #[arg(long, required = true)]
    pub(crate) target: Option<String>,
    /// Begin with the event at this offset, or with the first of this time (such as 2026-01-31T12:00:00Z) or later.
    #[arg(long, value_name = "OFFSET|TIME", required = true)]
    pub(crate) from: Option<String>,
    /// Send only events of this document.
    #[arg(long)]
    pub(crate) document: Option<String>,
    /// The most events per second.
    #[arg(long)]
    pub(crate) rate: Option<NonZeroU32>,
    /// Return only when all events are queued, or the replay is cancelled.
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReplayCommand {
    /// List a target's replays.
    List {
        #[command(flatten)]
        target: TargetArg,
        #[command(flatten)]
        output: Output,
    },
    /// End a replay. Its events that are queued already are still delivered.
    Cancel {
        /// The id of the replay.
        id: u64,
        #[command(flatten)]
        target: TargetArg,
        #[command(flatten)]
        server: ServerArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DecisionsArgs {
    /// List only decisions about events of this document.
    #[arg(long)]
    pub(crate) document: Option<String>,
    /// List only decisions about this event.
    #[arg(long, value_name = "UUID")]
    pub(crate) event: Option<String>,
    /// List only decisions for this target.
    #[arg(long)]
    pub(crate) target: Option<String>,
    /// List only decisions by this rule.
    #[arg(long)]
    pub(crate) rule: Option<String>,
    /// List only decisions with this outcome: `delivered`, `retrying`, `dead_lettered`, `expired`, `lost`, `no_match`, `no_target` or `cycle`.
    #[arg(long)]
    pub(crate) outcome: Option<String>,
    /// List only decisions at this time or later, for instance 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<String>,
    /// List only decisions before this time.
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<String>,
    /// The number of decisions to list, 1 to 1000: the newest ones, in the order of their times.
    #[arg(long, conflicts_with = "follow")]
    pub(crate) limit: Option<usize>,
    /// Print decisions as they are made, until interrupted.
    #[arg(long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RulesCommand {
    /// Print the rules in force, as they were written.
    Show {
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Check a file without a server. A name that ends in .json is JSON, any other TOML.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Replace the rules in force with those in a file.
    Put {
        /// The file.
        file: PathBuf,
        /// Replace the rules only if this version is in force.
        #[arg(long, value_name = "VERSION")]
        if_version: Option<u64>,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Return to the rules of the server's configuration.
    Reset {
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Show the routes of a possible event, with the reasons. Nothing is delivered.
    DryRun {
        /// The event's kind.
        #[arg(long)]
        kind: String,
        /// The event's document.
        #[arg(long)]
        document: String,
        /// The event's payload, JSON.
        #[arg(long, default_value = "{}")]
        payload: String,
        /// The author: `user:<id>`, `service:<name>` or system.
        #[arg(long)]
        actor: Option<String>,
        /// Try the rules in this file (TOML) instead of those in force.
        #[arg(long, value_name = "FILE")]
        rules: Option<PathBuf>,
        #[command(flatten)]
        output: Output,
    },
}
