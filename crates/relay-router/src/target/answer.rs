//! The parts of an answer over HTTP that the router keeps: the first bytes of its body, and the text of its failure.

use std::error::Error;

use http_body_util::BodyExt;

use super::client::Answer;

/// The text of an error and of its causes, without causes that it quotes already.
pub(crate) fn causes_of(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Reads the first `max` bytes of a body, and ignores the rest.
///
/// # Errors
/// The error that ended the body before.
pub(crate) async fn read_some(answer: Answer, max: usize) -> Result<Vec<u8>, hyper::Error> {
    let mut answer = answer.into_body();
    let mut body = Vec::new();
    while let Some(frame) = answer.frame().await {
        let Ok(chunk) = frame?.into_data() else { continue };
        let space = max - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(space)]);
        if body.len() == max {
            break;
        }
    }
    Ok(body)
}
