//! Numbers without a pattern, the same ones for the same seed; and how long a test is.

use std::env;
use std::hash::{BuildHasher, RandomState};

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for n in (1..all.len()).rev() {
            all.swap(n, self.below(n + 1));
        }
    }

    /// Others, which depend on these.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

/// `ECMDQ_SEED`: fixed, unless it is `random` or a number.
pub fn seed() -> u64 {
    match env::var("ECMDQ_SEED").as_deref() {
        Err(_) => 0x5eed,
        Ok("random") => RandomState::new().hash_one(0),
        Ok(seed) => seed.parse().expect("ECMDQ_SEED is `random` or a number"),
    }
}

/// How many commands a guest sends, unless it is told otherwise: in these, whatever is kept apart too little must show.
pub const COMMANDS: u64 = 300_000;

/// `ECMDQ_ORDER_COMMANDS`: how many commands a guest sends.
pub fn commands() -> u64 {
    let commands = env::var("ECMDQ_ORDER_COMMANDS");
    commands.map_or(COMMANDS, |commands| commands.parse().expect("ECMDQ_ORDER_COMMANDS is a number"))
}
