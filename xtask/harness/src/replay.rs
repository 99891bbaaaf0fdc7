//! `cargo xtask replay`: a recorded editing history through a real server, checked at every subscriber.

use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use xtask::process::{cargo, run as run_command};
use xtask::{e2e, workspace};

use self::author::{Author, Pace, Typed};
use self::progress::Progress;
use self::subscriber::{Followed, Subscriber};
use self::trace::Trace;
use crate::relay_server::RelayServer;
use crate::{positive, run_release_build};

mod author;
mod follower;
mod linear;
mod phoenix;
mod progress;
mod subscriber;
mod text;
mod trace;

/// The time without a delivery after which the replay is given up.
const STALL: Duration = Duration::from_secs(60);

/// The options of `replay`.
#[derive(Args, Clone)]
pub struct Options {
    /// The editing history, JSON or gzipped JSON.
    trace: PathBuf,
    /// Connections that follow each document, beside its author's.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    subscribers: u32,
    /// Documents into which the history is played at the same time, each by an author of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    documents: u32,
    /// Edits per second and document; as fast as the server takes them when absent.
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
    /// Plays only the first edits of the history.
    #[arg(long, value_name = "COUNT")]
    edits: Option<usize>,
    /// Edits of one author that may be unacknowledged at a time.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    /// A running server, for instance `ws://127.0.0.1:7400`; one is started when absent.
    #[arg(long)]
    url: Option<String>,
    /// Uses the development build: quick to build, slow to run.
    #[arg(long)]
    dev: bool,
}

/// Runs the task. Server and client are built for release, except with `--dev`.
///
/// # Errors
/// When a build fails, the trace cannot be read, or a delivery is wrong or missing.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if !options.dev && cfg!(debug_assertions) {
        let mut build = cargo();
        build.args(["build", "--release", "--package", "relay-service", "--package", env!("CARGO_PKG_NAME")]);
        run_command(&mut build, "correct what the compiler names above, or use --dev")?;
        return run_release_build();
    }
    let profile = if options.dev { "debug" } else { "release" };
    if options.dev && options.url.is_none() {
        e2e::build_server()?;
    }
    play(options, profile)?;
    Ok(ExitCode::SUCCESS)
}

fn play(options: &Options, profile: &str) -> anyhow::Result<()> {
    let trace = Arc::new(Trace::read(&options.trace, options.edits)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(url) = &options.url {
        return runtime.block_on(play_at(url, options, trace));
    }
    let server = RelayServer::start(&workspace::built(profile, "relay")?)?;
    runtime.block_on(play_at(&server.url(), options, trace))?;
    server.stop()
}

/// The result of a task of the replay.
enum TaskResult {
    Typed { document: usize, typed: Typed },
    Followed { document: usize, followed: Followed },
}

async fn play_at(url: &str, options: &Options, trace: Arc<Trace>) -> anyhow::Result<()> {
    let (edits, documents, subscribers) = (trace.edits.len(), options.documents, options.subscribers);
    println!(
        "{}: {edits} edits into {documents} document(s) at {url}, {subscribers} subscriber(s) each",
        options.trace.file_name().unwrap_or_default().display()
    );
    let pace = Pace { rate: options.rate, window: options.window };
    let deliveries = Arc::new(AtomicU64::new(0));
    let run = format!("replay-{}-{}", process::id(), unix_millis());
    let url: Arc<str> = url.into();

    let mut joined = Vec::new();
    for document in 0..documents {
        let topic: Arc<str> = format!("document:{run}-{document}").into();
        let name = format!("author-{document}");
        let author = Author::join(name, &url, topic.clone(), trace.clone()).await?;
        let mut followers = Vec::new();
        for number in 0..subscribers {
            let name = format!("subscriber-{number}");
            followers.push(Subscriber::join(name, url.clone(), topic.clone(), trace.clone()).await?);
        }
        joined.push((author, followers));
    }

    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for (document, (author, followers)) in joined.into_iter().enumerate() {
        let progress = Arc::new(Progress::new(edits, deliveries.clone()));
        for subscriber in followers {
            let progress = progress.clone();
            tasks.spawn(async move {
                let followed = subscriber.follow(progress).await?;
                anyhow::Ok(TaskResult::Followed { document, followed })
            });
        }
        tasks.spawn(async move {
            let typed = author.write(pace, progress).await?;
            Ok(TaskResult::Typed { document, typed })
        });
    }
    let expected = edits as u64 * u64::from(documents) * u64::from(subscribers);
    let found = watch(tasks, &deliveries, expected, pace).await?;
    report(&found, edits, started.elapsed(), expected)
}

/// Waits for all tasks, shows their progress, and gives up after a time without deliveries.
async fn watch(
    mut tasks: JoinSet<anyhow::Result<TaskResult>>,
    deliveries: &AtomicU64,
    expected: u64,
    pace: Pace,
) -> anyhow::Result<Vec<TaskResult>> {
    let bar = ProgressBar::new(expected).with_style(ProgressStyle::with_template(
        "{elapsed} {wide_bar} {human_pos}/{human_len} deliveries, {per_sec}, {eta} left",
    )?);
    let stall =
        STALL.max(Duration::try_from_secs_f64(3.0 / pace.rate.unwrap_or(1.0)).unwrap_or(Duration::MAX));
    let mut tick = interval(Duration::from_millis(200));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut seen, mut moved) = (0, Instant::now());
    let mut found = Vec::new();
    loop {
        tokio::select! {
            done = tasks.join_next() => match done {
                Some(done) => found.push(done??),
                None => break,
            },
            _ = tick.tick() => {
                let now = deliveries.load(Ordering::Relaxed);
                if now > seen {
                    (seen, moved) = (now, Instant::now());
                    bar.set_position(now);
                } else if moved.elapsed() > stall {
                    bail!("nothing arrived for {} s, after {now} of {expected} deliveries", stall.as_secs());
                }
            }
        }
    }
    bar.finish_and_clear();
    Ok(found)
}

/// Compares the results of authors and subscribers, and prints the measurements.
fn report(found: &[TaskResult], edits: usize, took: Duration, expected: u64) -> anyhow::Result<()> {
    let mut latencies = Histogram::<u64>::new(2)?;
    let (mut rejoins, mut typing, mut authors) = (0, Duration::ZERO, Vec::new());
    for found in found {
        if let TaskResult::Typed { document, typed } = found {
            authors.push((*document, typed.digest));
            typing = typing.max(typed.took);
        }
    }
    for found in found {
        if let TaskResult::Followed { document, followed } = found {
            let author = authors.iter().find(|(written, _)| written == document).map(|(_, digest)| *digest);
            let same = author.context("an author is missing")? == followed.digest;
            ensure!(same, "a subscriber of document {document} saw other ids or seqs than were acknowledged");
            latencies.add(&followed.latencies)?;
            rejoins += followed.rejoins;
        }
    }
    ensure!(latencies.len() == expected, "{} of {expected} deliveries were measured", latencies.len());
    let edits = edits * authors.len();
    println!(
        "edits       {edits} in {:.2} s: {:.0} events/s",
        typing.as_secs_f64(),
        per_second(edits as f64, typing)
    );
    println!(
        "deliveries  {expected} in {:.2} s: {:.0} deliveries/s",
        took.as_secs_f64(),
        per_second(expected as f64, took)
    );
    let millis = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "latency     p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, max {:.2} ms",
        millis(0.5),
        millis(0.9),
        millis(0.99),
        millis(0.999),
        latencies.max() as f64 / 1000.0
    );
    println!("rejoins     {rejoins}");
    println!("every subscriber got every edit once and in order, and ended with the right text");
    Ok(())
}

fn per_second(count: f64, took: Duration) -> f64 {
    count / took.as_secs_f64().max(f64::EPSILON)
}

fn unix_millis() -> u128 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis()
}
