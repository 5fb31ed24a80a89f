//! Emulated guests and doorbell traffic.
//!
//! * [`Machine`]: the memory, registers and identities of one emulated guest.
//! * [`Registers`]: how the guest reaches the registers: memory, or traps with mapped control pages.
//! * [`Driver`]: what a guest's driver does with a CMDQ or an ECMDQ: enable it, send commands, wait for the CMD_SYNC.
//! * [`Cmdlist`]: the same for a CMDQ that all vCPUs of a guest share.
//! * [`Traffic`]: what it sends: a built-in mix, or a recorded stream.
//! * [`workload`]: what guests do, described in TOML, at what pace.
//! * [`Verifier`]: compares what the host received with what the guests sent, by rules of its own.
//! * [`Session`]: guests, a worker and a host on threads of their own.
//! * [`idle`](idle()): what a worker costs that has nothing to do, and how long it takes to wake.
//! * [`compare`]: the engine beside what else could carry commands, and the limit.
//! * [`report`]: what that measures, as data and as a page with plots.
//! * [`scale`]: a simulation of many workers and guests, its costs, and its check against the engine.
//! * [`LiveModel`]: guests and workers in front of a model SMMU, whose caches the guests fill and look at.

mod cached;
mod cmdlist;
pub mod compare;
mod driver;
mod idle;
mod live_model;
mod machine;
mod pin;
mod registers;
pub mod report;
pub mod scale;
mod session;
pub mod trace;
mod traffic;
mod vcpu;
mod verify;
pub mod workload;

pub use cmdlist::Cmdlist;
pub use driver::{Driver, DriverError, Sync};
pub use idle::{IDLE_QUEUES, IdleReport, idle};
pub use live_model::{CachesReport, LiveModel};
pub use machine::Machine;
pub use registers::Registers;
pub use session::{GuestReport, QueueKind, Report, Session, Settings};
pub use trace::TraceError;
pub use traffic::{Group, Traffic};
pub use verify::{Mismatch, Verdict, Verifier};
