//! The bounds of the configuration.

use std::sync::Arc;
use std::time::Duration;

use relay_bus::{Bus, BusConfig};
use relay_core::testing::ManualClock;

use crate::support::config;

#[tokio::test]
async fn a_value_out_of_bounds_is_refused_by_its_path() {
    type Set = fn(&mut BusConfig);
    let cases: [(Set, &str); 11] = [
        (|c| c.max_payload_bytes = 0, "`max_payload_bytes` is 0; it must be at least 1"),
        (|c| c.max_channels = 0, "`max_channels` is 0; it must be at least 1"),
        (|c| c.cache_events = 0, "`cache_events` is 0; it must be at least 1"),
        (|c| c.idempotency_events = 0, "`idempotency_events` is 0; it must be at least 1"),
        (|c| c.replay_page.events = 0, "`replay_page.events` is 0; it must be at least 1"),
        (|c| c.replay_page.bytes = 0, "`replay_page.bytes` is 0; it must be at least 1"),
        (|c| c.retention.max_events = 0, "`retention.max_events` is 0; it must be at least 1"),
        (|c| c.retention.max_age = Some(Duration::ZERO), "`retention.max_age` is 0; it must be more than 0"),
        (|c| c.retention.max_bytes = Some(0), "`retention.max_bytes` is 0; it must be at least 1"),
        (|c| c.max_ephemeral_keys = 0, "`max_ephemeral_keys` is 0; it must be at least 1"),
        (|c| c.sweep_interval = Duration::ZERO, "`sweep_interval` is 0; it must be more than 0"),
    ];
    for (set, message) in cases {
        let refused = Bus::new(config(set), None, Arc::new(ManualClock::new())).unwrap_err();
        assert_eq!(refused.to_string(), message);
    }
}

#[test]
fn zero_is_a_value_where_it_has_a_meaning() {
    let config = config(|c| {
        c.max_pending_bytes = 0;
        c.publish_timeout = Duration::ZERO;
        c.cache_bytes = 0;
        c.preload_events = 0;
        c.idempotency_bytes = 0;
        c.idle_after = Duration::ZERO;
    });
    assert_eq!(config.validate(), Ok(()));
}
