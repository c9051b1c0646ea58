//! Writes that know what they wrote, and the judge of what survived.
//!
//! Every 4 KiB block of every write has content of its own: seed, number of the write, block. One
//! connection writes, in the order of the numbers, many requests in flight but never two that overlap.
//! So the judge knows what a disk may hold:
//!
//! * after any loss ([`History::judge_blocks`]): in each block the last confirmed write, or one that
//!   was under way after it;
//! * on a peer that stayed alive when the Primary died ([`History::judge_prefix`]): exactly the first N
//!   writes for some N, under B and C with every confirmed write among them (promise 4: a peer's disk
//!   is a prefix of the stream of writes).

use super::nbd::{Client, FLUSH, FUA, WRITE, WRITE_ZEROES};
use super::seeds::Rng;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub const BLOCK: usize = 4096;

#[derive(Debug, Clone, Copy)]
struct Written {
    number: u64,
    first: u64,
    blocks: u64,
    zero: bool,
    confirmed: bool,
}

/// Everything that was ever written.
#[derive(Debug)]
pub struct History {
    seed: u64,
    /// The write that each block holds for certain; 0: never written, zeroes.
    settled: Vec<u64>,
    /// Since then, by number.
    recent: Vec<Written>,
    next: u64,
    /// Numbers of writes of zeroes.
    zeroes: std::collections::HashSet<u64>,
    pub flushes: u64,
}

impl History {
    pub fn new(seed: u64, size: u64) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            seed,
            settled: vec![0; usize::try_from(size).expect("fits") / BLOCK],
            recent: Vec::new(),
            next: 1,
            zeroes: [0].into(),
            flushes: 0,
        }))
    }

    fn blocks(&self) -> u64 {
        self.settled.len() as u64
    }

    /// What `block` holds after write `number`.
    fn content(&self, number: u64, block: u64) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        if !self.zeroes.contains(&number) {
            Rng(self.seed ^ number << 24 ^ block << 1 ^ 1).fill(&mut bytes[16..]);
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            bytes[8..16].copy_from_slice(&block.to_le_bytes());
        }
        bytes
    }

    fn holds(&self, content: &[u8], number: u64, block: u64) -> bool {
        let at = usize::try_from(block).expect("fits") * BLOCK;
        let bytes = &content[at..at + BLOCK];
        if self.zeroes.contains(&number) {
            return bytes.iter().all(|&b| b == 0);
        }
        bytes[..8] == number.to_le_bytes() && bytes == self.content(number, block)
    }

    /// Confirmed since the last judgement.
    pub fn confirmed(&self) -> usize {
        self.recent.iter().filter(|w| w.confirmed).count()
    }

    fn begin(&mut self, first: u64, blocks: u64, zero: bool) -> Written {
        let number = self.next;
        self.next += 1;
        if zero {
            self.zeroes.insert(number);
        }
        let written = Written {
            number,
            first,
            blocks,
            zero,
            confirmed: false,
        };
        self.recent.push(written);
        written
    }

    fn confirm(&mut self, number: u64) {
        let at = self.recent.partition_point(|w| w.number < number);
        self.recent[at].confirmed = true;
    }

    /// Each block is one of those it may be; what it is holds from now on.
    pub fn judge_blocks(&mut self, content: &[u8]) {
        let mut may: HashMap<u64, Vec<u64>> = HashMap::new();
        for w in &self.recent {
            for block in w.first..w.first + w.blocks {
                let list = may
                    .entry(block)
                    .or_insert_with(|| vec![self.settled[block as usize]]);
                if w.confirmed {
                    list.clear();
                }
                list.push(w.number);
            }
        }
        for block in 0..self.blocks() {
            let known = [self.settled[block as usize]];
            let candidates = may.get(&block).map_or(&known[..], Vec::as_slice);
            let found = candidates
                .iter()
                .rev()
                .find(|&&n| self.holds(content, n, block));
            let Some(&number) = found else {
                panic!(
                    "seed {}: block {block} holds {}; it must be one of the writes {candidates:?}",
                    self.seed,
                    self.name(content, block),
                );
            };
            self.settled[block as usize] = number;
        }
        self.recent.clear();
    }

    /// The content is that after the first N writes; with `confirmed`, no confirmed one is missing.
    /// Returns how many writes under way did not get through.
    pub fn judge_prefix(&mut self, content: &[u8], confirmed: bool) -> usize {
        let mut state = self.settled.clone();
        let mut good: Vec<bool> = (0..self.blocks())
            .map(|b| self.holds(content, state[b as usize], b))
            .collect();
        let mut wrong = good.iter().filter(|g| !**g).count();
        let last_confirmed = self
            .recent
            .iter()
            .filter(|w| w.confirmed)
            .map(|w| w.number)
            .max();
        let needed = if confirmed {
            last_confirmed.unwrap_or(0)
        } else {
            0
        };
        let mut best = (wrong, 0);
        let mut found = (wrong == 0 && needed == 0).then(|| (0, state.clone()));
        for (at, w) in self.recent.iter().enumerate() {
            for block in w.first..w.first + w.blocks {
                let now = self.holds(content, w.number, block);
                wrong = wrong + usize::from(!now) - usize::from(!good[block as usize]);
                good[block as usize] = now;
                state[block as usize] = w.number;
            }
            best = best.min((wrong, w.number));
            if wrong == 0 && w.number >= needed {
                found = Some((at + 1, state.clone()));
            }
        }
        let Some((count, state)) = found else {
            panic!(
                "seed {}: the content is not that after any first N of {} writes (confirmed up to \
                 {needed}); closest: {} blocks wrong after write {}",
                self.seed, self.next, best.0, best.1,
            );
        };
        let lost = self.recent.len() - count;
        self.settled = state;
        self.recent.clear();
        lost
    }

    fn name(&self, content: &[u8], block: u64) -> String {
        let at = usize::try_from(block).expect("fits") * BLOCK;
        let number = |at: usize| u64::from_le_bytes(content[at..at + 8].try_into().expect("eight"));
        format!("write {} of block {}", number(at), number(at + 8))
    }
}

/// A client that writes until it is told to stop or its connection breaks.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Load {
    /// `depth` requests in flight.
    pub fn start(export: &Path, history: &Arc<Mutex<History>>, seed: u64, depth: usize) -> Self {
        Self::limited(export, history, seed, depth, usize::MAX)
    }

    /// Exactly `count` writes, all confirmed.
    pub fn burst(export: &Path, history: &Arc<Mutex<History>>, seed: u64, count: usize) {
        let load = Self::limited(export, history, seed, 16, count);
        let result = load.thread.join().expect("the load thread");
        result.expect("every write succeeds");
    }

    fn limited(
        export: &Path,
        history: &Arc<Mutex<History>>,
        seed: u64,
        depth: usize,
        count: usize,
    ) -> Self {
        let client = Client::unix(export).expect("the export takes clients");
        let stop = Arc::new(AtomicBool::new(false));
        let (history, told) = (Arc::clone(history), Arc::clone(&stop));
        let thread =
            std::thread::spawn(move || drive(client, &history, &told, seed, (depth, count)));
        Self { stop, thread }
    }

    /// No more new writes; those under way must be confirmed.
    pub fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let result = self.thread.join().expect("the load thread");
        result.expect("the connection holds and every write succeeds");
    }

    /// The connection must break, because the Primary died.
    pub fn broken(self) {
        let result = self.thread.join().expect("the load thread");
        let error = result.expect_err("the connection breaks");
        assert!(error.raw_os_error() != Some(5), "no I/O error: {error}");
    }

    pub fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }
}

fn drive(
    mut client: Client,
    history: &Mutex<History>,
    stop: &AtomicBool,
    seed: u64,
    (depth, mut left): (usize, usize),
) -> std::io::Result<()> {
    const FLUSH_COOKIE: u64 = u64::MAX;
    let mut rng = Rng(seed ^ 0x10ad);
    let mut flying: Vec<Written> = Vec::new();
    let mut flushing = false;
    let blocks = history.lock().expect("whole").blocks();
    loop {
        while flying.len() < depth && left > 0 && !stop.load(Ordering::Relaxed) {
            let most = if rng.below(8) == 0 { 64 } else { 4 };
            let count = 1 + rng.below(most);
            let first = rng.below(blocks - count);
            let overlaps = |w: &Written| w.first < first + count && first < w.first + w.blocks;
            if flying.iter().any(overlaps) {
                continue;
            }
            left -= 1;
            let zero = rng.below(16) == 0;
            let mut history = history.lock().expect("whole");
            let written = history.begin(first, count, zero);
            let mut data = Vec::new();
            if !zero {
                for block in first..first + count {
                    data.extend(history.content(written.number, block));
                }
            }
            drop(history);
            flying.push(written);
            let kind = if zero { WRITE_ZEROES } else { WRITE };
            let flags = if rng.below(16) == 0 { FUA } else { 0 };
            let (offset, len) = (first * BLOCK as u64, count as u32 * BLOCK as u32);
            client.send(kind, flags, written.number, offset, len, &data)?;
            if !flushing && rng.below(32) == 0 {
                flushing = true;
                client.send(FLUSH, 0, FLUSH_COOKIE, 0, 0, &[])?;
            }
        }
        if flying.is_empty() && !flushing {
            client.disconnect();
            return Ok(());
        }
        let (cookie, errno) = client.receive()?;
        if errno != 0 {
            return Err(std::io::Error::from_raw_os_error(errno as i32));
        }
        if cookie == FLUSH_COOKIE {
            flushing = false;
            history.lock().expect("whole").flushes += 1;
        } else {
            flying.retain(|w| w.number != cookie);
            history.lock().expect("whole").confirm(cookie);
        }
    }
}

/// Waits until `count` more writes were confirmed than now.
pub fn wait_for_writes(history: &Mutex<History>, count: usize) {
    let now = history.lock().expect("whole").confirmed();
    super::wait_for(
        "writes to be confirmed",
        || (history.lock().expect("whole").confirmed() >= now + count).then_some(()),
        || format!("{:?}", history.lock().expect("whole").confirmed()),
    );
}
