//! Links: two sockets each, ordered streams, delays, directions that are blocked, ends that do not
//! know of each other's.

use std::collections::VecDeque;
use twinblk_engine::output::Channel;
use twinblk_protocol::frame::HEADER_LEN;

/// Bytes the kernel takes of a socket nobody reads.
const SOCKET_BUFFER: u64 = 128 << 10;

/// What travels.
#[derive(Debug)]
pub enum Frame {
    /// Header and payload.
    Data {
        /// As encoded by the sender.
        header: Box<[u8; HEADER_LEN]>,
        /// Sectors, for writes.
        content: Vec<u64>,
        /// Bytes, for everything else.
        bytes: Vec<u8>,
    },
    /// The sender has closed the socket.
    End,
}

/// One direction of one socket.
#[derive(Debug, Default)]
pub struct Stream {
    /// Under way: (arrival, frame).
    pub frames: VecDeque<(u64, Frame)>,
    /// Arrivals that were held up by a blocked direction.
    pub owed: u64,
    last_arrival: u64,
    queued: u64,
    arrived: u64,
}

impl Stream {
    /// Takes a frame; answers when it arrives.
    pub fn push(&mut self, frame: Frame, arrival: u64, bytes: u64) -> u64 {
        let arrival = arrival.max(self.last_arrival);
        self.last_arrival = arrival;
        self.queued += bytes;
        self.frames.push_back((arrival, frame));
        arrival
    }

    /// Takes bytes that go nowhere.
    pub fn swallow(&mut self, bytes: u64) {
        self.queued += bytes;
    }

    /// The next frame has arrived.
    pub fn pop(&mut self) -> Option<Frame> {
        let (_, frame) = self.frames.pop_front()?;
        if let Frame::Data { content, bytes, .. } = &frame {
            self.arrived += HEADER_LEN as u64 + content.len() as u64 * 512 + bytes.len() as u64;
        }
        Some(frame)
    }

    /// Bytes the kernel has taken from the sender so far.
    pub fn taken(&self) -> u64 {
        self.queued.min(self.arrived + SOCKET_BUFFER)
    }
}

/// A connection of two nodes.
#[derive(Debug)]
pub struct Link {
    /// The nodes, lower first.
    pub ends: [usize; 2],
    /// Lives of the nodes it belongs to.
    pub lives: [u64; 2],
    /// By sender (0: lower node) and channel.
    pub streams: [[Stream; 2]; 2],
    /// An end that is closed hears nothing and says nothing.
    pub closed: [bool; 2],
    /// What a side sends goes nowhere.
    pub broken: [bool; 2],
    /// Which ends of which sockets have seen the other side's end.
    pub ended: [[bool; 2]; 2],
}

impl Link {
    /// A new one.
    pub fn new(ends: [usize; 2], lives: [u64; 2]) -> Self {
        Self {
            ends,
            lives,
            streams: Default::default(),
            closed: [false; 2],
            broken: [false; 2],
            ended: [[false; 2]; 2],
        }
    }

    /// 0 or 1: which end this node is.
    pub fn side(&self, n: usize) -> usize {
        usize::from(self.ends[1] == n)
    }
}

/// Index of a channel.
pub fn channel(channel: Channel) -> usize {
    usize::from(channel == Channel::Control)
}

/// What two nodes have between them.
#[derive(Debug, Default)]
pub struct Wire {
    /// By sender: nothing gets through.
    pub blocked: [bool; 2],
    /// The link in use at each end (by side), as an index of the world's links.
    pub link: [Option<usize>; 2],
    /// Frames take so many times longer, until then (ns).
    pub slow: Option<(u64, u64)>,
    /// Connections are reset again and again until then.
    pub storm_until: u64,
    /// An attempt to connect is scheduled.
    pub dialling: bool,
}

/// Encoded size of a frame with this payload.
pub fn size(content: &[u64], bytes: &[u8]) -> u64 {
    HEADER_LEN as u64 + content.len() as u64 * 512 + bytes.len() as u64
}
