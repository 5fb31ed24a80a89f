//! How long a test is, and the seed of its numbers.

use std::env;
use std::hash::{BuildHasher, RandomState};

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
