//! The specification of a probe, as a rule document or a registration contains it.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration_text;

/// The specification of a probe: its check, interval, time-out and thresholds.
///
/// ```
/// use relay_router::rules::{ProbeCheck, ProbeSpec};
///
/// let probe: ProbeSpec = serde_json::from_str(r#"{"type": "http", "path": "/health"}"#)?;
/// assert_eq!(probe.check, ProbeCheck::Http { path: "/health".to_owned(), status: 200, body: None });
/// assert_eq!(probe.interval.as_secs(), 30);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ProbeFields", into = "ProbeFields")]
#[non_exhaustive]
pub struct ProbeSpec {
    /// The check.
    pub check: ProbeCheck,
    /// The interval between two checks, before jitter. From 100 ms to 1 h; see [`ProbeSpec::INTERVAL`].
    pub interval: Duration,
    /// The time-out of one check. More than 0 and at most the interval.
    pub timeout: Duration,
    /// The successes in a row that make the service healthy. At most [`ProbeSpec::MAX_THRESHOLD`].
    pub rise: NonZeroU32,
    /// The failures in a row that make the service unhealthy. At most [`ProbeSpec::MAX_THRESHOLD`].
    pub fall: NonZeroU32,
}

/// A check of a service's health.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ProbeCheck {
    /// A GET of a path at the service's address.
    Http {
        /// The path and query, which begin with a slash.
        path: String,
        /// The expected status, 100 to 599.
        status: u16,
        /// A text that the body must contain.
        body: Option<String>,
    },
    /// A connection that is opened and closed.
    Tcp,
    /// A call of the gRPC health checking protocol.
    Grpc {
        /// The name to ask for; empty for the server as a whole.
        service: String,
    },
    /// No check: the service's own heartbeats report its health.
    #[default]
    Heartbeat,
}

impl ProbeSpec {
    /// The bounds of the interval.
    pub const INTERVAL: std::ops::RangeInclusive<Duration> =
        Duration::from_millis(100)..=Duration::from_secs(3600);
    /// The largest threshold.
    pub const MAX_THRESHOLD: u32 = 100;
    /// The most bytes of a path, an expected text, or the name of a gRPC service.
    pub const MAX_TEXT_BYTES: usize = 1024;

    /// A probe by `check` every 30 seconds with a time-out of 5 seconds; healthy after 2 successes, unhealthy
    /// after 3 failures.
    pub fn new(check: ProbeCheck) -> Self {
        Self {
            check,
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            rise: NonZeroU32::MIN.saturating_add(1),
            fall: NonZeroU32::MIN.saturating_add(2),
        }
    }
}

/// A probe by heartbeats only.
impl Default for ProbeSpec {
    fn default() -> Self {
        Self::new(ProbeCheck::Heartbeat)
    }
}

/// A probe as text has it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProbeFields {
    r#type: ProbeType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(default = "default_interval", with = "duration_text")]
    interval: Duration,
    #[serde(default = "default_timeout", with = "duration_text")]
    timeout: Duration,
    #[serde(default = "default_rise")]
    rise: NonZeroU32,
    #[serde(default = "default_fall")]
    fall: NonZeroU32,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ProbeType {
    Http,
    Tcp,
    Grpc,
    Heartbeat,
}

fn default_interval() -> Duration {
    ProbeSpec::default().interval
}

fn default_timeout() -> Duration {
    ProbeSpec::default().timeout
}

fn default_rise() -> NonZeroU32 {
    ProbeSpec::default().rise
}

fn default_fall() -> NonZeroU32 {
    ProbeSpec::default().fall
}

/// The fields that a probe may have in a rule document.
pub(super) const PROBE_FIELDS: &[&str] =
    &["type", "path", "status", "body", "service", "interval", "timeout", "rise", "fall"];

impl TryFrom<ProbeFields> for ProbeSpec {
    type Error = String;

    fn try_from(fields: ProbeFields) -> Result<Self, String> {
        let ProbeFields { r#type, path, status, body, service, interval, timeout, rise, fall } = fields;
        for (name, text) in [("path", &path), ("body", &body), ("service", &service)] {
            if text.as_ref().is_some_and(|text| text.len() > Self::MAX_TEXT_BYTES) {
                return Err(format!("`{name}` has more than {} bytes", Self::MAX_TEXT_BYTES));
            }
        }
        let misplaced: &[(&str, bool)] = match r#type {
            ProbeType::Http => &[("service", service.is_some())],
            ProbeType::Grpc => {
                &[("path", path.is_some()), ("status", status.is_some()), ("body", body.is_some())]
            }
            ProbeType::Tcp | ProbeType::Heartbeat => &[
                ("path", path.is_some()),
                ("status", status.is_some()),
                ("body", body.is_some()),
                ("service", service.is_some()),
            ],
        };
        if let Some((name, _)) = misplaced.iter().find(|(_, is_there)| *is_there) {
            let kind = format!("{type:?}").to_lowercase();
            return Err(format!("`{name}` has no meaning for a probe of type `{kind}`; leave it out"));
        }
        let check = match r#type {
            ProbeType::Http => {
                let path = path.unwrap_or_else(|| "/".to_owned());
                if !path.starts_with('/') || path.chars().any(|c| c.is_whitespace() || c.is_control()) {
                    return Err(format!("path `{path}` must begin with `/` and have no spaces"));
                }
                let status = status.unwrap_or(200);
                if !(100..=599).contains(&status) {
                    return Err(format!("status {status} is none; write one of 100 to 599"));
                }
                if body.as_ref().is_some_and(String::is_empty) {
                    return Err("`body` is empty; leave it out or write what must be found".to_owned());
                }
                ProbeCheck::Http { path, status, body }
            }
            ProbeType::Tcp => ProbeCheck::Tcp,
            ProbeType::Grpc => ProbeCheck::Grpc { service: service.unwrap_or_default() },
            ProbeType::Heartbeat => ProbeCheck::Heartbeat,
        };
        if !Self::INTERVAL.contains(&interval) {
            return Err(format!("interval {} must lie between 100ms and 1h", duration_text::show(interval)));
        }
        if timeout.is_zero() || timeout > interval {
            let (timeout, interval) = (duration_text::show(timeout), duration_text::show(interval));
            return Err(format!(
                "timeout {timeout} must be more than 0 and at most the interval of {interval}"
            ));
        }
        if rise.max(fall).get() > Self::MAX_THRESHOLD {
            return Err(format!("`rise` and `fall` must be at most {}", Self::MAX_THRESHOLD));
        }
        Ok(Self { check, interval, timeout, rise, fall })
    }
}

impl From<ProbeSpec> for ProbeFields {
    fn from(probe: ProbeSpec) -> Self {
        let ProbeSpec { check, interval, timeout, rise, fall } = probe;
        let mut fields = Self {
            r#type: ProbeType::Heartbeat,
            path: None,
            status: None,
            body: None,
            service: None,
            interval,
            timeout,
            rise,
            fall,
        };
        match check {
            ProbeCheck::Http { path, status, body } => {
                fields.r#type = ProbeType::Http;
                (fields.path, fields.status, fields.body) = (Some(path), Some(status), body);
            }
            ProbeCheck::Tcp => fields.r#type = ProbeType::Tcp,
            ProbeCheck::Grpc { service } => {
                fields.r#type = ProbeType::Grpc;
                fields.service = Some(service);
            }
            ProbeCheck::Heartbeat => {}
        }
        fields
    }
}
