//! Numbers that repeat: everything random in a test comes from its seed, which every failure names.

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;

/// A stream of numbers.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        twinblk_engine::rng::split_mix(&mut self.0)
    }

    /// 0 up to and without `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// `start` up to and without `end`.
    pub fn between(&mut self, start: u64, end: u64) -> u64 {
        start + self.below(end - start)
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// How often each story is told, each time with another seed: `TWINBLK_ROUNDS`, or 9.
pub fn rounds() -> u64 {
    std::env::var("TWINBLK_ROUNDS").map_or(9, |text| text.parse().expect("a number"))
}

/// Runs `story` with [`rounds`] seeds, or the one in `TWINBLK_SEED`. A panic names the seed.
pub fn each_seed(story: impl Fn(u64)) {
    some_seeds(rounds(), story);
}

/// The same with so many seeds: a story that waits for a clock.
pub fn some_seeds(rounds: u64, story: impl Fn(u64)) {
    for seed in seeds(rounds) {
        one_seed(seed, &story);
    }
}

/// The same with seeds 1 to `rounds`, several at a time.
pub fn seeds_side_by_side(rounds: u64, threads: usize, story: impl Fn(u64) + Sync) {
    let seeds = Mutex::new(seeds(rounds).into_iter());
    let next = || seeds.lock().expect("whole").next();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) = next() {
                    one_seed(seed, &story);
                }
            });
        }
    });
}

fn seeds(rounds: u64) -> Vec<u64> {
    match std::env::var("TWINBLK_SEED") {
        Ok(text) => vec![text.parse().expect("TWINBLK_SEED is a number")],
        Err(_) => (1..=rounds).collect(),
    }
}

fn one_seed(seed: u64, story: impl Fn(u64)) {
    let run = AssertUnwindSafe(|| story(seed));
    if let Err(panic) = std::panic::catch_unwind(run) {
        eprintln!("seed {seed} failed; repeat it with TWINBLK_SEED={seed}");
        std::panic::resume_unwind(panic);
    }
}

/// The protocol a seed runs under: all three in turn.
pub fn protocol(seed: u64) -> &'static str {
    ["C", "A", "B"][(seed % 3) as usize]
}
