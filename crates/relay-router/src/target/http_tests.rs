//! Delivery over HTTP to real servers: the meaning of each answer, and the addresses that are refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use relay_core::{
    Delivery, DeliveryError, DocumentId, Draft, Epoch, Event, FailureKind, Payload, Seq, SystemClock, Target,
    Timestamp, TraceContext,
};

use super::{HostPattern, HttpTarget, HttpTargetConfig, Outbound, OutboundError, OutboundPolicy};
use crate::rules::DeliveryFormat;

/// The heads of the requests to a server, each as its lines in lower case.
type Heads = Arc<Mutex<Vec<Vec<String>>>>;

/// Starts a server that gives each request the same raw answer and closes. Returns its address and the heads of its
/// requests.
fn answering(answer: String) -> (SocketAddr, Heads) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Heads::default();
    let kept = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut length, mut head) = (0, Vec::new());
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap() == 0 || line == "\r\n" {
                    break;
                }
                let line = line.trim_end().to_ascii_lowercase();
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                head.push(line);
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            kept.lock().push(head);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (address, asked)
}

fn status(line: &str, headers: &str) -> String {
    format!("HTTP/1.1 {line}\r\ncontent-length: 3\r\nconnection: close\r\n{headers}\r\nwhy")
}

fn local() -> OutboundPolicy {
    OutboundPolicy { allow_networks: vec!["127.0.0.0/8".parse().unwrap()], ..OutboundPolicy::default() }
}

fn note() -> Draft {
    let payload = Payload::json(&"hello").unwrap();
    Draft::new(DocumentId::new("d").unwrap(), relay_events::kind("x-note").unwrap(), payload)
}

fn event(draft: Draft) -> Arc<Event> {
    Arc::new(draft.into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH))
}

fn target(url: &str, policy: OutboundPolicy, format: DeliveryFormat) -> HttpTarget {
    let config = HttpTargetConfig { url: url.to_owned(), format, ..HttpTargetConfig::default() };
    HttpTarget::new(config, Outbound::new(policy).unwrap(), Arc::new(SystemClock::new())).unwrap()
}

async fn deliver(url: &str, policy: OutboundPolicy) -> Result<(), DeliveryError> {
    target(url, policy, DeliveryFormat::Structured).deliver(Delivery::new(vec![event(note())])).await
}

async fn answer_to(answer: String) -> Result<(), DeliveryError> {
    deliver(&format!("http://{}/", answering(answer).0), local()).await
}

#[tokio::test]
async fn each_answer_means_what_webhooks_say_it_means() {
    for line in ["200 OK", "202 Accepted", "299 Other"] {
        answer_to(status(line, "")).await.unwrap();
    }
    for (line, kind) in [
        ("400 Bad Request", FailureKind::Reject),
        ("401 Unauthorized", FailureKind::Reject),
        ("404 Not Found", FailureKind::Reject),
        ("408 Request Timeout", FailureKind::Retry),
        ("410 Gone", FailureKind::Gone),
        ("425 Too Early", FailureKind::Retry),
        ("429 Too Many Requests", FailureKind::Retry),
        ("500 Internal Server Error", FailureKind::Retry),
        ("503 Service Unavailable", FailureKind::Retry),
        ("302 Found", FailureKind::Reject),
    ] {
        let error = answer_to(status(line, "")).await.unwrap_err();
        assert_eq!(error.kind, kind, "{line}");
        assert_eq!(error.status.map(|status| status.to_string()).as_deref(), line.split(' ').next());
        assert_eq!(error.detail, "why");
    }
}

#[tokio::test]
async fn retry_after_is_read_in_seconds_and_as_a_date() {
    let error = answer_to(status("429 So", "retry-after: 120\r\n")).await.unwrap_err();
    assert_eq!(error.retry_after, Some(Duration::from_secs(120)));
    let date = "retry-after: Fri, 31 Dec 2100 23:59:59 GMT\r\n";
    assert!(
        answer_to(status("503 So", date)).await.unwrap_err().retry_after > Some(Duration::from_secs(3600))
    );
    let past = "retry-after: Fri, 31 Dec 1999 23:59:59 GMT\r\n";
    assert_eq!(answer_to(status("503 So", past)).await.unwrap_err().retry_after, Some(Duration::ZERO));
    assert_eq!(answer_to(status("503 So", "retry-after: soon\r\n")).await.unwrap_err().retry_after, None);
}

#[tokio::test]
async fn an_answer_that_breaks_off_was_none() {
    for broken in [
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nnot all",
        "HTTP/1.1 200 OK\r\nconte",
        "",
        "nonsense\r\n\r\n",
    ] {
        let error = answer_to(broken.to_owned()).await.unwrap_err();
        assert_eq!(error.kind, FailureKind::Retry, "{broken:?}: {error}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(deliver(&format!("http://{nobody}/"), local()).await.unwrap_err().kind, FailureKind::Retry);
}

#[tokio::test]
async fn a_redirect_is_followed_to_where_deliveries_may_go_and_nowhere_else() {
    let (good, asked) = answering(status("200 OK", ""));
    answer_to(status("307 So", &format!("location: http://{good}/\r\n"))).await.unwrap();
    assert_eq!(asked.lock().len(), 1);

    // Addresses outside the public internet that are not allowed, in several spellings.
    for forbidden in [
        "http://169.254.169.254/",
        "http://[::1]:1/",
        "http://10.0.0.1/",
        "http://[::ffff:10.0.0.1]/",
        "ftp://127.0.0.1/",
    ] {
        let error = answer_to(status("308 So", &format!("location: {forbidden}\r\n"))).await.unwrap_err();
        assert!(
            error.detail.contains("not allowed")
                || error.detail.contains("not on the public internet")
                || error.status == Some(308),
            "{forbidden}: {error}"
        );
    }
}

#[tokio::test]
async fn redirects_end_after_the_third() {
    let (address, asked) = answering(status("307 So", "location: /\r\n"));
    let error = deliver(&format!("http://{address}/"), local()).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Retry);
    assert!(error.detail.contains("redirects"), "{error}");
    assert_eq!(asked.lock().len(), 4);
}

#[tokio::test]
async fn a_request_tells_the_attempt_the_trace_and_a_replay_and_keeps_its_head_through_a_redirect() {
    const STATE: &str = "vendor=1";
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let traced = || event(note().trace(TraceContext::new(traceparent, Some(STATE)).unwrap()));
    let (address, asked) = answering(status("200 OK", ""));
    let (redirecting, redirected) = answering(status("308 So", &format!("location: http://{address}/\r\n")));
    let send = async |format, delivery| {
        asked.lock().clear();
        target(&format!("http://{redirecting}/"), local(), format).deliver(delivery).await.unwrap();
        let (first, last) = (redirected.lock().pop().unwrap(), asked.lock().pop().unwrap());
        let but_host = |head: Vec<String>| {
            head.into_iter().filter(|line| !line.starts_with("host:")).collect::<Vec<_>>()
        };
        let (first, last) = (but_host(first), but_host(last));
        assert_eq!(first, last);
        last
    };
    let value = |head: &[String], name: &str| {
        head.iter().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
    };

    let one = traced();
    let head =
        send(DeliveryFormat::Structured, Delivery::new(vec![Arc::clone(&one)]).attempt(3).replay()).await;
    let expected = [
        ("relay-attempt", Some("3")),
        ("relay-replay", Some("true")),
        ("traceparent", Some(traceparent)),
        ("tracestate", Some(STATE)),
        ("webhook-id", Some(&*one.id.to_string())),
        ("user-agent", Some(concat!("relay/", env!("CARGO_PKG_VERSION")))),
    ]
    .map(|(name, value)| (name, value.map(str::to_owned)));
    assert_eq!(expected.clone().map(|(name, _)| (name, value(&head, name))), expected);

    // Several events have no trace in common.
    let head = send(DeliveryFormat::Batch, Delivery::new(vec![traced(), traced()])).await;
    let names = ["relay-attempt", "relay-replay", "traceparent", "tracestate"];
    assert_eq!(names.map(|name| value(&head, name)), [Some("1".to_owned()), None, None, None]);
}

#[tokio::test]
async fn a_name_is_checked_by_what_it_resolves_to() {
    let (address, asked) = answering(status("200 OK", ""));
    let url = format!("http://localhost:{}/", address.port());
    let error = deliver(&url, OutboundPolicy::default()).await.unwrap_err();
    assert!(error.detail.contains("router.allow_networks"), "{error}");
    assert_eq!(asked.lock().len(), 0);
    deliver(&url, local()).await.unwrap();
    assert_eq!(asked.lock().len(), 1);
}

#[test]
fn an_address_that_may_not_be_reached_is_refused_when_it_is_given() {
    let mut policy = local();
    policy.schemes = vec!["https".to_owned()];
    policy.hosts = vec![HostPattern::new("*.example").unwrap(), HostPattern::new("127.0.0.1").unwrap()];
    let outbound = Outbound::new(policy).unwrap();
    outbound.check_url("https://sift.example/events").unwrap();
    outbound.check_url("https://127.0.0.1:9000/").unwrap();
    assert!(matches!(outbound.check_url("http://sift.example/"), Err(OutboundError::Scheme { .. })));
    for host in ["https://example/", "https://sift.example.org/", "https://notexample/", "https://8.8.8.8/"] {
        assert!(matches!(outbound.check_url(host), Err(OutboundError::Host { .. })), "{host}");
    }
    for url in ["https://user:secret@sift.example/", "sift.example", "", "https://"] {
        assert!(outbound.check_url(url).is_err(), "{url}");
    }
    let anywhere = Outbound::new(OutboundPolicy::default()).unwrap();
    for url in
        ["http://2130706433/", "http://0x7f.1/", "http://0177.0.0.1/", "http://[::ffff:7f00:1]/", "http://0/"]
    {
        assert!(matches!(anywhere.check_url(url), Err(OutboundError::Address { .. })), "{url}");
    }
}

/// An interim answer.
const INTERIM: &str = "HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n";

/// Starts a server that sends `start` and then `part` for ever, or nothing more if that is empty. Returns its address, and
/// a receiver that is told when the client has gone.
fn endless(start: impl Into<String>, part: &'static str) -> (SocketAddr, std::sync::mpsc::Receiver<()>) {
    let start = start.into();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (gone, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // An answer begins after the request has.
        stream.read_exact(&mut [0; 64]).unwrap();
        let block = part.repeat(100);
        let _ = stream.write_all(start.as_bytes());
        if part.is_empty() {
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
        while !part.is_empty() && stream.write_all(block.as_bytes()).is_ok() {}
        gone.send(()).unwrap();
    });
    (address, told)
}

#[tokio::test]
async fn interim_answers_without_end_fail_the_attempt_and_the_connection() {
    // Without end, or as many as are too many and then silence.
    for (start, part) in [(String::new(), INTERIM), (INTERIM.repeat(16), "")] {
        let (address, gone) = endless(start, part);
        let url = format!("http://{address}/");
        let delivered = tokio::time::timeout(Duration::from_secs(60), deliver(&url, local())).await;
        let error = delivered.expect("the attempt ends").unwrap_err();
        assert_eq!(error.kind, FailureKind::Retry);
        assert!(error.detail.contains("16 interim answers"), "{error}");
        tokio::task::spawn_blocking(move || gone.recv().unwrap()).await.unwrap();
    }
}

#[tokio::test]
async fn a_few_interim_answers_come_before_a_good_one() {
    answer_to(format!("{}{}", INTERIM.repeat(15), status("200 OK", ""))).await.unwrap();
}

#[tokio::test]
async fn a_head_without_end_fails_the_attempt_and_the_connection() {
    for (start, part) in [
        ("HTTP/1.1 200 OK\r\nx: ", "x"),
        ("HTTP/1.1 200 OK\r\n", "x: y\r\n"),
        ("HTTP/1.1 103 So\r\nx: ", "x"),
    ] {
        let (address, gone) = endless(start, part);
        let error = deliver(&format!("http://{address}/"), local()).await.unwrap_err();
        assert_eq!(error.kind, FailureKind::Retry, "{error}");
        tokio::task::spawn_blocking(move || gone.recv().unwrap()).await.unwrap();
    }
}
