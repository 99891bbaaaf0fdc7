//! `relay dead-letters`.

use http::Method;

use super::args::{Chosen, DeadLettersCommand};
use super::request::{ask, cell, items, json, print, print_hold_up, print_table, query, segment};
use crate::client::RelayClient;

pub(crate) async fn dead_letters(command: DeadLettersCommand) -> anyhow::Result<()> {
    match command {
        DeadLettersCommand::List { target, limit, after, output } => {
            let client = RelayClient::new(&output.server)?;
            let query = query(&[("limit", Some(limit.to_string())), ("after", after)]);
            let path = format!("{}{query}", path(&target.target));
            let text = ask(&client, Method::GET, &path, None).await?;
            if output.json {
                return print(&text);
            }
            let page = json(&text)?;
            let lines: Vec<_> = items(&page["dead_letters"])
                .iter()
                .map(|letter| {
                    let attempts = items(&letter["attempts"]);
                    let last = attempts.last().map_or("-".to_owned(), |last| match last["status"].as_u64() {
                        Some(status) => format!("{status} {}", cell(&last["error"])),
                        None => cell(&last["error"]),
                    });
                    let [id, at, document, event, reason] =
                        ["id", "at", "document", "event_id", "reason"].map(|key| cell(&letter[key]));
                    vec![id, at, document, event, reason, attempts.len().to_string(), last]
                })
                .collect();
            print_table(
                &["ID", "GIVEN UP AT", "DOCUMENT", "EVENT", "REASON", "ATTEMPTS", "LAST ERROR"],
                &lines,
            )?;
            for letter in items(&page["damaged"]) {
                print(&format!("damaged: {} ({})", cell(&letter["id"]), cell(&letter["error"])))?;
            }
            match page["next_after"].as_str() {
                Some(next) => print(&format!("more with --after {next}")),
                None => Ok(()),
            }
        }
        DeadLettersCommand::Show { id, target, server } => {
            let client = RelayClient::new(&server)?;
            let path = format!("{}/{}", path(&target.target), segment(&id));
            let letter = json(&ask(&client, Method::GET, &path, None).await?)?;
            print(&serde_json::to_string_pretty(&letter)?)
        }
        DeadLettersCommand::Retry(chosen) => act(chosen, Method::POST, "/retry", "retried").await,
        DeadLettersCommand::Drop(chosen) => act(chosen, Method::DELETE, "", "dropped").await,
    }
}

async fn act(chosen: Chosen, method: Method, suffix: &str, done: &str) -> anyhow::Result<()> {
    let client = RelayClient::new(&chosen.server)?;
    let which = chosen.id.map_or_else(String::new, |id| format!("/{}", segment(&id)));
    let answer =
        ask(&client, method, &format!("{}{which}{suffix}", path(&chosen.target.target)), None).await?;
    let answer = json(&answer)?;
    print(&format!("{done}: {}", cell(&answer[done])))?;
    print_hold_up(&chosen.target.target, &answer)
}

fn path(target: &str) -> String {
    format!("/v1/targets/{}/dead-letters", segment(target))
}
