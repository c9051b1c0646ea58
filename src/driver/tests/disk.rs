//! Both disk engines on real files: in memory (tmpfs) and on the file system of the temporary
//! directory.

use super::*;
use crate::driver::buffers::{Class, PAGE};
use crate::driver::probe;
use crate::driver::ring::{Completion, Kind};
use rustix::fs::{Mode, OFlags};
use std::time::Duration;

const SIZE: u64 = 4 << 20;

/// A core with one disk of each kind there is here: (name, disk, its directory).
pub(crate) struct Bench {
    pub(crate) core: Core,
    pub(crate) disks: Vec<(String, Rc<Disk>)>,
    _directories: Vec<tempfile::TempDir>,
}

pub(crate) fn bench() -> Bench {
    let pool = Pool::new(0).expect("an arena");
    // SAFETY: the pool is dropped after the ring has no operation left (the tests wait for all).
    let ring = unsafe { Ring::new(Some(pool.iovec())) }.expect("a ring");
    let core = Core {
        ring,
        pool,
        jobs: Slab::default(),
        inline: VecDeque::new(),
        inputs: VecDeque::new(),
    };
    let mut disks = Vec::new();
    let mut directories = Vec::new();
    for place in [std::env::temp_dir(), "/dev/shm".into()] {
        let Ok(directory) = tempfile::tempdir_in(&place) else {
            continue;
        };
        for engine in [Engine::Ring, Engine::Inline] {
            for direct in [OFlags::DIRECT, OFlags::empty()] {
                let name = format!("{engine:?} {direct:?} on {}", place.display());
                let path = directory.path().join(name.replace(['/', ' '], "_"));
                std::fs::write(&path, vec![0xa5; SIZE as usize]).expect("a file");
                let flags = OFlags::RDWR | direct;
                let Ok(file) = rustix::fs::open(&path, flags, Mode::empty()) else {
                    continue;
                };
                let facts = probe::facts(&file, Backing::File).expect("facts");
                assert_eq!(facts.size, SIZE);
                let fast_zero = probe::can_punch(&file, &facts);
                let target = Target {
                    file,
                    backing: Backing::File,
                    part: 0..SIZE,
                    unit: facts.unit as usize,
                    fast_zero,
                    grown_to: Cell::new(0),
                    zero_method: [Cell::new(0), Cell::new(0)],
                };
                disks.push((name, Rc::new(Disk::new(engine, target))));
            }
        }
        directories.push(directory);
    }
    Bench {
        core,
        disks,
        _directories: directories,
    }
}

/// Waits until the engine has an input.
fn wait(core: &mut Core) -> Input {
    loop {
        run_inline(core);
        if let Some(input) = core.inputs.pop_front() {
            return input;
        }
        core.ring
            .enter(true, Some(Duration::from_secs(20)))
            .expect("enter");
        let mut completions = Vec::new();
        core.ring.reap(&mut completions);
        assert!(!completions.is_empty(), "a job never ended");
        for Completion { token, result } in completions {
            assert_eq!(token.kind, Kind::Disk);
            disk_ring::completed(core, token.key, result);
        }
    }
}

fn run(
    core: &mut Core,
    disk: &Rc<Disk>,
    action: Action,
    memory: Memory,
    at: (u64, usize),
) -> DiskDone {
    let job = Job {
        disk: Rc::clone(disk),
        purpose: match (&action, &memory) {
            (Action::Read, _) => Purpose::DataWithBuffer(OpId(7)),
            _ => Purpose::Data(OpId(7)),
        },
        action,
        memory,
        offset: at.0,
        len: at.1,
        done: 0,
        retries: 0,
    };
    start(core, job);
    match wait(core) {
        Input::Disk(done) => {
            assert_eq!(done.op, OpId(7));
            done
        }
        other => panic!("{other:?}"),
    }
}

fn write(core: &mut Core, disk: &Rc<Disk>, offset: u64, data: &[u8], fua: bool) -> Result<(), i32> {
    let buf = core
        .pool
        .alloc(Class::Client, data.len())
        .expect("a buffer");
    core.pool
        .bytes_mut(buf, 0..data.len())
        .copy_from_slice(data);
    let action = Action::Write { fua };
    run(core, disk, action, Memory::Pool(buf), (offset, data.len())).result
}

fn read(core: &mut Core, disk: &Rc<Disk>, offset: u64, len: usize) -> (Vec<u8>, bool) {
    let buf = core.pool.alloc(Class::Resync, len).expect("a buffer");
    let done = run(core, disk, Action::Read, Memory::Pool(buf), (offset, len));
    assert_eq!((done.result, done.buf), (Ok(()), Some(buf)));
    let data = core.pool.bytes(buf, len).to_vec();
    core.pool.release(buf);
    (data, done.zero)
}

fn zero(
    core: &mut Core,
    disk: &Rc<Disk>,
    range: Range<u64>,
    mode: ZeroMode,
    fua: bool,
) -> Result<(), i32> {
    let len = range.end - range.start;
    let action = Action::Zero(ZeroPlan::new(range.start, len, mode, fua));
    run(core, disk, action, Memory::None, (range.start, 0)).result
}

#[test]
fn what_is_written_is_read() {
    let mut bench = bench();
    assert!(bench.disks.len() >= 4);
    let core = &mut bench.core;
    for (name, disk) in &bench.disks {
        for (i, (offset, len)) in [(0, 4096), (512, 512), (8192, 1 << 20), (SIZE - 4096, 4096)]
            .into_iter()
            .enumerate()
        {
            let data: Vec<u8> = (0..len).map(|b: usize| (b * 7 + i) as u8).collect();
            assert_eq!(
                write(core, disk, offset, &data, i % 2 == 0),
                Ok(()),
                "{name}"
            );
            assert_eq!(read(core, disk, offset, len), (data, false), "{name}");
        }
        let flush = run(core, disk, Action::Flush, Memory::None, (0, 0));
        assert_eq!(flush.result, Ok(()), "{name}");
    }
    assert_eq!(core.pool.used(), 0);
    assert!(core.jobs.is_empty());
}

#[test]
fn zeroed_ranges_read_back_as_zeroes_to_the_byte() {
    let mut bench = bench();
    let core = &mut bench.core;
    for (name, disk) in &bench.disks {
        for mode in [ZeroMode::Punch, ZeroMode::Allocate] {
            for range in [
                0..4096,
                512..1024,
                4608..9728,
                100_352..1_500_160,
                SIZE - 512..SIZE,
            ] {
                let all = vec![0x5a; SIZE as usize];
                for at in (0..SIZE as usize).step_by(1 << 20) {
                    let result = write(core, disk, at as u64, &all[at..at + (1 << 20)], false);
                    assert_eq!(result, Ok(()), "{name}");
                }
                assert_eq!(
                    zero(core, disk, range.clone(), mode, true),
                    Ok(()),
                    "{name} {mode:?}"
                );
                for at in (0..SIZE).step_by(1 << 20) {
                    let (data, _) = read(core, disk, at, 1 << 20);
                    for (i, byte) in (at..).zip(data) {
                        let expected = if range.contains(&i) { 0 } else { 0x5a };
                        assert_eq!(byte, expected, "{name} {mode:?} {range:?} at {i}");
                    }
                }
            }
        }
        assert_eq!(
            zero(core, disk, 0..SIZE, ZeroMode::Punch, false),
            Ok(()),
            "{name}"
        );
        assert!(
            read(core, disk, 1 << 20, 1 << 20).1,
            "{name}: zero blocks are noticed"
        );
        assert_eq!(
            zero(core, disk, 0..0, ZeroMode::Punch, false),
            Ok(()),
            "{name}"
        );
    }
}

#[test]
fn where_nothing_else_works_zeroes_are_written() {
    let mut bench = bench();
    let core = &mut bench.core;
    for (name, disk) in &bench.disks {
        for method in &disk.target().zero_method {
            method.set(9);
        }
        assert_eq!(
            zero(core, disk, 512..3_000_320, ZeroMode::Punch, true),
            Ok(()),
            "{name}"
        );
        let (data, _) = read(core, disk, 0, SIZE as usize);
        let zeroes = data.iter().filter(|&&byte| byte == 0).count();
        assert_eq!(zeroes, 3_000_320 - 512, "{name}");
        assert_eq!((data[511], data[3_000_320]), (0xa5, 0xa5), "{name}");
    }
}

#[test]
fn nothing_reaches_outside_its_part() {
    let mut bench = bench();
    let core = &mut bench.core;
    for (_, disk) in &bench.disks {
        let data = vec![1; 4096];
        for offset in [SIZE, SIZE - 2048, u64::MAX - 4095] {
            assert_eq!(write(core, disk, offset, &data, false), Err(libc::EINVAL));
        }
        let mode = ZeroMode::Punch;
        assert_eq!(
            zero(core, disk, SIZE - 512..SIZE + 512, mode, false),
            Err(libc::EINVAL)
        );
        let plan = ZeroPlan::new(4096, u64::MAX, mode, false);
        let done = run(core, disk, Action::Zero(plan), Memory::None, (4096, 0));
        assert_eq!(done.result, Err(libc::EINVAL));
    }
    assert_eq!(core.pool.used(), 0);
}

#[test]
fn metadata_have_their_own_memory() {
    let mut bench = bench();
    let core = &mut bench.core;
    for (name, disk) in &bench.disks {
        let blocks = vec![0x77; 3 * PAGE];
        crate::driver::metadata_io::write(core, disk, OpId(9), 8192, &blocks, true);
        assert!(
            matches!(
                wait(core),
                Input::Meta {
                    op: OpId(9),
                    result: Ok(())
                }
            ),
            "{name}"
        );
        crate::driver::metadata_io::flush(core, disk, OpId(10));
        assert!(
            matches!(
                wait(core),
                Input::Meta {
                    op: OpId(10),
                    result: Ok(())
                }
            ),
            "{name}"
        );
        assert_eq!(read(core, disk, 8192, 3 * PAGE).0, blocks, "{name}");
        crate::driver::metadata_io::write(core, disk, OpId(11), SIZE, &blocks, true);
        assert!(matches!(
            wait(core),
            Input::Meta {
                op: OpId(11),
                result: Err(libc::EINVAL)
            }
        ));
    }
}

#[test]
fn short_counts_go_on_where_whole_units_end() {
    let bench = bench();
    let (_, disk) = &bench.disks[0];
    let unit = disk.target().unit;
    let mut job = Job::flush(disk, Purpose::Data(OpId(1)));
    job.len = 8 * 4096;
    assert_eq!(job.advance(4096 + 100), Next::Again);
    assert_eq!(job.done, if unit == 1 { 4196 } else { 4096 });
    job.done = 4096;
    assert_eq!(job.advance(-i64::from(libc::EINTR)), Next::Again);
    assert_eq!(job.done, 4096);
    assert_eq!(job.advance(7 * 4096), Next::Ended(Ok(())));
    job.done = 0;
    assert_eq!(
        job.advance(0),
        Next::Ended(Err(libc::EIO)),
        "no progress is an error"
    );
    assert_eq!(
        job.advance(-i64::from(libc::ENOSPC)),
        Next::Ended(Err(libc::ENOSPC))
    );
    for _ in 0..100 {
        let next = job.failed(-i64::from(libc::EAGAIN));
        assert!(matches!(next, Next::Again), "{next:?}");
    }
    assert_eq!(
        job.failed(-i64::from(libc::EAGAIN)),
        Next::Ended(Err(libc::EAGAIN))
    );
}

#[test]
fn zeroes_are_recognised() {
    for len in [0, 1, 127, 128, 4096, 4097] {
        let mut data = vec![0; len];
        assert!(is_zero(&data));
        for at in [0, len / 2, len.saturating_sub(1)] {
            if at < len {
                data[at] = 1;
                assert!(!is_zero(&data), "{len} {at}");
                data[at] = 0;
            }
        }
    }
}
