//! Requests ("Request message").

use crate::constants::REQUEST_MAGIC;
use crate::error::Errno;
use crate::export::{Export, TransmissionFlags};

/// Bytes of a request header.
pub const REQUEST_LEN: usize = 28;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// READ
    Read,
    /// WRITE; `length` bytes of payload follow.
    Write,
    /// DISC: the client goes, no answer.
    Disc,
    /// FLUSH
    Flush,
    /// TRIM
    Trim,
    /// CACHE
    Cache,
    /// WRITE_ZEROES
    WriteZeroes,
    /// BLOCK_STATUS
    BlockStatus,
    /// Something else.
    Unknown(u16),
}

impl Command {
    fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disc,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            other => Self::Unknown(other),
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disc => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Unknown(other) => other,
        }
    }
}

/// Command flags ("Command flags").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CommandFlags(pub u16);

impl CommandFlags {
    /// Stable before the answer.
    pub const FUA: Self = Self(1);
    /// Zeroes must stay allocated.
    pub const NO_HOLE: Self = Self(1 << 1);
    /// Answer a read in one chunk.
    pub const DF: Self = Self(1 << 2);
    /// One extent only.
    pub const REQ_ONE: Self = Self(1 << 3);
    /// Fail rather than be slow.
    pub const FAST_ZERO: Self = Self(1 << 4);

    /// Whether all of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Flags.
    pub flags: CommandFlags,
    /// Command.
    pub command: Command,
    /// Comes back in the answer.
    pub cookie: u64,
    /// Bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

/// Not a request: the stream is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an NBD request (magic {0:#010x})")]
pub struct BadMagic(pub u32);

/// A request that must be answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestError {
    /// Error number.
    pub errno: Errno,
    /// Why, for people.
    pub text: &'static str,
}

/// What requests are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the export.
    pub size: u64,
    /// Smallest unit, bytes.
    pub minimum: u32,
    /// Longest payload, bytes.
    pub maximum: u32,
    /// What the export understands.
    pub flags: TransmissionFlags,
    /// Structured replies were agreed.
    pub structured: bool,
    /// Any context was selected.
    pub contexts: bool,
}

impl Limits {
    /// Of an export as negotiated.
    pub fn new(export: &Export, structured: bool, contexts: bool) -> Self {
        Self {
            size: export.size,
            minimum: export.block_size.minimum,
            maximum: export.block_size.maximum,
            flags: export.flags,
            structured,
            contexts,
        }
    }
}

impl Request {
    /// Decodes a header.
    pub fn parse(b: &[u8; REQUEST_LEN]) -> Result<Self, BadMagic> {
        let u32_at = |at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
        if u32_at(0) != REQUEST_MAGIC {
            return Err(BadMagic(u32_at(0)));
        }
        Ok(Self {
            flags: CommandFlags(u16::from_be_bytes([b[4], b[5]])),
            command: Command::from_number(u16::from_be_bytes([b[6], b[7]])),
            cookie: u64_at(8),
            offset: u64_at(16),
            length: u32_at(24),
        })
    }

    /// Encodes a header (client side).
    pub fn encode(&self) -> [u8; REQUEST_LEN] {
        let mut b = [0; REQUEST_LEN];
        b[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        b[4..6].copy_from_slice(&self.flags.0.to_be_bytes());
        b[6..8].copy_from_slice(&self.command.number().to_be_bytes());
        b[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        b[16..24].copy_from_slice(&self.offset.to_be_bytes());
        b[24..28].copy_from_slice(&self.length.to_be_bytes());
        b
    }

    /// Bytes of payload that follow the header.
    pub fn payload_len(&self) -> u32 {
        if self.command == Command::Write {
            self.length
        } else {
            0
        }
    }

    /// Checks it against what was negotiated ("Request types", "Block size constraints").
    pub fn validate(&self, limits: &Limits) -> Result<(), RequestError> {
        use Command as C;
        use TransmissionFlags as T;
        let err = |errno, text| Err(RequestError { errno, text });
        let ranged = match self.command {
            C::Disc | C::Flush => false,
            C::Unknown(_) => return err(Errno::EINVAL, "unknown command"),
            _ => true,
        };
        let writes = matches!(self.command, C::Write | C::Trim | C::WriteZeroes);
        if writes && limits.flags.contains(T::READ_ONLY) {
            return err(Errno::EPERM, "the export is read-only");
        }
        let offered = match self.command {
            C::Flush => limits.flags.contains(T::SEND_FLUSH),
            C::Trim => limits.flags.contains(T::SEND_TRIM),
            C::WriteZeroes => limits.flags.contains(T::SEND_WRITE_ZEROES),
            C::Cache => limits.flags.contains(T::SEND_CACHE),
            C::BlockStatus => limits.structured && limits.contexts,
            _ => true,
        };
        if !offered {
            return err(
                Errno::EINVAL,
                "the command was not offered or not negotiated",
            );
        }
        self.check_flags(limits)?;
        if !ranged {
            return Ok(());
        }
        let len = u64::from(self.length);
        if len == 0 {
            return err(Errno::EINVAL, "a request of no length");
        }
        if self
            .offset
            .checked_add(len)
            .is_none_or(|end| end > limits.size)
        {
            // As the specification has it, command by command.
            let grows = matches!(self.command, C::Write | C::WriteZeroes);
            let errno = if grows { Errno::ENOSPC } else { Errno::EINVAL };
            return err(errno, "the range ends beyond the device");
        }
        let unit = u64::from(limits.minimum.max(1));
        if !self.offset.is_multiple_of(unit) || len % unit != 0 {
            let text = "offset and length must be multiples of the minimum block size";
            return err(Errno::EINVAL, text);
        }
        if matches!(self.command, C::Read | C::Write) && self.length > limits.maximum {
            return err(Errno::EINVAL, "longer than the maximum block size");
        }
        Ok(())
    }

    fn check_flags(&self, limits: &Limits) -> Result<(), RequestError> {
        use Command as C;
        use CommandFlags as F;
        use TransmissionFlags as T;
        let mut allowed = 0;
        if limits.flags.contains(T::SEND_FUA) {
            // Allowed on every command once offered; it means something on those that write.
            allowed |= F::FUA.0;
        }
        if self.command == C::WriteZeroes {
            allowed |= F::NO_HOLE.0;
            if limits.flags.contains(T::SEND_FAST_ZERO) {
                allowed |= F::FAST_ZERO.0;
            }
        }
        if self.command == C::Read && limits.structured && limits.flags.contains(T::SEND_DF) {
            allowed |= F::DF.0;
        }
        if self.command == C::BlockStatus {
            allowed |= F::REQ_ONE.0;
        }
        if self.flags.0 & !allowed != 0 {
            let text = "a flag that was not offered, or that the command does not have";
            return Err(RequestError {
                errno: Errno::EINVAL,
                text,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits() -> Limits {
        let all = [
            TransmissionFlags::HAS_FLAGS,
            TransmissionFlags::SEND_FLUSH,
            TransmissionFlags::SEND_FUA,
            TransmissionFlags::SEND_TRIM,
            TransmissionFlags::SEND_WRITE_ZEROES,
            TransmissionFlags::SEND_DF,
            TransmissionFlags::SEND_CACHE,
            TransmissionFlags::SEND_FAST_ZERO,
        ];
        Limits {
            size: 1 << 20,
            minimum: 512,
            maximum: 64 << 10,
            flags: all.into_iter().fold(TransmissionFlags(0), |a, b| a | b),
            structured: true,
            contexts: true,
        }
    }

    fn request(command: Command, flags: CommandFlags, offset: u64, length: u32) -> Request {
        Request {
            flags,
            command,
            cookie: 1,
            offset,
            length,
        }
    }

    #[test]
    fn what_may_not_be_is_refused_with_the_right_error() {
        use Command as C;
        use CommandFlags as F;
        let l = limits();
        let none = F::default();
        let errno = |r: Request, l: &Limits| r.validate(l).err().map(|e| e.errno);
        let ok = [
            request(C::Read, F::DF, 0, 512),
            request(C::Write, F::FUA, (1 << 20) - 512, 512),
            request(
                C::WriteZeroes,
                F(F::NO_HOLE.0 | F::FAST_ZERO.0 | F::FUA.0),
                0,
                1 << 20,
            ),
            request(C::Trim, F::FUA, 512, 1 << 19),
            request(C::BlockStatus, F::REQ_ONE, 0, 1 << 20),
            request(C::Flush, none, 0, 0),
            request(C::Cache, none, 0, 512),
        ];
        for r in ok {
            assert_eq!(errno(r, &l), None, "{r:?}");
        }
        let bad = [
            (request(C::Read, none, 0, 0), Errno::EINVAL),
            (request(C::Read, none, 1 << 20, 512), Errno::EINVAL),
            (request(C::Write, none, 1 << 20, 512), Errno::ENOSPC),
            (request(C::Write, none, u64::MAX - 511, 512), Errno::ENOSPC),
            (request(C::WriteZeroes, none, 1 << 20, 512), Errno::ENOSPC),
            (request(C::Trim, none, 1 << 20, 512), Errno::EINVAL),
            (request(C::Write, none, 100, 512), Errno::EINVAL),
            (request(C::Read, none, 0, 100), Errno::EINVAL),
            (request(C::Read, none, 0, 128 << 10), Errno::EINVAL),
            (request(C::Write, F::DF, 0, 512), Errno::EINVAL),
            (request(C::Read, F::NO_HOLE, 0, 512), Errno::EINVAL),
            (request(C::Unknown(77), none, 0, 512), Errno::EINVAL),
        ];
        for (r, want) in bad {
            assert_eq!(errno(r, &l), Some(want), "{r:?}");
        }
        let plain = Limits {
            structured: false,
            contexts: false,
            ..l
        };
        assert_eq!(
            errno(request(C::Read, F::DF, 0, 512), &plain),
            Some(Errno::EINVAL)
        );
        assert_eq!(
            errno(request(C::BlockStatus, none, 0, 512), &plain),
            Some(Errno::EINVAL)
        );
        let ro = Limits {
            flags: l.flags | TransmissionFlags::READ_ONLY,
            ..l
        };
        assert_eq!(
            errno(request(C::Trim, none, 0, 512), &ro),
            Some(Errno::EPERM)
        );
        assert_eq!(errno(request(C::Read, none, 0, 512), &ro), None);
    }

    proptest! {
        #[test]
        fn round_trip(flags: u16, number: u16, cookie: u64, offset: u64, length: u32) {
            let r = Request {
                flags: CommandFlags(flags), command: Command::from_number(number),
                cookie, offset, length,
            };
            prop_assert_eq!(Request::parse(&r.encode()), Ok(r));
            let _ = r.validate(&limits());
        }
    }
}
