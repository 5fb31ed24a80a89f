//! Several CMD_SYNCs of a queue under way: commands behind a CMD_SYNC go to the host before it has completed, CONS stays at the oldest, and
//! one synchronisation of the host serves all between which the order of the commands does not matter.

#[path = "../common/mod.rs"]
mod common;
mod completion;
mod life;
mod order;
mod stops;
mod support;
