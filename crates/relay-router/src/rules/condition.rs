//! Conditions in CEL, the Common Expression Language: compiled and type-checked when rules are loaded,
//! evaluated against events later.
//!
//! The cost of a condition is bounded before it runs. Its length, its depth, and the work of its evaluation
//! on the largest event have limits: [`MAX_BYTES`](Condition::MAX_BYTES),
//! [`MAX_DEPTH`](Condition::MAX_DEPTH), [`MAX_COST`](Condition::MAX_COST). Regular expressions are constants
//! and compiled beforehand. A payload above [`MAX_PAYLOAD_BYTES`](Condition::MAX_PAYLOAD_BYTES) fails the
//! condition and is not parsed. A panic of the CEL crate becomes an error.

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

/// A compiled condition.
pub struct Condition {
    source: Box<str>,
    program: cel::IdedExpr,
    regexes: Regexes,
    cost: u64,
}

impl Condition {
    /// The most bytes of a condition's text.
    pub const MAX_BYTES: usize = 2048;
    /// The most levels of nesting; each link of a chain such as `a || b || c` counts as one.
    pub const MAX_DEPTH: usize = 64;
    /// The largest cost of a condition. A unit is about one step of the evaluator: a variable, a comparison
    /// of 16 bytes, or one iteration of a loop.
    pub const MAX_COST: u64 = 1_000_000;
    /// The largest payload that a condition reads, in bytes.
    pub const MAX_PAYLOAD_BYTES: usize = event::MAX_PAYLOAD_BYTES;

    /// Returns the text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns the largest possible cost of an evaluation, in the units of [`MAX_COST`](Self::MAX_COST).
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// Evaluates the condition for the event of `view`.
    pub(super) fn holds(&self, view: &EventView<'_>) -> Result<bool, ConditionError> {
        // The evaluated values are only read, so that a panic leaves none of them half changed.
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

/// The reason that an evaluation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct ConditionError(String);

/// Describes `error` without the values that it may carry: a payload can be long or confidential.
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

/// A problem of a condition, with its line and column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConditionProblem {
    /// The line within the condition, from 1.
    pub(super) line: usize,
    /// The character within that line, from 1.
    pub(super) column: usize,
    /// The problem.
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
