//! The regular expressions of a condition, compiled once.
//!
//! CEL's own `matches` compiles its pattern on each call. Here each constant pattern in the tree is replaced
//! by a name that stands for the compiled expression.

use std::any::Any;

use cel::common::ast::{EntryExpr, Expr, LiteralValue};
use cel::common::types::{CelBool, CelString, STRING_TYPE, Type};
use cel::common::value::{CowVal, StaticVal, Val};
use cel::{Env, ExecutionError, IdedExpr};
use regex::{Regex, RegexBuilder};

/// The most memory of one compiled expression.
const MAX_COMPILED_BYTES: usize = 256 * 1024;
/// A prefix that no name in a condition can have.
const NAME_PREFIX: &str = "@regex";
const MATCHES: &str = "matches";

static REGEX_TYPE: Type = Type::new_unspecified_type("relay.regex");

/// Compiles a pattern.
pub(super) fn compile(pattern: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(pattern).size_limit(MAX_COMPILED_BYTES).build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => format!("compiled it takes more than {MAX_COMPILED_BYTES} bytes"),
        // The last line names the problem; the lines before it point at it.
        other => {
            other.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
        }
    })
}

/// The compiled expressions, by position.
pub(super) struct Regexes(Vec<CompiledRegex>);

#[derive(Debug, Clone)]
struct CompiledRegex(Regex);

impl Val for CompiledRegex {
    fn get_type(&self) -> &Type {
        &REGEX_TYPE
    }

    fn cel_type() -> &'static Type {
        &REGEX_TYPE
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for CompiledRegex {}

/// Makes `matches` accept compiled expressions.
pub(super) fn declare(environment: &mut Env) {
    let text = || STRING_TYPE.to_owned();
    let member = environment.add_member_overload(
        MATCHES,
        "matches_compiled",
        text(),
        vec![REGEX_TYPE.to_owned()],
        is_match,
    );
    debug_assert!(member.is_ok(), "{member:?}");
}

#[allow(clippy::needless_pass_by_value, reason = "the form that an overload must have")]
fn is_match<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [text, pattern] = arguments.as_slice() else {
        return Err(ExecutionError::invalid_argument_count(2, arguments.len()));
    };
    match (text.downcast_ref::<CelString<'_>>(), pattern.downcast_ref::<CompiledRegex>()) {
        (Some(text), Some(CompiledRegex(regex))) => {
            Ok(CowVal::owned(CelBool::from(regex.is_match(text.inner()))))
        }
        _ => Err(ExecutionError::function_error(MATCHES, "it takes a string")),
    }
}

impl Regexes {
    /// Compiles the patterns in the checked `expression`, and replaces them by names.
    pub(super) fn taken_from(expression: &mut IdedExpr) -> Self {
        let mut regexes = Self(Vec::new());
        regexes.take(expression);
        regexes
    }

    pub(super) fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        let index: usize = name.strip_prefix(NAME_PREFIX)?.parse().ok()?;
        self.0.get(index).map(|pattern| CowVal::Borrowed(pattern as &dyn Val))
    }

    fn take(&mut self, expression: &mut IdedExpr) {
        match &mut expression.expr {
            Expr::Call(call) => {
                call.target.iter_mut().for_each(|target| self.take(target));
                call.args.iter_mut().for_each(|argument| self.take(argument));
                if call.func_name != MATCHES {
                    return;
                }
                let pattern = match call.args.last().map(|last| &last.expr) {
                    Some(Expr::Literal(LiteralValue::String(pattern))) => compile(pattern.inner()).ok(),
                    _ => None,
                };
                let Some(pattern) = pattern else { return };
                if call.target.is_none()
                    && let Some(last) = call.args.pop()
                {
                    // The form `matches(text, pattern)` means `text.matches(pattern)`.
                    call.target = call.args.pop().map(Box::new);
                    call.args = vec![last];
                }
                if let Some(last) = call.args.last_mut() {
                    last.expr = Expr::Ident(format!("{NAME_PREFIX}{}", self.0.len()));
                    self.0.push(CompiledRegex(pattern));
                }
            }
            Expr::Comprehension(comprehension) => {
                let parts = &mut **comprehension;
                for part in [
                    &mut parts.iter_range,
                    &mut parts.accu_init,
                    &mut parts.loop_cond,
                    &mut parts.loop_step,
                    &mut parts.result,
                ] {
                    self.take(part);
                }
            }
            Expr::List(list) => list.elements.iter_mut().for_each(|element| self.take(element)),
            Expr::Map(map) => {
                for entry in &mut map.entries {
                    if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                        self.take(&mut entry.key);
                        self.take(&mut entry.value);
                    }
                }
            }
            Expr::Select(select) => self.take(&mut select.operand),
            Expr::Struct(_) | Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
        }
    }
}
