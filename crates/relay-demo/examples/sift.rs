//! SIFT: measures of a document's text: readability, sentence lengths, lexical diversity, passages to look at again. It
//! publishes `x-quality` events in answer to `document.edited` events.
//!
//! ```sh
//! cargo run --example sift -- --relay http://127.0.0.1:7400
//! ```
//!
//! Its work is in `src/sift.rs`, and the part that all services share in `src/server.rs`.

fn main() -> std::process::ExitCode {
    relay_demo::run_alone("sift")
}
