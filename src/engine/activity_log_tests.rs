//! The set against a model: what may differ is always named by the log on the disk.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque as Queue};

#[derive(Clone, Debug)]
enum Step {
    /// Somebody wants to write.
    Write(u32, u32),
    /// One of those who hold is done.
    Done(usize),
    /// The transaction under way is on the disk.
    Written,
    /// What was cleaned is on the disk.
    Cleaned,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u32..12, 1u32..4).prop_map(|(e, n)| Step::Write(e, n)),
        3 => any::<usize>().prop_map(Step::Done),
        2 => Just(Step::Written),
        2 => Just(Step::Cleaned),
    ];
    prop::collection::vec(step, 1..300)
}

const SIZE: u64 = 4096;

/// Drives a log as the engine does.
struct World {
    log: ActivityLog,
    /// What the log on the disk says, and what it will say when the transaction is written.
    disk: BTreeSet<u32>,
    next_disk: Option<BTreeSet<u32>>,
    /// Extents in which something may be in memory or in a cache only.
    unstable: BTreeSet<u32>,
    /// Being cleaned, and not written to since.
    cleaning: Option<BTreeSet<u32>>,
    waiting: Queue<(u64, u64, bool)>,
    holding: Vec<(u64, u64)>,
}

impl World {
    fn new(slots: usize) -> Self {
        let mut log = ActivityLog::default();
        log.begin(slots, SIZE as u32);
        Self {
            log,
            disk: BTreeSet::new(),
            next_disk: None,
            unstable: BTreeSet::new(),
            cleaning: None,
            waiting: Queue::new(),
            holding: Vec::new(),
        }
    }

    fn table(&self) -> BTreeSet<u32> {
        (0..self.log.capacity())
            .map(|slot| self.log.extent_of(slot))
            .filter(|&e| e != NO_EXTENT)
            .collect()
    }

    /// The write starts: from here on its extents may differ.
    fn start(&mut self, offset: u64, len: u64) {
        for extent in self.log.extents(offset, len) {
            assert!(
                self.disk.contains(&extent),
                "{extent} is written and not in the log"
            );
            self.unstable.insert(extent);
            if let Some(cleaning) = &mut self.cleaning {
                cleaning.remove(&extent);
            }
        }
        self.holding.push((offset, len));
    }

    fn write(&mut self, extent: u32, count: u32) {
        let (offset, len) = (u64::from(extent) * SIZE, u64::from(count) * SIZE);
        let len = self.log.part(offset, len);
        if self.log.hold(offset, len) {
            self.start(offset, len);
        } else {
            self.waiting.push_back((offset, len, false));
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write(extent, count) => self.write(extent, count),
            Step::Done(_) if self.holding.is_empty() => {}
            Step::Done(which) => {
                let (offset, len) = self.holding.swap_remove(which % self.holding.len());
                self.log.release(offset, len);
            }
            Step::Written => {
                if let Some(next) = self.next_disk.take() {
                    self.disk = next;
                    self.log.end_transaction();
                }
            }
            Step::Cleaned => {
                if let Some(cleaned) = self.cleaning.take() {
                    self.unstable.retain(|e| !cleaned.contains(e));
                    self.log.end_cleaning();
                }
            }
        }
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(&(offset, len, true)) = self.waiting.front() {
            if !self.log.is_active(offset, len) {
                break;
            }
            self.waiting.pop_front();
            self.start(offset, len);
        }
        for i in 0..self.waiting.len() {
            let (offset, len, reserved) = self.waiting[i];
            if !reserved {
                if self.log.reserve(offset, len) == Reserved::NotYet {
                    break;
                }
                self.waiting[i].2 = true;
            }
        }
        if self.log.wants_transaction() {
            self.log.begin_transaction();
            self.next_disk = Some(self.table());
        }
        if self.log.wants_cleaning() {
            assert!(self.cleaning.is_none(), "one after the other");
            self.cleaning = Some(self.log.begin_cleaning().collect());
        }
        self.check();
    }

    fn check(&self) {
        for extent in &self.unstable {
            assert!(
                self.disk.contains(extent),
                "{extent} is forgotten too early"
            );
            if let Some(next) = &self.next_disk {
                assert!(
                    next.contains(extent),
                    "{extent} is about to be forgotten too early"
                );
            }
        }
        let mut holds: BTreeMap<u32, u32> = BTreeMap::new();
        let reserved = self.waiting.iter().filter(|w| w.2).map(|w| (w.0, w.1));
        for (offset, len) in self.holding.iter().copied().chain(reserved) {
            for extent in self.log.extents(offset, len) {
                *holds.entry(extent).or_default() += 1;
            }
        }
        assert_eq!(self.log.held(), holds.len());
        for (slot, state) in self.log.slots.iter().enumerate() {
            let wanted = holds.get(&state.extent).copied().unwrap_or(0);
            assert_eq!(state.holds, wanted, "slot {slot}");
            assert_eq!(
                self.log.index.get(&self.log.slots, state.extent),
                (state.extent != NO_EXTENT).then_some(slot as u32)
            );
        }
    }
}

proptest! {
    #[test]
    fn whatever_may_differ_is_named_on_the_disk(slots in 1usize..10, steps in steps()) {
        let mut world = World::new(slots);
        for step in &steps {
            world.step(step);
        }
        // Nobody waits for ever.
        for _ in 0..10_000 {
            if world.waiting.is_empty() && world.holding.is_empty() && world.log.is_idle() {
                break;
            }
            for step in [Step::Done(0), Step::Written, Step::Cleaned] {
                world.step(&step);
            }
        }
        prop_assert!(world.waiting.is_empty(), "{:?}", world.log);
        prop_assert!(world.holding.is_empty() && world.log.is_idle());
        prop_assert_eq!(world.log.held(), 0);
    }

    /// A stream of hot writes, some always held, does not keep a cold one out.
    #[test]
    fn hot_writes_do_not_starve_cold_ones(slots in 2usize..6, hot in 1u32..6) {
        let mut world = World::new(slots);
        for round in 0..50u32 {
            let cold = 100 + round;
            world.write(cold, 1);
            let mut waits = true;
            for i in 0..8 * slots as u32 {
                // A hot one comes, and the oldest is done, if there are two.
                if world.holding.len() + world.waiting.len() < slots + 2 {
                    world.write(i % hot, 1);
                }
                world.settle();
                world.step(&Step::Written);
                world.step(&Step::Cleaned);
                if world.holding.len() > 1 {
                    let (offset, len) = world.holding.remove(0);
                    world.log.release(offset, len);
                }
                waits = world.waiting.iter().any(|w| w.0 == u64::from(cold) * SIZE);
                if !waits {
                    break;
                }
            }
            prop_assert!(!waits, "round {round}: {:?}", world.waiting);
        }
    }
}

#[test]
fn a_hot_write_passes_one_that_waits_for_its_transaction() {
    let mut world = World::new(4);
    world.write(1, 1);
    world.settle();
    world.step(&Step::Written);
    world.write(2, 1);
    world.settle();
    assert_eq!(world.holding.len(), 1, "the cold one waits");
    world.write(1, 1);
    assert_eq!(world.holding.len(), 2, "the hot one does not");
    world.step(&Step::Written);
    assert_eq!(world.holding.len(), 3);
}

#[test]
fn many_cold_extents_share_a_transaction() {
    let mut world = World::new(200);
    for extent in 0..100 {
        world.write(extent, 1);
    }
    world.settle();
    world.step(&Step::Written);
    assert_eq!(world.log.counts.transactions, 1);
    assert_eq!(world.holding.len(), 100);
}

#[test]
fn what_was_retired_comes_back_without_a_transaction() {
    let mut world = World::new(2);
    for extent in 0..3 {
        world.write(extent, 1);
        world.settle();
        for step in [Step::Written, Step::Done(0), Step::Cleaned] {
            world.step(&step);
        }
    }
    world.step(&Step::Cleaned);
    let before = world.log.counts;
    assert_eq!(before.evicted, 1);
    for extent in [1, 2, 1, 2] {
        world.write(extent, 1);
        assert_eq!(
            world.holding.len(),
            1,
            "extent {extent} is still in the log"
        );
        world.step(&Step::Done(0));
    }
    assert_eq!(world.log.counts, before);
}

#[test]
fn a_range_is_cut_where_it_would_hold_too_much() {
    let mut log = ActivityLog::default();
    log.begin(8, 4096);
    assert_eq!(log.part(0, 4096), 4096);
    assert_eq!(log.part(0, 1 << 40), 4 * 4096);
    assert_eq!(log.part(512, 1 << 40), 4 * 4096 - 512);
    log.begin(2, 4096);
    assert_eq!(log.part(4096 + 512, 8192), 4096 - 512);
}
