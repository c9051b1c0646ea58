//! The course of a run: a hash of everything that happened, to prove that a seed repeats; how often
//! each kind of thing happened; and, on demand, lines for people.

use std::collections::BTreeMap;

/// See the module.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    /// Things that happened.
    pub steps: u64,
    /// Keep lines.
    pub verbose: bool,
    /// The lines.
    pub lines: Vec<String>,
    /// How often each state transition, handshake row, fault and the like occurred.
    pub counts: BTreeMap<String, u64>,
}

impl Trace {
    /// One number of what happened.
    pub fn mix(&mut self, value: u64) {
        let mut h = self.hash ^ value;
        h = h.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.hash = h ^ (h >> 29);
    }

    /// Bytes of what happened.
    pub fn mix_bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
        self.mix(bytes.len() as u64);
    }

    /// The hash so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Counts an occurrence.
    pub fn count(&mut self, what: &str) {
        if let Some(n) = self.counts.get_mut(what) {
            *n += 1;
        } else {
            self.counts.insert(what.to_owned(), 1);
        }
    }

    /// A line for people. The text is made only when it is wanted.
    pub fn line(&mut self, now: u64, text: impl FnOnce() -> String) {
        if self.verbose {
            let (s, us) = (now / 1_000_000_000, now % 1_000_000_000 / 1000);
            self.lines.push(format!("{s:>4}.{us:06} {}", text()));
        }
    }
}
