//! Whether the host must synchronise between two commands of one queue.
//!
//! All commands that are taken had been published before, so that executing one before an older CMD_SYNC of its queue has completed removes
//! nothing that the guest had not asked to be removed. It matters only where what is removed could be filled again from something that an
//! older command is still to remove: see [`Rank`].

use crate::command::Rank;

/// What has been sent of a queue, as far as later commands depend on it.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::vsmmu) struct Order {
    /// The lowest rank sent since the last CMD_SYNC.
    open: Option<Rank>,
    /// The lowest rank sent before a CMD_SYNC, and the newest round that it was sent in.
    closed: Option<(Rank, u64)>,
}

impl Order {
    /// Nothing is known of what was sent before: the host may execute it with its next synchronisation.
    pub const UNKNOWN: Self = Self { open: None, closed: Some((Rank::ConfigurationTable, u64::MAX)) };

    /// Whether the host must synchronise what it has of `round` before it gets commands of which none has a rank above `highest`. What was sent
    /// in older rounds is synchronised by then.
    #[inline]
    pub fn needs_barrier(&self, highest: Rank, round: u64) -> bool {
        self.closed.is_some_and(|(lowest, newest)| lowest < highest && newest >= round)
    }

    /// Commands were sent, the lowest of this rank.
    #[inline]
    pub fn sent(&mut self, lowest: Rank) {
        self.open = Some(self.open.map_or(lowest, |open| open.min(lowest)));
    }

    /// The host synchronises all that was sent before it executes what is sent next.
    pub fn barrier(&mut self) {
        self.closed = None;
    }

    /// A CMD_SYNC was taken, in a round.
    #[inline]
    pub fn close(&mut self, round: u64) {
        let Some(open) = self.open.take() else { return };
        // What an older round holds is synchronised before anything of this one.
        let closed = self.closed.filter(|(_, newest)| *newest >= round);
        self.closed = Some((closed.map_or(open, |(lowest, _)| lowest.min(open)), round));
    }
}
