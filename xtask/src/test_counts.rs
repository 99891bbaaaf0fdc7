//! Counts of tests that passed, failed and were skipped, read from the output of test runners.

use std::fmt;
use std::ops::AddAssign;

/// Counts of tests. Displayed as `3 passed, 0 failed, 1 skipped`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct TestCounts {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed or did not end.
    pub failed: u64,
    /// Tests that were not run.
    pub skipped: u64,
}

impl TestCounts {
    /// Returns the counts in one line of output: the summary of nextest, a `test result` of cargo test, a count of node's
    /// test runner, or the last line of [`Steps`](crate::steps::Steps). Any other line has none. Nextest shows the output of
    /// each failed test indented, and twice; a result in there is none.
    pub fn of_line(line: &str) -> Self {
        let summary = line.trim_start().strip_prefix("Summary [").unwrap_or_default();
        if let Some((_, counts)) =
            summary.split_once("tests run:").or_else(|| summary.split_once("test run:"))
        {
            return Self {
                passed: before(counts, "passed"),
                failed: before(counts, "failed")
                    + before(counts, "timed out")
                    + before(counts, "exec failed"),
                skipped: before(counts, "skipped"),
            };
        }
        if let Some(counts) = line.strip_prefix("test result:") {
            return Self {
                passed: before(counts, "passed"),
                failed: before(counts, "failed"),
                skipped: before(counts, "ignored"),
            };
        }
        if let Some(count) = line.strip_prefix("ℹ ") {
            let after =
                |word| count.strip_prefix(word).and_then(|rest| rest.trim().parse().ok()).unwrap_or(0);
            return Self {
                passed: after("pass "),
                failed: after("fail ") + after("cancelled "),
                skipped: after("skipped ") + after("todo "),
            };
        }
        Self::displayed(line.trim_end()).unwrap_or_default()
    }

    /// Parses the output of `Display`.
    fn displayed(line: &str) -> Option<Self> {
        let mut counts = line.split(", ");
        let mut next = |word: &str| counts.next()?.strip_suffix(word)?.trim_end().parse().ok();
        Some(Self { passed: next("passed")?, failed: next("failed")?, skipped: next("skipped")? })
    }
}

/// Returns the number that stands before `word` in a list such as `ok. 5 passed (1 slow), 2 failed; 0 ignored`.
fn before(counts: &str, word: &str) -> u64 {
    counts
        .split([',', ';', '.', ':', '('])
        .filter_map(|part| part.trim().strip_suffix(word))
        .find_map(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

impl AddAssign for TestCounts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for TestCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::TestCounts;

    #[track_caller]
    fn check(line: &str, passed: u64, failed: u64, skipped: u64) {
        assert_eq!(TestCounts::of_line(line), TestCounts { passed, failed, skipped }, "{line}");
    }

    #[test]
    fn counts_are_read_from_each_runner() {
        check("     Summary [   0.010s] 12 tests run: 12 passed, 3 skipped", 12, 0, 3);
        check(
            "     Summary [   9.8s] 4 tests run: 1 passed (1 slow), 2 failed, 1 timed out, 0 skipped",
            1,
            3,
            0,
        );
        check("     Summary [   0.010s] 1 test run: 1 passed, 0 skipped", 1, 0, 0);
        check("test result: ok. 5 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out", 5, 0, 2);
        check("test result: FAILED. 5 passed; 1 failed; 0 ignored; 0 measured", 5, 1, 0);
        check("    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured", 0, 0, 0);
        check("7 passed, 1 failed, 2 skipped", 7, 1, 2);
        check("ℹ pass 7", 7, 0, 0);
        check("ℹ fail 1", 0, 1, 0);
        check("ℹ skipped 2", 0, 0, 2);
    }

    #[test]
    fn other_lines_count_nothing() {
        check("running 5 tests", 0, 0, 0);
        check("ℹ duration_ms 55", 0, 0, 0);
        check("test a::b ... ok", 0, 0, 0);
    }
}
