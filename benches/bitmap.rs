//! The bitmap of a 1 TiB volume (4 KiB per bit): marking, clearing, finding the next run to resync.

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use twinblk_engine::bitmap::Bitmap;

const SIZE: u64 = 1 << 40;

fn bitmap(c: &mut Criterion) {
    let mut group = c.benchmark_group("bitmap");
    let mut map = Bitmap::new(SIZE, 4096);
    let mut at = 0u64;
    group.bench_function("mark and clear 4 KiB", |b| {
        b.iter(|| {
            at = at
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1 << 12)
                % (SIZE - 4096);
            map.set_bytes(black_box(at), 4096);
            map.clear_bytes(black_box(at), 4096);
        });
    });
    group.bench_function("mark and clear 64 MiB", |b| {
        b.iter(|| {
            map.set_bytes(black_box(1 << 30), 64 << 20);
            map.clear_bytes(black_box(1 << 30), 64 << 20);
        });
    });
    map.set_bytes(SIZE - 4096, 4096);
    group.bench_function("find the only marked block of 1 TiB", |b| {
        b.iter(|| map.next_run(black_box(0), 256));
    });
    for block in (0..1u64 << 20).step_by(16) {
        map.set_bytes(block * 4096, 8192);
    }
    let mut from = 0;
    group.bench_function("next run of many", |b| {
        b.iter(|| {
            let (first, len) = map.next_run(black_box(from), 256).unwrap_or((0, 0));
            from = (first + len) % (1 << 20);
        });
    });
    group.finish();
}

criterion_group!(benches, bitmap);
criterion_main!(benches);
