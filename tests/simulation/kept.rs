//! Seeds that once broke a promise, with what it was; they are run again with the tests. A seed is one run
//! only as long as the plans stay as they are: what a fault looked like is told for good by the stories
//! (`scenarios*.rs`), or by a test of the engine.

/// A run.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// Its seed.
    pub seed: u64,
    /// How many nodes; as the seed says where `None`.
    pub nodes: Option<usize>,
    /// What went wrong.
    pub what: &'static str,
}

const fn kept(seed: u64, nodes: Option<usize>, what: &'static str) -> Kept {
    Kept { seed, nodes, what }
}

const RING: &str = "survivors whom nobody may serve were never told that they are in step, and resynced \
                    one another in a ring";

/// All of them.
pub const KEPT: &[Kept] = &[
    kept(
        2496,
        Some(2),
        "a handshake waited for a demotion that drained, and the demotion for writes that the handshake held back",
    ),
    kept(1602, None, RING),
    kept(2303, None, RING),
    kept(2377, None, RING),
    kept(2526, None, RING),
    kept(3031, None, RING),
    kept(54, Some(3), RING),
    kept(776, Some(3), RING),
    kept(1194, Some(3), RING),
    kept(1823, Some(3), RING),
    kept(
        1496,
        Some(3),
        "a connection ordered while the resource went down kept it from ever being down",
    ),
    kept(
        1584,
        Some(3),
        "a generation was told before it was on the Primary's disk, which failed: the peers passed for newer",
    ),
    kept(
        10275,
        None,
        "an order to discard, given while a resync was being adopted, gave up what had just come",
    ),
    kept(
        17410,
        None,
        "the oracle took a forced half copy for a stale one after a flush",
    ),
];
