//! The handshake: the upgrade requests that are accepted and refused.

use relay_ws::OriginPolicy;
use serde_json::json;

use crate::support::{Server, quick};

const PATH: &str = "/socket/websocket?vsn=2.0.0";

/// Checks that the request is refused with `status` and counted under `reason`. Returns the answer.
async fn refused(server: &Server, path: &str, headers: &str, status: &str, reason: &str) -> String {
    let before = server.ws.stats().refused.get(reason).copied().unwrap_or(0);
    let (_, answer) = server.handshake(path, headers).await;
    assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    assert!(answer.contains(&format!("\"reason\":\"{reason}\"")), "{answer}");
    assert_eq!(server.ws.stats().refused[reason], before + 1);
    answer
}

async fn accepted(server: &Server, path: &str, headers: &str) -> String {
    let (_, answer) = server.handshake(path, headers).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    answer
}

#[tokio::test]
async fn the_accept_key_is_that_of_rfc_6455() {
    let server = Server::start().await;
    let answer = accepted(&server, PATH, "").await;
    assert!(answer.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
    assert!(!answer.contains("sec-websocket-protocol"), "{answer}");
}

#[tokio::test]
async fn another_version_of_the_serializer_is_refused_by_name() {
    let server = Server::start().await;
    let answer = refused(&server, "/socket/websocket?vsn=1.0.0", "", "400", "bad_request").await;
    assert!(answer.contains("must be 2.0.0, `1.0.0` was given"), "{answer}");
    refused(&server, "/socket/websocket", "", "400", "bad_request").await;
}

#[tokio::test]
async fn a_page_of_another_site_is_refused_and_a_program_without_origin_is_not() {
    let server = Server::start().await;
    accepted(&server, PATH, "").await;
    accepted(&server, PATH, "Origin: http://relay.example\r\n").await;
    refused(&server, PATH, "Origin: http://evil.example\r\n", "403", "origin").await;
    refused(&server, PATH, "Origin: null\r\n", "403", "origin").await;

    let origins = OriginPolicy::AnyOf(vec!["https://app.example".to_owned()]);
    let mut config = quick();
    config.origins = origins;
    let server = Server::with(config).await;
    accepted(&server, PATH, "Origin: https://app.example\r\n").await;
    refused(&server, PATH, "Origin: https://evil.example\r\n", "403", "origin").await;
}

#[tokio::test]
async fn the_user_is_decoded_and_a_guest_is_given_a_name() {
    let server = Server::start().await;
    let mut ada = server.connect("ada%20%C3%A9+l").await;
    assert_eq!(ada.join("document:notes", json!({})).await["response"]["user"], "ada é l");
    let mut guest = server.guest().await;
    let joined = guest.join("document:notes", json!({})).await;
    assert!(joined["response"]["user"].as_str().unwrap().starts_with("guest-"), "{joined}");
    refused(&server, &format!("{PATH}&user={}", "u".repeat(257)), "", "400", "bad_request").await;
    refused(&server, &format!("{PATH}&user=%ff"), "", "400", "bad_request").await;
}

#[tokio::test]
async fn a_token_offered_as_a_subprotocol_is_answered_with_phoenix() {
    let server = Server::start().await;
    let offer = "Sec-WebSocket-Protocol: phoenix, base64url.bearer.phx.c2VjcmV0\r\n";
    let answer = accepted(&server, PATH, offer).await;
    assert!(answer.contains("sec-websocket-protocol: phoenix\r\n"), "{answer}");
}

#[tokio::test]
async fn a_request_that_is_no_websocket_upgrade_is_refused() {
    let server = Server::start().await;
    let answer = |request: String| {
        let server = &server;
        async move { server.request(&request).await.1 }
    };
    let plain = answer(format!("GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    assert!(plain.starts_with("HTTP/1.1 400"), "{plain}");
    let post = answer(format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")).await;
    assert!(post.starts_with("HTTP/1.1 405"), "{post}");
    let upgrade = "Host: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n";
    let old = answer(format!("GET {PATH} HTTP/1.1\r\n{upgrade}Sec-WebSocket-Version: 8\r\n\r\n")).await;
    assert!(old.starts_with("HTTP/1.1 426"), "{old}");
    assert!(old.contains("sec-websocket-version: 13"), "{old}");
    let keyless = answer(format!("GET {PATH} HTTP/1.1\r\n{upgrade}Sec-WebSocket-Version: 13\r\n\r\n")).await;
    assert!(keyless.starts_with("HTTP/1.1 400") && keyless.contains("Sec-WebSocket-Key"), "{keyless}");
}

#[tokio::test]
async fn a_full_server_refuses_the_next_connection_until_one_ends() {
    let mut config = quick();
    config.max_connections = 1;
    let server = Server::with(config).await;
    let mut ada = server.connect("ada").await;
    ada.is_alive().await;
    refused(&server, PATH, "", "503", "too_many_connections").await;
    drop(ada);
    let stats = server.until("ada is gone", |stats| stats.connections_open == 0).await;
    assert_eq!(stats.lost, 1);
    server.connect("bob").await.is_alive().await;
}
