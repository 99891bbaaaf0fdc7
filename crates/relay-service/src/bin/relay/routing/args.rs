//! What the commands of routing take.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::ServerArgs;

#[derive(Debug, Args)]
pub(crate) struct ServicesArgs {
    /// Those that can do this.
    #[arg(long)]
    pub(crate) capability: Option<String>,
    /// Those in this state: unknown, healthy, degraded, unhealthy, draining or gone.
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

/// Where to ask, and how to show the answer.
#[derive(Debug, Args)]
pub(crate) struct Output {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Print what the server answers, JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLettersCommand {
    /// List a target's dead letters, the oldest events first.
    List {
        #[command(flatten)]
        target: TargetArg,
        /// How many, 1 to 1000.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Those after this one.
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
    /// Try one again, or all.
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
    /// The target that gets history again.
    #[arg(long, required = true)]
    pub(crate) target: Option<String>,
    /// Begin with the event at this offset, or with the first of this time (such as 2026-01-31T12:00:00Z) or later.
    #[arg(long, value_name = "OFFSET|TIME", required = true)]
    pub(crate) from: Option<String>,
    /// Events of this document alone.
    #[arg(long)]
    pub(crate) document: Option<String>,
    /// Events per second at most.
    #[arg(long)]
    pub(crate) rate: Option<NonZeroU32>,
    /// Return when all of it is queued, or the replay was cancelled.
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
    /// End a replay; what of it is queued is still delivered.
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
    /// About events of this document.
    #[arg(long)]
    pub(crate) document: Option<String>,
    /// About this event.
    #[arg(long, value_name = "UUID")]
    pub(crate) event: Option<String>,
    /// For this target.
    #[arg(long)]
    pub(crate) target: Option<String>,
    /// By this rule.
    #[arg(long)]
    pub(crate) rule: Option<String>,
    /// With this outcome: `delivered`, `retrying`, `dead_lettered`, `expired`, `lost`, `no_match`, `no_target` or `cycle`.
    #[arg(long)]
    pub(crate) outcome: Option<String>,
    /// Made then or later, for instance 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) from: Option<String>,
    /// Made before then.
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<String>,
    /// How many of the newest, 1 to 1000.
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
    /// Replace the rules in force by those in a file.
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
    /// Tell what would become of an event, and why. Nothing is delivered.
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
        /// Who does it: `user:<id>`, `service:<name>` or system.
        #[arg(long)]
        actor: Option<String>,
        /// Ask the rules in this file (TOML) in the place of those in force.
        #[arg(long, value_name = "FILE")]
        rules: Option<PathBuf>,
        #[command(flatten)]
        output: Output,
    },
}
