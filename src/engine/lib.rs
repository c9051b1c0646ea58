//! The replication engine: one deterministic state machine per resource.
//!
//! It does no I/O, reads no clock, starts no thread and draws no randomness except from a seed: it
//! is `no_std`, so the compiler keeps it that way. A driver owns a [`resource::Resource`], feeds it
//! [`input::Input`]s with the current time and carries out the [`output::Output`]s it pushes.
//!
//! How to call it:
//! * mutator: `handle(now, input, &mut outputs)`: the only way in for everything that happens;
//!   it never waits and never calls back;
//! * `open_export` / `close_export`: a client came or went;
//! * getters: `status`, `next_deadline`, `dirty_ranges`, `role`: never change anything.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

// Vocabulary.
pub mod command;
pub mod config;
pub mod event;
pub mod fencing;
pub mod handler;
pub mod ids;
pub mod input;
pub mod output;
pub mod save_discarded;
pub mod states;
pub mod status;
pub mod suspend;
pub mod time;

// Mechanisms, each with its own state and tests.
mod activity_log;
pub mod bitmap;
mod epoch_receiver;
pub mod generations;
pub mod handshake;
mod meta_writer;
pub mod metadata;
pub mod overlap;
mod resync_rate;
pub mod rng;
pub mod sabotage;
mod slots;
pub mod split_brain;
mod transfer_log;
mod unsettled;

// The resource: dispatcher, then the path of a request in reading order.
mod admission;
mod completion;
mod left_behind;
mod log_writer;
mod peer_request;
mod request;
pub mod resource;

// Peers: link, handshake, bitmaps, resync.
mod agreement;
mod bitmap_exchange;
mod connection;
mod doubt;
mod give_way;
mod group;
mod parted;
mod pass_on;
mod peer;
mod peer_view;
mod remote;
mod remote_io;
mod resync;
mod resync_watch;
mod serving;
mod verify;
mod verify_order;

// States and orders.
mod attach;
mod auto_promote;
mod change;
mod detach;
mod fence_promotion;
mod orders;
mod outdate;
mod picture;
mod resize;
mod role;
mod volume;

#[cfg(test)]
mod tests;
