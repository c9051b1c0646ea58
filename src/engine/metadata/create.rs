//! Fresh metadata.

use super::layout::Layout;
use super::superblock::{MdFlags, PeerFlags, PeerSlot, Superblock};
use super::{BLOCK64, HISTORY, UUID_JUST_CREATED, bitmap_pages};
use crate::ids::{NodeId, VolumeId};
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

/// Bytes written at once.
const CHUNK: usize = 1 << 20;

/// What the new metadata shall say.
#[derive(Clone, Debug)]
pub struct CreateParams<'a> {
    /// Where things go.
    pub layout: Layout,
    /// Resource, 1 to 64 bytes.
    pub resource: &'a str,
    /// Volume.
    pub volume: VolumeId,
    /// Node.
    pub node: NodeId,
    /// Peers, each of which gets a bitmap slot; at most as many as the layout has.
    pub peers: &'a [NodeId],
    /// Random.
    pub device_uuid: u64,
    /// Smallest I/O: 512 or 4096.
    pub block_size: u32,
    /// Bytes of an extent of the activity log; [`super::superblock::DEFAULT_EXTENT`] unless the
    /// device is tiny. See [`super::superblock::extent_size_fits`].
    pub extent_size: u32,
}

/// Where [`create`] puts bytes: an offset in the metadata device, in bytes, and what belongs there.
pub type Writer<'a, E> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), E>;

/// Writes bitmaps and activity log empty, then both superblocks; `write` gets offsets in the
/// metadata device. Until the superblocks are written the disk has no valid metadata.
pub fn create<E>(params: CreateParams<'_>, write: Writer<'_, E>) -> Result<Superblock, E> {
    let layout = params.layout;
    let zero = [0u8; 4096];
    for at in layout.superblock_offsets {
        write(at, &zero)?;
    }
    let log_len = usize::try_from(layout.activity_log_len).unwrap_or(0);
    write(layout.activity_log_offset, &vec![0; log_len])?;
    for slot in 0..layout.slots {
        let mut chunk: Vec<u8> = Vec::with_capacity(CHUNK);
        let mut start = layout.bitmap_page_offset(slot, 0);
        for page in 0..layout.bitmap_pages_per_slot {
            chunk.extend_from_slice(&bitmap_pages::encode(slot, page, &[])[..]);
            if chunk.len() == CHUNK || page + 1 == layout.bitmap_pages_per_slot {
                write(start, &chunk)?;
                start += chunk.len() as u64;
                chunk.clear();
            }
        }
    }
    let mut peers = [PeerSlot::default(); NodeId::MAX_NODES];
    for (slot, &peer) in (0..layout.slots).zip(params.peers) {
        peers[peer.slot()] = PeerSlot {
            slot: Some(slot),
            flags: PeerFlags::EXISTS,
            ..PeerSlot::default()
        };
    }
    let mut superblock = Superblock {
        sequence: 1,
        device_uuid: params.device_uuid,
        resource: params.resource.to_string(),
        volume: params.volume,
        node: params.node,
        agreed_size: 0,
        block_size: params.block_size,
        extent_size: params.extent_size,
        reign: 0,
        flags: MdFlags::default(),
        current: UUID_JUST_CREATED,
        peers,
        history: [0; HISTORY],
        toward: 0,
        layout,
    };
    for _ in 0..2 {
        superblock.sequence += 1;
        let at = superblock.layout.superblock_offsets[superblock.next_slot()];
        debug_assert!(at.is_multiple_of(BLOCK64));
        write(at, &superblock.encode()[..])?;
    }
    Ok(superblock)
}
