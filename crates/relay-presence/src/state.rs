//! The free-form state that a participant shows: a JSON object of limited size, changed field by field.

use std::fmt::Display;

use relay_core::{CommandError, ErrorCode, JsonObject, JsonText};
use serde_json::{Map, Value};

use crate::config::PresenceConfig;

/// The deepest nesting of arrays and objects.
const MAX_DEPTH: usize = 16;

/// Returns the object `before` with the fields of the object `change`; null removes a field. The limits are those of
/// `config`.
pub(crate) fn merge(
    before: &JsonObject,
    change: &JsonObject,
    config: &PresenceConfig,
) -> Result<JsonObject, CommandError> {
    let mut state = fields(before)?;
    for (name, value) in fields(change)? {
        if config.reserved_state_fields.contains(&name.as_str()) {
            return Err(invalid(format!("`{name}` is set by the server; use another name")));
        }
        if depth(&value) > MAX_DEPTH {
            return Err(invalid(format!("`{name}` is nested deeper than {MAX_DEPTH} levels")));
        }
        if value.is_null() {
            state.remove(&name);
        } else {
            state.insert(name, value);
        }
    }
    let internal = |error: &dyn Display| CommandError::new(ErrorCode::Internal, error.to_string());
    let text = JsonText::of(&state).map_err(|error| internal(&error))?;
    let (bytes, max_bytes) = (text.as_bytes().len(), config.max_state_bytes);
    if bytes > max_bytes {
        let message = format!("the state would have {bytes} bytes, at most {max_bytes} are allowed");
        return Err(CommandError::new(ErrorCode::TooLarge, message));
    }
    JsonObject::new(text).map_err(|error| internal(&error))
}

/// The fields of `object`. Some valid JSON is refused here: numbers out of range, and nesting beyond the parser's limit.
fn fields(object: &JsonObject) -> Result<Map<String, Value>, CommandError> {
    serde_json::from_str(object.as_str())
        .map_err(|error| invalid(format!("the state cannot be used: {error}")))
}

fn invalid(message: String) -> CommandError {
    CommandError::new(ErrorCode::InvalidRequest, message)
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: &str) -> JsonObject {
        serde_json::from_str(json).unwrap()
    }

    fn config() -> PresenceConfig {
        PresenceConfig { max_state_bytes: 100, reserved_state_fields: &["ref"], ..PresenceConfig::default() }
    }

    #[track_caller]
    fn check(before: &str, change: &str, after: &str) {
        assert_eq!(merge(&object(before), &object(change), &config()).unwrap().as_str(), after);
    }

    #[test]
    fn fields_are_set_replaced_and_taken_away() {
        check("{}", r#"{"name":"Ada"}"#, r#"{"name":"Ada"}"#);
        check(r#"{"name":"Ada"}"#, r#"{"typing":true}"#, r#"{"name":"Ada","typing":true}"#);
        check(r#"{"name":"Ada","typing":true}"#, r#"{"typing":null,"name":"Eve"}"#, r#"{"name":"Eve"}"#);
        check(r#"{"name":"Ada"}"#, r#"{"name":null}"#, "{}");
    }

    #[test]
    fn an_invalid_state_is_refused() {
        for (change, code) in [
            (r#"{"ref":"x"}"#, "invalid_request"),
            (&format!(r#"{{"deep":{}{}}}"#, "[".repeat(17), "]".repeat(17)), "invalid_request"),
            (&format!(r#"{{"long":"{}"}}"#, "x".repeat(100)), "too_large"),
        ] {
            assert_eq!(
                merge(&JsonObject::empty(), &object(change), &config()).unwrap_err().code.as_str(),
                code,
                "{change}"
            );
        }
    }
}
