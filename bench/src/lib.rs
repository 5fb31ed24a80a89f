//! Emulated guests and doorbell traffic.
//!
//! * [`Machine`]: the memory, registers and identities of one emulated guest.
//! * [`Driver`]: what a guest's driver does: enable the queue, send commands, wait for the CMD_SYNC.
//! * [`Traffic`]: what it sends: a built-in mix, or a recorded stream.
//! * [`Verifier`]: compares what the host received with what the guests sent, by rules of its own.
//! * [`Session`]: guests, a worker and a host on threads of their own.

mod driver;
mod machine;
mod session;
pub mod trace;
mod traffic;
mod verify;

pub use driver::{Driver, DriverError, Sync};
pub use machine::Machine;
pub use session::{GuestReport, Report, Session, Settings};
pub use trace::TraceError;
pub use traffic::{Group, Traffic};
pub use verify::{Mismatch, Verdict, Verifier};
