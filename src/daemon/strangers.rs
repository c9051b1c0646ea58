//! Connections nothing is known of yet. Anybody who reaches a port can open many and say nothing, or
//! talk nonsense; that must cost neither the places of those who belong here nor the log.
//!
//! * [`Strangers`]: so many at once; a new one is always let in, at the cost of an old one;
//! * [`Seldom`]: how often a kind of message is told;
//! * [`tame`]: text of theirs that people will read.

use super::running::lock;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A bounded number of connections that have not proved themselves.
#[derive(Debug)]
pub(crate) struct Strangers {
    most: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// By order of arrival.
    all: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    spoke: bool,
    displaced: Arc<Notify>,
}

/// The place of one connection. It is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    strangers: Arc<Strangers>,
    number: u64,
    displaced: Arc<Notify>,
}

impl Strangers {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            waiting: Mutex::default(),
        })
    }

    /// Lets a connection in. When all places are taken, one that has said nothing loses its own, else
    /// the one that has been here longest: whoever belongs here is through in a moment.
    pub(crate) fn admit(self: &Arc<Self>) -> Place {
        let mut waiting = lock(&self.waiting);
        if waiting.all.len() >= self.most {
            let silent = waiting.all.iter().find(|(_, entry)| !entry.spoke);
            let oldest = silent.or_else(|| waiting.all.iter().next());
            if let Some(number) = oldest.map(|(number, _)| *number)
                && let Some(entry) = waiting.all.remove(&number)
            {
                entry.displaced.notify_one();
            }
        }
        let number = waiting.next;
        waiting.next += 1;
        let displaced = Arc::new(Notify::new());
        let entry = Entry {
            spoke: false,
            displaced: Arc::clone(&displaced),
        };
        waiting.all.insert(number, entry);
        Place {
            strangers: Arc::clone(self),
            number,
            displaced,
        }
    }
}

impl Place {
    /// The connection has said something.
    pub(crate) fn spoke(&self) {
        if let Some(entry) = lock(&self.strangers.waiting).all.get_mut(&self.number) {
            entry.spoke = true;
        }
    }

    /// Ends when the place was given to another connection: this one must be closed.
    pub(crate) async fn displaced(&self) {
        self.displaced.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.strangers.waiting).all.remove(&self.number);
    }
}

/// Lets a kind of message through once per `pause`.
#[derive(Debug)]
pub(crate) struct Seldom {
    pause: Duration,
    /// When one was let through, and how many were not since.
    kinds: Mutex<BTreeMap<String, (Instant, u64)>>,
}

impl Seldom {
    pub(crate) fn new(pause: Duration) -> Self {
        Self {
            pause,
            kinds: Mutex::default(),
        }
    }

    /// Whether a message of this kind may be told now, and how many like it were left out before.
    /// `kind` must come from a bounded set.
    pub(crate) fn may(&self, kind: &str, now: Instant) -> Option<u64> {
        let mut kinds = lock(&self.kinds);
        let Some((last, left_out)) = kinds.get_mut(kind) else {
            kinds.insert(kind.to_string(), (now, 0));
            return Some(0);
        };
        if now.saturating_duration_since(*last) < self.pause {
            *left_out += 1;
            return None;
        }
        *last = now;
        Some(std::mem::take(left_out))
    }
}

/// " (and 12 more like this before)", or nothing.
pub(crate) fn and_more(left_out: u64) -> String {
    match left_out {
        0 => String::new(),
        n => format!(" (and {n} more like this before)"),
    }
}

/// Text that somebody unknown sent, fit for terminals and logs: printable ASCII as it is, everything
/// else escaped, at most `most` characters.
pub(crate) fn tame(text: &str, most: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let start = out.len();
        if c == ' ' || c.is_ascii_graphic() {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
        if out.len() > most {
            out.truncate(start);
            out.push('…');
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_displaced(place: &Place) -> bool {
        tokio::select! {
            biased;
            () = place.displaced() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn a_new_connection_takes_the_place_of_the_oldest_silent_one() {
        let strangers = Strangers::new(3);
        let first = strangers.admit();
        let second = strangers.admit();
        first.spoke();
        drop(strangers.admit());
        let third = strangers.admit();
        assert!(!is_displaced(&second).await, "there was room");
        let fourth = strangers.admit();
        assert!(is_displaced(&second).await);
        for place in [&third, &fourth] {
            assert!(!is_displaced(place).await);
            place.spoke();
        }
        // All have spoken: age decides.
        let fifth = strangers.admit();
        assert!(is_displaced(&first).await);
        assert!(!is_displaced(&third).await && !is_displaced(&fifth).await);
        drop((first, second, third, fourth, fifth));
        assert!(lock(&strangers.waiting).all.is_empty());
    }

    #[test]
    fn a_kind_of_message_is_told_once_per_pause_with_a_count() {
        let seldom = Seldom::new(Duration::from_secs(10));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(seldom.may("garbage", at(0)), Some(0));
        assert_eq!(seldom.may("garbage", at(1)), None);
        assert_eq!(seldom.may("secret", at(1)), Some(0), "another kind");
        assert_eq!(seldom.may("garbage", at(9)), None);
        assert_eq!(seldom.may("garbage", at(10)), Some(2));
        assert_eq!(seldom.may("garbage", at(20)), Some(0));
    }

    #[test]
    fn text_of_strangers_is_tamed() {
        assert_eq!(tame("bravo-2.example", 64), "bravo-2.example");
        assert_eq!(
            tame("\u{1b}[2Jx\ny\u{202e}", 64),
            "\\u{1b}[2Jx\\ny\\u{202e}"
        );
        assert_eq!(tame(&"a".repeat(64), 64), "a".repeat(64));
        assert_eq!(tame(&"a".repeat(65), 64), "a".repeat(64) + "…");
        assert_eq!(
            tame("ab\n", 3),
            "ab…",
            "an escape is never cut in the middle"
        );
    }
}
