//! Phoenix Channels serializer 2.0.0: [WebSocket](Frame) messages to values and back, without any I/O.
//!
//! A message is `[join_ref, ref, topic, event, payload]` as JSON text, or a binary message of lengths, fields and
//! payload. Clients send [`ClientMessage`]s; servers send replies, pushes and broadcasts.
//!
//! ```
//! use relay_ws::codec::{self, Status};
//!
//! let message = codec::decode_text(r#"["1","2","document:notes","document.edited",{"patches":[[0,0,"h"]]}]"#)?;
//! assert_eq!((message.topic.as_ref(), message.event.as_ref()), ("document:notes", "document.edited"));
//!
//! let reply = codec::encode_reply(Some("1"), Some("2"), &message.topic, Status::Ok, &serde_json::json!({"seq": 7}));
//! assert_eq!(&reply.bytes()[..], br#"["1","2","document:notes","phx_reply",{"status":"ok","response":{"seq":7}}]"#);
//! # Ok::<(), codec::DecodeError>(())
//! ```

mod decode;
mod encode;

pub use decode::{ClientMessage, ClientPayload, DecodeError, decode_binary, decode_text};
pub use encode::{
    FieldTooLong, Frame, Status, encode_binary_push, encode_binary_reply, encode_broadcast, encode_close,
    encode_error, encode_push, encode_reply,
};

/// The first byte of a binary push, of a client as of a server.
const PUSH: u8 = 0;
/// The first byte of a binary reply.
const REPLY: u8 = 1;
/// The first byte of a binary broadcast.
const BROADCAST: u8 = 2;
/// The most bytes of a field in a binary message, whose length is one byte. References keep to it in text too.
const MAX_FIELD_BYTES: usize = u8::MAX as usize;
