//! What things cost a worker.

use serde::{Deserialize, Serialize};

/// What each step of a worker costs it, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// A sweep, whatever it finds.
    pub sweep: f64,
    /// A visit to a guest: its lock, its share, its registers.
    pub guest: f64,
    /// A look at a queue: its doorbell, and what it waits for.
    pub queue: f64,
    /// A command: fetched, checked, rewritten, copied to the host.
    pub command: f64,
    /// What a visit, and each cache line of a ring, costs more for each doubling of the worker's guests: with more of them, it is further
    /// away.
    pub doubling: f64,
    /// A CMD_SYNC with the group that it ends: met in one sweep, passed in a later one.
    pub sync: f64,
    /// Handing over what a sweep has met, with a CMD_SYNC of the host.
    pub hand_over: f64,
    /// Reading a cache line that another processor wrote: a vCPU's doorbell, or CONS as the vCPU sees it.
    pub doorbell: f64,
    /// Each further such line: four entries. They are read beside each other, which costs less.
    pub line: f64,
}

impl Default for Costs {
    /// As measured for `docs/scaling.md`.
    fn default() -> Self {
        Self {
            sweep: 15.0,
            guest: 29.0,
            queue: 1.8,
            command: 1.6,
            doubling: 2.0,
            sync: 63.0,
            hand_over: 110.0,
            doorbell: 66.0,
            line: 7.5,
        }
    }
}
