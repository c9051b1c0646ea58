//! The daemon is restarted and killed, in turn, under systemd, while fio writes to a mounted file system and
//! verifies what it reads. Protocol C, the default times. Invariants: fio sees no error and finds what it wrote,
//! at once, and all of it once more after the file system was mounted anew; the kernel's log has no I/O error;
//! the file system's check finds nothing to mend; afterwards both disks are equal.

use crate::device_restart::wait_attached;
use crate::harness::seeds::Rng;
use crate::harness::wait_for;
use crate::machine::{Machine, Root};
use crate::pair::{Pair, Setup};
use crate::power_cut::number;
use std::time::Instant;

/// Passes of fio, each over all of its files, until it is told that it is enough. `through`: by the page cache,
/// with an fsync now and then; each block says where it belongs. `past`: many writes at a time past the cache;
/// each block says of which pass it is, so an old one does not go for a new one. /run/stall: the longest that a
/// small write with an fsync took beside it, in hundredths of a second.
const LOAD: &str = r#"
head -c 4096 /dev/urandom >/run/block; echo 0 >/run/stall; echo 0 >/run/pass
(longest=0
while [ ! -e /run/enough ]; do
    read before rest </proc/uptime
    dd if=/run/block of=/mnt/probe bs=4096 count=1 oflag=direct conv=fsync,notrunc 2>/dev/null || { echo probe >/run/failed; break; }
    read after rest </proc/uptime
    took=$(( ${after%.*}${after#*.} - ${before%.*}${before#*.} ))
    [ $took -le $longest ] || { longest=$took; echo $took >/run/stall; }
done; echo >/run/probed) >/dev/console 2>&1 &
(n=0
while [ ! -e /run/enough ]; do
    n=$((n + 1)); pass=$(printf 0x%08x $n)
    fio --clocksource=clock_gettime --randseed=$n --size=8M --bs=16k --verify_fatal=1 --error_dump=1 \
        --output-format=json --output=/run/fio.json \
        --name=through --filename=/mnt/through --rw=randwrite --ioengine=psync --fsync=16 \
        --verify=crc32c --verify_backlog=64 \
        --name=past --filename=/mnt/past --rw=randwrite --ioengine=libaio --direct=1 --iodepth=8 \
        --verify=pattern --verify_pattern=$pass \
        >/run/fio.log 2>&1 || { cat /run/fio.log /run/fio.json; echo $n >/run/failed; break; }
    echo $n >/run/pass.new; mv /run/pass.new /run/pass
done; echo >/run/ended) >/dev/console 2>&1 &"#;

/// Writes the kernel's client has finished.
fn writes(machine: &mut Machine) -> u64 {
    let text = machine.ok("[ ! -e /run/failed ]; awk '{print $5}' /sys/block/nbd0/stat");
    text.trim().parse().expect("a number")
}

fn wait_writes(machine: &mut Machine, more: u64) {
    let wanted = writes(machine) + more;
    wait_for(
        "fio to write",
        || (writes(machine) >= wanted).then_some(()),
        || format!("{wanted} writes are not reached"),
    );
}

fn pid(machine: &mut Machine) -> String {
    let text = machine.ok("systemctl show --value -p MainPID twinblk");
    text.trim().to_owned()
}

#[test]
fn fio_verifies_while_the_daemon_is_restarted_and_killed() {
    if !crate::long_form() {
        return;
    }
    let seed = number("TWINBLK_SEED", std::process::id().into());
    let rounds = number("TWINBLK_VM_RESTARTS", 2);
    println!("seed {seed}; again: TWINBLK_SEED={seed} tests/vm/run device_fio");
    let mut rng = Rng(seed ^ 0xf10);
    let setup = Setup {
        roots: [Root::Systemd, Root::Small],
        node: "device = \"/dev/nbd0\"",
        options: "",
        ..Setup::default()
    };
    let mut pair = Pair::both_secondary(64 << 20, setup);
    let size = pair.data_size();
    let alpha = &mut pair.machines[0];
    alpha.ok(
        "twinblk primary r0; mkfs.ext4 -q -E nodiscard /dev/twinblk/r0
        mount -o errors=panic /dev/twinblk/r0 /mnt",
    );
    alpha.ok(LOAD);
    for round in 1..=rounds {
        let alpha = &mut pair.machines[0];
        wait_writes(alpha, 20 + rng.below(400));
        let (before, began) = (pid(alpha), Instant::now());
        let how = match round % 2 {
            1 => "restarted",
            _ => "killed and started",
        };
        alpha.ok(match round % 2 {
            1 => "systemctl restart twinblk",
            _ => "systemctl kill -s KILL twinblk; systemctl start twinblk",
        });
        wait_for(
            "another daemon",
            || (![before.as_str(), "0"].contains(&&*pid(alpha))).then_some(()),
            || format!("it is {before} still"),
        );
        wait_for(
            "the daemon to answer",
            || (alpha.run("twinblk status").code == 0).then_some(()),
            || "see the console".into(),
        );
        wait_attached(&mut pair, 0);
        let served = began.elapsed().as_secs_f64();
        wait_writes(&mut pair.machines[0], 20);
        println!(
            "{round}: {how}, served again after {served:.1} s, fio writes after {:.1} s",
            began.elapsed().as_secs_f64()
        );
    }
    let alpha = &mut pair.machines[0];
    alpha.ok(
        "touch /run/enough; while [ ! -e /run/ended ] || [ ! -e /run/probed ]; do sleep 0.1; done; [ ! -e /run/failed ]",
    );
    let passes = alpha.ok("cat /run/pass");
    let stall: f64 = alpha.ok("cat /run/stall").trim().parse().expect("a number");
    // All of it once more, from the disks.
    alpha.ok(&format!(
        "umount /mnt; e2fsck -f -n /dev/twinblk/r0; mount /dev/twinblk/r0 /mnt
        fio --name=through --filename=/mnt/through --rw=read --size=8M --bs=16k --verify=crc32c \
            --verify_fatal=1 --output=/run/again
        fio --name=past --filename=/mnt/past --rw=read --size=8M --bs=16k --verify=pattern \
            --verify_pattern=$(printf 0x%08x {}) --verify_fatal=1 --output=/run/again
        umount /mnt; twinblk secondary r0",
        passes.trim()
    ));
    let errors = alpha.run("dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)|lost async page'");
    assert_eq!(errors.output, "", "the kernel's log");
    pair.wait_in_sync();
    pair.compare(size);
    println!(
        "{rounds} restarts under fio, {} passes of 16 MiB written and verified, no error; the longest stall {:.1} s",
        passes.trim(),
        stall / 100.0
    );
}
