//! What an engine wants, done by the simulated machine; and the ends of disk operations.

use crate::disk::{SECTOR, Stamp};
use crate::node::{Op, VOLUME};
use crate::plan::MS;
use crate::world::{Due, World};
use twinblk_engine::ids::{BufId, OpId};
use twinblk_engine::input::{DiskDone, Input};
use twinblk_engine::output::{Output, SendBody};
use twinblk_protocol::digest::{DIGEST_BLOCK, digests};

const EIO: i32 = 5;

fn sector(offset: u64) -> usize {
    usize::try_from(offset / SECTOR).expect("small")
}

/// What stands for the digests of real blocks.
fn digests_of(content: &[Stamp]) -> Box<[u8]> {
    let mut all = Vec::new();
    for block in content.chunks(DIGEST_BLOCK / 512) {
        let bytes: Vec<u8> = block.iter().flat_map(|s| s.to_le_bytes()).collect();
        all.extend_from_slice(&digests(&bytes));
    }
    all.into_boxed_slice()
}

impl World {
    pub(crate) fn carry_out(&mut self, n: usize, output: Output) {
        self.mix_output(&output);
        match output {
            Output::DiskRead {
                op,
                offset,
                len,
                buf,
                ..
            } => {
                let (first, count) = (sector(offset), sector(len.into()));
                let buf = buf.map(|b| b.0);
                self.start_op(n, op, Op::Read { first, count, buf });
            }
            Output::DiskDigest {
                op, offset, len, ..
            } => {
                let (first, count) = (sector(offset), sector(len.into()));
                self.start_op(n, op, Op::Digest { first, count });
            }
            Output::DiskWrite {
                op,
                offset,
                len,
                buf,
                fua,
                ..
            } => {
                let Some(content) = self.nodes[n].bufs.get(&buf.0).cloned() else {
                    return self.violate("buffers_are_held", format!("node {n} writes {buf:?}"));
                };
                let (first, count) = (sector(offset), sector(len.into()));
                if content.len() != count || first + count > self.nodes[n].disk.data().len() {
                    let text = format!("node {n} writes {count} sectors at {first}");
                    return self.violate("data_stay_in_place", text);
                }
                self.start_write(n, op, first, content, fua);
            }
            Output::DiskZero {
                op,
                offset,
                len,
                fua,
                ..
            } => self.start_write(n, op, sector(offset), vec![0; sector(len)], fua),
            Output::DiskFlush { op, .. } => self.start_op(n, op, Op::Flush),
            Output::MetaWrite {
                op,
                offset,
                data,
                fua,
                ..
            } => {
                let bytes = data;
                self.start_op(n, op, Op::MetaWrite { offset, bytes, fua });
            }
            Output::MetaFlush { op, .. } => self.start_op(n, op, Op::MetaFlush),
            Output::MeasureDisk { .. } => {
                let life = self.nodes[n].life;
                self.after(MS / 100, Due::Measured(n, life));
            }
            Output::Send {
                peer,
                channel,
                header,
                body,
            } => {
                let (content, bytes) = match body {
                    SendBody::None => (Vec::new(), Vec::new()),
                    SendBody::Bytes(bytes) => (Vec::new(), bytes),
                    SendBody::Buf { buf, .. } => match self.nodes[n].bufs.get(&buf.0) {
                        Some(content) => (content.clone(), Vec::new()),
                        None => {
                            let text = format!("node {n} sends {buf:?}");
                            return self.violate("buffers_are_held", text);
                        }
                    },
                };
                self.send(n, usize::from(peer.0), channel, &header, content, bytes);
            }
            Output::Reply { tag, result } => self.replied(n, tag, result, None),
            Output::ReplyWith { tag, buf } => self.replied(n, tag, Ok(()), Some(buf.0)),
            Output::AttachDisk { .. } => {
                let life = self.nodes[n].life;
                self.after(MS, Due::AttachAgain(n, life));
            }
            Output::CloseDisk { .. } => {
                let node = &self.nodes[n];
                if !node.ops.is_empty() {
                    let text = format!("node {n} closes a disk with {:?} under way", node.ops);
                    self.violate("a_disk_in_use_stays_open", text);
                }
            }
            Output::ReleaseBuf(BufId(buf)) => {
                if self.nodes[n].bufs.remove(&buf).is_none() {
                    let text = format!("node {n} releases buffer {buf} twice");
                    self.violate("buffers_are_held", text);
                }
            }
            Output::CloseLink { peer, .. } => self.close(n, usize::from(peer.0)),
            Output::WantLink { peer, want, now } => {
                let m = usize::from(peer.0);
                self.nodes[n].want[m] = want;
                if want {
                    self.dial_soon(n, m, now);
                }
            }
            Output::CommandDone { id, result } => self.command_done(n, id, result),
            Output::Event(event) => self.told(n, event),
            Output::SaveDiscarded(request) => self.save_discarded(n, &request),
            Output::CancelSave { id } => self.cancel_save(n, id),
            Output::Handler { id, kind, peer, .. } => self.handler(n, id, kind, peer),
            Output::CloseClients => self.clients_dropped(n),
            Output::Stopped => {
                self.nodes[n].stopped = true;
                self.stopped(n);
            }
        }
    }

    fn mix_output(&mut self, output: &Output) {
        let trace = &mut self.trace;
        match output {
            Output::DiskRead { offset, len, .. } => {
                trace.mix(1);
                trace.mix(*offset);
                trace.mix(u64::from(*len));
            }
            Output::DiskDigest { offset, len, .. } => {
                trace.mix(10);
                trace.mix(*offset);
                trace.mix(u64::from(*len));
            }
            Output::DiskWrite { offset, len, .. } => {
                trace.mix(2);
                trace.mix(*offset);
                trace.mix(u64::from(*len));
            }
            Output::DiskZero { offset, len, .. } => {
                trace.mix(3);
                trace.mix(*offset);
                trace.mix(*len);
            }
            Output::MetaWrite { offset, data, .. } => {
                trace.mix(*offset);
                trace.mix_bytes(data);
            }
            Output::Send { header, body, .. } => {
                trace.mix_bytes(&header.encode());
                if let SendBody::Bytes(bytes) = body {
                    trace.mix_bytes(bytes);
                }
            }
            Output::Reply { tag, result } => {
                trace.mix(tag.0);
                trace.mix(u64::from(result.is_ok()));
            }
            Output::ReplyWith { tag, .. } => {
                trace.mix(tag.0);
                trace.mix(13);
            }
            Output::CloseDisk { .. } => trace.mix(14),
            Output::AttachDisk { .. } => trace.mix(16),
            Output::Event(event) => trace.mix_bytes(event.cause.as_bytes()),
            Output::CommandDone { id, result } => {
                trace.mix(id.0);
                trace.mix(u64::from(result.is_ok()));
            }
            Output::DiskFlush { .. } => trace.mix(4),
            Output::MetaFlush { .. } => trace.mix(5),
            Output::ReleaseBuf(buf) => trace.mix(u64::from(buf.0)),
            Output::CloseLink { .. } => trace.mix(6),
            Output::MeasureDisk { .. } => trace.mix(11),
            Output::WantLink { want, .. } => trace.mix(7 + u64::from(*want)),
            Output::Handler { kind, .. } => {
                trace.mix(12);
                trace.mix_bytes(kind.name().as_bytes());
            }
            Output::SaveDiscarded(request) => {
                trace.mix(14);
                request.all.iter().for_each(|&word| trace.mix(word));
            }
            Output::CancelSave { id } => trace.mix(15 + id.0),
            Output::CloseClients => trace.mix(17),
            Output::Stopped => trace.mix(9),
        }
    }

    fn start_write(&mut self, n: usize, op: OpId, first: usize, content: Vec<Stamp>, fua: bool) {
        let write = Op::Write {
            first,
            content,
            fua,
        };
        self.start_op(n, op, write);
    }

    fn start_op(&mut self, n: usize, op: OpId, what: Op) {
        let slow = match self.nodes[n].faults.slow {
            Some((times, until)) if until > self.now => times,
            _ => 1,
        };
        let longest = match what {
            Op::Flush | Op::MetaFlush => self.plan.disk_delay * 3,
            _ => self.plan.disk_delay,
        };
        let delay = self.disk_rng.between(MS / 100, longest.max(MS / 50)) * slow;
        let node = &mut self.nodes[n];
        let cut = matches!(what, Op::MetaWrite { .. })
            && core::mem::take(&mut node.faults.power_cut_in_metadata);
        if cut {
            let life = node.life;
            self.after(delay / 2, Due::PowerCut(n, life));
        }
        let node = &mut self.nodes[n];
        if node.ops.insert(op.0, what).is_some() {
            let text = format!("node {n} uses operation {} twice", op.0);
            return self.violate("operations_are_numbered", text);
        }
        let life = node.life;
        self.after(delay, Due::Disk(n, life, op.0));
    }

    /// Whether the operation fails.
    fn outcome(&mut self, n: usize, op: &Op) -> Result<(), i32> {
        let faults = &mut self.nodes[n].faults;
        let fails = faults.dead
            || match op {
                Op::Read { .. } | Op::Digest { .. } => core::mem::take(&mut faults.read),
                Op::Write { .. } => core::mem::take(&mut faults.write),
                Op::Flush => core::mem::take(&mut faults.flush),
                Op::MetaWrite { .. } | Op::MetaFlush => core::mem::take(&mut faults.meta),
            };
        if fails { Err(EIO) } else { Ok(()) }
    }

    pub(crate) fn disk_done(&mut self, n: usize, life: u64, number: u64) {
        if self.nodes[n].life != life {
            return;
        }
        let Some(op) = self.nodes[n].ops.remove(&number) else {
            return;
        };
        let result = self.outcome(n, &op);
        self.trace.line(self.now, || {
            let what = match &op {
                Op::Read { first, count, .. } => format!("read {first}+{count}"),
                Op::Digest { first, count } => format!("digests {first}+{count}"),
                Op::Write { first, content, .. } => format!("write {first}+{}", content.len()),
                Op::Flush => "flush".to_owned(),
                Op::MetaWrite { offset, bytes, fua } => {
                    format!("metadata write {offset}+{} fua {fua}", bytes.len())
                }
                Op::MetaFlush => "metadata flush".to_owned(),
            };
            format!("{n}: disk: {what}: {result:?}")
        });
        let through = self.plan.write_through;
        let external = self.plan.external;
        let node = &mut self.nodes[n];
        let mut done = DiskDone {
            op: OpId(number),
            result,
            zero: false,
            buf: None,
        };
        let meta = |result| Input::Meta {
            op: OpId(number),
            result,
        };
        let input = match op {
            Op::Read { first, count, buf } => {
                let content: Vec<Stamp> = node.disk.data()[first..first + count].to_vec();
                done.zero = result.is_ok() && content.iter().all(|&s| s == 0);
                match buf {
                    Some(buf) => {
                        node.bufs.insert(buf, content);
                    }
                    None => done.buf = Some(BufId(node.new_buf(content))),
                }
                Input::Disk(done)
            }
            Op::Digest { first, count } => {
                let all = result.map(|()| digests_of(&node.disk.data()[first..first + count]));
                Input::Digest {
                    op: OpId(number),
                    result: all,
                }
            }
            Op::Write {
                first,
                content,
                fua,
            } => {
                match result {
                    Ok(()) => node.disk.write(first, &content, fua || through),
                    // A failed write may have reached the disk in part.
                    Err(_) => {
                        let part = self.disk_rng.index(content.len() + 1);
                        node.disk.write(first, &content[..part], through);
                    }
                }
                Input::Disk(done)
            }
            Op::Flush => {
                match result {
                    Ok(()) if external => node.disk.flush_data(),
                    Ok(()) => node.disk.flush(),
                    Err(_) => node.disk.fail_flush(&mut self.disk_rng),
                }
                Input::Disk(done)
            }
            Op::MetaWrite { offset, bytes, fua } => {
                match result {
                    Ok(()) => node.disk.write_meta(offset, &bytes, fua || through),
                    Err(_) if self.disk_rng.per_mille(300) => {
                        node.disk.write_meta(offset, &bytes, false);
                    }
                    Err(_) => {}
                }
                meta(result)
            }
            Op::MetaFlush => {
                match result {
                    Ok(()) if external => node.disk.flush_meta(),
                    Ok(()) => node.disk.flush(),
                    Err(_) => node.disk.fail_flush(&mut self.disk_rng),
                }
                meta(result)
            }
        };
        self.feed(n, input);
    }

    pub(crate) fn measured(&mut self, n: usize, life: u64) {
        if self.nodes[n].life != life {
            return;
        }
        let (volume, meta) = (VOLUME, None);
        let disk = &self.nodes[n].disk;
        let disk = Ok(match self.plan.external {
            true => disk.data().len() as u64 * SECTOR,
            false => disk.disk_size(),
        });
        self.feed(n, Input::Measured { volume, disk, meta });
    }
}
