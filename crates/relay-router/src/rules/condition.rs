//! Conditions in CEL, the Common Expression Language: compiled and type-checked when rules are loaded, evaluated
//! against events later.
//!
//! What a condition may cost is known before it ever runs: its length, its depth and the most work that its evaluation
//! can take on the largest event are bounded ([`MAX_BYTES`](Condition::MAX_BYTES), [`MAX_DEPTH`](Condition::MAX_DEPTH),
//! [`MAX_COST`](Condition::MAX_COST)), regular expressions must be constants and are compiled beforehand, and
//! payloads above [`MAX_PAYLOAD_BYTES`](Condition::MAX_PAYLOAD_BYTES) fail the condition instead of being parsed. The
//! CEL crate's own panics, should it have any, become errors.

mod check;
mod compile;
mod event;
mod regexes;
mod types;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use cel::common::types::CelBool;
use cel::{ExecutionError, Value};

pub(super) use self::compile::compile_all;
pub(super) use self::event::EventView;
use self::regexes::Regexes;

/// A condition, compiled.
pub struct Condition {
    source: Box<str>,
    program: cel::IdedExpr,
    regexes: Regexes,
    cost: u64,
}

impl Condition {
    /// The most bytes of a condition's text.
    pub const MAX_BYTES: usize = 2048;
    /// How deep a condition's parts may lie in one another; chains such as `a || b || c` count each link.
    pub const MAX_DEPTH: usize = 64;
    /// The most that a condition may cost. A unit is about one step of the evaluator: a variable, a comparison of 16
    /// bytes, one turn of a loop.
    pub const MAX_COST: u64 = 1_000_000;
    /// The most bytes of a payload that conditions look at.
    pub const MAX_PAYLOAD_BYTES: usize = 64 * 1024;

    /// What was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The most that evaluating it can cost, in the units of [`MAX_COST`](Self::MAX_COST).
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// Whether it holds for the event that `view` shows.
    pub(super) fn holds(&self, view: &EventView<'_>) -> Result<bool, ConditionError> {
        // A panic leaves nothing half changed: what is evaluated against does not change but by being looked at.
        let evaluate = AssertUnwindSafe(|| {
            let scope = event::EvaluationScope { view, regexes: &self.regexes };
            let context = event::context(&scope);
            let value = Value::resolve_val(&self.program, &context)?;
            Ok(value.downcast_ref::<CelBool>().map(|value| *value.inner()))
        });
        match catch_unwind(evaluate) {
            Ok(Ok(Some(value))) => Ok(value),
            Ok(Ok(None)) => Err(ConditionError("it is neither true nor false".to_owned())),
            Ok(Err(error)) => Err(ConditionError(describe(&error, view))),
            Err(_) => Err(ConditionError("the evaluator failed".to_owned())),
        }
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Condition({:?}, cost {})", self.source, self.cost)
    }
}

/// Why a condition could not be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct ConditionError(String);

/// `error` for people, without the values that it may carry: a payload can be long, and is not everybody's to read.
fn describe(error: &ExecutionError, view: &EventView<'_>) -> String {
    if let (ExecutionError::UndeclaredReference(_), Some(reason)) = (error, view.payload_refused()) {
        return reason.to_owned();
    }
    match error {
        ExecutionError::NoSuchKey(key) => {
            format!("there is no key `{}`", key.chars().take(64).collect::<String>())
        }
        ExecutionError::IndexOutOfBounds(_) => "an index is out of bounds".to_owned(),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
            "it divides by zero".to_owned()
        }
        ExecutionError::Overflow(..) => "a number overflows".to_owned(),
        ExecutionError::NoSuchOverload(error) => error.to_string().chars().take(256).collect(),
        ExecutionError::FunctionError { function, message } => {
            format!("`{function}`: {}", message.chars().take(128).collect::<String>())
        }
        ExecutionError::UnexpectedType { got, want } => format!("a value is of type {got}, not {want}"),
        _ => "values of types that do not fit each other".to_owned(),
    }
}

/// What is wrong with a condition, and where in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConditionProblem {
    /// The line within the condition, from 1.
    pub(super) line: usize,
    /// The character within that line, from 1.
    pub(super) column: usize,
    /// What is wrong.
    pub(super) reason: String,
}

impl fmt::Display for ConditionProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            1 => write!(f, "column {}: {}", self.column, self.reason),
            line => write!(f, "line {line} of it, column {}: {}", self.column, self.reason),
        }
    }
}
