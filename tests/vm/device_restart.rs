//! The daemon ends, in every way, under a kernel device that is in use. Invariants: while it is away I/O
//! waits; the next daemon goes on without an error for the file system, with everything that was promised;
//! never with other data; and nobody waits for ever when there is no next daemon.

use crate::device::{DEVICE, device};
use crate::harness::seeds::Rng;
use crate::harness::wait_for;
use crate::machine::Machine;
use crate::pair::{Pair, Setup};
use crate::power_cut::number;
use std::time::{Duration, Instant};

/// Mounts the device of alpha, with a file system on it.
pub(crate) fn mounted(setup: Setup) -> Pair {
    let mut pair = Pair::both_secondary(40 << 20, setup);
    for machine in &mut pair.machines {
        machine.ok("modprobe nbd");
    }
    pair.machines[0].ok("twinblk primary r0
        mke2fs -q -t ext4 -E nodiscard /dev/nbd0 && mount -t ext4 -o errors=panic /dev/nbd0 /mnt");
    pair
}

/// Writes files with fsync, one after the other, and notes what is safe, and the longest time one took; any
/// error ends it.
pub(crate) const LOAD: &str = "(longest=0 n=0
    while [ ! -e /run/enough ]; do
        n=$((n + 1))
        read before rest < /proc/uptime
        head -c $((n * 7919 % 65536 + 1)) /dev/urandom > /run/new
        dd if=/run/new of=/mnt/file$((n % 20)) conv=fsync 2>/dev/null || { echo failed > /run/failed; exit; }
        md5sum < /run/new > /run/sum$((n % 20))
        read after rest < /proc/uptime
        took=$(( (${after%.*}${after#*.}) - (${before%.*}${before#*.}) ))
        [ $took -gt $longest ] && longest=$took
        echo $n $longest > /run/progress.new && mv /run/progress.new /run/progress
    done; echo > /run/ended) > /dev/console 2>&1 &";

/// Files written so far, and the longest that one took in hundredths of a second.
pub(crate) fn progress(machine: &mut Machine) -> (u64, u64) {
    let text = machine.ok("[ ! -e /run/failed ]; cat /run/progress 2>/dev/null || echo 0 0");
    let mut words = text
        .split_whitespace()
        .map(|w| w.parse().expect("a number"));
    (words.next().expect("one"), words.next().expect("two"))
}

pub(crate) fn wait_progress(machine: &mut Machine, target: u64) {
    wait_for(
        "files to be written",
        || (progress(machine).0 >= target).then_some(()),
        || format!("file {target} is not there"),
    );
}

pub(crate) fn wait_attached(pair: &mut Pair, at: usize) {
    let last = std::cell::RefCell::new(String::new());
    wait_for(
        "the device to be served",
        || {
            let (_, state, reason) = device(pair, at);
            last.replace(format!("{state}: {reason}"));
            (state == "attached").then_some(())
        },
        || last.borrow().clone(),
    );
}

/// Ends the load; everything written with fsync is there.
pub(crate) fn check(pair: &mut Pair) {
    pair.machines[0].ok("touch /run/enough; while [ ! -e /run/ended ]; do sleep 0.1; done");
    let (files, longest) = progress(&mut pair.machines[0]);
    pair.machines[0].ok(
        "for sum in /run/sum*; do
            n=${sum#/run/sum}; [ \"$(md5sum < /mnt/file$n)\" = \"$(cat $sum)\" ]
        done
        echo 3 > /proc/sys/vm/drop_caches
        for sum in /run/sum*; do
            n=${sum#/run/sum}; [ \"$(md5sum < /mnt/file$n)\" = \"$(cat $sum)\" ]
        done
        umount /mnt && e2fsck -f -n /dev/nbd0 && rm -f /run/sum* /run/progress /run/enough /run/ended",
    );
    println!(
        "{files} files, no error; the longest took {}.{:02} s",
        longest / 100,
        longest % 100
    );
}

fn restarts(signal: &str, rounds: u64) {
    let seed = number("TWINBLK_SEED", std::process::id().into());
    println!("seed {seed}");
    let mut rng = Rng(seed);
    let mut pair = mounted(DEVICE);
    let size = pair.data_size();
    pair.machines[0].ok(LOAD);
    for _ in 0..rounds {
        let done = progress(&mut pair.machines[0]).0;
        wait_progress(&mut pair.machines[0], done + 3 + rng.below(10));
        pair.stop_daemon(0, signal);
        // The names stay: the device is there.
        pair.machines[0].ok("[ -e /sys/block/nbd0/pid ] && [ -L /dev/twinblk/r0 ]");
        let away = Instant::now();
        pair.start_daemon(0);
        wait_attached(&mut pair, 0);
        println!(
            "{signal}: served again after {} s",
            away.elapsed().as_secs()
        );
        let done = progress(&mut pair.machines[0]).0;
        wait_progress(&mut pair.machines[0], done + 2);
    }
    check(&mut pair);
    pair.machines[0].ok("twinblk secondary r0 && [ ! -e /sys/block/nbd0/pid ]");
    pair.wait_in_sync();
    pair.compare(size);
}

#[test]
fn a_killed_daemon_is_replaced_under_a_mounted_file_system() {
    restarts("KILL", number("TWINBLK_VM_RESTARTS", 1));
}

#[test]
fn a_daemon_is_restarted_under_a_mounted_file_system() {
    if !crate::long_form() {
        return;
    }
    restarts("TERM", number("TWINBLK_VM_RESTARTS", 1));
}

#[test]
fn a_device_that_nobody_holds_goes_with_the_daemon() {
    if !crate::long_form() {
        return;
    }
    let mut pair = mounted(DEVICE);
    pair.machines[0].ok("umount /mnt");
    pair.stop_daemon(0, "TERM");
    pair.machines[0].ok("[ ! -e /sys/block/nbd0/pid ] && [ ! -L /dev/twinblk/r0 ]");
    pair.start_daemon(0);
    assert_eq!(pair.machines[0].ok("twinblk role r0").trim(), "Secondary");
    // Killed, it leaves the device behind; nobody needs the next one to be Primary for it.
    pair.machines[0].ok("twinblk wait-connect r0 --timeout 60; twinblk primary r0");
    pair.stop_daemon(0, "KILL");
    pair.machines[0].ok("[ -e /sys/block/nbd0/pid ]");
    pair.start_daemon(0);
    wait_for(
        "the device to go",
        || (pair.machines[0].run("[ ! -e /sys/block/nbd0/pid ]").code == 0).then_some(()),
        || "it stays".into(),
    );
    assert_eq!(pair.machines[0].ok("twinblk role r0").trim(), "Secondary");
}

#[test]
fn alone_it_goes_on_and_with_a_peer_that_was_promoted_it_does_not() {
    let mut setup = DEVICE;
    setup.options = "device-timeout = \"2s\"\ndevice-dead-timeout = \"20s\"\n";
    let mut pair = mounted(setup);
    // The peer is gone, and a generation without it began: nobody else can have anything newer.
    pair.stop_daemon(1, "KILL");
    pair.wait_alone(0);
    pair.machines[0].ok("echo alone > /mnt/alone && sync");
    pair.stop_daemon(0, "KILL");
    pair.start_daemon(0);
    wait_attached(&mut pair, 0);
    pair.machines[0].ok("echo again > /mnt/alone && sync");
    pair.start_daemon(1);
    pair.wait_in_sync();

    // The peer was promoted meanwhile, wrote, and is demoted again: what is mounted here is not what is on
    // the disks now.
    pair.machines[0].ok("mount -o remount,errors=continue /mnt");
    pair.stop_daemon(0, "KILL");
    pair.wait_alone(1);
    let bravo = &mut pair.machines[1];
    bravo.ok(
        "twinblk primary r0 && mount -t ext4 /dev/nbd0 /mnt && echo bravo > /mnt/other
        umount /mnt && twinblk secondary r0",
    );
    let before = Instant::now();
    pair.machines[0].ok("(dd if=/dev/zero of=/mnt/lost bs=4096 count=1 conv=fsync && echo 0 > /run/code || echo 1 > /run/code) >/dev/null 2>&1 &");
    pair.start_daemon(0);
    wait_for(
        "the device to be given up",
        || (device(&mut pair, 0).1 == "given-up").then_some(()),
        || "it is not".into(),
    );
    let (_, _, reason) = device(&mut pair, 0);
    assert!(reason.contains("another node"), "{reason}");
    assert_eq!(pair.machines[0].ok("twinblk role r0").trim(), "Secondary");
    // Errors, after the configured time; then it can be unmounted, and the device goes.
    pair.machines[0].ok("while [ ! -e /run/code ]; do sleep 0.2; done; [ $(cat /run/code) != 0 ]");
    println!("errors after {} s", before.elapsed().as_secs());
    pair.machines[0].run("umount /mnt");
    wait_for(
        "the device to go",
        || (device(&mut pair, 0).1 == "detached").then_some(()),
        || "it does not".into(),
    );
    pair.wait_in_sync();
    pair.machines[0].ok("twinblk primary r0 && mount -t ext4 /dev/nbd0 /mnt
        [ $(cat /mnt/other) = bravo ] && [ $(cat /mnt/alone) = again ] && [ ! -e /mnt/lost ]
        umount /mnt && twinblk secondary r0");
}

#[test]
fn a_device_that_waits_goes_on_only_by_order_once_secondary_was_ordered() {
    if !crate::long_form() {
        return;
    }
    let mut pair = mounted(DEVICE);
    let size = pair.data_size();
    pair.machines[0].ok(LOAD);
    wait_progress(&mut pair.machines[0], 3);
    // With the peer gone it waits: that one may have been promoted.
    pair.stop_daemon(0, "KILL");
    pair.stop_daemon(1, "KILL");
    pair.start_daemon(0);
    let waits_for = |pair: &mut Pair, words: &str| {
        let last = std::cell::RefCell::new(String::new());
        wait_for(
            words,
            || {
                let (_, state, reason) = device(pair, 0);
                let good = state == "waiting" && reason.contains(words);
                last.replace(format!("{state}: {reason}"));
                good.then_some(())
            },
            || last.borrow().clone(),
        );
    };
    waits_for(&mut pair, "bravo is not connected");
    pair.machines[0].ok("twinblk secondary r0");
    // Nothing else is in its way now.
    pair.start_daemon(1);
    pair.wait_in_sync();
    waits_for(&mut pair, "`secondary` was ordered");
    pair.machines[0].ok("[ $(twinblk role r0) = Secondary ] && [ ! -e /run/failed ]");
    let done = progress(&mut pair.machines[0]).0;
    pair.machines[0].ok("twinblk primary r0");
    wait_attached(&mut pair, 0);
    wait_progress(&mut pair.machines[0], done + 3);
    check(&mut pair);
    pair.machines[0].ok("twinblk secondary r0");
    pair.wait_in_sync();
    pair.compare(size);
}

#[test]
fn without_a_daemon_nobody_waits_for_ever() {
    if !crate::long_form() {
        return;
    }
    let mut setup = DEVICE;
    // Together just above the 14 s of `timeout` times `ko-count`.
    setup.options = "device-timeout = \"2s\"\ndevice-dead-timeout = \"13s\"\n";
    let mut pair = mounted(setup);
    let alpha = &mut pair.machines[0];
    alpha.ok("mount -o remount,errors=continue /mnt");
    // Under way when the daemon is stopped dead, and begun afterwards; and reads.
    alpha.ok("kill -STOP $(cat /run/twinblk.pid)
        echo 3 > /proc/sys/vm/drop_caches
        for n in 1 2 3; do
            (dd if=/dev/nbd0 of=/dev/null bs=4096 count=1 skip=$((n * 1000)) iflag=direct) >/dev/null 2>&1 &
            echo $! >> /run/waiting
        done
        (dd if=/dev/zero of=/mnt/lost bs=4096 count=1 conv=fsync) >/dev/null 2>&1 &
        echo $! >> /run/waiting");
    pair.stop_daemon(0, "KILL");
    let began = Instant::now();
    let alpha = &mut pair.machines[0];
    alpha.ok("(dd if=/dev/nbd0 of=/dev/null bs=4096 count=1 skip=5000 iflag=direct) >/dev/null 2>&1 &
        echo $! >> /run/waiting
        for pid in $(cat /run/waiting); do while [ -e /proc/$pid/exe ]; do kill -9 $pid; sleep 0.1; done; done");
    println!("nobody waits after {} s", began.elapsed().as_secs());
    alpha.run("umount /mnt");
    // A device whose time is over is served by nobody again; it is cleared away and made anew.
    pair.start_daemon(0);
    pair.wait_in_sync();
    wait_for(
        "the device to be in order",
        || {
            pair.machines[0].run("twinblk primary r0");
            (device(&mut pair, 0).1 == "attached").then_some(())
        },
        || "it is not".into(),
    );
    pair.machines[0].ok("e2fsck -f -y /dev/nbd0 || [ $? = 1 ]; twinblk secondary r0");
}

#[test]
fn an_idle_device_lives_longer_than_its_timeouts() {
    if !crate::long_form() {
        return;
    }
    let mut setup = DEVICE;
    setup.options = "device-timeout = \"4s\"\ndevice-dead-timeout = \"12s\"\n";
    let mut pair = mounted(setup);
    // Nothing but time matters here.
    std::thread::sleep(Duration::from_secs(20));
    let alpha = &mut pair.machines[0];
    alpha.ok(
        "echo still > /mnt/file && sync && ! dmesg | grep -i 'nbd0.*timed out'
        umount /mnt && twinblk secondary r0",
    );
}

#[test]
fn a_slow_answer_costs_a_connection_and_nothing_else() {
    if !crate::long_form() {
        return;
    }
    let mut setup = DEVICE;
    setup.options = "device-timeout = \"3s\"\ndevice-dead-timeout = \"100s\"\n";
    let mut pair = mounted(setup);
    let size = pair.data_size();
    pair.machines[0].ok(LOAD);
    let lost = |pair: &mut Pair| {
        let text = pair.machines[0].ok("dmesg | grep -c 'nbd0.*timed out' || true");
        text.trim().parse::<u64>().expect("a number")
    };
    for _ in 0..3 {
        let done = progress(&mut pair.machines[0]).0;
        wait_progress(&mut pair.machines[0], done + 3);
        // The peer does not answer for longer than the kernel waits.
        let before = lost(&mut pair);
        pair.machines[1].ok("kill -STOP $(cat /run/twinblk.pid)");
        wait_for(
            "the kernel to lose its patience",
            || (lost(&mut pair) > before).then_some(()),
            || "it waits".into(),
        );
        pair.machines[1].ok("kill -CONT $(cat /run/twinblk.pid)");
        wait_attached(&mut pair, 0);
    }
    check(&mut pair);
    pair.machines[0].ok("twinblk secondary r0");
    pair.wait_in_sync();
    pair.compare(size);
}
