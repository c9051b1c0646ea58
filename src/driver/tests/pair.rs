//! Two nodes over TCP: resync, mirroring, broken links.

use super::client::*;
use super::kit::{Node, connect, wait_in_sync};
use std::net::Shutdown;
use std::path::Path;
use twinblk_engine::config::{Options, Protocol};
use twinblk_engine::event::ConnState;

const SIZE: u64 = 16 << 20;

fn data(path: &Path, len: u64) -> Vec<u8> {
    let mut bytes = std::fs::read(path).expect("a disk");
    bytes.truncate(len as usize);
    bytes
}

/// Two nodes, in sync, the first one Primary.
fn pair(directory: &Path, options: &Options) -> (Node, Node) {
    let one = Node::fresh(directory, 0, SIZE).down(false);
    let two = Node::fresh(directory, 1, SIZE).down(false);
    let mut one = Node::up(one, 0, options.clone());
    let two = Node::up(two, 1, options.clone());
    one.primary(true);
    two.wait_attached();
    connect(&one, &two);
    wait_in_sync(&one, &two);
    (one, two)
}

#[test]
fn writes_are_mirrored_under_every_protocol() {
    for (place, protocol) in [
        ("/dev/shm", Protocol::C),
        ("/var/tmp", Protocol::C),
        ("/dev/shm", Protocol::B),
        ("/var/tmp", Protocol::A),
    ] {
        let Ok(directory) = tempfile::tempdir_in(place) else {
            continue;
        };
        let options = Options {
            protocol,
            ..Options::default()
        };
        let (one, two) = pair(directory.path(), &options);
        let size = one.status().status.volumes[0].size;
        let mut client = one.client(true);
        let mut model = vec![0u8; size as usize];
        let mut x = 1u64;
        for i in 0..400u64 {
            x = x
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let len = [512, 4096, 65536, 262_144][(x >> 40) as usize % 4];
            let at = (x >> 20) % ((size - len) / 512) * 512;
            let range = at as usize..(at + len) as usize;
            match i % 8 {
                6 => {
                    client.send(TRIM, 0, at, len as u32, &[]);
                    model[range].fill(0);
                }
                7 => {
                    client.send(FLUSH, 0, 0, 0, &[]);
                }
                _ => {
                    let bytes = vec![x as u8 | 1; len as usize];
                    client.send(WRITE, u16::from(i % 5 == 0), at, len as u32, &bytes);
                    model[range].copy_from_slice(&bytes);
                }
            }
            assert_eq!(client.answer().error, 0);
        }
        assert_eq!(client.call(FLUSH, 0, 0, 0, &[]).error, 0);
        client.send(DISC, 0, 0, 0, &[]);
        one.wait("all confirmed", |s| s.status.peers[0].transfer_log == 0);
        one.wait("no client", |s| {
            s.status.open_clients.is_empty() && s.driver.buffers_used == 0
        });
        two.wait("no buffers", |s| s.driver.buffers_used == 0);
        let (one, two) = (one.down(false), two.down(false));
        assert!(
            data(&one, size) == model,
            "{place} {protocol:?}: the local copy"
        );
        assert!(
            data(&two, size) == model,
            "{place} {protocol:?}: the mirror"
        );
    }
}

#[test]
fn a_full_resync_copies_everything() {
    for place in ["/dev/shm", "/var/tmp"] {
        let Ok(directory) = tempfile::tempdir_in(place) else {
            continue;
        };
        let mut one = Node::fresh(directory.path(), 0, SIZE);
        let two = Node::fresh(directory.path(), 1, SIZE);
        one.primary(true);
        let size = one.status().status.volumes[0].size;
        let mut client = one.client(false);
        for at in (0..size / (1 << 20)).filter(|mib| mib % 3 != 1) {
            client.write(at << 20, &vec![at as u8 + 1; 1 << 20]);
        }
        two.wait_attached();
        connect(&one, &two);
        // The application goes on writing meanwhile.
        for i in 0..200u64 {
            client.write(i * 7919 % (size / 4096) * 4096, &[i as u8; 4096]);
        }
        wait_in_sync(&one, &two);
        client.send(DISC, 0, 0, 0, &[]);
        one.wait("no client", |s| s.status.open_clients.is_empty());
        let (one, two) = (one.down(false), two.down(false));
        assert!(data(&one, size) == data(&two, size), "{place}");
    }
}

#[test]
fn broken_links_lose_nothing() {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let options = Options::default();
    let (one, two) = pair(directory.path(), &options);
    let size = one.status().status.volumes[0].size;
    let mut sockets = connect(&one, &two);
    let mut client = one.client(false);
    for round in 0..12u64 {
        for i in 0..16 {
            let at = (round * 31 + i) * 65536 % (size / 65536 * 65536);
            client.send(WRITE, 0, at, 65536, &vec![(round * 16 + i) as u8; 65536]);
        }
        match round % 3 {
            0 => sockets[0].shutdown(Shutdown::Both).expect("cut"),
            1 => sockets[1].shutdown(Shutdown::Both).expect("cut"),
            // A new link while the old one lives.
            _ => {}
        }
        for _ in 0..16 {
            assert_eq!(client.answer().error, 0);
        }
        if round % 3 != 2 {
            for node in [&one, &two] {
                node.wait("it is noticed", |s| {
                    s.status.peers[0].connection != ConnState::Connected
                });
            }
        }
        sockets = connect(&one, &two);
        client.write(0, &[round as u8; 512]);
        wait_in_sync(&one, &two);
    }
    client.send(DISC, 0, 0, 0, &[]);
    one.wait("no client", |s| s.status.open_clients.is_empty());
    let (one, two) = (one.down(false), two.down(false));
    assert!(data(&one, size) == data(&two, size));
}
