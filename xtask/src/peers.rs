//! Programs that this workspace uses and that are not part of a Rust installation.

use std::env;
use std::path::{Path, PathBuf};

/// A program that may be missing, and the line that installs it.
pub struct Peer {
    names: &'static [&'static str],
    /// The command that installs the program on Debian, or with cargo.
    pub install: &'static str,
}

/// The JavaScript runtime of the end-to-end tests and of two peers.
pub const NODE: Peer = Peer { names: &["node"], install: "apt-get install nodejs" };
/// The package manager of [`NODE`].
pub const NPM: Peer = Peer { names: &["npm"], install: "apt-get install npm" };
/// The Python of the conformance tests, with `venv`.
pub const PYTHON: Peer = Peer { names: &["python3"], install: "apt-get install python3-pip python3-venv" };
/// The browser of the end-to-end tests.
pub const CHROMIUM: Peer =
    Peer { names: &["chromium", "chromium-browser", "google-chrome"], install: "apt-get install chromium" };
/// A quicker runner of Rust's tests.
pub const NEXTEST: Peer = Peer { names: &["cargo-nextest"], install: "cargo install --locked cargo-nextest" };
/// The check of licences and advisories.
pub const DENY: Peer = Peer { names: &["cargo-deny"], install: "cargo install --locked cargo-deny" };

impl Peer {
    /// Returns the path of the program, if it is on the search path.
    pub fn find(&self) -> Option<PathBuf> {
        let path = env::var_os("PATH")?;
        env::split_paths(&path).flat_map(|folder| self.names.iter().map(move |name| folder.join(name))).find(
            |p| {
                // A folder of that name is not the program.
                Path::is_file(p)
            },
        )
    }

    /// Returns the line for a reader whose machine lacks the program.
    pub fn missing(&self) -> String {
        format!("{} is not installed; to install it: {}", self.names[0], self.install)
    }
}

/// Returns a line for each program that is not on the search path.
pub fn missing(peers: &[Peer]) -> Vec<String> {
    peers.iter().filter(|peer| peer.find().is_none()).map(Peer::missing).collect()
}

/// Tells if this runs in continuous integration, where a missing peer is a failure.
pub fn in_ci() -> bool {
    env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1")
}
