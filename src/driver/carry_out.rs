//! Carries out what the engine wants, output by output, in order.

use super::block_status;
use super::buffers::Class;
use super::discard::ZeroPlan;
use super::disk::{Action, Disk, Job, Memory, Purpose, start};
use super::mailbox::FromLoop;
use super::metadata_io;
use super::open::measure;
use super::turn::{Turn, VolumeIo, WaitingRead};
use std::rc::Rc;
use twinblk_engine::ids::{OpId, VolumeId};
use twinblk_engine::input::{DiskDone, Input};
use twinblk_engine::output::Output;
use twinblk_engine::save_discarded::SaveDiscarded;
use userspace_nbd::block_status::MAX_EXTENTS;

impl Turn {
    /// Carries out one output. What is done at once becomes an input, not a call.
    pub(crate) fn carry_out(&mut self, output: Output) {
        match output {
            Output::DiskRead {
                op,
                volume,
                offset,
                len,
                buf: None,
            } => {
                self.waiting_reads.push_back(WaitingRead {
                    op,
                    volume,
                    offset,
                    len,
                    digest: false,
                });
                self.start_waiting_reads();
            }
            Output::DiskDigest {
                op,
                volume,
                offset,
                len,
            } => {
                self.waiting_reads.push_back(WaitingRead {
                    op,
                    volume,
                    offset,
                    len,
                    digest: true,
                });
                self.start_waiting_reads();
            }
            Output::DiskRead {
                op,
                volume,
                offset,
                len,
                buf: Some(buf),
            } => {
                self.core.pool.hold(buf);
                let action = Action::Read;
                self.data(op, volume, action, Memory::Pool(buf), offset, len as usize);
            }
            Output::DiskWrite {
                op,
                volume,
                offset,
                len,
                buf,
                fua,
            } => {
                self.core.pool.hold(buf);
                let action = Action::Write { fua };
                self.data(op, volume, action, Memory::Pool(buf), offset, len as usize);
            }
            Output::DiskZero {
                op,
                volume,
                offset,
                len,
                mode,
                fua,
            } => {
                let action = Action::Zero(ZeroPlan::new(offset, len, mode, fua));
                self.data(op, volume, action, Memory::None, offset, 0);
            }
            Output::DiskFlush { op, volume } => {
                self.data(op, volume, Action::Flush, Memory::None, 0, 0);
            }
            Output::MetaWrite {
                op,
                volume,
                offset,
                data,
                fua,
            } => match self.io(volume) {
                Some(io) => {
                    let disk = Rc::clone(&io.meta);
                    metadata_io::write(&mut self.core, &disk, op, offset, &data, fua);
                }
                None => self.no_such_metadata(op),
            },
            Output::MetaFlush { op, volume } => match self.io(volume) {
                Some(io) => {
                    let disk = Rc::clone(&io.meta);
                    metadata_io::flush(&mut self.core, &disk, op);
                }
                None => self.no_such_metadata(op),
            },
            Output::MeasureDisk { volume } => {
                let (disk, meta) = match self.io(volume) {
                    Some(io) => measure(io.data.target(), io.meta.target(), io.placement),
                    None => (Err(libc::ENXIO), None),
                };
                let measured = Input::Measured { volume, disk, meta };
                self.core.inputs.push_back(measured);
            }
            Output::Send {
                peer,
                channel,
                header,
                body,
            } => {
                self.peers
                    .send(&mut self.core, self.now, peer, channel, header, body);
            }
            Output::Reply { tag, result } => self.nbd.reply(&mut self.core, tag, result),
            Output::ReplyWith { tag, buf } => self.nbd.reply_with(&mut self.core, tag, buf),
            Output::CloseDisk { volume } => self.volumes.retain(|io| io.volume != volume),
            Output::AttachDisk { volume } => self.tell(FromLoop::AttachDisk(volume)),
            Output::ReleaseBuf(buf) => self.core.pool.release(buf),
            Output::CloseLink { peer, reason } => self.peers.close(self.now, peer, reason),
            Output::WantLink { peer, want, now } => {
                self.tell(FromLoop::WantLink { peer, want, now });
            }
            Output::CommandDone { id, result } => self.tell(FromLoop::CommandDone(id, result)),
            Output::Event(event) => self.tell(FromLoop::Event(event)),
            Output::Handler {
                id,
                kind,
                peer,
                volume,
            } => self.tell(FromLoop::Handler {
                id,
                kind,
                peer,
                volume,
            }),
            Output::CloseClients => self.nbd.close_all(&mut self.core),
            Output::SaveDiscarded(request) => self.save_discarded(request),
            Output::CancelSave { id } => self.tell(FromLoop::CancelSave(id)),
            Output::Stopped => {
                self.stopped = true;
                self.nbd.abort_all(&mut self.core);
                self.peers.close_all(self.now, "the resource goes down");
            }
        }
    }

    fn tell(&self, message: FromLoop) {
        // The daemon may be gone; the loop goes on serving.
        let _ = self.to_daemon.send(message);
    }

    fn save_discarded(&mut self, request: Box<SaveDiscarded>) {
        let copy = match self.io(request.volume) {
            Some(io) => rustix::io::fcntl_dupfd_cloexec(&io.data.target().file, 0),
            None => Err(rustix::io::Errno::NXIO),
        };
        match copy {
            Ok(disk) => self.tell(FromLoop::SaveDiscarded(request, disk)),
            Err(e) => {
                let (id, result) = (request.id, Err(format!("the disk cannot be read: {e}")));
                let saved = Input::DiscardedSaved { id, result };
                self.core.inputs.push_back(saved);
            }
        }
    }

    fn io(&self, volume: VolumeId) -> Option<&VolumeIo> {
        self.volumes.iter().find(|io| io.volume == volume)
    }

    /// Starts a job on a volume's data. `memory` comes with a hold for it.
    fn data(
        &mut self,
        op: OpId,
        volume: VolumeId,
        action: Action,
        memory: Memory,
        offset: u64,
        len: usize,
    ) {
        let disk = self.io(volume).map(|io| Rc::clone(&io.data));
        let purpose = Purpose::Data(op);
        self.job(disk, purpose, action, memory, offset, len);
    }

    fn job(
        &mut self,
        disk: Option<Rc<Disk>>,
        purpose: Purpose,
        action: Action,
        memory: Memory,
        offset: u64,
        len: usize,
    ) {
        let fits = match &memory {
            Memory::Pool(buf) => len <= self.core.pool.room(*buf),
            Memory::Own(_) | Memory::None => true,
        };
        match disk {
            Some(disk) if fits => {
                let job = Job {
                    disk,
                    purpose,
                    action,
                    memory,
                    offset,
                    len,
                    done: 0,
                    retries: 0,
                };
                start(&mut self.core, job);
            }
            _ => self.refused(purpose, memory),
        }
    }

    /// The engine asked for something that cannot be: it gets an error like from a broken disk.
    fn refused(&mut self, purpose: Purpose, memory: Memory) {
        if let Memory::Pool(buf) = memory {
            self.core.pool.release(buf);
        }
        let op = match purpose {
            Purpose::Digest(op) => {
                let result = Err(libc::EINVAL);
                return self.core.inputs.push_back(Input::Digest { op, result });
            }
            Purpose::Data(op) | Purpose::DataWithBuffer(op) | Purpose::Meta(op) => op,
        };
        let done = DiskDone {
            op,
            result: Err(libc::EINVAL),
            zero: false,
            buf: None,
        };
        self.core.inputs.push_back(Input::Disk(done));
    }

    fn no_such_metadata(&mut self, op: OpId) {
        self.core.inputs.push_back(Input::Meta {
            op,
            result: Err(libc::ENXIO),
        });
    }

    /// Starts reads that wait for a buffer, in order.
    pub(crate) fn start_waiting_reads(&mut self) {
        while let Some(read) = self.waiting_reads.front() {
            let len = read.len as usize;
            if len > self.core.pool.largest(Class::Resync) {
                let purpose = match read.digest {
                    true => Purpose::Digest(read.op),
                    false => Purpose::Data(read.op),
                };
                self.waiting_reads.pop_front();
                self.refused(purpose, Memory::None);
                continue;
            }
            let Some(buf) = self.core.pool.alloc(Class::Resync, len) else {
                return;
            };
            let Some(WaitingRead {
                op,
                volume,
                offset,
                digest,
                ..
            }) = self.waiting_reads.pop_front()
            else {
                return self.core.pool.release(buf);
            };
            let disk = self.io(volume).map(|io| Rc::clone(&io.data));
            let purpose = match digest {
                true => Purpose::Digest(op),
                false => Purpose::DataWithBuffer(op),
            };
            self.job(disk, purpose, Action::Read, Memory::Pool(buf), offset, len);
        }
    }

    /// Answers block status requests, which need disk and engine both.
    pub(crate) fn answer_block_status(&mut self) {
        while let Some((key, volume, ask, dialect)) = self.nbd.take_status() {
            let mut answer = Vec::new();
            if let Some(context) = dialect.allocation() {
                let mut extents = ask.extents();
                match self.io(volume) {
                    Some(io) => {
                        block_status::allocation(&io.data, ask.offset, ask.len, &mut extents);
                    }
                    None => {
                        extents.push(ask.len.into(), 0);
                    }
                }
                answer.push((context, extents));
            }
            if let Some(context) = dialect.dirty() {
                let mut extents = ask.extents();
                let len = ask.len.into();
                for (_, len, dirty) in
                    self.engine
                        .dirty_ranges(volume, ask.offset, len, MAX_EXTENTS)
                {
                    if !extents.push(len, u32::from(dirty)) {
                        break;
                    }
                }
                answer.push((context, extents));
            }
            self.nbd.answer_status(key, &ask, answer);
        }
    }
}
