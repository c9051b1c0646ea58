//! The replication wire format of a mirrored block device. Codec only: no I/O, no state of a
//! resource.
//!
//! A connection between two nodes is two TCP sockets, *data* (an ordered stream) and *control* (acks
//! and pings, never behind bulk data). Each begins with the [`hello`]: versions, features, the
//! resource, and proof of the shared secret in both directions. Then [`frame`]s: a fixed header of 64
//! bytes, and a payload where the kind has one. [`control::Message`]s travel as the payload of
//! [`frame::Kind::Message`]. `docs/wire.md` has it to the byte.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

/// Oldest version spoken.
pub const VERSION_MIN: u16 = 1;
/// Newest version spoken.
pub const VERSION_MAX: u16 = 1;

pub mod assemble;
pub mod auth;
pub mod bitmap_rle;
pub mod checksum;
pub mod control;
pub mod digest;
pub mod frame;
pub mod hello;
