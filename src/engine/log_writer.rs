//! The activity log's way to the disk, and the writes that wait for it.
//!
//! Invariants:
//! * a write that may make copies differ starts only when the log on the disk names its extents, and
//!   they stay held until the own disk and every peer it was sent to have it: a peer's ack is not
//!   enough, its barrier's is ([`Resource::release_entry`]);
//! * before the block that gives an extent's slot to another is written, the bitmap pages with the
//!   extent's marks and the data written to it are stable here: dirty pages → flushes → the block;
//! * one block is under way at a time, so that at most one can be torn;
//! * of a bitmap page at most one write is under way: pages are written by a commit
//!   ([`crate::meta_writer`]) or for the log, never by both at once;
//! * the blocks of a reign carry its random number, which the superblock has from the commit that
//!   sets the PrimaryIndicator; the first of them, which says "nothing", is stable before that
//!   superblock. Blocks of earlier reigns mean nothing from then on: the log needs no emptying.

use crate::activity_log::Reserved;
use crate::event::{DiskState, Severity};
use crate::metadata::layout::Placement;
use crate::metadata::log_block::{self, Identity, LogError, NewBlock};
use crate::metadata::{BLOCK, BLOCK64};
use crate::output::Output;
use crate::request::RequestKey;
use crate::resource::{Op, Resource};
use crate::sabotage::Mistake;
use crate::transfer_log::Entry;
use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

/// A write that waits for its extents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cold {
    pub(crate) key: RequestKey,
    /// It holds them; the transaction that names them is not on the disk yet.
    reserved: bool,
}

/// What is under way for the log of one volume.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LogWriter {
    reign: u64,
    /// Of the newest block.
    sequence: u64,
    /// The first block of the reign goes with the next commit.
    first_due: bool,
    block: bool,
    /// Writes of bitmap pages, then flushes, before extents are retired.
    pages: usize,
    flushes: usize,
}

impl LogWriter {
    /// Bitmap pages are being written, or not yet stable.
    pub(crate) fn writes_pages(&self) -> bool {
        self.pages > 0 || self.flushes > 0
    }

    /// Nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        !self.block && !self.writes_pages()
    }

    /// The disk failed: nothing is written any more.
    pub(crate) fn fail(&mut self) {
        *self = Self::default();
    }
}

impl Resource {
    /// What a crash as Primary may have left different from the peers is marked for all of them:
    /// the extents of the log, or everything if it cannot be used.
    pub(crate) fn mark_after_crash(&mut self, v: usize, log: Result<Vec<u32>, LogError>) {
        let volume = &mut self.volumes[v];
        let (id, size) = (volume.id, volume.size());
        let Some(local) = &mut volume.local else {
            return;
        };
        let forget = crate::sabotage::is(Mistake::ForgetCrash);
        let extent = u64::from(local.superblock.extent_size);
        let (bytes, text) = match log {
            _ if forget => (0, format!("{id}: nothing is marked")),
            Ok(extents) => {
                let mut bytes = 0;
                for &number in &extents {
                    let at = u64::from(number) * extent;
                    bytes += size.saturating_sub(at).min(extent);
                    for bitmap in &mut local.bitmaps {
                        bitmap.set_bytes(at, extent);
                    }
                }
                let text = format!(
                    "{id}: this node was Primary when it went down; {bytes} bytes in {} extent(s) \
                     of its activity log are taken as possibly different from the peers",
                    extents.len()
                );
                (bytes, text)
            }
            Err(error) => {
                for bitmap in &mut local.bitmaps {
                    bitmap.set_all();
                }
                let text = format!(
                    "{id}: this node was Primary when it went down, and its activity log cannot be \
                     used ({error}); all {size} bytes are taken as possibly different from the \
                     peers"
                );
                (size, text)
            }
        };
        volume.marked_after_crash = bytes;
        self.incident(Severity::Warning, text);
    }

    /// This node is about to become Primary: a new, empty log.
    pub(crate) fn begin_reign(&mut self, v: usize) {
        let reign = self.rng.uuid() | 1;
        let wanted = self.cfg.options.al_extents;
        let volume = &mut self.volumes[v];
        let Some(local) = &mut volume.local else {
            return;
        };
        let most = log_block::most_slots(local.layout.activity_log_len);
        let slots = usize::try_from(wanted).unwrap_or(most).clamp(1, most);
        local.superblock.reign = reign;
        volume.activity.begin(slots, local.superblock.extent_size);
        volume.log_writer = LogWriter {
            reign,
            first_due: true,
            ..LogWriter::default()
        };
    }

    /// The first block of a reign, for the commit that begins it.
    pub(crate) fn first_log_block(&mut self, v: usize) -> Option<(u64, Box<[u8]>)> {
        let writer = &mut self.volumes[v].log_writer;
        if !core::mem::take(&mut writer.first_due) {
            return None;
        }
        self.next_log_block(v)
    }

    fn next_log_block(&mut self, v: usize) -> Option<(u64, Box<[u8]>)> {
        let node = self.cfg.me.id.0;
        let volume = &mut self.volumes[v];
        let local = volume.local.as_ref()?;
        volume.log_writer.sequence += 1;
        let sequence = volume.log_writer.sequence;
        let log = &volume.activity;
        let new = NewBlock {
            identity: Identity {
                device_uuid: local.superblock.device_uuid,
                reign: volume.log_writer.reign,
            },
            sequence,
            node,
            slots: u16::try_from(log.capacity()).unwrap_or(u16::MAX - 1),
            part: usize::MAX,
        };
        let block: Box<[u8; BLOCK]> = new.encode(log.updates(), |slot| log.extent_of(slot));
        let places = local.layout.activity_log_len / BLOCK64;
        let offset = local.layout.activity_log_offset + sequence % places * BLOCK64;
        Some((offset, block))
    }

    /// Holds the extents of a write at the gate. If they are not active the write steps aside.
    pub(crate) fn hold_extents(&mut self, key: RequestKey) -> bool {
        let Some(r) = self.requests.get_mut(key) else {
            return false;
        };
        let volume = &mut self.volumes[r.volume];
        if volume.activity.hold(r.offset, r.len) {
            r.holds = true;
            return true;
        }
        volume.activity.counts.waited += 1;
        volume.cold.push_back(Cold {
            key,
            reserved: false,
        });
        false
    }

    /// The own disk has what a request wrote, or never will.
    pub(crate) fn release_extents(&mut self, key: RequestKey) {
        if let Some(r) = self.requests.get_mut(key)
            && core::mem::take(&mut r.holds)
        {
            self.volumes[r.volume].activity.release(r.offset, r.len);
        }
    }

    /// A peer has a write stable, or its marks say that it may not have it. (A resync block holds
    /// nothing: its bits are set until it is stable.)
    pub(crate) fn release_entry(&mut self, entry: &Entry) {
        let early = crate::sabotage::is(Mistake::ReleaseExtentAtAck);
        if entry.resync || entry.remote || early && entry.acked {
            return;
        }
        if let Some(v) = self.volume_index(entry.volume) {
            self.volumes[v].activity.release(entry.offset, entry.len);
        }
    }

    /// So many extents wait for peers that an open epoch of this many writes should be closed.
    pub(crate) fn log_presses(&self, open: u64) -> bool {
        self.volumes.iter().any(|v| {
            let capacity = v.activity.capacity();
            v.activity.held() * 2 > capacity && open.saturating_mul(8) >= capacity as u64
        })
    }

    /// Lets go on what can, and writes what is to be written.
    pub(crate) fn run_log(&mut self, v: usize) {
        let volume = &self.volumes[v];
        if volume.activity.capacity() == 0 {
            return;
        }
        let ends = !volume.is_up_to_date() || self.stopping.is_some();
        if ends && volume.remote.is_none() {
            self.fail_cold(v);
        }
        if volume_failed(self, v) {
            return;
        }
        self.admit_cold(v);
        if self.volumes[v].activity.wants_transaction() && !self.volumes[v].log_writer.block {
            self.write_transaction(v);
        }
        let volume = &self.volumes[v];
        if volume.activity.wants_cleaning()
            && !volume.meta.needs_pages()
            && !volume.log_writer.writes_pages()
        {
            self.clean_extents(v);
        }
        if self.volumes[v].activity.starves() {
            // What is held is waiting for peers: they are asked to flush.
            for p in 0..self.peers.len() {
                if self.peers[p].link.is_some() && self.peers[p].log.open_count() > 0 {
                    self.send_barrier(p, false);
                }
            }
        }
    }

    /// In order of arrival: those whose extents are active go on, the others get slots.
    fn admit_cold(&mut self, v: usize) {
        let volume = &mut self.volumes[v];
        let skip = crate::sabotage::is(Mistake::SkipLogCommit);
        while let Some(&Cold {
            key,
            reserved: true,
        }) = volume.cold.front()
        {
            let Some(r) = self.requests.get(key) else {
                volume.cold.pop_front();
                continue;
            };
            if !volume.activity.is_active(r.offset, r.len) && !skip {
                break;
            }
            volume.cold.pop_front();
            self.logged.push_back(key);
        }
        // The reserved ones are in front.
        let first = volume.cold.partition_point(|c| c.reserved);
        for i in first..volume.cold.len() {
            let Some(r) = self.requests.get_mut(volume.cold[i].key) else {
                continue;
            };
            if volume.activity.reserve(r.offset, r.len) == Reserved::NotYet {
                break;
            }
            r.holds = true;
            volume.cold[i].reserved = true;
        }
    }

    /// Those that wait for extents will never get them.
    pub(crate) fn fail_cold(&mut self, v: usize) {
        while let Some(cold) = self.volumes[v].cold.pop_front() {
            self.fail_unstarted(cold.key);
        }
        self.volumes[v].activity.nobody_waits();
    }

    fn write_transaction(&mut self, v: usize) {
        self.volumes[v].activity.begin_transaction();
        let Some((offset, data)) = self.next_log_block(v) else {
            return;
        };
        self.volumes[v].log_writer.block = true;
        let op = self.new_op(Op::LogBlock(v));
        self.out.push(Output::MetaWrite {
            op,
            volume: self.volumes[v].id,
            offset,
            data,
            fua: true,
        });
    }

    /// A transaction is stable.
    pub(crate) fn log_block_done(&mut self, v: usize, result: Result<(), i32>) {
        if volume_failed(self, v) {
            return;
        }
        if let Err(errno) = result {
            return self.disk_failed(v, errno, "writing the activity log");
        }
        self.volumes[v].log_writer.block = false;
        self.volumes[v].activity.end_transaction();
    }

    /// The least recently used extents are made ready to be forgotten.
    fn clean_extents(&mut self, v: usize) {
        let volume = &mut self.volumes[v];
        let mut extents: Vec<u32> = volume.activity.begin_cleaning().collect();
        extents.sort_unstable();
        let ranges: Vec<(u64, u64)> = extents.iter().map(|&e| volume.activity.bytes(e)).collect();
        let writes = if crate::sabotage::is(Mistake::ForgetExtentWithoutBitmap) {
            Vec::new()
        } else {
            self.collect_pages_of(v, &ranges)
        };
        let volume = self.volumes[v].id;
        self.volumes[v].log_writer.pages = writes.len();
        if writes.is_empty() {
            return self.flush_for_log(v, false);
        }
        for (offset, data) in writes {
            let op = self.new_op(Op::LogPage(v));
            self.out.push(Output::MetaWrite {
                op,
                volume,
                offset,
                data,
                fua: false,
            });
        }
    }

    /// A bitmap page of extents that are to be forgotten is written.
    pub(crate) fn log_page_done(&mut self, v: usize, result: Result<(), i32>) {
        if volume_failed(self, v) {
            return;
        }
        if let Err(errno) = result {
            return self.disk_failed(v, errno, "writing metadata");
        }
        self.volumes[v].log_writer.pages -= 1;
        if self.volumes[v].log_writer.pages == 0 {
            self.flush_for_log(v, true);
        }
    }

    /// Pages and data become stable. What the peers have and the own disk has in its cache only
    /// would differ after a power cut, and nothing would say so.
    fn flush_for_log(&mut self, v: usize, pages: bool) {
        let internal = self.volumes[v]
            .local
            .as_ref()
            .is_none_or(|l| l.layout.placement == Placement::Internal);
        let volume = self.volumes[v].id;
        let data = !crate::sabotage::is(Mistake::ForgetExtentUnflushed);
        if internal && data || pages {
            let op = self.new_op(Op::LogFlush(v));
            self.out.push(Output::MetaFlush { op, volume });
            self.volumes[v].log_writer.flushes += 1;
        }
        if !internal && data {
            let op = self.new_op(Op::LogFlush(v));
            self.out.push(Output::DiskFlush { op, volume });
            self.volumes[v].log_writer.flushes += 1;
        }
        if self.volumes[v].log_writer.flushes == 0 {
            // Only with the mistake. Nobody will come back for what waits for these extents.
            self.volumes[v].activity.end_cleaning();
            self.run_log(v);
        }
    }

    /// A flush for extents that are to be forgotten ended.
    pub(crate) fn log_flush_done(&mut self, v: usize, result: Result<(), i32>) {
        if volume_failed(self, v) {
            return;
        }
        if let Err(errno) = result {
            return self.disk_failed(v, errno, "a flush for the activity log");
        }
        let volume = &mut self.volumes[v];
        volume.log_writer.flushes -= 1;
        if volume.log_writer.flushes == 0 {
            volume.activity.end_cleaning();
        }
    }
}

/// What was under way when the disk failed means nothing any more.
fn volume_failed(resource: &Resource, v: usize) -> bool {
    matches!(
        resource.volumes[v].disk,
        DiskState::Failed | DiskState::Diskless
    )
}
