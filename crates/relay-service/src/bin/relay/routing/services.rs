//! `relay services` and `relay targets`.

use http::Method;

use super::args::{ServicesArgs, TargetsArgs};
use super::request::{ask, cell, items, json, print, print_table, query};
use crate::client::RelayClient;

pub(crate) async fn services(args: ServicesArgs) -> anyhow::Result<()> {
    let client = RelayClient::new(&args.output.server)?;
    let query = query(&[("capability", args.capability), ("state", args.state)]);
    let text = ask(&client, Method::GET, &format!("/v1/services{query}"), None).await?;
    if args.output.json {
        return print(&text);
    }
    let services = json(&text)?;
    let gone = match query.as_str() {
        // The server lists those that are gone on request alone.
        "" => json(&ask(&client, Method::GET, "/v1/services?state=gone", None).await?)?,
        _ => serde_json::Value::Null,
    };
    let line = |service: &serde_json::Value| {
        ["name", "state", "since", "version", "capabilities", "url", "reason"]
            .map(|key| cell(&service[key]))
            .to_vec()
    };
    let lines: Vec<_> = items(&services).iter().chain(items(&gone)).map(line).collect();
    print_table(&["SERVICE", "STATE", "SINCE", "VERSION", "CAPABILITIES", "URL", "REASON"], &lines)
}

pub(crate) async fn targets(args: TargetsArgs) -> anyhow::Result<()> {
    let client = RelayClient::new(&args.output.server)?;
    let text = ask(&client, Method::GET, "/v1/targets", None).await?;
    if args.output.json {
        return print(&text);
    }
    let targets = json(&text)?;
    let keys = ["name", "state", "breaker", "queued", "in_flight", "lag_seconds", "dead_letters"];
    let lines: Vec<_> =
        items(&targets).iter().map(|target| keys.map(|key| cell(&target[key])).to_vec()).collect();
    print_table(&["TARGET", "STATE", "BREAKER", "QUEUED", "IN FLIGHT", "LAG (s)", "DEAD LETTERS"], &lines)
}
