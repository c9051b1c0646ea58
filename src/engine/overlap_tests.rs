//! The overlap lock against a slow and simple model, and its fairness.

use super::{Acquired, LockId, Mode, OverlapLock, class_of, reach};
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop, prop_assert_eq, prop_oneof, proptest,
};

const KIB: u64 = 1024;

fn granted(acquired: Acquired) -> LockId {
    match acquired {
        Acquired::Granted(id) => id,
        Acquired::Waiting(_) => panic!("expected to be granted"),
    }
}

fn waiting(acquired: Acquired) -> LockId {
    match acquired {
        Acquired::Waiting(id) => id,
        Acquired::Granted(_) => panic!("expected to wait"),
    }
}

fn release(lock: &mut OverlapLock<u32>, id: LockId) -> Vec<u32> {
    let mut out = Vec::new();
    lock.release(id, &mut out);
    out.into_iter().map(|(_, token)| token).collect()
}

#[test]
fn classes_cover_every_length() {
    assert_eq!(
        (class_of(1), class_of(2), class_of(3), class_of(4096)),
        (0, 1, 2, 12)
    );
    assert_eq!((class_of(4097), class_of(u64::MAX)), (13, 64));
    for len in [1, 2, 3, 511, 512, 513, 8 << 20, u64::MAX] {
        assert!(reach(class_of(len)) >= len);
    }
}

#[test]
fn neighbours_do_not_wait_and_overlaps_do() {
    let mut lock = OverlapLock::default();
    let a = granted(lock.acquire(0, 4096, Mode::Exclusive, 1));
    let b = granted(lock.acquire(4096, 4096, Mode::Exclusive, 2));
    waiting(lock.acquire(4095, 2, Mode::Exclusive, 3));
    assert_eq!((lock.held(), lock.waiting()), (2, 1));
    assert_eq!(release(&mut lock, a), []);
    assert_eq!(release(&mut lock, b), [3]);
}

#[test]
fn a_later_one_does_not_overtake_one_that_waits() {
    let mut lock = OverlapLock::default();
    let a = granted(lock.acquire(0, 8 * KIB, Mode::Exclusive, 1));
    let b = waiting(lock.acquire(4 * KIB, 8 * KIB, Mode::Exclusive, 2));
    let c = waiting(lock.acquire(8 * KIB, 4 * KIB, Mode::Exclusive, 3));
    assert_eq!(release(&mut lock, a), [2], "the third overlaps the second");
    assert_eq!(release(&mut lock, b), [3]);
    assert_eq!(release(&mut lock, c), []);
    assert!(lock.is_idle());
}

#[test]
fn reads_share_but_wait_for_writes_in_both_directions() {
    let mut lock = OverlapLock::default();
    let a = granted(lock.acquire(0, 8 * KIB, Mode::Shared, 1));
    let b = granted(lock.acquire(4 * KIB, 8 * KIB, Mode::Shared, 2));
    let c = waiting(lock.acquire(0, 16 * KIB, Mode::Exclusive, 3));
    waiting(lock.acquire(0, KIB, Mode::Shared, 4));
    waiting(lock.acquire(KIB, KIB, Mode::Shared, 5));
    assert_eq!(release(&mut lock, b), []);
    assert_eq!(release(&mut lock, a), [3]);
    assert_eq!(
        release(&mut lock, c),
        [4, 5],
        "together, in order of arrival"
    );
}

#[test]
fn cancelling_one_that_waits_lets_those_behind_it_through() {
    let mut lock = OverlapLock::default();
    let a = granted(lock.acquire(0, 4 * KIB, Mode::Exclusive, 1));
    let b = waiting(lock.acquire(0, 8 * KIB, Mode::Exclusive, 2));
    waiting(lock.acquire(4 * KIB, 4 * KIB, Mode::Exclusive, 3));
    let mut out = Vec::new();
    lock.cancel(b, &mut out);
    assert_eq!(out.iter().map(|&(_, token)| token).collect::<Vec<_>>(), [3]);
    out.clear();
    lock.cancel(b, &mut out);
    assert!(out.is_empty(), "cancelled twice changes nothing");
    assert_eq!(release(&mut lock, a), []);
    assert_eq!((lock.held(), lock.waiting()), (1, 0));
}

#[test]
fn a_trim_of_the_whole_device_is_ordered_with_everything() {
    let mut lock = OverlapLock::default();
    let device = 1u64 << 50;
    let writes: Vec<LockId> = (0..64)
        .map(|n| granted(lock.acquire(n * (device / 64), 4096, Mode::Exclusive, n as u32)))
        .collect();
    let trim = waiting(lock.acquire(0, device, Mode::Exclusive, 100));
    waiting(lock.acquire(device / 2 + 8192, 4096, Mode::Exclusive, 101));
    for &id in &writes[1..] {
        assert_eq!(release(&mut lock, id), []);
    }
    assert_eq!(release(&mut lock, writes[0]), [100]);
    assert_eq!(release(&mut lock, trim), [101]);
}

#[test]
fn any_overlap_sees_held_and_waiting() {
    let mut lock = OverlapLock::default();
    granted(lock.acquire(8192, 4096, Mode::Shared, 1));
    waiting(lock.acquire(8192, 65536, Mode::Exclusive, 2));
    assert!(lock.any_overlap(0, 8193) && lock.any_overlap(70000, 1));
    assert!(!lock.any_overlap(0, 8192) && !lock.any_overlap(8192 + 65536, u64::MAX));
    assert!(!lock.any_overlap(9000, 0));
}

#[test]
#[should_panic(expected = "empty range")]
fn an_empty_range_is_a_bug() {
    OverlapLock::default().acquire(4096, 0, Mode::Exclusive, 0);
}

#[test]
fn nothing_is_allocated_once_the_vectors_have_grown() {
    let mut lock = OverlapLock::default();
    let mut out = Vec::new();
    let round = |lock: &mut OverlapLock<u32>, out: &mut Vec<(LockId, u32)>| {
        let ids: Vec<LockId> = (0..256u64)
            .map(
                |n| match lock.acquire(n * 2048, 4096, Mode::Exclusive, n as u32) {
                    Acquired::Granted(id) | Acquired::Waiting(id) => id,
                },
            )
            .collect();
        for id in ids {
            lock.cancel(id, out);
        }
        out.clear();
        let places: Vec<usize> = lock.classes.iter().map(Vec::capacity).collect();
        (places, lock.ready.capacity(), out.capacity())
    };
    let grown = round(&mut lock, &mut out);
    for _ in 0..10 {
        assert_eq!(round(&mut lock, &mut out), grown);
    }
    assert!(lock.is_idle());
}

/// The naive model: a list in order of arrival; granted is who conflicts with nobody before it.
#[derive(Default)]
struct Model {
    ranges: Vec<(u32, u64, u64, Mode, bool)>,
}

impl Model {
    fn settle(&mut self) -> Vec<u32> {
        let mut granted = Vec::new();
        for n in 0..self.ranges.len() {
            let (token, start, end, mode, held) = self.ranges[n];
            let blocked = self.ranges[..n].iter().any(|&(_, s, e, m, _)| {
                s < end && start < e && (m == Mode::Exclusive || mode == Mode::Exclusive)
            });
            assert!(!held || !blocked, "what is held stays held");
            if !blocked && !held {
                self.ranges[n].4 = true;
                granted.push(token);
            }
        }
        granted
    }
}

#[derive(Clone, Debug)]
enum Step {
    Acquire(u64, u64, Mode),
    /// Gives back one of those present, held or waiting.
    Cancel(prop::sample::Index),
    /// Gives back one of those held.
    Release(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let mode = prop_oneof![3 => Just(Mode::Exclusive), 1 => Just(Mode::Shared)];
    let range = prop_oneof![
        20 => (0u64..64, 1u64..9),
        4 => (0u64..64, 1u64..64),
        1 => Just((0u64, 1u64 << 40)),
        1 => Just((32, u64::MAX - 32)),
    ];
    prop_oneof![
        5 => (range, mode).prop_map(|((offset, len), mode)| Step::Acquire(offset, len, mode)),
        1 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        3 => any::<prop::sample::Index>().prop_map(Step::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn it_grants_exactly_what_the_naive_model_grants(
        steps in prop::collection::vec(step(), 1..160)
    ) {
        let mut lock = OverlapLock::default();
        let mut model = Model::default();
        let mut ids = Vec::new();
        let mut out = Vec::new();
        for (token, step) in steps.into_iter().enumerate() {
            let token = token as u32;
            let gone = match step {
                Step::Acquire(offset, len, mode) => {
                    let any = lock.any_overlap(offset, len);
                    let end = offset + len;
                    prop_assert_eq!(any, model.ranges.iter().any(|r| r.1 < end && offset < r.2));
                    model.ranges.push((token, offset, end, mode, false));
                    let expected = model.settle();
                    let (id, now) = match lock.acquire(offset, len, mode, token) {
                        Acquired::Granted(id) => (id, vec![token]),
                        Acquired::Waiting(id) => (id, vec![]),
                    };
                    prop_assert_eq!(now, expected);
                    ids.push((token, id));
                    None
                }
                Step::Cancel(which) if !ids.is_empty() => Some(which.get(&ids).0),
                Step::Release(which) => {
                    let held: Vec<u32> =
                        model.ranges.iter().filter(|r| r.4).map(|r| r.0).collect();
                    (!held.is_empty()).then(|| *which.get(&held))
                }
                Step::Cancel(_) => None,
            };
            if let Some(gone) = gone {
                give_back(&mut lock, &mut model, &mut ids, gone, &mut out);
            }
            let held = model.ranges.iter().filter(|r| r.4).count();
            prop_assert_eq!((lock.held(), lock.waiting()), (held, model.ranges.len() - held));
        }
        // Everything is granted in the end.
        while let Some(held) = model.ranges.iter().find(|r| r.4).map(|r| r.0) {
            give_back(&mut lock, &mut model, &mut ids, held, &mut out);
        }
        prop_assert_eq!(model.ranges.len(), 0);
        assert!(lock.is_idle());
    }
}

fn give_back(
    lock: &mut OverlapLock<u32>,
    model: &mut Model,
    ids: &mut Vec<(u32, LockId)>,
    token: u32,
    out: &mut Vec<(LockId, u32)>,
) {
    let at = ids
        .iter()
        .position(|i| i.0 == token)
        .expect("it is present");
    let (_, id) = ids.swap_remove(at);
    let place = model
        .ranges
        .iter()
        .position(|r| r.0 == token)
        .expect("it is present");
    let held = model.ranges.remove(place).4;
    out.clear();
    if held {
        lock.release(id, out);
    } else {
        lock.cancel(id, out);
    }
    let tokens: Vec<u32> = out.iter().map(|&(_, token)| token).collect();
    assert_eq!(tokens, model.settle());
    assert!(out.iter().all(|&(id, token)| ids.contains(&(token, id))));
}
