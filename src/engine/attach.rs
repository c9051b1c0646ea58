//! A disk comes: what its metadata say it is worth, and what a crash made of it. And metadata
//! commits, from the request to those who waited for it.

use crate::bitmap::Bitmap;
use crate::event::{DiskState, Severity, What};
use crate::ids::VolumeId;
use crate::meta_writer::PagePlace;
use crate::metadata::BLOCK;
use crate::metadata::layout::Layout;
use crate::metadata::open::Recovered;
use crate::metadata::superblock::MdFlags;
use crate::output::Output;
use crate::resource::{Op, Resource};
use crate::states;
use crate::volume::{Local, Waiter};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Contiguous bitmap pages are written together up to this many bytes.
const PAGE_RUN: usize = 256 * 1024;
/// So many bytes of them are in flight: the bitmap of a large device does not take its size again.
const PAGES_AT_ONCE: usize = 4 << 20;

/// Offsets in the metadata device, and what belongs there.
pub(crate) type PageWrites = Vec<(u64, Box<[u8]>)>;

/// Bitmap pages to be written, neighbours together.
#[derive(Default)]
struct PageRuns {
    runs: Vec<(u64, Vec<u8>)>,
    bytes: usize,
}

impl PageRuns {
    fn add(&mut self, layout: &Layout, bitmap: &Bitmap, slot: usize, page: u64) {
        let slot = u8::try_from(slot).unwrap_or(u8::MAX);
        let offset = layout.bitmap_page_offset(slot, page);
        let block = bitmap.encode_page(slot, page);
        self.bytes += block.len();
        match self.runs.last_mut() {
            Some((start, data))
                if *start + data.len() as u64 == offset && data.len() < PAGE_RUN =>
            {
                data.extend_from_slice(&block[..]);
            }
            _ => self.runs.push((offset, block.to_vec())),
        }
    }

    fn done(self) -> PageWrites {
        let boxed = |(offset, data): (u64, Vec<u8>)| (offset, data.into_boxed_slice());
        self.runs.into_iter().map(boxed).collect()
    }
}

impl Resource {
    /// Metadata of a volume were read.
    pub(crate) fn attached(
        &mut self,
        volume: VolumeId,
        recovered: Recovered,
        no_volatile_cache: bool,
    ) {
        let Some(v) = self.volume_index(volume) else {
            return;
        };
        let Recovered {
            superblock,
            layout,
            bitmaps,
            log,
            warnings,
        } = recovered;
        for warning in warnings {
            self.incident(Severity::Warning, format!("{volume}: {warning}"));
        }
        let flags = superblock.flags;
        let agreed = superblock.agreed_size;
        let old = &mut self.volumes[v];
        old.anew = old.local.is_some();
        old.meta = crate::meta_writer::MetaWriter::default();
        old.log_writer = crate::log_writer::LogWriter::default();
        old.activity = crate::activity_log::ActivityLog::default();
        self.volumes[v].no_volatile_cache = no_volatile_cache;
        self.volumes[v].generations.load(&superblock);
        self.volumes[v].lineage = superblock.current;
        self.volumes[v].local = Some(Local {
            superblock,
            layout,
            bitmaps,
        });
        if agreed != 0 {
            self.set_agreed_size(v, agreed);
        }
        if flags.contains(MdFlags::PRIMARY_INDICATOR) {
            // The indicator leaves the disk only after the marks are on it; until then the log stays
            // as it is, and another crash marks the same again.
            self.mark_after_crash(v, log);
            self.set_flags(v, MdFlags::PRIMARY_INDICATOR, false);
            self.set_flags(v, MdFlags::CRASHED_PRIMARY, true);
        }
        self.mark_after_following(v);
        self.mark_after_serving(v);
        let other = self.volumes[v].remote.is_some() && !self.nothing_missed(v);
        let older = self.volumes[v].missed && !self.is_group();
        if older || (other && !self.is_handing_over(v)) {
            self.set_flags(v, MdFlags::WAS_UP_TO_DATE, false);
        }
        self.attached_again(v, other);
        self.set_disk(
            v,
            DiskState::Attaching,
            "reading and writing metadata".to_string(),
        );
        // What a killed process wrote last may be in the disk's cache only. It would be sent to a
        // peer, or pass for equal to it, and be gone after a power cut: it is made stable first.
        let op = self.new_op(Op::AttachFlush(v));
        self.out.push(Output::DiskFlush { op, volume });
    }

    /// The data of a freshly attached volume are stable.
    pub(crate) fn attach_flushed(&mut self, v: usize, result: Result<(), i32>) {
        match result {
            Ok(()) => self.commit(v, true, Some(Waiter::Attached)),
            Err(errno) => self.disk_failed(v, errno, "a flush"),
        }
    }

    /// The metadata of a freshly attached volume are settled.
    fn attach_done(&mut self, v: usize) {
        let Some(local) = &self.volumes[v].local else {
            return;
        };
        let flags = local.superblock.flags;
        if self.refuse_disk(v) {
            return;
        }
        self.volumes[v].again.failed = false;
        if self.nothing_missed(v) {
            self.begin_local_reign(v);
            return self.commit(v, true, Some(Waiter::ServesAgain));
        }
        let created = self.volumes[v].generations.is_just_created();
        let (state, reason) = if !flags.contains(MdFlags::CONSISTENT) {
            let text = if created {
                "just created: never synchronised"
            } else {
                "a resync onto this disk was not finished, its data were invalidated, or its metadata \
                 were restored from a dump"
            };
            (DiskState::Inconsistent, text)
        } else if !flags.contains(MdFlags::WAS_UP_TO_DATE) {
            // Its own metadata say so from now on. (Of a disk that was never in step they say nothing.)
            match core::mem::take(&mut self.volumes[v].missed) {
                true => (
                    DiskState::Outdated,
                    "a Primary was connected while this disk was out of use",
                ),
                false => (DiskState::Outdated, "known to be older than another copy"),
            }
        } else {
            (DiskState::UpToDate, "was UpToDate when it was last in use")
        };
        self.set_disk(v, state, reason.to_string());
        self.doubt_at_start(v);
        self.doubt(v);
        if self.volumes[v].disk == DiskState::Consistent {
            self.volumes[v].was_current = false;
        }
        if core::mem::take(&mut self.volumes[v].anew) {
            return self.compare_anew();
        }
        let ready = self.volumes.iter().all(|v| v.has_disk());
        if ready {
            for p in 0..self.peers.len() {
                self.want_peer(p);
            }
        }
    }

    /// A disk was attached while the resource was in use: its copy is compared with the peers'.
    fn compare_anew(&mut self) {
        self.tell_state();
        self.renegotiate("a disk was attached");
    }

    /// Starts wanting a connection.
    pub(crate) fn want_peer(&mut self, p: usize) {
        if self.peers[p].want && self.peers[p].link.is_some() {
            return;
        }
        self.peers[p].want = true;
        let peer = self.peers[p].node;
        let reason = format!("trying to connect to {}", self.peers[p].name);
        self.set_connection(p, crate::event::ConnState::Connecting, reason);
        self.out.push(Output::WantLink {
            peer,
            want: true,
            now: true,
        });
    }

    /// Asks for a metadata commit.
    pub(crate) fn commit(&mut self, v: usize, pages: bool, waiter: Option<Waiter>) {
        self.volumes[v].meta.request(pages, waiter);
    }

    /// Begins commits that are asked for and possible.
    pub(crate) fn run_commits(&mut self) {
        for v in 0..self.volumes.len() {
            if self.volumes[v].meta.is_hopeless() {
                let waiters = self.volumes[v].meta.fail();
                self.commit_failed(v, waiters, "the disk has failed");
            }
            let Some(pages) = self.volumes[v].meta.wants_begin() else {
                continue;
            };
            if pages && self.volumes[v].log_writer.writes_pages() {
                // A page may not be written twice at once: the older could come last.
                continue;
            }
            let (mut writes, rest) = if pages {
                self.collect_dirty_pages(v, (0, 0))
            } else {
                (Vec::new(), None)
            };
            writes.extend(self.first_log_block(v));
            let volume = &mut self.volumes[v];
            let Some(local) = &mut volume.local else {
                let waiters = volume.meta.fail();
                self.commit_failed(v, waiters, "no disk is attached");
                continue;
            };
            volume.generations.store(&mut local.superblock);
            local.superblock.sequence += 1;
            let copy = local.superblock.next_slot();
            let offset = local.layout.superblock_offsets[copy];
            let block: Box<[u8; BLOCK]> = local.superblock.encode();
            volume.meta.begin(
                (offset, block),
                u32::try_from(writes.len()).unwrap_or(u32::MAX),
                rest,
            );
            let id = volume.id;
            if writes.is_empty() {
                if volume.meta.needs_no_flush() {
                    self.write_superblock(v);
                } else {
                    let op = self.new_op(Op::MetaFlush(v));
                    self.out.push(Output::MetaFlush { op, volume: id });
                }
            }
            self.write_pages(v, writes);
        }
    }

    fn write_pages(&mut self, v: usize, writes: PageWrites) {
        let volume = self.volumes[v].id;
        for (offset, data) in writes {
            let op = self.new_op(Op::MetaPage(v));
            self.out.push(Output::MetaWrite {
                op,
                volume,
                offset,
                data,
                fua: false,
            });
        }
    }

    /// The dirty bitmap pages from a place on, as many as are written at once, and where the rest
    /// begins. The place only moves forward, so that a commit ends although pages get dirty again.
    fn collect_dirty_pages(
        &mut self,
        v: usize,
        from: PagePlace,
    ) -> (PageWrites, Option<PagePlace>) {
        let mut writes = PageRuns::default();
        let Some(local) = &mut self.volumes[v].local else {
            return (Vec::new(), None);
        };
        let mut place = from;
        while let Some(bitmap) = local.bitmaps.get_mut(place.0) {
            let Some(page) = bitmap.take_dirty_page(place.1) else {
                place = (place.0 + 1, 0);
                continue;
            };
            place.1 = page + 1;
            writes.add(&local.layout, bitmap, place.0, page);
            if writes.bytes >= PAGES_AT_ONCE {
                return (writes.done(), Some(place));
            }
        }
        (writes.done(), None)
    }

    /// The dirty bitmap pages with the marks of these byte ranges (ascending).
    pub(crate) fn collect_pages_of(&mut self, v: usize, ranges: &[(u64, u64)]) -> PageWrites {
        let mut writes = PageRuns::default();
        let Some(local) = &mut self.volumes[v].local else {
            return Vec::new();
        };
        for (slot, bitmap) in local.bitmaps.iter_mut().enumerate() {
            for &(offset, len) in ranges {
                while let Some(page) = bitmap.take_dirty_page_of(offset, len) {
                    writes.add(&local.layout, bitmap, slot, page);
                }
            }
        }
        writes.done()
    }

    fn write_superblock(&mut self, v: usize) {
        let id = self.volumes[v].id;
        if let Some((offset, block)) = self.volumes[v].meta.superblock_due() {
            let op = self.new_op(Op::MetaSuperblock(v));
            let data: Box<[u8]> = block;
            self.out.push(Output::MetaWrite {
                op,
                volume: id,
                offset,
                data,
                fua: true,
            });
        }
    }

    /// A bitmap page write ended.
    pub(crate) fn meta_page_done(&mut self, v: usize, result: Result<(), i32>) {
        if let Err(errno) = result {
            return self.metadata_failed(v, errno);
        }
        if self.volumes[v].meta.page_done() {
            if let Some(from) = self.volumes[v].meta.take_rest() {
                let (writes, rest) = self.collect_dirty_pages(v, from);
                if !writes.is_empty() {
                    let count = u32::try_from(writes.len()).unwrap_or(u32::MAX);
                    self.volumes[v].meta.go_on(count, rest);
                    return self.write_pages(v, writes);
                }
            }
            let op = self.new_op(Op::MetaFlush(v));
            self.out.push(Output::MetaFlush {
                op,
                volume: self.volumes[v].id,
            });
        }
    }

    /// The flush between pages and superblock ended.
    pub(crate) fn meta_flush_done(&mut self, v: usize, result: Result<(), i32>) {
        match result {
            Ok(()) => self.write_superblock(v),
            Err(errno) => self.metadata_failed(v, errno),
        }
    }

    /// A superblock is stable.
    pub(crate) fn superblock_done(&mut self, v: usize, result: Result<(), i32>) {
        if let Err(errno) = result {
            return self.metadata_failed(v, errno);
        }
        for waiter in self.volumes[v].meta.committed() {
            match waiter {
                Waiter::Attached => self.attach_done(v),
                Waiter::Serves(node, link) => {
                    if let Some(p) = self.live_peer(node, link) {
                        self.serves(p, v);
                    }
                }
                Waiter::Detached => self.detached(v),
                Waiter::ServesAgain => {
                    let reason = "attached; nothing was changed while it was out of use";
                    self.set_disk(v, DiskState::UpToDate, reason.to_string());
                    self.serve_locally(v);
                    self.volumes[v].anew = false;
                    self.compare_anew();
                }
                Waiter::NewGeneration => self.new_generation_stable(v),
                Waiter::Following(node) => self.following(node),
                Waiter::Follows(node, link) => {
                    if let Some(p) = self.live_peer(node, link) {
                        self.confirm_generation(p, v);
                    }
                }
                Waiter::Promoted => self.promoted(),
                Waiter::Demoted => self.demoted(),
                Waiter::Stopped => self.stop_written(),
                Waiter::ResyncReady(node, link) => {
                    if let Some(p) = self.live_peer(node, link) {
                        self.resync_ready(p, v);
                    }
                }
                Waiter::ResyncFinished(node, link) => {
                    if let Some(p) = self.live_peer(node, link) {
                        self.tell_resync_finished(p, v);
                    }
                }
                Waiter::ResyncAdopted(node, link) => match self.live_peer(node, link) {
                    Some(p) => self.resync_adopted(p, v),
                    None => {
                        // In a group only a source that was UpToDate leaves the flag set.
                        let flags = self.volumes[v].local.as_ref().map(|l| l.superblock.flags);
                        let current = flags.is_some_and(|f| f.contains(MdFlags::WAS_UP_TO_DATE));
                        let reason = "the resync finished as the link was lost".to_string();
                        let state = if current {
                            DiskState::UpToDate
                        } else {
                            DiskState::Outdated
                        };
                        self.set_disk(v, state, reason);
                        self.serve_locally(v);
                        self.doubt(v);
                    }
                },
                Waiter::PeerChange(node, link, tid) => {
                    if let Some(p) = self.live_peer(node, link) {
                        self.peer_change_done(p, v, tid);
                    }
                }
                Waiter::Measured(id, size, force) => self.ask_resize(v, id, size, force),
                Waiter::ResizeReady(node, link, tid) => {
                    if let Some(p) = self.live_peer(node, link) {
                        self.resize_ready(p, v, tid);
                    } else {
                        self.size_taken(None, v);
                    }
                }
                Waiter::Resized(id, node, link, tid, was) => {
                    let p = self.live_peer(node, link);
                    self.resized(p, v, id, tid, was);
                }
                Waiter::SizeTaken(node, link) => {
                    let p = self.live_peer(node, link);
                    self.size_taken(p, v);
                }
                Waiter::Outdated(id) => self.outdated(id),
                Waiter::Left(node, link) => {
                    if let Some(p) = self.live_peer(node, link) {
                        self.left_outdated(p);
                    }
                }
                Waiter::Repair(node, link) => {
                    if self.live_peer(node, link).is_some() {
                        self.repair_ready();
                    }
                }
                Waiter::Renegotiate(id, text) => {
                    let flags = self.volumes[v].local.as_ref().map(|l| l.superblock.flags);
                    if flags.is_some_and(|f| f.contains(MdFlags::WAS_UP_TO_DATE)) {
                        self.set_disk(v, DiskState::UpToDate, text.to_string());
                    }
                    let this = |w: &Waiter| matches!(w, Waiter::Renegotiate(i, _) if *i == id);
                    if !self.volumes.iter().any(|v| v.meta.has_waiter(this)) {
                        self.done(id, Ok(text.to_string()));
                        self.renegotiate(text);
                    }
                }
            }
        }
    }

    /// Metadata that cannot be written cannot keep any promise: the disk is out of use.
    fn metadata_failed(&mut self, v: usize, errno: i32) {
        self.disk_failed(v, errno, "writing metadata");
    }

    pub(crate) fn commit_failed(&mut self, v: usize, waiters: Vec<Waiter>, reason: &str) {
        for waiter in waiters {
            match waiter {
                Waiter::NewGeneration => {
                    // What waits is answered with an error, never with success.
                    self.volumes[v].bump_running = false;
                    self.volumes[v].bump_committed = false;
                    self.volumes[v].bump_again = false;
                    let waits = self.volumes[v].remote.is_some();
                    for &key in &self.held {
                        if let Some(r) = self.requests.get_mut(key)
                            && r.volume == v
                            && !waits
                        {
                            r.local = crate::request::LocalPart::Failed(5);
                        }
                    }
                    self.release_held();
                }
                Waiter::Promoted => self.fail_role_change(reason),
                // Its disk says Primary for ever; that this node is not is told to the peers.
                Waiter::Demoted => self.demoted(),
                Waiter::Stopped => self.stop_written(),
                Waiter::Renegotiate(id, _)
                | Waiter::Outdated(id)
                | Waiter::Measured(id, ..)
                | Waiter::Resized(id, ..) => {
                    let refusal = crate::command::Refusal {
                        kind: crate::command::RefusalKind::NoDisk,
                        reason: reason.to_string(),
                        way_out: String::new(),
                    };
                    self.done(id, Err(refusal));
                }
                Waiter::PeerChange(node, link, tid) | Waiter::ResizeReady(node, link, tid) => {
                    if let Some(p) = self.live_peer(node, link) {
                        self.reply(p, tid, Some(reason.to_string()));
                    }
                }
                // What is held is ended: the disk has failed.
                Waiter::Following(node) => self.following(node),
                Waiter::Detached => self.detached(v),
                Waiter::Left(node, link) => {
                    if let Some(p) = self.live_peer(node, link) {
                        self.leave(p);
                    }
                }
                Waiter::Attached
                | Waiter::Serves(..)
                | Waiter::ServesAgain
                | Waiter::Follows(..)
                | Waiter::Repair(..)
                | Waiter::SizeTaken(..)
                | Waiter::ResyncReady(..)
                | Waiter::ResyncFinished(..)
                | Waiter::ResyncAdopted(..) => {}
            }
        }
        if self.volumes[v].remote.is_none() {
            self.fail_gated(v);
        }
    }

    /// Writes that hold their range but can never start get an error.
    pub(crate) fn fail_gated(&mut self, v: usize) {
        let keys: Vec<_> = self.logged.iter().chain(&self.gated).copied().collect();
        for key in keys {
            if self.requests.get(key).is_some_and(|r| r.volume == v) {
                self.logged.retain(|&k| k != key);
                self.gated.retain(|&k| k != key);
                self.fail_unstarted(key);
            }
        }
        self.fail_cold(v);
    }

    /// Sets or clears metadata flags in memory; a commit takes them to the disk.
    pub(crate) fn set_flags(&mut self, v: usize, flags: MdFlags, on: bool) {
        if let Some(local) = &mut self.volumes[v].local {
            if on {
                local.superblock.flags.insert(flags);
            } else {
                local.superblock.flags.remove(flags);
            }
        }
    }

    /// The device's size as all sides have agreed to it; bits beyond it mean nothing.
    pub(crate) fn set_agreed_size(&mut self, v: usize, size: u64) {
        if let Some(local) = &mut self.volumes[v].local {
            local.superblock.agreed_size = size;
            for bitmap in &mut local.bitmaps {
                bitmap.resize(size);
            }
        }
    }

    /// Sets the state of the own disk and says why. A disk that failed stays so until it is attached
    /// anew, whatever was under way with it.
    pub(crate) fn set_disk(&mut self, v: usize, state: DiskState, reason: String) {
        let now = self.now;
        let out_of_use = match self.volumes[v].disk {
            DiskState::Failed => !matches!(state, DiskState::Attaching | DiskState::Diskless),
            DiskState::Diskless => state != DiskState::Attaching,
            DiskState::Detaching => state != DiskState::Failed,
            _ => false,
        };
        if out_of_use {
            return;
        }
        let volume = &mut self.volumes[v];
        let old = core::mem::replace(&mut volume.disk, state);
        volume.disk_reason.clone_from(&reason);
        volume.missed &= state != DiskState::UpToDate;
        if old != state {
            debug_assert!(
                states::is_known(states::DISK_CHANGES, &old, &state),
                "{old:?} to {state:?}: {reason}"
            );
            volume.disk_since = now;
            volume.was_current = match state {
                DiskState::UpToDate => true,
                DiskState::Consistent => volume.was_current,
                _ => false,
            };
            let id = volume.id;
            let severity = match state {
                DiskState::Failed => Severity::Error,
                DiskState::Outdated | DiskState::Inconsistent => Severity::Warning,
                _ => Severity::Info,
            };
            self.event(What::Disk(id, old, state), severity, reason);
        }
    }
}
