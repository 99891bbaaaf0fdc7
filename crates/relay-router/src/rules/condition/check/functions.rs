//! The operators and functions of conditions, with their types and costs. All others are refused.

use cel::IdedExpr;
use cel::common::ast::{CallExpr, Expr, LiteralValue, operators};

use super::{BYTES_A_UNIT, Checker, Shape, closest_match, regexes};
use crate::rules::condition::types::Ty;

/// The functions, for hints in messages.
const FUNCTIONS: &[&str] = &[
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "int",
    "uint",
    "double",
    "string",
    "bool",
    "bytes",
    "type",
    "dyn",
    "timestamp",
    "duration",
    "has",
    "all",
    "exists",
    "exists_one",
    "map",
    "filter",
    "getFullYear",
    "getMonth",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getMilliseconds",
];

/// The most bytes of a number or time as text.
const MAX_SHOWN_BYTES: u64 = 64;

impl Checker<'_> {
    pub(super) fn call(&mut self, id: u64, call: &CallExpr) -> Shape {
        let target = call.target.iter().map(|target| &**target);
        let parts: Vec<&IdedExpr> = target.chain(&call.args).collect();
        let name = call.func_name.as_str();
        if is_unknown(name) {
            let near = closest_match(name, FUNCTIONS.iter().copied());
            let hint = near.map_or_else(
                || format!("known are `{}`", FUNCTIONS.join("`, `")),
                |near| format!("did you mean `{near}`?"),
            );
            return self.refuse(id, format!("there is no function `{name}`; {hint}"));
        }
        let shapes: Vec<Shape> = parts.iter().map(|part| self.shape(part)).collect();
        let below = shapes.iter().fold(1, |cost: u64, shape| cost.saturating_add(shape.cost));
        let found = match (shapes.as_slice(), call.target.is_some()) {
            ([one], false) => unary(name, one).or_else(|| conversion(name, one)),
            ([one], true) => member(name, one),
            ([one, other], false) if name == MATCHES => self.matches(parts[1], one, other),
            ([one, other], true) if name == MATCHES => self.matches(parts[1], one, other),
            ([one, other], false) => binary(name, one, other),
            ([one, other], true) => text_test(name, one, other).or_else(|| of_zone(name, one, other)),
            ([condition, one, other], false)
                if name == operators::CONDITIONAL && condition.ty.fits(&Ty::Bool) =>
            {
                let mut shape = if one.size > other.size { one.clone() } else { other.clone() };
                shape.ty = one.ty.clone().or(other.ty.clone());
                shape.inner = one.inner.max(other.inner);
                Some(shape.with_cost(0))
            }
            _ => None,
        };
        if let Some(shape) = found {
            let cost = shape.cost.saturating_add(below);
            return shape.with_cost(cost);
        }
        let types: Vec<String> = shapes.iter().map(|shape| shape.ty.to_string()).collect();
        self.refuse(id, describe_misuse(name, &types))
    }

    fn matches(&mut self, pattern: &IdedExpr, text: &Shape, given: &Shape) -> Option<Shape> {
        if !text.ty.fits(&Ty::Text) || !given.ty.fits(&Ty::Text) {
            return None;
        }
        let Expr::Literal(LiteralValue::String(literal)) = &pattern.expr else {
            return Some(self.refuse(
                pattern.id,
                "the pattern of `matches` must be a literal text, so that it can be compiled beforehand",
            ));
        };
        if let Err(reason) = regexes::compile(literal.inner()) {
            return Some(
                self.refuse(
                    pattern.id,
                    format!("the pattern of `matches` is no regular expression: {reason}"),
                ),
            );
        }
        // The cost is linear in the text, and at worst in the pattern too.
        let cost =
            (text.work / BYTES_A_UNIT).saturating_add(1).saturating_mul(literal.inner().len() as u64 / 4 + 1);
        Some(Shape::new(Ty::Bool, 1, cost))
    }
}

const MATCHES: &str = "matches";

fn is_unknown(name: &str) -> bool {
    let is_operator = name.starts_with(['_', '@', '!', '-']);
    !is_operator && !FUNCTIONS.contains(&name)
}

fn describe_misuse(name: &str, types: &[String]) -> String {
    let symbol = name.trim_matches('_').trim_start_matches('@');
    match (name, types) {
        (operators::CONDITIONAL, _) => format!("`? :` does not take ({})", types.join(", ")),
        (operators::INDEX, [of, by]) => format!("{of} cannot be indexed with {by}"),
        (operators::NEGATE | operators::LOGICAL_NOT, [of]) => {
            format!("`{}` does not take {of}", name.trim_end_matches('_'))
        }
        (_, [one, other]) if name.starts_with(['_', '@']) => {
            format!("`{symbol}` does not take {one} and {other}")
        }
        _ => format!("`{name}` does not take ({})", types.join(", ")),
    }
}

fn bool_of(cost: u64) -> Shape {
    Shape::new(Ty::Bool, 1, cost)
}

fn bytes_cost(bytes: u64) -> u64 {
    bytes / BYTES_A_UNIT
}

fn unary(name: &str, one: &Shape) -> Option<Shape> {
    match name {
        operators::LOGICAL_NOT | operators::NOT_STRICTLY_FALSE if one.ty.fits(&Ty::Bool) => Some(bool_of(0)),
        operators::NEGATE if matches!(one.ty, Ty::Int | Ty::Double | Ty::Dyn) => {
            Some(Shape::new(one.ty.clone(), 1, 0))
        }
        _ => None,
    }
}

/// Returns the shape of a conversion or of `size`.
fn conversion(name: &str, one: &Shape) -> Option<Shape> {
    let ty = &one.ty;
    let is = |of: &[Ty]| ty.is_open() || of.contains(ty);
    let scalar = |ty| Some(Shape::new(ty, 1, bytes_cost(one.work)));
    match name {
        "size" => size(one),
        "int" if is(&[Ty::Int, Ty::Uint, Ty::Double, Ty::Text, Ty::Timestamp]) => scalar(Ty::Int),
        "uint" if is(&[Ty::Int, Ty::Uint, Ty::Double, Ty::Text]) => scalar(Ty::Uint),
        "double" if is(&[Ty::Int, Ty::Uint, Ty::Double, Ty::Text]) => scalar(Ty::Double),
        "bool" if is(&[Ty::Bool, Ty::Text]) => scalar(Ty::Bool),
        "timestamp" if is(&[Ty::Text, Ty::Timestamp, Ty::Int]) => scalar(Ty::Timestamp),
        "duration" if is(&[Ty::Text, Ty::Duration]) => scalar(Ty::Duration),
        "string" if is(&[Ty::Text, Ty::Bytes, Ty::Dyn]) => Some(Shape {
            work: one.work,
            ..Shape::new(Ty::Text, one.size.max(MAX_SHOWN_BYTES), bytes_cost(one.work))
        }),
        "string" if is(&[Ty::Bool, Ty::Int, Ty::Uint, Ty::Double, Ty::Timestamp, Ty::Duration]) => {
            Some(Shape::new(Ty::Text, MAX_SHOWN_BYTES, 1))
        }
        "bytes" if is(&[Ty::Text, Ty::Bytes]) => Some(Shape::new(Ty::Bytes, one.size, bytes_cost(one.work))),
        "type" => Some(Shape::new(Ty::Type, 1, 0)),
        "dyn" => {
            let mut shape = one.clone().with_cost(0);
            shape.ty = Ty::Dyn;
            Some(shape)
        }
        _ => None,
    }
}

fn size(one: &Shape) -> Option<Shape> {
    let is_sized = matches!(one.ty, Ty::Text | Ty::Bytes | Ty::List(_) | Ty::Map(..)) || one.ty.is_open();
    // The size of a text counts its characters, which reads all of it.
    is_sized.then(|| Shape::new(Ty::Int, 1, bytes_cost(one.work)))
}

fn member(name: &str, one: &Shape) -> Option<Shape> {
    if name == "size" {
        return size(one);
    }
    is_part_of_time(name, &one.ty).then(|| Shape::new(Ty::Int, 1, 0))
}

/// Returns the shape of a part of a time in a named zone.
fn of_zone(name: &str, one: &Shape, zone: &Shape) -> Option<Shape> {
    let is_time = matches!(one.ty, Ty::Timestamp | Ty::Dyn) && zone.ty.fits(&Ty::Text);
    (is_time && is_part_of_time(name, &one.ty)).then(|| Shape::new(Ty::Int, 1, 4))
}

fn is_part_of_time(name: &str, ty: &Ty) -> bool {
    let of_duration = matches!(name, "getHours" | "getMinutes" | "getSeconds" | "getMilliseconds");
    match ty {
        Ty::Duration => of_duration,
        Ty::Timestamp | Ty::Dyn => of_duration || name.starts_with("get"),
        _ => false,
    }
}

fn text_test(name: &str, one: &Shape, other: &Shape) -> Option<Shape> {
    if !one.ty.fits(&Ty::Text) || !other.ty.fits(&Ty::Text) {
        return None;
    }
    match name {
        "contains" => Some(bool_of(bytes_cost(one.work.saturating_add(other.work)))),
        "startsWith" | "endsWith" => Some(bool_of(bytes_cost(one.work.min(other.work)))),
        _ => None,
    }
}

fn binary(name: &str, one: &Shape, other: &Shape) -> Option<Shape> {
    let (a, b) = (&one.ty, &other.ty);
    let compared = bytes_cost(one.work.min(other.work)).saturating_mul(match a {
        Ty::List(_) | Ty::Map(..) => one.inner.min(other.inner).max(BYTES_A_UNIT),
        _ => 1,
    });
    match name {
        operators::LOGICAL_AND | operators::LOGICAL_OR => {
            (a.fits(&Ty::Bool) && b.fits(&Ty::Bool)).then(|| bool_of(0))
        }
        operators::EQUALS | operators::NOT_EQUALS => a.is_comparable_to(b).then(|| bool_of(compared)),
        operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS => {
            let has_order = |ty: &Ty| !matches!(ty, Ty::List(_) | Ty::Map(..) | Ty::Null | Ty::Type);
            (a.is_comparable_to(b) && has_order(a) && has_order(b)).then(|| bool_of(compared))
        }
        operators::IN => contained(one, other),
        operators::INDEX => indexed(one, other),
        operators::ADD => sum(one, other),
        operators::SUBSTRACT => {
            let ty = match (a, b) {
                (Ty::Timestamp, Ty::Timestamp) | (Ty::Duration, Ty::Duration) => Ty::Duration,
                (Ty::Timestamp, Ty::Duration) => Ty::Timestamp,
                _ => number(a, b)?,
            };
            Some(Shape::new(ty, 1, 0))
        }
        operators::MULTIPLY | operators::DIVIDE => Some(Shape::new(number(a, b)?, 1, 0)),
        operators::MODULO => match number(a, b)? {
            Ty::Double => None,
            ty => Some(Shape::new(ty, 1, 0)),
        },
        _ => None,
    }
}

/// Returns the type of an operation on two numbers of the same kind.
fn number(a: &Ty, b: &Ty) -> Option<Ty> {
    let is_open = |ty: &Ty| ty.is_open();
    match (a, b) {
        _ if is_open(a) && is_open(b) => Some(Ty::Dyn),
        _ if is_open(a) && (b.is_number() || matches!(b, Ty::Duration | Ty::Timestamp)) => Some(Ty::Dyn),
        _ if is_open(b) && (a.is_number() || matches!(a, Ty::Duration | Ty::Timestamp)) => Some(Ty::Dyn),
        _ => (a == b && a.is_number()).then(|| a.clone()),
    }
}

fn sum(one: &Shape, other: &Shape) -> Option<Shape> {
    let size = one.size.saturating_add(other.size);
    let ty = match (&one.ty, &other.ty) {
        (Ty::Text, Ty::Text) => Ty::Text,
        (Ty::Bytes, Ty::Bytes) => Ty::Bytes,
        (Ty::Timestamp, Ty::Duration) | (Ty::Duration, Ty::Timestamp) => Ty::Timestamp,
        (Ty::Duration, Ty::Duration) => Ty::Duration,
        (Ty::List(_), Ty::List(_)) => one.ty.clone().or(other.ty.clone()),
        (a, b) if a.is_open() && b.is_open() => Ty::Dyn,
        (a, Ty::Text | Ty::Bytes | Ty::List(_)) if a.is_open() => other.ty.clone(),
        (Ty::Text | Ty::Bytes | Ty::List(_), b) if b.is_open() => one.ty.clone(),
        (a, b) => number(a, b)?,
    };
    let work = one.work.saturating_add(other.work);
    let cost = if ty.is_number() { 0 } else { bytes_cost(work) };
    Some(Shape { ty, size, inner: one.inner.max(other.inner), work, cost })
}

fn indexed(one: &Shape, by: &Shape) -> Option<Shape> {
    let cost = bytes_cost(by.work.min(one.inner));
    match &one.ty {
        Ty::List(_) if by.ty.is_open() || by.ty.is_number() => Some(one.entry(cost)),
        Ty::Map(key, _) if key.is_comparable_to(&by.ty) => Some(one.entry(cost)),
        ty if ty.is_open()
            && (by.ty.is_open() || by.ty.is_number() || matches!(by.ty, Ty::Text | Ty::Bool)) =>
        {
            Some(Shape::open(cost))
        }
        _ => None,
    }
}

fn contained(one: &Shape, within: &Shape) -> Option<Shape> {
    let compared = bytes_cost(one.work.min(within.inner)).saturating_add(1);
    match &within.ty {
        Ty::List(of) if of.is_comparable_to(&one.ty) => Some(bool_of(within.size.saturating_mul(compared))),
        Ty::Map(key, _) if key.is_comparable_to(&one.ty) => Some(bool_of(compared)),
        ty if ty.is_open() => Some(bool_of(within.iterations().saturating_mul(compared))),
        _ => None,
    }
}
