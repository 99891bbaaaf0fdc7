//! `relay decisions`.

use anyhow::bail;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::Value;

use super::args::DecisionsArgs;
use super::request::{ask, cell, items, json, print, query};
use crate::client::RelayClient;
use crate::sse::Parser;

pub(crate) async fn decisions(args: DecisionsArgs) -> anyhow::Result<()> {
    let client = RelayClient::new(&args.output.server)?;
    let query = query(&[
        ("document", args.document),
        ("event", args.event),
        ("target", args.target),
        ("rule", args.rule),
        ("outcome", args.outcome),
        ("from", args.from),
        ("to", args.to),
        ("limit", args.limit.map(|limit| limit.to_string())),
    ]);
    if args.follow {
        return follow(&client, &query, args.output.json).await;
    }
    let text = ask(&client, Method::GET, &format!("/v1/decisions{query}"), None).await?;
    if args.output.json {
        return print(&text);
    }
    // The newest is printed last, next to the prompt.
    items(&json(&text)?).iter().rev().try_for_each(|decision| print(&line(decision)))
}

async fn follow(client: &RelayClient, query: &str, is_json: bool) -> anyhow::Result<()> {
    let request = Request::get(format!("/v1/decisions/stream{query}")).body(Full::new(Bytes::new()))?;
    let mut answer = client.send(request).await?;
    if !answer.response.status().is_success() {
        bail!(answer.problem().await);
    }
    let mut parser = Parser::default();
    while let Some(frame) = answer.response.body_mut().frame().await {
        let Ok(bytes) = frame?.into_data() else { continue };
        for message in parser.feed(&bytes)? {
            match message.name.as_str() {
                "decision" if is_json => print(&message.data)?,
                "decision" => print(&line(&json(&message.data)?))?,
                "missed" => {
                    let count = cell(&json(&message.data)?["count"]);
                    eprintln!("relay: too slow, decisions missed: {count}");
                }
                _ => {}
            }
        }
    }
    bail!("the server ended the stream")
}

/// Formats one decision, with the verdict of each rule.
fn line(decision: &Value) -> String {
    let [at, outcome, document, kind, rule, target, attempt] =
        ["at", "outcome", "document", "kind", "rule", "target", "attempt"].map(|key| cell(&decision[key]));
    let mut line = format!("{at}  {outcome}  {document}  {kind}  rule {rule}  target {target}");
    if attempt != "0" {
        line.extend(["  attempt ", &attempt]);
    }
    if decision["fallback"] == true {
        line += "  fallback";
    }
    if decision["replay"] == true {
        line += "  replay";
    }
    if let Some(error) = decision["error"].as_str() {
        line.extend(["  error: ", error]);
    }
    let verdicts = items(&decision["verdicts"]).iter();
    let verdicts = verdicts.map(|one| format!("{}={}", cell(&one["rule"]), cell(&one["verdict"])));
    line + &format!("  [{}]", verdicts.collect::<Vec<_>>().join(" "))
}
