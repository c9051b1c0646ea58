//! One socket of a link to a peer: bytes to frames.

use super::buffers::Class;
use super::disk::Core;
use super::intake::Intake;
use super::ring::{Kind as Op, Token};
use super::send_queue::SendQueue;
use super::slab::Key;
use std::os::fd::OwnedFd;
use twinblk_engine::ids::NodeId;
use twinblk_engine::input::{Body, Input};
use twinblk_engine::output::Channel;
use twinblk_protocol::checksum::crc32c;
use twinblk_protocol::control::Message;
use twinblk_protocol::frame::{HEADER_LEN, Header, Kind};

/// Staging area of each socket.
const STAGING: usize = 256 * 1024;
/// Largest payload that is not bulk data (bitmap pieces have 32 KiB).
const MAX_BYTES: u32 = 256 * 1024;

/// One of the two sockets.
#[derive(Debug)]
pub(crate) struct Half {
    pub(crate) socket: OwnedFd,
    channel: Channel,
    pub(crate) intake: Intake,
    pub(crate) queue: SendQueue,
    /// Header whose payload is not complete.
    frame: Option<Header>,
    /// Payload of `frame` that is not bulk data.
    payload: Vec<u8>,
    /// Writing was shut down.
    pub(crate) shut: bool,
}

impl Half {
    /// A connected socket with bytes already received.
    pub(crate) fn new((socket, initial): (OwnedFd, Vec<u8>), channel: Channel) -> Self {
        Self {
            intake: Intake::new(STAGING, &initial),
            socket,
            channel,
            queue: SendQueue::default(),
            frame: None,
            payload: Vec::new(),
            shut: false,
        }
    }

    /// Names of its operations in the ring.
    pub(crate) fn tokens(&self, key: Key) -> (Token, Token) {
        let (recv, send) = match self.channel {
            Channel::Data => (Op::DataRecv, Op::DataSend),
            Channel::Control => (Op::ControlRecv, Op::ControlSend),
        };
        (Token { kind: recv, key }, Token { kind: send, key })
    }

    /// Turns what was received into frames. `Ok(true)`: more bytes are needed; `Ok(false)`: a buffer
    /// is needed; `Err`: the peer said what it must not say.
    pub(crate) fn parse(
        &mut self,
        core: &mut Core,
        key: Key,
        peer: NodeId,
    ) -> Result<bool, String> {
        loop {
            let Some(header) = self.frame else {
                let Some(head) = self.intake.bytes().first_chunk::<HEADER_LEN>() else {
                    return Ok(true);
                };
                let header = Header::decode(head).map_err(|error| error.to_string())?;
                self.intake.consume(HEADER_LEN);
                self.check(&header)?;
                self.frame = Some(header);
                continue;
            };
            let body = if header.kind.is_bulk() {
                if !self.intake.awaits_payload() {
                    let len = header.payload_len as usize;
                    let Some(buf) = core.pool.alloc_in_turn(Class::Peer, key, len) else {
                        return Ok(false);
                    };
                    self.intake.receive_into(&mut core.pool, buf, len);
                }
                let Some(buf) = self.intake.received() else {
                    return Ok(true);
                };
                let len = header.payload_len;
                if core.pool.crc(buf, len) != header.payload_crc {
                    core.pool.release(buf);
                    return Err(mismatch(&header));
                }
                Body::Buf(buf)
            } else {
                let missing = header.payload_len as usize - self.payload.len();
                let there = missing.min(self.intake.bytes().len());
                self.payload
                    .extend_from_slice(&self.intake.bytes()[..there]);
                self.intake.consume(there);
                if there < missing {
                    return Ok(true);
                }
                self.body(&header)?
            };
            self.frame = None;
            core.inputs.push_back(Input::Frame { peer, header, body });
        }
    }

    /// What may come on this socket, beyond what the header's own rules say.
    fn check(&self, header: &Header) -> Result<(), String> {
        let on_control = matches!(
            header.kind,
            Kind::RecvAck
                | Kind::WriteAck
                | Kind::NegAck
                | Kind::BarrierAck
                | Kind::ResyncAck
                | Kind::Ping
                | Kind::Pong
        );
        let either = matches!(header.kind, Kind::Message | Kind::Goodbye);
        if !either && on_control != (self.channel == Channel::Control) {
            return Err(format!("a {:?} frame on the wrong socket", header.kind));
        }
        if !header.kind.is_bulk() && header.payload_len > MAX_BYTES {
            return Err(format!(
                "a {:?} frame of {} bytes",
                header.kind, header.payload_len
            ));
        }
        Ok(())
    }

    /// Verifies and decodes the payload gathered.
    fn body(&mut self, header: &Header) -> Result<Body, String> {
        let none = self.payload.is_empty();
        let crc = if none { 0 } else { crc32c(&self.payload) };
        if crc != header.payload_crc {
            return Err(mismatch(header));
        }
        let body = match header.kind {
            Kind::Message => {
                let message = Message::decode(&self.payload).map_err(|error| error.to_string())?;
                Body::Message(message)
            }
            Kind::Bitmap | Kind::VerifyDigests | Kind::Goodbye => {
                Body::Bytes(self.payload.as_slice().into())
            }
            _ => Body::None,
        };
        self.payload.clear();
        Ok(body)
    }

    /// Nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        !self.intake.is_receiving() && !self.queue.is_flying()
    }
}

fn mismatch(header: &Header) -> String {
    format!(
        "the payload of a {:?} frame for byte {} arrived damaged (checksum mismatch); nothing of it \
         was written",
        header.kind, header.offset
    )
}
