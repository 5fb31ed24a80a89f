//! A host without an SMMU.

use super::{HostQueue, Ticket};
use crate::command::Command;

/// Takes every command, and completes it at once.
///
/// It is for a guest that has a virtual SMMU and, as yet, no device behind it: nothing on the host has cached anything for the guest, so that
/// every invalidation of it is done before it has begun. When the first device comes, the VMM detaches the guest, and attaches it again with
/// the queue of that device's SMMU, before the device may access memory; when the last one has gone, the other way round.
///
/// In front of devices it would be a hole: the guest would be told that translations are gone which devices still use.
#[derive(Clone, Debug, Default)]
pub struct NullQueue {
    last: Ticket,
    /// Commands since the last ticket.
    any: bool,
}

impl HostQueue for NullQueue {
    fn submit(&mut self, commands: &[Command]) -> usize {
        self.any |= !commands.is_empty();
        commands.len()
    }

    fn sync(&mut self) -> Ticket {
        self.last.0 += u64::from(std::mem::take(&mut self.any));
        self.last
    }

    fn completed(&mut self) -> Ticket {
        self.last
    }
}
