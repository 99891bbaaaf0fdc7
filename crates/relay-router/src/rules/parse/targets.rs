//! The parser of one target of a rule document.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use relay_core::ServiceName;

use super::fields::{TableFields, TableReader};
use crate::rules::capability::Capability;
use crate::rules::probe_spec::{PROBE_FIELDS, ProbeCheck, ProbeSpec};
use crate::rules::rule::TargetRef;
use crate::rules::target_spec::{
    BreakerConfig, DeliveryFormat, DeliveryOrder, RetryPolicy, RetryStatuses, TargetPolicy, TargetSpec,
};
use crate::rules::tree::{Node, Value};

/// The most entries of a target's lists.
const MAX_LIST: usize = 64;
/// The most bytes of an address.
const MAX_URL_BYTES: usize = 2048;
const MAX_WEIGHT: i64 = 1_000;
const MAX_RATE: i64 = 1_000_000;
const MILLISECOND: Duration = Duration::from_millis(1);
const SECRET_PREFIX: &str = "whsec_";

const TARGET_FIELDS: &[&str] = &[
    "name",
    "url",
    "format",
    "secrets",
    "capabilities",
    "weight",
    "concurrency",
    "rate",
    "timeout",
    "batch_size",
    "ordering",
    "retry",
    "breaker",
    "probe",
];

/// Reads a target. The result is as complete as could be read, and `None` without a usable name and address.
pub(super) fn read(reader: &mut TableReader, node: &Node<'_>) -> Option<TargetSpec> {
    reader.subject = None;
    let fields = reader.table(node, TARGET_FIELDS)?;
    let name = reader.required_text(&fields, "name", node.line).and_then(|(text, line)| {
        reader.subject = Some(format!("target {}", text.chars().take(64).collect::<String>()));
        read_name(text).map_err(|reason| reader.report(line, reason)).ok()
    });
    let url = reader.required_text(&fields, "url", node.line).and_then(|(text, line)| {
        check_url(text).map_err(|reason| reader.report(line, reason)).ok().map(|()| text.to_owned())
    });
    let format = reader.with_serde::<DeliveryFormat>(&fields, "format").unwrap_or_default();
    let secrets =
        reader.texts(&fields, "secrets", MAX_LIST, |text| check_secret(text).map(|()| text.to_owned()));
    let capabilities = reader.texts(&fields, "capabilities", MAX_LIST, |text| {
        Capability::new(text).map_err(|error| error.to_string())
    });
    let weight = weight(reader, &fields);
    let policy = read_policy(reader, &fields);
    if policy.batch_size.get() > 1 && format != DeliveryFormat::Batch {
        let line = fields.get("batch_size").map_or(node.line, |node| node.line);
        let size = policy.batch_size;
        reader.report(line, format!("`batch_size` is {size}, which needs `format = \"batch\"`"));
    }
    let probe = fields.get("probe").and_then(|node| read_probe(reader, &fields, node));
    Some(TargetSpec { name: name?, url: url?, format, secrets, capabilities, weight, policy, probe })
}

fn read_name(text: &str) -> Result<ServiceName, String> {
    if text.starts_with(TargetRef::CAPABILITY_PREFIX) {
        return Err(format!(
            "a name cannot begin with `{}`, which selects targets by capability",
            TargetRef::CAPABILITY_PREFIX
        ));
    }
    ServiceName::new(text).map_err(|error| error.to_string())
}

fn check_url(text: &str) -> Result<(), String> {
    let shown: String = text.chars().take(128).collect();
    if text.len() > MAX_URL_BYTES {
        return Err(format!("`url` has {} bytes, at most {MAX_URL_BYTES} are allowed", text.len()));
    }
    let url = url::Url::parse(text).map_err(|error| format!("`url` `{shown}` is no address: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("`url` `{shown}` must begin with `http://` or `https://`"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("`url` has a user name or password in it; deliveries are signed with `secrets` instead"
            .to_owned());
    }
    Ok(())
}

fn check_secret(text: &str) -> Result<(), String> {
    // No message shows the secret itself.
    let encoded = text.strip_prefix(SECRET_PREFIX).ok_or("a secret must begin with `whsec_`")?;
    let bytes =
        STANDARD.decode(encoded).map_err(|error| format!("what follows `whsec_` must be base64: {error}"))?;
    if !(24..=64).contains(&bytes.len()) {
        return Err(format!("a secret must be 24 to 64 bytes in base64, this is {}", bytes.len()));
    }
    Ok(())
}

fn weight(reader: &mut TableReader, fields: &TableFields<'_, '_>) -> NonZeroU32 {
    reader.count::<u32>(fields, "weight", MAX_WEIGHT).and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN)
}

fn read_policy(reader: &mut TableReader, fields: &TableFields<'_, '_>) -> TargetPolicy {
    let default = TargetPolicy::default();
    let count = |reader: &mut TableReader, key, max: usize| {
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        reader.count::<usize>(fields, key, max).and_then(NonZeroUsize::new)
    };
    TargetPolicy {
        concurrency: count(reader, "concurrency", TargetPolicy::MAX_CONCURRENCY)
            .unwrap_or(default.concurrency),
        rate: reader.count::<u32>(fields, "rate", MAX_RATE).and_then(NonZeroU32::new),
        timeout: reader
            .duration(fields, "timeout", MILLISECOND..=TargetPolicy::MAX_TIMEOUT)
            .unwrap_or(default.timeout),
        batch_size: count(reader, "batch_size", TargetPolicy::MAX_BATCH_SIZE).unwrap_or(default.batch_size),
        ordering: reader.with_serde::<DeliveryOrder>(fields, "ordering").unwrap_or_default(),
        retry: fields.get("retry").and_then(|node| read_retry(reader, node)).unwrap_or_default(),
        breaker: fields.get("breaker").and_then(|node| read_breaker(reader, node)).unwrap_or_default(),
    }
}

fn read_retry(reader: &mut TableReader, node: &Node<'_>) -> Option<RetryPolicy> {
    let fields = reader.table(node, &["max_attempts", "initial", "max", "statuses"])?;
    let default = RetryPolicy::default();
    let delays = MILLISECOND..=RetryPolicy::MAX_DELAY;
    let retry = RetryPolicy {
        max_attempts: reader
            .count::<u32>(&fields, "max_attempts", RetryPolicy::MAX_ATTEMPTS.into())
            .and_then(NonZeroU32::new)
            .unwrap_or(default.max_attempts),
        initial: reader.duration(&fields, "initial", delays.clone()).unwrap_or(default.initial),
        max: reader.duration(&fields, "max", delays).unwrap_or(default.max),
        statuses: read_statuses(reader, &fields).unwrap_or(default.statuses),
    };
    if retry.initial > retry.max {
        reader.report(node.line, "`retry`: `initial` must be at most `max`");
    }
    Some(retry)
}

fn read_statuses(reader: &mut TableReader, fields: &TableFields<'_, '_>) -> Option<RetryStatuses> {
    let node = fields.get("statuses")?;
    let words: Vec<String> = reader
        .list(Some(node), "statuses", MAX_LIST)
        .iter()
        .map(|item| match &item.value {
            Value::Text(text) => text.to_string(),
            Value::Int(number) => number.to_string(),
            other => other.type_name().to_owned(),
        })
        .collect();
    RetryStatuses::of_words(words.iter().map(String::as_str))
        .map_err(|reason| reader.report(node.line, format!("`statuses`: {reason}")))
        .ok()
}

fn read_breaker(reader: &mut TableReader, node: &Node<'_>) -> Option<BreakerConfig> {
    let fields = reader.table(node, &["failures", "open_for", "half_open"])?;
    let mut breaker = BreakerConfig::default();
    if let Some(failures) = reader.count::<u32>(&fields, "failures", 1_000).and_then(NonZeroU32::new) {
        breaker.failures = failures;
    }
    if let Some(open_for) = reader.duration(&fields, "open_for", MILLISECOND..=Duration::from_secs(3600)) {
        breaker.open_for = open_for;
    }
    if let Some(half_open) = reader.count::<u32>(&fields, "half_open", 100).and_then(NonZeroU32::new) {
        breaker.half_open = half_open;
    }
    Some(breaker)
}

fn read_probe(reader: &mut TableReader, fields: &TableFields<'_, '_>, node: &Node<'_>) -> Option<ProbeSpec> {
    let known = reader.problems.len();
    reader.table(node, PROBE_FIELDS)?;
    if reader.problems.len() > known {
        return None;
    }
    let probe = reader.with_serde::<ProbeSpec>(fields, "probe")?;
    if probe.check == ProbeCheck::Heartbeat {
        reader.report(
            node.line,
            "`probe`: a target of the rule document sends no heartbeats; use `http`, `tcp` or `grpc`, or leave it out",
        );
        return None;
    }
    Some(probe)
}
