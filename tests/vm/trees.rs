//! File systems on the device lose their machine in the middle of an fsync storm, and the Secondary's
//! daemon has been killed shortly before. Protocol C. Invariants: the machine that takes over mounts what it
//! has; every file of the tree, and every file whose fsync had returned, is there with its checksum; the
//! file system's own check finds nothing to mend; afterwards both disks are equal.

use crate::attached::{self, DEVICE, promote};
use crate::harness::seeds::Rng;
use crate::harness::wait_for;
use crate::machine::Machine;
use crate::pair::{NAMES, Pair};
use crate::power_cut::number;
use std::collections::BTreeMap;

/// A tree of files with their checksums in a list beside them.
const TREE: &str = "mkdir /mnt/tree
    for d in 1 2 3 4 5 6; do
        mkdir -p /mnt/tree/$d/deep/er
        for f in 1 2 3 4 5 6 7 8; do
            head -c $((d * f * 2711)) /dev/urandom >/mnt/tree/$d/deep/er/$f
        done
        ln /mnt/tree/$d/deep/er/1 /mnt/tree/$d/hard
        ln -s deep/er/2 /mnt/tree/$d/soft
        truncate -s 3M /mnt/tree/$d/sparse
    done
    (cd /mnt/tree && find . -type f -exec sha256sum {} +) >/tmp/list
    mv /tmp/list /mnt/tree/list
    sync";

/// Several writers, each file with fsync and renamed; what is safe goes to the console: the file's name and
/// its checksum. Another writes past the page cache and flushes nothing, so that disks have something to lose.
fn storm(round: u64) -> String {
    format!(
        "mkdir -p /mnt/storm{round}; sync
        for w in 1 2; do (
            n=0
            while :; do
                f=/mnt/storm{round}/$w.$n
                head -c $(((n * 7919 + w) % 40000 + 1)) /dev/urandom | dd of=$f.new conv=fsync || exit
                sum=$(md5sum <$f.new)
                mv $f.new $f; sync /mnt/storm{round} || exit
                echo; echo \"safe storm{round}/$w.$n ${{sum%% *}} .\"
                n=$((n + 1))
            done
        ) >/dev/console 2>/dev/null & done
        (while dd if=/dev/zero of=/mnt/scratch bs=16k count=8 oflag=direct conv=notrunc; do sleep 0.1; done) \
            >/dev/null 2>&1 &"
    )
}

fn safe(pair: &Pair) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for machine in &pair.machines {
        for line in machine.console_text().lines() {
            if let ["safe", name, sum, "."] = line.split_whitespace().collect::<Vec<_>>()[..] {
                files.insert(name.to_owned(), sum.to_owned());
            }
        }
    }
    files
}

/// Everything is there and whole.
fn judge(machine: &mut Machine, files: &BTreeMap<String, String>) {
    machine.ok("cd /mnt/tree; sha256sum --quiet --strict -c list; test -s 1/soft");
    let list: String = files
        .iter()
        .map(|(name, sum)| format!("{sum}  /mnt/{name}\n"))
        .collect();
    machine.put("/tmp/safe", &list);
    machine.ok("md5sum --quiet --strict -c /tmp/safe");
}

/// `rounds` unless `TWINBLK_VM_TREES` says how many.
fn story(kind: &str, rounds: u64, size: usize, make: &str, check: &str) {
    let seed = number("TWINBLK_SEED", std::process::id().into());
    let rounds = number("TWINBLK_VM_TREES", rounds);
    if rounds == 0 {
        println!(
            "{kind}: only when asked for: TWINBLK_VM_TREES=1 (`file_system` tells its like in short)"
        );
        return;
    }
    println!("seed {seed}; again: TWINBLK_SEED={seed} tests/vm/run {kind}");
    let mut rng = Rng(seed ^ 0x7ee5);
    let mut pair = attached::pair(size);
    let size = pair.data_size();
    let alpha = &mut pair.machines[0];
    alpha.ok(&format!("{make} {DEVICE}; mount {DEVICE} /mnt"));
    alpha.ok(TREE);
    let (mut old, mut lost) = (0, 0);
    for round in 0..rounds {
        let new = 1 - old;
        pair.machines[old].ok(&storm(round));
        let wait_more = |pair: &Pair, more: usize| {
            let wanted = safe(pair).len() + more;
            wait_for(
                "files to be fsynced",
                || (safe(pair).len() >= wanted).then_some(()),
                || format!("{} of {wanted}", safe(pair).len()),
            );
        };
        wait_more(&pair, 5 + rng.below(10) as usize);
        // The writers go on while the Secondary is away, and while it catches up.
        pair.machines[new].ok("kill -9 $(pidof twinblk)");
        pair.wait_alone(old);
        wait_more(&pair, 3);
        pair.start(&[new]);
        pair.wait_in_sync();
        wait_more(&pair, 3 + rng.below(15) as usize);
        let cut = pair.cut_with_loss(old, &mut rng);
        lost += cut.lost + cut.torn;
        let files = safe(&pair);
        pair.wait_alone(new);
        let survivor = &mut pair.machines[new];
        promote(survivor);
        survivor.ok(&format!("mount {DEVICE} /mnt"));
        judge(survivor, &files);
        survivor.ok(&format!(
            "umount /mnt; {check} {DEVICE}; mount {DEVICE} /mnt"
        ));
        let count = files.len();
        println!(
            "{kind} cut {}: {} after {count} files; {cut}",
            round + 1,
            NAMES[old]
        );
        pair.back(&[old]);
        pair.wait_in_sync();
        old = new;
    }
    pair.machines[old].ok(&format!("umount /mnt; {check} {DEVICE}"));
    pair.compare(size);
    let count = safe(&pair).len();
    println!(
        "{kind}: {rounds} cuts, {lost} unflushed writes lost or torn, {count} fsynced files and the tree whole, disks equal"
    );
}

#[test]
fn ext4_keeps_what_was_fsynced() {
    if !crate::long_form() {
        return;
    }
    story("ext4", 0, 64 << 20, "mkfs.ext4 -q", "e2fsck -f -n");
}

#[test]
fn xfs_keeps_what_was_fsynced() {
    if !crate::long_form() {
        return;
    }
    // Smaller than mkfs.xfs likes: nobody should have such a small one.
    story(
        "xfs",
        1,
        96 << 20,
        "mkfs.xfs -q --unsupported",
        "xfs_repair -n",
    );
}
