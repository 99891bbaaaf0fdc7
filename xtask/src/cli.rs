//! Every task and its options: the one list from which the help is made and which `main` matches.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::load::{System, Workload};

/// The tasks of this workspace.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) task: Task,
}

#[derive(Subcommand)]
pub(crate) enum Task {
    /// Runs everything that continuous integration runs, and sums it up.
    ///
    /// Format, clippy, layers, tidiness, all tests, WebSocket conformance, a short replay, a little load, documentation,
    /// packaging, licences.
    /// Needs Rust and a C compiler; uses cargo-nextest and cargo-deny where they are installed. The end-to-end tests
    /// need node, npm and chromium: without them they are skipped by name, but with `CI=true` that is a failure.
    Ci,
    /// Runs all tests: unit, integration, documentation and end-to-end.
    ///
    /// Needs Rust and a C compiler; uses cargo-nextest where it is installed. The end-to-end tests need node, npm and
    /// chromium: without them they are skipped by name, but with `CI=true` that is a failure.
    Test,
    /// Measures: the crates' own benchmarks, or the whole server under load beside what one could use instead.
    #[command(subcommand)]
    Bench(BenchTask),
    /// One process of the load generator, which `bench load` starts.
    #[command(hide = true)]
    BenchWorker { assignment: String },
    /// The baseline, which `bench load` starts.
    #[command(hide = true)]
    BenchBaseline { message_bytes: usize },
    /// Runs the cases of the Autobahn testsuite, and two more WebSocket clients, against the real server.
    ///
    /// Writes `docs/conformance.md`, and fails when a case fails. Needs Rust, a C compiler and python3 with venv, which
    /// gets its packages from `PyPI` into the target folder; node and npm for the client `ws`. What is missing is skipped
    /// by name, but with `CI=true` that is a failure.
    Conformance(ConformanceOptions),
    /// Checks that every crate depends only on layers below its own.
    ///
    /// Needs Rust alone.
    Layers,
    /// Checks the repository's text: module documentation, doc comments, and links between files.
    ///
    /// Needs Rust alone.
    Tidy(TidyOptions),
    /// Plays a recorded editing history through a server and checks what every subscriber gets.
    ///
    /// Builds and starts a server with a temporary data directory, or uses the running one of `--url`. Needs Rust, a C
    /// compiler and a trace of the public editing-traces collection, sequential or concurrent. Every subscriber must
    /// get every edit once and in order, and end with the trace's final text.
    Replay(ReplayOptions),
}

#[derive(Subcommand)]
pub(crate) enum BenchTask {
    /// Runs the crates' own benchmarks.
    ///
    /// Needs Rust, a C compiler and an otherwise idle machine. What is given is handed to criterion.
    Criterion {
        /// Filters and options of criterion, for instance `publish --quick`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Puts the server and its peers under the same load over real sockets, side by side.
    ///
    /// Writes a table and charts to docs/benchmarks. Needs Rust, a C compiler and an otherwise idle machine; fetches the
    /// peers from npm, `PyPI` and the crates' registry into ignored folders, for which it needs node, npm and python3: a peer
    /// for which something is missing is named and left out.
    Load(LoadOptions),
}

#[derive(Args, Clone)]
pub(crate) struct LoadOptions {
    /// Short and small: shows that everything works, and measures nothing worth keeping.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Seconds of each measured phase; 5 when absent, 1 with `--quick`.
    #[arg(long, value_parser = positive)]
    pub(crate) seconds: Option<f64>,
    /// Only these workloads.
    #[arg(long, value_delimiter = ',')]
    pub(crate) workloads: Vec<Workload>,
    /// Only these systems.
    #[arg(long, value_delimiter = ',')]
    pub(crate) systems: Vec<System>,
    /// Measures this build of the server instead of the workspace's.
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) relay: Option<PathBuf>,
    /// Where the table, the raw results and the charts go; docs/benchmarks when absent, nowhere with `--quick`.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct TidyOptions {
    /// Lists only the doc comments that open with a headless clause, of all files below a path or of one crate.
    #[arg(long, value_name = "PATH")]
    #[expect(clippy::option_option, reason = "clap's form of an option whose value may be left out")]
    pub(crate) docs: Option<Option<PathBuf>>,
}

#[derive(Args)]
pub(crate) struct ConformanceOptions {
    /// Uses the development build, and leaves out or shortens the cases that send much. Writes nothing.
    #[arg(long)]
    pub(crate) quick: bool,
}

#[derive(Args, Clone)]
pub(crate) struct ReplayOptions {
    /// The editing history, JSON or gzipped JSON.
    pub(crate) trace: PathBuf,
    /// Connections that follow each document, beside its author's.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) subscribers: u32,
    /// Documents into which the history is played at the same time, each by its own author.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) documents: u32,
    /// Edits per second and document; as fast as the server takes them when absent.
    #[arg(long, value_parser = positive)]
    pub(crate) rate: Option<f64>,
    /// Plays only the first so many edits.
    #[arg(long, value_name = "COUNT")]
    pub(crate) edits: Option<usize>,
    /// Edits of one author that may be unacknowledged at a time.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) window: u32,
    /// A running server, for instance `ws://127.0.0.1:7400`; one is started when absent.
    #[arg(long)]
    pub(crate) url: Option<String>,
    /// Uses the development build: quick to build, slow to run.
    #[arg(long)]
    pub(crate) dev: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err(format!("`{text}` is not a number above zero")),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::Cli;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_cannot_be_measured_is_named() {
        let wrong = |argument: &str| {
            let words = ["xtask", "bench", "load", argument];
            Cli::try_parse_from(words).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(wrong("--seconds=0").contains("not a number above zero"));
        assert!(wrong("--systems=redis").contains("socket-io"), "{}", wrong("--systems=redis"));
        assert!(wrong("--workloads=none").contains("join-storm"), "{}", wrong("--workloads=none"));
    }
}
