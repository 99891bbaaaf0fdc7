//! STITCH: the results of the other services put together. It publishes `x-summary` events in answer to theirs.
//!
//! ```sh
//! cargo run --example stitch -- --relay http://127.0.0.1:7400
//! ```
//!
//! Its work is in `src/stitch.rs`, and the part that all services share in `src/server.rs`.

fn main() -> std::process::ExitCode {
    relay_demo::run_alone("stitch")
}
