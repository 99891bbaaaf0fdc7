//! The problems of a rule document: all of them at once, each with its line.

use std::fmt;

use serde::Serialize;

/// The problems of a refused rule document, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct RuleSetError {
    problems: Vec<RuleProblem>,
}

impl RuleSetError {
    /// The most problems that are listed; further ones are counted only.
    const MAX_PROBLEMS: usize = 100;

    pub(super) fn of(mut problems: Vec<RuleProblem>) -> Self {
        problems.sort_by_key(|problem| problem.line);
        if problems.len() > Self::MAX_PROBLEMS {
            let more = problems.len() - Self::MAX_PROBLEMS;
            problems.truncate(Self::MAX_PROBLEMS);
            let line = problems.last().map_or(1, |problem| problem.line);
            problems.push(RuleProblem::at(line, format!("further problems that are not listed: {more}")));
        }
        Self { problems }
    }

    /// Returns the problems.
    pub fn problems(&self) -> &[RuleProblem] {
        &self.problems
    }
}

/// One problem per line.
impl fmt::Display for RuleSetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for RuleSetError {}

/// A problem of a rule document, or a warning about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RuleProblem {
    /// The line, from 1.
    pub line: usize,
    /// The rule or target, where it is known: `rule quality`, `target audit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The problem, and how to solve it.
    pub reason: String,
}

impl RuleProblem {
    pub(super) fn at(line: usize, reason: impl Into<String>) -> Self {
        Self { line, subject: None, reason: reason.into() }
    }
}

impl fmt::Display for RuleProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.subject {
            Some(subject) => write!(f, "line {}, {subject}: {}", self.line, self.reason),
            None => write!(f, "line {}: {}", self.line, self.reason),
        }
    }
}
