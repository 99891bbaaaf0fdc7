//! STITCH: the other services' results, put together. Because of x-quality, x-tags and x-metadata events it publishes `x-summary` events.
//!
//! ```sh
//! cargo run --example stitch -- --relay http://127.0.0.1:7400
//! ```
//!
//! What it does is in `support/stitch.rs`; what all services have in common, in `support/shell.rs`.

#[path = "support/alone.rs"]
mod alone;

fn main() -> std::process::ExitCode {
    alone::run("stitch")
}
