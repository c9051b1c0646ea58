//! One write through the engine: alone, and a round trip between two engines under A, B and C. No disk
//! and no network: what is measured is the state machine, with every completion delivered at once.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::collections::VecDeque;
use twinblk_engine::command::Command;
use twinblk_engine::config::{NodeConfig, Options, ResourceConfig, VolumeConfig};
use twinblk_engine::event::ReplState;
use twinblk_engine::ids::{BufId, CommandId, NodeId, ReqTag, VolumeId};
use twinblk_engine::input::{Body, ClientRequest, DiskDone, Input, RequestKind};
use twinblk_engine::metadata::layout::{Layout, Placement};
use twinblk_engine::metadata::open::{ReadAt, ReadError};
use twinblk_engine::metadata::{create, open};
use twinblk_engine::output::{Channel, Output, SendBody};
use twinblk_engine::resource::Resource;
use twinblk_engine::time::{Duration, Instant};
use twinblk_protocol::control::{Message, Protocol};
use twinblk_protocol::frame::Kind;

const V: VolumeId = VolumeId(0);
const DISK: u64 = 64 << 20;

struct Memory(Vec<u8>);

impl ReadAt for Memory {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let at = offset as usize;
        buf.copy_from_slice(&self.0[at..at + buf.len()]);
        Ok(())
    }
}

/// One or two engines whose every wish is granted at once.
struct Bench {
    engines: Vec<Resource>,
    inputs: VecDeque<(usize, Input)>,
    out: Vec<Output>,
    now: Instant,
    sent: [u64; 2],
    linked: bool,
    answered: u64,
    next: u64,
}

impl Bench {
    fn new(nodes: u8, protocol: Protocol) -> Self {
        let node = |id: u8| NodeConfig {
            id: NodeId(id),
            name: format!("node{id}"),
        };
        let mut bench = Self {
            engines: Vec::new(),
            inputs: VecDeque::new(),
            out: Vec::new(),
            now: Instant(1),
            sent: [0; 2],
            linked: false,
            answered: 0,
            next: 0,
        };
        let layout = Layout::internal(DISK, 4096, 1).expect("a sane size");
        for id in 0..nodes {
            let mut disk = vec![0; DISK as usize];
            let params = create::CreateParams {
                layout: layout.clone(),
                resource: "r0",
                volume: V,
                node: NodeId(id),
                peers: &[NodeId(1 - id)],
                device_uuid: 1 + u64::from(id),
                block_size: 512,
            };
            create::create(params, &mut |offset, data: &[u8]| {
                disk[offset as usize..offset as usize + data.len()].copy_from_slice(data);
                Ok::<(), ()>(())
            })
            .expect("memory");
            let recovered = open::open(&mut Memory(disk), DISK, DISK, Placement::Internal);
            bench.engines.push(Resource::new(ResourceConfig {
                name: "r0".into(),
                me: node(id),
                peers: vec![node(1 - id)],
                volumes: vec![VolumeConfig {
                    volume: V,
                    block_size: 512,
                }],
                options: Options {
                    protocol,
                    ..Options::default()
                },
                incarnation: 1 + u64::from(id),
                seed: 7,
            }));
            bench.inputs.push_back((
                usize::from(id),
                Input::Attached {
                    volume: V,
                    recovered: Box::new(recovered.expect("its own metadata")),
                    no_volatile_cache: false,
                },
            ));
        }
        bench.run();
        if nodes == 2 {
            bench.link();
            bench.order(Command::NewCurrentUuid { clear_bitmap: true });
            // That made them negotiate anew.
            bench.unlink();
            bench.link();
            bench.order(Command::Primary { force: false });
            let status = bench.engines[0].status(bench.now);
            let peer = &status.peers[0];
            assert_eq!(
                peer.volumes[0].replication,
                ReplState::Established,
                "{status:?}"
            );
        } else {
            bench.order(Command::Primary { force: true });
        }
        // The first write may start a generation.
        bench.write();
        bench
    }

    fn link(&mut self) {
        (self.linked, self.sent) = (true, [0; 2]);
        for (n, peer) in [(0, 1), (1, 0)] {
            self.inputs
                .push_back((n, Input::LinkUp { peer: NodeId(peer) }));
        }
        self.run();
    }

    fn unlink(&mut self) {
        self.linked = false;
        for (n, peer) in [(0, 1), (1, 0)] {
            let down = Input::LinkDown {
                peer: NodeId(peer),
                reason: "closed".into(),
            };
            self.inputs.push_back((n, down));
        }
        self.run();
    }

    fn order(&mut self, command: Command) {
        self.inputs.push_back((
            0,
            Input::Command {
                id: CommandId(1),
                command,
            },
        ));
        self.run();
    }

    /// A write of 4 KiB, until it is answered and nothing is left to do.
    fn write(&mut self) {
        self.next += 1;
        let before = self.answered;
        let request = ClientRequest {
            tag: ReqTag(self.next),
            volume: V,
            kind: RequestKind::Write,
            offset: self.next * 4096 % (32 << 20),
            len: 4096,
            fua: false,
            buf: Some(BufId(1)),
        };
        self.inputs.push_back((0, Input::Client(request)));
        self.run();
        let status = || format!("{:?}", self.engines[0].status(self.now));
        assert_eq!(self.answered, before + 1, "{}", status());
    }

    fn run(&mut self) {
        while let Some((n, input)) = self.inputs.pop_front() {
            self.now = self.now + Duration::from_micros(1);
            let mut out = std::mem::take(&mut self.out);
            self.engines[n].handle(self.now, input, &mut out);
            for output in out.drain(..) {
                self.carry_out(n, output);
            }
            self.out = out;
        }
    }

    fn carry_out(&mut self, n: usize, output: Output) {
        let done = match output {
            Output::DiskRead { op, buf, .. } => Input::Disk(DiskDone {
                op,
                result: Ok(()),
                zero: true,
                buf: buf.is_none().then_some(BufId(1)),
            }),
            Output::DiskWrite { op, .. }
            | Output::DiskZero { op, .. }
            | Output::DiskFlush { op, .. } => Input::Disk(DiskDone {
                op,
                result: Ok(()),
                zero: false,
                buf: None,
            }),
            Output::MetaWrite { op, .. } | Output::MetaFlush { op, .. } => {
                Input::Meta { op, result: Ok(()) }
            }
            Output::Send {
                channel,
                header,
                body,
                ..
            } if self.linked => {
                let len = match &body {
                    SendBody::None => 0,
                    SendBody::Buf { len, .. } => u64::from(*len),
                    SendBody::Bytes(bytes) => bytes.len() as u64,
                };
                let body = match body {
                    SendBody::Buf { .. } => Body::Buf(BufId(1)),
                    SendBody::None => Body::None,
                    SendBody::Bytes(bytes) if header.kind == Kind::Message => {
                        Body::Message(Message::decode(&bytes).expect("its own encoding"))
                    }
                    SendBody::Bytes(bytes) => Body::Bytes(bytes.into_boxed_slice()),
                };
                let (me, peer) = (NodeId(n as u8), NodeId(1 - n as u8));
                if channel == Channel::Data {
                    self.sent[n] += 64 + len;
                    let sent = self.sent[n];
                    self.inputs
                        .push_back((n, Input::SendProgress { peer, sent }));
                }
                let frame = Input::Frame {
                    peer: me,
                    header,
                    body,
                };
                self.inputs.push_back((1 - n, frame));
                return;
            }
            Output::Reply { result, .. } => {
                result.expect("a write succeeds");
                self.answered += 1;
                return;
            }
            Output::CommandDone { result, .. } => {
                result.expect("the order is carried out");
                return;
            }
            _ => return,
        };
        self.inputs.push_back((n, done));
    }
}

fn engine(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine");
    let mut alone = Bench::new(1, Protocol::C);
    group.bench_function("4 KiB write, no peer", |b| b.iter(|| alone.write()));
    for protocol in [Protocol::A, Protocol::B, Protocol::C] {
        let mut pair = Bench::new(2, protocol);
        let id = BenchmarkId::new("4 KiB write, both engines", format!("{protocol:?}"));
        group.bench_function(id, |b| b.iter(|| pair.write()));
    }
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
