//! The disk model itself: what is flushed stays, what is not may go. Without this the power cuts of the
//! other stories would prove nothing.

use crate::disk::{CACHE, Cut, Disk};
use crate::harness::nbd::Client;
use crate::harness::seeds::Rng;
use crate::machine::{Machine, Root};

const SIZE: usize = 16 << 20;

/// A directory, a disk in it, and a seed under which a cut loses all it can.
fn stage() -> (tempfile::TempDir, Disk) {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::new(&directory.path().join("disk"), SIZE);
    (directory, disk)
}

/// Cuts with one seed after the other until a cut takes everything (`fill` writes it anew each time).
fn cut_until(disk: &Disk, mut fill: impl FnMut(), wanted: impl Fn(Cut) -> bool) -> Cut {
    (0..1000)
        .map(|seed| {
            fill();
            disk.cut(&mut Rng(seed))
        })
        .find(|cut| wanted(*cut))
        .expect("one of a thousand seeds")
}

#[test]
fn a_cut_loses_tears_and_keeps_unflushed_writes_and_nothing_else() {
    let (_directory, disk) = stage();
    let enter = || Client::unix(disk.socket()).expect("it takes clients");
    let mut client = enter();
    client.write(0, &[1; 65536]).expect("writes");
    client.flush().expect("flushes");
    client.write(4096, &[2; 8192]).expect("writes");
    assert_eq!(client.read(4096, 1).expect("reads"), [2], "read as written");
    drop(client);
    let fill = || {
        let mut client = enter();
        client.write(4096, &[2; 8192]).expect("writes");
    };
    let all_lost = Cut {
        lost: 1,
        torn: 0,
        kept: 0,
    };
    cut_until(&disk, fill, |cut| cut == all_lost);
    let torn = cut_until(&disk, fill, |cut| cut.torn == 1);
    assert_eq!((torn.lost, torn.kept), (0, 0));
    let content = disk.content(65536);
    assert!(
        content[..4096]
            .iter()
            .chain(&content[12288..])
            .all(|&b| b == 1)
    );
    for sector in content.chunks(512) {
        assert!(sector.iter().all(|&b| b == sector[0]), "sectors are whole");
    }
    let kept = cut_until(&disk, fill, |cut| cut.kept == 1);
    assert_eq!((kept.lost, kept.torn), (0, 0));
    let content = disk.content(65536);
    assert!(content[4096..12288].iter().all(|&b| b == 2));
}

#[test]
fn a_connection_from_before_the_cut_changes_nothing_any_more() {
    let (_directory, disk) = stage();
    let mut client = Client::unix(disk.socket()).expect("it takes clients");
    client.write(0, &[1; 4096]).expect("writes");
    client.flush().expect("flushes");
    disk.cut(&mut Rng(1));
    client
        .write(0, &[2; 4096])
        .expect_err("the machine is dead");
    assert!(disk.content(4096).iter().all(|&b| b == 1));
}

#[test]
fn the_cache_is_bounded() {
    let (_directory, disk) = stage();
    let mut client = Client::unix(disk.socket()).expect("it takes clients");
    for n in 0..SIZE >> 20 {
        client
            .write((n as u64) << 20, &[7; 1 << 20])
            .expect("writes");
    }
    drop(client);
    let cut = disk.cut(&mut Rng(1));
    assert_eq!((cut.lost + cut.torn + cut.kept) as usize, CACHE >> 20);
    let sure = (SIZE - CACHE) as u64;
    assert!(
        disk.content(sure).iter().all(|&b| b == 7),
        "the oldest reached the medium"
    );
}

/// The same through a real kernel: O_DIRECT writes that are done are lost, unless there was an fsync.
#[test]
fn a_kernels_unflushed_writes_are_lost_and_flushed_ones_are_not() {
    let (directory, disk) = stage();
    let mut machine = Machine::new("alpha", 1, Root::Small, directory.path(), &[&disk]);
    let write = |machine: &mut Machine, letter: char, options: &str| {
        machine.power_on();
        let kernel = machine.ready();
        let cache = machine.ok("cat /sys/block/vda/queue/write_cache");
        assert_eq!(
            cache.trim(),
            "write back",
            "the kernel knows that the disk has a cache"
        );
        machine.ok(&format!(
            "head -c 65536 /dev/zero | tr '\\0' {letter} > /tmp/data
             dd if=/tmp/data of=/dev/vda bs=4096 oflag=direct {options}"
        ));
        let read = machine.ok("dd if=/dev/vda bs=4096 count=1 iflag=direct 2>/dev/null");
        assert!(
            read.chars().all(|c| c == letter),
            "it reads what was written"
        );
        kernel
    };
    let kernel = write(&mut machine, 'A', "conv=fsync");
    machine.cut();
    let seed = (0..)
        .find(|&seed| Rng(seed).below(4) == 0)
        .expect("a luckless seed");
    let flushed = disk.cut(&mut Rng(seed));
    assert_eq!(flushed, Cut::default(), "nothing was at risk");
    assert!(
        disk.content(65536).iter().all(|&b| b == b'A'),
        "what was flushed is there"
    );
    let flushes = disk.flushes();
    write(&mut machine, 'B', "");
    assert_eq!(disk.flushes(), flushes, "nobody flushed");
    machine.cut();
    let cut = disk.cut(&mut Rng(seed));
    assert_eq!((cut.torn, cut.kept), (0, 0), "a luckless seed");
    assert!(cut.lost > 0);
    assert!(
        disk.content(65536).iter().all(|&b| b == b'A'),
        "what was not is lost"
    );
    println!("kernel {kernel}: fsync: {flushed}; without: {cut}");
}
