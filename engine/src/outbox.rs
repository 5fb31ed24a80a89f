//! Canonical commands on their way to the host queue, and where the host must synchronise among them.

use std::collections::VecDeque;

use crate::command::Command;
use crate::rules::MAX_EXPANSION;

/// The most commands taken from a queue at once: so many that what a turn costs besides hardly counts, and that the processor
/// fetches their cache lines in advance; so few that they stay in the first-level cache.
pub(crate) const BATCH: usize = 256;
/// As many as can be taken whatever they cost: whoever has little credit or little room left, or sends what costs the host much.
pub(crate) const MIN_BATCH: usize = 64;
/// What waits for the host queue at the most.
const CAPACITY: usize = 512;
/// How many synchronisations among it at the most.
pub(crate) const BARRIERS: usize = 16;

/// A buffer of fixed size behind the rules.
///
/// CMD_SYNCs are counted in *rounds*: all that are met between two synchronisations of the host belong to one round, which has completed
/// when the host has reached the second.
#[derive(Debug)]
pub(crate) struct Outbox {
    commands: Box<[Command]>,
    start: usize,
    end: usize,
    /// Where the host must synchronise before it gets what follows, and the round that ends there.
    barriers: VecDeque<(usize, u64)>,
    /// The round of what is added now.
    round: u64,
    /// A CMD_SYNC was met in it.
    due: bool,
}

/// What goes to the host next.
pub(crate) struct Part<'a> {
    pub commands: &'a [Command],
    /// The round that ends behind the commands.
    pub round: Option<u64>,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            commands: vec![Command::default(); CAPACITY].into(),
            start: 0,
            end: 0,
            barriers: VecDeque::with_capacity(BARRIERS),
            round: 1,
            due: false,
        }
    }

    /// Whether the room is enough for a few, or for the longest that one command can become.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.commands.len() - self.end >= MIN_BATCH.max(MAX_EXPANSION) && self.has_barrier()
    }

    /// The room for further commands.
    #[inline]
    pub(crate) fn room(&mut self) -> &mut [Command] {
        &mut self.commands[self.end..]
    }

    /// Keeps the first `n` commands of the room.
    #[inline]
    pub(crate) fn keep(&mut self, n: usize) {
        self.end = self.commands.len().min(self.end + n);
    }

    /// The round of what is added now.
    #[inline]
    pub(crate) fn round(&self) -> u64 {
        self.round
    }

    /// A CMD_SYNC was met: the round that it belongs to.
    #[inline]
    pub(crate) fn sync(&mut self) -> u64 {
        self.due = true;
        self.round
    }

    /// Whether a CMD_SYNC was met for which the host is still to synchronise.
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        self.due || !self.barriers.is_empty()
    }

    /// What is added now is executed after the host has synchronised what was added before.
    pub(crate) fn barrier(&mut self) {
        self.barriers.push_back((self.end, self.round));
        self.next_round();
    }

    /// Whether [`Self::barrier`] may be called.
    pub(crate) fn has_barrier(&self) -> bool {
        self.barriers.len() < BARRIERS
    }

    fn next_round(&mut self) {
        self.round += 1;
        self.due = false;
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// What goes to the host next. `ends` says whether a CMD_SYNC that is due may end the round.
    #[inline]
    pub(crate) fn part(&self, ends: bool) -> Part<'_> {
        let (end, round) = match self.barriers.front() {
            Some((end, round)) => (*end, Some(*round)),
            None => (self.end, (ends && self.due).then_some(self.round)),
        };
        Part { commands: &self.commands[self.start..end], round }
    }

    /// The host has taken `n` commands of the next part, and synchronises behind them or not.
    #[inline]
    pub(crate) fn taken(&mut self, n: usize, synchronises: bool) {
        self.start += n;
        if synchronises && self.barriers.pop_front().is_none() {
            self.next_round();
        }
        if self.start == self.end && self.barriers.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Moves what is left to the front.
    pub(crate) fn compact(&mut self) {
        let n = std::mem::take(&mut self.start);
        if n == 0 {
            return;
        }
        self.commands.copy_within(n..self.end, 0);
        self.end -= n;
        self.barriers.iter_mut().for_each(|(end, _)| *end -= n);
    }

    /// Forgets what waits; says which rounds end with it.
    pub(crate) fn clear(&mut self) -> impl Iterator<Item = u64> {
        let first = self.barriers.front().map_or(self.round, |(_, round)| *round);
        if self.due {
            self.next_round();
        }
        self.barriers.clear();
        (self.start, self.end) = (0, 0);
        first..self.round
    }
}
