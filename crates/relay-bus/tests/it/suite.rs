//! The conformance suite of `EventSink` and `EventSource`, run against a bus with and without a log.

use relay_bus::BusConfig;
use relay_core::testing::{MemoryLog, pubsub_suite};

use crate::support::{config, held_log, in_memory, over};

#[tokio::test]
async fn a_bus_in_memory_keeps_the_contract_of_sinks_and_sources() {
    let bus = in_memory(BusConfig::default());
    pubsub_suite(&bus, &bus).await;
}

#[tokio::test]
async fn a_bus_over_a_log_keeps_the_contract_of_sinks_and_sources() {
    let bus = over(MemoryLog::new(), BusConfig::default());
    pubsub_suite(&bus, &bus).await;
}

/// Calls wait for the log, so the suite drops them half-way.
#[tokio::test]
async fn a_bus_over_a_log_that_answers_later_keeps_the_contract_of_sinks_and_sources() {
    let log = held_log();
    log.let_through(1_000_000);
    let bus = over(log, config(|c| c.max_channels = 30));
    pubsub_suite(&bus, &bus).await;
}
