//! The results as tables for the terminal and the documentation, and as raw JSON.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use super::system::System;
use super::workloads::{Figures, Measured, Workload};

/// The machine that was measured, without names.
#[derive(Serialize)]
struct Machine {
    cores: usize,
    architecture: &'static str,
    kernel: String,
    rustc: String,
}

#[derive(Serialize)]
struct Raw<'a> {
    command: String,
    machine: Machine,
    results: &'a [Measured],
}

impl Machine {
    fn this() -> Self {
        let rustc = Command::new("rustc").arg("--version").output().map(|output| output.stdout);
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            architecture: std::env::consts::ARCH,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            rustc: String::from_utf8_lossy(&rustc.unwrap_or_default()).trim().to_owned(),
        }
    }
}

/// Writes `load.md` and `load.json` into a folder.
pub(crate) fn write(folder: &Path, results: &[Measured]) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let machine = Machine::this();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut page = format!(
        "# The server under load, beside its peers\n\nWritten by `cargo xtask {}` on {} cores ({}, Linux {}, {}), load generator and \
         server side by side on\nthe same machine: read the ratios within one table, not the absolute figures. What is \
         measured, and how: [benchmarks](../benchmarks.md).\n",
        words.join(" "),
        machine.cores,
        machine.architecture,
        machine.kernel,
        machine.rustc
    );
    let mut workloads: Vec<Workload> = results.iter().map(|result| result.workload).collect();
    workloads.dedup();
    for workload in workloads {
        let of_workload: Vec<Measured> =
            results.iter().filter(|result| result.workload == workload).cloned().collect();
        page.push_str(&table(&of_workload));
    }
    fs::write(folder.join("load.md"), page)?;
    let raw = Raw { command: format!("cargo xtask {}", words.join(" ")), machine, results };
    Ok(fs::write(folder.join("load.json"), serde_json::to_string_pretty(&raw)? + "\n")?)
}

/// Returns the tables of one workload, one for each phase.
pub(crate) fn table(results: &[Measured]) -> String {
    let mut phases: Vec<&str> = Vec::new();
    for result in results {
        if !phases.contains(&result.phase) {
            phases.push(result.phase);
        }
    }
    let mut text = String::new();
    for phase in phases {
        let rows: Vec<&Measured> = results.iter().filter(|result| result.phase == phase).collect();
        let [first, ..] = rows.as_slice() else { continue };
        let title = format!("\n## {}: {phase}\n\n", heading(first.workload, first.members));
        // Nothing is compared with figures that are invalid.
        let valid = |row: &&&Measured| row.invalid().is_none();
        let baseline =
            rows.iter().filter(valid).find(|row| row.system == System::Baseline).map(|row| row.cost());
        let peers = rows.iter().filter(valid).filter(|row| row.system.is_peer()).map(|row| row.cost());
        let best = peers.min_by(f64::total_cmp);
        text.push_str(&title);
        text.push_str(match first.result {
            Figures::Delivery(_) => {
                "| | delivered/s | p50 | p90 | p99 | p99.9 | max (ms) | missing | server CPU s | server RSS MiB | wire bytes | to baseline | to best peer |\n\
                 | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
            }
            Figures::Memory { .. } => {
                "| | bytes per connection | server CPU s | server RSS MiB | to best peer |\n| --- | ---: | ---: | ---: | ---: |\n"
            }
            Figures::Storm { .. } => {
                "| | seconds to the last | server CPU s | server RSS MiB | to best peer |\n| --- | ---: | ---: | ---: | ---: |\n"
            }
            Figures::Joins { .. } => {
                "| | server CPU ms per join | sent KiB per join | server RSS MiB |\n| --- | ---: | ---: | ---: |\n"
            }
        });
        for row in rows {
            let invalid = row.invalid();
            let name = match &invalid {
                None => row.system.name().to_owned(),
                Some(reason) => format!("{} (invalid: {reason})", row.system.name()),
            };
            let compared = |other: Option<f64>| ratio(row.cost(), other.filter(|_| invalid.is_none()));
            let (baseline, best) = (compared(baseline), compared(best));
            let (cpu, rss) = (row.cpu_seconds, row.resident_kib as f64 / 1024.0);
            // Writing to a string does not fail.
            let _ = match &row.result {
                Figures::Delivery(delivery) => {
                    let latency = delivery.latency_ms;
                    let missing = delivery.missing;
                    writeln!(
                        text,
                        "| {name} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {missing} | {cpu:.2} | {rss:.1} | {:.0} | {baseline} | {best} |",
                        delivery.per_second,
                        latency.p50,
                        latency.p90,
                        latency.p99,
                        latency.p999,
                        latency.max,
                        delivery.wire_bytes_per_message,
                    )
                }
                Figures::Memory { bytes_per_connection } => {
                    writeln!(text, "| {name} | {bytes_per_connection:.0} | {cpu:.2} | {rss:.1} | {best} |")
                }
                Figures::Joins { cpu_ms_per_join, kib_per_join } => {
                    writeln!(text, "| {name} | {cpu_ms_per_join:.2} | {kib_per_join:.0} | {rss:.1} |")
                }
                Figures::Storm { seconds, presence } => {
                    let last = if *presence { "" } else { " (join's answer)" };
                    writeln!(text, "| {name} | {seconds:.2}{last} | {cpu:.2} | {rss:.1} | {best} |")
                }
            };
        }
    }
    text
}

/// Returns the ratio of two systems' costs: of throughput flat out, of p99 when paced, of the measured size otherwise.
fn ratio(cost: f64, other: Option<f64>) -> String {
    other.filter(|other| *other != 0.0).map_or_else(String::new, |other| format!("{:.2}", cost / other))
}

fn heading(workload: Workload, members: u32) -> String {
    match workload {
        Workload::Broadcast1000 | Workload::Broadcast10000 => format!("One document, {members} members"),
        Workload::Documents => format!("{} documents of 10 members", members / 10),
        Workload::Idle => format!("{members} idle connections with heartbeats"),
        Workload::JoinStorm => format!("Join storm of {members}"),
        Workload::Slow => format!("One in a hundred of {members} members stops reading"),
        Workload::Polite => "A polite publisher and four floods".to_owned(),
        Workload::JoinCost => format!("Joins of a document of {members}"),
    }
}

#[cfg(test)]
mod tests {
    use super::ratio;

    #[test]
    fn a_ratio_needs_something_to_compare_with() {
        assert_eq!(ratio(-30.0, Some(-10.0)), "3.00");
        assert_eq!(ratio(1.0, None), "");
        assert_eq!(ratio(1.0, Some(0.0)), "");
    }
}
