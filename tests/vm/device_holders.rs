//! Those who hold a kernel device without having it mounted, and a device whose number the kernel chooses.
//! Invariants: demotion refuses and says who holds it and what ends that, whatever it is; it loses nothing
//! to them; as soon as they are gone the device goes with the role.

use crate::device::{DEVICE, device};
use crate::machine::Machine;
use crate::pair::{Pair, Setup};

/// Demotion is refused with these words.
fn refused(machine: &mut Machine, words: &[&str]) {
    let answer = machine.run("twinblk secondary r0");
    assert_eq!(answer.code, 12, "{}", answer.output);
    for word in words {
        assert!(answer.output.contains(word), "{word}: {}", answer.output);
    }
    assert_eq!(machine.ok("twinblk role r0").trim(), "Primary");
}

#[test]
fn swap_and_loop_devices_hold_a_device_whose_number_the_kernel_chose() {
    if !crate::long_form() {
        return;
    }
    let setup = Setup {
        node: "device = \"auto\"",
        ..DEVICE
    };
    let mut pair = Pair::both_secondary(40 << 20, setup);
    let size = pair.data_size();
    // None is there yet: the kernel makes one.
    pair.machines[0].ok("modprobe nbd nbds_max=0; modprobe loop");
    pair.machines[0].ok("twinblk primary r0");
    let (path, state, _) = device(&mut pair, 0);
    assert_eq!(state, "attached");
    let number = path.strip_prefix("/dev/nbd").expect("a path");
    assert!(number.parse::<u32>().is_ok(), "{path}");
    let alpha = &mut pair.machines[0];
    alpha.ok(&format!(
        "[ \"$(readlink -f /dev/twinblk/r0)\" = {path} ]
        [ $(blockdev --getsize64 /dev/twinblk/r0) = {size} ]"
    ));
    println!("the kernel chose {path}");

    // Swap space.
    alpha.ok(&format!("mkswap {path} >/dev/null && swapon {path}"));
    refused(alpha, &["swap space", "swapoff"]);
    alpha.ok(&format!("swapoff {path}"));

    // A loop device on the device itself, by whatever name it was made.
    alpha.ok("losetup /dev/loop0 /dev/twinblk/r0");
    refused(alpha, &["loop0"]);
    alpha.ok("losetup -d /dev/loop0");

    // On a file of its file system, with a file system of its own.
    alpha.ok(&format!(
        "mke2fs -q -t ext4 {path} && mount -t ext4 {path} /mnt
        dd if=/dev/zero of=/mnt/image bs=1M count=8 2>/dev/null
        losetup /dev/loop0 /mnt/image && mke2fs -q -t ext4 /dev/loop0
        mkdir -p /run/inner && mount -t ext4 /dev/loop0 /run/inner && echo inner > /run/inner/file"
    ));
    refused(alpha, &["mounted at /mnt", "loop0 (/mnt/image)"]);
    // Out of sight, and held all the same.
    alpha.ok("umount -l /mnt");
    refused(alpha, &["holds it"]);
    alpha.ok("echo more >> /run/inner/file && sync && umount /run/inner && losetup -d /dev/loop0");

    alpha.ok(&format!(
        "twinblk secondary r0 && [ ! -L /dev/twinblk/r0 ] && [ ! -e /sys/block/nbd{number}/pid ]"
    ));
    // What they were promised is on the other node.
    let bravo = &mut pair.machines[1];
    bravo.ok("modprobe nbd; modprobe loop; twinblk primary r0
        mount -t ext4 /dev/twinblk/r0 /mnt && losetup /dev/loop0 /mnt/image
        mkdir -p /run/inner && mount -t ext4 /dev/loop0 /run/inner
        [ \"$(tr '\\n' ' ' < /run/inner/file)\" = 'inner more ' ]
        umount /run/inner && losetup -d /dev/loop0 && umount /mnt && twinblk secondary r0");
    pair.compare(size);
}
