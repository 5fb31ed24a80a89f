//! What the suite is run against.

use ecmdq_engine::Command;
use ecmdq_engine::host::HostQueue;

/// What the device does with commands from now on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Device {
    /// Executes them.
    Fine,
    /// Finds this one illegal.
    Refuses(Command),
    /// Endpoints do not answer ATC_INV, once.
    TimesOut,
    /// Never executes anything again.
    Gone,
}

/// A host queue and the device behind it, which does nothing by itself.
pub trait Subject {
    fn queue(&mut self) -> &mut dyn HostQueue;
    /// How many commands may be outstanding at least before the queue is full.
    fn capacity(&self) -> usize;
    fn set_device(&mut self, device: Device);
    /// Lets the device work until it has nothing left to do.
    fn work(&mut self);
    /// What it has executed so far, synchronisations left out.
    fn executed(&self) -> &[Command];
    /// The same in groups: within one it waited for nothing, and before it began with the next it waited for all of the last.
    fn groups(&self) -> Vec<Vec<Command>>;
    /// If somebody else uses the device as well: submits something, and asks for a synchronisation of it.
    fn meddle(&mut self) {}
}
