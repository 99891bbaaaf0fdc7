//! [`Exposition`]: the text format of Prometheus.
//!
//! The text is written here and not by the `prometheus-client` crate, which has no summaries and only the `OpenMetrics`
//! format, where a counter is declared by another name than its samples have.

use std::fmt::{Display, Write as _};

use relay_metrics::LatencyStats;

/// The text that has been written so far.
#[derive(Default)]
pub(super) struct Exposition(String);

/// A metric whose samples are being written.
pub(super) struct Family<'a> {
    page: &'a mut Exposition,
    name: &'static str,
}

impl Exposition {
    /// The whole text.
    pub(super) fn into_text(self) -> String {
        self.0
    }

    pub(super) fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "counter", help)
    }

    pub(super) fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    pub(super) fn summary(&mut self, name: &'static str, help: &str, latency: &LatencyStats) {
        let mut family = self.family(name, "summary", help);
        for (quantile, value) in [("0.5", latency.p50), ("0.95", latency.p95), ("0.99", latency.p99)] {
            // Without durations there is no quantile.
            family.labelled(&[("quantile", quantile)], value.unwrap_or(f64::NAN));
        }
        self.sample(name, "_sum", &[], latency.total_sum);
        self.sample(name, "_count", &[], latency.total_count);
    }

    /// One summary for each value of a label.
    pub(super) fn summaries<'a>(
        &mut self,
        name: &'static str,
        help: &str,
        label: &str,
        latencies: impl Iterator<Item = (&'a str, &'a LatencyStats)>,
    ) {
        self.family(name, "summary", help);
        for (value, latency) in latencies {
            for (quantile, seconds) in [("0.5", latency.p50), ("0.95", latency.p95), ("0.99", latency.p99)] {
                let seconds = seconds.unwrap_or(f64::NAN);
                self.sample(name, "", &[(label, value), ("quantile", quantile)], seconds);
            }
            self.sample(name, "_sum", &[(label, value)], latency.total_sum);
            self.sample(name, "_count", &[(label, value)], latency.total_count);
        }
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { page: self, name }
    }

    fn sample(&mut self, name: &str, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        self.0.push_str(suffix);
        for (index, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if index == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }
}

impl Family<'_> {
    pub(super) fn value(&mut self, value: impl Display) {
        self.labelled(&[], value);
    }

    pub(super) fn labelled(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.page.sample(self.name, "", labels, value);
    }
}
