//! A run of named steps, with a heading and a duration for each and a summary at the end.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::test_counts::TestCounts;

/// The result of a step that did not fail.
pub enum StepOutcome {
    /// The step was run.
    Done,
    /// The step was not run: the reason, and the line that would make it run.
    Skipped(String),
}

enum StepResult {
    Done,
    Skipped(String),
    Failed(String),
}

/// The steps of one task, run one after another. A failed step does not keep the others from running.
#[derive(Default)]
pub struct Steps {
    finished: Vec<(&'static str, StepResult, Duration)>,
    counts: TestCounts,
}

impl Steps {
    /// Runs a step, which adds the tests that it ran to the counts that it is given. A step that fails without a failed
    /// test counts as one.
    pub fn run(
        &mut self,
        name: &'static str,
        step: impl FnOnce(&mut TestCounts) -> anyhow::Result<StepOutcome>,
    ) {
        println!("\n== {name}");
        let started = Instant::now();
        let mut counts = TestCounts::default();
        let result = match step(&mut counts) {
            Ok(StepOutcome::Done) => StepResult::Done,
            Ok(StepOutcome::Skipped(reason)) => StepResult::Skipped(reason),
            Err(error) => StepResult::Failed(format!("{error:#}")),
        };
        if matches!(result, StepResult::Failed(_)) && counts.failed == 0 {
            counts.failed = 1;
        }
        let took = started.elapsed();
        println!("== {name}: {} in {:.1} s", word(&result), took.as_secs_f64());
        self.counts += counts;
        self.finished.push((name, result, took));
    }

    /// Prints the summary, whose last line is the counts of tests, and returns the exit code of the process.
    pub fn finish(self) -> ExitCode {
        let mut failed = self.counts.failed > 0;
        println!("\n== summary");
        for (name, result, took) in &self.finished {
            println!("{:8} {:>7.1} s  {name}", word(result), took.as_secs_f64());
            if let StepResult::Skipped(why) | StepResult::Failed(why) = result {
                for line in why.lines() {
                    println!("{:20}{line}", "");
                }
            }
            failed |= matches!(result, StepResult::Failed(_));
        }
        println!("{}", self.counts);
        if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

fn word(result: &StepResult) -> &'static str {
    match result {
        StepResult::Done => "ok",
        StepResult::Skipped(_) => "skipped",
        StepResult::Failed(_) => "FAILED",
    }
}
