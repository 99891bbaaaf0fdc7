//! The server over real sockets, as clients see it.

mod joining;
mod support;
