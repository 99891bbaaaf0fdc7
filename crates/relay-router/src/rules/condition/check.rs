//! The checker of parsed conditions: it checks their types and bounds their cost before they run.
//!
//! One walk over the tree computes for each part its type, the largest size of its value, and the most work
//! of its evaluation. The type of a payload's value is known only at evaluation.

use std::collections::HashMap;

use cel::IdedExpr;
use cel::common::ast::{ComprehensionExpr, EntryExpr, Expr, LiteralValue, SelectExpr, SourceInfo};

use super::event::FIELDS;
use super::types::Ty;
use super::{Condition, ConditionProblem, regexes};
use crate::rules::closest_match::closest_match;

mod functions;

/// The most problems that are reported for one condition.
const MAX_PROBLEMS: usize = 5;
/// The bytes that one unit of cost compares or searches.
const BYTES_A_UNIT: u64 = 16;
/// The most entries of a list or map in a payload: each takes at least two bytes.
const PAYLOAD_ENTRIES: u64 = Condition::MAX_PAYLOAD_BYTES as u64 / 2;

/// The result of the check.
pub(super) struct Checked {
    /// The largest possible cost.
    pub(super) cost: u64,
}

/// Checks `expression`, which was parsed from `source`.
pub(super) fn check(
    source: &str,
    expression: &IdedExpr,
    offsets: &SourceInfo,
) -> Result<Checked, Vec<ConditionProblem>> {
    let mut checker =
        Checker { source, offsets, problems: Vec::new(), variables: HashMap::new(), depth: 0, at: 0 };
    let shape = checker.shape(expression);
    if !shape.ty.fits(&Ty::Bool) {
        checker.report(expression.id, format!("a condition must be a bool, this is {}", shape.ty));
    }
    if checker.problems.is_empty() && shape.cost > Condition::MAX_COST {
        let (cost, max) = (shape.cost, Condition::MAX_COST);
        checker.report(
            expression.id,
            format!(
                "it can cost {cost}, at most {max} is allowed; loop over less, for instance not inside another loop"
            ),
        );
    }
    if checker.problems.is_empty() { Ok(Checked { cost: shape.cost }) } else { Err(checker.problems) }
}

/// The type and size of a part's value, and the largest cost of its evaluation.
#[derive(Debug, Clone)]
struct Shape {
    ty: Ty,
    /// The most bytes of a text, or entries of a list or map.
    size: u64,
    /// The most bytes or entries of its elements.
    inner: u64,
    /// The bytes that an operation on the value reads. This is the size, except in a loop over a part of the
    /// payload. All iterations of such a loop together read at most the payload, so that each counts as the
    /// average of the most iterations.
    work: u64,
    cost: u64,
}

impl Shape {
    fn new(ty: Ty, size: u64, cost: u64) -> Self {
        Self { ty, size, inner: 1, work: size, cost }
    }

    /// A value of unknown type: a part of the payload.
    fn open(cost: u64) -> Self {
        let bytes = Condition::MAX_PAYLOAD_BYTES as u64;
        Self { ty: Ty::Dyn, size: bytes, inner: bytes, work: bytes, cost }
    }

    fn with_cost(mut self, cost: u64) -> Self {
        self.cost = cost;
        self
    }

    /// Returns the shape of an element, by a loop or an index.
    fn entry(&self, cost: u64) -> Self {
        let ty = match &self.ty {
            Ty::List(of) => (**of).clone(),
            Ty::Map(_, value) => (**value).clone(),
            _ => return Self { work: self.work, ..Self::open(cost) },
        };
        match ty {
            Ty::Dyn | Ty::List(_) | Ty::Map(..) if self.inner > PAYLOAD_ENTRIES => {
                Self { ty, ..Self::open(cost) }
            }
            ty => Self { ty, size: self.inner, inner: self.inner, work: self.inner, cost },
        }
    }

    /// Returns the most iterations of a loop over it.
    fn iterations(&self) -> u64 {
        if self.ty.is_open() { self.size.min(PAYLOAD_ENTRIES) } else { self.size }
    }
}

struct Checker<'a> {
    source: &'a str,
    offsets: &'a SourceInfo,
    problems: Vec<ConditionProblem>,
    /// The variables of the open loops.
    variables: HashMap<String, Vec<Shape>>,
    depth: usize,
    /// The last known offset of a part; parts that macros made have none.
    at: usize,
}

impl Checker<'_> {
    fn report(&mut self, id: u64, reason: impl Into<String>) {
        let at = self.offsets.offset_for(id).map_or(self.at, |(start, _)| start as usize);
        let before = self.source.get(..at).unwrap_or(self.source);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|char| *char != '\n').count() + 1;
        let problem = ConditionProblem { line, column, reason: reason.into() };
        if self.problems.len() < MAX_PROBLEMS && !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Reports a problem as [`report`](Self::report) does. The part then counts as a value of unknown type,
    /// so that it causes no further problems.
    fn refuse(&mut self, id: u64, reason: impl Into<String>) -> Shape {
        self.report(id, reason);
        Shape::open(1)
    }

    fn shape(&mut self, expression: &IdedExpr) -> Shape {
        if self.depth == Condition::MAX_DEPTH {
            let max = Condition::MAX_DEPTH;
            return self.refuse(
                expression.id,
                format!("it is nested deeper than {max} levels; split it into several rules"),
            );
        }
        if let Some((start, _)) = self.offsets.offset_for(expression.id) {
            self.at = start as usize;
        }
        self.depth += 1;
        let shape = match &expression.expr {
            Expr::Literal(literal) => of_literal(literal),
            Expr::Ident(name) => self.ident(expression.id, name),
            Expr::Select(select) => self.select(expression.id, select),
            Expr::Call(call) => self.call(expression.id, call),
            Expr::Comprehension(comprehension) => self.comprehension(expression.id, comprehension),
            Expr::List(list) => {
                let mut whole = Shape::new(Ty::list(Ty::Never), list.elements.len() as u64, 1);
                for element in &list.elements {
                    let element = self.shape(element);
                    whole.inner = whole.inner.max(element.size).max(element.inner);
                    whole.cost = whole.cost.saturating_add(element.cost).saturating_add(1);
                    whole.ty = whole.ty.or(Ty::list(element.ty));
                }
                whole
            }
            Expr::Map(map) => {
                let mut whole = Shape::new(
                    Ty::Map(Box::new(Ty::Never), Box::new(Ty::Never)),
                    map.entries.len() as u64,
                    1,
                );
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { continue };
                    let (key, value) = (self.shape(&entry.key), self.shape(&entry.value));
                    if !matches!(key.ty, Ty::Text | Ty::Int | Ty::Uint | Ty::Bool | Ty::Dyn) {
                        self.report(entry.key.id, format!("{} cannot be the key of a map", key.ty));
                    }
                    whole.inner = whole.inner.max(value.size).max(value.inner).max(key.size);
                    whole.cost =
                        whole.cost.saturating_add(key.cost).saturating_add(value.cost).saturating_add(2);
                    whole.ty = whole.ty.or(Ty::Map(Box::new(key.ty), Box::new(value.ty)));
                }
                whole
            }
            Expr::Struct(made) => {
                self.refuse(expression.id, format!("messages such as `{}` cannot be made", made.type_name))
            }
            Expr::Unspecified => self.refuse(expression.id, "something is missing"),
        };
        self.depth -= 1;
        shape
    }

    fn ident(&mut self, id: u64, name: &str) -> Shape {
        if let Some(shape) = self.variables.get(name).and_then(|shapes| shapes.last()) {
            return shape.clone();
        }
        match name {
            "event" => self.refuse(
                id,
                "`event` has no value of its own; name one of its fields, for instance `event.kind`",
            ),
            "bool" | "int" | "uint" | "double" | "string" | "bytes" | "list" | "map" | "null_type"
            | "type" => Shape::new(Ty::Type, 1, 1),
            _ => {
                let near = closest_match(name, FIELDS.iter().map(|(field, ..)| *field));
                let hint = near.map_or_else(
                    || "the only one is `event`".to_owned(),
                    |near| format!("did you mean `event.{near}`?"),
                );
                self.refuse(id, format!("there is no variable `{name}`; {hint}"))
            }
        }
    }

    fn select(&mut self, id: u64, select: &SelectExpr) -> Shape {
        if let Expr::Ident(name) = &select.operand.expr
            && name == "event"
        {
            let Some((field, ty, size)) = FIELDS.iter().find(|(field, ..)| *field == select.field) else {
                let near = closest_match(&select.field, FIELDS.iter().map(|(field, ..)| *field));
                let known = || FIELDS.iter().map(|(field, ..)| *field).collect::<Vec<_>>().join("`, `");
                let hint = near.map_or_else(
                    || format!("it has `{}`", known()),
                    |near| format!("did you mean `{near}`?"),
                );
                return self.refuse(id, format!("an event has no field `{}`; {hint}", select.field));
            };
            if select.test {
                return self
                    .refuse(id, format!("`event.{field}` is always there; `has` is for keys of maps"));
            }
            return match *field {
                "metadata" => Shape {
                    ty: Ty::Map(Box::new(Ty::Text), Box::new(Ty::Text)),
                    size: *size,
                    inner: relay_core::Metadata::MAX_VALUE_BYTES as u64,
                    work: *size,
                    cost: 1,
                },
                "payload" => Shape::open(1),
                _ => Shape::new(ty.clone(), *size, 1),
            };
        }
        let operand = self.shape(&select.operand);
        let cost = operand.cost.saturating_add(1);
        match &operand.ty {
            ty if ty.is_open() => {}
            Ty::Map(key, _) if key.fits(&Ty::Text) => {}
            ty => return self.refuse(id, format!("{ty} has no field `{}`", select.field)),
        }
        if select.test { Shape::new(Ty::Bool, 1, cost) } else { operand.entry(cost) }
    }

    fn comprehension(&mut self, id: u64, parts: &ComprehensionExpr) -> Shape {
        let range = self.shape(&parts.iter_range);
        let item = match &range.ty {
            Ty::Map(key, _) => Shape { ty: (**key).clone(), ..Shape::new(Ty::Dyn, range.inner, 1) },
            Ty::List(_) => range.entry(1),
            ty if ty.is_open() => Shape { work: range.work.div_ceil(PAYLOAD_ENTRIES), ..range.entry(1) },
            ty => {
                let reason = format!("{ty} cannot be looped over; lists and maps can");
                return self.refuse(id, reason);
            }
        };
        if [Some(&parts.iter_var), parts.iter_var2.as_ref()].into_iter().flatten().any(|name| name == "event")
        {
            return self.refuse(id, "a loop's variable cannot be called `event`");
        }
        let initial = self.shape(&parts.accu_init);
        let iterations = range.iterations();
        self.declare(&parts.accu_var, initial.clone().with_cost(1));
        self.declare(&parts.iter_var, item.clone());
        if let Some(second) = &parts.iter_var2 {
            self.declare(second, range.entry(1));
        }
        let condition = self.shape(&parts.loop_cond);
        let step = self.shape(&parts.loop_step);
        if !initial.ty.fits(&step.ty) {
            let reason = format!("what a loop tests must be {}, not {}", initial.ty, step.ty);
            self.report(parts.loop_step.id, reason);
        }
        if parts.iter_var2.is_some() {
            self.forget(parts.iter_var2.as_deref().unwrap_or_default());
        }
        self.forget(&parts.iter_var);
        self.forget(&parts.accu_var);
        // Each iteration adds to a list as much as the first.
        let final_size =
            step.size.saturating_sub(initial.size).saturating_mul(iterations).saturating_add(initial.size);
        let total = Shape {
            ty: initial.ty.or(step.ty),
            size: final_size,
            inner: step.inner.max(initial.inner),
            work: final_size,
            cost: 1,
        };
        self.declare(&parts.accu_var, total);
        let result = self.shape(&parts.result);
        self.forget(&parts.accu_var);
        // Two units are for taking the next item and keeping the step's result.
        let iteration = condition.cost.saturating_add(step.cost).saturating_add(2);
        let cost = [initial.cost, iterations.saturating_mul(iteration), result.cost]
            .into_iter()
            .fold(range.cost, u64::saturating_add);
        result.with_cost(cost)
    }

    fn declare(&mut self, name: &str, shape: Shape) {
        self.variables.entry(name.to_owned()).or_default().push(shape);
    }

    fn forget(&mut self, name: &str) {
        if let Some(shapes) = self.variables.get_mut(name) {
            shapes.pop();
        }
    }
}

fn of_literal(literal: &LiteralValue) -> Shape {
    let (ty, size) = match literal {
        LiteralValue::Boolean(_) => (Ty::Bool, 1),
        LiteralValue::Bytes(bytes) => (Ty::Bytes, bytes.inner().len()),
        LiteralValue::Double(_) => (Ty::Double, 1),
        LiteralValue::Int(_) => (Ty::Int, 1),
        LiteralValue::Null => (Ty::Null, 1),
        LiteralValue::String(text) => (Ty::Text, text.inner().len()),
        LiteralValue::UInt(_) => (Ty::Uint, 1),
    };
    Shape::new(ty, size as u64, 1)
}
