//! The free-form state that a participant shows: a JSON object of limited size, changed field by field.

use relay_core::{CommandError, ErrorCode, JsonText};
use serde_json::{Map, Value};

/// Names in a meta that are not the client's to give.
const RESERVED: [&str; 2] = ["phx_ref", "phx_ref_prev"];
/// How deeply arrays and objects may lie in one another.
const MAX_DEPTH: usize = 16;

/// `before` with the fields of `change`, where null takes a field away. Both are the text of an object; `before` without
/// its braces, as it is kept, and so is the result.
pub(crate) fn merge(before: &str, change: &JsonText, max_bytes: usize) -> Result<Box<str>, CommandError> {
    let change: Map<String, Value> = serde_json::from_str(change.as_str())
        .map_err(|error| invalid(format!("the state must be a JSON object: {error}")))?;
    let mut state: Map<String, Value> = serde_json::from_str(&format!("{{{before}}}"))
        .map_err(|error| invalid(format!("the state cannot be read any more: {error}")))?;
    for (name, value) in change {
        if RESERVED.contains(&name.as_str()) {
            return Err(invalid(format!("`{name}` is the server's to set; use another name")));
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
    let text = Value::Object(state).to_string();
    if text.len() > max_bytes {
        return Err(CommandError::new(
            ErrorCode::TooLarge,
            format!("the state would have {} bytes, at most {max_bytes} are allowed", text.len()),
        ));
    }
    Ok(text[1..text.len() - 1].into())
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

    fn text(json: &str) -> JsonText {
        JsonText::parse(json.to_owned().into()).unwrap()
    }

    #[track_caller]
    fn check(before: &str, change: &str, after: &str) {
        assert_eq!(&*merge(before, &text(change), 100).unwrap(), after);
    }

    #[test]
    fn fields_are_set_replaced_and_taken_away() {
        check("", r#"{"name":"Ada"}"#, r#""name":"Ada""#);
        check(r#""name":"Ada""#, r#"{"typing":true}"#, r#""name":"Ada","typing":true"#);
        check(r#""name":"Ada","typing":true"#, r#"{"typing":null,"name":"Eve"}"#, r#""name":"Eve""#);
        check(r#""name":"Ada""#, r#"{"name":null}"#, "");
    }

    #[test]
    fn what_is_no_state_is_refused() {
        for (change, code) in [
            ("[]", "invalid_request"),
            (r#"{"phx_ref":"x"}"#, "invalid_request"),
            (&format!(r#"{{"deep":{}{}}}"#, "[".repeat(17), "]".repeat(17)), "invalid_request"),
            (&format!(r#"{{"long":"{}"}}"#, "x".repeat(100)), "too_large"),
        ] {
            assert_eq!(merge("", &text(change), 100).unwrap_err().code.as_str(), code, "{change}");
        }
    }
}
