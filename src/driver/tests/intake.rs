//! Bytes arrive whole, however they are cut: small ones in the staging area, payloads in buffers.

use super::*;
use crate::driver::buffers::Class;
use crate::driver::ring::{Completion, Kind};
use crate::driver::slab::Key;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const TOKEN: Token = Token {
    kind: Kind::NbdRecv,
    key: Key {
        slot: 0,
        generation: 1,
    },
};

struct Bench {
    ring: Ring,
    pool: Pool,
    intake: Intake,
    socket: OwnedFd,
    other: UnixStream,
}

fn bench(initial: &[u8]) -> Bench {
    let (socket, other) = UnixStream::pair().expect("a pair");
    // SAFETY: no buffers are registered.
    let ring = unsafe { Ring::new(None) }.expect("a ring");
    let pool = Pool::new(0).expect("an arena");
    Bench {
        ring,
        pool,
        intake: Intake::new(4096, initial),
        socket: socket.into(),
        other,
    }
}

impl Bench {
    fn more(&mut self) -> Result<usize, i32> {
        self.intake
            .start(&mut self.ring, &self.pool, &self.socket, TOKEN);
        assert!(self.intake.is_receiving());
        self.ring
            .enter(true, Some(Duration::from_secs(5)))
            .expect("enter");
        let mut completions = Vec::new();
        self.ring.reap(&mut completions);
        let &[Completion { result, .. }] = &completions[..] else {
            panic!("{completions:?}")
        };
        self.intake.completed(result)
    }
}

#[test]
fn payloads_go_straight_into_their_buffer() {
    let mut b = bench(b"HEAD");
    let payload: Vec<u8> = (0..100_000u32).map(|i| (i / 3) as u8).collect();
    let mut other = b.other.try_clone().expect("clone");
    let sent = payload.clone();
    let writer = std::thread::spawn(move || {
        for piece in sent.chunks(777) {
            other.write_all(piece).expect("write");
        }
        other.write_all(b"NEXT").expect("write");
    });
    assert_eq!(b.intake.bytes(), b"HEAD");
    b.intake.consume(4);
    let buf = b.pool.alloc(Class::Peer, payload.len()).expect("a buffer");
    b.intake.receive_into(&mut b.pool, buf, payload.len());
    while b.intake.received().is_none() {
        assert!(b.intake.awaits_payload());
        assert!(b.more().expect("bytes") > 0);
    }
    assert!(b.pool.bytes(buf, payload.len()) == payload);
    while b.intake.bytes().len() < 4 {
        assert!(b.more().expect("bytes") > 0);
    }
    assert_eq!(b.intake.bytes(), b"NEXT");
    writer.join().expect("writer");
    b.pool.release(buf);
}

#[test]
fn skipped_bytes_do_not_come() {
    let mut b = bench(b"");
    let mut other = b.other.try_clone().expect("clone");
    let writer = std::thread::spawn(move || {
        other.write_all(&[1; 20_000]).expect("write");
        other.write_all(b"after").expect("write");
    });
    b.intake.skip(20_000);
    while !b.intake.skipped() || b.intake.bytes().len() < 5 {
        assert!(b.more().expect("bytes") > 0);
    }
    assert_eq!(b.intake.bytes(), b"after");
    writer.join().expect("writer");
}

#[test]
fn the_end_is_noticed_and_buffers_come_back() {
    let mut b = bench(b"");
    b.other.write_all(b"part of it").expect("write");
    rustix::net::shutdown(&b.other, rustix::net::Shutdown::Write).expect("shutdown");
    let buf = b.pool.alloc(Class::Peer, 4096).expect("a buffer");
    b.intake.receive_into(&mut b.pool, buf, 4096);
    assert_eq!(b.more(), Ok(10));
    assert!(b.intake.received().is_none());
    assert_eq!(b.more(), Ok(0));
    assert!(b.intake.is_eof());
    b.intake.clear(&mut b.pool);
    assert_eq!(b.pool.used(), 0);
}
