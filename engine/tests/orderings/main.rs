//! The orderings of the shipped engine, as ThreadSanitizer sees them.
//!
//! The guest, the VMM and the host's SMMU of these tests make *plain* accesses wherever the protocol makes sure that nobody else
//! accesses the same memory at that time. ThreadSanitizer derives what happens before what from the orderings that the code asks
//! for, whatever the processor does: if one of the engine's is too weak, such an access is a data race, and is reported. Without it
//! these are tests of behaviour.
//!
//! So that each ordering is looked at alone, each test waits for exactly one word, with acquire, and everything else that it loads
//! until then it loads relaxed. `docs/testing.md` says how to run them, and how each ordering is weakened in turn.

#[path = "../common/mod.rs"]
mod common;

mod enabling;
mod errors;
mod host_ring;
mod memory;
mod queues;
mod recovery;
mod requests;
mod support;
mod traps;
mod workers;
