//! Routes events to backend services: which of them gets what, in order, surviving crashes, with a record of why.

mod causes;
mod config;
pub mod decisions;
mod delivery;
mod dispatch;
pub mod health;
mod metrics;
pub mod registry;
mod router;
pub mod rules;
mod store;
pub mod target;

pub use self::causes::CAUSES;
pub use self::config::{RouterConfig, RuleDocument};
pub use self::delivery::replay::{Replay, ReplayRequest, ReplayStart, ReplayState};
pub use self::delivery::{Attempt, DeadLetter, DeadLetterId, DeadReason, InvalidDeadLetterId};
pub use self::metrics::{RouterStats, TargetStats};
pub use self::router::{
    DryDecision, DryRoute, DryRun, InProcessTarget, Router, RouterError, RouterParts, RulesError,
    RulesInForce, RulesSource, SERVICES_DOCUMENT, TargetError, TargetInfo,
};
pub use self::store::StoreError;
