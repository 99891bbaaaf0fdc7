//! Who is in a document: sessions, presence that merges between servers, and exclusive locks with fencing tokens.
//!
#![doc = include_str!("../README.md")]

mod locks;
