//! An [`Ownership`] that a test tells which documents to grant, and takes documents away from.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Poll, Waker};

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::id::DocumentId;
use crate::ownership::{Ownership, OwnershipError, Tenure};

/// An ownership that grants every document until it is told otherwise. Clones share their state.
#[derive(Debug, Clone, Default)]
pub struct ManualOwnership {
    answers: Arc<Mutex<Answers>>,
    undropped: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Answers {
    /// The answer to those that ask for a document; `None` grants it.
    refusal: Option<OwnershipError>,
    /// True while the answer is held back.
    is_held_back: bool,
    /// The tasks that wait for an answer.
    waiting: Vec<Waker>,
    /// One flag for each tenure that was granted: it is true until the document is taken away.
    granted: Vec<Arc<AtomicBool>>,
}

impl ManualOwnership {
    /// Ends all tenures, and refuses documents with `refusal` from now on.
    pub fn take_away(&self, refusal: OwnershipError) {
        let mut answers = self.answers.lock();
        answers.refusal = Some(refusal);
        for is_held in answers.granted.drain(..) {
            is_held.store(false, Ordering::SeqCst);
        }
    }

    /// Refuses documents with `refusal` from now on. Tenures that were granted go on.
    pub fn refuse(&self, refusal: OwnershipError) {
        self.answers.lock().refusal = Some(refusal);
    }

    /// Grants documents from now on.
    pub fn grant(&self) {
        self.answers.lock().refusal = None;
    }

    /// Holds all answers back, until [`release`](Self::release) is called.
    pub fn hold_back(&self) {
        self.answers.lock().is_held_back = true;
    }

    /// Answers those that wait.
    pub fn release(&self) {
        let mut answers = self.answers.lock();
        answers.is_held_back = false;
        answers.waiting.drain(..).for_each(Waker::wake);
    }

    /// The number of tenures that were granted and not dropped yet.
    pub fn undropped(&self) -> usize {
        self.undropped.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Ownership for ManualOwnership {
    async fn acquire(&self, _document: &DocumentId) -> Result<Box<dyn Tenure>, OwnershipError> {
        poll_fn(|cx| {
            let mut answers = self.answers.lock();
            if answers.is_held_back {
                answers.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            if let Some(refusal) = &answers.refusal {
                return Poll::Ready(Err(refusal.clone()));
            }
            let is_held = Arc::new(AtomicBool::new(true));
            answers.granted.push(Arc::clone(&is_held));
            self.undropped.fetch_add(1, Ordering::SeqCst);
            let tenure: Box<dyn Tenure> =
                Box::new(ManualTenure { is_held, undropped: Arc::clone(&self.undropped) });
            Poll::Ready(Ok(tenure))
        })
        .await
    }
}

#[derive(Debug)]
struct ManualTenure {
    is_held: Arc<AtomicBool>,
    undropped: Arc<AtomicUsize>,
}

impl Tenure for ManualTenure {
    fn is_held(&self) -> bool {
        self.is_held.load(Ordering::SeqCst)
    }
}

impl Drop for ManualTenure {
    fn drop(&mut self) {
        self.undropped.fetch_sub(1, Ordering::SeqCst);
    }
}
