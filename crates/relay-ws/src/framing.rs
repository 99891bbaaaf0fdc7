//! WebSocket framing (RFC 6455) of the server's side, with compression (RFC 7692), without any I/O.
//!
//! A shard reads all of its sockets into one buffer, so a connection must keep nothing of its own while it is idle.
//! A [`Decoder`] is a few words then; it takes heap only for what arrived in part, and gives it back with the
//! message. Whole messages, which is nearly all, are unmasked in the buffer and never copied. Headers are parsed
//! by `tungstenite`.
//!
//! What must hold:
//! - Memory follows what arrived, never what a header claims, and ends at the limit, also when inflating.
//! - What is wrong is refused with the first byte that shows it, also in the middle of a frame.
//! - However bytes are cut into reads, the messages are the same.
//!
//! ```
//! use relay_ws::framing::{Compression, Decoder, Message};
//!
//! let mut decoder = Decoder::new(1024, Compression::Off);
//! // Two frames of a client, masked with zeros: a ping, and the text "hi".
//! let mut read = *b"\x89\x80\0\0\0\0\x81\x82\0\0\0\0hi";
//! let mut input = &mut read[..];
//! assert_eq!(decoder.next(&mut input)?, Some(Message::Ping(b"")));
//! assert_eq!(decoder.next(&mut input)?, Some(Message::Text("hi")));
//! assert_eq!(decoder.next(&mut input)?, None);
//! # Ok::<(), relay_ws::framing::FramingError>(())
//! ```

mod decode;
mod encode;

pub use decode::{Decoder, FramingError, Message, Violation};
pub use encode::{encode, encode_close};

/// What a frame or message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpCode {
    /// A message of UTF-8.
    Text,
    /// A message of bytes.
    Binary,
    /// Asks for a pong with the same bytes.
    Ping,
    /// Answers a ping.
    Pong,
    /// Ends the connection.
    Close,
}

/// Whether a connection agreed on `permessage-deflate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// No message may be compressed.
    Off,
    /// Each message may be compressed, by itself: no side keeps a context.
    Deflate,
}

/// The most bytes that a control frame carries.
const MAX_CONTROL_BYTES: usize = 125;
