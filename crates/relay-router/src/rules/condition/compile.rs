//! The compiler of conditions, which runs on a thread with a large stack.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::check::{self, Checked};
use super::regexes::Regexes;
use super::{Condition, ConditionProblem};

/// A stack that suffices for any text of [`Condition::MAX_BYTES`] bytes. Only used pages take memory.
const STACK_BYTES: usize = 64 * 1024 * 1024;

/// Compiles each of `sources` to a condition or to its problems.
///
/// # Errors
/// A message, if the thread cannot be started.
pub(in crate::rules) fn compile_all(
    sources: &[&str],
) -> Result<Vec<Result<Condition, Vec<ConditionProblem>>>, String> {
    if sources.is_empty() {
        return Ok(Vec::new());
    }
    // The parser and its trees recurse as deep as the text says, and a stack overflow ends the process. A
    // tree that is too deep is also dropped on that thread.
    std::thread::scope(|scope| {
        let all = || sources.iter().map(|source| compile_caught(source)).collect();
        let thread = std::thread::Builder::new().name("rules".to_owned()).stack_size(STACK_BYTES);
        let thread = thread
            .spawn_scoped(scope, all)
            .map_err(|error| format!("no thread could be started: {error}"))?;
        thread.join().map_err(|_| "compiling them failed".to_owned())
    })
}

fn compile_caught(source: &str) -> Result<Condition, Vec<ConditionProblem>> {
    catch_unwind(AssertUnwindSafe(|| compile(source))).unwrap_or_else(|_| {
        Err(vec![ConditionProblem {
            line: 1,
            column: 1,
            reason: "the CEL parser cannot read this; write it in another way".to_owned(),
        }])
    })
}

fn compile(source: &str) -> Result<Condition, Vec<ConditionProblem>> {
    let at_start = |reason| vec![ConditionProblem { line: 1, column: 1, reason }];
    if source.len() > Condition::MAX_BYTES {
        return Err(at_start(format!(
            "it has {} bytes, at most {} are allowed",
            source.len(),
            Condition::MAX_BYTES
        )));
    }
    if source.trim().is_empty() {
        return Err(at_start("it is empty; leave `when` out to match always".to_owned()));
    }
    let program = super::event::environment().compile(source).map_err(|errors| {
        let problems = errors.errors.iter().take(5).map(|error| ConditionProblem {
            line: usize::try_from(error.pos.0).unwrap_or(1).max(1),
            column: usize::try_from(error.pos.1).unwrap_or(1).max(1),
            reason: error.msg.chars().take(256).collect(),
        });
        problems.collect::<Vec<_>>()
    })?;
    let Checked { cost } = check::check(source, program.expression(), program.source_info())?;
    let mut expression = program.expression().clone();
    let regexes = Regexes::taken_from(&mut expression);
    Ok(Condition { source: source.into(), program: expression, regexes, cost })
}
