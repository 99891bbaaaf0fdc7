//! The list of tasks with their options: the help is made from it, and `main` matches it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

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
    /// public items, packaging, licences.
    /// Needs Rust and a C compiler; uses cargo-nextest and cargo-deny where they are installed. The end-to-end tests
    /// need node, npm and chromium, and two others python3: without them they are skipped by name, but with `CI=true`
    /// that is a failure.
    Ci,
    /// Runs all tests: unit, integration, documentation and end-to-end.
    ///
    /// Needs Rust and a C compiler; uses cargo-nextest where it is installed. The end-to-end tests need node, npm and
    /// chromium, and two others python3: without them they are skipped by name, but with `CI=true` that is a failure.
    Test,
    /// Runs the crates' own benchmarks, or puts the whole server and its peers under load.
    #[command(subcommand)]
    Bench(BenchTask),
    /// Runs the cases of the Autobahn testsuite, and two more WebSocket clients, against the real server.
    ///
    /// Writes `docs/conformance.md`, and fails when a case fails. Needs Rust, a C compiler and python3 with venv, which
    /// gets its packages from `PyPI` into the target folder; node and npm for the client `ws`. A missing program is
    /// skipped by name, but with `CI=true` that is a failure.
    #[command(disable_help_flag = true)]
    Conformance {
        /// Options of the harness, which `--help` lists.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Checks that every crate depends only on layers below its own.
    ///
    /// Needs Rust alone.
    Layers,
    /// Checks the repository's text: module documentation, doc comments, links between files, and paths in documents.
    ///
    /// Needs Rust alone.
    Tidy(TidyOptions),
    /// Writes the list of each crate's public items, or checks the lists.
    ///
    /// Needs Rust alone. The lists name the compiler that they were made with; with another one the check is skipped.
    Api(ApiOptions),
    /// Plays a recorded editing history through a server and checks the deliveries of every subscriber.
    ///
    /// Builds and starts a server with a temporary data directory, or uses the running one of `--url`. Needs Rust, a C
    /// compiler and a trace of the public editing-traces collection, sequential or concurrent. Every subscriber must
    /// get every edit once and in order, and end with the trace's final text.
    #[command(disable_help_flag = true)]
    Replay {
        /// Trace and options of the harness, which `--help` lists.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
}

#[derive(Subcommand)]
pub(crate) enum BenchTask {
    /// Runs the crates' own benchmarks.
    ///
    /// Needs Rust, a C compiler and an otherwise idle machine. The options are handed to criterion.
    Criterion {
        /// Filters and options of criterion, for instance `publish --quick`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Puts the server and its peers under the same load over real sockets, side by side.
    ///
    /// Writes a table and charts to docs/benchmarks. Needs Rust, a C compiler and an otherwise idle machine; fetches the
    /// peers from npm, `PyPI` and the crates' registry into ignored folders, for which it needs node, npm and python3. A
    /// peer that lacks one of them is named and left out.
    #[command(disable_help_flag = true)]
    Load {
        /// Options of the harness, which `--help` lists.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
}

#[derive(Args)]
pub(crate) struct TidyOptions {
    /// Lists only the doc comments that open with a headless clause, of all files below a path or of one crate.
    #[arg(long, value_name = "PATH")]
    #[expect(clippy::option_option, reason = "clap's form of an option whose value may be left out")]
    pub(crate) docs: Option<Option<PathBuf>>,
}

#[derive(Args)]
pub(crate) struct ApiOptions {
    /// Compares the lists with the crates and writes nothing.
    #[arg(long)]
    pub(crate) check: bool,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{BenchTask, Cli, Task};

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_harness_gets_its_options_as_they_were_typed() {
        let words = ["xtask", "bench", "load", "--quick", "--systems=relay", "--help"];
        let task = Cli::parse_from(words).task;
        assert!(matches!(task, Task::Bench(BenchTask::Load { options }) if options == words[3..]));
    }
}
