//! STITCH: the other services' results, put together. Because of x-quality, x-tags and x-metadata events it publishes `x-summary` events.
//!
//! ```sh
//! cargo run --example stitch -- --relay http://127.0.0.1:7400
//! ```
//!
//! What it does is in `src/stitch.rs`; what all services have in common, in `src/shell.rs`.

fn main() -> std::process::ExitCode {
    relay_demo::run_alone("stitch")
}
