//! SPAWN: a document's title, language, length and links. It publishes `x-metadata` events in answer to
//! `document.edited` and `document.saved` events.
//!
//! ```sh
//! cargo run --example spawn -- --relay http://127.0.0.1:7400
//! ```
//!
//! Its work is in `src/spawn.rs`, and the part that all services share in `src/server.rs`.

fn main() -> std::process::ExitCode {
    relay_demo::run_alone("spawn")
}
