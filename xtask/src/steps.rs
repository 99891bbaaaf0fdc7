//! A run of named steps: headings with durations while it goes, a summary at the end.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::tally::Tally;

/// What became of a step that did not fail.
pub(crate) enum Outcome {
    Done,
    /// Not run, with the reason and the line that would make it run.
    Skipped(String),
}

enum FailureKind {
    Done,
    Skipped(String),
    Failed(String),
}

/// The steps of one task, run one after another; a failed one does not keep the others from running.
#[derive(Default)]
pub(crate) struct Steps {
    finished: Vec<(&'static str, FailureKind, Duration)>,
    tally: Tally,
}

impl Steps {
    /// Runs a step. It adds the tests that it ran to the tally that it is given; a step that fails without a
    /// failed test counts as one.
    pub(crate) fn run(
        &mut self,
        name: &'static str,
        step: impl FnOnce(&mut Tally) -> anyhow::Result<Outcome>,
    ) {
        println!("\n== {name}");
        let started = Instant::now();
        let mut tally = Tally::default();
        let verdict = match step(&mut tally) {
            Ok(Outcome::Done) => FailureKind::Done,
            Ok(Outcome::Skipped(reason)) => FailureKind::Skipped(reason),
            Err(error) => FailureKind::Failed(format!("{error:#}")),
        };
        if matches!(verdict, FailureKind::Failed(_)) && tally.failed == 0 {
            tally.failed = 1;
        }
        let took = started.elapsed();
        println!("== {name}: {} in {:.1} s", word(&verdict), took.as_secs_f64());
        self.tally += tally;
        self.finished.push((name, verdict, took));
    }

    /// Prints the summary, whose last line is the tally, and says how the process is to end.
    pub(crate) fn finish(self) -> ExitCode {
        let mut failed = self.tally.failed > 0;
        println!("\n== summary");
        for (name, verdict, took) in &self.finished {
            println!("{:8} {:>7.1} s  {name}", word(verdict), took.as_secs_f64());
            if let FailureKind::Skipped(why) | FailureKind::Failed(why) = verdict {
                for line in why.lines() {
                    println!("{:20}{line}", "");
                }
            }
            failed |= matches!(verdict, FailureKind::Failed(_));
        }
        println!("{}", self.tally);
        if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

fn word(verdict: &FailureKind) -> &'static str {
    match verdict {
        FailureKind::Done => "ok",
        FailureKind::Skipped(_) => "skipped",
        FailureKind::Failed(_) => "FAILED",
    }
}
