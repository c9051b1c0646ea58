//! One node alone: clients, their mistakes, and their sudden ends.

use super::client::*;
use super::kit::{Node, create_disk, open};
use crate::driver::mailbox::MAX_NBD_CONNECTIONS;
use std::io::{Read, Write};
use std::path::PathBuf;
use twinblk_engine::command::Command;
use twinblk_engine::config::Options;

const SIZE: u64 = 16 << 20;

fn places() -> Vec<tempfile::TempDir> {
    let places: [PathBuf; 2] = [std::env::temp_dir(), "/dev/shm".into()];
    places
        .iter()
        .filter_map(|place| tempfile::tempdir_in(place).ok())
        .collect()
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

/// The kernel sends what was under way again over a new connection: a first copy that comes later would undo
/// what was written since.
#[test]
fn nothing_of_a_connection_comes_after_its_end_was_told() {
    for directory in places() {
        let mut node = Node::fresh(directory.path(), 0, SIZE);
        node.primary(true);
        for round in 0..20 {
            let (kept, mut end) = tokio::sync::oneshot::channel();
            let mut old = node.client_kept(false, Some(kept));
            for _ in 0..100 {
                old.send(WRITE, 0, 0, 65536, &[1; 65536]);
            }
            assert_eq!(
                end.try_recv(),
                Err(tokio::sync::oneshot::error::TryRecvError::Empty)
            );
            let _ = old.stream.shutdown(std::net::Shutdown::Both);
            assert!(end.blocking_recv().is_err(), "nothing is sent over it");
            let mut new = node.client(false);
            new.write(0, &[2; 65536]);
            assert_eq!(new.call(FLUSH, 0, 0, 0, &[]).error, 0);
            // Whatever the loop still had to do is done before this.
            node.status();
            assert!(new.read(0, 65536) == [2; 65536], "round {round}");
        }
        node.down(true);
    }
}

#[test]
fn a_client_reads_what_it_wrote_even_after_down_and_up() {
    for directory in places() {
        let mut node = Node::fresh(directory.path(), 0, SIZE);
        node.primary(true);
        for structured in [false, true] {
            let mut client = node.client(structured);
            let data = pattern(1, 300_000 / 512 * 512);
            client.write(4096, &data);
            assert!(client.read(4096, data.len() as u32) == data);
            assert_eq!(client.call(WRITE, FUA, 0, 512, &pattern(2, 512)).error, 0);
            assert_eq!(client.call(FLUSH, 0, 0, 0, &[]).error, 0);
            assert_eq!(client.call(CACHE, 0, 0, 4096, &[]).error, 0);
            assert_eq!(client.call(TRIM, 0, 8192, 4096 + 512, &[]).error, 0);
            assert_eq!(client.read(8192, 4608), vec![0; 4608]);
            for flags in [0, NO_HOLE, FUA] {
                client.write(1 << 20, &data);
                let zeroes = client.call(WRITE_ZEROES, flags, (1 << 20) + 512, 1024, &[]);
                assert_eq!(zeroes.error, 0);
                let mut expected = data.clone();
                expected[512..1536].fill(0);
                assert!(client.read(1 << 20, data.len() as u32) == expected);
            }
            client.send(DISC, 0, 0, 0, &[]);
            let mut rest = Vec::new();
            client.stream.read_to_end(&mut rest).expect("closed");
            assert!(rest.is_empty());
        }
        node.wait("no client", |s| s.status.open_clients.is_empty());
        let path = node.down(false);
        let mut node = Node::up(path, 0, Options::default());
        node.primary(false);
        let mut client = node.client(true);
        assert_eq!(client.read(0, 512), pattern(2, 512));
        let status = node.status();
        assert_eq!(status.driver.nbd_connections, 1);
        drop(client);
        node.wait("no client", |s| {
            s.driver.nbd_connections == 0 && s.driver.buffers_used == 0
        });
        node.down(false);
    }
}

#[test]
fn many_requests_in_flight_on_many_connections() {
    for directory in places() {
        let mut node = Node::fresh(directory.path(), 0, SIZE);
        node.primary(true);
        let threads: Vec<_> = (0..4u64)
            .map(|n| {
                let mut client = node.client(n % 2 == 0);
                std::thread::spawn(move || {
                    let base = n * (3 << 20);
                    for round in 0..5 {
                        let sizes = [512, 4096, 65536, 200_704, 1 << 20];
                        let mut at = base;
                        let mut writes = Vec::new();
                        for i in 0..40 {
                            let len = sizes[(i + round) % 5];
                            if at + len as u64 > base + (3 << 20) {
                                break;
                            }
                            let data = pattern(at + round as u64, len);
                            client.send(WRITE, 0, at, len as u32, &data);
                            writes.push((at, data));
                            at += len as u64;
                        }
                        for _ in &writes {
                            assert_eq!(client.answer().error, 0);
                        }
                        let mut reads = std::collections::HashMap::new();
                        for (at, data) in writes {
                            let cookie = client.send(READ, 0, at, data.len() as u32, &[]);
                            reads.insert(cookie, data);
                        }
                        for _ in 0..reads.len() {
                            let answer = client.answer();
                            assert_eq!(answer.error, 0);
                            assert!(reads[&answer.cookie] == answer.data);
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("a client");
        }
        node.wait("nothing held", |s| s.driver.buffers_used == 0);
        let status = node.status().driver;
        assert!(status.requests > 400, "{status:?}");
        node.down(false);
    }
}

#[test]
fn wrong_requests_are_answered_and_the_connection_lives() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut node = Node::fresh(directory.path(), 0, SIZE);
    node.primary(true);
    for structured in [false, true] {
        let mut client = node.client(structured);
        client.write(0, &[7; 512]);
        let refused = [
            client.call(WRITE, 0, 1 << 40, 4096, &[1; 4096]),
            client.call(WRITE, 0, 100, 512, &[1; 512]),
            client.call(WRITE, 0, 0, 9 << 20, &vec![1; 9 << 20]),
            client.call(READ, 0, 1 << 40, 512, &[]),
            client.call(READ, 0, 0, 16 << 20, &[]),
            client.call(READ, 0, 0, 0, &[]),
            client.call(99, 0, 0, 512, &[]),
            client.call(TRIM, 0, u64::MAX - 511, 512, &[]),
        ];
        for (i, answer) in refused.iter().enumerate() {
            assert_ne!(answer.error, 0, "request {i}");
            assert_eq!(
                answer.text.is_empty(),
                !structured,
                "request {i}: {answer:?}"
            );
        }
        assert_eq!(client.read(0, 512), vec![7; 512]);
    }
    // What is not NBD ends the connection, and only it.
    let mut client = node.client(false);
    client.stream.write_all(&[0x55; 64]).expect("send");
    assert_eq!(client.stream.read(&mut [0; 16]).expect("closed"), 0);
    node.wait("no client", |s| s.driver.nbd_connections == 0);
    node.down(false);
}

#[test]
fn a_client_that_vanishes_or_does_not_read_harms_nobody() {
    for directory in places() {
        let mut node = Node::fresh(directory.path(), 0, SIZE);
        node.primary(true);
        for round in 0..8u8 {
            let mut client = node.client(round % 2 == 0);
            for i in 0..20 {
                client.send(WRITE, 0, i * 65536, 65536, &vec![round; 65536]);
                client.send(READ, 0, i * 65536, 65536, &[]);
            }
            // In the middle of a payload.
            let header = client.header(WRITE, 0, 0, 1 << 20);
            client.stream.write_all(&header).expect("send");
            client.stream.write_all(&[1; 1000]).expect("send");
            drop(client);
        }
        node.wait("nobody", |s| {
            s.driver.nbd_connections == 0 && s.driver.buffers_used == 0
        });
        // One who floods and never reads: bounded, and others are served meanwhile.
        let mut flood = node.client(false);
        flood.stream.set_nonblocking(true).expect("nonblocking");
        let mut sent = 0;
        for i in 0..2000u64 {
            let bytes = flood.header(READ, 0, i % 8 * (1 << 20), 1 << 20);
            match flood.stream.write(&bytes) {
                Ok(n) if n == bytes.len() => sent += 1,
                _ => break,
            }
        }
        assert!(sent > 10);
        let mut other = node.client(false);
        other.write(0, &[9; 4096]);
        assert_eq!(other.read(0, 4096), vec![9; 4096]);
        let used = node.status().driver;
        assert!(used.buffers_used <= used.buffers_total / 2);
        drop(flood);
        drop(other);
        node.wait("nobody", |s| {
            s.driver.nbd_connections == 0 && s.driver.buffers_used == 0
        });
        node.down(false);
    }
}

#[test]
fn block_status_tells_holes_and_dirt() {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let mut node = Node::fresh(directory.path(), 0, SIZE);
    node.primary(true);
    let mut client = node.client(true);
    client.write(1 << 20, &[1; 65536]);
    let answer = client.call(BLOCK_STATUS, 0, 0, 4 << 20, &[]);
    assert_eq!(answer.extents.len(), 2, "{answer:?}");
    let (context, allocation) = &answer.extents[0];
    assert_eq!(*context, 1);
    assert_eq!(allocation.iter().map(|e| e.0).sum::<u32>(), 4 << 20);
    assert!(allocation.contains(&(65536, 0)), "{allocation:?}");
    assert_eq!(allocation[0].1, 3);
    let one = client.call(BLOCK_STATUS, 8, 1 << 20, 4 << 20, &[]);
    assert_eq!(one.extents[0].1, [(65536, 0)]);
    drop(client);
    node.down(true);
}

#[test]
fn a_secondary_serves_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let node = Node::fresh(directory.path(), 0, SIZE);
    node.wait_attached();
    let mut client = node.client(false);
    assert_eq!(client.stream.read(&mut [0; 16]).expect("closed"), 0);
    node.down(false);
}

#[test]
fn down_with_force_ends_clients_and_frees_the_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk0");
    create_disk(&path, SIZE, 0);
    let mut node = Node::up(path.clone(), 0, Options::default());
    node.primary(true);
    let mut client = node.client(false);
    client.write(0, &[3; 4096]);
    let refusal = node
        .command(Command::Stop { force: false })
        .expect_err("in use");
    assert!(refusal.reason.contains("test"), "{refusal:?}");
    node.down(true);
    assert_eq!(client.stream.read(&mut [0; 16]).expect("closed"), 0);
    open(&path, 0).expect("unlocked");
}

#[test]
fn there_are_never_more_connections_than_may_be() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut node = Node::fresh(directory.path(), 0, SIZE);
    node.primary(true);
    let mut clients: Vec<_> = (0..MAX_NBD_CONNECTIONS)
        .map(|_| node.client(false))
        .collect();
    let mut rest = Vec::new();
    let end = node.client(false).stream.read_to_end(&mut rest);
    assert_eq!(end.expect("closed"), 0);
    clients.last_mut().expect("many").write(0, &[1; 512]);
    drop(clients);
    node.down(true);
}
