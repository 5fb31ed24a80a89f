//! How many workers a host needs: a simulation on a virtual clock, with costs that are measured, checked against the engine.
//!
//! * [`Costs`]: what each step of a worker costs, and [how that is measured](Costs::measure).
//! * [`Setting`]: workers, guests and a host queue; [`Setting::run`] simulates them.
//! * [`LockStep`]: the same with the real worker, guests and host on one thread; [`check`] compares the two.
//! * [`Demand`]: what a host is to carry; [`Demand::plan`] says what that takes.
//! * [`Memory`]: what guests take of it.

mod check;
mod costs;
mod crossing;
mod lock_step;
mod measure;
mod memory;
mod plan;
mod simulation;
mod turns;
mod worker;

pub use check::{Checked, Figures, check};
pub use costs::Costs;
pub use lock_step::{LockStep, Tally};
pub use memory::Memory;
pub use plan::{Demand, Plan};
pub use simulation::{Counts, Host, Outcome, Setting, Tickets};
