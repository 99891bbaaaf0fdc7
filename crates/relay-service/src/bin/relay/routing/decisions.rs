//! `relay decisions`.

use anyhow::bail;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::Value;

use super::args::DecisionsArgs;
use super::request::{ask, cell, items, json, print, print_line, print_table, query};
use crate::client::RelayClient;
use crate::sse::Parser;

const HEADS: [&str; 8] = ["AT", "OUTCOME", "DOCUMENT", "KIND", "RULE", "TARGET", "ATTEMPT", "DETAILS"];

/// The least widths of the columns while decisions are followed, when the longest cell is not known.
const WIDTHS: [usize; 8] = [27, 13, 16, 18, 12, 12, 7, 0];

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
    let lines: Vec<_> = items(&json(&text)?).iter().rev().map(cells).collect();
    print_table(&HEADS, &lines)
}

async fn follow(client: &RelayClient, query: &str, is_json: bool) -> anyhow::Result<()> {
    let request = Request::get(format!("/v1/decisions/stream{query}")).body(Full::new(Bytes::new()))?;
    let mut answer = client.send(request).await?;
    if !answer.response.status().is_success() {
        bail!(answer.problem().await);
    }
    if !is_json {
        print_line(&HEADS, &WIDTHS)?;
    }
    let mut parser = Parser::default();
    while let Some(frame) = answer.response.body_mut().frame().await {
        let Ok(bytes) = frame?.into_data() else { continue };
        for message in parser.feed(&bytes)? {
            match message.name.as_str() {
                "decision" if is_json => print(&message.data)?,
                "decision" => print_line(&cells(&json(&message.data)?), &WIDTHS)?,
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

/// Returns the cells of one decision. The last one has the verdict of each rule.
fn cells(decision: &Value) -> Vec<String> {
    let keys = ["at", "outcome", "document", "kind", "rule", "target", "attempt"];
    let mut details: Vec<String> = Vec::new();
    details
        .extend(["fallback", "replay"].into_iter().filter(|key| decision[*key] == true).map(str::to_owned));
    if let Some(error) = decision["error"].as_str() {
        details.push(format!("error: {error}"));
    }
    let verdicts = items(&decision["verdicts"]).iter();
    let verdicts = verdicts.map(|one| format!("{}={}", cell(&one["rule"]), cell(&one["verdict"])));
    details.push(format!("[{}]", verdicts.collect::<Vec<_>>().join(" ")));
    keys.iter().map(|key| cell(&decision[key])).chain([details.join("  ")]).collect()
}
