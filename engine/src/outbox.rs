//! Canonical commands on their way to the host queue.

use crate::command::Command;
use crate::host::HostQueue;

/// The most commands taken from a queue in one visit: so many that publishing CONS and looking at the doorbell
/// hardly count, so few that they stay in the first-level cache.
pub(crate) const BATCH: usize = 64;

/// A buffer of fixed size: commands are fetched straight into its free end and rewritten there.
#[derive(Debug)]
pub(crate) struct Outbox {
    commands: Box<[Command]>,
    len: usize,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self { commands: vec![Command::default(); 8 * BATCH].into(), len: 0 }
    }

    /// The free end, at least [`BATCH`] long, if there is so much.
    pub(crate) fn free(&mut self) -> Option<&mut [Command; BATCH]> {
        self.commands.get_mut(self.len..)?.first_chunk_mut()
    }

    /// Keeps the first `n` commands of the free end.
    pub(crate) fn keep(&mut self, n: usize) {
        self.len = self.commands.len().min(self.len + n);
    }

    /// Hands over what the host queue takes; says whether that was everything.
    pub(crate) fn flush(&mut self, host: &mut impl HostQueue) -> bool {
        if self.len > 0 {
            let taken = host.submit(&self.commands[..self.len]);
            self.commands.copy_within(taken..self.len, 0);
            self.len -= taken;
        }
        self.len == 0
    }
}
