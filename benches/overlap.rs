//! The overlap lock at depth 64: ranges that do not touch, and ranges that all want the same block.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::collections::VecDeque;
use std::hint::black_box;
use twinblk_engine::overlap::{Acquired, LockId, Mode, OverlapLock};

fn overlap(c: &mut Criterion) {
    let mut group = c.benchmark_group("overlap lock");
    for (name, spread) in [("apart", 1u64 << 28), ("same block", 1)] {
        group.bench_with_input(
            BenchmarkId::new("acquire and release", name),
            &spread,
            |b, &spread| {
                let mut lock: OverlapLock<u64> = OverlapLock::default();
                let mut held: VecDeque<LockId> = VecDeque::new();
                let mut granted: Vec<(LockId, u64)> = Vec::new();
                let (mut token, mut x) = (0u64, 1u64);
                b.iter(|| {
                    x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let offset = (x >> 33) % spread * 4096;
                    token += 1;
                    match lock.acquire(black_box(offset), 4096, Mode::Exclusive, token) {
                        Acquired::Granted(id) => held.push_back(id),
                        Acquired::Waiting(_) => {}
                    }
                    if lock.held() + lock.waiting() >= 64
                        && let Some(id) = held.pop_front()
                    {
                        lock.release(id, &mut granted);
                        held.extend(granted.drain(..).map(|(id, _)| id));
                    }
                });
            },
        );
    }
    group.finish();
}

criterion_group!(benches, overlap);
criterion_main!(benches);
