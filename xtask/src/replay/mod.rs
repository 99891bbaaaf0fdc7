//! `cargo xtask replay`: a recorded editing history through a real server, checked at every subscriber.

use std::process::{self, Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use self::author::{Author, Pace, Typed};
use self::progress::Progress;
use self::server::Server;
use self::subscriber::{Followed, Subscriber};
use self::trace::Trace;
use crate::cli::ReplayOptions;
use crate::process::{cargo, run as run_command};
use crate::{e2e, workspace};

mod author;
mod follower;
mod linear;
mod phoenix;
mod progress;
pub(crate) mod server;
mod subscriber;
mod text;
mod trace;

/// The trace that comes with the repository: a page of typing with corrections.
const SHORT_TRACE: &str = "xtask/traces/typed-page.json.gz";

/// How long nothing may arrive before the replay is given up.
const STALL: Duration = Duration::from_secs(60);

/// Runs the task. Unless told otherwise, server and client are built for release, and the release build of this
/// program does the work: a slow client would measure itself.
pub(crate) fn run(options: &ReplayOptions) -> anyhow::Result<ExitCode> {
    if !options.dev && cfg!(debug_assertions) {
        let mut build = cargo();
        build.args(["build", "--release", "--package", "relay-service", "--package", "xtask"]);
        run_command(&mut build, "correct what the compiler names above, or use --dev")?;
        let mut replay = Command::new(workspace::built("release", "xtask")?);
        let status = replay.args(std::env::args_os().skip(1)).status()?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let profile = if options.dev { "debug" } else { "release" };
    if options.dev && options.url.is_none() {
        e2e::build_server()?;
    }
    play(options, profile)?;
    Ok(ExitCode::SUCCESS)
}

/// Plays the short trace through the development build, which must be there.
pub(crate) fn run_short() -> anyhow::Result<()> {
    let options = ReplayOptions {
        trace: workspace::root().join(SHORT_TRACE),
        subscribers: 5,
        documents: 2,
        rate: None,
        edits: None,
        window: 64,
        url: None,
        dev: true,
    };
    play(&options, "debug")
}

fn play(options: &ReplayOptions, profile: &str) -> anyhow::Result<()> {
    let trace = Arc::new(Trace::read(&options.trace, options.edits)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(url) = &options.url {
        return runtime.block_on(play_at(url, options, trace));
    }
    let server = Server::start(&workspace::built(profile, "relay")?)?;
    runtime.block_on(play_at(&server.url(), options, trace))?;
    server.stop()
}

/// What a task of the replay found.
enum Found {
    Typed { document: usize, typed: Typed },
    Followed { document: usize, followed: Followed },
}

async fn play_at(url: &str, options: &ReplayOptions, trace: Arc<Trace>) -> anyhow::Result<()> {
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
                anyhow::Ok(Found::Followed { document, followed })
            });
        }
        tasks.spawn(async move {
            let typed = author.write(pace, progress).await?;
            Ok(Found::Typed { document, typed })
        });
    }
    let expected = edits as u64 * u64::from(documents) * u64::from(subscribers);
    let found = watch(tasks, &deliveries, expected, pace).await?;
    report(&found, edits, started.elapsed(), expected)
}

/// Waits for all tasks, shows how far they are, and gives up when nothing moves.
async fn watch(
    mut tasks: JoinSet<anyhow::Result<Found>>,
    deliveries: &AtomicU64,
    expected: u64,
    pace: Pace,
) -> anyhow::Result<Vec<Found>> {
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

/// Compares what everybody found and prints the measurements.
fn report(found: &[Found], edits: usize, took: Duration, expected: u64) -> anyhow::Result<()> {
    let mut latencies = Histogram::<u64>::new(2)?;
    let (mut rejoins, mut typing, mut authors) = (0, Duration::ZERO, Vec::new());
    for found in found {
        if let Found::Typed { document, typed } = found {
            authors.push((*document, typed.digest));
            typing = typing.max(typed.took);
        }
    }
    for found in found {
        if let Found::Followed { document, followed } = found {
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
