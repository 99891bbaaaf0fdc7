//! A service in this process that takes deliveries over HTTP, and answers as the test says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use tempfile::TempDir;

use super::{PATIENCE, Server};

/// A server that routes by `rules`, also to services on this machine.
pub fn routing_server(data: &TempDir, rules: &str) -> Server {
    routing_server_with(data, rules, &[])
}

/// A server like that of [`routing_server`], with further arguments.
pub fn routing_server_with(data: &TempDir, rules: &str, more: &[&str]) -> Server {
    let path = data.path().join("rules.toml");
    std::fs::write(&path, rules).unwrap();
    let rules = format!("router.rules={}", path.display());
    let mut arguments = vec!["--set", "router.allow_networks=127.0.0.0/8", "--set", &rules];
    arguments.extend(more);
    Server::start_with(data.path(), &arguments)
}

/// A request that a service got.
pub struct Request {
    pub headers: http::HeaderMap,
    pub body: Vec<u8>,
    /// The status that the service answered.
    pub status: u16,
}

/// A service that answers with a status that the test sets.
pub struct Service {
    pub address: SocketAddr,
    status: Arc<AtomicU16>,
    pub requests: Receiver<Request>,
}

impl Service {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let status = Arc::new(AtomicU16::new(200));
        let (sender, requests) = channel();
        let answer = Arc::clone(&status);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (sender, status) = (sender.clone(), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream.unwrap(), &sender, &status));
            }
        });
        Self { address, status, requests }
    }

    pub fn next(&self) -> Request {
        self.requests.recv_timeout(PATIENCE).expect("another request")
    }

    pub fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }
}

fn serve(mut stream: TcpStream, sender: &Sender<Request>, status: &AtomicU16) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut headers = http::HeaderMap::new();
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        }
        let length =
            headers.get("content-length").map_or(0, |length| length.to_str().unwrap().parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let status = status.load(Ordering::SeqCst);
        if sender.send(Request { headers, body, status }).is_err() {
            return;
        }
        let _ = stream.write_all(format!("HTTP/1.1 {status} So\r\ncontent-length: 2\r\n\r\nso").as_bytes());
    }
}
