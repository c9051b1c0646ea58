//! The superblock: two copies, written alternately. The copy with the higher sequence number that is
//! whole wins, so a torn write costs at most the newest state, never both.
//!
//! ```text
//!   0 magic [8] "TWINBLKS"    8 version u32   12 crc u32
//!  16 sequence u64           24 device_uuid u64
//!  32 disk_size u64          40 agreed_size u64
//!  48 current u64            56 block_size u32  60 bitmap_block u32
//!  64 flags u32              68 node u8  69 slots u8  70 placement u8  71 reserved
//!  72 volume u16             74 resource_len u16  76 extent_size u32
//!  80 activity_log_offset    88 activity_log_len
//!  96 bitmap_offset         104 bitmap_pages_per_slot
//! 112 data_size             120 reign u64
//! 128 resource [64]
//! 192 history [16 × u64]
//! 320 peers [16 × { bitmap u64, last_incarnation u64, flags u32, slot u8, reserved [11] }]
//! 832 toward u64
//! ```

use super::layout::{Layout, Placement};
use super::{BLOCK, HISTORY, Uuid, VERSION, block_crc, get_u16, get_u32, get_u64, put};
use crate::ids::{NodeId, VolumeId};
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use core::fmt;

/// First eight bytes of every copy.
pub const MAGIC: &[u8; 8] = b"TWINBLKS";
const CRC_AT: usize = 12;
const PEERS_AT: usize = 320;
const PEER_LEN: usize = 32;
const TOWARD_AT: usize = 832;
const NO_SLOT: u8 = 255;
/// Bytes of an extent of the activity log unless said otherwise.
pub const DEFAULT_EXTENT: u32 = 4 << 20;
/// Longest resource name in bytes.
pub const MAX_NAME: usize = 64;

macro_rules! flags {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $flag:ident = $bit:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub u32);

        impl $name {
            $($(#[$fdoc])* pub const $flag: Self = Self(1 << $bit);)+

            /// Whether all of `other` are set.
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// Sets all of `other`.
            pub fn insert(&mut self, other: Self) {
                self.0 |= other.0;
            }

            /// Clears all of `other`.
            pub fn remove(&mut self, other: Self) {
                self.0 &= !other.0;
            }

            /// Names of the flags that are set.
            pub fn names(self) -> impl Iterator<Item = &'static str> {
                [$((Self::$flag, stringify!($flag))),+]
                    .into_iter()
                    .filter(move |f| self.contains(f.0))
                    .map(|f| f.1)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_list().entries(self.names()).finish()
            }
        }
    };
}

flags! {
    /// State of the copy.
    MdFlags {
        /// The data are of one generation (not midway in a resync, not fresh).
        CONSISTENT = 0,
        /// It was UpToDate when last in use.
        WAS_UP_TO_DATE = 1,
        /// It is or was Primary and was not cleanly demoted.
        PRIMARY_INDICATOR = 2,
        /// It was Primary when it went down and has not reconciled with a peer since.
        CRASHED_PRIMARY = 3,
        /// It followed a Primary when it went down and has not reconciled with a peer since (three and
        /// more nodes).
        CRASHED_SECONDARY = 4,
    }
}

flags! {
    /// What is known of a peer.
    PeerFlags {
        /// The slot belongs to a configured node.
        EXISTS = 0,
        /// The peer is known to be Outdated.
        OUTDATED = 1,
        /// This node gets its writes from it (three and more nodes).
        FOLLOWED = 2,
        /// It may have got more from a lost Primary than this copy.
        UNRECONCILED = 3,
        /// When the two were last in touch, this node was Primary.
        PARTED_AS_PRIMARY = 4,
        /// Its clients are served from this copy, and what it lacks is marked in memory.
        SERVED = 5,
    }
}

/// A peer's part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerSlot {
    /// Generation this copy last shared with it; 0 = it is not behind.
    pub bitmap: Uuid,
    /// Incarnation last connected with.
    pub last_incarnation: u64,
    /// Flags.
    pub flags: PeerFlags,
    /// Bitmap slot.
    pub slot: Option<u8>,
}

/// A superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Counts writes; decides which copy is newer.
    pub sequence: u64,
    /// Random per `create-md`.
    pub device_uuid: u64,
    /// Name of the resource, 1 to 64 bytes.
    pub resource: String,
    /// Volume.
    pub volume: VolumeId,
    /// Node it belongs to.
    pub node: NodeId,
    /// Size of the device as last agreed with a peer, bytes; 0 = never.
    pub agreed_size: u64,
    /// Smallest I/O, bytes.
    pub block_size: u32,
    /// Where things are.
    pub layout: Layout,
    /// Bytes of an extent of the activity log, see [`extent_size_fits`].
    pub extent_size: u32,
    /// Random number of the last time this node was Primary, which its activity log carries; 0: no
    /// log was kept then.
    pub reign: u64,
    /// State.
    pub flags: MdFlags,
    /// Current generation.
    pub current: Uuid,
    /// By node id.
    pub peers: [PeerSlot; NodeId::MAX_NODES],
    /// Older generations, newest first, 0 = none.
    pub history: [Uuid; HISTORY],
    /// Generation an unfinished resync was bringing this copy to; 0 = none.
    pub toward: Uuid,
}

/// What is wrong with a superblock copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// Not a superblock.
    #[error("no superblock")]
    Magic,
    /// Damaged or half written.
    #[error("checksum mismatch (damaged or half written)")]
    Checksum,
    /// Written by a newer program.
    #[error("format version {found}; this program knows up to {known}")]
    NewerVersion {
        /// Version found.
        found: u32,
        /// Newest known.
        known: u32,
    },
    /// Written by an older program than this one can still read.
    #[error("format version {found}; this program reads {oldest} and newer")]
    OlderVersion {
        /// Version found.
        found: u32,
        /// Oldest known.
        oldest: u32,
    },
    /// Whole, but its contents make no sense.
    #[error("contents out of range: {0}")]
    Invalid(&'static str),
}

/// Whether extents may have this size: a power of two from 4 KiB to 1 GiB, and the device so few of
/// them that they can be numbered.
pub fn extent_size_fits(extent_size: u32, data_size: u64) -> bool {
    extent_size.is_power_of_two()
        && (4096..=1 << 30).contains(&extent_size)
        && data_size / u64::from(extent_size) < u64::from(super::log_block::NO_EXTENT - 1)
}

impl Superblock {
    /// Encodes it.
    pub fn encode(&self) -> Box<[u8; BLOCK]> {
        let mut block = Box::new([0u8; BLOCK]);
        let b = &mut block[..];
        let l = &self.layout;
        put(b, 0, MAGIC);
        put(b, 8, &u32::from(VERSION).to_le_bytes());
        let words = [
            (16, self.sequence),
            (24, self.device_uuid),
            (32, l.disk_size),
            (40, self.agreed_size),
            (48, self.current),
            (80, l.activity_log_offset),
            (88, l.activity_log_len),
            (96, l.bitmap_offset),
            (104, l.bitmap_pages_per_slot),
            (112, l.data_size),
            (120, self.reign),
        ];
        for (at, value) in words {
            put(b, at, &value.to_le_bytes());
        }
        put(b, 56, &self.block_size.to_le_bytes());
        put(b, 60, &l.bitmap_block.to_le_bytes());
        put(b, 64, &self.flags.0.to_le_bytes());
        b[68] = self.node.0;
        b[69] = l.slots;
        b[70] = u8::from(l.placement == Placement::External);
        put(b, 72, &self.volume.0.to_le_bytes());
        let name = self.resource.as_bytes();
        let name = &name[..name.len().min(MAX_NAME)];
        put(b, 74, &(name.len() as u16).to_le_bytes());
        put(b, 76, &self.extent_size.to_le_bytes());
        put(b, 128, name);
        for (i, uuid) in self.history.iter().enumerate() {
            put(b, 192 + i * 8, &uuid.to_le_bytes());
        }
        for (i, peer) in self.peers.iter().enumerate() {
            let at = PEERS_AT + i * PEER_LEN;
            put(b, at, &peer.bitmap.to_le_bytes());
            put(b, at + 8, &peer.last_incarnation.to_le_bytes());
            put(b, at + 16, &peer.flags.0.to_le_bytes());
            b[at + 20] = peer.slot.unwrap_or(NO_SLOT);
        }
        put(b, TOWARD_AT, &self.toward.to_le_bytes());
        let crc = block_crc(b, CRC_AT);
        put(b, CRC_AT, &crc.to_le_bytes());
        block
    }

    /// Checks and decodes a copy.
    pub fn decode(block: &[u8]) -> Result<Self, SuperblockError> {
        if block.len() < BLOCK || &block[..8] != MAGIC {
            return Err(SuperblockError::Magic);
        }
        let b = &block[..BLOCK];
        if get_u32(b, CRC_AT) != block_crc(b, CRC_AT) {
            return Err(SuperblockError::Checksum);
        }
        let (found, known) = (get_u32(b, 8), u32::from(VERSION));
        // Magic, version and checksum are at the same place in every version.
        if found > known {
            return Err(SuperblockError::NewerVersion { found, known });
        }
        if found < known {
            return Err(SuperblockError::OlderVersion {
                found,
                oldest: known,
            });
        }
        let invalid = SuperblockError::Invalid;
        let len = usize::from(get_u16(b, 74));
        if len == 0 || len > MAX_NAME {
            return Err(invalid("length of the resource's name"));
        }
        let resource = core::str::from_utf8(&b[128..128 + len])
            .map_err(|_| invalid("the resource's name"))?
            .to_string();
        let node = NodeId(b[68]);
        if node.slot() >= NodeId::MAX_NODES {
            return Err(invalid("node id"));
        }
        let placement = if b[70] == 0 {
            Placement::Internal
        } else {
            Placement::External
        };
        let (disk_size, bitmap_block, slots) = (get_u64(b, 32), get_u32(b, 60), b[69]);
        let layout = match placement {
            Placement::Internal => Layout::internal(disk_size, bitmap_block, slots),
            Placement::External => Layout::external(disk_size, None, bitmap_block, slots),
        }
        .map_err(|_| invalid("sizes"))?;
        let stored = [
            (80, layout.activity_log_offset),
            (88, layout.activity_log_len),
            (96, layout.bitmap_offset),
            (104, layout.bitmap_pages_per_slot),
            (112, layout.data_size),
        ];
        if stored.iter().any(|&(at, value)| get_u64(b, at) != value) {
            return Err(invalid("layout"));
        }
        let block_size = get_u32(b, 56);
        if block_size != 512 && block_size != 4096 {
            return Err(invalid("block size"));
        }
        // Metadata made before there was an activity log say 0.
        let extent_size = match get_u32(b, 76) {
            0 => DEFAULT_EXTENT,
            size => size,
        };
        if !extent_size_fits(extent_size, layout.data_size) {
            return Err(invalid("extent size"));
        }
        let agreed_size = get_u64(b, 40);
        if agreed_size > layout.data_size {
            return Err(invalid("agreed size"));
        }
        let mut history = [0; HISTORY];
        for (i, uuid) in history.iter_mut().enumerate() {
            *uuid = get_u64(b, 192 + i * 8);
        }
        let mut peers = [PeerSlot::default(); NodeId::MAX_NODES];
        for (i, peer) in peers.iter_mut().enumerate() {
            let at = PEERS_AT + i * PEER_LEN;
            let slot = b[at + 20];
            if slot != NO_SLOT && slot >= slots {
                return Err(invalid("bitmap slot"));
            }
            *peer = PeerSlot {
                bitmap: get_u64(b, at),
                last_incarnation: get_u64(b, at + 8),
                flags: PeerFlags(get_u32(b, at + 16)),
                slot: (slot != NO_SLOT).then_some(slot),
            };
        }
        Ok(Self {
            sequence: get_u64(b, 16),
            device_uuid: get_u64(b, 24),
            resource,
            volume: VolumeId(get_u16(b, 72)),
            node,
            agreed_size,
            block_size,
            layout,
            extent_size,
            reign: get_u64(b, 120),
            flags: MdFlags(get_u32(b, 64)),
            current: get_u64(b, 48),
            peers,
            history,
            toward: get_u64(b, TOWARD_AT),
        })
    }

    /// Which copy the write with the present sequence number goes to.
    pub fn next_slot(&self) -> usize {
        if crate::sabotage::is(crate::sabotage::Mistake::SuperblockInPlace) {
            return 0;
        }
        usize::from(self.sequence % 2 == 1)
    }
}

/// The copy to believe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// It.
    pub superblock: Superblock,
    /// Which of the two.
    pub from: usize,
    /// What is wrong with the other.
    pub other: Option<SuperblockError>,
}

/// Chooses between the two copies; `Err` tells what is wrong with each.
pub fn choose(a: &[u8], b: &[u8]) -> Result<Chosen, [SuperblockError; 2]> {
    match (Superblock::decode(a), Superblock::decode(b)) {
        // A copy of a newer program means that the disk is in use by one: hands off.
        (Err(e @ SuperblockError::NewerVersion { .. }), other) => {
            Err([e, other.err().unwrap_or(e)])
        }
        (other, Err(e @ SuperblockError::NewerVersion { .. })) => {
            Err([other.err().unwrap_or(e), e])
        }
        (Ok(a), Ok(b)) => {
            let from = usize::from(b.sequence > a.sequence);
            let superblock = if from == 1 { b } else { a };
            Ok(Chosen {
                superblock,
                from,
                other: None,
            })
        }
        (Ok(superblock), Err(e)) => Ok(Chosen {
            superblock,
            from: 0,
            other: Some(e),
        }),
        (Err(e), Ok(superblock)) => Ok(Chosen {
            superblock,
            from: 1,
            other: Some(e),
        }),
        (Err(a), Err(b)) => Err([a, b]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::UUID_JUST_CREATED;
    use proptest::prelude::*;

    pub(crate) fn sample(sequence: u64) -> Superblock {
        let mut peers = [PeerSlot::default(); NodeId::MAX_NODES];
        peers[1] = PeerSlot {
            bitmap: 0x1234,
            last_incarnation: 9,
            flags: PeerFlags::EXISTS,
            slot: Some(0),
        };
        let mut flags = MdFlags::CONSISTENT;
        flags.insert(MdFlags::PRIMARY_INDICATOR);
        Superblock {
            sequence,
            device_uuid: 77,
            resource: "r0".to_string(),
            volume: VolumeId(3),
            node: NodeId(0),
            agreed_size: 1 << 20,
            block_size: 512,
            layout: Layout::internal(1 << 30, 4096, 2).expect("large enough"),
            extent_size: 1 << 20,
            reign: 0x0102_0304_0506_0708,
            flags,
            current: UUID_JUST_CREATED,
            peers,
            history: core::array::from_fn(|i| i as u64 * 0x100),
            toward: 0x7070,
        }
    }

    #[test]
    fn round_trip_and_every_changed_byte_is_noticed() {
        let sb = sample(5);
        let block = sb.encode();
        assert_eq!(Superblock::decode(&block[..]), Ok(sb));
        for at in 0..BLOCK {
            let mut bad = block.clone();
            bad[at] ^= 0x40;
            assert!(Superblock::decode(&bad[..]).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_torn_write_leaves_the_old_or_the_new_state() {
        // Sequence 7 is in copy 1; 8 goes to copy 0 over 6, torn at every sector.
        let (older, old, new) = (sample(6), sample(7), sample(8));
        assert_eq!((old.next_slot(), new.next_slot()), (1, 0));
        for sectors in 0..=8 {
            let cut = sectors * 512;
            let mut torn = older.encode();
            torn[..cut].copy_from_slice(&new.encode()[..cut]);
            let chosen = choose(&torn[..], &old.encode()[..]).expect("one copy is whole");
            // The used part may be on the disk before the last sector is.
            let want = if torn == new.encode() { &new } else { &old };
            assert_eq!(&chosen.superblock, want, "torn after {sectors} sectors");
        }
    }

    #[test]
    fn metadata_from_before_the_activity_log_are_read_as_without_one() {
        let mut old = sample(5);
        (old.extent_size, old.reign) = (0, 0);
        let found = Superblock::decode(&old.encode()[..]).expect("as good as ever");
        assert_eq!((found.extent_size, found.reign), (DEFAULT_EXTENT, 0));
    }

    #[test]
    fn impossible_extents_are_refused() {
        for size in [2048, 4097, 2 << 30] {
            let mut bad = sample(5);
            bad.extent_size = size;
            let error = Superblock::decode(&bad.encode()[..]).expect_err("impossible");
            assert_eq!(error, SuperblockError::Invalid("extent size"));
        }
        assert!(extent_size_fits(DEFAULT_EXTENT, 1 << 53));
        assert!(
            !extent_size_fits(DEFAULT_EXTENT, 1 << 54),
            "too many of them"
        );
    }

    fn of_version(version: u32) -> Box<[u8; BLOCK]> {
        let mut block = sample(1).encode();
        put(&mut block[..], 8, &version.to_le_bytes());
        let crc = block_crc(&block[..], CRC_AT);
        put(&mut block[..], CRC_AT, &crc.to_le_bytes());
        block
    }

    #[test]
    fn a_newer_format_is_left_alone() {
        let block = of_version(99);
        let errors = choose(&block[..], &sample(2).encode()[..]).expect_err("newer");
        assert!(matches!(
            errors[0],
            SuperblockError::NewerVersion { found: 99, .. }
        ));
        let errors = choose(&sample(2).encode()[..], &block[..]).expect_err("newer");
        assert!(matches!(errors[1], SuperblockError::NewerVersion { .. }));
    }

    #[test]
    fn an_older_format_is_called_by_its_name() {
        let block = of_version(0);
        let error = SuperblockError::OlderVersion {
            found: 0,
            oldest: 1,
        };
        assert_eq!(choose(&block[..], &block[..]), Err([error, error]));
        // A copy of this version is the newer one: no older program touches such a disk.
        let chosen = choose(&block[..], &sample(2).encode()[..]).expect("one is whole");
        assert_eq!((chosen.from, chosen.other), (1, Some(error)));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..BLOCK + 1), fix: bool) {
            if fix && bytes.len() == BLOCK {
                bytes[..8].copy_from_slice(MAGIC);
                let crc = block_crc(&bytes, CRC_AT);
                put(&mut bytes, CRC_AT, &crc.to_le_bytes());
            }
            let _ = Superblock::decode(&bytes);
        }
    }
}
