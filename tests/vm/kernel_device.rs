//! twinblk under the kernel's own NBD client: /dev/nbd0, with a file system on it.

use crate::machine::Root;
use crate::pair::{Pair, Setup};
use std::time::Instant;

/// Attaches the export of this machine as /dev/nbd0.
pub(crate) const ATTACH: &str = "modprobe nbd
    nbd-client -unix /run/twinblk/r0.sock /dev/nbd0 -N r0 -b 4096 >/dev/null
    [ \"$(cat /sys/block/nbd0/queue/write_cache)\" = 'write back' ]";

#[test]
fn an_ext4_on_the_kernel_device_is_mirrored() {
    let mut pair = Pair::in_sync(32 << 20);
    let size = pair.data_size();
    let alpha = &mut pair.machines[0];
    alpha.ok(ATTACH);
    assert_eq!(
        alpha.ok("blockdev --getsize64 /dev/nbd0").trim(),
        size.to_string()
    );
    alpha.ok("mke2fs -q -t ext4 /dev/nbd0 && mount -t ext4 /dev/nbd0 /mnt");
    let wanted = alpha.ok(
        "head -c 5000000 /dev/urandom | dd of=/mnt/file bs=64k conv=fsync 2>/dev/null
        sha256sum < /mnt/file
        umount /mnt",
    );
    alpha.ok("e2fsck -f -n /dev/nbd0 && nbd-client -d /dev/nbd0");
    let content = pair.compare(size);
    assert!(content.iter().any(|&b| b != 0), "something was written");

    // The same on the peer, after a switch of roles.
    let [alpha, bravo] = &mut pair.machines;
    alpha.ok("twinblk secondary r0");
    bravo.ok("twinblk primary r0");
    bravo.ok(ATTACH);
    bravo.ok("e2fsck -f -n /dev/nbd0 && mount -t ext4 -o ro /dev/nbd0 /mnt");
    let found = bravo.ok("sha256sum < /mnt/file");
    assert_eq!(found, wanted);
    bravo.ok("umount /mnt && nbd-client -d /dev/nbd0 && twinblk secondary r0");
    println!(
        "{size} bytes equal on both; the file reads the same on the peer: {}",
        found.trim()
    );
}

/// For `tests/vm/run shell --shell`: a pair in sync, and a prompt on each of them.
#[test]
fn shell() {
    if std::env::var_os("TWINBLK_VM_SHELL").is_none() {
        return;
    }
    let root = match std::env::var("TWINBLK_VM_ROOT").as_deref() {
        Err(_) | Ok("small") => Root::Small,
        Ok("debian") => Root::Debian,
        Ok("systemd") => Root::Systemd,
        Ok(other) => panic!("TWINBLK_VM_ROOT={other}; known: small, debian, systemd"),
    };
    let start = Instant::now();
    let setup = Setup {
        roots: [root; 2],
        ..Setup::default()
    };
    let mut pair = Pair::both_secondary(64 << 20, setup);
    pair.machines[0].ok("twinblk primary r0");
    println!("in sync after {:.1} s", start.elapsed().as_secs_f64());
    print!("{}", pair.machines[0].ok("uname -r; twinblk status r0"));
}
