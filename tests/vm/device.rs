//! The kernel device as the daemon attaches it. Invariants: it is there exactly while the node is Primary,
//! under its names too; what a file system was promised is on both nodes; nothing is taken away from those
//! who hold it, and the refusal says who they are; whatever stands in its way is said, with the way out, and
//! the sockets serve all the same.

use crate::harness::wait_for;
use crate::machine::{Machine, Root};
use crate::pair::{Pair, Setup};

pub(crate) const DEVICE: Setup = Setup {
    roots: [Root::Small; 2],
    node: "device = \"/dev/nbd0\"",
    options: "device-timeout = \"5s\"\ndevice-dead-timeout = \"120s\"\n",
    configuration: None,
};

/// What `status` says of the device.
pub(crate) fn device(pair: &mut Pair, at: usize) -> (String, String, String) {
    let status = pair.status(at);
    let device = &status["volumes"][0]["device"];
    let text = |key: &str| device[key].as_str().unwrap_or_default().to_owned();
    (text("path"), text("state"), text("reason"))
}

/// Runs an order that must be refused with this exit code; returns its words.
fn refused(machine: &mut Machine, code: i32, order: &str) -> String {
    let answer = machine.run(order);
    assert_eq!(answer.code, code, "{order}: {}", answer.output);
    answer.output
}

#[test]
fn the_device_comes_with_the_role_and_goes_with_it() {
    let mut pair = Pair::both_secondary(40 << 20, DEVICE);
    let size = pair.data_size();
    for machine in &mut pair.machines {
        machine.ok("modprobe nbd");
    }
    let names = "/dev/twinblk/r0 /dev/twinblk/by-resource/r0/0";
    let alpha = &mut pair.machines[0];
    alpha.ok("[ ! -e /dev/twinblk/r0 ] && [ ! -e /sys/block/nbd0/pid ]");
    alpha.ok("twinblk primary r0");
    alpha.ok(&format!(
        "for name in {names}; do [ \"$(readlink -f $name)\" = /dev/nbd0 ]; done"
    ));
    let kernel = alpha.ok("uname -r");
    let facts = alpha.ok("cd /sys/block/nbd0/queue
        cat write_cache fua logical_block_size
        [ $(cat discard_max_bytes) -gt 0 ] && echo trims
        [ $(cat write_zeroes_max_bytes) -gt 0 ] && echo zeroes || true");
    println!("{}: {}", kernel.trim(), facts.replace('\n', ", "));
    assert!(facts.starts_with("write back\n1\n512\ntrims"), "{facts}");
    if kernel.starts_with("6.12") {
        assert!(facts.contains("zeroes"), "{facts}");
    }
    let bytes = alpha.ok("blockdev --getsize64 /dev/twinblk/r0");
    assert_eq!(bytes.trim(), size.to_string());
    alpha.ok("mke2fs -q -t ext4 /dev/twinblk/r0 && mount -t ext4 /dev/twinblk/r0 /mnt");
    let wanted = alpha.ok(
        "head -c 5000000 /dev/urandom | dd of=/mnt/file bs=64k conv=fsync 2>/dev/null
        sha256sum < /mnt/file",
    );

    // Nothing takes it away from under the file system, nor from others.
    for order in ["twinblk secondary r0", "twinblk down r0"] {
        let text = refused(alpha, 12, order);
        assert!(text.contains("mounted at /mnt"), "{text}");
        assert!(text.contains("umount /mnt"), "{text}");
    }
    alpha.ok("touch /mnt/still-there && sync && umount /mnt");
    // By whatever name it was opened.
    alpha.ok("mknod /run/other-name b $(tr : ' ' < /sys/block/nbd0/dev)");
    for node in ["/dev/nbd0", "/run/other-name"] {
        alpha.ok(&format!("sleep 1000 < {node} & echo $! > /run/sleeper"));
        let text = refused(alpha, 12, "twinblk secondary r0");
        let pid = alpha.ok("cat /run/sleeper");
        assert!(text.contains(&format!("process {}", pid.trim())), "{text}");
        alpha.ok("kill $(cat /run/sleeper)");
    }
    alpha.ok("modprobe dm-mod; echo 0 8 linear /dev/nbd0 0 | dmsetup create --noudevsync part");
    let text = refused(alpha, 12, "twinblk secondary r0");
    assert!(text.contains("dm-0 (part)"), "{text}");
    alpha.ok("dmsetup remove --noudevsync part");
    assert_eq!(alpha.ok("twinblk role r0").trim(), "Primary");

    // To the peer and back, with the device.
    alpha.ok("twinblk secondary r0");
    alpha.ok(&format!(
        "[ ! -e /sys/block/nbd0/pid ] && [ $(blockdev --getsize64 /dev/nbd0) = 0 ]
        for name in {names}; do [ ! -L $name ]; done"
    ));
    let bravo = &mut pair.machines[1];
    bravo.ok("twinblk primary r0 && e2fsck -f -n /dev/twinblk/r0");
    bravo.ok("mount -t ext4 /dev/twinblk/r0 /mnt && [ -e /mnt/still-there ]");
    assert_eq!(bravo.ok("sha256sum < /mnt/file"), wanted);
    bravo.ok("rm /mnt/still-there && umount /mnt && twinblk secondary r0");
    let alpha = &mut pair.machines[0];
    alpha.ok("twinblk primary r0 && mount -t ext4 /dev/nbd0 /mnt && [ ! -e /mnt/still-there ]");

    // By force, whoever holds it gets errors, at once; nothing is left over, and nothing is written later.
    alpha.ok("twinblk secondary --force r0");
    assert_eq!(alpha.ok("twinblk role r0").trim(), "Secondary");
    let late = "dd if=/dev/urandom of=/mnt/late bs=64k count=1 conv=fsync";
    assert_ne!(alpha.run(late).code, 0, "the device has given up");
    alpha.run("umount /mnt");
    let bravo = &mut pair.machines[1];
    bravo.ok("twinblk primary r0; e2fsck -f -y /dev/nbd0 >/dev/null || [ $? = 1 ]");
    bravo.ok("mount -t ext4 /dev/nbd0 /mnt && [ ! -s /mnt/late ] && umount /mnt");
    bravo.ok("twinblk secondary r0");
    let alpha = &mut pair.machines[0];
    alpha.ok("twinblk primary r0 && mount -t ext4 /dev/nbd0 /mnt");
    alpha.ok("twinblk down --force r0");
    alpha.run("dd if=/dev/urandom of=/mnt/other bs=64k count=1 conv=fsync; umount /mnt");
    alpha.ok("twinblk up r0");
    pair.wait_in_sync();
    let alpha = &mut pair.machines[0];
    alpha.ok("twinblk primary r0 && e2fsck -f -y /dev/nbd0 >/dev/null || [ $? = 1 ]");
    assert_eq!(
        alpha
            .ok("twinblk status r0 | grep -c device:/dev/nbd0")
            .trim(),
        "1"
    );
    alpha.ok("twinblk down r0 && [ ! -e /sys/block/nbd0/pid ]");
    pair.compare(size);
}

#[test]
fn it_grows_while_it_is_mounted() {
    if !crate::long_form() {
        return;
    }
    let mut pair = Pair::both_secondary(48 << 20, DEVICE);
    let whole = pair.data_size();
    let small = (whole / 2) & !4095;
    // Small first: while nobody holds it, it may shrink.
    pair.machines[0].ok(&format!("twinblk resize --size {small} --force r0"));
    pair.machines[0].ok("modprobe nbd && twinblk primary r0");
    let alpha = &mut pair.machines[0];
    let bytes = "blockdev --getsize64 /dev/nbd0";
    assert_eq!(alpha.ok(bytes).trim(), small.to_string());
    alpha
        .ok("mke2fs -q -t ext4 /dev/nbd0 && mount -t ext4 /dev/nbd0 /mnt && echo here > /mnt/file");
    alpha.ok("twinblk resize r0");
    assert_eq!(alpha.ok(bytes).trim(), whole.to_string());
    let less = format!("twinblk resize --size {small} --force r0");
    let text = refused(alpha, 12, &less);
    assert!(text.contains("twinblk secondary r0"), "{text}");
    // The last block is reached through the device, and through the connection there was.
    let last = whole / 4096 - 1;
    alpha.ok(&format!(
        "yes | head -c 4096 | dd of=/dev/nbd0 bs=4096 seek={last} oflag=direct 2>/dev/null
        [ $(cat /mnt/file) = here ] && umount /mnt && e2fsck -f -n /dev/nbd0
        twinblk secondary r0"
    ));
    let content = pair.compare(whole);
    assert_eq!(content[content.len() - 4096..][..4], *b"y\ny\n");
}

#[test]
fn what_stands_in_its_way_is_said_and_the_sockets_serve() {
    if !crate::long_form() {
        return;
    }
    let mut pair = Pair::both_secondary(16 << 20, DEVICE);
    // No driver, nor one that newer kernels would load by themselves.
    let module = "/lib/modules/$(uname -r)/kernel/drivers/block/nbd.ko";
    pair.machines[0].ok(&format!("mv {module} /run/nbd.ko"));
    let text = refused(&mut pair.machines[0], 10, "twinblk primary r0");
    assert!(text.contains("modprobe nbd"), "{text}");
    assert_eq!(pair.machines[0].ok("twinblk role r0").trim(), "Primary");
    let mut client = pair.client(0);
    client.write(0, &[7; 4096]).expect("the socket serves");
    client.disconnect();
    let (_, state, reason) = device(&mut pair, 0);
    assert_eq!(state, "detached");
    assert!(reason.contains("modprobe nbd"), "{reason}");
    pair.machines[0].ok(&format!("mv /run/nbd.ko {module}"));
    // Taken by somebody else: by the export of the same resource, for want of another server.
    pair.machines[0].ok("modprobe nbd
        nbd-client -unix /run/twinblk/r0.sock /dev/nbd0 -N r0 -b 4096 >/dev/null || true");
    let (_, state, _) = device(&mut pair, 0);
    if state != "attached" {
        let text = refused(&mut pair.machines[0], 10, "twinblk primary r0");
        assert!(text.contains("nbd-client -d /dev/nbd0"), "{text}");
        assert!(
            text.contains("nbd-client)") || text.contains("process"),
            "{text}"
        );
        pair.machines[0].ok("nbd-client -d /dev/nbd0 >/dev/null");
    }
    // Once nothing stands in the way any more it is attached by itself.
    wait_for(
        "the device to be attached",
        || (device(&mut pair, 0).1 == "attached").then_some(()),
        || "it is not".into(),
    );
    pair.machines[0]
        .ok("dd if=/dev/nbd0 bs=4096 count=1 iflag=direct | od -An -tx1 | head -1 | grep '07 07'");
    // An administrator's own way to detach it is undone.
    pair.machines[0].ok("cat /sys/block/nbd0/backend && nbd-client -d /dev/nbd0 >/dev/null");
    wait_for(
        "the device to be attached anew",
        || {
            let there = pair.machines[0].run(
                "dd if=/dev/nbd0 bs=4096 count=1 iflag=direct | od -An -tx1 | head -1 | grep '07 07'",
            );
            (device(&mut pair, 0).1 == "attached" && there.code == 0).then_some(())
        },
        || "it is not".into(),
    );
    pair.machines[0].ok("twinblk secondary r0");

    // The driver takes orders in the first network namespace only.
    pair.stop_daemon(0, "TERM");
    pair.machines[0].ok("setsid unshare -n sh -c 'ip link set lo up
            ip address add 10.9.0.1/24 dev lo && ip address add 10.0.2.15/24 dev lo
            exec twinblk daemon' >/dev/console 2>&1 & echo $! > /run/twinblk.pid");
    wait_for(
        "the daemon to answer",
        || (pair.machines[0].run("twinblk status").code == 0).then_some(()),
        || "see the console".into(),
    );
    let text = refused(&mut pair.machines[0], 10, "twinblk primary r0");
    assert!(text.contains("network namespace"), "{text}");
    assert!(!text.contains("modprobe"), "{text}");
}
