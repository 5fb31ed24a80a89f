//! The seed of random tests: fixed, unless `ECMDQ_SEED` is `random` or a number. `ECMDQ_CASES` is the number of cases of
//! every random test.

use std::env;
use std::hash::{BuildHasher, RandomState};

use proptest::prelude::ProptestConfig;
use proptest::test_runner::RngSeed;

const FIXED: u64 = 0x5eed;

pub fn config(cases: u32) -> ProptestConfig {
    let cases =
        env::var("ECMDQ_CASES").map_or(cases, |cases| cases.parse().expect("ECMDQ_CASES is a number"));
    let seed = match env::var("ECMDQ_SEED").as_deref() {
        Err(_) => FIXED,
        Ok("random") => RandomState::new().hash_one(cases),
        Ok(seed) => seed.parse().expect("ECMDQ_SEED is `random` or a number"),
    };
    println!("ECMDQ_SEED={seed} ECMDQ_CASES={cases}");
    let rng_seed = RngSeed::Fixed(seed);
    let max_global_rejects = cases.saturating_mul(10);
    ProptestConfig {
        cases,
        rng_seed,
        max_global_rejects,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}
