//! Saving, restoring, pausing and resetting a virtual SMMU in the middle of its work.
//!
//! `ECMDQ_SNAPSHOTS` is the number of snapshots of the random migrations (200 unless it is set), `ECMDQ_SEED` their seed.

mod bytes;
#[path = "../common/mod.rs"]
mod common;
mod corrupt;
mod forged;
mod kept;
mod life;
mod migrate;
mod running;
mod traffic;
mod vm;
