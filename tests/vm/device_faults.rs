//! What goes wrong around a kernel device that is in use. Invariants: the daemon never leaves a device behind
//! that no order can take away; a device that waits for its daemon is served again whatever changed meanwhile.

use crate::device::{DEVICE, device};
use crate::device_restart::{LOAD, check, mounted, progress, wait_attached, wait_progress};
use crate::harness::seeds::Rng;
use crate::harness::wait_for;
use crate::pair::Pair;
use crate::power_cut::number;

#[test]
fn a_device_whose_resource_does_not_come_up_can_be_taken_away() {
    if !crate::long_form() {
        return;
    }
    let mut pair = mounted(DEVICE);
    let alpha = &mut pair.machines[0];
    alpha.ok("mount -o remount,errors=continue /mnt");
    pair.stop_daemon(0, "KILL");
    pair.machines[0].ok("mv /dev/vda /dev/away");
    pair.start_daemon(0);
    let said = std::cell::RefCell::new(String::new());
    wait_for(
        "status to name the device",
        || {
            let status = pair.status(0);
            let text = status["suspended"].as_str().unwrap_or_default().to_owned();
            let named = text.contains("/dev/nbd0 is still in the kernel");
            said.replace(text);
            named.then_some(())
        },
        || said.borrow().clone(),
    );
    let alpha = &mut pair.machines[0];
    let answer = alpha.run("twinblk down r0");
    assert_eq!(answer.code, 12, "{}", answer.output);
    assert!(answer.output.contains("umount /mnt"), "{}", answer.output);
    let text = alpha.ok("twinblk down --force r0");
    assert!(text.contains("/dev/nbd0"), "{text}");
    alpha.run("umount /mnt");
    wait_for(
        "the device to be gone",
        || (alpha.run("[ ! -e /sys/block/nbd0/pid ]").code == 0).then_some(()),
        || "it is there".into(),
    );
    alpha.ok("[ ! -L /dev/twinblk/r0 ] && mv /dev/away /dev/vda && twinblk up r0");
    pair.wait_in_sync();
    pair.machines[0].ok("twinblk primary r0 && e2fsck -f -y /dev/nbd0 >/dev/null || [ $? = 1 ]");
    assert_eq!(device(&mut pair, 0).1, "attached");
}

/// It waits for an order, too: `secondary` was given while it waited for its peer.
///
/// Since Linux 6.9 a new size waits for the requests under way, and those for a new connection: told of both at
/// once, the kernel would wait for ever.
#[test]
fn a_device_that_waits_after_secondary_and_grows_goes_on_by_order_with_its_new_size() {
    if !crate::long_form() {
        return;
    }
    let mut pair = Pair::both_secondary(48 << 20, DEVICE);
    let whole = pair.data_size();
    let small = (whole / 2) & !4095;
    for machine in &mut pair.machines {
        machine.ok("modprobe nbd");
    }
    pair.machines[0].ok(&format!(
        "twinblk resize --size {small} --force r0
        twinblk primary r0 && mke2fs -q -t ext4 -E nodiscard /dev/nbd0
        mount -t ext4 -o errors=panic /dev/nbd0 /mnt"
    ));
    pair.machines[0].ok(LOAD);
    wait_progress(&mut pair.machines[0], 3);
    // It waits, first for its peer, then for somebody who orders it.
    pair.stop_daemon(0, "KILL");
    pair.stop_daemon(1, "KILL");
    // Sent to the dead daemon or not: somebody waits in the kernel for it.
    pair.machines[0]
        .ok("while ! cat /proc/[0-9]*/stat 2>/dev/null | grep -q '(dd) D'; do usleep 50000; done");
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
    pair.start_daemon(1);
    pair.wait_in_sync();
    // Nothing but the order is in its way now.
    waits_for(&mut pair, "`secondary` was ordered");
    assert_eq!(pair.machines[0].ok("twinblk role r0").trim(), "Secondary");
    pair.machines[0].ok("twinblk resize r0");
    let bytes = "blockdev --getsize64 /dev/nbd0";
    let before = pair.machines[0].ok("cat /sys/block/nbd0/size");
    assert_eq!(before.trim(), (small / 512).to_string(), "not told yet");
    let done = progress(&mut pair.machines[0]).0;
    pair.machines[0].ok("twinblk primary r0");
    wait_attached(&mut pair, 0);
    wait_progress(&mut pair.machines[0], done + 3);
    wait_for(
        "the kernel to know the new size",
        || (pair.machines[0].ok(bytes).trim() == whole.to_string()).then_some(()),
        || "it has the old one".into(),
    );
    check(&mut pair);
    pair.machines[0].ok("twinblk secondary r0");
    pair.wait_in_sync();
    pair.compare(whole);
}

#[test]
fn a_daemon_killed_while_the_device_grows_goes_on_with_the_new_size() {
    let seed = number("TWINBLK_SEED", std::process::id().into());
    println!("seed {seed}");
    let mut rng = Rng(seed);
    let mut pair = Pair::both_secondary(48 << 20, DEVICE);
    let whole = pair.data_size();
    let small = (whole / 2) & !4095;
    for machine in &mut pair.machines {
        machine.ok("modprobe nbd");
    }
    let mut kept = 0;
    for _ in 0..number("TWINBLK_VM_CUTS", 5).div_ceil(5) {
        // While nobody holds it, it may shrink.
        pair.machines[0].ok(&format!(
            "twinblk resize --size {small} --force r0
            twinblk primary r0 && mke2fs -q -t ext4 -E nodiscard /dev/nbd0
            mount -t ext4 -o errors=panic /dev/nbd0 /mnt"
        ));
        pair.machines[0].ok(LOAD);
        wait_progress(&mut pair.machines[0], 3);
        // At any moment of it: an emulated machine takes about a second for it.
        let moment = rng.below(1500);
        pair.machines[0].ok(&format!(
            "(twinblk resize r0 > /dev/null 2>&1 &)
            usleep {moment}000
            kill -KILL $(cat /run/twinblk.pid)
            while [ -e /proc/$(cat /run/twinblk.pid)/exe ]; do usleep 50000; done"
        ));
        pair.start_daemon(0);
        wait_attached(&mut pair, 0);
        pair.wait_in_sync();
        let bytes = pair.machines[0].ok("blockdev --getsize64 /dev/nbd0");
        println!("killed after {moment} ms: {} bytes", bytes.trim());
        kept += u64::from(bytes.trim() == whole.to_string());
        let done = progress(&mut pair.machines[0]).0;
        wait_progress(&mut pair.machines[0], done + 3);
        pair.machines[0].ok("twinblk resize r0");
        let bytes = pair.machines[0].ok("blockdev --getsize64 /dev/nbd0");
        assert_eq!(bytes.trim(), whole.to_string());
        check(&mut pair);
        pair.machines[0].ok("twinblk secondary r0");
    }
    println!("{kept} times the size had changed when it was killed");
    pair.wait_in_sync();
    pair.compare(whole);
}
