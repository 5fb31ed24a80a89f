//! One guest, its VMM or its host queue misbehaves: it is told so in the architecture's way, the VMM by an event, and all others
//! go on. Everything is polled by hand.

#[path = "../common/mod.rs"]
mod common;

mod guests;
mod hosts;
mod support;
mod vmms;
