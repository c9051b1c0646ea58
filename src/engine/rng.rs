//! The engine's only source of randomness: SplitMix64 from a seed given at the start, so that the
//! same inputs give the same run. Used for new generations; nothing here is a secret.

/// SplitMix64: moves `state` on and answers the next 64 bits. Whatever repeats from a seed uses it, the
/// engine as well as its tests.
pub fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        split_mix(&mut self.0)
    }

    /// A generation that cannot be taken for "none" or "just created".
    pub(crate) fn uuid(&mut self) -> u64 {
        loop {
            let value = self.next() & !1;
            if value > 0xff {
                return value;
            }
        }
    }
}
