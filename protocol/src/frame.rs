//! The fixed frame header. Every frame on either socket of a peer connection starts with these
//! 64 bytes, little endian; `payload_len` bytes follow. Parsing allocates nothing.
//!
//! ```text
//!  0 magic u32      4 version u8   5 kind u8       6 flags u16
//!  8 volume u16    10 reserved u16                12 payload_len u32
//! 16 seq u64
//! 24 offset u64    (bytes from the start of the volume)
//! 32 size u64      (bytes covered, or a count; see the kind)
//! 40 epoch u64
//! 48 payload_crc u32  52 reserved u64             60 header_crc u32 (CRC32C of bytes 0..60)
//! ```

/// Bytes of an encoded header.
pub const HEADER_LEN: usize = 64;

/// Largest payload of one frame in bytes.
pub const MAX_PAYLOAD: u32 = 8 << 20;

/// What a frame is. The comment names the fields that carry meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    // -- data socket: one ordered stream --
    /// Application write: seq, offset, size, epoch, payload; flags FUA.
    Write = 1,
    /// Application discard: seq, offset, size, epoch. Reads back as zeroes. Flags FUA.
    Trim = 2,
    /// Application write of zeroes: seq, offset, size, epoch; flags FUA, NO_HOLE.
    WriteZeroes = 3,
    /// Ends epoch `epoch`; size = number of writes (application and resync) in that epoch.
    /// Flag ORDERED: a client's flush lies here, nothing sent later may reach the disk before the
    /// epoch is on it and flushed.
    Barrier = 4,
    /// Resync block: seq, offset, size, epoch, payload.
    ResyncData = 5,
    /// Resync range that reads as zeroes: seq, offset, size, epoch.
    ResyncZeroes = 6,
    /// Piece of the out-of-sync bitmap, run-length coded: offset = first bit, size = bits covered,
    /// payload; flag LAST on the final piece of a volume.
    Bitmap = 7,
    /// Online verify: what are the digests of this range, after everything sent before? seq (comes
    /// back), offset, size; epoch = number of the verify.
    VerifyAsk = 8,
    /// Answer to `VerifyAsk`, its seq, offset, size and epoch; payload: `digest::digests`.
    VerifyDigests = 9,
    /// A control message (`control::Message`, postcard) in payload. Either socket.
    Message = 10,
    /// Online verify: this range differs: offset, size; epoch = number of the verify.
    OutOfSync = 11,
    /// A Primary without a usable disk asks for data: seq (comes back), offset, size.
    ReadAsk = 12,
    /// Answer to `ReadAsk`, its seq, offset and size; payload.
    ReadData = 13,
    /// Answer to `ReadAsk`, its seq and offset: the data cannot be read; size = errno.
    ReadFailed = 14,

    // -- control socket --
    /// The peer holds write `seq` in memory (protocol B).
    RecvAck = 32,
    /// The peer's disk has written `seq` (protocol C). Flag STABLE: it survives a power cut.
    WriteAck = 33,
    /// The peer could not write `seq`; size = errno.
    NegAck = 34,
    /// Epoch `epoch` and all before it are written and flushed; size = writes counted in it.
    BarrierAck = 35,
    /// Resync block `seq` is written (not yet stable).
    ResyncAck = 36,
    /// Liveness: seq is echoed.
    Ping = 40,
    /// Answer to a ping.
    Pong = 41,
    /// Last frame before closing: payload is a UTF-8 sentence with the reason. Either socket.
    Goodbye = 50,
}

/// Bits of the `flags` field.
pub mod flags {
    /// The write must be on stable storage before its WriteAck.
    pub const FUA: u16 = 1;
    /// Zeroes must be allocated, not punched.
    pub const NO_HOLE: u16 = 2;
    /// WriteAck: the data are stable.
    pub const STABLE: u16 = 4;
    /// Barrier: orders later writes.
    pub const ORDERED: u16 = 8;
    /// Last piece of a bitmap.
    pub const LAST: u16 = 16;
    /// Goodbye: connect again at once, the generations are to be compared anew.
    pub const AGAIN: u16 = 32;
    /// Write, Trim, WriteZeroes: a WriteAck is due whatever the protocol is.
    pub const ACK: u16 = 128;
    /// Goodbye: the sender stays behind, and its disk says so.
    pub const OUTDATED: u16 = 64;
}

/// A decoded (or to be encoded) header. The engine leaves `payload_len` and `payload_crc` to
/// whoever holds the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// See [`flags`].
    pub flags: u16,
    /// Volume number.
    pub volume: u16,
    /// Bytes of payload that follow.
    pub payload_len: u32,
    /// Sequence number of the write, resync block or ping.
    pub seq: u64,
    /// Bytes from the start of the volume.
    pub offset: u64,
    /// Bytes covered or a count.
    pub size: u64,
    /// Write epoch.
    pub epoch: u64,
    /// CRC32C of the payload, 0 without payload.
    pub payload_crc: u32,
}

impl Header {
    /// A header of `kind` with every other field zero.
    pub const fn new(kind: Kind) -> Self {
        Self {
            kind,
            flags: 0,
            volume: 0,
            payload_len: 0,
            seq: 0,
            offset: 0,
            size: 0,
            epoch: 0,
            payload_crc: 0,
        }
    }
}

/// First bytes of a frame.
pub const MAGIC: u32 = u32::from_le_bytes(*b"TWBF");
/// Version of the header's layout.
pub const FRAME_VERSION: u8 = 1;

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not a frame: the stream is out of step or not ours.
    #[error("not a frame (magic {0:#010x})")]
    Magic(u32),
    /// Damaged on the way.
    #[error("header checksum mismatch")]
    Checksum,
    /// Another layout.
    #[error("frame version {0}, not {FRAME_VERSION}")]
    Version(u8),
    /// Unknown kind.
    #[error("unknown kind of frame {0}")]
    Kind(u8),
    /// Longer than anything may be.
    #[error("a payload of {0} bytes, more than {MAX_PAYLOAD}")]
    TooLong(u32),
    /// The kind and the payload do not go together.
    #[error("a {kind:?} frame with {payload_len} bytes of payload and size {size}")]
    Payload {
        /// Kind.
        kind: Kind,
        /// Bytes of payload.
        payload_len: u32,
        /// Its size field.
        size: u64,
    },
}

impl Kind {
    const ALL: [Self; 22] = [
        Self::Write,
        Self::Trim,
        Self::WriteZeroes,
        Self::Barrier,
        Self::ResyncData,
        Self::ResyncZeroes,
        Self::Bitmap,
        Self::VerifyAsk,
        Self::VerifyDigests,
        Self::Message,
        Self::OutOfSync,
        Self::ReadAsk,
        Self::ReadData,
        Self::ReadFailed,
        Self::RecvAck,
        Self::WriteAck,
        Self::NegAck,
        Self::BarrierAck,
        Self::ResyncAck,
        Self::Ping,
        Self::Pong,
        Self::Goodbye,
    ];

    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == number)
    }

    /// Whether its payload is bulk data for a disk.
    pub const fn is_bulk(self) -> bool {
        matches!(self, Self::Write | Self::ResyncData | Self::ReadData)
    }
}

impl Header {
    /// Encodes it, with its checksum.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut b = [0u8; HEADER_LEN];
        b[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        b[4] = FRAME_VERSION;
        b[5] = self.kind as u8;
        b[6..8].copy_from_slice(&self.flags.to_le_bytes());
        b[8..10].copy_from_slice(&self.volume.to_le_bytes());
        b[12..16].copy_from_slice(&self.payload_len.to_le_bytes());
        b[16..24].copy_from_slice(&self.seq.to_le_bytes());
        b[24..32].copy_from_slice(&self.offset.to_le_bytes());
        b[32..40].copy_from_slice(&self.size.to_le_bytes());
        b[40..48].copy_from_slice(&self.epoch.to_le_bytes());
        b[48..52].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crate::checksum::crc32c(&b[..60]);
        b[60..64].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Checks and decodes a header.
    pub fn decode(b: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let u16_at = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(0) != MAGIC {
            return Err(FrameError::Magic(u32_at(0)));
        }
        if u32_at(60) != crate::checksum::crc32c(&b[..60]) {
            return Err(FrameError::Checksum);
        }
        if b[4] != FRAME_VERSION {
            return Err(FrameError::Version(b[4]));
        }
        let kind = Kind::from_number(b[5]).ok_or(FrameError::Kind(b[5]))?;
        let header = Self {
            kind,
            flags: u16_at(6),
            volume: u16_at(8),
            payload_len: u32_at(12),
            seq: u64_at(16),
            offset: u64_at(24),
            size: u64_at(32),
            epoch: u64_at(40),
            payload_crc: u32_at(48),
        };
        if header.payload_len > MAX_PAYLOAD {
            return Err(FrameError::TooLong(header.payload_len));
        }
        let len = u64::from(header.payload_len);
        let fits = match kind {
            Kind::Write | Kind::ResyncData | Kind::ReadData => len > 0 && len == header.size,
            Kind::Bitmap | Kind::Message | Kind::Goodbye => true,
            Kind::VerifyDigests => len > 0 && len == crate::digest::digests_len(header.size),
            _ => len == 0,
        };
        if !fits {
            let (payload_len, size) = (header.payload_len, header.size);
            return Err(FrameError::Payload {
                kind,
                payload_len,
                size,
            });
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> impl Strategy<Value = Header> {
        let kinds = proptest::sample::select(Kind::ALL.to_vec());
        (
            kinds,
            any::<(u16, u16, u64, u64, u64, u32)>(),
            1..MAX_PAYLOAD,
        )
            .prop_map(
                |(kind, (flags, volume, seq, offset, epoch, payload_crc), len)| Header {
                    kind,
                    flags,
                    volume,
                    payload_len: match kind {
                        _ if kind.is_bulk() => len,
                        Kind::VerifyDigests => {
                            u32::try_from(crate::digest::digests_len(len.into())).expect("small")
                        }
                        _ => 0,
                    },
                    seq,
                    offset,
                    size: u64::from(len),
                    epoch,
                    payload_crc,
                },
            )
    }

    proptest! {
        #[test]
        fn round_trip(h in header()) {
            prop_assert_eq!(Header::decode(&h.encode()), Ok(h));
        }

        #[test]
        fn every_flipped_bit_is_noticed(h in header(), bit in 0usize..512) {
            let mut b = h.encode();
            b[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Header::decode(&b).is_err());
        }

        #[test]
        fn garbage_never_panics(b in prop::collection::vec(any::<u8>(), HEADER_LEN)) {
            let b: [u8; HEADER_LEN] = b.try_into().expect("its length");
            let _ = Header::decode(&b);
        }
    }
}
