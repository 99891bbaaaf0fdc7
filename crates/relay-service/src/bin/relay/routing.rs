//! The commands of routing: services and targets, rules, decisions, dead letters, replays.
//!
//! Each sends requests to the server's HTTP API and prints a table, or with `--json` the answer as it came.

pub(crate) mod args;
mod dead_letters;
mod decisions;
mod replays;
mod request;
mod rules;
mod services;

pub(crate) use self::dead_letters::dead_letters;
pub(crate) use self::decisions::decisions;
pub(crate) use self::replays::replay;
pub(crate) use self::rules::rules;
pub(crate) use self::services::{services, targets};
