//! Phoenix Channels serializer 2.0.0. It converts [WebSocket](Frame) messages to values and back, without any I/O.
//!
//! A text message is `[join_ref, ref, topic, event, payload]` as JSON. A binary message has the lengths of its fields, the
//! fields, and the payload. Clients send [`ClientMessage`]s. Servers send replies, pushes and broadcasts.
//!
//! ```
//! use relay_ws::codec::{ClientPayload, decode_binary};
//!
//! // A push: the lengths of join_ref, ref, topic and event, those four texts, and the payload 1, 2, 3.
//! let message = decode_binary(b"\x00\x01\x01\x0a\x0612document:nx-blob\x01\x02\x03")?;
//! assert_eq!(message.topic, "document:n");
//! assert!(matches!(message.payload, ClientPayload::Binary(b"\x01\x02\x03")));
//! # Ok::<(), relay_ws::codec::DecodeError>(())
//! ```

mod decode;
mod encode;
mod presence;
mod topic;

pub use decode::{
    ClientMessage, ClientPayload, DecodeError, MessageHead, decode_binary, decode_head, decode_text,
};
pub use encode::{
    EncodeError, FieldTooLong, Frame, Status, encode_binary_push, encode_binary_reply, encode_broadcast,
    encode_close, encode_error, encode_push, encode_reply,
};
pub use presence::{RESERVED_STATE_FIELDS, encode_participants, encode_presence};
pub(crate) use topic::{document_id, topic};

/// The first byte of a binary push, from a client or a server.
const PUSH: u8 = 0;
/// The first byte of a binary reply.
const REPLY: u8 = 1;
/// The first byte of a binary broadcast.
const BROADCAST: u8 = 2;
/// The most bytes of a field in a binary message, since its length is one byte. It limits references in text messages too.
const MAX_FIELD_BYTES: usize = u8::MAX as usize;
