//! Requests of the routing commands, and the printing of their answers.

use std::io::Write as _;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request};
use http_body_util::Full;
use percent_encoding::utf8_percent_encode;
use serde_json::Value;

use crate::client::{RelayClient, SEGMENT};

/// Sends a request and returns the answer's text.
pub(super) async fn ask(
    client: &RelayClient,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<String> {
    let request = Request::builder().method(method).uri(path);
    let request = match body {
        Some(body) => request
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(serde_json::to_vec(body)?)))?,
        None => request.body(Full::new(Bytes::new()))?,
    };
    let answer = client.send(request).await?;
    if !answer.response.status().is_success() {
        bail!(answer.problem().await);
    }
    answer.text().await
}

pub(super) fn json(text: &str) -> anyhow::Result<Value> {
    serde_json::from_str(text).context("the answer is not JSON")
}

/// Encodes a text as a part of a path.
pub(super) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// Encodes the pairs that have a value as the query of a URL.
pub(super) fn query(pairs: &[(&str, Option<String>)]) -> String {
    let given = pairs.iter().filter_map(|(name, value)| Some(format!("{name}={}", segment(value.as_ref()?))));
    let given: Vec<_> = given.collect();
    if given.is_empty() { String::new() } else { format!("?{}", given.join("&")) }
}

/// Prints lines of columns, each as wide as its widest text.
pub(super) fn print_table(heads: &[&str], lines: &[Vec<String>]) -> anyhow::Result<()> {
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let width = |column: usize| {
        let texts = std::iter::once(&heads).chain(lines).filter_map(|line| line.get(column));
        texts.map(|text| text.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..heads.len()).map(width).collect();
    std::iter::once(&heads).chain(lines).try_for_each(|line| print_line(line, &widths))
}

/// Prints one line of columns, each of at least its width.
pub(super) fn print_line(line: &[impl AsRef<str>], widths: &[usize]) -> anyhow::Result<()> {
    let shown = line.iter().zip(widths).map(|(text, width)| format!("{:<width$}", text.as_ref()));
    print(&shown.collect::<Vec<_>>().join("  "))
}

pub(super) fn print(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(())
}

/// Says that the deliveries which `answer` accepts wait, if the target gets no events.
pub(super) fn print_hold_up(target: &str, answer: &Value) -> anyhow::Result<()> {
    let why = match answer["held_up_by"].as_str() {
        None => return Ok(()),
        Some("gone") => "is gone: they wait until it registers again".to_owned(),
        Some("unhealthy") => "is unhealthy: they wait until it recovers".to_owned(),
        Some("wants_nothing") => "has answered 410: they wait until it registers again".to_owned(),
        Some(other) => format!("is {other}: they wait"),
    };
    print(&format!("`{target}` {why}"))
}

/// Returns a value as a cell: texts without their quotes, no value as a dash.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Returns the items of a JSON array; none of another value.
pub(super) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
