//! Every form of an event decodes to the same event, and no decoder panics on other bytes.

use bytes::Bytes;
use proptest::prelude::*;
use relay_core::{Absence, DeliveryClass, DocumentId, Draft, Epoch, Kind, Payload, Seq, Timestamp};
use relay_events::cloudevents::http;
use relay_events::{Body, PayloadError, binary, cloudevents, json};

use crate::support::event;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_event_comes_back_from_json(event in event()) {
        prop_assert_eq!(&json::decode(&json::encode(&event)).unwrap(), &event);
    }

    #[test]
    fn an_event_comes_back_from_its_record_without_its_offset(mut event in event()) {
        let decoded = binary::decode(&binary::encode(&event)).unwrap();
        event.offset = None;
        prop_assert_eq!(decoded, event);
    }

    #[test]
    fn an_event_whose_record_is_readable_comes_back_from_it(mut event in event(), name in "[a-z.-]{1,12}", is_sequenced in any::<bool>()) {
        let class = if is_sequenced { DeliveryClass::Sequenced } else { DeliveryClass::Ephemeral };
        event.kind = Kind::new(&name, class).unwrap();
        if binary::check_readable(&event).is_ok() {
            let decoded = binary::decode(&binary::encode(&event)).unwrap();
            prop_assert_eq!((decoded.kind.as_str(), decoded.seq), (event.kind.as_str(), event.seq));
        }
    }

    #[test]
    fn an_event_comes_back_from_a_cloud_event(event in event()) {
        prop_assert_eq!(&cloudevents::decode(&cloudevents::encode(&event)).unwrap(), &event);
    }

    #[test]
    fn an_event_comes_back_from_headers_and_a_body(event in event()) {
        let http::Message { headers, body } = http::encode(&event);
        let visible = |text: &str| text.bytes().all(|byte| matches!(byte, b'!'..=b'~'));
        prop_assert!(headers.iter().all(|(name, value)| visible(name) && visible(value)), "{:?}", headers);
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        prop_assert_eq!(&http::decode(headers, body).unwrap(), &event);
    }

    #[test]
    fn an_event_without_content_comes_back_so_from_every_form_for_readers(event in event(), is_lost in any::<bool>()) {
        let event = event.without_content(if is_lost { Absence::Lost } else { Absence::Expired });
        prop_assert_eq!(&json::decode(&json::encode(&event)).unwrap(), &event);
        prop_assert_eq!(&cloudevents::decode(&cloudevents::encode(&event)).unwrap(), &event);
        let http::Message { headers, body } = http::encode(&event);
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        prop_assert_eq!(&http::decode(headers, body).unwrap(), &event);
        let is_absent = matches!(Body::of(&event), Err(PayloadError::Absent { .. }));
        prop_assert!(is_absent);
    }

    #[test]
    fn events_come_back_from_a_batch(events in prop::collection::vec(event(), 0..5)) {
        prop_assert_eq!(cloudevents::decode_batch(&cloudevents::encode_batch(&events)).unwrap(), events);
    }

    #[test]
    fn a_header_is_the_envelope_without_the_payload(event in event()) {
        let mut whole: serde_json::Map<_, _> = serde_json::from_slice(&json::encode(&event)).unwrap();
        whole.remove("payload");
        whole.remove("payload_base64");
        let header: serde_json::Map<_, _> = serde_json::from_slice(&json::encode_header(&event)).unwrap();
        prop_assert_eq!(header, whole);
    }

    #[test]
    fn what_an_event_carries_fits_its_kind(event in event()) {
        prop_assert!(Body::of(&event).is_ok());
    }

    #[test]
    fn arbitrary_bytes_upset_no_decoder(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        decode_everything(&bytes);
    }

    #[test]
    fn damaged_forms_upset_no_decoder(event in event(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
        for form in [binary::encode(&event), json::encode(&event).to_vec(), cloudevents::encode(&event).to_vec()] {
            let mut damaged = form.clone();
            let index = at.index(damaged.len());
            damaged[index] ^= with;
            decode_everything(&damaged);
            decode_everything(&form[..index]);
        }
    }

    #[test]
    fn arbitrary_headers_upset_no_decoder(
        headers in prop::collection::vec(("(ce-)?(id|type|time|sequence|relay[a-z]{3,8}|data|content-type)", ".{0,20}"), 0..8),
        body in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let headers = || headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let body = Bytes::from(body);
        let _ = http::decode(headers(), body.clone());
        let _ = http::decode_draft(&DocumentId::new("doc").unwrap(), headers(), body);
    }

    #[test]
    fn a_record_that_was_cut_or_continued_is_refused(event in event(), at in any::<prop::sample::Index>()) {
        let mut record = binary::encode(&event);
        prop_assert!(binary::decode(&record[..at.index(record.len())]).is_err());
        record.push(0);
        prop_assert!(binary::decode(&record).is_err());
    }
}

fn decode_everything(bytes: &[u8]) {
    let document = DocumentId::new("doc").unwrap();
    let _ = json::decode(bytes);
    let _ = json::decode_draft(&document, bytes);
    let _ = binary::decode(bytes);
    let _ = cloudevents::decode(bytes);
    let _ = cloudevents::decode_batch(bytes);
    let _ = cloudevents::decode_draft(&document, bytes);
}

#[test]
fn a_record_of_a_later_version_is_refused_by_name() {
    let error = binary::decode(&[9, 1, 2, 3]).unwrap_err().to_string();
    assert!(error.contains("version 9"), "{error}");
}

#[test]
fn a_length_that_asks_for_more_memory_than_there_is_is_refused() {
    // Version 1, an id, and then a document of 2^63 bytes.
    let mut bytes = vec![1, 7, 253];
    bytes.extend((1u64 << 63).to_le_bytes());
    assert!(binary::decode(&bytes).is_err());
}

#[test]
fn whatever_size_was_written_is_read() {
    let payload = Payload::Binary(Bytes::from(vec![7; 65 << 20]));
    let kind = relay_events::kind("x-large").unwrap();
    let draft = Draft::new(DocumentId::new("doc").unwrap(), kind, payload);
    let event = draft.into_event(Epoch::from_u64(1), Some(Seq::FIRST), Timestamp::UNIX_EPOCH);
    assert!(binary::decode(&binary::encode(&event)).unwrap() == event);
}
