//! SPAWN: a document's title, language, length and links. Because of document.edited and document.saved events it publishes `x-metadata` events.
//!
//! ```sh
//! cargo run --example spawn -- --relay http://127.0.0.1:7400
//! ```
//!
//! What it does is in `support/spawn.rs`; what all services have in common, in `support/shell.rs`.

#[path = "support/alone.rs"]
mod alone;

fn main() -> std::process::ExitCode {
    alone::run("spawn")
}
