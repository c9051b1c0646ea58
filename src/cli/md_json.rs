//! Metadata as JSON: what `dump-md --json` prints and `restore-md` reads. Documented in
//! `docs/formats.md`.
//!
//! Invariant: whatever metadata a disk can hold, their JSON read back gives the same metadata.

use serde::{Deserialize, Serialize};
use std::fmt::Write;
use twinblk_engine::bitmap::Bitmap;
use twinblk_engine::ids::{NodeId, VolumeId};
use twinblk_engine::metadata::image::Image;
use twinblk_engine::metadata::layout::{Layout, Placement};
use twinblk_engine::metadata::superblock::{MdFlags, PeerFlags, PeerSlot, Superblock};
use twinblk_engine::metadata::{BLOCK, HISTORY, VERSION};

/// One volume's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metadata {
    pub(super) format: u16,
    pub(super) placement: String,
    pub(super) resource: String,
    pub(super) volume: u16,
    pub(super) node_id: u8,
    pub(super) sequence: u64,
    pub(super) device_uuid: String,
    pub(super) current_uuid: String,
    pub(super) history_uuids: Vec<String>,
    pub(super) toward_uuid: String,
    pub(super) flags: Vec<String>,
    pub(super) agreed_size: u64,
    pub(super) data_size: u64,
    pub(super) disk_size: u64,
    pub(super) block_size: u32,
    pub(super) extent_size: u32,
    pub(super) reign: String,
    pub(super) bitmap_block: u32,
    pub(super) slots: u8,
    pub(super) peers: Vec<Peer>,
    pub(super) bitmaps: Vec<Bits>,
    pub(super) activity_log: Vec<Hex>,
}

/// What is known of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Peer {
    node_id: u8,
    slot: Option<u8>,
    bitmap_uuid: String,
    last_incarnation: String,
    /// Told for the reader; the bitmap itself counts.
    bits_set: u64,
    flags: Vec<String>,
}

/// A bitmap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bits {
    slot: u8,
    bits: u64,
    set: u64,
    /// `first+count` of each run of set bits.
    runs: Vec<String>,
}

/// Blocks of the activity log that are not zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hex {
    offset: u64,
    hex: String,
}

fn uuid(value: u64) -> String {
    format!("{value:016x}")
}

/// Names of the bits that are set; `bit 7` for one without a name.
fn flag_names(bits: u32, name: fn(u32) -> Option<&'static str>) -> Vec<String> {
    (0..32)
        .filter(|n| bits >> n & 1 == 1)
        .map(|n| name(1 << n).map_or(format!("bit {n}"), str::to_owned))
        .collect()
}

fn md_flag(bit: u32) -> Option<&'static str> {
    MdFlags(bit).names().next()
}

fn peer_flag(bit: u32) -> Option<&'static str> {
    PeerFlags(bit).names().next()
}

impl Metadata {
    /// For output.
    pub(super) fn of(image: &Image) -> Self {
        let (sb, layout) = (&image.superblock, &image.superblock.layout);
        let history = sb.history.iter().rposition(|&h| h != 0);
        let history = &sb.history[..history.map_or(0, |last| last + 1)];
        let peers = (0u8..).zip(&sb.peers);
        let peers = peers.filter(|(_, p)| **p != PeerSlot::default());
        let bits_set = |slot: Option<u8>| {
            let bitmap = slot.and_then(|s| image.bitmaps.get(usize::from(s)));
            bitmap.map_or(0, Bitmap::count_set)
        };
        let peers = peers.map(|(id, peer)| Peer {
            node_id: id,
            slot: peer.slot,
            bitmap_uuid: uuid(peer.bitmap),
            last_incarnation: uuid(peer.last_incarnation),
            bits_set: bits_set(peer.slot),
            flags: flag_names(peer.flags.0, peer_flag),
        });
        let bitmaps = (0u8..).zip(&image.bitmaps).map(|(slot, bitmap)| Bits {
            slot,
            bits: bitmap.bits(),
            set: bitmap.count_set(),
            runs: bitmap.runs().map(|(f, n)| format!("{f}+{n}")).collect(),
        });
        Self {
            format: VERSION,
            placement: placement_word(layout.placement).to_owned(),
            resource: sb.resource.clone(),
            volume: sb.volume.0,
            node_id: sb.node.0,
            sequence: sb.sequence,
            device_uuid: uuid(sb.device_uuid),
            current_uuid: uuid(sb.current),
            history_uuids: history.iter().map(|h| uuid(*h)).collect(),
            toward_uuid: uuid(sb.toward),
            extent_size: sb.extent_size,
            reign: uuid(sb.reign),
            flags: flag_names(sb.flags.0, md_flag),
            agreed_size: sb.agreed_size,
            data_size: layout.data_size,
            disk_size: layout.disk_size,
            block_size: sb.block_size,
            bitmap_block: layout.bitmap_block,
            slots: layout.slots,
            peers: peers.collect(),
            bitmaps: bitmaps.collect(),
            activity_log: to_hex(&image.activity_log),
        }
    }

    /// Back again. The error names the field.
    pub(super) fn to_image(&self) -> Result<Image, String> {
        if self.format != VERSION {
            let format = self.format;
            return Err(format!(
                "`format` is {format}, this program knows format {VERSION}"
            ));
        }
        let (size, block, slots) = (self.disk_size, self.bitmap_block, self.slots);
        let layout = match self.placement()? {
            Placement::Internal => Layout::internal(size, block, slots),
            Placement::External => Layout::external(size, None, block, slots),
        };
        let layout = layout.map_err(|e| e.to_string())?;
        if (layout.data_size, layout.disk_size) != (self.data_size, size) {
            return Err(format!(
                "`data_size` is {}, but with the other sizes it would be {}",
                self.data_size, layout.data_size
            ));
        }
        let mut history = [0; HISTORY];
        if self.history_uuids.len() > HISTORY {
            return Err(format!("`history_uuids` has more than {HISTORY} entries"));
        }
        for (place, text) in history.iter_mut().zip(&self.history_uuids) {
            *place = number("history_uuids", text)?;
        }
        let superblock = Superblock {
            sequence: self.sequence,
            device_uuid: number("device_uuid", &self.device_uuid)?,
            resource: self.resource.clone(),
            volume: VolumeId(self.volume),
            node: NodeId(self.node_id),
            agreed_size: self.agreed_size,
            block_size: self.block_size,
            flags: MdFlags(flag_bits(&self.flags, md_flag)?),
            current: number("current_uuid", &self.current_uuid)?,
            peers: self.peer_slots()?,
            history,
            toward: number("toward_uuid", &self.toward_uuid)?,
            extent_size: self.extent_size,
            reign: number("reign", &self.reign)?,
            layout,
        };
        // The format has limits of its own: a name of 64 bytes, a node below 16, …
        match Superblock::decode(&superblock.encode()[..]) {
            Ok(same) if same == superblock => {}
            Ok(_) => return Err("`resource` does not fit into a superblock".into()),
            Err(e) => return Err(e.to_string()),
        }
        Ok(Image {
            bitmaps: self.to_bitmaps(&superblock.layout)?,
            activity_log: from_hex(&self.activity_log, superblock.layout.activity_log_len)?,
            superblock,
        })
    }

    /// Internal or external.
    pub(super) fn placement(&self) -> Result<Placement, String> {
        match self.placement.as_str() {
            "internal" => Ok(Placement::Internal),
            "external" => Ok(Placement::External),
            other => Err(format!(
                "`placement` is {other:?}, neither internal nor external"
            )),
        }
    }

    fn peer_slots(&self) -> Result<[PeerSlot; NodeId::MAX_NODES], String> {
        let mut slots = [PeerSlot::default(); NodeId::MAX_NODES];
        for peer in &self.peers {
            let id = peer.node_id;
            let place = slots
                .get_mut(usize::from(id))
                .ok_or_else(|| format!("a peer's `node_id` is {id}; 0 to 15 are possible"))?;
            if *place != PeerSlot::default() {
                return Err(format!("there are two peers with `node_id` {id}"));
            }
            // This is how a superblock says "none".
            if peer.slot == Some(u8::MAX) {
                return Err("a peer's `slot` is 255".into());
            }
            *place = PeerSlot {
                bitmap: number("bitmap_uuid", &peer.bitmap_uuid)?,
                last_incarnation: number("last_incarnation", &peer.last_incarnation)?,
                flags: PeerFlags(flag_bits(&peer.flags, peer_flag)?),
                slot: peer.slot,
            };
        }
        Ok(slots)
    }

    fn to_bitmaps(&self, layout: &Layout) -> Result<Vec<Bitmap>, String> {
        let mut bitmaps = Vec::new();
        for slot in 0..layout.slots {
            let mut of_slot = self.bitmaps.iter().filter(|b| b.slot == slot);
            let (Some(bits), None) = (of_slot.next(), of_slot.next()) else {
                return Err(format!("`bitmaps` must have slot {slot} once"));
            };
            bitmaps.push(bits.to_bitmap(layout)?);
        }
        if self.bitmaps.len() > bitmaps.len() {
            return Err(format!("`bitmaps` has more than {} slots", layout.slots));
        }
        Ok(bitmaps)
    }
}

impl Bits {
    fn to_bitmap(&self, layout: &Layout) -> Result<Bitmap, String> {
        let mut bitmap = Bitmap::new(layout.data_size, layout.bitmap_block);
        let what = format!("the bitmap of slot {}", self.slot);
        if bitmap.bits() != self.bits {
            return Err(format!(
                "{what} has {} bits, the volume has {} blocks",
                self.bits,
                bitmap.bits()
            ));
        }
        for run in &self.runs {
            let parts = run.split_once('+');
            let parts = parts.and_then(|(f, n)| Some((f.parse().ok()?, n.parse().ok()?)));
            let (first, count): (u64, u64) = parts
                .ok_or_else(|| format!("{what}: {run:?} is no run of bits such as \"4096+12\""))?;
            if first
                .checked_add(count)
                .is_none_or(|end| end > bitmap.bits())
            {
                return Err(format!("{what}: {run:?} reaches beyond its end"));
            }
            bitmap.merge_run(first, count);
        }
        if bitmap.count_set() != self.set {
            return Err(format!(
                "{what}: `set` says {}, the runs have {}",
                self.set,
                bitmap.count_set()
            ));
        }
        Ok(bitmap)
    }
}

pub(super) fn placement_word(placement: Placement) -> &'static str {
    match placement {
        Placement::Internal => "internal",
        Placement::External => "external",
    }
}

fn number(field: &str, text: &str) -> Result<u64, String> {
    let hex = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let value = hex.then(|| u64::from_str_radix(text, 16).ok()).flatten();
    value.ok_or_else(|| format!("`{field}`: {text:?} is not 16 hex digits"))
}

fn flag_bits(names: &[String], name: fn(u32) -> Option<&'static str>) -> Result<u32, String> {
    let mut bits = 0;
    for text in names {
        let bit = (0..32u32)
            .map(|n| 1 << n)
            .find(|bit| flag_names(*bit, name)[0] == *text);
        bits |= bit.ok_or_else(|| format!("`flags`: {text:?} is not known"))?;
    }
    Ok(bits)
}

/// Neighbouring blocks together, without those that are zero.
fn to_hex(log: &[u8]) -> Vec<Hex> {
    let mut runs: Vec<Hex> = Vec::new();
    for (at, block) in (0u64..).step_by(BLOCK).zip(log.chunks(BLOCK)) {
        if block.iter().all(|&b| b == 0) {
            continue;
        }
        if runs
            .last()
            .is_none_or(|r| r.offset + r.hex.len() as u64 / 2 != at)
        {
            let hex = String::new();
            runs.push(Hex { offset: at, hex });
        }
        if let Some(run) = runs.last_mut() {
            for byte in block {
                // Writing to a String cannot fail.
                let _ = write!(run.hex, "{byte:02x}");
            }
        }
    }
    runs
}

fn from_hex(runs: &[Hex], len: u64) -> Result<Vec<u8>, String> {
    let mut log = vec![0; usize::try_from(len).unwrap_or(0)];
    for run in runs {
        let wrong = |why| format!("`activity_log` at offset {}: {why}", run.offset);
        let (digits, rest) = run.hex.as_bytes().as_chunks::<2>();
        if !rest.is_empty() || !run.hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong("not pairs of hex digits"));
        }
        let start = usize::try_from(run.offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(digits.len());
        let place = log.get_mut(start..end);
        let place = place.ok_or_else(|| wrong("it reaches beyond the end"))?;
        for (byte, pair) in place.iter_mut().zip(digits) {
            let digit = |c: u8| char::from(c).to_digit(16).unwrap_or(0) as u8;
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
    }
    Ok(log)
}

#[cfg(test)]
#[path = "md_json_tests.rs"]
mod tests;
