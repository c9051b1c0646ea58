//! What an I/O costs in the steady state, counted: no allocation on either node, and few system
//! calls. Real loops, real sockets, real files.

use super::super::DriverOptions;
use super::client::{Client, READ, WRITE};
use super::counting::{COUNTED, during};
use super::kit::{Node, connect, create_disk, wait_in_sync};
use std::path::Path;
use twinblk_engine::config::{Options, Protocol};

const SIZE: u64 = 16 << 20;
/// Writes of an epoch; less than a round, so that what an epoch costs is seen in each.
const EPOCH: u32 = 64;
/// I/Os of one round; so few that it seldom takes a second, even where others keep the processors
/// busy: what the nodes tell each other by the clock (pings, views) may allocate.
const ROUND: u64 = 500;
/// Rounds of which one must do without an allocation: a queue may still grow to a length it never
/// had, but only a few times in its life.
const ROUNDS: usize = 40;
/// I/Os over which system calls are averaged.
const MANY: u64 = 6000;

/// System calls per write one at a time at most, because what is submitted and what is fetched are two calls
/// where a loop looks: one for each of its four waits.
const LOOKS: f64 = 4.0;

/// Keeps `depth` requests in flight until `count` are answered.
fn load(client: &mut Client, command: u16, depth: u64, count: u64, size: u64) {
    let data = [0x5a; 4096];
    let payload = if command == WRITE { &data[..] } else { &[] };
    let mut x = 7u64;
    let mut send = |client: &mut Client| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (x >> 20) % (size / 4096) * 4096;
        client.send(command, 0, at, 4096, payload);
    };
    for _ in 0..depth {
        send(client);
    }
    for answered in 1..=count {
        assert_eq!(client.answer().error, 0);
        if answered + depth <= count {
            send(client);
        }
    }
}

/// Two nodes named to be counted, in sync, the first one Primary.
fn pair(directory: &Path, options: &Options, poll_us: u64) -> (Node, Node) {
    let up = |id: u8| {
        let path = directory.join(format!("disk{id}"));
        create_disk(&path, SIZE, id);
        let driver = DriverOptions {
            poll_us,
            ..DriverOptions::default()
        };
        Node::driven(COUNTED, path, id, options.clone(), driver)
    };
    let (mut one, two) = (up(0), up(1));
    one.primary(true);
    two.wait_attached();
    connect(&one, &two);
    wait_in_sync(&one, &two);
    (one, two)
}

#[test]
fn no_io_allocates_in_the_steady_state() {
    for (place, protocol) in [
        ("/dev/shm", Protocol::C),
        ("/var/tmp", Protocol::C),
        ("/dev/shm", Protocol::A),
    ] {
        let Ok(directory) = tempfile::tempdir_in(place) else {
            continue;
        };
        let options = Options {
            protocol,
            max_epoch_size: EPOCH,
            ..Options::default()
        };
        let (one, two) = pair(directory.path(), &options, 100);
        let size = one.status().status.volumes[0].size;
        let mut client = one.client(true);
        for command in [WRITE, READ] {
            load(&mut client, command, 128, MANY, size);
            for depth in [1, 16, 64] {
                let mut found = String::new();
                let clean = (0..ROUNDS).any(|_| {
                    let (allocations, places) =
                        during(|| load(&mut client, command, depth, ROUND, size));
                    found = format!("{allocations} allocations, the first of them here:\n{places}");
                    allocations == 0
                });
                assert!(
                    clean,
                    "{place} {protocol:?}, command {command}, {depth} at once, {ROUND} of them: {found}"
                );
            }
        }
        drop(client);
        one.wait("no client", |s| s.status.open_clients.is_empty());
        one.down(false);
        two.down(false);
    }
}

/// Counted by the loops themselves, of both nodes: io_uring_enter, sends, and what is done inline. While they
/// look for what comes next they also give way to others, by the clock: that is printed, not bounded.
#[test]
fn a_write_costs_few_system_calls() {
    // (at once, most calls per write without those that an inline disk needs for itself)
    for (place, poll_us, looks) in [
        ("/dev/shm", 0, 0.0),
        ("/var/tmp", 0, 0.0),
        ("/dev/shm", 100, LOOKS),
        ("/var/tmp", 100, LOOKS),
    ] {
        let limits = [(1, 8.5 + looks), (16, 5.0), (64, 1.0)];
        let Ok(directory) = tempfile::tempdir_in(place) else {
            continue;
        };
        let (one, two) = pair(directory.path(), &Options::default(), poll_us);
        let size = one.status().status.volumes[0].size;
        let mut client = one.client(true);
        let calls = || {
            let drivers = [&one, &two].map(|node| node.status().driver);
            drivers.iter().fold((0, 0), |(calls, yields), driver| {
                (calls + driver.enters + driver.calls, yields + driver.yields)
            })
        };
        load(&mut client, WRITE, 64, MANY, size);
        let at_first = calls().1;
        for (depth, limit) in limits {
            let before = calls();
            load(&mut client, WRITE, depth, MANY, size);
            let after = calls();
            let per_write = |now: u64, before: u64| (now - before) as f64 / MANY as f64;
            let all = per_write(after.0, before.0);
            let yields = per_write(after.1, before.1);
            println!(
                "{place}, {depth} at once, poll-us {poll_us}: {all:.2} system calls per write, gave way \
                 {yields:.2} times"
            );
            let disks = if place == "/dev/shm" { 2.0 } else { 0.0 };
            assert!(
                all - disks <= limit,
                "{place}, {depth} at once: {all:.2} system calls per write"
            );
        }
        assert_eq!(
            calls().1 > at_first,
            poll_us > 0,
            "they look before they sleep"
        );
        drop(client);
        one.wait("no client", |s| s.status.open_clients.is_empty());
        one.down(false);
        two.down(false);
    }
}
