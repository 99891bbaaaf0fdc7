//! SPAWN: a document's title, language, length and links. Because of document.edited and document.saved events it publishes `x-metadata` events.
//!
//! ```sh
//! cargo run --example spawn -- --relay http://127.0.0.1:7400
//! ```
//!
//! What it does is in `src/spawn.rs`; what all services have in common, in `src/shell.rs`.

fn main() -> std::process::ExitCode {
    relay_demo::run_alone("spawn")
}
