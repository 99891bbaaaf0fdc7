//! Leases through the monitor, under a clock that the test holds: renewal, expiry, leaving and remembering.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::HealthMonitor;
use crate::health::HealthConfig;
use crate::registry::{
    Heartbeat, LeaseError, LeaseId, RegisterError, Registered, Registration, ReportedState, ServiceChange,
    ServiceQuery, ServiceRecord,
};
use crate::rules::{Capability, RuleFormat, RuleSet};
use crate::target::{Outbound, OutboundPolicy};
use crate::test_support::{name, paused_clock};
use parking_lot::Mutex;
use proptest::prelude::*;
use relay_events::ServiceState::{self, Degraded, Draining, Gone, Healthy, Unknown};
use tokio::time::sleep;

type Told = Arc<Mutex<Vec<ServiceChange>>>;

fn start(config: HealthConfig) -> (HealthMonitor, Told) {
    let told = Told::default();
    let observer = {
        let told = Arc::clone(&told);
        move |change| told.lock().push(change)
    };
    let outbound = Outbound::new(OutboundPolicy::default()).unwrap();
    let clock = paused_clock();
    (
        HealthMonitor::start(config, outbound, clock, relay_tasks::Supervisor::default().group(), observer),
        told,
    )
}

/// A monitor with a tick of 50 ms.
fn monitor() -> HealthMonitor {
    let config = HealthConfig { tick: Duration::from_millis(50), ..HealthConfig::default() };
    start(config).0
}

fn register(monitor: &HealthMonitor, service: &str) -> Registered {
    monitor.register(name(service), Registration::new(format!("https://{service}.example")), None).unwrap()
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn states_of(told: &Told) -> Vec<ServiceState> {
    told.lock().iter().map(|change| change.state).collect()
}

#[tokio::test(start_paused = true)]
async fn a_service_is_gone_after_more_than_thirty_silent_seconds() {
    let monitor = monitor();
    let lease = register(&monitor, "sift").lease;
    sleep(seconds(29.9)).await;
    assert_eq!(monitor.heartbeat(&name("sift"), lease, Heartbeat::default()), Ok(seconds(30.0)));
    sleep(seconds(29.9)).await;
    assert_eq!(monitor.state(&name("sift")), Healthy);
    // A tick came after exactly 30 seconds.
    sleep(seconds(0.101)).await;
    assert_eq!(monitor.state(&name("sift")), Healthy);
    sleep(seconds(0.1)).await;
    assert_eq!(monitor.state(&name("sift")), Gone);
    let refused = monitor.heartbeat(&name("sift"), lease, Heartbeat::default());
    assert_eq!(refused, Err(LeaseError::Unknown { service: name("sift") }));
    monitor.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn one_heartbeat_that_is_lost_removes_nobody() {
    let monitor = monitor();
    let Registered { lease, heartbeat_every, ttl, .. } = register(&monitor, "sift");
    assert_eq!((heartbeat_every, ttl), (seconds(10.0), seconds(30.0)));
    for beat in 1..=30 {
        sleep(heartbeat_every).await;
        if beat % 3 != 2 {
            monitor.heartbeat(&name("sift"), lease, Heartbeat::default()).unwrap();
        }
        assert_eq!(monitor.state(&name("sift")), Healthy);
    }
    monitor.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_gone_service_is_remembered_for_a_day_and_returns_with_its_secret() {
    let config = HealthConfig { tick: seconds(10.0), ..HealthConfig::default() };
    let (monitor, _) = start(config);
    let first = register(&monitor, "sift");
    assert!(first.is_new);
    sleep(seconds(41.0)).await;
    assert_eq!(monitor.services(&ServiceQuery::default()).len(), 0);
    assert_eq!(monitor.services(&ServiceQuery::new(None, Some(Gone))).len(), 1);
    sleep(seconds(23.0 * 3_600.0)).await;
    let again = register(&monitor, "sift");
    assert!(again.is_new);
    assert_eq!(again.secret, first.secret);
    sleep(seconds(24.0 * 3_600.0 + 51.0)).await;
    assert_eq!(monitor.known(), []);
    assert_ne!(register(&monitor, "sift").secret, first.secret);
    monitor.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_leaves_drains_until_no_event_waits_for_it() {
    let (monitor, told) = start(HealthConfig::default());
    let lease = register(&monitor, "sift").lease;
    assert_eq!(monitor.deregister(&name("sift"), lease).unwrap().state, Draining);
    let refused = monitor.heartbeat(&name("sift"), lease, Heartbeat::default());
    assert_eq!(refused, Err(LeaseError::LeaseLost { service: name("sift") }));
    monitor.drained(&name("sift"));
    assert_eq!(monitor.state(&name("sift")), Gone);
    assert_eq!(states_of(&told), [Unknown, Draining, Gone]);
    monitor.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_draining_service_is_gone_at_its_timeout_though_events_wait() {
    let monitor = monitor();
    let lease = register(&monitor, "sift").lease;
    monitor.deregister(&name("sift"), lease).unwrap();
    sleep(seconds(59.9)).await;
    assert_eq!(monitor.state(&name("sift")), Draining);
    sleep(seconds(0.2)).await;
    assert_eq!(monitor.state(&name("sift")), Gone);
    monitor.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_service_at_another_address_takes_the_lease_and_is_unknown_again() {
    let monitor = monitor();
    let first = register(&monitor, "sift");
    monitor.heartbeat(&name("sift"), first.lease, Heartbeat::default()).unwrap();
    let there = monitor.register(name("sift"), Registration::new("https://elsewhere.example"), None).unwrap();
    assert!(!there.is_new);
    assert_eq!((there.service.state, there.secret), (Unknown, first.secret));
    let lost = Err(LeaseError::LeaseLost { service: name("sift") });
    assert_eq!(monitor.heartbeat(&name("sift"), first.lease, Heartbeat::default()), lost);
    assert!(monitor.heartbeat(&name("sift"), there.lease, Heartbeat::default()).is_ok());
    monitor.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_registers_again_at_its_address_keeps_its_health() {
    let monitor = monitor();
    let lease = register(&monitor, "sift").lease;
    monitor.heartbeat(&name("sift"), lease, Heartbeat::default()).unwrap();
    let mut registration = Registration::new("https://sift.example");
    registration.version = Some("2".to_owned());
    let again = monitor.register(name("sift"), registration, None).unwrap();
    assert_eq!((again.service.state, again.service.version.as_deref()), (Healthy, Some("2")));
    monitor.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_was_registered_before_a_restart_has_a_whole_lease_after_it() {
    let before = monitor();
    let lease = register(&before, "sift").lease;
    sleep(seconds(25.0)).await;
    let kept = serde_json::to_string(&before.record(&name("sift")).unwrap()).unwrap();
    before.shutdown().await;
    let record: ServiceRecord = serde_json::from_str(&kept).unwrap();
    let after = monitor();
    after.restore(record);
    sleep(seconds(29.9)).await;
    assert_eq!(after.state(&name("sift")), Unknown);
    assert!(after.heartbeat(&name("sift"), lease, Heartbeat::default()).is_ok());
    after.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_secret_is_kept_beside_the_old_one() {
    let monitor = monitor();
    let Registered { lease, secret, .. } = register(&monitor, "sift");
    let new = monitor.rotate_secret(&name("sift"), lease).unwrap();
    assert_ne!(new, secret);
    let kept = serde_json::to_value(monitor.record(&name("sift")).unwrap()).unwrap();
    assert_eq!((&kept["secret"], &kept["old_secret"][0]), (&new.into(), &secret.into()));
    monitor.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn services_are_found_by_what_they_can_do_and_how_they_are() {
    let monitor = monitor();
    let quality = Capability::new("quality").unwrap();
    let mut able = Registration::new("https://sift.example");
    able.capabilities = vec![quality.clone()];
    let sift = monitor.register(name("sift"), able.clone(), None).unwrap().lease;
    monitor.register(name("other"), able, None).unwrap();
    register(&monitor, "cast");
    let degraded = Heartbeat::new(ReportedState::Degraded, Some("disk full".to_owned()));
    monitor.heartbeat(&name("sift"), sift, degraded).unwrap();
    let found = |capability, state| -> Vec<_> {
        let query = ServiceQuery::new(capability, state);
        monitor.services(&query).into_iter().map(|service| service.name.to_string()).collect()
    };
    assert_eq!(found(None, None), ["cast", "other", "sift"]);
    assert_eq!(found(Some(quality.clone()), None), ["other", "sift"]);
    assert_eq!(found(Some(quality), Some(Degraded)), ["sift"]);
    assert_eq!(monitor.service(&name("sift")).unwrap().reason.as_deref(), Some("disk full"));
    monitor.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn more_services_than_the_limit_and_too_much_of_anything_are_refused() {
    let config = HealthConfig { max_services: 2, ..HealthConfig::default() };
    let (monitor, _) = start(config);
    register(&monitor, "a");
    register(&monitor, "b");
    let refused = |service: &str, registration| {
        monitor.register(name(service), registration, None).unwrap_err().to_string()
    };
    assert_eq!(
        refused("c", Registration::new("https://c.example")),
        "3 services are too many; there may be 2"
    );
    let mut wordy = Registration::new("https://a.example");
    wordy.metadata.insert("k".to_owned(), "v".repeat(1_024));
    assert_eq!(refused("a", wordy), "`metadata` has 1025 bytes; it must have at most 1024");
    let long = Registration::new(format!("https://a.example/{}", "x".repeat(2_048)));
    assert_eq!(refused("a", long), "`url` has 2066 bytes; it must have at most 2048");
    monitor.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn one_address_registers_a_quarter_of_the_services_and_each_service_counts_where_it_is_now() {
    let (monitor, _) = start(HealthConfig { max_services: 8, ..HealthConfig::default() });
    let register = |service: &str, last: u8| {
        let address = Some(IpAddr::from([10, 0, 0, last]));
        monitor.register(name(service), Registration::new("https://x.example"), address)
    };
    register("a", 1).unwrap();
    register("b", 1).unwrap();
    let refused = register("c", 1).unwrap_err().to_string();
    assert_eq!(
        refused,
        "2 services are registered from 10.0.0.1, the most that are allowed; deregister one first"
    );
    // A service may register again, and a place is free when it has done so from elsewhere.
    register("b", 1).unwrap();
    let lease = register("b", 2).unwrap().lease;
    register("c", 1).unwrap();
    // Those that are gone give their places to the next of their address, and to no other.
    monitor.heartbeat(&name("b"), lease, Heartbeat::default()).unwrap();
    sleep(seconds(29.0)).await;
    monitor.heartbeat(&name("b"), lease, Heartbeat::default()).unwrap();
    sleep(seconds(2.0)).await;
    register("d", 2).unwrap();
    assert_eq!(monitor.known().len(), 4);
    register("e", 1).unwrap();
    register("c", 1).unwrap();
    register("f", 1).unwrap_err();
    register("f", 2).unwrap_err();
    let mut known = monitor.known();
    known.sort();
    assert_eq!(known, ["b", "c", "d", "e"].map(name));
    // The address of a registration outlasts a restart.
    let kept = serde_json::to_string(&monitor.record(&name("c")).unwrap()).unwrap();
    monitor.shutdown().await;
    let (monitor, _) = start(HealthConfig { max_services: 4, ..HealthConfig::default() });
    monitor.restore(serde_json::from_str(&kept).unwrap());
    let address = Some(IpAddr::from([10, 0, 0, 1]));
    let refused = monitor.register(name("d"), Registration::new("https://x.example"), address);
    assert!(matches!(refused, Err(RegisterError::TooManyFromAddress { max: 1, .. })));
    monitor.register(name("d"), Registration::new("https://x.example"), None).unwrap();
    monitor.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_is_refused_forgets_no_service() {
    let address = Some(IpAddr::from([10, 0, 0, 1]));
    let register = |monitor: &HealthMonitor, service: &str| {
        monitor.register(name(service), Registration::new("https://x.example"), address)
    };
    let (monitor, _) = start(HealthConfig::default());
    let records = ["a", "b"].map(|service| {
        register(&monitor, service).unwrap();
        serde_json::to_string(&monitor.record(&name(service)).unwrap()).unwrap()
    });
    monitor.shutdown().await;
    // The limit is lower than before the restart.
    let (monitor, _) = start(HealthConfig { max_services: 1, ..HealthConfig::default() });
    for record in records {
        monitor.restore(serde_json::from_str(&record).unwrap());
    }
    sleep(seconds(31.0)).await;
    assert!(matches!(register(&monitor, "c"), Err(RegisterError::TooMany { count: 2, max: 1, .. })));
    assert_eq!(monitor.known().len(), 2);
    monitor.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_target_of_the_rules_keeps_its_name_and_is_gone_when_they_name_it_no_longer() {
    let (monitor, told) = start(HealthConfig::default());
    let text = "[[targets]]\nname = \"audit\"\nurl = \"https://audit.example\"";
    let rules = RuleSet::parse(text, RuleFormat::Toml).unwrap();
    monitor.configure(rules.targets());
    let refused =
        monitor.register(name("audit"), Registration::new("https://sift.example"), None).unwrap_err();
    assert!(matches!(refused, RegisterError::NameTaken { .. }), "{refused}");
    monitor.configure(&[]);
    assert_eq!(states_of(&told), [Unknown, Gone]);
    assert_eq!(monitor.known(), []);
    monitor.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn each_change_wakes_who_waits_and_is_told_in_order() {
    let (monitor, told) = start(HealthConfig::default());
    let mut changes = monitor.changes();
    let lease = register(&monitor, "sift").lease;
    changes.changed().await.unwrap();
    monitor.heartbeat(&name("sift"), lease, Heartbeat::default()).unwrap();
    changes.changed().await.unwrap();
    // Without further heartbeats the lease ends.
    changes.changed().await.unwrap();
    assert_eq!(states_of(&told), [Unknown, Healthy, Gone]);
    monitor.shutdown().await;
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// The time in half seconds.
    Wait(u64),
    Register,
    /// True for the lease of the last registration, false for the one before.
    Heartbeat(bool),
    Deregister(bool),
    Drained,
}

fn step() -> impl Strategy<Value = (usize, Step)> {
    let step = prop_oneof![
        5 => (0_u64..80).prop_map(Step::Wait),
        2 => Just(Step::Register),
        4 => prop::bool::weighted(0.8).prop_map(Step::Heartbeat),
        1 => prop::bool::weighted(0.8).prop_map(Step::Deregister),
        1 => Just(Step::Drained),
    ];
    (0_usize..3, step)
}

/// A service by the plain rules, in half seconds.
#[derive(Debug, Clone, PartialEq)]
enum Expected {
    Here { heard: u64 },
    Leaving { until: u64 },
    Gone { since: u64 },
}

const LEASE: u64 = 60;
const DRAIN: u64 = 40;
const FORGET: u64 = 100;

impl Expected {
    /// Returns the service at `now` without further input; `None` if it is forgotten.
    fn until(self, now: u64) -> Option<Self> {
        // Steps come shortly after a tick, so that the monitor notices an expiry at its next tick.
        match self {
            Self::Here { heard } if now > heard + LEASE => Self::Gone { since: heard + LEASE + 1 }.until(now),
            Self::Leaving { until } if now > until => Self::Gone { since: until + 1 }.until(now),
            Self::Gone { since } if now > since + FORGET => None,
            other => Some(other),
        }
    }
}

async fn leases_are_kept(steps: Vec<(usize, Step)>) -> Result<(), TestCaseError> {
    let config = HealthConfig {
        drain_timeout: Duration::from_millis(DRAIN * 500),
        forget_after: Duration::from_millis(FORGET * 500),
        ..HealthConfig::default()
    };
    let (monitor, _) = start(config);
    // The steps fall between two ticks, shortly after the first.
    sleep(Duration::from_millis(10)).await;
    let names = ["a", "b", "c"].map(name);
    let mut expected: HashMap<usize, Expected> = HashMap::new();
    let mut leases: HashMap<usize, Vec<LeaseId>> = HashMap::new();
    let mut now = 0;
    for (which, step) in steps {
        let service = &names[which];
        let lease = |is_last: bool| -> Option<LeaseId> {
            leases.get(&which)?.iter().rev().nth(usize::from(!is_last)).copied()
        };
        let here = expected.get(&which).cloned();
        let lost = |is_last: bool| match here {
            None | Some(Expected::Gone { .. }) => Some(LeaseError::Unknown { service: service.clone() }),
            Some(Expected::Here { .. }) if is_last => None,
            Some(_) => Some(LeaseError::LeaseLost { service: service.clone() }),
        };
        match step {
            Step::Wait(halves) => {
                sleep(Duration::from_millis(halves * 500)).await;
                now += halves;
                expected =
                    expected.into_iter().filter_map(|(which, one)| Some((which, one.until(now)?))).collect();
            }
            Step::Register => {
                let registered = register(&monitor, service.as_str());
                prop_assert_eq!(registered.is_new, matches!(here, None | Some(Expected::Gone { .. })));
                leases.entry(which).or_default().push(registered.lease);
                expected.insert(which, Expected::Here { heard: now });
            }
            Step::Heartbeat(is_last) => {
                let Some(lease) = lease(is_last) else { continue };
                let answer = monitor.heartbeat(service, lease, Heartbeat::default());
                prop_assert_eq!(answer.err(), lost(is_last));
                if lost(is_last).is_none() {
                    expected.insert(which, Expected::Here { heard: now });
                }
            }
            Step::Deregister(is_last) => {
                let Some(lease) = lease(is_last) else { continue };
                let answer = monitor.deregister(service, lease);
                prop_assert_eq!(answer.err(), lost(is_last));
                if lost(is_last).is_none() {
                    expected.insert(which, Expected::Leaving { until: now + DRAIN });
                }
            }
            Step::Drained => {
                monitor.drained(service);
                if matches!(here, Some(Expected::Leaving { .. })) {
                    expected.insert(which, Expected::Gone { since: now });
                }
            }
        }
        for (which, service) in names.iter().enumerate() {
            let state = monitor.state(service);
            let is_as_expected = match expected.get(&which) {
                None => state == Unknown && monitor.service(service).is_none(),
                Some(Expected::Here { .. }) => matches!(state, Unknown | Healthy),
                Some(Expected::Leaving { .. }) => state == Draining,
                Some(Expected::Gone { .. }) => state == Gone,
            };
            prop_assert!(is_as_expected, "{} is {:?} instead of {:?}", service, state, expected.get(&which));
        }
    }
    monitor.shutdown().await;
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn leases_are_kept_as_the_plain_rules_say(steps in prop::collection::vec(step(), 1..100)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(leases_are_kept(steps))?;
    }
}
