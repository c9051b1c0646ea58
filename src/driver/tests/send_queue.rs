//! Bytes leave in order, whatever a socket takes at a time, and buffers are held until they are sent.

use super::*;
use crate::driver::buffers::Class;
use crate::driver::ring::{Completion, Kind};
use crate::driver::slab::Key;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const TOKEN: Token = Token {
    kind: Kind::NbdSend,
    key: Key {
        slot: 0,
        generation: 1,
    },
};

struct Bench {
    ring: Ring,
    pool: Pool,
    queue: SendQueue,
    socket: OwnedFd,
    other: UnixStream,
}

fn bench() -> Bench {
    let (socket, other) = UnixStream::pair().expect("a pair");
    // SAFETY: no buffers are registered.
    let ring = unsafe { Ring::new(None) }.expect("a ring");
    let pool = Pool::new(0).expect("an arena");
    Bench {
        ring,
        pool,
        queue: SendQueue::default(),
        socket: socket.into(),
        other,
    }
}

impl Bench {
    fn completion(&mut self) -> Completion {
        self.ring
            .enter(true, Some(Duration::from_secs(5)))
            .expect("enter");
        let mut completions = Vec::new();
        self.ring.reap(&mut completions);
        assert_eq!(completions.len(), 1);
        completions[0]
    }
}

#[test]
fn order_and_holds() {
    let mut b = bench();
    let mut expected = Vec::new();
    for i in 0..700u32 {
        b.queue.push_head(&i.to_be_bytes());
        expected.extend_from_slice(&i.to_be_bytes());
        match i % 3 {
            0 => {
                let len = 5000;
                let buf = b.pool.alloc(Class::Client, len).expect("a buffer");
                b.pool.bytes_mut(buf, 0..len).fill(i as u8);
                b.queue.push_pool(buf, len);
                expected.resize(expected.len() + len, i as u8);
            }
            1 => {
                b.queue.push_bytes(vec![i as u8; 33]);
                expected.resize(expected.len() + 33, i as u8);
            }
            _ => {}
        }
    }
    assert_eq!(b.queue.left(), expected.len());
    assert_eq!(b.queue.messages(), 700);
    let start = |b: &mut Bench| {
        b.queue
            .start(&mut b.ring, &mut b.pool, &b.socket, TOKEN)
            .expect("sent")
    };
    // More than a socket takes: the rest of the batch is in flight until somebody reads, and what
    // comes meanwhile follows behind it.
    let mut sent = start(&mut b);
    assert!(sent > 0 && b.queue.is_flying());
    b.queue.push_head(b"late");
    expected.extend_from_slice(b"late");
    let mut other = b.other.try_clone().expect("clone");
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        other.read_to_end(&mut got).expect("read");
        got
    });
    while b.queue.left() > 0 {
        sent += start(&mut b);
        if !b.queue.is_flying() {
            continue;
        }
        let completion = b.completion();
        sent += b
            .queue
            .completed(&mut b.pool, completion.result)
            .expect("sent");
    }
    assert_eq!(sent, expected.len());
    assert_eq!(b.pool.used(), 0, "all buffers are free");
    assert_eq!(b.queue.messages(), 0);
    rustix::net::shutdown(&b.socket, rustix::net::Shutdown::Both).expect("shutdown");
    assert!(reader.join().expect("reader") == expected);
}

#[test]
fn a_broken_connection_frees_all() {
    let mut b = bench();
    for _ in 0..3 {
        let buf = b.pool.alloc(Class::Client, 1 << 20).expect("a buffer");
        b.queue.push_head(b"head");
        b.queue.push_pool(buf, 1 << 20);
        b.queue
            .start(&mut b.ring, &mut b.pool, &b.socket, TOKEN)
            .expect("nothing is broken yet");
    }
    // The first batch is on its way and stuck, the rest waits; nobody reads.
    b.queue.clear(&mut b.pool);
    assert!(b.queue.is_flying());
    assert_eq!(
        b.pool.used(),
        1 << 20,
        "only what the kernel has is still held"
    );
    rustix::net::shutdown(&b.socket, rustix::net::Shutdown::Both).expect("shutdown");
    let last = b.completion();
    let _ = b.queue.completed(&mut b.pool, last.result);
    assert_eq!(b.pool.used(), 0);
    assert_eq!(b.queue.left(), 0);
}

#[test]
fn what_the_socket_takes_leaves_at_once() {
    let mut b = bench();
    b.queue.push_head(b"head");
    let (ring, pool) = (&mut b.ring, &mut b.pool);
    let sent = b.queue.start(ring, pool, &b.socket, TOKEN);
    assert_eq!((sent, b.queue.is_flying()), (Ok(4), false));
    assert_eq!((b.ring.enters, b.ring.calls), (0, 1));
    let mut got = [0; 4];
    b.other.read_exact(&mut got).expect("four bytes");
    assert_eq!(&got, b"head");
}

#[test]
fn a_broken_socket_is_told_at_once_and_frees_all() {
    let mut b = bench();
    let buf = b.pool.alloc(Class::Client, 4096).expect("a buffer");
    b.queue.push_pool(buf, 4096);
    rustix::net::shutdown(&b.socket, rustix::net::Shutdown::Both).expect("shutdown");
    let (ring, pool) = (&mut b.ring, &mut b.pool);
    let sent = b.queue.start(ring, pool, &b.socket, TOKEN);
    assert_eq!(sent, Err(libc::EPIPE));
    assert_eq!((b.queue.left(), b.pool.used()), (0, 0));
}
