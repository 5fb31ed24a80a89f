//! No order of a guest's is lost: what its invalidations remove does not come back through a cache that is invalidated later.
//!
//! A TLB is filled through cached configuration, an endpoint's ATC through the TLB. A guest that changes a context descriptor or a
//! translation invalidates them in that order, with CMD_SYNCs between, many sequences in one doorbell. Devices access pages between any
//! two commands of the host, which executes what stands between two synchronisations in any order. When CONS passes the last CMD_SYNC of a
//! sequence, no cache may have anything that was made from what the sequence replaced, then or later.
//!
//! `ECMDQ_SEED` is the seed (`random`, or a number), `ECMDQ_ORDER_COMMANDS` how many commands the guest sends. By default it sends 300,000 to
//! each driver, in some seconds;
//!
//!     ECMDQ_ORDER_COMMANDS=10000000 ECMDQ_SEED=random cargo test --release -p ecmdq-engine --test order -- --nocapture
//!
//! is thorough.

mod caches;
mod claims;
mod commands;
#[path = "../common/mod.rs"]
mod common;
mod cpu;
mod direct;
mod engine;
mod host;
mod run;
mod settings;
mod tables;

use common::Random;
use direct::{Ahead, Rule, Waiting};
use engine::Engine;
use host::Host;
use run::{Driver, run};

/// Nothing is stale behind this driver.
fn holds<D: Driver>(what: &str, driver: impl FnOnce(Host, Random) -> D) {
    let (seed, commands) = (settings::seed(), settings::commands());
    println!("ECMDQ_SEED={seed} ECMDQ_ORDER_COMMANDS={commands}");
    let outcome = run(what, seed, commands, driver);
    if let Some((stale, after)) = outcome.stale {
        panic!("{what}, after {after} commands: {stale} (ECMDQ_SEED={seed})");
    }
    assert!(
        outcome.claims >= commands / 20 && outcome.filled >= commands / 20,
        "there is something to be seen"
    );
}

#[test]
fn behind_the_engine() {
    holds("the engine", |host, _| Engine::new(host));
}

/// So the sequences are right.
#[test]
fn behind_a_driver_that_waits_at_each_cmd_sync() {
    holds("waiting", |host, _| Waiting::new(host));
}

/// So the rule is.
#[test]
fn behind_a_driver_that_keeps_ranks_apart() {
    holds("by ranks", |host, random| Ahead::new(host, random, |before, behind| before < behind));
}

#[test]
fn a_driver_that_keeps_less_apart_is_found_out() {
    let rules: [(&str, Rule); 4] = [
        ("nothing apart", |_, _| false),
        ("configuration and translations together", |before, behind| {
            before < behind && (before, behind) != (0, 1)
        }),
        ("configuration and ATCs together", |before, behind| before < behind && (before, behind) != (0, 2)),
        ("translations and ATCs together", |before, behind| before < behind && (before, behind) != (1, 2)),
    ];
    for (what, rule) in rules {
        let outcome =
            run(what, settings::seed(), settings::COMMANDS, |host, random| Ahead::new(host, random, rule));
        assert!(outcome.stale.is_some(), "{what}: nothing was found");
    }
}
