//! SIFT: how well a document's text reads: readability, sentence lengths, lexical diversity, things to look at again. Because of document.edited events it publishes `x-quality` events.
//!
//! ```sh
//! cargo run --example sift -- --relay http://127.0.0.1:7400
//! ```
//!
//! What it does is in `support/sift.rs`; what all services have in common, in `support/shell.rs`.

#[path = "support/alone.rs"]
mod alone;

fn main() -> std::process::ExitCode {
    alone::run("sift")
}
