//! The failures of a service's parts, and their forms for clients and for operators.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ::http::Request;
use axum::body::Body;
use axum::response::Response;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use relay_core::testing::MemoryLog;
use relay_core::{LogError, SystemClock};
use relay_presence::MemoryTokens;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::RelayService;
use crate::config::ServiceConfig;
use crate::http::{self, Api, Hosts};
use crate::storage::Storage;

/// The cause of every failure of the log.
const CAUSE: &str = "/srv/secret/7.log is on fire";

/// Returns a log on a broken disk.
fn broken_log() -> Arc<MemoryLog> {
    let log = MemoryLog::new();
    log.fail_always(LogError::Corrupt { detail: CAUSE.to_owned() });
    Arc::new(log)
}

/// The lines that the server has logged.
#[derive(Clone, Default)]
struct LogLines(Arc<Mutex<Vec<u8>>>);

impl LogLines {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock())).unwrap()
    }
}

impl io::Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn text(response: Response) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
}

#[tokio::test]
async fn the_cause_of_a_failure_is_in_the_servers_log_with_its_request_and_not_in_the_answer() {
    let lines = LogLines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let tokens = Arc::new(MemoryTokens::new(&SystemClock::new()));
    let storage = Storage::Custom { log: broken_log(), tokens, open_sessions: None };
    let config = ServiceConfig { storage, ..ServiceConfig::in_process() };
    let (http, origins) = (config.http.clone(), config.ws.origins.clone());
    let service = RelayService::start(config).await.unwrap();
    let hosts = Hosts::new(&http.allowed_hosts, SocketAddr::from(([127, 0, 0, 1], 7400)));
    let api = Api::new(service.components.clone(), http, origins, hosts, CancellationToken::new());
    let router = http::router(api);

    let draft = r#"{"kind": "x-note", "payload": 1}"#;
    let batch = format!("[{draft}, {draft}]");
    let events = "/v1/documents/notes/events";
    for (method, path, body, status) in [
        ("POST", events, draft, 503),
        ("POST", events, &batch, 200),
        ("GET", events, "", 503),
        ("GET", "/v1/documents/notes/events/stream", "", 503),
        ("POST", "/v1/documents/notes/locks", r#"{"user": "ada"}"#, 503),
        ("GET", "/health/ready", "", 503),
    ] {
        let request = Request::builder().method(method).uri(path);
        let request = request.header("content-type", "application/json");
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), status, "{method} {path}");
        let (answer, logged) = (text(response).await, lines.take());
        assert!(answer.contains("log_failed") && !answer.contains("secret"), "{method} {path}: {answer}");
        let request = format!("request{{method={method} path=\"{path}\"}}");
        assert!(logged.contains(CAUSE) && logged.contains(&request), "{method} {path}: {logged}");
    }
}
