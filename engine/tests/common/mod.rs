//! A strict little guest driver, and hosts that are polled by hand: everything is deterministic.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

mod busy;
mod canonical;
mod cmd;
mod ecmdq;
mod guest;
mod machine;
mod random;
mod recorder;
mod ring;
mod script;
mod vmm;
mod wait;

pub use busy::BusyVmm;
pub use canonical::assert_canonical;
pub use cmd::*;
pub use ecmdq::*;
pub use guest::*;
pub use machine::*;
pub use random::Random;
pub use recorder::{Event, MSI_PAGE, Recorder};
pub use ring::Ring;
pub use script::Script;
pub use vmm::{Act, Vmm};
pub use wait::*;

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use ecmdq_engine::Features;

/// Tells other threads to end, also when this one panics.
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// The default features with some of them changed.
pub fn features(change: impl FnOnce(&mut Features)) -> Features {
    let mut features = Features::default();
    change(&mut features);
    features
}
