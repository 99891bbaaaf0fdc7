//! TLS over real sockets: the certificate, reading it again, and clients that do not use TLS.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::{self, PATIENCE, Server, failure, relay, run, success};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedKey, DnType, IsCa, Issuer, KeyPair,
    generate_simple_self_signed,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// A directory for a server, with the files of its certificate in it.
struct Home {
    directory: TempDir,
}

impl Home {
    fn new() -> Self {
        Self { directory: support::data() }
    }

    fn cert(&self) -> PathBuf {
        self.directory.path().join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.directory.path().join("key.pem")
    }

    /// Puts a new certificate for `localhost` into the files, and returns what a client must trust.
    fn renew(&self) -> CertificateDer<'static> {
        let CertifiedKey { cert, signing_key } = certificate();
        std::fs::write(self.cert(), cert.pem()).unwrap();
        std::fs::write(self.key(), signing_key.serialize_pem()).unwrap();
        cert.der().clone()
    }

    fn serve(&self, more: &[&str]) -> Server {
        let (cert, key) = (self.cert(), self.key());
        let mut arguments = vec!["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
        arguments.extend(["--durability", "memory"]);
        arguments.extend(more);
        Server::start_with(self.directory.path(), &arguments)
    }

    /// Starts a server with these files, which must fail, and returns its error.
    fn refused(&self) -> String {
        let output = relay()
            .args(["serve", "--durability", "memory", "--listen", "127.0.0.1:0", "--tls-cert"])
            .arg(self.cert())
            .arg("--tls-key")
            .arg(self.key())
            .current_dir(self.directory.path())
            .output();
        failure(&output.unwrap())
    }
}

fn certificate() -> CertifiedKey<KeyPair> {
    generate_simple_self_signed(["localhost".to_owned()]).unwrap()
}

fn plain(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A connection on which the keys are agreed, for a client that trusts `trusted` alone.
fn connect(server: &Server, trusted: &CertificateDer<'static>) -> io::Result<TlsStream> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = plain(server);
    tls.complete_io(&mut stream)?;
    Ok(StreamOwned::new(tls, stream))
}

/// Sends one request over a connection and returns its answer.
fn ask(mut stream: TlsStream, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Reads the server's numbers over TLS until the one at `pointer` is `expected`.
fn counted(server: &Server, trusted: &CertificateDer<'static>, pointer: &str, expected: &Value) {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let answer = ask(connect(server, trusted).unwrap(), "/v1/stats");
        let stats: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        if stats.pointer(pointer) == Some(expected) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "not {expected} at {pointer}: {stats:#}");
    }
}

fn open_socket(stream: TlsStream) -> WebSocket<TlsStream> {
    let url = "wss://localhost/socket/websocket?vsn=2.0.0&user=ada";
    tungstenite::client(url, stream).unwrap().0
}

/// Sends a message, and returns the payload of the reply to it.
fn exchange(socket: &mut WebSocket<TlsStream>, message: &Value) -> Value {
    socket.send(Message::text(message.to_string())).unwrap();
    loop {
        let Message::Text(text) = socket.read().unwrap() else { continue };
        let received: Value = serde_json::from_str(&text).unwrap();
        if received[3] == "phx_reply" && received[1] == message[1] {
            return received[4].clone();
        }
    }
}

fn join() -> Value {
    json!(["1", "1", "document:notes", "phx_join", {"presence": false}])
}

fn note(reference: &str) -> Value {
    json!(["1", reference, "document:notes", "x-note", {"text": "hello"}])
}

#[test]
fn http_and_websockets_are_served_over_tls() {
    let home = Home::new();
    let trusted = home.renew();
    let server = home.serve(&[]);

    let stream = connect(&server, &trusted).unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    let mut socket = open_socket(stream);
    assert_eq!(exchange(&mut socket, &join())["status"], "ok");
    assert_eq!(exchange(&mut socket, &note("2"))["response"]["seq"], 1);

    let history = ask(connect(&server, &trusted).unwrap(), "/v1/documents/notes/events?after_seq=0");
    assert!(history.starts_with("HTTP/1.0 200 OK\r\n") && history.contains("\"hello\""), "{history}");
    drop(socket);
    server.signal("-TERM");
    assert!(server.ended().success());
}

#[test]
fn the_command_line_speaks_tls_with_a_server_whose_certificate_it_trusts() {
    let home = Home::new();
    home.renew();
    let server = home.serve(&[]);
    let (port, ca) = (server.address.port(), home.cert());
    let publish = |host: &str, more: &[&str]| {
        let url = format!("https://{host}:{port}");
        run(&[&["publish", "notes", "x-note", "1", "--url", &url], more].concat())
    };
    let trusting = ["--ca", ca.to_str().unwrap()];
    let ack: Value = serde_json::from_str(&success(&publish("localhost", &trusting))).unwrap();
    assert_eq!(ack["seq"], 1);
    let unknown = failure(&publish("localhost", &[]));
    assert!(
        unknown.contains("`--ca` names the certificates to trust: invalid peer certificate"),
        "{unknown}"
    );
    let key = home.key();
    let none = failure(&publish("localhost", &["--ca", key.to_str().unwrap()]));
    assert!(none.starts_with("relay: there is no certificate to trust in "), "{none}");
    let other_name = failure(&publish("127.0.0.1", &trusting));
    assert!(other_name.contains("not valid for name"), "{other_name}");
}

#[test]
fn the_command_line_trusts_a_listed_certificate_that_may_sign_others_for_its_name_alone() {
    let home = Home::new();
    let mut parameters = CertificateParams::new(["localhost".to_owned()]).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    std::fs::write(home.cert(), parameters.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(home.key(), key.serialize_pem()).unwrap();
    let server = home.serve(&[]);
    let publish = |host: &str| {
        let url = format!("https://{host}:{}", server.address.port());
        run(&["publish", "notes", "x-note", "1", "--url", &url, "--ca", home.cert().to_str().unwrap()])
    };
    success(&publish("localhost"));
    let other_name = failure(&publish("127.0.0.1"));
    assert!(other_name.contains("not valid for name"), "{other_name}");
}

#[test]
fn the_command_line_trusts_a_listed_certificate_whose_signer_is_not_listed() {
    let home = Home::new();
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(DnType::CommonName, "the signer");
    let issuer = Issuer::new(parameters, KeyPair::generate().unwrap());
    let key = KeyPair::generate().unwrap();
    let signed =
        || CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap().pem();
    std::fs::write(home.cert(), signed()).unwrap();
    std::fs::write(home.key(), key.serialize_pem()).unwrap();
    let server = home.serve(&[]);
    let publish = |host: &str, ca: &Path| {
        let url = format!("https://{host}:{}", server.address.port());
        run(&["publish", "notes", "x-note", "1", "--url", &url, "--ca", ca.to_str().unwrap()])
    };
    success(&publish("localhost", &home.cert()));
    let other_name = failure(&publish("127.0.0.1", &home.cert()));
    assert!(other_name.contains("not valid for name"), "{other_name}");
    let other = home.directory.path().join("other.pem");
    std::fs::write(&other, signed()).unwrap();
    let unlisted = failure(&publish("localhost", &other));
    assert!(unlisted.contains("UnknownIssuer"), "{unlisted}");
}

#[test]
fn a_certificate_is_read_again_on_sighup_and_open_connections_go_on() {
    let home = Home::new();
    let old = home.renew();
    let server = home.serve(&[]);
    let mut socket = open_socket(connect(&server, &old).unwrap());
    assert_eq!(exchange(&mut socket, &join())["status"], "ok");

    let new = home.renew();
    assert!(connect(&server, &old).is_ok(), "nothing is read before the signal");
    server.signal("-HUP");
    server.logged("the certificate was read again");
    assert!(connect(&server, &old).is_err());
    assert!(ask(connect(&server, &new).unwrap(), "/health/live").starts_with("HTTP/1.0 200 OK\r\n"));
    assert_eq!(exchange(&mut socket, &note("2"))["status"], "ok");
}

#[test]
fn a_bad_new_certificate_is_not_used_and_the_log_says_why() {
    let home = Home::new();
    let trusted = home.renew();
    let server = home.serve(&[]);
    let refused = |because: &str| {
        server.signal("-HUP");
        let line = server.logged("the new certificate is not used");
        assert_eq!(line["level"], "ERROR");
        let error = line["error"].as_str().unwrap();
        assert!(error.contains(because), "{error}");
        assert!(connect(&server, &trusted).is_ok());
    };
    std::fs::write(home.cert(), certificate().cert.pem()).unwrap();
    refused(home.key().to_str().unwrap());
    std::fs::write(home.cert(), "hello").unwrap();
    refused(&format!("there is no certificate in {}", home.cert().display()));
    std::fs::remove_file(home.cert()).unwrap();
    refused(&format!("{} cannot be read", home.cert().display()));
}

#[test]
fn a_server_does_not_start_with_a_certificate_that_it_cannot_use() {
    let home = Home::new();
    home.renew();
    std::fs::remove_file(home.key()).unwrap();
    assert!(home.refused().contains(&format!("{} cannot be read", home.key().display())));
    std::fs::write(home.key(), "hello").unwrap();
    assert!(home.refused().contains(&format!("there is no private key in {}", home.key().display())));
    std::fs::write(home.key(), certificate().signing_key.serialize_pem()).unwrap();
    assert!(home.refused().contains("cannot be used with the key"));
    let half = relay().args(["serve", "--tls-cert", "cert.pem"]).output().unwrap();
    assert!(failure(&half).contains("`tls.cert` is given without `tls.key`"));
}

#[test]
fn sighup_without_a_certificate_changes_nothing() {
    let data = support::data();
    let server = Server::start_with(data.path(), &["--durability", "memory"]);
    server.signal("-HUP");
    server.logged("there is no certificate to read again");
    assert_eq!(server.get("/health/live").status, 200);
}

#[test]
fn a_client_that_does_not_speak_tls_is_disconnected_and_counted() {
    let home = Home::new();
    let trusted = home.renew();
    let server = home.serve(&["--set", "tls.handshake_timeout=500ms"]);
    let mut silent = plain(&server);
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0, "closed without a word");
    counted(&server, &trusted, "/http/timed_out/tls", &json!(1));

    let mut clear = plain(&server);
    clear.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut alert = Vec::new();
    let _ = clear.read_to_end(&mut alert);
    assert!(!alert.starts_with(b"HTTP"));
    counted(&server, &trusted, "/http/tls_failures", &json!(1));
}

#[test]
fn a_full_server_says_so_over_tls_too() {
    let home = Home::new();
    let trusted = home.renew();
    let server = home.serve(&["--set", "http.max_connections=1"]);
    let _in = connect(&server, &trusted).unwrap();
    let refused = ask(connect(&server, &trusted).unwrap(), "/v1/stats");
    assert!(refused.starts_with("HTTP/1.0 503 ") && refused.contains("\r\nretry-after: "), "{refused}");
}
