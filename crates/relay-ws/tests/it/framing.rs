//! The framing, compared with a plain list of messages that are cut, masked, compressed and decoded in pieces.

use http::header::{HeaderMap, HeaderValue, SEC_WEBSOCKET_EXTENSIONS};
use proptest::prelude::*;
use relay_ws::framing::{
    Decoder, DeflateParams, Deflater, FramingError, HEAD_BYTES, Message, OpCode, encode, encode_close,
    negotiate,
};
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode as RawOpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};

mod pieces;

const MAX: usize = 70_000;

#[derive(Debug, Clone, PartialEq)]
enum Sent {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// The head of a message that is too large.
    Head(Vec<u8>),
}

fn owned(message: Message<'_>) -> Sent {
    match message {
        Message::Text(text) => Sent::Text(text.to_owned()),
        Message::Binary(bytes) => Sent::Binary(bytes.to_vec()),
        Message::Ping(bytes) => Sent::Ping(bytes.to_vec()),
        Message::Pong(bytes) => Sent::Pong(bytes.to_vec()),
        Message::TooLarge { head, .. } => Sent::Head(head.to_vec()),
        Message::Close(close) => panic!("no test sends {close:?}"),
    }
}

/// A frame of a client.
fn frame(op_code: RawOpCode, is_final: bool, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader { is_final, opcode: op_code, mask: Some(mask), ..FrameHeader::default() };
    let mut bytes = Vec::new();
    header.format(payload.len() as u64, &mut bytes).unwrap();
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// The frames of a message that is cut at `cuts`. `between` follows each frame but the last.
fn frames(message: &Sent, cuts: &[prop::sample::Index], mask: [u8; 4], between: &[u8]) -> Vec<u8> {
    let (first, payload) = match message {
        Sent::Text(text) => (Data::Text, text.as_bytes()),
        Sent::Binary(bytes) => (Data::Binary, bytes.as_slice()),
        Sent::Ping(bytes) => return frame(RawOpCode::Control(Control::Ping), true, mask, bytes),
        Sent::Head(_) => unreachable!("no client sends it"),
        Sent::Pong(bytes) => return frame(RawOpCode::Control(Control::Pong), true, mask, bytes),
    };
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
    at.sort_unstable();
    let (mut bytes, mut begin) = (Vec::new(), 0);
    for (index, end) in at.iter().copied().chain([payload.len()]).enumerate() {
        let op_code = RawOpCode::Data(if index == 0 { first } else { Data::Continue });
        bytes.extend(frame(op_code, index == at.len(), mask, &payload[begin..end]));
        if index < at.len() {
            bytes.extend_from_slice(between);
        }
        begin = end;
    }
    bytes
}

fn messages() -> impl Strategy<Value = Sent> {
    prop_oneof![
        ".{0,200}".prop_map(Sent::Text),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Sent::Binary),
        (60_000_usize..MAX).prop_map(|length| Sent::Text("é".repeat(length / 2))),
        prop::collection::vec(any::<u8>(), 0..126).prop_map(Sent::Ping),
        prop::collection::vec(any::<u8>(), 0..126).prop_map(Sent::Pong),
    ]
}

/// Decodes `bytes` in pieces of these sizes. At some stops the rest of a piece is carried over.
fn decode(bytes: &[u8], pieces: &[usize], stops: &[bool]) -> Result<Vec<Sent>, FramingError> {
    let mut decoder = Decoder::new(MAX, false);
    let (mut received, mut rest) = (Vec::new(), bytes.to_vec());
    let (mut pieces, mut stops) = (pieces.iter().cycle(), stops.iter().cycle());
    while !rest.is_empty() {
        let length = (*pieces.next().unwrap()).clamp(1, rest.len());
        let mut piece: Vec<u8> = rest.drain(..length).collect();
        let mut input = piece.as_mut_slice();
        while let Some(message) = decoder.next(&mut input)? {
            received.push(owned(message));
            if *stops.next().unwrap() {
                break;
            }
        }
        decoder.keep(input);
    }
    while decoder.has_carry_over() {
        received.extend(decoder.next(&mut [].as_mut_slice())?.map(owned));
    }
    Ok(received)
}

proptest! {
    #[test]
    fn messages_are_decoded_as_they_were_sent_however_they_are_cut(
        sent in prop::collection::vec((messages(), prop::collection::vec(any::<prop::sample::Index>(), 0..4)), 0..8),
        mask in any::<[u8; 4]>(),
        pieces in prop::collection::vec(prop_oneof![1_usize..20, 1_000_usize..100_000], 1..10),
        stops in prop::collection::vec(any::<bool>(), 1..5),
    ) {
        let ping = frame(RawOpCode::Control(Control::Ping), true, mask, b"between");
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for (message, cuts) in &sent {
            bytes.extend(frames(message, cuts, mask, &ping));
            if matches!(message, Sent::Text(_) | Sent::Binary(_)) {
                expected.extend(cuts.iter().map(|_| Sent::Ping(b"between".to_vec())));
            }
            expected.push(message.clone());
        }
        prop_assert_eq!(decode(&bytes, &pieces, &stops).unwrap(), expected);
    }

    #[test]
    fn bytes_are_decoded_alike_however_they_are_cut(
        parts in prop::collection::vec(raw_frames(), 0..8),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        piece in any::<u8>(),
    ) {
        let mut bytes = parts.concat();
        for (index, byte) in changes {
            if !bytes.is_empty() {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
        }
        pieces::check(piece, &bytes);
    }
}

/// A frame with any fields, of which most are possible. The length that it claims is mostly that of its payload.
fn raw_frames() -> impl Strategy<Value = Vec<u8>> {
    let op_code = prop_oneof![4 => 0..3_u8, 2 => 8..11_u8, 1 => 0..16_u8];
    let length = prop_oneof![8 => 0..20_usize, 3 => 100..300_usize, 1 => 900..3_000_usize];
    let payload = length.prop_flat_map(|length| {
        prop_oneof![
            Just(vec![b'a'; length]),
            Just(vec![0; length]),
            prop::collection::vec(any::<u8>(), length)
        ]
    });
    let claim = prop_oneof![20 => Just(0_usize), 1 => 0..70_000_usize];
    let bits = (any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.02));
    (op_code, bits, any::<[u8; 4]>(), payload, claim).prop_map(|(op_code, bits, mask, payload, claim)| {
        let (is_final, is_compressed, is_reserved) = bits;
        let header = FrameHeader { is_final, mask: Some(mask), ..FrameHeader::default() };
        let mut bytes = Vec::new();
        header.format((payload.len() + claim) as u64, &mut bytes).unwrap();
        bytes[0] =
            u8::from(is_final) << 7 | u8::from(is_compressed) << 6 | u8::from(is_reserved) << 5 | op_code;
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    })
}

#[track_caller]
fn refused(bytes: &[u8]) -> FramingError {
    let at_once = decode(bytes, &[usize::MAX], &[false]).unwrap_err();
    let byte_by_byte = decode(bytes, &[1], &[false]).unwrap_err();
    assert_eq!(at_once, byte_by_byte);
    at_once
}

#[track_caller]
fn breaks_the_protocol(bytes: &[u8]) {
    assert!(matches!(refused(bytes), FramingError::Protocol { .. }));
}

const MASK: [u8; 4] = [1, 2, 3, 4];

fn data(data: Data, is_final: bool, payload: &[u8]) -> Vec<u8> {
    frame(RawOpCode::Data(data), is_final, MASK, payload)
}

fn control(control: Control, is_final: bool, payload: &[u8]) -> Vec<u8> {
    frame(RawOpCode::Control(control), is_final, MASK, payload)
}

#[test]
fn frames_that_rfc_6455_forbids_are_refused() {
    let mut unmasked = Vec::new();
    encode(&mut unmasked, OpCode::Text, b"hello");
    breaks_the_protocol(&unmasked);
    for bit in [0x40, 0x20, 0x10] {
        let mut reserved = data(Data::Text, true, b"hello");
        reserved[0] |= bit;
        breaks_the_protocol(&reserved);
    }
    for op_code in [3, 7, 11, 15] {
        let mut reserved = data(Data::Text, true, b"");
        reserved[0] = 0x80 | op_code;
        breaks_the_protocol(&reserved);
    }
    breaks_the_protocol(&control(Control::Ping, false, b""));
    breaks_the_protocol(&control(Control::Ping, true, &[0; 126]));
    breaks_the_protocol(&data(Data::Continue, true, b""));
    breaks_the_protocol(&[data(Data::Text, false, b"a"), data(Data::Text, true, b"b")].concat());
    breaks_the_protocol(&control(Control::Close, true, &[3]));
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000] {
        breaks_the_protocol(&control(Control::Close, true, &code.to_be_bytes()));
    }
}

#[test]
fn text_that_is_not_utf8_is_refused_with_the_first_wrong_byte() {
    assert_eq!(refused(&data(Data::Text, true, b"\xff")), FramingError::NotUtf8);
    assert_eq!(refused(&data(Data::Text, true, b"\xce")), FramingError::NotUtf8);
    assert_eq!(refused(&control(Control::Close, true, b"\x03\xe8\xff")), FramingError::NotUtf8);
    // The frame and the message are incomplete.
    let begun = data(Data::Text, false, b"\xed\xa0\x80 and much more to come");
    assert_eq!(decode(&begun[..10], &[1], &[false]), Err(FramingError::NotUtf8));
    // A character may be split over two frames.
    let whole = [data(Data::Text, false, b"\xce"), data(Data::Continue, true, b"\xba")].concat();
    assert_eq!(decode(&whole, &[1], &[false]).unwrap(), [Sent::Text("κ".to_owned())]);
}

#[test]
fn a_message_that_is_too_large_is_discarded_but_for_its_head_and_the_next_one_is_read() {
    let half: Vec<u8> = (0..=MAX / 2).map(|index| b'a' + u8::try_from(index % 26).unwrap()).collect();
    let whole = [half.clone(), half.clone()].concat();
    let head = Sent::Head(whole[..HEAD_BYTES].to_vec());
    let next = data(Data::Text, true, b"next");
    for kind in [Data::Text, Data::Binary] {
        let at_once = data(kind, true, &whole);
        let halves = [data(kind, false, &half), data(Data::Continue, true, &half)].concat();
        let tiny = [data(kind, false, b"x"), data(Data::Continue, true, &whole)].concat();
        for (sent, expected) in [
            (at_once, head.clone()),
            (halves, head.clone()),
            (tiny, Sent::Head([&b"x"[..], &whole[..HEAD_BYTES - 1]].concat())),
        ] {
            let bytes = [sent, next.clone()].concat();
            for piece in [1, 1_000, usize::MAX] {
                let received = decode(&bytes, &[piece], &[false]).unwrap();
                assert_eq!(received, [expected.clone(), Sent::Text("next".to_owned())]);
            }
        }
    }
    // It is not read as text before that is known to be UTF-8.
    let broken = [&whole[..], b"\xff"].concat();
    assert_eq!(refused(&data(Data::Text, true, &broken)), FramingError::NotUtf8);
}

#[test]
fn a_message_that_is_much_too_large_is_refused_by_its_header_alone() {
    let too_large = FramingError::TooLarge { max: 16 * MAX };
    // The header claims 4 GiB, and no payload follows.
    assert_eq!(refused(&[0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4]), too_large);
    assert_eq!(refused(&[0x82, 0xff, 0xff, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4]), too_large);
    // Over all its frames.
    let frames = [data(Data::Binary, false, &vec![0; MAX]), data(Data::Continue, false, &vec![0; MAX])];
    let frames = [frames[0].clone(), frames[1].repeat(16)].concat();
    assert_eq!(decode(&frames, &[usize::MAX], &[false]), Err(too_large));
}

#[test]
fn a_part_of_a_header_or_of_a_control_frame_waits_for_more_bytes() {
    let bytes = control(Control::Ping, true, b"hello");
    for end in 1..bytes.len() {
        let mut decoder = Decoder::new(MAX, false);
        let (mut begin, mut rest) = (bytes[..end].to_vec(), bytes[end..].to_vec());
        assert_eq!(decoder.next(&mut begin.as_mut_slice()).unwrap(), None);
        decoder.keep(&[]);
        // Otherwise a caller that waits for carried-over bytes to be used would never end.
        assert!(!decoder.has_carry_over(), "{end}");
        assert_eq!(decoder.next(&mut rest.as_mut_slice()).unwrap(), Some(Message::Ping(b"hello")));
    }
}

#[test]
fn carried_over_bytes_are_decoded_before_the_input() {
    let mut decoder = Decoder::new(MAX, false);
    let [one, mut two] = [b"one", b"two"].map(|payload| data(Data::Binary, true, payload));
    decoder.keep(&one);
    assert!(decoder.has_carry_over());
    let mut input = two.as_mut_slice();
    assert_eq!(decoder.next(&mut input).unwrap(), Some(Message::Binary(b"one")));
    assert_eq!(decoder.next(&mut input).unwrap(), Some(Message::Binary(b"two")));
    assert_eq!(decoder.next(&mut input).unwrap(), None);
    assert!(!decoder.has_carry_over());
}

#[test]
fn a_length_is_written_in_the_fewest_bytes() {
    breaks_the_protocol(&[0x82, 0xfe, 0, 125, 1, 2, 3, 4]);
    breaks_the_protocol(&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 2, 3, 4]);
}

/// The parameters of a client that makes this offer.
fn agreed(offer: &'static str) -> DeflateParams {
    let headers = HeaderMap::from_iter([(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(offer))]);
    negotiate(&headers).unwrap().0
}

/// The payload of a message of the server, and true when it is compressed.
fn sent_by_server(agreed: DeflateParams, payload: &[u8]) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    Deflater::default().encode(agreed, OpCode::Binary, payload, &mut bytes);
    let mut cursor = std::io::Cursor::new(&bytes);
    let (header, length) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
    let payload = bytes[usize::try_from(cursor.position()).unwrap()..].to_vec();
    assert_eq!(payload.len() as u64, length);
    (payload, header.rsv1)
}

/// The frames of a compressed message. The first one has the bit of compression.
fn compressed_frames(payload: &[u8], frames: usize) -> Vec<u8> {
    let size = payload.len().div_ceil(frames);
    let mut bytes = Vec::new();
    for (index, part) in payload.chunks(size).enumerate() {
        let begin = bytes.len();
        let kind = if index == 0 { Data::Binary } else { Data::Continue };
        bytes.extend(data(kind, (index + 1) * size >= payload.len(), part));
        bytes[begin] |= if index == 0 { 0x40 } else { 0 };
    }
    bytes
}

#[test]
fn a_compressed_message_is_read_in_one_frame_and_in_many() {
    let text = "to whom it may concern ".repeat(1_000);
    let windows = ["permessage-deflate", "permessage-deflate; server_max_window_bits=9"];
    for (agreed, frames) in windows.into_iter().map(agreed).zip([1, 3]) {
        let (payload, compressed) = sent_by_server(agreed, text.as_bytes());
        assert!(compressed && payload.len() < text.len() / 10);
        let mut bytes = compressed_frames(&payload, frames);
        let mut decoder = Decoder::new(text.len(), true);
        let read = decoder.next(&mut bytes.as_mut_slice()).unwrap();
        assert_eq!(read, Some(Message::Binary(text.as_bytes())));
        // A client without agreed compression must not use it.
        breaks_the_protocol(&compressed_frames(&payload, frames));
        let mut bytes = compressed_frames(&payload, frames);
        let mut too_small = Decoder::new(text.len() - 1, true);
        let head = Message::TooLarge { head: &text.as_bytes()[..HEAD_BYTES], is_text: false };
        assert_eq!(too_small.next(&mut bytes.as_mut_slice()).unwrap(), Some(head));
    }
}

#[test]
fn a_message_that_compression_makes_larger_is_sent_plain_and_read_in_either_form() {
    let mut state = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(10_000)
    .collect();
    let (payload, compressed) = sent_by_server(agreed("permessage-deflate"), &noise);
    assert!(!compressed && payload == noise);
    // A client may compress it anyway: a stored block, and the beginning of the empty block.
    let stored = [&[0, 0x10, 0x27, 0xef, 0xd8][..], &noise, &[0]].concat();
    let mut bytes = compressed_frames(&stored, 1);
    let mut decoder = Decoder::new(noise.len(), true);
    assert_eq!(decoder.next(&mut bytes.as_mut_slice()).unwrap(), Some(Message::Binary(&noise)));
}

#[test]
fn a_compressed_text_is_utf8_when_it_is_inflated() {
    let stored = [&[0, 2, 0, 0xfd, 0xff][..], b"\xc3\x28", &[0]].concat();
    let mut bytes = data(Data::Text, true, &stored);
    bytes[0] |= 0x40;
    assert_eq!(Decoder::new(MAX, true).next(&mut bytes.as_mut_slice()), Err(FramingError::NotUtf8));
}

#[test]
fn a_close_has_its_code_and_a_reason_that_fits() {
    let mut decoder = Decoder::new(MAX, false);
    let mut bytes = control(Control::Close, true, b"\x03\xe8bye");
    assert_eq!(decoder.next(&mut bytes.as_mut_slice()).unwrap(), Some(Message::Close(Some((1000, "bye")))));
    let mut out = Vec::new();
    encode_close(&mut out, 1013, &"é".repeat(100));
    let payload = bytes::Bytes::copy_from_slice(&out[2..]);
    let header = FrameHeader { opcode: RawOpCode::Control(Control::Close), ..FrameHeader::default() };
    let close = Frame::from_payload(header, payload);
    assert!(close.payload().len() <= 125 && std::str::from_utf8(&close.payload()[2..]).is_ok());
}
