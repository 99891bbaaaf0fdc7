//! The arguments of the routing commands.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::client::ServerArgs;

#[derive(Debug, Args)]
pub(crate) struct ServicesArgs {
    /// Only those with this capability.
    #[arg(long)]
    pub(crate) capability: Option<String>,
    /// Only those in this state: unknown, healthy, degraded, unhealthy, draining or gone.
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
    /// Print the server's answer, JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLettersCommand {
    /// List a target's dead letters, the oldest events first.
    List {
        #[command(flatten)]
        target: TargetArg,
        /// The most to list, 1 to 1000.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Only those after this one.
        #[arg(long, value_name = "ID")]
        after: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Show one with its event and every attempt, JSON.
    Show {
        /// Its id.
        id: String,
        #[command(flatten)]
        target: TargetArg,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Retry one, or all.
    Retry(Chosen),
    /// Drop one for good, or all.
    Drop(Chosen),
}

#[derive(Debug, Args)]
pub(crate) struct TargetArg {
    /// The target.
    #[arg(long)]
    pub(crate) target: String,
}

/// One dead letter, or all of a target.
#[derive(Debug, Args)]
#[group(id = "which", required = true, multiple = false, args = ["id", "all"])]
pub(crate) struct Chosen {
    /// Its id.
    pub(crate) id: Option<String>,
    /// All of the target's.
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
    /// Only events of this document.
    #[arg(long)]
    pub(crate) document: Option<String>,
    /// The most events per second.
    #[arg(long)]
    pub(crate) rate: Option<NonZeroU32>,
    /// Return only when all of it is queued, or the replay is cancelled.
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
        /// Its id.
        id: u64,
        #[command(flatten)]
        target: TargetArg,
        #[command(flatten)]
        server: ServerArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DecisionsArgs {
    /// Only about events of this document.
    #[arg(long)]
    pub(crate) document: Option<String>,
    /// Only about this event.
    #[arg(long, value_name = "UUID")]
    pub(crate) event: Option<String>,
    /// Only for this target.
    #[arg(long)]
    pub(crate) target: Option<String>,
    /// Only by this rule.
    #[arg(long)]
    pub(crate) rule: Option<String>,
    /// Only with this outcome: `delivered`, `retrying`, `dead_lettered`, `expired`, `lost`, `no_match`, `no_target` or `cycle`.
    #[arg(long)]
    pub(crate) outcome: Option<String>,
    /// Only those made then or later, for instance 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<String>,
    /// Only those made before then.
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<String>,
    /// The most to list, the newest ones, 1 to 1000.
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
        /// Only if this version is in force.
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
    /// Show how an event would be routed, and why. Nothing is delivered.
    DryRun {
        /// The event's kind.
        #[arg(long)]
        kind: String,
        /// Its document.
        #[arg(long)]
        document: String,
        /// Its payload, JSON.
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
