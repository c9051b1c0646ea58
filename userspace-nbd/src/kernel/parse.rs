//! Messages from the kernel. Several may come in one datagram.

use super::attribute::Attributes;
use super::message::HEADERS;
use super::{CONTROLLER, GROUP, attr, command};

/// Type of an error or an acknowledgement.
const ERROR: u16 = 2;
/// Length of a netlink header.
const HEADER: usize = 16;
/// Controller's attributes.
const FAMILY_ID: u16 = 1;
const MULTICAST_GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;

/// What the kernel calls the family here and now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Type of its messages.
    pub id: u16,
    /// Number of the group that is told of dead sockets.
    pub group: Option<u32>,
}

/// A line of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// N of /dev/nbdN.
    pub index: u32,
    /// Whether it is configured: also while nobody serves it, or somebody still holds it open.
    pub connected: bool,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The order was carried out (0), or why not: a positive error number.
    Done(i32),
    /// The family.
    Family(Family),
    /// A device was made.
    Connected {
        /// N of /dev/nbdN.
        index: u32,
    },
    /// Which devices there are.
    Status(Vec<DeviceStatus>),
    /// A socket of a device died; nobody asked for this message.
    LinkDead {
        /// N of /dev/nbdN.
        index: u32,
    },
    /// Something else.
    Other,
}

/// A message, with the sequence number of the order it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 0: nobody asked.
    pub sequence: u32,
    /// What it says.
    pub message: Message,
}

/// Bytes that are no messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's netlink answer cannot be understood")]
pub struct Malformed;

/// The messages of a datagram. `family` is 0 as long as it is not known.
pub fn parse(mut bytes: &[u8], family: u16) -> Result<Vec<Answer>, Malformed> {
    let mut answers = Vec::new();
    while !bytes.is_empty() {
        let header = bytes.first_chunk::<HEADER>().ok_or(Malformed)?;
        let word = |at: usize| -> [u8; 4] { [0, 1, 2, 3].map(|i| header[at + i]) };
        let len = usize::try_from(u32::from_ne_bytes(word(0))).map_err(|_| Malformed)?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let body = bytes.get(HEADER..len).ok_or(Malformed)?;
        answers.push(Answer {
            sequence: u32::from_ne_bytes(word(8)),
            message: one(kind, body, family)?,
        });
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(answers)
}

fn one(kind: u16, body: &[u8], family: u16) -> Result<Message, Malformed> {
    if kind == ERROR {
        let error = body.first_chunk::<4>().ok_or(Malformed)?;
        return Ok(Message::Done(-i32::from_ne_bytes(*error).max(-i32::MAX)));
    }
    if kind != CONTROLLER && (kind != family || family == 0) {
        return Ok(Message::Other);
    }
    let command = *body.first().ok_or(Malformed)?;
    let attributes = body.get(HEADERS - HEADER..).ok_or(Malformed)?;
    if kind == CONTROLLER {
        let id = Attributes::find_u16(attributes, FAMILY_ID);
        return Ok(id.map_or(Message::Other, |id| {
            Message::Family(Family {
                id,
                group: group(attributes),
            })
        }));
    }
    let index = || Attributes::find_u32(attributes, attr::INDEX).ok_or(Malformed);
    Ok(match command {
        command::CONNECT => Message::Connected { index: index()? },
        command::LINK_DEAD => Message::LinkDead { index: index()? },
        command::STATUS => Message::Status(devices(attributes)),
        _ => Message::Other,
    })
}

fn group(attributes: &[u8]) -> Option<u32> {
    let groups = Attributes::find(attributes, MULTICAST_GROUPS)?;
    Attributes(groups)
        .find(|(_, one)| Attributes::find_text(one, GROUP_NAME) == Some(GROUP.as_bytes()))
        .and_then(|(_, one)| Attributes::find_u32(one, GROUP_ID))
}

fn devices(attributes: &[u8]) -> Vec<DeviceStatus> {
    let list = Attributes::find(attributes, attr::DEVICE_LIST).unwrap_or_default();
    Attributes(list)
        .filter(|(kind, _)| *kind == attr::ITEM)
        .filter_map(|(_, item)| {
            let connected = Attributes::find(item, attr::DEVICE_CONNECTED)?;
            Some(DeviceStatus {
                index: Attributes::find_u32(item, attr::DEVICE_INDEX)?,
                connected: connected.first().is_some_and(|b| *b != 0),
            })
        })
        .collect()
}
