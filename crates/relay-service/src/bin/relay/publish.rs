//! `relay publish`: one event.

use std::io::Write as _;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::Request;
use http::header::CONTENT_TYPE;
use http_body_util::Full;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::cli::PublishArgs;
use crate::client::{RelayClient, events_path};

#[derive(Serialize)]
struct DraftBody<'a> {
    kind: &'a str,
    payload: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

pub(crate) async fn publish(args: PublishArgs) -> anyhow::Result<()> {
    let client = RelayClient::new(&args.server)?;
    let payload = if args.payload == "-" {
        std::io::read_to_string(std::io::stdin()).context("standard input cannot be read as text")?
    } else {
        args.payload
    };
    let payload: &RawValue = serde_json::from_str(payload.trim()).with_context(|| {
        format!("the payload `{}` is not JSON", payload.chars().take(64).collect::<String>())
    })?;
    let draft = DraftBody { kind: &args.kind, payload, actor: args.actor.as_deref(), id: args.id.as_deref() };
    let request = Request::post(events_path(&args.document))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(&draft)?)))?;
    let answer = client.send(request).await?;
    if !answer.response.status().is_success() {
        bail!(answer.problem().await);
    }
    let ack = answer.text().await?;
    writeln!(std::io::stdout(), "{ack}")?;
    Ok(())
}
