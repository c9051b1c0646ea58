//! The kernel's own NBD client, `/dev/nbdN`, as it is ordered about over generic netlink: messages to
//! it as bytes, bytes from it as facts. Who sends and receives them is the caller's affair.
//!
//! The kernel's client takes over sockets on which the negotiation is done; with a socket pair, a
//! server hands it one end and serves plain transmission (simple replies) on the other. A device lives
//! until it is disconnected, also while nobody serves it: then requests wait, for as long as
//! [`Timeouts::dead`] says, for a [`reconfigure`] that brings a new socket.
//!
//! What the kernel does not say, and a caller must know:
//! * a `reconfigure` replaces sockets the kernel has *seen* dying. Is none dead (yet), the new one is
//!   dropped and the answer is success; the other end of a dropped pair then reads the end of the
//!   stream;
//! * requests that were under way when a socket died are sent again only when their own time
//!   ([`Timeouts::request`]) is over; without such a time they are never given up, not even when
//!   nobody comes for [`Timeouts::dead`];
//! * with more than one socket, the kernel sends them again on another one at once, while the server
//!   may still find the first copy unread in the dead one.

mod attribute;
mod message;
mod parse;

pub use message::{
    Connect, Reconfigure, Timeouts, connect, disconnect, find_family, reconfigure, status,
};
pub use parse::{Answer, DeviceStatus, Family, Malformed, Message, parse};

/// Name of the family.
pub const FAMILY: &str = "nbd";
/// Name of the multicast group that tells of dead sockets.
pub const GROUP: &str = "nbd_mc_group";
/// Longest answer worth a buffer: a list of some thousand devices.
pub const MAX_ANSWER: usize = 64 << 10;

/// Type of messages to the controller, which knows the families.
pub(crate) const CONTROLLER: u16 = 0x10;
/// Numbers of the `nbd` family's commands.
pub(crate) mod command {
    pub(crate) const CONNECT: u8 = 1;
    pub(crate) const DISCONNECT: u8 = 2;
    pub(crate) const RECONFIGURE: u8 = 3;
    pub(crate) const LINK_DEAD: u8 = 4;
    pub(crate) const STATUS: u8 = 5;
}
/// Numbers of its attributes.
pub(crate) mod attr {
    pub(crate) const INDEX: u16 = 1;
    pub(crate) const SIZE_BYTES: u16 = 2;
    pub(crate) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(crate) const TIMEOUT: u16 = 4;
    pub(crate) const SERVER_FLAGS: u16 = 5;
    pub(crate) const SOCKETS: u16 = 7;
    pub(crate) const DEAD_CONN_TIMEOUT: u16 = 8;
    pub(crate) const DEVICE_LIST: u16 = 9;
    pub(crate) const BACKEND_IDENTIFIER: u16 = 10;
    /// Inside `SOCKETS` and `DEVICE_LIST`.
    pub(crate) const ITEM: u16 = 1;
    /// Inside an item of `SOCKETS`.
    pub(crate) const FD: u16 = 1;
    /// Inside an item of `DEVICE_LIST`.
    pub(crate) const DEVICE_INDEX: u16 = 1;
    pub(crate) const DEVICE_CONNECTED: u16 = 2;
}
