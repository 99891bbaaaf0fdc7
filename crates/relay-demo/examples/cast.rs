//! CAST: key phrases of annotations. It publishes `x-tags` events in answer to `annotation.added` events.
//!
//! ```sh
//! cargo run --example cast -- --relay http://127.0.0.1:7400
//! ```
//!
//! Its work is in `src/cast.rs`, and the part that all services share in `src/server.rs`.

fn main() -> std::process::ExitCode {
    relay_demo::run_alone("cast")
}
