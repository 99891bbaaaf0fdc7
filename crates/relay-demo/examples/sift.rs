//! SIFT: how well a document's text reads: readability, sentence lengths, lexical diversity, things to look at again. Because of document.edited events it publishes `x-quality` events.
//!
//! ```sh
//! cargo run --example sift -- --relay http://127.0.0.1:7400
//! ```
//!
//! What it does is in `src/sift.rs`; what all services have in common, in `src/shell.rs`.

fn main() -> std::process::ExitCode {
    relay_demo::run_alone("sift")
}
