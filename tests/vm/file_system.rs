//! The power of a machine is cut while its kernel has an ext4 of the exported device mounted and programs
//! write files and fsync them. Invariants: the machine that takes over mounts it; every file that was
//! fsynced is there and whole; fsck finds nothing to mend; afterwards both disks are equal.

use crate::harness::seeds::Rng;
use crate::harness::wait_for;
use crate::kernel_device::ATTACH;
use crate::machine::Machine;
use crate::pair::{NAMES, Pair};
use crate::power_cut::number;
use std::collections::HashMap;

/// Files that are there at a time.
const FILES: u64 = 20;

/// Writes one file after the other, each with fsync, and says on the console what is safe now.
fn load(first: u64) -> String {
    format!(
        "(n={first}
        while :; do
            rm -f /mnt/file$((n - {FILES}))
            head -c $((n * 7919 % 65536 + 1)) /dev/urandom | dd of=/mnt/file$n conv=fsync || exit
            sum=$(md5sum < /mnt/file$n)
            echo; echo \"safe $n ${{sum%% *}} .\"
            n=$((n + 1))
        done) > /dev/console 2>/dev/null &"
    )
}

/// What the console of a machine says is safe: number and checksum.
fn safe(machine: &Machine) -> HashMap<u64, String> {
    let text = machine.console_text();
    let lines = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["safe", number, sum, "."] => Some((number.parse().ok()?, sum.to_owned())),
            _ => None,
        }
    });
    lines.collect()
}

#[test]
fn fsynced_files_survive_the_loss_of_the_machine_that_wrote_them() {
    let seed = number("TWINBLK_SEED", std::process::id().into());
    println!("seed {seed}; again: TWINBLK_SEED={seed} tests/vm/run file_system");
    let mut rng = Rng(seed ^ 0xf5);
    let mut pair = Pair::in_sync(40 << 20);
    let size = pair.data_size();
    pair.machines[0].ok(ATTACH);
    pair.machines[0].ok("mke2fs -q -t ext4 /dev/nbd0 && mount -t ext4 /dev/nbd0 /mnt");
    let mut next = 1;
    for round in 0..number("TWINBLK_VM_CUTS", 20).div_ceil(7) {
        let (old, new) = ((round % 2) as usize, (1 - round % 2) as usize);
        pair.machines[old].ok(&load(next));
        let target = next + 5 + rng.below(40);
        wait_for(
            "files to be written",
            || {
                safe(&pair.machines[old])
                    .contains_key(&target)
                    .then_some(())
            },
            || format!("file {target} is not there"),
        );
        let cut = pair.cut(old, &mut rng);
        let files = safe(&pair.machines[old]);
        let last = *files.keys().max().expect("some");
        println!("cut {}: {} after file {last}; {cut}", round + 1, NAMES[old]);
        pair.wait_alone(new);
        let survivor = &mut pair.machines[new];
        survivor.ok("twinblk primary r0");
        survivor.ok(ATTACH);
        survivor.ok("mount -t ext4 /dev/nbd0 /mnt");
        // All but those that the writer may have removed since.
        for (n, wanted) in files.iter().filter(|(n, _)| **n + FILES > last + 1) {
            let sum = survivor.ok(&format!("md5sum < /mnt/file{n}"));
            assert_eq!(sum.split_whitespace().next(), Some(&**wanted), "file {n}");
        }
        survivor.ok("umount /mnt && e2fsck -f -n /dev/nbd0 && mount -t ext4 /dev/nbd0 /mnt");
        pair.back(&[old]);
        pair.wait_in_sync();
        pair.machines[new].ok("sync");
        next = last + 2;
    }
    for machine in &mut pair.machines {
        machine.run("umount /mnt && nbd-client -d /dev/nbd0");
    }
    pair.compare(size);
    println!("{} files fsynced, none missing; both disks equal", next - 1);
}
