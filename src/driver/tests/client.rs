//! A small NBD client: synchronous, and able to keep requests in flight.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

pub(super) const READ: u16 = 0;
pub(super) const WRITE: u16 = 1;
pub(super) const DISC: u16 = 2;
pub(super) const FLUSH: u16 = 3;
pub(super) const TRIM: u16 = 4;
pub(super) const CACHE: u16 = 5;
pub(super) const WRITE_ZEROES: u16 = 6;
pub(super) const BLOCK_STATUS: u16 = 7;
pub(super) const FUA: u16 = 1;
pub(super) const NO_HOLE: u16 = 2;

/// An answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) cookie: u64,
    pub(super) error: u32,
    pub(super) text: String,
    pub(super) data: Vec<u8>,
    /// (context, extents).
    pub(super) extents: Vec<(u32, Vec<(u32, u32)>)>,
}

pub(super) struct Client {
    pub(super) stream: UnixStream,
    structured: bool,
    cookie: u64,
    /// Lengths of reads in flight, by cookie.
    reads: std::collections::HashMap<u64, usize>,
}

impl Client {
    pub(super) fn new(stream: UnixStream, structured: bool) -> Self {
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(30)))
            .expect("timeout");
        Self {
            stream,
            structured,
            cookie: 0,
            reads: std::collections::HashMap::new(),
        }
    }

    pub(super) fn header(&mut self, command: u16, flags: u16, offset: u64, len: u32) -> Vec<u8> {
        self.cookie += 1;
        if command == READ {
            self.reads.insert(self.cookie, len as usize);
        }
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&0x2560_9513u32.to_be_bytes());
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&self.cookie.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes
    }

    /// Sends a request without waiting; answers its cookie.
    pub(super) fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> u64 {
        let mut bytes = self.header(command, flags, offset, len);
        bytes.extend_from_slice(data);
        self.stream.write_all(&bytes).expect("send");
        self.cookie
    }

    fn exact<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).expect("an answer");
        bytes
    }

    fn number(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0, |n, &b| n << 8 | u64::from(b))
    }

    /// The next whole answer.
    pub(super) fn answer(&mut self) -> Answer {
        let mut answer = Answer::default();
        if !self.structured {
            let head: [u8; 16] = self.exact();
            assert_eq!(Self::number(&head[..4]), 0x6744_6698);
            answer.error = Self::number(&head[4..8]) as u32;
            answer.cookie = Self::number(&head[8..]);
            let len = self.reads.remove(&answer.cookie).unwrap_or(0);
            if answer.error == 0 {
                answer.data = vec![0; len];
                self.stream.read_exact(&mut answer.data).expect("data");
            }
            return answer;
        }
        loop {
            let head: [u8; 20] = self.exact();
            assert_eq!(Self::number(&head[..4]), 0x668e_33ef);
            let (flags, kind) = (Self::number(&head[4..6]), Self::number(&head[6..8]));
            answer.cookie = Self::number(&head[8..16]);
            let mut payload = vec![0; Self::number(&head[16..]) as usize];
            self.stream.read_exact(&mut payload).expect("payload");
            match kind {
                0 => assert!(payload.is_empty()),
                1 => answer.data = payload[8..].to_vec(),
                5 => {
                    let number = |b: &[u8]| Self::number(b) as u32;
                    let extents = payload[4..]
                        .chunks_exact(8)
                        .map(|e| (number(&e[..4]), number(&e[4..])))
                        .collect();
                    answer.extents.push((number(&payload[..4]), extents));
                }
                _ => {
                    answer.error = Self::number(&payload[..4]) as u32;
                    answer.text = String::from_utf8_lossy(&payload[6..]).into_owned();
                }
            }
            if flags & 1 != 0 {
                return answer;
            }
        }
    }

    /// One request and its answer.
    pub(super) fn call(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> Answer {
        let cookie = self.send(command, flags, offset, len, data);
        let answer = self.answer();
        assert_eq!(answer.cookie, cookie);
        answer
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let answer = self.call(WRITE, 0, offset, data.len() as u32, data);
        assert_eq!(answer.error, 0, "{answer:?}");
    }

    pub(super) fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let answer = self.call(READ, 0, offset, len, &[]);
        assert_eq!(answer.error, 0, "{answer:?}");
        answer.data
    }
}
