//! The bytes of the file: a header of one block, records in order of their place on the device, an end.

use std::fmt;

/// First eight bytes.
pub(crate) const MAGIC: &[u8; 8] = b"TWINBLKD";
/// Version of the format.
pub(crate) const VERSION: u32 = 1;
/// Bytes of the header.
pub(crate) const HEADER: usize = 4096;
/// Bytes of a record's head.
pub(crate) const RECORD: usize = 32;
/// Most bytes of data behind one record's head.
pub(crate) const MOST: u32 = 1 << 20;
/// Longest name in bytes.
const NAME: usize = 64;

/// One side of the split brain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Side {
    /// Number of the node.
    pub(crate) node: u8,
    /// Its name.
    pub(crate) name: String,
    /// Its generation.
    pub(crate) current: u64,
    /// The generation its changes are relative to; 0: unknown.
    pub(crate) base: u64,
    /// Bytes it has changed since they parted, at most.
    pub(crate) changed: u64,
    /// It was Primary when they parted.
    pub(crate) parted_as_primary: bool,
}

/// What the file is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// Resource.
    pub(crate) resource: String,
    /// Volume.
    pub(crate) volume: u16,
    /// Bytes of the device.
    pub(crate) device_size: u64,
    /// Bytes of a block.
    pub(crate) block: u32,
    /// When it was made, seconds since 1970.
    pub(crate) created: u64,
    /// Whose data these are.
    pub(crate) victim: Side,
    /// Whose data came in their place.
    pub(crate) kept: Side,
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Data follow.
    Data,
    /// The range was all zeroes.
    Zeroes,
    /// The last one: `offset` is the number of bytes saved, `len` the number of records before it,
    /// `crc` that of all their heads.
    End,
}

/// The head of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    /// What it is.
    pub(crate) kind: Kind,
    /// The victim had changed it; otherwise only the other side had.
    pub(crate) own: bool,
    /// Bytes from the start of the device.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// CRC32C of the data; of zeroes 0.
    pub(crate) crc: u32,
}

/// Why a file is not what it should be.
#[derive(Debug)]
pub(crate) enum Damage {
    /// It cannot be read.
    Io(std::io::Error),
    /// It is something else.
    NoHeader,
    /// Made by another version.
    Version(u32),
    /// The header is damaged.
    Header(&'static str),
    /// It ends before its last record: it was torn, or its end is lost.
    Short(u64),
    /// A record is damaged, at this place in the file.
    Record(u64, &'static str),
    /// Something follows the last record.
    Trailing(u64),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "cannot be read: {error}"),
            Self::NoHeader => write!(f, "is no file of discarded data"),
            Self::Version(found) => {
                write!(
                    f,
                    "has format version {found}; this program knows {VERSION}"
                )
            }
            Self::Header(what) => write!(f, "has a damaged header: {what}"),
            Self::Short(at) => write!(f, "ends early, at byte {at}: its last record is missing"),
            Self::Record(at, what) => write!(f, "is damaged at byte {at}: {what}"),
            Self::Trailing(at) => write!(f, "goes on behind its last record, at byte {at}"),
        }
    }
}

impl From<std::io::Error> for Damage {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&block[at..at + 4]);
    u32::from_le_bytes(bytes)
}

fn u64_at(block: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&block[at..at + 8]);
    u64::from_le_bytes(bytes)
}

/// CRC32C of `bytes` with zeroes in the four at `at`, where it is kept.
fn crc_without(bytes: &[u8], at: usize) -> u32 {
    let crc = crc32c::crc32c(&bytes[..at]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &bytes[at + 4..])
}

fn put_name(block: &mut [u8], at: usize, name: &str) {
    let mut end = name.len().min(NAME);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    block[at] = u8::try_from(end).unwrap_or(0);
    put(block, at + 1, &name.as_bytes()[..end]);
}

fn name_at(block: &[u8], at: usize) -> Result<String, Damage> {
    let len = usize::from(block[at]);
    let bytes = block.get(at + 1..at + 1 + len).filter(|_| len <= NAME);
    let bytes = bytes.ok_or(Damage::Header("a name is too long"))?;
    String::from_utf8(bytes.to_vec()).map_err(|_| Damage::Header("a name is no text"))
}

const SIDES: [usize; 2] = [256, 512];

impl Side {
    fn put(&self, block: &mut [u8], at: usize) {
        block[at] = self.node;
        block[at + 1] = u8::from(self.parted_as_primary);
        put(block, at + 8, &self.current.to_le_bytes());
        put(block, at + 16, &self.base.to_le_bytes());
        put(block, at + 24, &self.changed.to_le_bytes());
        put_name(block, at + 32, &self.name);
    }

    fn get(block: &[u8], at: usize) -> Result<Self, Damage> {
        Ok(Self {
            node: block[at],
            parted_as_primary: block[at + 1] != 0,
            current: u64_at(block, at + 8),
            base: u64_at(block, at + 16),
            changed: u64_at(block, at + 24),
            name: name_at(block, at + 32)?,
        })
    }
}

impl Header {
    /// As it stands in the file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; HEADER];
        put(&mut block, 0, MAGIC);
        put(&mut block, 8, &VERSION.to_le_bytes());
        put(&mut block, 16, &self.created.to_le_bytes());
        put(&mut block, 24, &self.device_size.to_le_bytes());
        put(&mut block, 32, &self.block.to_le_bytes());
        put(&mut block, 36, &self.volume.to_le_bytes());
        put_name(&mut block, 64, &self.resource);
        self.victim.put(&mut block, SIDES[0]);
        self.kept.put(&mut block, SIDES[1]);
        let crc = crc_without(&block, 12);
        put(&mut block, 12, &crc.to_le_bytes());
        block
    }

    /// Checks and reads it. `block` has [`HEADER`] bytes.
    pub(crate) fn decode(block: &[u8]) -> Result<Self, Damage> {
        if block.len() < HEADER || &block[..8] != MAGIC {
            return Err(Damage::NoHeader);
        }
        if crc_without(&block[..HEADER], 12) != u32_at(block, 12) {
            return Err(Damage::Header("its checksum is wrong"));
        }
        if u32_at(block, 8) != VERSION {
            return Err(Damage::Version(u32_at(block, 8)));
        }
        let header = Self {
            resource: name_at(block, 64)?,
            volume: u16_at(block, 36),
            device_size: u64_at(block, 24),
            block: u32_at(block, 32),
            created: u64_at(block, 16),
            victim: Side::get(block, SIDES[0])?,
            kept: Side::get(block, SIDES[1])?,
        };
        if header.device_size == 0 || !header.block.is_power_of_two() {
            return Err(Damage::Header("sizes that cannot be"));
        }
        Ok(header)
    }
}

impl Record {
    /// Its head in the file.
    pub(crate) fn encode(&self) -> [u8; RECORD] {
        let mut head = [0; RECORD];
        head[0] = match self.kind {
            Kind::Data => 1,
            Kind::Zeroes => 2,
            Kind::End => 255,
        };
        head[1] = u8::from(self.own);
        put(&mut head, 8, &self.offset.to_le_bytes());
        put(&mut head, 16, &self.len.to_le_bytes());
        put(&mut head, 24, &self.crc.to_le_bytes());
        let crc = crc_without(&head, 4);
        put(&mut head, 4, &crc.to_le_bytes());
        head
    }

    /// Checks and reads a head, in words what is wrong with it.
    pub(crate) fn decode(head: &[u8; RECORD]) -> Result<Self, &'static str> {
        if crc_without(head, 4) != u32_at(head, 4) {
            return Err("the checksum of a record's head is wrong");
        }
        let kind = match head[0] {
            1 => Kind::Data,
            2 => Kind::Zeroes,
            255 => Kind::End,
            _ => return Err("a record of an unknown kind"),
        };
        Ok(Self {
            kind,
            own: head[1] != 0,
            offset: u64_at(head, 8),
            len: u64_at(head, 16),
            crc: u32_at(head, 24),
        })
    }
}
