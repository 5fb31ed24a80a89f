//! The oracle, the engine beside it, and commands for the two.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

mod engine;
mod generators;
mod on;
mod oracle;
mod seed;

pub use engine::{Alone, Engine, STREAMS, VMID, cost};
pub use generators::{TEMPLATES, command, guest, host_for, run, turned, word};
pub use on::*;
pub use oracle::{Fate, oracle};
pub use seed::config;
