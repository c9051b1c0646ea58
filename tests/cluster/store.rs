//! A client of the service: goes to the floating address, writes all the time, and knows what was confirmed.

use super::lan::Lan;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Error, Result, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const PORT: u16 = 8080;
const BLOCKS: u64 = 64;

/// What a block may hold.
#[derive(Debug, Default, Clone)]
struct Known {
    confirmed: u64,
    /// Sent later and not confirmed: it may be there or not.
    maybe: BTreeSet<u64>,
}

/// See the module. Ends when dropped.
#[derive(Debug)]
pub struct Writer {
    lan: Arc<Lan>,
    known: Arc<Mutex<BTreeMap<u64, Known>>>,
    confirmed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    /// Nothing is written while it is held.
    pause: Arc<Mutex<()>>,
    thread: Option<JoinHandle<()>>,
}

fn ask(lan: &Lan, line: &str) -> Result<String> {
    let mut stream = lan.connect(PORT)?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match answer.strip_suffix('\n') {
        Some(text) => Ok(text.to_owned()),
        None => Err(Error::other("it ended in the middle")),
    }
}

impl Writer {
    pub fn start(lan: &Arc<Lan>) -> Self {
        let mut writer = Self {
            lan: Arc::clone(lan),
            known: Arc::default(),
            confirmed: Arc::default(),
            stop: Arc::default(),
            pause: Arc::default(),
            thread: None,
        };
        let (lan, known, pause) = (lan.clone(), writer.known.clone(), writer.pause.clone());
        let (confirmed, stop) = (writer.confirmed.clone(), writer.stop.clone());
        writer.thread = Some(std::thread::spawn(move || {
            for number in 1.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let _turn = pause.lock().expect("whole");
                let block = number % BLOCKS;
                known
                    .lock()
                    .expect("whole")
                    .entry(block)
                    .or_default()
                    .maybe
                    .insert(number);
                let sent = ask(&lan, &format!("put {block} {number}"));
                if sent.is_ok_and(|text| text == "ok") {
                    let mut known = known.lock().expect("whole");
                    let block = known.entry(block).or_default();
                    block.confirmed = number;
                    block.maybe.clear();
                    confirmed.fetch_add(1, Ordering::Relaxed);
                } else {
                    // Nobody there: not in a hot loop.
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }));
        writer
    }

    /// Writes are being confirmed.
    pub fn progresses(&self) -> bool {
        let before = self.confirmed.load(Ordering::Relaxed);
        let end = std::time::Instant::now() + Duration::from_secs(2);
        while std::time::Instant::now() < end {
            if self.confirmed.load(Ordering::Relaxed) >= before + 3 {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Every confirmed write is there, or one that was sent after it.
    pub fn judge(&self) {
        let _turn = self.pause.lock().expect("whole");
        let known = self.known.lock().expect("whole").clone();
        for (block, known) in known {
            let text = crate::wait(
                "the service to answer",
                || ask(&self.lan, &format!("get {block}")).ok(),
                || "it does not".into(),
            );
            let found = if text.is_empty() { Ok(0) } else { text.parse() };
            let found: u64 = found.unwrap_or_else(|_| panic!("block {block} holds {text:?}"));
            assert!(
                found == known.confirmed || known.maybe.contains(&found),
                "block {block} holds write {found}; it must be {known:?}"
            );
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
