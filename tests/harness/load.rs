//! Writes that know what they wrote, and the judge of what survived.
//!
//! Every 4 KiB block of every write has content of its own: seed, number of the write, block. One
//! connection writes, in the order of the numbers, many requests in flight but never two that overlap.
//! So the judge (`load/judge.rs`) knows what a disk may hold.

mod judge;

use super::content::Blocks;
use super::nbd::{Client, FLUSH, FUA, WRITE, WRITE_ZEROES};
use super::seeds::Rng;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub const BLOCK: usize = 4096;

/// A write as the client knows it.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    pub number: u64,
    first: u64,
    blocks: u64,
    zero: bool,
    confirmed: bool,
    /// Once it was confirmed: the first number that had not been sent yet.
    followers: u64,
    fua: bool,
    /// It was confirmed when the flush that is under way was sent.
    flushing: bool,
    /// It survives a loss of power.
    stable: bool,
    /// See [`History::peer_has`].
    peer_has: bool,
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
    /// Blocks in which a loss of power left sectors of several writes, each under a number of its own.
    torn: HashMap<u64, Vec<u8>>,
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
            torn: HashMap::new(),
            flushes: 0,
        }))
    }

    pub fn blocks(&self) -> u64 {
        self.settled.len() as u64
    }

    /// What `block` holds after write `number`.
    pub fn content(&self, number: u64, block: u64) -> Vec<u8> {
        if let Some(bytes) = self.torn.get(&number) {
            return bytes.clone();
        }
        let mut bytes = vec![0; BLOCK];
        if !self.zeroes.contains(&number) {
            Rng(self.seed ^ number << 24 ^ block << 1 ^ 1).fill(&mut bytes[16..]);
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            bytes[8..16].copy_from_slice(&block.to_le_bytes());
        }
        bytes
    }

    fn holds(&self, content: &(impl Blocks + ?Sized), number: u64, block: u64) -> bool {
        let bytes = content.block(block);
        if self.zeroes.contains(&number) {
            return bytes == [0; BLOCK];
        }
        if let Some(torn) = self.torn.get(&number) {
            return bytes == torn;
        }
        bytes[..8] == number.to_le_bytes() && bytes == self.content(number, block)
    }

    /// Confirmed since the last judgement.
    pub fn confirmed(&self) -> usize {
        self.recent.iter().filter(|w| w.confirmed).count()
    }

    /// The client sends a write of `blocks` blocks from `first` on.
    pub fn begin(&mut self, first: u64, blocks: u64, zero: bool, fua: bool) -> Written {
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
            followers: 0,
            fua,
            flushing: false,
            stable: false,
            peer_has: false,
        };
        self.recent.push(written);
        written
    }

    /// The client is told that write `number` succeeded.
    pub fn confirm(&mut self, number: u64) {
        let at = self.recent.partition_point(|w| w.number < number);
        self.recent[at].confirmed = true;
        self.recent[at].followers = self.next;
        self.recent[at].stable = self.recent[at].fua;
    }

    fn flush_begins(&mut self) {
        for w in &mut self.recent {
            w.flushing = w.confirmed;
        }
    }

    fn flush_done(&mut self) {
        self.flushes += 1;
        for w in &mut self.recent {
            w.stable |= w.flushing;
        }
    }

    /// Since the last judgement, confirmed and sure to survive a loss of power.
    pub fn stable(&self) -> usize {
        self.recent.iter().filter(|w| w.stable).count()
    }

    /// From now on [`Self::missed`] counts. The peer has what a completed flush covers or what was
    /// confirmed with FUA (under C), or with `all` everything that was confirmed.
    pub fn peer_has(&mut self, all: bool) {
        for w in &mut self.recent {
            w.peer_has = w.stable || all && w.confirmed;
        }
    }

    /// Bytes that a peer can lack which had what [`Self::peer_has`] says and got nothing since.
    pub fn missed(&self) -> u64 {
        let blocks: std::collections::HashSet<u64> = self
            .recent
            .iter()
            .filter(|w| !w.peer_has)
            .flat_map(|w| w.first..w.first + w.blocks)
            .collect();
        (blocks.len() * BLOCK) as u64
    }
}

/// How a client writes.
#[derive(Debug, Clone)]
pub struct Habits {
    /// Requests in flight.
    pub depth: usize,
    /// Writes, in all.
    pub count: usize,
    /// One write in so many is followed by a flush.
    pub flush: u64,
    /// One write in so many has FUA.
    pub fua: u64,
    /// Blocks of the largest write; 0: four, now and then 64.
    pub largest: u64,
    /// The blocks that are written to; the whole device when empty.
    pub area: std::ops::Range<u64>,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            depth: 16,
            count: usize::MAX,
            flush: 32,
            fua: 16,
            largest: 0,
            area: 0..0,
        }
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
        let habits = Habits {
            depth,
            ..Habits::default()
        };
        Self::over(Self::enter(export), history, seed, habits)
    }

    /// Exactly `count` writes, all confirmed.
    pub fn burst(export: &Path, history: &Arc<Mutex<History>>, seed: u64, count: usize) {
        let habits = Habits {
            count,
            ..Habits::default()
        };
        let load = Self::over(Self::enter(export), history, seed, habits);
        let result = load.thread.join().expect("the load thread");
        result.expect("every write succeeds");
    }

    fn enter(export: &Path) -> Client {
        Client::unix(export).expect("the export takes clients")
    }

    /// On a connection of any kind.
    pub fn over(client: Client, history: &Arc<Mutex<History>>, seed: u64, habits: Habits) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (history, told) = (Arc::clone(history), Arc::clone(&stop));
        let thread = std::thread::spawn(move || drive(client, &history, &told, seed, habits));
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
    habits: Habits,
) -> std::io::Result<()> {
    const FLUSH_COOKIE: u64 = u64::MAX;
    let mut rng = Rng(seed ^ 0x10ad);
    let mut flying: Vec<Written> = Vec::new();
    let mut flushing = false;
    let mut left = habits.count;
    let area = match habits.area {
        area if area.is_empty() => 0..history.lock().expect("whole").blocks(),
        area => area,
    };
    loop {
        while flying.len() < habits.depth && left > 0 && !stop.load(Ordering::Relaxed) {
            let most = match habits.largest {
                0 if rng.below(8) == 0 => 64,
                0 => 4,
                most => most,
            };
            let count = 1 + rng.below(most);
            let first = rng.between(area.start, area.end - count);
            let overlaps = |w: &Written| w.first < first + count && first < w.first + w.blocks;
            if flying.iter().any(overlaps) {
                continue;
            }
            left -= 1;
            let zero = rng.below(16) == 0;
            let fua = rng.below(habits.fua) == 0;
            let mut known = history.lock().expect("whole");
            let written = known.begin(first, count, zero, fua);
            let mut data = Vec::new();
            if !zero {
                for block in first..first + count {
                    data.extend(known.content(written.number, block));
                }
            }
            drop(known);
            flying.push(written);
            let kind = if zero { WRITE_ZEROES } else { WRITE };
            let flags = if fua { FUA } else { 0 };
            let (offset, len) = (first * BLOCK as u64, count as u32 * BLOCK as u32);
            client.send(kind, flags, written.number, offset, len, &data)?;
            if !flushing && rng.below(habits.flush) == 0 {
                flushing = true;
                history.lock().expect("whole").flush_begins();
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
            history.lock().expect("whole").flush_done();
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
