//! What people do with a block device: look at its size, put partitions or LVM on it, discard, wipe. After
//! each, the peer holds the same bytes, and after a switch the other machine finds the same things on it.

use crate::attached::{self, DEVICE, demote, promote};
use crate::pair::Pair;

/// Roles switch, with the device. Nothing uses it.
fn switch(pair: &mut Pair, from: usize) {
    pair.machines[from].ok("udevadm settle");
    demote(&mut pair.machines[from]);
    promote(&mut pair.machines[1 - from]);
}

#[test]
fn partitions_lvm_discard_and_wipe() {
    let mut pair = attached::pair(96 << 20);
    let size = pair.data_size();
    for machine in &mut pair.machines {
        // It makes the names of partitions and logical volumes, and looks into everything that appears.
        machine.ok("/lib/systemd/systemd-udevd --daemon");
    }
    let alpha = &mut pair.machines[0];
    assert_eq!(
        alpha.ok(&format!(
            "blockdev --getsize64 {DEVICE}; blockdev --getss {DEVICE}"
        )),
        format!("{size}\n512\n")
    );

    // A partition table; its partitions appear, and hold a file system.
    alpha.ok(&format!(
        "printf 'label: gpt\\n,32M\\n,\\n' | sfdisk -q {DEVICE}; partprobe {DEVICE}
         parted -s {DEVICE} print
         mkfs.ext4 -q {DEVICE}p1; mount {DEVICE}p1 /mnt
         head -c 3000000 /dev/urandom >/mnt/file; md5sum /mnt/file >/tmp/sum; cp /tmp/sum /mnt; umount /mnt"
    ));
    let table = alpha.ok(&format!("sfdisk -d {DEVICE}"));
    assert_eq!(table.matches("/dev/nbd0p").count(), 2, "{table}");
    switch(&mut pair, 0);
    let bravo = &mut pair.machines[1];
    bravo.ok(&format!("partprobe {DEVICE}"));
    assert_eq!(bravo.ok(&format!("sfdisk -d {DEVICE}")), table);
    bravo.ok(&format!(
        "mount {DEVICE}p1 /mnt; md5sum -c /mnt/sum; umount /mnt"
    ));
    // What holds a file system is not overwritten by accident; wiped, it is free again.
    bravo.ok(&format!(
        "wipefs -q -a {DEVICE}p1 {DEVICE}p2 {DEVICE}; partprobe {DEVICE}; [ -z \"$(wipefs {DEVICE})\" ]"
    ));
    pair.compare(size);

    // LVM, with a file system that grows. It must not look at the disk below, which holds the same bytes
    // (docs/install.md).
    for machine in &mut pair.machines {
        machine.put(
            "/etc/lvm/lvmlocal.conf",
            "devices { global_filter = [ \"r|^/dev/vda$|\" ] }\n",
        );
    }
    let bravo = &mut pair.machines[1];
    bravo.ok(&format!(
        "modprobe dm-mod; pvcreate -q {DEVICE}; vgcreate -q vg {DEVICE}
         lvcreate -q -y -L 32M -n data vg; mkfs.ext4 -q /dev/vg/data; mount /dev/vg/data /mnt
         head -c 3000000 /dev/urandom >/mnt/file; md5sum /mnt/file >/tmp/sum; cp /tmp/sum /mnt
         lvextend -q -L 64M /dev/vg/data; resize2fs /dev/vg/data"
    ));
    let refused = bravo.run("twinblk secondary r0");
    assert_eq!(refused.code, 12, "somebody holds it: {}", refused.output);
    assert!(refused.output.contains("vg-data"), "{}", refused.output);
    bravo.ok("umount /mnt; vgchange -q -an vg");
    switch(&mut pair, 1);
    let alpha = &mut pair.machines[0];
    alpha.ok(
        "modprobe dm-mod; vgchange -q -ay vg; mount /dev/vg/data /mnt; md5sum -c /mnt/sum
         [ $(df --output=size -BM /mnt | tail -1 | tr -dc 0-9) -gt 40 ]",
    );

    // What is trimmed or discarded is zeroes, on both.
    let used = |content: &[u8]| {
        let blocks = content.chunks(4096);
        blocks.filter(|b| b.iter().any(|&x| x != 0)).count()
    };
    alpha.ok("umount /mnt");
    let full = used(&pair.compare(size));
    let alpha = &mut pair.machines[0];
    alpha.ok("mount /dev/vg/data /mnt; rm /mnt/file; sync; fstrim /mnt; umount /mnt");
    let trimmed = used(&pair.compare(size));
    // The file had 732 blocks of random bytes.
    assert!(trimmed + 700 < full, "{trimmed} of {full} blocks are left");
    let alpha = &mut pair.machines[0];
    alpha.ok(&format!(
        "vgchange -q -an vg; udevadm settle; blkdiscard -f {DEVICE}; cmp -n {size} {DEVICE} /dev/zero"
    ));
    assert_eq!(used(&pair.compare(size)), 0);

    // fio writes and verifies what it wrote.
    let alpha = &mut pair.machines[0];
    let fio = alpha.ok(&format!(
        "fio --name=r0 --filename={DEVICE} --direct=1 --rw=randwrite --bs=16k --size=16M \
         --ioengine=libaio --iodepth=16 --fsync=32 --verify=crc32c --output-format=terse 2>/dev/null | cut -d';' -f5"
    ));
    assert_eq!(fio.trim(), "0", "fio's error code");
    pair.compare(size);
    demote(&mut pair.machines[0]);
    println!(
        "partitions, LVM, wipe and fio; {full} blocks used, {trimmed} after fstrim, none after blkdiscard; \
         the disks stayed equal"
    );
}
