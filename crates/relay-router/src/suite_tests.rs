//! The implementations of this crate, held to the suites of `relay-core`: targets over HTTP and all probes, each
//! against a real server.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping it")]

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use relay_core::testing::{probe_suite, target_suite};
use relay_core::{EventId, SystemClock};
use relay_events::cloudevents;
use tokio::task::JoinSet;

use crate::health::{ProbeSource, build_probe};
use crate::rules::{DeliveryFormat, ProbeCheck, ProbeSpec};
use crate::target::{HttpTarget, HttpTargetConfig, Outbound, OutboundPolicy};

/// Starts a service that accepts everything, and returns the ids of the events that it was given.
fn service() -> (SocketAddr, Arc<Mutex<Vec<EventId>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let taken = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&taken);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut length, mut is_post, mut id) = (0, false, None);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap() == 0 || line == "\r\n" {
                    break;
                }
                is_post |= line.starts_with("POST");
                let header = line.to_ascii_lowercase();
                if let Some(value) = header.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                } else if let Some(value) = header.strip_prefix("ce-id:") {
                    id = Some(value.trim().parse().unwrap());
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            if is_post {
                let ids = match (id, body.first()) {
                    (Some(id), _) => vec![id],
                    (None, Some(b'[')) => {
                        cloudevents::decode_batch(&body).unwrap().iter().map(|event| event.id).collect()
                    }
                    (None, _) => vec![cloudevents::decode(&body).unwrap().id],
                };
                kept.lock().extend(ids);
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    (address, taken)
}

/// An address at which nothing listens.
fn nothing() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn outbound() -> Outbound {
    let allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
    Outbound::new(OutboundPolicy { allow_networks, ..OutboundPolicy::default() }).unwrap()
}

#[tokio::test]
async fn a_target_over_http_passes_the_suite() {
    let (address, taken) = service();
    let config = HttpTargetConfig {
        url: format!("http://{address}/events"),
        format: DeliveryFormat::Batch,
        ..HttpTargetConfig::default()
    };
    let target = HttpTarget::new(config, outbound(), Arc::new(SystemClock::new())).unwrap();
    target_suite(&target, || taken.lock().clone()).await;
}

#[tokio::test]
async fn probes_over_http_and_tcp_pass_the_suite() {
    let (works, down) = (service().0, nothing());
    for check in [ProbeCheck::Http { path: "/".to_owned(), status: 200, body: None }, ProbeCheck::Tcp] {
        let probe = |address: SocketAddr| {
            let spec = ProbeSpec { check: check.clone(), ..ProbeSpec::default() };
            build_probe(&ProbeSource::Spec(spec, format!("http://{address}")), &outbound()).0
        };
        probe_suite(&*probe(works), &*probe(down)).await;
    }
}

#[tokio::test]
async fn a_probe_over_grpc_passes_the_suite() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("works", tonic_health::ServingStatus::Serving).await;
    reporter.set_service_status("down", tonic_health::ServingStatus::NotServing).await;
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        tonic::transport::Server::builder().add_service(health).serve_with_incoming(incoming).await.unwrap();
    });
    let probe = |service: &str| {
        let check = ProbeCheck::Grpc { service: service.to_owned() };
        let spec = ProbeSpec { check, ..ProbeSpec::default() };
        build_probe(&ProbeSource::Spec(spec, format!("http://{address}")), &outbound()).0
    };
    probe_suite(&*probe("works"), &*probe("down")).await;
}

#[tokio::test]
async fn a_probe_over_grpc_ends_when_a_service_never_stops_answering() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        // Frames of HTTP/2: empty settings, then interim answers to the first request (`:status: 103`) without end.
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let interim = b"\0\0\x05\x01\x04\0\0\0\x01\x08\x03103";
        stream.write_all(&settings).unwrap();
        // The request's headers come after the preface and the settings.
        while stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {
            if (0..10_000).try_for_each(|_| stream.write_all(interim)).is_err() {
                break;
            }
        }
    });
    let check = ProbeCheck::Grpc { service: String::new() };
    let spec = ProbeSpec { check, ..ProbeSpec::default() };
    let probe = build_probe(&ProbeSource::Spec(spec, format!("http://{address}")), &outbound()).0;
    let checked = tokio::time::timeout(Duration::from_secs(60), probe.check()).await;
    checked.expect("the probe ends by itself").unwrap_err();
}
