//! Workers on threads: sleeping and being woken in each way, orders while they run, ends in any order.

mod arming;
#[path = "../common/mod.rs"]
mod common;
mod orders;
mod sleeping;
mod support;
mod threads;
mod transitions;
