//! [`DocumentLimiter`]: a limit of the documents in which the clients of one address take places at once. It has no clock and
//! does no I/O.
//!
//! Without it the clients of one address could take all places that a server has for documents: those of channels, or those
//! of documents with locks.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::ErrorCode;
use crate::id::DocumentId;

/// A counter of the documents in which the clients of each address take places. Clones share their counts.
#[derive(Debug, Clone)]
pub struct DocumentLimiter {
    per_address: usize,
    counts: Arc<Mutex<Counts>>,
}

/// The number of permits of each document. No map is empty, and no number is 0.
type Counts = HashMap<IpAddr, HashMap<DocumentId, usize>>;

/// The permit of one join or one lock. It counts until it is dropped.
#[derive(Debug)]
pub struct DocumentPermit {
    counts: Arc<Mutex<Counts>>,
    /// `None` when the address is not known, or there is no limit.
    counted: Option<(IpAddr, DocumentId)>,
}

/// The refusal of a permit, since the clients of the address take places in as many documents as the limit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "clients from {address} have joined or locked {max} documents, the most that are allowed; leave or release one first"
)]
#[non_exhaustive]
pub struct TooManyFromAddress {
    /// The limit.
    pub max: usize,
    /// The address.
    pub address: IpAddr,
}

impl TooManyFromAddress {
    /// The kind of the refusal, for programs to decide by.
    pub const fn code(&self) -> ErrorCode {
        ErrorCode::TooManyDocuments
    }
}

impl DocumentLimiter {
    /// A limiter without permits. With `None` there is no limit; a limit is at least 1.
    pub fn new(per_address: Option<usize>) -> Self {
        Self { per_address: per_address.unwrap_or(usize::MAX).max(1), counts: Arc::default() }
    }

    /// Counts a place in `document` of a client from `address` until the permit is dropped. Several places in one document
    /// from one address count as one. Without an address it does not count.
    ///
    /// # Errors
    /// [`TooManyFromAddress`].
    pub fn acquire(
        &self,
        address: Option<IpAddr>,
        document: &DocumentId,
    ) -> Result<DocumentPermit, TooManyFromAddress> {
        let address = address.filter(|_| self.per_address < usize::MAX);
        if let Some(address) = address {
            let mut counts = self.counts.lock();
            let documents = counts.entry(address).or_default();
            let count = documents.len();
            match documents.get_mut(document) {
                Some(permits) => *permits += 1,
                // The map is not empty, since the limit is at least 1.
                None if count >= self.per_address => {
                    return Err(TooManyFromAddress { max: self.per_address, address });
                }
                None => {
                    documents.insert(document.clone(), 1);
                }
            }
        }
        let counted = address.map(|address| (address, document.clone()));
        Ok(DocumentPermit { counts: Arc::clone(&self.counts), counted })
    }
}

impl DocumentPermit {
    /// The number of permits that the clients of the address have in the document, this one included; 0 when it is not counted.
    pub fn count(&self) -> usize {
        let Some((address, document)) = &self.counted else { return 0 };
        let counts = self.counts.lock();
        counts.get(address).and_then(|documents| documents.get(document)).copied().unwrap_or(0)
    }
}

impl Drop for DocumentPermit {
    fn drop(&mut self) {
        let Some((address, document)) = &self.counted else { return };
        let mut counts = self.counts.lock();
        let Some(documents) = counts.get_mut(address) else { return };
        if let Some(permits) = documents.get_mut(document) {
            *permits -= 1;
            if *permits == 0 {
                documents.remove(document);
            }
        }
        if documents.is_empty() {
            counts.remove(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ADA: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    const BEN: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)));

    fn document(name: &str) -> DocumentId {
        DocumentId::new(name).unwrap()
    }

    #[test]
    fn each_address_has_its_own_documents_and_several_permits_of_one_count_once() {
        let limiter = DocumentLimiter::new(Some(2));
        let first =
            [limiter.acquire(ADA, &document("a")).unwrap(), limiter.acquire(ADA, &document("a")).unwrap()];
        assert_eq!(first.each_ref().map(DocumentPermit::count), [2, 2]);
        let _second = limiter.acquire(ADA, &document("b")).unwrap();
        let refused = limiter.acquire(ADA, &document("c")).unwrap_err();
        assert_eq!((refused.max, Some(refused.address)), (2, ADA));
        assert_eq!(limiter.acquire(BEN, &document("a")).unwrap().count(), 1);
        let _of_ben = limiter.acquire(BEN, &document("c")).unwrap();
        let unknown: Vec<_> =
            (0..5).map(|n| limiter.acquire(None, &document(&n.to_string())).unwrap()).collect();
        assert!(unknown.iter().all(|permit| permit.count() == 0));
        let [one, other] = first;
        drop(one);
        assert!(limiter.acquire(ADA, &document("c")).is_err());
        drop(other);
        assert!(limiter.acquire(ADA, &document("c")).is_ok());
    }

    #[test]
    fn nothing_of_an_address_stays_behind() {
        let limiter = DocumentLimiter::new(Some(1));
        let permit = limiter.acquire(ADA, &document("a")).unwrap();
        assert!(limiter.acquire(ADA, &document("b")).is_err());
        drop(permit);
        assert!(limiter.counts.lock().is_empty());
    }
}
