//! The power of one machine or of both is cut under load, at a moment the seed chooses; unflushed writes
//! in the disks' caches are lost, kept or torn. Protocol C. A client on this host, which survives, knows
//! which writes were confirmed, and which of them were flushed.
//!
//! Invariants, after each cut:
//! * of one machine: no confirmed write is missing, on either disk; a survivor that takes over holds
//!   each write whole, in their order; when the Secondary's power is cut the client notices nothing;
//! * of both: no write that a completed flush covers, or that was confirmed with FUA, is missing;
//! * the machines find each other again without help and end up equal, byte for byte.

use crate::harness::load::{Habits, History, Load, wait_for_writes};
use crate::harness::seeds::Rng;
use crate::pair::{NAMES, Pair};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Cuts, unless `TWINBLK_VM_CUTS` says how many.
const CUTS: u64 = 2;

struct Story {
    pair: Pair,
    rng: Rng,
    size: u64,
    history: Arc<Mutex<History>>,
    start: Instant,
    primary: usize,
    /// For the last line: cuts, and what the disks lost.
    cuts: u64,
    lost: u64,
    confirmed: usize,
}

pub(crate) fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number"))
    })
}

#[test]
fn no_confirmed_write_is_lost_when_the_power_is_cut() {
    let seed = number("TWINBLK_SEED", std::process::id().into());
    let cuts = number("TWINBLK_VM_CUTS", CUTS);
    println!("seed {seed}, {cuts} cuts; again: TWINBLK_SEED={seed} tests/vm/run power_cut");
    let start = Instant::now();
    let mut pair = Pair::in_sync(24 << 20);
    let size = pair.data_size();
    let mut story = Story {
        pair,
        rng: Rng(seed),
        size,
        history: History::new(seed, size),
        start,
        primary: 0,
        cuts: 0,
        lost: 0,
        confirmed: 0,
    };
    for round in 0.. {
        if story.cuts >= cuts {
            break;
        }
        // Each kind at least once in a few rounds, whatever the seed.
        match (round + seed) % 5 {
            0 => story.secondary(),
            1 => story.primary_and_take_over(),
            2 => story.primary_and_return(),
            3 => story.both(),
            _ => story.secondary_in_its_resync(),
        }
    }
    println!(
        "{} cuts, {} writes confirmed, {} unflushed writes lost or torn on the disks, none missing; {} s",
        story.cuts,
        story.confirmed,
        story.lost,
        start.elapsed().as_secs()
    );
    assert!(story.lost > 0, "power cuts that lose nothing prove nothing");
}

impl Story {
    /// A load on the Primary that has confirmed some writes; a number of its own per load.
    fn load(&mut self) -> Load {
        let client = self.pair.client(self.primary);
        // Some clients flush all the time, some hardly ever.
        let often = [4, 32, 256][self.rng.below(3) as usize];
        let habits = Habits {
            depth: 1 + self.rng.below(32) as usize,
            flush: often,
            fua: often,
            ..Habits::default()
        };
        let load = Load::over(client, &self.history, self.rng.next(), habits);
        let count = 10 + self.rng.below(300) as usize;
        wait_for_writes(&self.history, count);
        load
    }

    fn cut(&mut self, at: usize) {
        let cut = self.pair.cut(at, &mut self.rng);
        self.cuts += 1;
        self.lost += u64::from(cut.lost + cut.torn);
        let role = if at == self.primary {
            "Primary"
        } else {
            "Secondary"
        };
        let history = self.history.lock().unwrap();
        println!(
            "{:4} s cut {}: {} ({role}) after {} writes confirmed, {} of them flushed; {cut}",
            self.start.elapsed().as_secs(),
            self.cuts,
            NAMES[at],
            history.confirmed(),
            history.stable(),
        );
    }

    /// Both disks hold the same, and all that was confirmed; nothing is under way.
    fn equal_and_whole(&mut self) {
        self.pair.wait_in_sync();
        let content = self.pair.compare(self.size);
        let mut history = self.history.lock().unwrap();
        self.confirmed += history.confirmed();
        history.judge_blocks(&content);
    }

    /// The Secondary loses power; the client goes on all the time.
    fn secondary(&mut self) {
        let load = self.load();
        let secondary = 1 - self.primary;
        self.cut(secondary);
        self.pair.back(&[secondary]);
        self.pair.wait_in_sync();
        wait_for_writes(&self.history, 10);
        load.finish();
        self.equal_and_whole();
    }

    /// The same twice in a row: the second time it had just begun to catch up, or just ended.
    fn secondary_in_its_resync(&mut self) {
        let load = self.load();
        let secondary = 1 - self.primary;
        self.cut(secondary);
        self.pair.back(&[secondary]);
        let now = self.pair.wait(secondary, "the peer is back", |s| {
            let state = &s["peers"][0]["volumes"][0]["replication"];
            state == "SyncTarget" || state == "Established"
        });
        println!(
            "            again while {}",
            now["peers"][0]["volumes"][0]["replication"]
        );
        self.cut(secondary);
        self.pair.back(&[secondary]);
        self.pair.wait_in_sync();
        wait_for_writes(&self.history, 10);
        load.finish();
        self.equal_and_whole();
    }

    /// The Primary loses power, the other takes over, and the first comes back under load.
    fn primary_and_take_over(&mut self) {
        let load = self.load();
        let old = self.primary;
        self.cut(old);
        load.broken();
        let new = 1 - old;
        self.pair.wait_alone(new);
        self.pair.machines[new].ok("twinblk primary r0");
        let mut client = self.pair.client(new);
        let content = client.read_all().expect("reads");
        client.disconnect();
        let mut history = self.history.lock().unwrap();
        self.confirmed += history.confirmed();
        history.judge_order(&content, true);
        drop(history);
        self.primary = new;
        let load = self.load();
        self.pair.back(&[old]);
        self.pair.wait_in_sync();
        load.finish();
        assert_eq!(self.pair.status(old)["role"], "Secondary");
        self.equal_and_whole();
    }

    /// The Primary loses power, nobody takes over, and it becomes Primary again.
    fn primary_and_return(&mut self) {
        let load = self.load();
        self.cut(self.primary);
        load.broken();
        self.pair.back(&[self.primary]);
        self.equal_and_whole();
        self.pair.machines[self.primary].ok("twinblk primary r0");
    }

    /// One power supply for both.
    fn both(&mut self) {
        let load = self.load();
        let first = usize::from(self.rng.below(2) == 1);
        for machine in [first, 1 - first] {
            self.pair.machines[machine].cut();
        }
        self.cut(first);
        self.cut(1 - first);
        load.broken();
        self.pair.back(&[first, 1 - first]);
        self.pair.wait_in_sync();
        let content = self.pair.compare(self.size);
        let mut history = self.history.lock().unwrap();
        self.confirmed += history.confirmed();
        let older = history.judge_stable(&content);
        println!("            {older} blocks confirmed and not flushed are gone, as they may");
        drop(history);
        self.primary = usize::from(self.rng.below(2) == 1);
        self.pair.machines[self.primary].ok("twinblk primary r0");
    }
}
