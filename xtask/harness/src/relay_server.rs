//! The development or release build of the server, with a temporary data directory.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

/// The time that a server has to start and to stop.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A running server. Dropping it kills it; [`RelayServer::stop`] ends it as an operator would.
pub(crate) struct RelayServer {
    child: Child,
    address: String,
    _data: TempDir,
}

impl RelayServer {
    /// Starts `program` on a free port and waits until it prints its address.
    pub(crate) fn start(program: &Path) -> anyhow::Result<Self> {
        Self::start_with(program, &[])
    }

    /// Starts `program` as [`RelayServer::start`] does, with settings such as `ws.echo=true`.
    pub(crate) fn start_with(program: &Path, settings: &[&str]) -> anyhow::Result<Self> {
        let data = TempDir::new()?;
        let mut command = Command::new(program);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json", "--data-dir"])
            .arg(data.path());
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        command.current_dir(data.path()).stdin(Stdio::null()).stdout(Stdio::piped());
        // A developer's own settings stay out of the measurement.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RELAY_"))
        {
            command.env_remove(name);
        }
        let mut child = command.spawn().with_context(|| format!("{} does not start", program.display()))?;
        let output = child.stdout.take().context("the server has no output")?;
        let mut server = Self { child, address: String::new(), _data: data };
        let (found, address) = mpsc::sync_channel(1);
        // Reads to the end, so that the server never waits for a full pipe; ends when the server does.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some(address) = listening_address(&line) {
                    // Only the first is waited for.
                    let _ = found.try_send(address.to_owned());
                }
                if line.contains(r#""level":"ERROR""#) {
                    eprintln!("server: {line}");
                }
            }
        });
        server.address = address.recv_timeout(TIMEOUT).context("the server did not print its address")?;
        Ok(server)
    }

    /// Returns the server's `ws://` address.
    pub(crate) fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Ends the server with SIGTERM.
    ///
    /// # Errors
    /// When it does not end in time, or not with success.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        ensure!(status.success(), "the server cannot be signalled: {status}");
        let ended: ExitStatus = wait(&mut self.child)?;
        ensure!(ended.success(), "the server ended with {ended}");
        Ok(())
    }
}

fn wait(child: &mut Child) -> anyhow::Result<ExitStatus> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            bail!("the server did not end within {} s of SIGTERM", TIMEOUT.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for RelayServer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the address in a log line such as `{"message":"listening","address":"127.0.0.1:4100"}`.
fn listening_address(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once(r#""address":""#)?;
    rest.split_once('"').map(|(address, _)| address)
}

#[cfg(test)]
mod tests {
    use super::listening_address;

    #[test]
    fn the_address_is_read_from_the_log() {
        let line =
            r#"{"level":"INFO","message":"listening","address":"127.0.0.1:4100","durability":"Synced"}"#;
        assert_eq!(listening_address(line), Some("127.0.0.1:4100"));
        assert_eq!(listening_address(r#"{"message":"opened the log"}"#), None);
    }
}
