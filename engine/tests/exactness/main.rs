//! A guest gets exactly the invalidation that it named, among its own entries.
//!
//! Virtual machines whose names clash (ASIDs, addresses, StreamIDs, SubstreamIDs) fill a [model SMMU's](ecmdq_engine::host::model)
//! caches and send commands through the whole way: guest memory, queues, rules, workers, host queue. What disappears is
//! compared with what the guests' commands name in the guests' own terms, which is worked out here from the facts sheet, with
//! no code of the engine or of the model.
//!
//! The number of cases and the seed are set as in `support/seed.rs` of the tests of commands. The default sends about 800,000
//! commands, in half a minute; `ECMDQ_CASES=100000 ECMDQ_SEED=random` takes an hour.

mod commands;
mod entries;
mod failures;
mod named;
mod properties;
mod reference;
mod rounds;
#[path = "../commands/support/seed.rs"]
mod seed;
mod threads;
mod vm;
#[path = "../common/wait.rs"]
mod wait;
