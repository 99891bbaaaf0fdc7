//! `relay rules`.

use anyhow::{Context, bail};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, IF_MATCH};
use http::{Method, Request};
use http_body_util::Full;
use relay_router::rules::{RuleFormat, RuleSet};
use serde_json::json as object;

use super::args::RulesCommand;
use super::request::{ask, cell, items, json, print, print_table};
use crate::client::RelayClient;
use crate::plural::counted;
use crate::settings;

pub(crate) async fn rules(command: RulesCommand) -> anyhow::Result<()> {
    match command {
        RulesCommand::Show { server } => {
            print(&ask(&RelayClient::new(&server)?, Method::GET, "/v1/rules", None).await?)
        }
        RulesCommand::Check { file } => {
            let document = settings::rules(&file)?;
            let parsed =
                relay_tasks::call_blocking(move || RuleSet::parse(&document.text, document.format)).await?;
            let set = parsed.with_context(|| file.display().to_string())?;
            for warning in set.warnings() {
                eprintln!("relay: {warning}");
            }
            let (rules, targets) = (set.rules().len(), set.targets().len());
            print(&format!("{} and {} are in order", counted(rules, "rule"), counted(targets, "target")))
        }
        RulesCommand::Put { file, if_version, server } => {
            let document = settings::rules(&file)?;
            let media_type = match document.format {
                RuleFormat::Json => "application/json",
                _ => "application/toml",
            };
            let mut request = Request::put("/v1/rules").header(CONTENT_TYPE, media_type);
            if let Some(version) = if_version {
                request = request.header(IF_MATCH, format!("\"{version}\""));
            }
            change(&RelayClient::new(&server)?, request.body(Full::new(Bytes::from(document.text)))?).await
        }
        RulesCommand::Reset { server } => {
            let request = Request::delete("/v1/rules").body(Full::new(Bytes::new()))?;
            change(&RelayClient::new(&server)?, request).await
        }
        RulesCommand::DryRun { kind, document, payload, actor, rules, output } => {
            let payload: serde_json::Value = serde_json::from_str(&payload)
                .with_context(|| format!("the payload `{payload}` is not JSON"))?;
            let mut request = object!({"event": {"kind": kind, "document": document, "payload": payload}});
            if let Some(actor) = actor {
                request["event"]["actor"] = actor.into();
            }
            if let Some(file) = rules {
                request["rules"] = settings::rules(&file)?.text.into();
            }
            let client = RelayClient::new(&output.server)?;
            let text = ask(&client, Method::POST, "/v1/rules/dry-run", Some(&request)).await?;
            if output.json {
                return print(&text);
            }
            let run = json(&text)?;
            let verdicts: Vec<_> = items(&run["verdicts"])
                .iter()
                .map(|verdict| {
                    let more = [&verdict["message"], &verdict["after"]].map(cell).join(" ");
                    vec![
                        cell(&verdict["rule"]),
                        cell(&verdict["verdict"]),
                        more.replace('-', "").trim().to_owned(),
                    ]
                })
                .collect();
            print_table(&["RULE", "VERDICT", ""], &verdicts)?;
            for route in items(&run["routes"]) {
                let [rule, target, targets, fallback] =
                    ["rule", "target", "targets", "fallback"].map(|key| cell(&route[key]));
                print(&format!("rule {rule} sends it to {target} now, of {targets}; fallback {fallback}"))?;
            }
            for decided in items(&run["decided"]) {
                let [rule, outcome, reason] = ["rule", "outcome", "reason"].map(|key| cell(&decided[key]));
                print(&format!("rule {rule}: {outcome}: {reason}"))?;
            }
            Ok(())
        }
    }
}

async fn change(client: &RelayClient, request: Request<Full<Bytes>>) -> anyhow::Result<()> {
    let answer = client.send(request).await?;
    if !answer.response.status().is_success() {
        bail!(answer.problem().await);
    }
    let version = answer.response.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).unwrap_or("?");
    print(&format!("version {} is in force", version.trim_matches('"')))
}
