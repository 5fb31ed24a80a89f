//! What a guest may send and what the host gets for it, command by command, against an oracle that is written field by
//! field from the facts sheet, sections 1.1 to 1.11, and shares nothing with the engine.
//!
//! Random tests have a fixed seed; see `support/seed.rs` for how to have more cases and other ones.

mod batches;
mod canonical;
mod exhaustive;
mod random;
mod runs;
mod streams;
mod support;
