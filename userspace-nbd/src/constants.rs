//! Numbers of the protocol, with their names there.

/// First eight bytes of a server ("NBDMAGIC").
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// Magic of options ("IHAVEOPT").
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// Magic of option replies.
pub const REP_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Magic of requests.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Magic of simple replies.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Magic of structured reply chunks.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags ("Handshake flags" section).
pub mod handshake_flags {
    /// Fixed newstyle.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// No 124 zero bytes after EXPORT_NAME.
    pub const NO_ZEROES: u16 = 2;
}

/// Option numbers ("Option types").
pub mod opt {
    /// EXPORT_NAME
    pub const EXPORT_NAME: u32 = 1;
    /// ABORT
    pub const ABORT: u32 = 2;
    /// LIST
    pub const LIST: u32 = 3;
    /// STARTTLS
    pub const STARTTLS: u32 = 5;
    /// INFO
    pub const INFO: u32 = 6;
    /// GO
    pub const GO: u32 = 7;
    /// STRUCTURED_REPLY
    pub const STRUCTURED_REPLY: u32 = 8;
    /// LIST_META_CONTEXT
    pub const LIST_META_CONTEXT: u32 = 9;
    /// SET_META_CONTEXT
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Option reply types.
pub mod rep {
    /// ACK
    pub const ACK: u32 = 1;
    /// SERVER
    pub const SERVER: u32 = 2;
    /// INFO
    pub const INFO: u32 = 3;
    /// META_CONTEXT
    pub const META_CONTEXT: u32 = 4;
    /// Unknown option.
    pub const ERR_UNSUP: u32 = 1 << 31 | 1;
    /// Forbidden by policy.
    pub const ERR_POLICY: u32 = 1 << 31 | 2;
    /// Malformed.
    pub const ERR_INVALID: u32 = 1 << 31 | 3;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = 1 << 31 | 6;
    /// Too much data.
    pub const ERR_TOO_BIG: u32 = 1 << 31 | 9;
}

/// Information types of INFO and GO.
pub mod info {
    /// EXPORT
    pub const EXPORT: u16 = 0;
    /// NAME
    pub const NAME: u16 = 1;
    /// DESCRIPTION
    pub const DESCRIPTION: u16 = 2;
    /// BLOCK_SIZE
    pub const BLOCK_SIZE: u16 = 3;
}

/// Structured reply types.
pub mod reply_type {
    /// NONE
    pub const NONE: u16 = 0;
    /// OFFSET_DATA
    pub const OFFSET_DATA: u16 = 1;
    /// OFFSET_HOLE
    pub const OFFSET_HOLE: u16 = 2;
    /// BLOCK_STATUS
    pub const BLOCK_STATUS: u16 = 5;
    /// ERROR
    pub const ERROR: u16 = 1 << 15 | 1;
}

/// Structured reply flag: last chunk.
pub const REPLY_FLAG_DONE: u16 = 1;
/// Longest string in the protocol, bytes ("Values").
pub const MAX_STRING: usize = 4096;
