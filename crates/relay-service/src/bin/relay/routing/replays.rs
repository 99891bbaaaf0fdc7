//! `relay replay`.

use std::time::Duration;

use anyhow::Context;
use http::Method;
use serde_json::{Value, json as object};

use super::args::{ReplayArgs, ReplayCommand};
use super::request::{ask, cell, items, json, print, print_hold_up, print_table, segment};
use crate::client::RelayClient;
use crate::plural::counted;

/// The interval at which `--wait` asks for the state.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(crate) async fn replay(args: ReplayArgs) -> anyhow::Result<()> {
    match args.command {
        Some(ReplayCommand::List { target, output }) => {
            let client = RelayClient::new(&output.server)?;
            let text = ask(&client, Method::GET, &path(&target.target), None).await?;
            if output.json {
                return print(&text);
            }
            let keys = ["id", "state", "queued", "position", "through", "rate", "document", "started_at"];
            let replays = json(&text)?;
            let lines: Vec<_> =
                items(&replays).iter().map(|one| keys.map(|key| cell(&one[key])).to_vec()).collect();
            print_table(
                &["ID", "STATE", "QUEUED", "POSITION", "THROUGH", "RATE", "DOCUMENT", "STARTED AT"],
                &lines,
            )
        }
        Some(ReplayCommand::Cancel { id, target, server }) => {
            let client = RelayClient::new(&server)?;
            let path = format!("{}/{id}", path(&target.target));
            print(&summary(&json(&ask(&client, Method::DELETE, &path, None).await?)?))
        }
        None => start(args).await,
    }
}

async fn start(args: ReplayArgs) -> anyhow::Result<()> {
    let client = RelayClient::new(&args.server)?;
    // Both are required: clap refuses a command line without them.
    let (target, from) = args.target.zip(args.from).context("`--target` and `--from` are needed")?;
    let from = match from.parse::<u64>() {
        Ok(offset) => object!({"offset": offset}),
        Err(_) => object!({"time": from}),
    };
    let mut request = object!({"from": from});
    if let Some(document) = args.document {
        request["document"] = document.into();
    }
    if let Some(rate) = args.rate {
        request["rate"] = rate.get().into();
    }
    let mut replay = json(&ask(&client, Method::POST, &path(&target), Some(&request)).await?)?;
    print(&summary(&replay))?;
    print_hold_up(&target, &replay)?;
    while args.wait && replay["state"] == "running" {
        tokio::time::sleep(LOOK_EVERY).await;
        let all = json(&ask(&client, Method::GET, &path(&target), None).await?)?;
        let found = items(&all).iter().find(|one| one["id"] == replay["id"]).cloned();
        replay = found.context(
            "the server has no such replay any more; it restarted meanwhile, which ended the replay",
        )?;
        if replay["state"] != "running" {
            print(&summary(&replay))?;
        }
    }
    Ok(())
}

fn summary(replay: &Value) -> String {
    let [id, state, position, through] = ["id", "state", "position", "through"].map(|key| cell(&replay[key]));
    let queued = counted(replay["queued"].as_u64().unwrap_or_default(), "event");
    format!("replay {id}: {state}, {queued} queued, at offset {position} of {through}")
}

fn path(target: &str) -> String {
    format!("/v1/targets/{}/replays", segment(target))
}
