//! `cargo xtask bench load`: the server, its peers and the baseline under the same load over real sockets, side by side.
//!
//! The command starts one system at a time and some processes of members (`worker.rs`), which only count messages and
//! read stamps. A round goes over all systems before the next one begins, so that other work of the machine slows all
//! systems alike.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use xtask::process::{cargo, run as run_command};
use xtask::{e2e, workspace};

use self::servers::Launcher;
pub use self::system::System;
pub use self::workloads::Workload;
use self::workloads::{Measured, Scale};
use crate::{positive, run_release_build};

mod baseline;
mod charts;
mod fleet;
mod frame;
mod report;
mod servers;
mod system;
mod wire;
mod worker;
mod workloads;

/// The most times that the figures of one round are taken, until nothing is missing.
const ATTEMPTS: u32 = 3;

/// The options of `bench load`.
#[derive(Args, Clone)]
pub struct Options {
    /// Short and small: shows that everything works, and measures nothing of value.
    #[arg(long)]
    quick: bool,
    /// The baseline and the server's development build alone, for a moment: shows that generator and server fit.
    #[arg(long, conflicts_with_all = ["quick", "seconds", "systems", "relay"])]
    smoke: bool,
    /// Seconds of each measured phase; 5 when absent, 1 with `--quick`.
    #[arg(long, value_parser = positive)]
    seconds: Option<f64>,
    /// Only these workloads.
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<Workload>,
    /// Only these systems.
    #[arg(long, value_delimiter = ',')]
    systems: Vec<System>,
    /// Measures this build of the server instead of the workspace's.
    #[arg(long, value_name = "PROGRAM")]
    relay: Option<PathBuf>,
    /// The folder for the table, the raw results and the charts; docs/benchmarks when absent, none with `--quick`.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Runs a process of members, which takes commands on its standard input.
///
/// # Errors
/// When the server refuses a member or stops answering.
pub fn run_worker(assignment: &str) -> anyhow::Result<ExitCode> {
    worker::run(assignment)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the baseline until it is killed.
///
/// # Errors
/// When a socket cannot be opened.
pub fn run_baseline(message_bytes: usize) -> anyhow::Result<ExitCode> {
    baseline::run(message_bytes)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the task, with the release build of this program.
///
/// # Errors
/// When a build fails, or when Relay or the baseline fails under the load.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if options.smoke {
        e2e::build_server()?;
        run_smoke(options)?;
        return Ok(ExitCode::SUCCESS);
    }
    if cfg!(debug_assertions) {
        let mut build = cargo();
        build.args(["build", "--release", "--package", env!("CARGO_PKG_NAME")]);
        if options.relay.is_none() {
            build.args(["--package", "relay-service"]);
        }
        run_command(&mut build, "correct what the compiler names above")?;
        return run_release_build();
    }
    let scale = Scale {
        seconds: options.seconds.unwrap_or(if options.quick { 1.0 } else { 5.0 }),
        divisor: if options.quick { 10 } else { 1 },
    };
    measure(options, "release", scale)?;
    Ok(ExitCode::SUCCESS)
}

/// Puts the baseline and the server's development build under a little load.
fn run_smoke(options: &Options) -> anyhow::Result<()> {
    let options = Options { quick: true, systems: vec![System::Baseline, System::Relay], ..options.clone() };
    measure(&options, "debug", Scale { seconds: 0.25, divisor: 100 })
}

fn measure(options: &Options, profile: &str, scale: Scale) -> anyhow::Result<()> {
    let relay = options.relay.clone().map_or_else(|| servers::relay(profile), Ok)?;
    let launcher = Launcher::new(relay, workloads::MESSAGE_BYTES)?;
    let chosen = |system: &System| options.systems.is_empty() || options.systems.contains(system);
    let mut systems = Vec::new();
    for system in System::ALL.into_iter().filter(chosen) {
        match launcher.prepare(system)? {
            Ok(()) => systems.push(system),
            Err(missing) => println!("skipped: {}: {missing}", system.name()),
        }
    }
    let all = <Workload as clap::ValueEnum>::value_variants().to_vec();
    let workloads = if options.workloads.is_empty() { all } else { options.workloads.clone() };
    let mut results = Vec::new();
    for workload in workloads {
        let mut rounds: BTreeMap<System, Vec<Vec<Measured>>> = BTreeMap::new();
        let times = if options.quick { 1 } else { workload.rounds() };
        for round in 1..=times {
            for system in systems.iter().copied().filter(|system| workload.is_for(*system)) {
                eprintln!("{workload:?}, round {round} of {times}: {}", system.name());
                match run_valid(workload, &launcher, system, scale) {
                    Ok(measured) => rounds.entry(system).or_default().push(measured),
                    // A peer that fails under the load is a result; Relay and the baseline must not fail.
                    Err(error) if system.is_peer() => println!("failed: {}: {error:#}", system.name()),
                    Err(error) => {
                        return Err(error).with_context(|| format!("{}, {workload:?}", system.name()));
                    }
                }
            }
        }
        let first = results.len();
        for rounds in rounds.into_values() {
            results.extend(median(&rounds));
        }
        print!("{}", report::table(&results[first..]));
    }
    let out =
        options.out.clone().or_else(|| (!options.quick).then(|| workspace::root().join("docs/benchmarks")));
    if let Some(folder) = out {
        report::write(&folder, &results)?;
        charts::draw(&folder, &results)?;
        println!("written to {}", folder.display());
    }
    Ok(())
}

/// Runs a workload on a system. Figures with anything missing, ended or reset are taken again, and the last ones stay marked.
fn run_valid(
    workload: Workload,
    launcher: &Launcher,
    system: System,
    scale: Scale,
) -> anyhow::Result<Vec<Measured>> {
    let mut tries = ATTEMPTS;
    loop {
        let measured = workload.run(launcher, system, scale)?;
        tries -= 1;
        let Some((phase, reason)) = measured.iter().find_map(|one| Some((one.phase, one.invalid()?))) else {
            return Ok(measured);
        };
        println!("invalid: {}, {workload:?}, {phase}: {reason}", system.name());
        if tries == 0 {
            return Ok(measured);
        }
    }
}

/// Returns the median round of each phase, of the valid ones if there are any; of two rounds, the better one.
fn median(rounds: &[Vec<Measured>]) -> Vec<Measured> {
    let phases = rounds.iter().map(Vec::len).max().unwrap_or(0);
    (0..phases)
        .filter_map(|phase| {
            let mut of_phase: Vec<&Measured> = rounds.iter().filter_map(|round| round.get(phase)).collect();
            if of_phase.iter().any(|measured| measured.invalid().is_none()) {
                of_phase.retain(|measured| measured.invalid().is_none());
            }
            of_phase.sort_by(|one, other| one.cost().total_cmp(&other.cost()));
            of_phase.get((of_phase.len().max(1) - 1) / 2).map(|measured| (*measured).clone())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::median;
    use super::system::System;
    use super::workloads::{DeliveryFigures, Figures, Latency, Measured, Workload};

    fn round(per_second: f64, missing: u64, ended: u32) -> Vec<Measured> {
        let delivery = DeliveryFigures {
            published: 10,
            delivered: 10,
            missing,
            disconnected: 0,
            ended,
            resets: 0,
            seconds: 1.0,
            per_second,
            wire_bytes_per_message: 1.0,
            latency_ms: Latency { p50: 1.0, p90: 1.0, p99: 1.0, p999: 1.0, max: 1.0 },
            distribution: Vec::new(),
            memory: Vec::new(),
        };
        vec![Measured {
            system: System::Relay,
            workload: Workload::Broadcast1000,
            phase: "flat out",
            members: 1,
            result: Figures::Delivery(delivery),
            resident_kib: 1,
            cpu_seconds: 1.0,
        }]
    }

    #[test]
    fn a_round_that_lost_something_is_never_chosen_however_much_it_delivered() {
        let chosen = |rounds: &[Vec<Measured>]| -median(rounds)[0].cost();
        let rounds = [round(900.0, 1, 0), round(800.0, 0, 1), round(100.0, 0, 0), round(300.0, 0, 0)];
        assert!((chosen(&rounds) - 300.0).abs() < 1e-9);
        let invalid = median(&rounds[..1]);
        assert_eq!(invalid[0].invalid().as_deref(), Some("1 missing"));
    }
}
