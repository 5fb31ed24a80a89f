//! Canonical commands on their way to the host queue.

use crate::command::Command;
use crate::host::{HostQueue, Ticket};
use crate::rules::MAX_EXPANSION;

/// The most commands taken from a queue in one visit: so many that what a visit costs besides hardly counts, and that the processor
/// fetches their cache lines in advance; so few that they stay in the first-level cache.
pub(crate) const BATCH: usize = 256;
/// As many as can be taken whatever they cost: whoever has little credit or little room left, or sends what costs the host much.
pub(crate) const FEW: usize = 64;
/// What waits for the host queue at the most.
const ROOM: usize = 512;

/// Two buffers of fixed size: commands as they were fetched, and behind the rules, what waits for the host queue.
#[derive(Debug)]
pub(crate) struct Outbox {
    fetched: [Command; BATCH],
    commands: Box<[Command]>,
    len: usize,
    /// How many commands the host queue has taken.
    handed_over: u64,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            fetched: [Command::default(); BATCH],
            commands: vec![Command::default(); ROOM].into(),
            len: 0,
            handed_over: 0,
        }
    }

    /// Whether the room is enough for a few, or for the longest that one command can become.
    pub(crate) fn has_room(&self) -> bool {
        self.commands.len() - self.len >= FEW.max(MAX_EXPANSION)
    }

    /// The buffer for what is fetched, and the room for what becomes of it.
    pub(crate) fn buffers(&mut self) -> (&mut [Command; BATCH], &mut [Command]) {
        (&mut self.fetched, &mut self.commands[self.len..])
    }

    /// Keeps the first `n` commands of the room.
    pub(crate) fn keep(&mut self, n: usize) {
        self.len = self.commands.len().min(self.len + n);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many commands the host queue has taken since the beginning.
    pub(crate) fn handed_over(&self) -> u64 {
        self.handed_over
    }

    /// Forgets what waits.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Hands over what the host queue takes.
    pub(crate) fn flush(&mut self, host: &mut impl HostQueue) {
        if self.len > 0 {
            let taken = host.submit(&self.commands[..self.len]);
            self.taken(taken);
        }
    }

    /// The same; the ticket for everything, if everything was taken.
    pub(crate) fn flush_and_sync(&mut self, host: &mut impl HostQueue) -> Option<Ticket> {
        let (taken, ticket) = host.submit_and_sync(&self.commands[..self.len]);
        self.taken(taken);
        ticket
    }

    fn taken(&mut self, n: usize) {
        let n = n.min(self.len);
        self.commands.copy_within(n..self.len, 0);
        self.len -= n;
        self.handed_over += n as u64;
    }
}
