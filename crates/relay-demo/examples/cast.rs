//! CAST: key phrases of annotations. Because of annotation.added events it publishes `x-tags` events.
//!
//! ```sh
//! cargo run --example cast -- --relay http://127.0.0.1:7400
//! ```
//!
//! What it does is in `src/cast.rs`; what all services have in common, in `src/shell.rs`.

fn main() -> std::process::ExitCode {
    relay_demo::run_alone("cast")
}
