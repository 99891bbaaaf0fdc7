//! [`TokenSource`]: where fencing tokens come from, numbers that only grow, over restarts too.
//!
//! Getting a token has two steps, because the moment at which a lock is granted must not wait for a disk. A request first
//! [reserves](TokenSource::reserve) a token, which may wait. The grant then [issues](TokenSource::issue) one, which cannot
//! fail. Numbers are given out when they are issued, so that they grow in the order of grants and not of requests. A
//! reservation that comes to nothing costs a number.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::lock::FencingToken;

/// Gives out fencing tokens.
///
/// # Contract
/// - Every token is larger than all that were issued before it, by this source and by those that it replaces.
/// - [`issue`](Self::issue) is called at most once for each [`reserve`](Self::reserve) that has succeeded, at any later time.
#[async_trait]
pub trait TokenSource: fmt::Debug + Send + Sync + 'static {
    /// Makes sure of one token that can be issued later.
    ///
    /// Cancel-safe: dropped, it may have cost a number.
    ///
    /// # Errors
    /// [`TokenError`], when the source cannot keep what it gives out.
    async fn reserve(&self) -> Result<(), TokenError>;

    /// Returns the next token. Quick; never waits.
    fn issue(&self) -> FencingToken;
}

/// A token source cannot keep what it gives out, so there is no token.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{source}")]
pub struct TokenError {
    /// The source's own error.
    source: Arc<dyn Error + Send + Sync>,
}

impl TokenError {
    /// The error of a token source.
    pub fn new(source: impl Error + Send + Sync + 'static) -> Self {
        Self { source: Arc::new(source) }
    }
}
