//! An event as conditions see it. A field is made when a condition asks for it; metadata and payload once per
//! event.

use std::sync::{Arc, LazyLock, OnceLock};

use cel::common::types::{
    CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelTimestamp,
};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::{Context, Env};
use relay_core::{Actor, Event, Payload};

use super::regexes::{self, Regexes};
use super::types::Ty;

/// The largest payload that a condition reads, in bytes.
pub(super) const MAX_PAYLOAD_BYTES: usize = 64 * 1024;

/// The standard functions of CEL.
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut environment = Env::stdlib();
    regexes::declare(&mut environment);
    Arc::new(environment)
});

pub(super) fn environment() -> &'static Arc<Env> {
    &ENVIRONMENT
}

/// The fields of `event`, each with its type and the largest size in bytes or entries.
pub(super) const FIELDS: &[(&str, Ty, u64)] = &[
    ("id", Ty::Text, 36),
    ("document", Ty::Text, 256),
    ("kind", Ty::Text, 64),
    ("seq", Ty::Int, 1),
    ("offset", Ty::Int, 1),
    ("time", Ty::Timestamp, 1),
    ("actor", Ty::Text, 264),
    ("actor_type", Ty::Text, 7),
    ("session", Ty::Text, 36),
    ("metadata", Ty::Dyn, 32),
    ("payload", Ty::Dyn, MAX_PAYLOAD_BYTES as u64),
    ("payload_bytes", Ty::Int, 1),
];

/// An event, with the values that conditions have asked for so far.
pub(in crate::rules) struct EventView<'e> {
    event: &'e Event,
    metadata: OnceLock<CelMap<'e>>,
    payload: OnceLock<Result<Box<dyn Val>, String>>,
}

impl<'e> EventView<'e> {
    pub(in crate::rules) fn new(event: &'e Event) -> Self {
        Self { event, metadata: OnceLock::new(), payload: OnceLock::new() }
    }

    /// Returns the reason that the payload is not readable, if a condition asked for it.
    pub(super) fn payload_refused(&self) -> Option<&str> {
        self.payload.get()?.as_ref().err().map(String::as_str)
    }

    fn metadata(&self) -> &CelMap<'e> {
        self.metadata.get_or_init(|| {
            let entry = |(key, value): (&'e String, &'e String)| {
                let value: Box<dyn Val + 'e> = Box::new(CelString::from(value.as_str()));
                (CelMapKey::from(key.as_str()), value)
            };
            self.event.metadata.iter().map(entry).collect::<std::collections::HashMap<_, _>>().into()
        })
    }

    fn payload(&self) -> Option<&dyn Val> {
        let read = || match &self.event.payload {
            Payload::Binary(_) => Err("the payload is binary; conditions can look at JSON alone".to_owned()),
            Payload::Absent(absence) => Err(format!("the payload is gone: {}", absence.as_str())),
            Payload::Json(text) if text.as_str().len() > MAX_PAYLOAD_BYTES => {
                let (bytes, max) = (text.as_str().len(), MAX_PAYLOAD_BYTES);
                Err(format!("the payload has {bytes} bytes; conditions look at up to {max}"))
            }
            Payload::Json(text) => match serde_json::from_str(text.as_str()) {
                Ok(json) => Ok(value_of(json)),
                Err(error) => Err(format!("the payload cannot be read: {error}")),
            },
        };
        self.payload.get_or_init(read).as_deref().ok()
    }

    fn field<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        let event = self.event;
        let number = |number: u64| CowVal::owned(CelInt::from(i64::try_from(number).unwrap_or(i64::MAX)));
        Some(match name {
            "id" => CowVal::owned(CelString::from(event.id.to_string())),
            "document" => CowVal::owned(CelString::from(event.document.as_str())),
            "kind" => CowVal::owned(CelString::from(event.kind.as_str())),
            "seq" => number(event.seq.unwrap_or_default().get()),
            "offset" => number(event.offset.unwrap_or_default().get()),
            "time" => CowVal::owned(CelTimestamp::from(
                chrono::DateTime::from_timestamp_micros(event.time.as_micros())?.fixed_offset(),
            )),
            "actor" => CowVal::owned(CelString::from(event.actor.to_string())),
            "actor_type" => CowVal::owned(CelString::from(match event.actor {
                Actor::User(_) => "user",
                Actor::Service(_) => "service",
                Actor::System => "system",
            })),
            "session" => {
                CowVal::owned(CelString::from(event.session.map_or_else(String::new, |id| id.to_string())))
            }
            "metadata" => CowVal::Borrowed(self.metadata()),
            "payload" => CowVal::Borrowed(self.payload()?),
            "payload_bytes" => number(event.payload.len() as u64),
            _ => return None,
        })
    }
}

/// Converts JSON to CEL's values. Whole numbers become ints, so that conditions can calculate with them.
fn value_of(json: serde_json::Value) -> Box<dyn Val> {
    match json {
        serde_json::Value::Null => Box::new(CelNull),
        serde_json::Value::Bool(value) => Box::new(CelBool::from(value)),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(number) => Box::new(CelInt::from(number)),
            None => Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN))),
        },
        serde_json::Value::String(text) => Box::new(CelString::from(text)),
        serde_json::Value::Array(items) => {
            Box::new(CelList::from(items.into_iter().map(value_of).collect::<Vec<_>>()))
        }
        serde_json::Value::Object(entries) => {
            let entry = |(key, value)| (CelMapKey::from(key), value_of(value));
            Box::new(CelMap::from(
                entries.into_iter().map(entry).collect::<std::collections::HashMap<_, _>>(),
            ))
        }
    }
}

/// The names that a condition can use: the event's fields, and its own regular expressions.
pub(super) struct EvaluationScope<'s, 'e> {
    pub(super) view: &'s EventView<'e>,
    pub(super) regexes: &'s Regexes,
}

impl VariableResolver for EvaluationScope<'_, '_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        match variable.strip_prefix("event.") {
            Some(field) => self.view.field(field),
            None => self.regexes.resolve(variable),
        }
    }
}

pub(super) fn context<'v>(scope: &'v EvaluationScope<'_, '_>) -> Context<'v, 'v> {
    let mut context = Context::with_env(Arc::clone(environment()));
    context.set_variable_resolver(scope);
    context
}
