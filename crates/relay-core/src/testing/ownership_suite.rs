//! The suites for [`Ownership`] and [`Tenure`](crate::Tenure): for one server, for one that loses documents, and for two that agree.

use super::waiting::{WakeSignal, bounded, yield_once};
use crate::error::ErrorCode;
use crate::id::DocumentId;
use crate::ownership::{Ownership, Tenure};

/// Checks that a document is owned from its acquisition until its last tenure is dropped, and can be acquired again then.
/// The server must be able to own documents whose ids begin with `suite/`.
///
/// # Panics
/// When ownership breaks its contract.
pub async fn ownership_suite(ownership: &dyn Ownership) {
    bounded("the suite of owners", async {
        let acquire = async |name: &str| acquire(ownership, &document(name)).await;
        let (one, other) = (acquire("suite/one").await, acquire("suite/other").await);
        assert!(one.is_held() && other.is_held());
        drop(one);
        assert!(other.is_held(), "giving up one document gives up no other");
        let again = acquire("suite/one").await;
        assert!(again.is_held(), "a document that was given up can be acquired again");

        let second = acquire("suite/one").await;
        assert!(again.is_held() && second.is_held(), "an owner that asks again owns the document still");
        drop(again);
        assert!(second.is_held(), "a tenure lasts until it is dropped itself");
        drop(second);
        assert!(acquire("suite/one").await.is_held());

        poll_once_and_drop(ownership, &document("suite/dropped"));
        assert!(acquire("suite/dropped").await.is_held(), "a call that was dropped is in nobody's way");
    })
    .await;
}

/// Checks the tenures of a server that loses documents. `lose` takes a document away from it, and lets the server acquire
/// it again.
///
/// # Panics
/// When ownership breaks its contract.
pub async fn ownership_loss_suite(ownership: &dyn Ownership, lose: impl Fn(&DocumentId)) {
    bounded("the suite of owners that lose documents", async {
        let doc = document("suite/lost");
        let tenures = [acquire(ownership, &doc).await, acquire(ownership, &doc).await];
        lose(&doc);
        assert!(tenures.iter().all(|tenure| !tenure.is_held()), "a loss ends every tenure");
        let next = acquire(ownership, &doc).await;
        assert!(next.is_held());
        assert!(tenures.iter().all(|tenure| !tenure.is_held()), "a lost tenure is never held again");
        drop(tenures);
        assert!(next.is_held(), "dropping a lost tenure gives nothing up");
        lose(&doc);
        assert!(!next.is_held());
    })
    .await;
}

/// Checks that of two servers at most one owns a document. Each must be able to own documents whose ids begin with `suite/`.
///
/// # Panics
/// When ownership breaks its contract.
pub async fn exclusive_ownership_suite(one: &dyn Ownership, other: &dyn Ownership) {
    bounded("the suite of two servers", async {
        for (owner, rival) in [(one, other), (other, one)] {
            let shared = document("suite/shared");
            let refused = async |when: &str| {
                let refused = rival.acquire(&shared).await;
                assert!(
                    refused.as_ref().is_err_and(|error| error.code() == ErrorCode::NotOwner),
                    "{when}, both own the document: {refused:?}"
                );
            };
            let first = acquire_in_time(owner, &shared).await;
            refused("after the first tenure").await;
            poll_once_and_drop(rival, &shared);
            assert!(first.is_held(), "a refusal takes nothing away");
            let second = acquire(owner, &shared).await;
            drop(first);
            refused("with one of two tenures dropped").await;
            assert!(second.is_held());
            assert!(acquire(rival, &document("suite/free")).await.is_held(), "a document that is free");
            drop(second);
            poll_once_and_drop(owner, &shared);
            assert!(acquire_in_time(rival, &shared).await.is_held(), "the document was given up");
        }
    })
    .await;
}

fn document(name: &str) -> DocumentId {
    DocumentId::new(name).unwrap_or_else(|error| panic!("{error}"))
}

async fn acquire(ownership: &dyn Ownership, document: &DocumentId) -> Box<dyn Tenure> {
    let acquired = ownership.acquire(document).await;
    acquired.unwrap_or_else(|error| panic!("`{document}` cannot be owned: {error}"))
}

/// Acquires a document that another server has given up, which this one may notice a moment later.
async fn acquire_in_time(ownership: &dyn Ownership, document: &DocumentId) -> Box<dyn Tenure> {
    loop {
        match ownership.acquire(document).await {
            Ok(tenure) => return tenure,
            Err(_) => yield_once().await,
        }
    }
}

/// Begins to acquire a document, and drops the call, and the tenure if there is one already.
fn poll_once_and_drop(ownership: &dyn Ownership, document: &DocumentId) {
    let mut acquiring = ownership.acquire(document);
    let _ = WakeSignal::new().poll(&mut acquiring);
}
