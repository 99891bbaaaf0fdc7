//! The codec, compared with the serializer of the `phoenix` npm client and tested with random input.

use bytes::Bytes;
use proptest::prelude::*;
use relay_core::{Actor, DocumentId, Draft, Epoch, Event, EventId, Kind, Payload, Seq, Timestamp};
use relay_ws::codec::{
    self, ClientMessage, ClientPayload, DecodeError, FieldTooLong, Frame, Status, decode_binary, decode_text,
};
use serde_json::{Value, json};

/// Messages that the client's `Serializer.encode` wrote, taken from a run of phoenix 1.8.16.
mod written_by_phoenix {
    pub(crate) const TEXT: &str =
        r#"["1","2","document:notes","document.edited",{"patches":[[0,0,"hé\"\n"]]}]"#;
    pub(crate) const HEARTBEAT: &str = r#"[null,"3","phoenix","heartbeat",{}]"#;
    /// `["1", "2", "document:notes", "x-blob", bytes 1 2 3 0 255]`.
    pub(crate) const BINARY: &[u8] = b"\x00\x01\x01\x0e\x0612document:notesx-blob\x01\x02\x03\x00\xff";
    /// `["12", "345", "document:ünïcødé", "document.edited", no bytes]`.
    pub(crate) const BINARY_UNICODE: &[u8] =
        b"\x00\x02\x03\x14\x0f12345document:\xc3\xbcn\xc3\xafc\xc3\xb8d\xc3\xa9document.edited";
}

/// The fields of a message in a form that can be compared.
#[derive(Debug, Clone, PartialEq)]
struct Fields {
    join_ref: Option<String>,
    reference: Option<String>,
    topic: String,
    event: String,
    payload: Result<Value, Vec<u8>>,
}

fn fields(message: &ClientMessage<'_>) -> Fields {
    Fields {
        join_ref: message.join_ref.as_deref().map(str::to_owned),
        reference: message.reference.as_deref().map(str::to_owned),
        topic: message.topic.to_string(),
        event: message.event.to_string(),
        payload: match message.payload {
            ClientPayload::Json(raw) => Ok(serde_json::from_str(raw.get()).unwrap()),
            ClientPayload::Binary(bytes) => Err(bytes.to_vec()),
        },
    }
}

fn named(
    join_ref: &str,
    reference: &str,
    topic: &str,
    event: &str,
    payload: Result<Value, Vec<u8>>,
) -> Fields {
    let optional = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Fields {
        join_ref: optional(join_ref),
        reference: optional(reference),
        topic: topic.to_owned(),
        event: event.to_owned(),
        payload,
    }
}

/// The same encoding as the client's `Serializer.encode`.
fn client_encode(message: &Fields) -> Frame {
    match &message.payload {
        Ok(json) => {
            let message = json!([message.join_ref, message.reference, message.topic, message.event, json]);
            Frame::Text(message.to_string().into())
        }
        Err(bytes) => {
            let join_ref = message.join_ref.clone().unwrap_or_default();
            let reference = message.reference.clone().unwrap_or_default();
            let fields = [&join_ref, &reference, &message.topic, &message.event];
            let mut encoded = vec![0];
            encoded.extend(fields.iter().map(|field| u8::try_from(field.len()).unwrap()));
            encoded.extend(fields.iter().flat_map(|field| field.as_bytes()));
            encoded.extend(bytes);
            Frame::Binary(encoded.into())
        }
    }
}

/// The same decoding as the client's `Serializer.decode`.
fn client_decode(frame: &Frame) -> Fields {
    let bytes = match frame {
        Frame::Text(text) => {
            let [join_ref, reference, topic, event, payload]: [Value; 5] =
                serde_json::from_slice(text).unwrap();
            let text = |value: &Value| value.as_str().map(str::to_owned);
            return Fields {
                join_ref: text(&join_ref),
                reference: text(&reference),
                topic: text(&topic).unwrap(),
                event: text(&event).unwrap(),
                payload: Ok(payload),
            };
        }
        Frame::Binary(bytes) => bytes,
    };
    let lengths = match bytes[0] {
        0 => 3,
        1 => 4,
        2 => 2,
        other => panic!("the client knows no kind {other}"),
    };
    let mut rest = &bytes[1 + lengths..];
    let mut take = |at: usize| {
        let (field, after) = rest.split_at(usize::from(bytes[at]));
        rest = after;
        std::str::from_utf8(field).unwrap().to_owned()
    };
    let texts: Vec<String> = (1..=lengths).map(&mut take).collect();
    let payload = Err(rest.to_vec());
    match texts.as_slice() {
        [join_ref, topic, event] => named(join_ref, "", topic, event, payload),
        [join_ref, reference, topic, status] => named(join_ref, reference, topic, status, payload),
        [topic, event] => named("", "", topic, event, payload),
        _ => unreachable!(),
    }
}

#[test]
fn messages_of_the_phoenix_client_are_decoded_to_their_fields() {
    let edit = json!({"patches": [[0, 0, "hé\"\n"]]});
    let read = |text| fields(&decode_text(text).unwrap());
    assert_eq!(
        read(written_by_phoenix::TEXT),
        named("1", "2", "document:notes", "document.edited", Ok(edit))
    );
    assert_eq!(read(written_by_phoenix::HEARTBEAT), named("", "3", "phoenix", "heartbeat", Ok(json!({}))));
    let read = |bytes| fields(&decode_binary(bytes).unwrap());
    let bytes = vec![1, 2, 3, 0, 255];
    assert_eq!(read(written_by_phoenix::BINARY), named("1", "2", "document:notes", "x-blob", Err(bytes)));
    assert_eq!(
        read(written_by_phoenix::BINARY_UNICODE),
        named("12", "345", "document:ünïcødé", "document.edited", Err(Vec::new()))
    );
}

#[test]
fn the_clients_serializer_that_these_tests_use_is_the_phoenix_one() {
    for (bytes, is) in [
        (written_by_phoenix::BINARY, named("1", "2", "document:notes", "x-blob", Err(vec![1, 2, 3, 0, 255]))),
        (
            written_by_phoenix::BINARY_UNICODE,
            named("12", "345", "document:ünïcødé", "document.edited", Err(Vec::new())),
        ),
    ] {
        assert_eq!(client_encode(&is), Frame::Binary(Bytes::from_static(bytes)));
    }
}

#[test]
fn messages_of_the_server_are_encoded_byte_for_byte_as_the_protocol_says() {
    let text = |frame: Frame| match frame {
        Frame::Text(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        Frame::Binary(_) => panic!("not text"),
    };
    assert_eq!(
        text(
            codec::encode_reply(Some("1"), Some("2"), "document:n", Status::Error, &json!({"reason": "x"}))
                .unwrap()
        ),
        r#"["1","2","document:n","phx_reply",{"status":"error","response":{"reason":"x"}}]"#
    );
    assert_eq!(
        text(
            codec::encode_push(Some("1"), "document:n", "system.notice", &json!({"level": "info"})).unwrap()
        ),
        r#"["1",null,"document:n","system.notice",{"level":"info"}]"#
    );
    assert_eq!(
        text(codec::encode_close(Some("1"), "document:n")),
        r#"["1","1","document:n","phx_close",{}]"#
    );
    assert_eq!(
        text(codec::encode_error(None, "document:n", "lagged")),
        r#"[null,null,"document:n","phx_error",{"reason":"lagged"}]"#
    );
    assert_eq!(
        codec::encode_binary_push("1", "t", "evt", b"\x01\x02").unwrap(),
        Frame::Binary(Bytes::from_static(b"\x00\x01\x01\x031tevt\x01\x02"))
    );
    assert_eq!(
        codec::encode_binary_reply("1", "22", "t", Status::Ok, b"\x07").unwrap(),
        Frame::Binary(Bytes::from_static(b"\x01\x01\x02\x01\x02122tok\x07"))
    );
    let long = "t".repeat(256);
    assert_eq!(
        codec::encode_binary_push("1", &long, "e", b""),
        Err(FieldTooLong { field: "topic", bytes: 256 })
    );
}

fn event(document: &str, payload: Payload) -> Event {
    let kind = Kind::new("x-blob", relay_core::DeliveryClass::Sequenced).unwrap();
    let draft = Draft::new(DocumentId::new(document).unwrap(), kind, payload)
        .id(EventId::from_u128(7))
        .actor(Actor::System);
    draft.into_event(Epoch::from_u64(9), Some(Seq::new(3)), Timestamp::from_micros(5))
}

#[test]
fn a_broadcast_is_the_envelope_as_the_clients_payload_and_is_made_once() {
    let event = event("notes", Payload::json(&json!({"n": 1})).unwrap());
    let broadcast = codec::encode_broadcast(&event);
    let envelope: Value = serde_json::from_slice(&relay_events::json::encode(&event)).unwrap();
    assert_eq!(client_decode(&broadcast), named("", "", "document:notes", "x-blob", Ok(envelope)));
    assert_eq!(codec::encode_broadcast(&event).bytes().as_ptr(), broadcast.bytes().as_ptr());
}

#[test]
fn the_bytes_of_a_broadcast_hold_no_spare_memory() {
    let payloads = [Payload::json(&"x".repeat(100_000)).unwrap(), Payload::Binary(vec![7; 100_000].into())];
    for payload in payloads {
        for document in ["notes".to_owned(), "n".repeat(250)] {
            let event = event(&document, payload.clone());
            let (Frame::Text(bytes) | Frame::Binary(bytes)) = codec::encode_broadcast(&event);
            drop(event);
            let length = bytes.len();
            assert!(bytes.try_into_mut().unwrap().capacity() <= length + 16);
        }
    }
}

#[test]
fn a_broadcast_of_bytes_is_the_envelopes_length_the_envelope_and_the_bytes() {
    let event = event("notes", Payload::Binary(Bytes::from_static(b"\x00\xff")));
    let header = relay_events::json::encode_header(&event);
    let mut payload = u32::try_from(header.len()).unwrap().to_be_bytes().to_vec();
    payload.extend_from_slice(&header);
    payload.extend_from_slice(b"\x00\xff");
    assert_eq!(
        client_decode(&codec::encode_broadcast(&event)),
        named("", "", "document:notes", "x-blob", Err(payload))
    );
}

#[test]
fn bytes_go_as_binary_up_to_a_topic_of_255_bytes_and_as_text_beyond() {
    let bytes = Payload::Binary(Bytes::from_static(b"\x00"));
    let fits = event(&"x".repeat(255 - "document:".len()), bytes.clone());
    assert!(matches!(codec::encode_broadcast(&fits), Frame::Binary(_)));
    let does_not = event(&"x".repeat(256 - "document:".len()), bytes);
    let payload = client_decode(&codec::encode_broadcast(&does_not)).payload.unwrap();
    assert_eq!(payload["payload_base64"], "AA==");
}

#[test]
fn malformed_messages_are_refused_with_the_defect() {
    assert!(matches!(decode_text("[]"), Err(DecodeError::NotAMessage(_))));
    assert!(matches!(decode_text(r#"[null,null,"t","e",{},{}]"#), Err(DecodeError::NotAMessage(_))));
    assert!(matches!(decode_text(r#"[null,null,null,"e",{}]"#), Err(DecodeError::NotAMessage(_))));
    let long = format!(r#"["{}",null,"t","e",{{}}]"#, "r".repeat(256));
    assert_eq!(
        decode_text(&long).map(|_| ()),
        Err(DecodeError::ReferenceTooLong { field: "join_ref", bytes: 256 })
    );
    let refused = |bytes: &[u8]| decode_binary(bytes).map(|_| ()).unwrap_err();
    assert_eq!(refused(&[]), DecodeError::UnknownForm(None));
    assert_eq!(refused(&[1, 0, 0, 0, 0]), DecodeError::UnknownForm(Some(1)));
    assert_eq!(refused(&[0, 1, 1]), DecodeError::Truncated { bytes: 3, header: 5 });
    assert_eq!(refused(&[0, 1, 1, 1, 200, b'x']), DecodeError::Truncated { bytes: 6, header: 208 });
    assert_eq!(refused(&[0, 0, 0, 1, 0, 0xff]), DecodeError::NotUtf8 { field: "topic" });
}

fn any_fields() -> impl Strategy<Value = Fields> {
    let text = || "\\PC{0,40}";
    let payload = prop_oneof![
        any::<Vec<u8>>().prop_map(Err),
        ("\\PC*", any::<i64>()).prop_map(|(text, number)| Ok(json!({"text": text, "number": number}))),
    ];
    (text(), text(), text(), text(), payload).prop_map(|(join_ref, reference, topic, event, payload)| {
        named(&join_ref, &reference, &topic, &event, payload)
    })
}

proptest! {
    #[test]
    fn any_message_of_a_client_is_decoded_to_its_fields(message in any_fields()) {
        match client_encode(&message) {
            Frame::Text(bytes) => {
                let text = std::str::from_utf8(&bytes).unwrap();
                prop_assert_eq!(fields(&decode_text(text).unwrap()), message);
            }
            Frame::Binary(bytes) => prop_assert_eq!(fields(&decode_binary(&bytes).unwrap()), message),
        }
    }

    #[test]
    fn any_message_of_the_server_is_decoded_by_the_client_to_its_fields(message in any_fields()) {
        let Fields { join_ref, reference, topic, event, payload } = &message;
        let (join_ref, reference) = (join_ref.as_deref(), reference.as_deref());
        match payload {
            Ok(json) => {
                let push = client_decode(&codec::encode_push(join_ref, topic, event, json).unwrap());
                prop_assert_eq!(&push, &Fields { reference: None, ..message.clone() });
                let reply = client_decode(&codec::encode_reply(join_ref, reference, topic, Status::Ok, json).unwrap());
                prop_assert_eq!(reply.payload.unwrap(), json!({"status": "ok", "response": json}));
            }
            Err(bytes) => {
                let (join_ref, reference) = (join_ref.unwrap_or_default(), reference.unwrap_or_default());
                let push = codec::encode_binary_push(join_ref, topic, event, bytes).unwrap();
                prop_assert_eq!(client_decode(&push), Fields { reference: None, ..message.clone() });
                let reply = codec::encode_binary_reply(join_ref, reference, topic, Status::Error, bytes).unwrap();
                prop_assert_eq!(client_decode(&reply), Fields { event: "error".to_owned(), ..message });
            }
        }
    }

    #[test]
    fn no_bytes_make_the_decoders_panic(bytes in any::<Vec<u8>>(), form in 0u8..3, lengths in any::<[u8; 4]>()) {
        let _ = decode_binary(&bytes);
        let headed: Vec<u8> = [form].into_iter().chain(lengths).chain(bytes.clone()).collect();
        let _ = decode_binary(&headed);
        let _ = decode_text(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_json_makes_the_text_decoder_panic(text in r#"\[(null|"[a-z\\u0-9]*"|[0-9]+|\{\}|,|\[)*\]?"#) {
        let _ = decode_text(&text);
    }
}
