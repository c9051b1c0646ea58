//! One write through the engine: alone, and a round trip between two engines under A, B and C; writes
//! that the activity log names already, and writes scattered so widely that it never does. No disk
//! and no network: what is measured is the state machine, with every completion delivered at once.
//! Also prints how many metadata writes scattered writes cost.

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
/// Large enough that scattered writes hardly ever meet.
const LARGE: u64 = 100 << 30;

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
    size: u64,
    meta_writes: u64,
    flushes: u64,
}

impl Bench {
    fn new(nodes: u8, protocol: Protocol) -> Self {
        Self::of_size(nodes, protocol, DISK)
    }

    fn of_size(nodes: u8, protocol: Protocol, size: u64) -> Self {
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
            size,
            meta_writes: 0,
            flushes: 0,
        };
        let layout = Layout::external(size, None, 4096, 1).expect("a sane size");
        for id in 0..nodes {
            let mut disk = vec![0; layout.metadata_len() as usize];
            let params = create::CreateParams {
                layout: layout.clone(),
                resource: "r0",
                volume: V,
                node: NodeId(id),
                peers: &[NodeId(1 - id)],
                device_uuid: 1 + u64::from(id),
                block_size: 512,
                extent_size: 4 << 20,
            };
            create::create(params, &mut |offset, data: &[u8]| {
                disk[offset as usize..offset as usize + data.len()].copy_from_slice(data);
                Ok::<(), ()>(())
            })
            .expect("memory");
            let len = layout.metadata_len();
            let recovered = open::open(&mut Memory(disk), len, size, Placement::External);
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
        self.submit((self.next + 1) * 4096 % (32 << 20));
        self.answer(1);
    }

    /// So many writes at once, anywhere.
    fn scatter(&mut self, depth: u64) {
        for _ in 0..depth {
            // Knuth's multiplicative generator: good enough to be everywhere.
            let random = (self.next + 1).wrapping_mul(6_364_136_223_846_793_005) >> 20;
            self.submit(random % (self.size / 4096) * 4096);
        }
        self.answer(depth);
    }

    fn submit(&mut self, offset: u64) {
        self.next += 1;
        let request = ClientRequest {
            tag: ReqTag(self.next),
            volume: V,
            kind: RequestKind::Write,
            offset,
            len: 4096,
            fua: false,
            buf: Some(BufId(1)),
        };
        self.inputs.push_back((0, Input::Client(request)));
    }

    fn answer(&mut self, count: u64) {
        let before = self.answered;
        self.run();
        let status = || format!("{:?}", self.engines[0].status(self.now));
        assert_eq!(self.answered, before + count, "{}", status());
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
        if n == 0 {
            self.meta_writes += u64::from(matches!(output, Output::MetaWrite { .. }));
            self.flushes += u64::from(matches!(
                output,
                Output::MetaFlush { .. } | Output::DiskFlush { .. }
            ));
        }
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
    let mut alone = Bench::of_size(1, Protocol::C, LARGE);
    group.bench_function("4 KiB write, no peer, not in the activity log", |b| {
        b.iter(|| alone.scatter(1));
    });
    let mut pair = Bench::of_size(2, Protocol::C, LARGE);
    group.bench_function("4 KiB write, both engines, not in the activity log", |b| {
        b.iter(|| pair.scatter(1));
    });
    group.finish();
    metadata_writes();
}

/// What uniform random writes cost in metadata writes: the worst case of an activity log.
fn metadata_writes() {
    println!(
        "\n4 KiB writes anywhere on 100 GiB, al-extents 1237, in protocol C and without a peer:"
    );
    println!("  depth  metadata writes per write  flushes per write");
    for (nodes, name) in [(2, "pair"), (1, "alone")] {
        for depth in [1, 16, 64] {
            let mut bench = Bench::of_size(nodes, Protocol::C, LARGE);
            let count = 50_000 / depth;
            (bench.meta_writes, bench.flushes) = (0, 0);
            for _ in 0..count {
                bench.scatter(depth);
            }
            let per = |n: u64| n as f64 / (count * depth) as f64;
            let (writes, flushes) = (per(bench.meta_writes), per(bench.flushes));
            println!("  {depth:>5}  {writes:>25.3}  {flushes:>17.3}  {name}");
        }
    }
}

criterion_group!(benches, engine);
criterion_main!(benches);
