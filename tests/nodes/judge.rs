//! The judge of the other stories is judged: what a survivor's disk may hold, and each way in which it may
//! not.

use crate::harness::load::{BLOCK, History};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Blocks of the disk.
const BLOCKS: u64 = 8;

/// A history, and the disk of a peer that gets of it what a story says.
struct Story {
    history: History,
    disk: Vec<u8>,
}

impl Story {
    fn new() -> Self {
        let size = BLOCKS * BLOCK as u64;
        let history = History::new(7, size);
        Self {
            history: std::sync::Arc::into_inner(history)
                .expect("nobody else has it")
                .into_inner()
                .expect("whole"),
            disk: vec![0; size as usize],
        }
    }

    /// The client sends a write; its number.
    fn sent(&mut self, first: u64, blocks: u64) -> u64 {
        self.history.begin(first, blocks, false, false).number
    }

    /// The disk has a block of the write.
    fn has(&mut self, number: u64, block: u64) {
        let at = block as usize * BLOCK;
        self.disk[at..at + BLOCK].copy_from_slice(&self.history.content(number, block));
    }

    /// How many writes did not get through, or the complaint.
    fn judge(mut self, confirmed: bool) -> Result<usize, String> {
        let judged = catch_unwind(AssertUnwindSafe(|| {
            self.history.judge_order(&self.disk, confirmed)
        }));
        judged.map_err(|panic| match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(other) => (*other.downcast::<&str>().expect("words")).to_owned(),
        })
    }
}

/// The complaint, which has these words.
fn complains(story: Story, confirmed: bool, words: &str) {
    let complaint = story.judge(confirmed).expect_err(words);
    assert!(complaint.contains(words), "{complaint}");
}

#[test]
fn a_write_that_was_under_way_may_be_overtaken() {
    let mut story = Story::new();
    let cold = story.sent(0, 1);
    // However many others come and go in the meantime.
    for n in 0..20 {
        let hot = story.sent(1 + n % 2, 1);
        story.has(hot, 1 + n % 2);
        story.history.confirm(hot);
    }
    assert_eq!(cold, 1);
    assert_eq!(story.judge(true), Ok(1));
}

#[test]
fn none_is_there_without_what_was_confirmed_before_it_was_sent() {
    let mut story = Story::new();
    let early = story.sent(0, 1);
    story.history.confirm(early);
    let late = story.sent(1, 1);
    story.has(late, 1);
    complains(
        story,
        false,
        "write 1 is missing, was confirmed before write 2 was sent, and write 2 is there",
    );
}

#[test]
fn under_protocol_a_the_end_may_be_missing_even_if_confirmed() {
    let mut story = Story::new();
    let early = story.sent(0, 1);
    story.has(early, 0);
    story.history.confirm(early);
    for _ in 0..3 {
        let late = story.sent(1, 1);
        story.history.confirm(late);
    }
    assert_eq!(story.judge(false), Ok(3));
}

#[test]
fn under_protocols_b_and_c_what_was_confirmed_is_there() {
    let mut story = Story::new();
    let only = story.sent(0, 1);
    story.history.confirm(only);
    complains(story, true, "write 1 is missing, and was confirmed");
}

#[test]
fn a_write_is_there_as_a_whole_or_not_at_all() {
    let mut story = Story::new();
    let torn = story.sent(0, 3);
    story.has(torn, 0);
    story.has(torn, 2);
    complains(story, false, "write 1 is there in part");

    // What a later one covers may be of the later one.
    let mut story = Story::new();
    let below = story.sent(0, 3);
    story.has(below, 0);
    story.has(below, 2);
    story.history.confirm(below);
    let above = story.sent(1, 1);
    story.has(above, 1);
    assert_eq!(story.judge(true), Ok(0));
}

#[test]
fn a_block_that_nobody_wrote_there_is_found() {
    let mut story = Story::new();
    let number = story.sent(0, 1);
    let elsewhere = story.history.content(number, 0);
    story.disk[BLOCK..2 * BLOCK].copy_from_slice(&elsewhere);
    complains(story, false, "block 1 holds write 1 of block 0");
}

#[test]
fn what_was_judged_stays() {
    let mut story = Story::new();
    let first = story.sent(0, 1);
    story.history.confirm(first);
    story.has(first, 0);
    assert_eq!(story.history.judge_order(&story.disk, true), 0);
    story.disk.fill(0);
    complains(story, false, "block 0 holds write 0");
}

#[test]
fn zeroes_accuse_nobody_unless_all_they_can_be_is_missing() {
    // A write of zeroes to a block that was never written: there or not, who knows.
    let mut story = Story::new();
    let zeroes = story.history.begin(0, 1, true, false).number;
    story.history.confirm(zeroes);
    assert_eq!(story.judge(true), Ok(0));

    // The block has data: the zeroes are missing.
    let mut story = Story::new();
    let data = story.sent(0, 1);
    story.has(data, 0);
    story.history.confirm(data);
    let zeroes = story.history.begin(0, 1, true, false).number;
    story.history.confirm(zeroes);
    complains(story, true, "write 2 is missing, and was confirmed");

    // Each block by itself may be of some write, but not all of them together: without the zeroes the first
    // write is missing, with them they are there in part.
    for confirmed in [false, true] {
        let mut story = Story::new();
        for first in [0, 1] {
            let data = story.sent(first, 2);
            story.history.confirm(data);
        }
        story.history.begin(0, 3, true, false);
        story.has(2, 1);
        story.has(2, 2);
        complains(story, confirmed, "is ");
    }
}

#[test]
fn what_is_missing_is_nowhere() {
    // Zeroes that may be there cover what must be.
    let mut story = Story::new();
    let data = story.sent(0, 1);
    story.history.confirm(data);
    story.history.begin(0, 2, true, false);
    assert_eq!(story.judge(true), Ok(0));

    // Zeroes of which one block is missing for certain do not.
    let mut story = Story::new();
    let below = story.sent(1, 1);
    story.history.confirm(below);
    story.has(below, 1);
    let data = story.sent(0, 1);
    story.history.confirm(data);
    story.history.begin(0, 2, true, false);
    let other = story.sent(2, 1);
    story.has(other, 2);
    complains(story, false, "write 3 is there in part");
}
