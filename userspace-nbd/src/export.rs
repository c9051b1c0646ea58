//! What a server offers.

use std::ops::BitOr;

/// Transmission flags ("Transmission flags").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TransmissionFlags(pub u16);

impl TransmissionFlags {
    /// Always set.
    pub const HAS_FLAGS: Self = Self(1);
    /// Writes are refused.
    pub const READ_ONLY: Self = Self(1 << 1);
    /// FLUSH is understood.
    pub const SEND_FLUSH: Self = Self(1 << 2);
    /// FUA is understood.
    pub const SEND_FUA: Self = Self(1 << 3);
    /// Behaves like a rotating disk.
    pub const ROTATIONAL: Self = Self(1 << 4);
    /// TRIM is understood.
    pub const SEND_TRIM: Self = Self(1 << 5);
    /// WRITE_ZEROES is understood.
    pub const SEND_WRITE_ZEROES: Self = Self(1 << 6);
    /// DF is understood (structured replies only).
    pub const SEND_DF: Self = Self(1 << 7);
    /// A flush on one connection covers all.
    pub const CAN_MULTI_CONN: Self = Self(1 << 8);
    /// RESIZE is understood.
    pub const SEND_RESIZE: Self = Self(1 << 9);
    /// CACHE is understood.
    pub const SEND_CACHE: Self = Self(1 << 10);
    /// FAST_ZERO is understood.
    pub const SEND_FAST_ZERO: Self = Self(1 << 11);

    /// Whether all of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for TransmissionFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Block size constraints ("Block size constraints"), bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    /// Offsets and lengths must be multiples of it; a power of two up to 64 KiB.
    pub minimum: u32,
    /// Best performance.
    pub preferred: u32,
    /// Longest payload of a read or write.
    pub maximum: u32,
}

/// An export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Canonical name.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// Bytes.
    pub size: u64,
    /// What it understands.
    pub flags: TransmissionFlags,
    /// Constraints.
    pub block_size: BlockSize,
    /// Metadata contexts offered, e.g. `base:allocation`.
    pub meta_contexts: Vec<String>,
}
