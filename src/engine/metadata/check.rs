//! Verdicts in words on the metadata of a disk, for `dump-md` and `check-md`: every block by its
//! checksum, and what the parts say of each other.
//!
//! Invariant: what the engine can leave behind in any state, and after any power cut, is nowhere
//! called wrong, but for a single half-written block.

use super::layout::{Layout, Placement};
use super::open::{OpenError, ReadAt, Recovered, open};
use super::superblock::{MdFlags, PeerFlags, Superblock};
use super::{BLOCK, BLOCK64, HISTORY};
use crate::generations::{is_created, same};
use crate::ids::NodeId;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// A verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Something is wrong (otherwise: for information).
    pub wrong: bool,
    /// What, in words.
    pub text: String,
    /// What to do about it; empty when there is nothing to do, or the text says it.
    pub next: &'static str,
}

const REPAIRED_BY_UP: &str = "`up` repairs it";
const REPAIRED_BY_RESYNC: &str =
    "`up` repairs it; the blocks in question count as out of sync and are copied again";
const NEVER_WRITTEN: &str = "no twinblk writes this: treat the disk as failing. `create-md --force` and a \
                             full sync from the peer make the copy good";

fn good(text: String) -> Finding {
    Finding {
        wrong: false,
        text,
        next: "",
    }
}

fn wrong(text: impl Into<String>, next: &'static str) -> Finding {
    Finding {
        wrong: true,
        text: text.into(),
        next,
    }
}

/// Looks at everything; finds out as much as possible even when parts are damaged.
pub fn check(
    dev: &mut dyn ReadAt,
    meta_size: u64,
    disk_size: u64,
    placement: Placement,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    if meta_size < 2 * BLOCK64 {
        let text = format!("the device has {meta_size} bytes: too small for any metadata");
        findings.push(wrong(
            text,
            "see that disk and meta-disk in the configuration are right",
        ));
        return findings;
    }
    let mut copies = [None, None];
    for (i, at) in Layout::superblocks(placement, meta_size)
        .into_iter()
        .enumerate()
    {
        let mut block = [0u8; BLOCK];
        let verdict = match dev.read_at(at, &mut block) {
            Err(e) => Err(e.to_string()),
            Ok(()) => Superblock::decode(&block).map_err(|e| e.to_string()),
        };
        findings.push(match verdict {
            Ok(sb) => {
                let text = format!("superblock {i}: good, sequence {}", sb.sequence);
                copies[i] = Some(sb);
                good(text)
            }
            Err(e) => wrong(format!("superblock {i}: {e}"), REPAIRED_BY_UP),
        });
    }
    match open(dev, meta_size, disk_size, placement) {
        Ok(recovered) => {
            check_copies(&copies, &mut findings);
            check_contents(&recovered, &mut findings);
            check_sizes(&recovered, meta_size, disk_size, &mut findings);
        }
        Err(e) => {
            // It is not `up` that helps here.
            findings.iter_mut().for_each(|f| f.next = "");
            if !matches!(e, OpenError::BothDamaged(..)) {
                findings.push(wrong(e.to_string(), ""));
            }
        }
    }
    findings
}

/// The two copies are two states of the same metadata, one commit apart.
fn check_copies(copies: &[Option<Superblock>; 2], findings: &mut Vec<Finding>) {
    for (i, copy) in copies.iter().enumerate() {
        if let Some(copy) = copy
            && copy.sequence % 2 != i as u64
        {
            let text = format!(
                "superblock {i} has the sequence {} of the other copy's place",
                copy.sequence
            );
            findings.push(wrong(text, NEVER_WRITTEN));
        }
    }
    let [Some(a), Some(b)] = copies else { return };
    if a.sequence.abs_diff(b.sequence) != 1 {
        let (older, newer) = (a.sequence.min(b.sequence), a.sequence.max(b.sequence));
        let text = format!(
            "the superblocks have sequence {older} and {newer}, not one apart: the disk has lost a \
             write, or a block was put back from elsewhere"
        );
        findings.push(wrong(text, NEVER_WRITTEN));
    }
    let identity = |s: &Superblock| {
        let place = (s.layout.clone(), s.device_uuid, s.block_size);
        (s.resource.clone(), s.volume, s.node, place)
    };
    if identity(a) != identity(b) {
        let text = "the two superblocks are of different metadata";
        findings.push(wrong(text, NEVER_WRITTEN));
    }
}

/// Flags, generations and bits against each other.
fn check_contents(r: &Recovered, findings: &mut Vec<Finding>) {
    // The superblocks have their own verdicts already.
    let pages = r.warnings.iter().filter(|w| !w.starts_with("superblock"));
    findings.extend(pages.map(|w| wrong(w.clone(), REPAIRED_BY_RESYNC)));
    for (slot, bitmap) in r.bitmaps.iter().enumerate() {
        let (set, bits) = (bitmap.count_set(), bitmap.bits());
        findings.push(good(format!("bitmap {slot}: {set} of {bits} bits set")));
    }
    findings.push(log_finding(r));
    let sb = &r.superblock;
    check_flags(sb, findings);
    check_generations(sb, findings);
    check_peers(r, findings);
}

fn check_flags(sb: &Superblock, findings: &mut Vec<Finding>) {
    let all = |names: usize, bits: u32| names == bits.count_ones() as usize;
    let known = all(sb.flags.names().count(), sb.flags.0)
        && sb
            .peers
            .iter()
            .all(|p| all(p.flags.names().count(), p.flags.0));
    if !known {
        let text = "flags are set that this version does not know";
        findings.push(wrong(
            text,
            "use the newest twinblk these metadata have seen",
        ));
    }
    if sb.flags.contains(MdFlags::WAS_UP_TO_DATE) && !sb.flags.contains(MdFlags::CONSISTENT) {
        let text = "the copy is called up to date, and not consistent";
        findings.push(wrong(text, NEVER_WRITTEN));
    }
    if is_created(sb.current) && sb.flags.contains(MdFlags::CONSISTENT) {
        let text =
            "the copy is called consistent, and has no generation: it was never synchronised";
        findings.push(wrong(text, NEVER_WRITTEN));
    }
}

fn check_generations(sb: &Superblock, findings: &mut Vec<Finding>) {
    let used = sb.history.iter().position(|&h| h == 0).unwrap_or(HISTORY);
    let (real, rest) = sb.history.split_at(used);
    let text = if rest.iter().any(|&h| h != 0) {
        "the history of generations has a gap"
    } else if (1..used).any(|i| real[..i].iter().any(|&h| same(h, real[i]))) {
        "the history of generations names one twice"
    } else if real.iter().any(|&h| same(h, sb.current)) {
        "the history of generations names the current one"
    } else {
        return;
    };
    findings.push(wrong(text, NEVER_WRITTEN));
}

fn check_peers(r: &Recovered, findings: &mut Vec<Finding>) {
    let sb = &r.superblock;
    let clean = sb.flags.contains(MdFlags::CONSISTENT)
        && !sb.flags.contains(MdFlags::PRIMARY_INDICATOR)
        && !sb.flags.contains(MdFlags::CRASHED_PRIMARY);
    for (id, peer) in sb.peers.iter().enumerate() {
        let Some(slot) = peer.slot else {
            if peer.bitmap != 0 || peer.flags.contains(PeerFlags::EXISTS) {
                let text = format!("the peer with node id {id} has no bitmap");
                findings.push(wrong(text, NEVER_WRITTEN));
            }
            continue;
        };
        if sb.peers[..id].iter().any(|p| p.slot == Some(slot)) {
            let text = format!("the peer with node id {id} shares bitmap {slot} with another");
            findings.push(wrong(text, NEVER_WRITTEN));
        }
        let bits = r.bitmaps.get(usize::from(slot)).map_or(0, |b| {
            let known = b.runs().take_while(|(first, _)| {
                sb.agreed_size == 0 || first * u64::from(b.block_size()) < sb.agreed_size
            });
            known.map(|(_, count)| count).sum()
        });
        if bits > 0 && peer.bitmap == 0 && clean {
            let text = format!(
                "the peer with node id {id} shares this generation and still has blocks marked: they \
                 are reconciled at the next connect"
            );
            findings.push(good(text));
        }
    }
}

/// The places the metadata name against those there are.
fn check_sizes(r: &Recovered, meta_size: u64, disk_size: u64, findings: &mut Vec<Finding>) {
    let layout = &r.layout;
    if layout.placement == Placement::Internal {
        return;
    }
    if meta_size < layout.metadata_len() {
        let text = format!(
            "the meta-disk has {meta_size} bytes, the metadata need {}: the end of the bitmaps is gone",
            layout.metadata_len()
        );
        let next =
            "make the meta-disk as large as that; the blocks in question count as out of sync";
        findings.push(wrong(text, next));
    }
    let end = disk_size / BLOCK64 * BLOCK64;
    if end > layout.disk_size {
        findings.push(good(format!(
            "the disk has grown by {} bytes, which are not used",
            end - layout.disk_size
        )));
    }
}

/// Whether every peer the configuration names has a place in the metadata, and the reverse.
pub fn check_configured(superblock: &Superblock, peers: &[NodeId]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let place = |id: &NodeId| {
        superblock
            .peers
            .get(id.slot())
            .is_some_and(|p| p.slot.is_some())
    };
    for id in peers.iter().filter(|id| !place(id)) {
        let text = format!(
            "the configuration has a peer with node id {}, the metadata have no bitmap for it",
            id.0
        );
        let next = "correct the ids in the configuration, or make new metadata: `create-md --force`, \
                    then a full sync from the peer";
        findings.push(wrong(text, next));
    }
    for (id, _) in (0u8..)
        .zip(&superblock.peers)
        .filter(|(_, p)| p.slot.is_some())
    {
        if !peers.contains(&NodeId(id)) {
            findings.push(good(format!(
                "there is a bitmap for node id {id}, which the configuration does not have"
            )));
        }
    }
    findings
}

/// Runs of extents that are named.
const NAMED: usize = 16;

/// The activity log in words. It matters only to a node that is Primary, or went down as one.
fn log_finding(recovered: &Recovered) -> Finding {
    let primary = recovered
        .superblock
        .flags
        .contains(MdFlags::PRIMARY_INDICATOR);
    let size = u64::from(recovered.superblock.extent_size);
    let extents = match &recovered.log {
        Ok(extents) => extents,
        Err(error) if primary => {
            let text = format!("activity log: {error}; after a crash every block counts");
            return wrong(text, REPAIRED_BY_RESYNC);
        }
        Err(_) => {
            return good("activity log: empty".to_string());
        }
    };
    let mut text = format!(
        "activity log: {} extent(s) of {size} bytes{}",
        extents.len(),
        if primary {
            ", which would be marked after a crash"
        } else {
            " of the last time this node was Primary; they mean nothing now"
        }
    );
    if primary && !extents.is_empty() {
        text.push_str(": ");
        for (i, run) in runs(extents).enumerate() {
            if i == NAMED {
                text.push_str(", …");
                break;
            }
            if i > 0 {
                text.push_str(", ");
            }
            text.push_str(&match run {
                (first, last) if first == last => format!("{first}"),
                (first, last) => format!("{first}-{last}"),
            });
        }
    }
    good(text)
}

/// Runs of consecutive numbers: (first, last).
fn runs(extents: &[u32]) -> impl Iterator<Item = (u32, u32)> + '_ {
    extents
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| (run[0], run[run.len() - 1]))
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
