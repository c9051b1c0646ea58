//! A generic netlink socket to the kernel's nbd driver: an order, and its answer. Every call may block for
//! a moment in the kernel; they belong into a thread that may wait.

use super::sysfs;
use rustix::io::Errno;
use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};
use std::os::fd::OwnedFd;
use std::time::Duration;
use userspace_nbd::kernel::{self, Connect, Family, MAX_ANSWER, Message, Reconfigure};

/// The answer is there when the order has been sent; this only ends a wait that cannot be.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the kernel did not do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NetlinkError {
    /// The driver is not loaded.
    NoDriver,
    /// It is loaded, and takes no orders here: it does so in the first network namespace only.
    OtherNamespace,
    /// It is there, and refuses.
    Refused(Errno),
    /// It does not answer in time.
    Silent,
    /// The conversation failed.
    System(Errno),
}

impl From<Errno> for NetlinkError {
    fn from(error: Errno) -> Self {
        Self::System(error)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Nbd {
    socket: OwnedFd,
    family: Family,
    sequence: u32,
}

impl Nbd {
    /// Opens a socket and finds the driver.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let mut nbd = Self::socket(PATIENCE)?;
        let messages = nbd.order(kernel::find_family).map_err(|e| match e {
            NetlinkError::Refused(Errno::NOENT) => match sysfs::is_driver_loaded() {
                true => NetlinkError::OtherNamespace,
                false => NetlinkError::NoDriver,
            },
            other => other,
        })?;
        let family = messages.into_iter().find_map(|m| match m {
            Message::Family(family) => Some(family),
            _ => None,
        });
        nbd.family = family.ok_or(NetlinkError::System(Errno::PROTO))?;
        Ok(nbd)
    }

    /// A socket that waits so long for an answer, and does not know the driver yet.
    fn socket(patience: Duration) -> Result<Self, NetlinkError> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(GENERIC),
        )?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(patience))?;
        Ok(Self {
            socket,
            family: Family { id: 0, group: None },
            sequence: 0,
        })
    }

    /// Makes a device; answers its number.
    pub(super) fn connect(&mut self, device: &Connect<'_>) -> Result<u32, NetlinkError> {
        let family = self.family.id;
        let messages = self.order(|sequence| kernel::connect(family, sequence, device))?;
        let made = messages.into_iter().find_map(|m| match m {
            Message::Connected { index } => Some(index),
            _ => None,
        });
        made.or(device.index)
            .ok_or(NetlinkError::System(Errno::PROTO))
    }

    /// Changes a device, or gives it a new socket in place of a dead one. That the socket was taken is
    /// not known from the answer.
    pub(super) fn reconfigure(&mut self, change: &Reconfigure<'_>) -> Result<(), NetlinkError> {
        let family = self.family.id;
        self.order(|sequence| kernel::reconfigure(family, sequence, change))?;
        Ok(())
    }

    /// Ends a device. Also right when there is none.
    pub(super) fn disconnect(&mut self, index: u32) -> Result<(), NetlinkError> {
        let family = self.family.id;
        self.order(|sequence| kernel::disconnect(family, sequence, index))?;
        Ok(())
    }

    /// Whether a device is configured: also while nobody serves it, or somebody still holds it.
    pub(super) fn is_connected(&mut self, index: u32) -> Result<bool, NetlinkError> {
        let family = self.family.id;
        let messages = self.order(|sequence| kernel::status(family, sequence, Some(index)))?;
        Ok(messages.into_iter().any(
            |m| matches!(m, Message::Status(all) if all.iter().any(|d| d.index == index && d.connected)),
        ))
    }

    /// Sends an order; collects what comes until it is acknowledged.
    fn order(&mut self, order: impl FnOnce(u32) -> Vec<u8>) -> Result<Vec<Message>, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let bytes = order(self.sequence);
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, &bytes, SendFlags::empty(), &kernel)?;
        let mut messages = Vec::new();
        let mut buf = vec![0; MAX_ANSWER];
        loop {
            let count = match recv(&self.socket, &mut buf[..], RecvFlags::empty()) {
                Ok((count, _)) => count,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Err(NetlinkError::Silent),
                Err(error) => return Err(error.into()),
            };
            let answers = kernel::parse(&buf[..count], self.family.id)
                .map_err(|_| NetlinkError::System(Errno::PROTO))?;
            for answer in answers.into_iter().filter(|a| a.sequence == self.sequence) {
                match answer.message {
                    Message::Done(0) => return Ok(messages),
                    Message::Done(error) => {
                        return Err(NetlinkError::Refused(Errno::from_raw_os_error(error)));
                    }
                    other => messages.push(other),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// A message that the kernel takes and does not answer: no order (NLMSG_NOOP), no wish for an
    /// acknowledgement.
    fn no_order(sequence: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(16u32.to_ne_bytes());
        bytes.extend(1u16.to_ne_bytes());
        bytes.extend(1u16.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes
    }

    #[test]
    fn an_answer_that_does_not_come_is_not_waited_for_for_ever() {
        let patience = Duration::from_millis(100);
        let mut nbd = Nbd::socket(patience).expect("a socket");
        let began = Instant::now();
        assert_eq!(nbd.order(no_order), Err(NetlinkError::Silent));
        assert!(began.elapsed() >= patience, "it was waited for");
    }

    #[test]
    fn a_message_for_an_earlier_order_is_no_answer() {
        let mut nbd = Nbd::socket(Duration::from_millis(100)).expect("a socket");
        // The kernel's refusal of this one lies there, unread.
        let early = kernel::disconnect(0x7fff, 7, 0);
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&nbd.socket, &early, SendFlags::empty(), &kernel).expect("sent");
        assert_eq!(nbd.order(no_order), Err(NetlinkError::Silent));
        // Of an order of its own it is the answer.
        let refused = nbd.order(|sequence| kernel::disconnect(0x7fff, sequence, 0));
        assert_eq!(refused, Err(NetlinkError::Refused(Errno::NOENT)));
    }
}
