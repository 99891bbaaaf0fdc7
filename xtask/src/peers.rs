//! Programs that this workspace uses and that are not part of a Rust installation.

use std::env;
use std::path::{Path, PathBuf};

/// A program that may be missing, and the line that installs it.
pub(crate) struct Peer {
    pub(crate) names: &'static [&'static str],
    pub(crate) install: &'static str,
}

pub(crate) const NODE: Peer = Peer { names: &["node"], install: "apt-get install nodejs" };
pub(crate) const NPM: Peer = Peer { names: &["npm"], install: "apt-get install npm" };
pub(crate) const PYTHON: Peer =
    Peer { names: &["python3"], install: "apt-get install python3-pip python3-venv" };
pub(crate) const CHROMIUM: Peer =
    Peer { names: &["chromium", "chromium-browser", "google-chrome"], install: "apt-get install chromium" };
pub(crate) const NEXTEST: Peer =
    Peer { names: &["cargo-nextest"], install: "cargo install --locked cargo-nextest" };
pub(crate) const DENY: Peer = Peer { names: &["cargo-deny"], install: "cargo install --locked cargo-deny" };

impl Peer {
    /// Where the program is, if it is on the search path.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        let path = env::var_os("PATH")?;
        env::split_paths(&path).flat_map(|folder| self.names.iter().map(move |name| folder.join(name))).find(
            |p| {
                // A folder of that name is not the program.
                Path::is_file(p)
            },
        )
    }

    /// The line for a reader whose machine lacks it.
    pub(crate) fn missing(&self) -> String {
        format!("{} is not installed; to install it: {}", self.names[0], self.install)
    }
}

/// Whether this runs where nobody looks, and a missing peer must not pass unnoticed.
pub(crate) fn in_ci() -> bool {
    env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1")
}
