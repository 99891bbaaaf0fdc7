//! The workloads: the documents that members join, the rate at which they publish, and the measurements.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;

use super::fleet::{Fleet, shares};
use super::servers::{Launcher, RunningSystem, resident_kib};
use super::system::System;
use super::wire::{Assignment, Collected, WorkerCommand};

/// Bytes of every message but the slow workload's.
pub(crate) const MESSAGE_BYTES: usize = 128;
/// Bytes of a message of the slow workload, which fill the sockets of slow members soon.
const SLOW_MESSAGE_BYTES: usize = 4_096;
/// Messages of a publisher that may not have come back to it, at most.
const WINDOW: u64 = 256;
/// Deliveries that may be under way at once, so that the window is smaller for more members.
const WINDOW_DELIVERIES: u64 = 256_000;
/// Connections that may be joining at once.
const IN_FLIGHT: u32 = 256;
/// Members of a flooded document.
const FLOODED_MEMBERS: u32 = 50;
/// Those of them that flood.
const FLOODING: u32 = 4;
/// Messages of a flooding member that have no answer, at most. The server answers fewer at once.
const FLOOD_WINDOW: u64 = 1_024;
/// Messages of the polite publisher in a second.
const POLITE_RATE: f64 = 50.0;
/// Joins that are measured together, and the time between two of them.
const MEASURED_JOINS: u32 = 40;
const JOIN_PAUSE: Duration = Duration::from_millis(50);
/// Relay's settings: no limit on the rate of connections from one address, and messages in memory alone, as with the
/// peers.
const RELAY_SETTINGS: [&str; 4] =
    ["durability=memory", "ws.max_connections=20000", "ws.admission_rate=100000", "ws.admission_burst=20000"];

/// A workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// One document of 1,000 members, paced and then flat out.
    #[value(name = "broadcast-1000")]
    #[serde(rename = "broadcast-1000")]
    Broadcast1000,
    /// One document of 10,000 members, paced and then flat out.
    #[value(name = "broadcast-10000")]
    #[serde(rename = "broadcast-10000")]
    Broadcast10000,
    /// 1,000 documents of 10 members, and every member types.
    Documents,
    /// 10,000 connections in documents of 10, with heartbeats and nothing else.
    Idle,
    /// 10,000 joins of documents of 100, as fast as the server takes them.
    JoinStorm,
    /// 1,000 members, one in a hundred of which stops reading.
    Slow,
    /// One publisher of 50 messages a second: alone, beside floods in another document, and in a flooded document.
    Polite,
    /// Joins of one document, one after the other, when it has no members and when it has 1,000 and 3,000.
    JoinCost,
}

/// The result of one phase of one workload for one system.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measured {
    pub(crate) system: System,
    pub(crate) workload: Workload,
    pub(crate) phase: &'static str,
    pub(crate) members: u32,
    /// The figures of the phase.
    #[serde(flatten)]
    pub(crate) result: Figures,
    pub(crate) resident_kib: u64,
    pub(crate) cpu_seconds: f64,
}

impl Measured {
    /// The reason for which the figures count for nothing, if there is one.
    pub(crate) fn invalid(&self) -> Option<String> {
        let Figures::Delivery(DeliveryFigures { missing, disconnected, ended, resets, .. }) = &self.result
        else {
            return None;
        };
        let counts = [
            (*missing, "missing"),
            ((*disconnected).into(), "disconnected"),
            ((*ended).into(), "ended"),
            ((*resets).into(), "reset"),
        ];
        let faults = counts.into_iter().filter(|(count, _)| *count > 0);
        let faults: Vec<String> = faults.map(|(count, what)| format!("{count} {what}")).collect();
        (!faults.is_empty()).then(|| faults.join(", "))
    }

    /// Returns the figure by which systems are compared. The smaller, the better.
    pub(crate) fn cost(&self) -> f64 {
        match &self.result {
            Figures::Delivery(delivery) if self.phase == "flat out" => -delivery.per_second,
            Figures::Delivery(delivery) => delivery.latency_ms.p99,
            Figures::Memory { bytes_per_connection } => *bytes_per_connection,
            Figures::Storm { seconds, .. } => *seconds,
            Figures::Joins { cpu_ms_per_join, .. } => *cpu_ms_per_join,
        }
    }
}

/// The figures of a phase.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(crate) enum Figures {
    Delivery(DeliveryFigures),
    Memory { bytes_per_connection: f64 },
    Storm { seconds: f64, presence: bool },
    Joins { cpu_ms_per_join: f64, kib_per_join: f64 },
}

/// The number of deliveries and their latency.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DeliveryFigures {
    pub(crate) published: u64,
    pub(crate) delivered: u64,
    pub(crate) missing: u64,
    pub(crate) disconnected: u32,
    pub(crate) ended: u32,
    pub(crate) resets: u32,
    pub(crate) seconds: f64,
    pub(crate) per_second: f64,
    pub(crate) wire_bytes_per_message: f64,
    pub(crate) latency_ms: Latency,
    /// Percentiles for the chart: pairs of percentile and milliseconds.
    pub(crate) distribution: Vec<(f64, f64)>,
    /// Pairs of the seconds since the phases began and the server's resident memory in KiB.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) memory: Vec<(f64, u64)>,
}

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

/// The length and size of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// Length of each measured phase.
    pub(crate) seconds: f64,
    /// The divisor of the numbers of members.
    pub(crate) divisor: u32,
}

impl Workload {
    /// Returns the number of rounds over all systems, of which the median counts.
    pub(crate) fn rounds(self) -> u32 {
        match self {
            Self::Broadcast1000 => 3,
            Self::Broadcast10000 | Self::JoinStorm => 2,
            Self::Documents | Self::Idle | Self::Slow | Self::Polite | Self::JoinCost => 1,
        }
    }

    /// Tells if the workload measures the system. The baseline has no documents and keeps no members. The floods and the cost
    /// of a join are about Relay's own turns and presence.
    pub(crate) fn is_for(self, system: System) -> bool {
        match self {
            Self::Broadcast1000 | Self::Broadcast10000 => true,
            Self::Polite | Self::JoinCost => system == System::Relay,
            _ => system != System::Baseline,
        }
    }

    pub(crate) fn message_bytes(self) -> usize {
        if self == Self::Slow { SLOW_MESSAGE_BYTES } else { MESSAGE_BYTES }
    }

    pub(crate) fn run(
        self,
        launcher: &Launcher,
        system: System,
        scale: Scale,
    ) -> anyhow::Result<Vec<Measured>> {
        let members = match self {
            Self::Broadcast1000 | Self::Slow => 1_000,
            Self::JoinCost => 3_000,
            Self::Polite => FLOODED_MEMBERS * scale.divisor,
            _ => 10_000,
        } / scale.divisor;
        // Floods reach the disk, too.
        let settings = if self == Self::Polite { &RELAY_SETTINGS[1..] } else { &RELAY_SETTINGS };
        let server = launcher.start(system, settings)?;
        let mut run = Run { workload: self, system, members, server, scale };
        match self {
            Self::Broadcast1000 => run.broadcast(100.0, true),
            Self::Broadcast10000 => run.broadcast(10.0, false),
            Self::Documents => run.documents(),
            Self::Idle => run.idle(),
            Self::JoinStorm => run.join_storm(),
            Self::Slow => run.slow(),
            Self::Polite => run.polite(),
            Self::JoinCost => run.join_cost(),
        }
    }
}

/// One workload on one started system.
struct Run {
    workload: Workload,
    system: System,
    members: u32,
    server: RunningSystem,
    scale: Scale,
}

impl Run {
    fn assignment(&self, per_document: u32, presence: bool) -> Assignment {
        Assignment {
            system: self.system,
            port: self.server.port,
            first_member: 0,
            members: self.members,
            per_document,
            in_flight: IN_FLIGHT,
            presence,
            slow_every: None,
            message_bytes: self.workload.message_bytes(),
        }
    }

    /// Starts the publisher in a process of its own, so that the members' reading does not delay it.
    fn publisher(&self) -> anyhow::Result<Fleet> {
        Fleet::start(&Assignment {
            // Its name is far from the members' names, and its document is the first.
            members: 1,
            per_document: u32::MAX,
            first_member: 1_000_000,
            ..self.assignment(1, false)
        })
    }

    /// Returns the deliveries that each worker process gets of one message to all members.
    fn shares(&self, per_document: u32, slow_every: Option<u32>) -> Vec<u64> {
        let slow = |first: u32, members: u32| {
            slow_every.map_or(0, |every| (first..first + members).filter(|n| n % every == every / 2).count())
        };
        shares(self.members, per_document)
            .into_iter()
            .map(|(first, members)| u64::from(members) - slow(first, members) as u64)
            .collect()
    }

    fn broadcast(&mut self, rate: f64, presence: bool) -> anyhow::Result<Vec<Measured>> {
        let mut members = Fleet::start(&self.assignment(self.members, presence))?;
        let mut publisher = self.publisher()?;
        let shares = self.shares(self.members, None);
        let paced = self.phase("paced", Some(rate), &mut publisher, &mut members, &shares)?;
        let flat_out = self.phase("flat out", None, &mut publisher, &mut members, &shares)?;
        Ok(vec![paced, flat_out])
    }

    fn phase(
        &self,
        phase: &'static str,
        rate: Option<f64>,
        publisher: &mut Fleet,
        members: &mut Fleet,
        shares: &[u64],
    ) -> anyhow::Result<Measured> {
        self.phase_of(phase, rate, self.scale.seconds, publisher, members, shares)
    }

    fn phase_of(
        &self,
        phase: &'static str,
        rate: Option<f64>,
        seconds: f64,
        publisher: &mut Fleet,
        members: &mut Fleet,
        per_message: &[u64],
    ) -> anyhow::Result<Measured> {
        let cpu = self.server.cpu_seconds()?;
        let window = (WINDOW_DELIVERIES / u64::from(self.members.max(1))).clamp(1, WINDOW);
        let command = WorkerCommand::Publish { rate, seconds, window };
        let (sent, first) = publisher.publish(&command)?;
        let expected: Vec<u64> = per_message.iter().map(|count| count * sent).collect();
        let collected = members.collect(&expected)?;
        self.delivery(phase, sent, first, expected.iter().sum(), &collected, cpu)
    }

    fn delivery(
        &self,
        phase: &'static str,
        published: u64,
        first: u64,
        expected: u64,
        collected: &Collected,
        cpu_before: f64,
    ) -> anyhow::Result<Measured> {
        let histogram = collected.histogram()?;
        let ms = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e6;
        let seconds = collected.last.saturating_sub(first).max(1) as f64 / 1e9;
        let distribution = (0..=50).map(|step| {
            let nines = f64::from(step) / 10.0;
            let quantile = 1.0 - 10f64.powf(-nines);
            (quantile * 100.0, ms(quantile))
        });
        let delivery = DeliveryFigures {
            published,
            delivered: collected.delivered,
            missing: expected.saturating_sub(collected.delivered),
            disconnected: collected.disconnected,
            ended: collected.ended,
            resets: collected.resets,
            seconds,
            per_second: collected.delivered as f64 / seconds,
            wire_bytes_per_message: collected.bytes as f64 / collected.delivered.max(1) as f64,
            latency_ms: Latency { p50: ms(0.5), p90: ms(0.9), p99: ms(0.99), p999: ms(0.999), max: ms(1.0) },
            distribution: distribution.collect(),
            memory: Vec::new(),
        };
        self.measured(phase, Figures::Delivery(delivery), cpu_before)
    }

    fn measured(&self, phase: &'static str, result: Figures, cpu_before: f64) -> anyhow::Result<Measured> {
        Ok(Measured {
            system: self.system,
            workload: self.workload,
            phase,
            members: self.members,
            result,
            resident_kib: self.server.resident_kib()?,
            cpu_seconds: self.server.cpu_seconds()? - cpu_before,
        })
    }

    fn documents(&mut self) -> anyhow::Result<Vec<Measured>> {
        const PER_DOCUMENT: u32 = 10;
        let mut members = Fleet::start(&self.assignment(PER_DOCUMENT, true))?;
        // Drops the messages of the joining itself.
        members.collect(&[0, 0])?;
        let cpu = self.server.cpu_seconds()?;
        let command = WorkerCommand::Type { per_member: 1.0, seconds: self.scale.seconds };
        let (sent, first) = members.publish(&command)?;
        let expected = sent * u64::from(PER_DOCUMENT);
        let shares = self.shares(PER_DOCUMENT, None);
        let each = vec![expected / shares.len() as u64; shares.len()];
        let collected = members.collect(&each)?;
        Ok(vec![self.delivery("everybody types", sent, first, expected, &collected, cpu)?])
    }

    fn idle(&mut self) -> anyhow::Result<Vec<Measured>> {
        let (before, cpu) = (self.server.resident_kib()?, self.server.cpu_seconds()?);
        let mut members = Fleet::start(&self.assignment(10, true))?;
        members.command(&WorkerCommand::Heartbeat)?;
        // Socket.IO's servers send their own heartbeat every 5 s.
        thread::sleep(Duration::from_secs_f64(self.scale.seconds + 1.0));
        members.command(&WorkerCommand::Heartbeat)?;
        thread::sleep(Duration::from_secs(1));
        let grown = self.server.resident_kib()?.saturating_sub(before);
        let bytes_per_connection = grown as f64 * 1024.0 / f64::from(self.members);
        Ok(vec![self.measured("idle", Figures::Memory { bytes_per_connection }, cpu)?])
    }

    fn join_storm(&mut self) -> anyhow::Result<Vec<Measured>> {
        let cpu = self.server.cpu_seconds()?;
        let joined = Fleet::start(&self.assignment(100, true))?.joined;
        let presence = joined.states >= self.members;
        let end = if presence { joined.last_join.max(joined.last_state) } else { joined.last_join };
        let seconds = end.saturating_sub(joined.first_connect) as f64 / 1e9;
        Ok(vec![self.measured("joins", Figures::Storm { seconds, presence }, cpu)?])
    }

    fn polite(&mut self) -> anyhow::Result<Vec<Measured>> {
        let mut polite = self.publisher()?;
        // The first document is the polite publisher's.
        let members_of = |document: u32| {
            let members =
                Assignment { first_member: document * self.members, ..self.assignment(self.members, true) };
            Fleet::start(&members)
        };
        let mut measured = vec![self.beside("alone", &mut polite, None)?];
        for (phase, document, event) in [
            ("beside durable floods", 1, "x-bench"),
            ("beside ephemeral floods", 2, "x-ephemeral-bench"),
            ("among durable floods", 0, "x-bench"),
        ] {
            measured.push(self.beside(phase, &mut polite, Some((&mut members_of(document)?, event)))?);
        }
        Ok(measured)
    }

    /// Measures the polite publisher, beside a flood if there is one.
    fn beside(
        &self,
        phase: &'static str,
        polite: &mut Fleet,
        flooded: Option<(&mut Fleet, &str)>,
    ) -> anyhow::Result<Measured> {
        let seconds = self.scale.seconds;
        let lead = Duration::from_millis(500);
        thread::scope(|scope| {
            let flooding = flooded.map(|(fleet, event)| {
                let seconds = seconds + 2.0 * lead.as_secs_f64();
                let (event, window) = (event.to_owned(), FLOOD_WINDOW);
                let flood = WorkerCommand::Flood { event, members: FLOODING, seconds, window };
                scope.spawn(move || fleet.publish(&flood))
            });
            thread::sleep(lead);
            let cpu = self.server.cpu_seconds()?;
            let (sent, first) =
                polite.publish(&WorkerCommand::Publish { rate: Some(POLITE_RATE), seconds, window: 1 })?;
            let collected = polite.collect(&[sent])?;
            if let Some(flooding) = flooding {
                let flooded = flooding.join().map_err(|_| anyhow::anyhow!("the flood failed"))?;
                println!("{phase}: {} messages were flooded", flooded?.0);
            }
            self.delivery(phase, sent, first, sent, &collected, cpu)
        })
    }

    fn join_cost(&mut self) -> anyhow::Result<Vec<Measured>> {
        let mut fleets = Vec::new();
        let mut join = |members: u32, joined: u32| {
            let whole = Assignment { members, first_member: joined, ..self.assignment(u32::MAX, true) };
            fleets.push(Fleet::start(&whole)?);
            anyhow::Ok(())
        };
        let joins = (MEASURED_JOINS / self.scale.divisor).max(1);
        let (mut joined, mut measured) = (0, Vec::new());
        for (phase, before) in [("empty", 0), ("a third", self.members / 3), ("full", self.members)] {
            if before > joined {
                join(before - joined, joined)?;
                joined = before;
            }
            // The others are told of the joins before.
            thread::sleep(10 * JOIN_PAUSE);
            let (cpu, bytes) = (self.server.cpu_seconds()?, self.server.bytes_out()?);
            for _ in 0..joins {
                join(1, joined)?;
                joined += 1;
                thread::sleep(JOIN_PAUSE);
            }
            thread::sleep(10 * JOIN_PAUSE);
            let each = |total: f64| total / f64::from(joins);
            let figures = Figures::Joins {
                cpu_ms_per_join: each((self.server.cpu_seconds()? - cpu) * 1e3),
                kib_per_join: each((self.server.bytes_out()? - bytes) as f64 / 1024.0),
            };
            measured.push(Measured { members: before, ..self.measured(phase, figures, cpu)? });
        }
        Ok(measured)
    }

    fn slow(&mut self) -> anyhow::Result<Vec<Measured>> {
        const EVERY: u32 = 100;
        let assignment = Assignment { slow_every: Some(EVERY), ..self.assignment(self.members, false) };
        let mut members = Fleet::start(&assignment)?;
        let mut publisher = self.publisher()?;
        let shares = self.shares(self.members, Some(EVERY));
        let (stop, id, begun) = (AtomicBool::new(false), self.server.id(), Instant::now());
        thread::scope(|scope| {
            let sampler = scope.spawn(|| {
                let mut curve = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(kib) = resident_kib(id) {
                        curve.push((begun.elapsed().as_secs_f64(), kib));
                    }
                    thread::sleep(Duration::from_millis(250));
                }
                curve
            });
            let measured = self.slow_phases(&mut publisher, &mut members, &shares);
            stop.store(true, Ordering::Relaxed);
            let curve = sampler.join().map_err(|_| anyhow::anyhow!("reading the memory failed"))?;
            let mut measured = measured?;
            if let Some(Measured { result: Figures::Delivery(delivery), .. }) = measured.last_mut() {
                delivery.memory = curve;
            }
            Ok(measured)
        })
    }

    fn slow_phases(
        &self,
        publisher: &mut Fleet,
        members: &mut Fleet,
        shares: &[u64],
    ) -> anyhow::Result<Vec<Measured>> {
        const RATE: f64 = 25.0;
        let all_read = self.phase("all read", Some(RATE), publisher, members, shares)?;
        members.command(&WorkerCommand::StopReading)?;
        let seconds = self.scale.seconds * 2.0;
        Ok(vec![all_read, self.phase_of("1 % stopped", Some(RATE), seconds, publisher, members, shares)?])
    }
}
