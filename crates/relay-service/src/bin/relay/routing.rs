//! The commands of routing: services and targets, rules, decisions, dead letters, replays. Each asks the server over its
//! HTTP API and prints a table, or, with `--json`, the answer as it came.

pub(crate) mod args;
mod dead_letters;
mod decisions;
mod replays;
mod rules;
mod services;

use std::io::Write as _;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request};
use http_body_util::Full;
use percent_encoding::utf8_percent_encode;
use serde_json::Value;

pub(crate) use self::dead_letters::dead_letters;
pub(crate) use self::decisions::decisions;
pub(crate) use self::replays::replay;
pub(crate) use self::rules::rules;
pub(crate) use self::services::{services, targets};
use crate::client::{SEGMENT, Server};

/// Sends a request and gives the answer's text.
async fn ask(server: &Server, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<String> {
    let request = Request::builder().method(method).uri(path);
    let request = match body {
        Some(body) => request
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(serde_json::to_vec(body)?)))?,
        None => request.body(Full::new(Bytes::new()))?,
    };
    let answer = server.send(request).await?;
    if !answer.response.status().is_success() {
        bail!(answer.problem().await);
    }
    answer.text().await
}

fn json(text: &str) -> anyhow::Result<Value> {
    serde_json::from_str(text).context("the answer is not JSON")
}

/// A text as a part of a path.
fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// What is asked for besides the path, of those that are given.
fn query(pairs: &[(&str, Option<String>)]) -> String {
    let given = pairs.iter().filter_map(|(name, value)| Some(format!("{name}={}", segment(value.as_ref()?))));
    let given: Vec<_> = given.collect();
    if given.is_empty() { String::new() } else { format!("?{}", given.join("&")) }
}

/// Prints lines of columns, each as wide as its widest text; the last one as it is.
fn print_table(heads: &[&str], lines: &[Vec<String>]) -> anyhow::Result<()> {
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let width = |column: usize| {
        let texts = std::iter::once(&heads).chain(lines).filter_map(|line| line.get(column));
        texts.map(|text| text.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..heads.len()).map(width).collect();
    let mut out = std::io::stdout().lock();
    for line in std::iter::once(&heads).chain(lines) {
        let shown = line.iter().zip(&widths).map(|(text, width)| format!("{text:<width$}"));
        writeln!(out, "{}", shown.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

fn print(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(())
}

/// A value as a cell: texts without their quotes, nothing as a dash.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// The items of a JSON array.
fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
