//! What every request crosses: NBD requests, frame headers, checksums, control messages, run-length
//! coded bitmaps.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use twinblk_protocol::bitmap_rle;
use twinblk_protocol::checksum::crc32c;
use twinblk_protocol::control::{DiskState, Message, Role};
use twinblk_protocol::frame::{Header, Kind};
use userspace_nbd::request::Request;

fn headers(c: &mut Criterion) {
    let mut group = c.benchmark_group("codec");
    let header = Header {
        volume: 0,
        payload_len: 4096,
        seq: 77,
        offset: 1 << 30,
        size: 4096,
        epoch: 5,
        payload_crc: 0xdead_beef,
        ..Header::new(Kind::Write)
    };
    group.bench_function("frame header, encode", |b| {
        b.iter(|| black_box(&header).encode())
    });
    let bytes = header.encode();
    group.bench_function("frame header, decode", |b| {
        b.iter(|| Header::decode(black_box(&bytes)))
    });

    let mut request = Vec::new();
    request.extend(0x2560_9513u32.to_be_bytes());
    request.extend([0, 0, 0, 1]);
    request.extend(9u64.to_be_bytes());
    request.extend((1u64 << 30).to_be_bytes());
    request.extend(4096u32.to_be_bytes());
    let request: [u8; 28] = request.try_into().expect("28 bytes");
    group.bench_function("NBD request, parse", |b| {
        b.iter(|| Request::parse(black_box(&request)))
    });

    let message = Message::State {
        role: Role::Primary,
        disks: vec![(0, DiskState::UpToDate)],
    };
    group.bench_function("control message, there and back", |b| {
        b.iter(|| Message::decode(&black_box(&message).encode()));
    });
    group.finish();
}

fn bulk(c: &mut Criterion) {
    let mut group = c.benchmark_group("bulk");
    for size in [4096usize, 1 << 20] {
        let data = vec![0x5a; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("CRC32C of {size} bytes"), |b| {
            b.iter(|| crc32c(black_box(&data)));
        });
    }
    // A bitmap of 16 GiB: long runs, and one with a bit here and there.
    let bits = 4u64 << 20;
    let runs = vec![[u64::MAX, 0, 0, 0]; (bits / 256) as usize].concat();
    let sparse: Vec<u64> = (0..bits / 64)
        .map(|i| u64::from(i % 97 == 0) << (i % 64))
        .collect();
    for (name, words) in [("runs", runs), ("sparse", sparse)] {
        group.throughput(Throughput::Bytes(bits / 8));
        group.bench_function(format!("bitmap run-length code, {name}"), |b| {
            b.iter(|| {
                let mut out = Vec::new();
                let covered = bitmap_rle::encode(&words, 0, bits, usize::MAX / 2, &mut out);
                let mut set = 0;
                bitmap_rle::decode(&out, covered, &mut |_, len| set += len).expect("its own code");
                set
            });
        });
    }
    group.finish();
}

criterion_group!(benches, headers, bulk);
criterion_main!(benches);
