//! Messages to the kernel.

use super::attribute::{put_nested, put_text, put_u32, put_u64};
use super::{CONTROLLER, FAMILY, attr, command};
use crate::export::TransmissionFlags;
use std::time::Duration;

/// "This is a request."
const REQUEST: u16 = 1;
/// "Answer also when all is well."
const ACK: u16 = 4;
/// Controller: "which number has this family?"
const GET_FAMILY: u8 = 3;
/// Controller: the name of a family.
const FAMILY_NAME: u16 = 2;
/// Length of both headers.
pub(super) const HEADERS: usize = 20;

/// How long the kernel waits, in whole seconds; a part of a second counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For the answer to a request, until its socket counts as dead and it is sent again.
    pub request: Duration,
    /// For a new socket while all are dead, until requests fail.
    pub dead: Duration,
}

/// A device to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect<'a> {
    /// N of /dev/nbdN; `None`: the kernel takes a free one.
    pub index: Option<u32>,
    /// Bytes.
    pub size: u64,
    /// Smallest I/O in bytes: a power of two, 512 to the size of a page.
    pub block_size: u32,
    /// What the server understands; the kernel ignores what it does not.
    pub flags: TransmissionFlags,
    /// How long it waits.
    pub timeouts: Timeouts,
    /// Who serves it: every later [`reconfigure`] must say the same.
    pub backend: &'a str,
    /// Descriptors, in the sender's process, of the sockets the kernel takes over.
    pub sockets: &'a [i32],
}

/// A change of a device that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconfigure<'a> {
    /// N of /dev/nbdN.
    pub index: u32,
    /// What the device was connected with.
    pub backend: &'a str,
    /// A new size in bytes.
    pub size: Option<u64>,
    /// How long it waits from now on.
    pub timeouts: Option<Timeouts>,
    /// Sockets in place of dead ones.
    pub sockets: &'a [i32],
}

/// Asks for the number of the `nbd` family.
pub fn find_family(sequence: u32) -> Vec<u8> {
    message(CONTROLLER, GET_FAMILY, sequence, |out| {
        put_text(out, FAMILY_NAME, FAMILY);
    })
}

/// Makes a device.
pub fn connect(family: u16, sequence: u32, device: &Connect<'_>) -> Vec<u8> {
    message(family, command::CONNECT, sequence, |out| {
        if let Some(index) = device.index {
            put_u32(out, attr::INDEX, index);
        }
        put_u64(out, attr::SIZE_BYTES, device.size);
        put_u64(out, attr::BLOCK_SIZE_BYTES, device.block_size.into());
        put_u64(out, attr::SERVER_FLAGS, device.flags.0.into());
        put_timeouts(out, &device.timeouts);
        put_text(out, attr::BACKEND_IDENTIFIER, device.backend);
        put_sockets(out, device.sockets);
    })
}

/// Changes a device.
pub fn reconfigure(family: u16, sequence: u32, change: &Reconfigure<'_>) -> Vec<u8> {
    message(family, command::RECONFIGURE, sequence, |out| {
        put_u32(out, attr::INDEX, change.index);
        put_text(out, attr::BACKEND_IDENTIFIER, change.backend);
        if let Some(size) = change.size {
            put_u64(out, attr::SIZE_BYTES, size);
        }
        if let Some(timeouts) = &change.timeouts {
            put_timeouts(out, timeouts);
        }
        if !change.sockets.is_empty() {
            put_sockets(out, change.sockets);
        }
    })
}

/// Ends a device; what is under way on it fails.
pub fn disconnect(family: u16, sequence: u32, index: u32) -> Vec<u8> {
    message(family, command::DISCONNECT, sequence, |out| {
        put_u32(out, attr::INDEX, index);
    })
}

/// Asks which devices are connected, or whether one is.
pub fn status(family: u16, sequence: u32, index: Option<u32>) -> Vec<u8> {
    message(family, command::STATUS, sequence, |out| {
        if let Some(index) = index {
            put_u32(out, attr::INDEX, index);
        }
    })
}

fn put_timeouts(out: &mut Vec<u8>, timeouts: &Timeouts) {
    let seconds = |time: Duration| time.as_secs() + u64::from(time.subsec_nanos() > 0);
    put_u64(out, attr::TIMEOUT, seconds(timeouts.request));
    put_u64(out, attr::DEAD_CONN_TIMEOUT, seconds(timeouts.dead));
}

fn put_sockets(out: &mut Vec<u8>, sockets: &[i32]) {
    put_nested(out, attr::SOCKETS, |out| {
        for socket in sockets {
            put_nested(out, attr::ITEM, |out| {
                put_u32(out, attr::FD, socket.cast_unsigned());
            });
        }
    });
}

fn message(kind: u16, command: u8, sequence: u32, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![0; HEADERS];
    fill(&mut out);
    // Far below: a few numbers, a name and some sockets.
    let len = u32::try_from(out.len()).unwrap_or(u32::MAX);
    out[0..4].copy_from_slice(&len.to_ne_bytes());
    out[4..6].copy_from_slice(&kind.to_ne_bytes());
    out[6..8].copy_from_slice(&(REQUEST | ACK).to_ne_bytes());
    out[8..12].copy_from_slice(&sequence.to_ne_bytes());
    // Bytes 12 to 15, the sender's port, are the kernel's to fill in.
    out[16] = command;
    out[17] = 1;
    out
}
