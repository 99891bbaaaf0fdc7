//! `relay stats`: the numbers of a server, as a table.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::Value;

use crate::cli::StatsArgs;
use crate::client::RelayClient;

/// The interval of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// Clears a terminal and begins at its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

pub(crate) async fn stats(args: StatsArgs) -> anyhow::Result<()> {
    let client = RelayClient::new(&args.server)?;
    loop {
        let text = read(&client).await?;
        let shown = if args.json {
            text
        } else {
            table(&serde_json::from_str(&text).context("the answer is not JSON")?)
        };
        let mut out = std::io::stdout().lock();
        if args.watch && !args.json && out.is_terminal() {
            write!(out, "{CLEAR}")?;
        }
        writeln!(out, "{}", shown.trim_end())?;
        drop(out);
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

async fn read(client: &RelayClient) -> anyhow::Result<String> {
    let answer = client.send(Request::get("/v1/stats").body(Full::new(Bytes::new()))?).await?;
    if !answer.response.status().is_success() {
        bail!(answer.problem().await);
    }
    answer.text().await
}

/// The unit in which a number is shown.
#[derive(Clone, Copy)]
enum Unit {
    Count,
    Bytes,
    Seconds,
    Share,
}

/// A line: its name, the JSON pointer to its number in the answer, and the unit.
type StatsLine = (&'static str, &'static str, Unit);

/// The headings of the table, and the lines under each.
const SECTIONS: &[(&str, &[StatsLine])] = &[
    (
        "requests",
        &[
            ("granted", "/requests/successes", Unit::Count),
            ("success rate", "/requests/success_rate", Unit::Share),
        ],
    ),
    (
        "publishing",
        &[
            ("p50", "/publish_latency/p50", Unit::Seconds),
            ("p95", "/publish_latency/p95", Unit::Seconds),
            ("p99", "/publish_latency/p99", Unit::Seconds),
            ("max", "/publish_latency/max", Unit::Seconds),
        ],
    ),
    (
        "broadcasting",
        &[
            ("p50", "/broadcast_latency/p50", Unit::Seconds),
            ("p95", "/broadcast_latency/p95", Unit::Seconds),
            ("p99", "/broadcast_latency/p99", Unit::Seconds),
            ("max", "/broadcast_latency/max", Unit::Seconds),
        ],
    ),
    (
        "people",
        &[
            ("sessions", "/presence/sessions", Unit::Count),
            ("users", "/presence/users", Unit::Count),
            ("sessions started", "/presence/sessions_started", Unit::Count),
            ("sessions ended", "/presence/sessions_ended", Unit::Count),
            ("joined", "/presence/joins", Unit::Count),
            ("left", "/presence/leaves", Unit::Count),
            ("presence updates", "/presence/updates", Unit::Count),
        ],
    ),
    (
        "connections",
        &[
            ("WebSocket", "/ws/connections_open", Unit::Count),
            ("HTTP", "/http/connections_open", Unit::Count),
            ("received", "/ws/bytes_in", Unit::Bytes),
            ("sent", "/ws/bytes_out", Unit::Bytes),
        ],
    ),
];

/// The maps whose every entry is shown: a heading, and the JSON pointer to the map in the answer.
const MAPS: &[(&str, &str)] = &[
    ("events", "/bus/by_kind"),
    ("errors", "/requests/errors"),
    ("queues", "/queues"),
    ("dropped", "/drops"),
];

fn table(stats: &Value) -> String {
    let mut lines = vec![line("up", &format_value(stats.pointer("/uptime_seconds"), Unit::Seconds))];
    for (heading, entries) in SECTIONS {
        lines.push(heading.to_string());
        for (name, pointer, unit) in *entries {
            lines.push(line(&format!("  {name}"), &format_value(stats.pointer(pointer), *unit)));
        }
    }
    for (heading, pointer) in MAPS {
        let entries = stats.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
        // Most kinds and reasons stay at 0.
        let entries = entries.filter(|(_, count)| count.as_u64() != Some(0));
        let entries =
            entries.map(|(name, count)| line(&format!("  {name}"), &format_value(Some(count), Unit::Count)));
        let before = lines.len();
        lines.extend(entries);
        if lines.len() > before {
            lines.insert(before, heading.to_string());
        }
    }
    lines.join("\n")
}

fn line(name: &str, value: &str) -> String {
    format!("{name:<32}{value:>16}")
}

fn format_value(value: Option<&Value>, unit: Unit) -> String {
    let Some(number) = value.and_then(Value::as_f64) else { return "-".to_owned() };
    match unit {
        Unit::Count => format!("{number:.0}"),
        Unit::Share => format!("{:.2} %", number * 100.0),
        Unit::Bytes if number >= 1024.0 * 1024.0 => format!("{:.1} MiB", number / (1024.0 * 1024.0)),
        Unit::Bytes => format!("{:.1} KiB", number / 1024.0),
        Unit::Seconds if number >= 1.0 => format!("{number:.1} s"),
        Unit::Seconds if number >= 0.001 => format!("{:.1} ms", number * 1e3),
        Unit::Seconds => format!("{:.1} µs", number * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_shown_in_the_unit_that_suits_them_and_what_never_came_is_left_out() {
        let text = table(&json!({
            "uptime_seconds": 90.0,
            "publish_latency": {"p50": 0.0005, "p99": 0.25},
            "requests": {"success_rate": 0.9975, "errors": {"locked": 3}},
            "bus": {"by_kind": {"document.edited": 7, "document.saved": 0}},
            "ws": {"bytes_in": 3 * 1024 * 1024},
        }));
        let value = |name: &str| {
            let line = text.lines().find(|line| line.trim_start().starts_with(name));
            line.map(|line| line.trim_start()[name.len()..].trim().to_owned())
        };
        let shown = ["up", "p50", "p95", "success rate", "locked", "document.edited", "received"].map(value);
        let expected = ["90.0 s", "500.0 µs", "-", "99.75 %", "3", "7", "3.0 MiB"];
        assert_eq!(shown, expected.map(|text| Some(text.to_owned())), "{text}");
        assert_eq!(value("document.saved"), None);
        assert_eq!(value("dropped"), None, "a heading without lines is none");
    }
}
