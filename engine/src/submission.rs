//! The way to the host queue, and the way back: one hand-over for all guests, one ticket for all their CMD_SYNCs.
//!
//! CMD_SYNCs are counted in *rounds*: all that are met between two tickets belong to one round, which has completed when its
//! ticket has been reached.

use std::any::Any;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::host::{Cause, Failure, HostQueue, Identities, Ticket};
use crate::outbox::Outbox;
use crate::sleep::Waker;
use crate::worker::message;

/// Tickets that may be outstanding at the most. With more, commands wait until one is reached.
pub(crate) const OUTSTANDING: usize = 64;

/// What shows that a host queue gets on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// The oldest round whose ticket is outstanding.
    Round(u64),
    /// How many commands it has taken, while no ticket is.
    Taken(u64),
}

#[derive(Debug)]
pub(crate) struct Submission<H> {
    host: H,
    out: Outbox,
    /// The round of the CMD_SYNCs that are met now.
    round: u64,
    /// Whether there is one in this round, whose ticket is still to be asked for.
    due: bool,
    /// Whether that could not be done by the start of this sweep, or there was no room for somebody in it.
    blocked: bool,
    /// A visit found too little room, and ended for that.
    cramped: bool,
    asked: VecDeque<(u64, Ticket)>,
    /// How many of them there may be.
    tickets: usize,
    /// The newest round that is over, completed or failed.
    over: u64,
    /// The round that failed, while the guests are told.
    failed: Option<(u64, Failure)>,
    failures: u64,
    /// A failure that the VMM has not been told.
    news: Option<Failure>,
    /// The host queue panicked: nothing is handed to it any more.
    gone: bool,
    /// What it said, if the VMM has not been told.
    panic: Option<String>,
    /// What has to change for the host queue not to stand still, since when it has not, and how often that was told.
    standing: Option<(Mark, Instant, u128)>,
}

impl<H: HostQueue> Submission<H> {
    pub fn new(host: H) -> Self {
        let asked = VecDeque::with_capacity(OUTSTANDING);
        Self {
            host,
            out: Outbox::new(),
            round: 1,
            due: false,
            blocked: false,
            cramped: false,
            asked,
            tickets: OUTSTANDING,
            over: 0,
            failed: None,
            failures: 0,
            news: None,
            gone: false,
            panic: None,
            standing: None,
        }
    }

    /// From 1 to 64.
    pub fn set_tickets(&mut self, most: usize) {
        self.tickets = most.clamp(1, OUTSTANDING);
    }

    /// The host queue itself.
    pub fn into_host(self) -> H {
        self.host
    }

    /// Whose identities the host takes.
    pub fn identities(&self) -> Identities {
        self.host.identities()
    }

    /// How many synchronisations have failed.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Looks at what the host has completed, up to the next failure. Every guest must have been told of the last one.
    fn look(&mut self) {
        self.failed = None;
        if self.gone {
            self.fail_next();
            return;
        }
        // Also without a ticket: a host queue that stopped with an error, and has no room, goes on only when it is looked at.
        if !self.is_outstanding() {
            return;
        }
        let completed = self.host.completed();
        while let Some((round, ticket)) = self.asked.front().copied()
            && self.failed.is_none()
        {
            match self.host.failure(ticket) {
                Some(failure) => {
                    (self.failed, self.news) = (Some((round, failure)), Some(failure));
                    self.failures += 1;
                }
                None if ticket <= completed => {}
                None => break,
            }
            self.over = round;
            self.asked.pop_front();
        }
    }

    /// The next round fails, as all do when the host queue has gone.
    fn fail_next(&mut self) {
        let failure = Failure { cause: Cause::DeviceGone, command: None };
        if let Some((round, _)) = self.asked.pop_front() {
            (self.failed, self.over) = (Some((round, failure)), round);
            self.failures += 1;
        }
    }

    /// The host queue panicked: nothing is known of it, and nothing is handed to it any more.
    pub fn give_up(&mut self, panic: &(dyn Any + Send)) {
        (self.gone, self.panic) = (true, Some(message(panic)));
    }

    /// Whether there is something that the VMM has not been told.
    #[inline]
    pub fn has_news(&self) -> bool {
        self.panic.is_some() || self.news.is_some()
    }

    /// What the host queue's panic said, once.
    pub fn take_panic(&mut self) -> Option<String> {
        self.panic.take()
    }

    /// The newest failure since it was last asked.
    pub fn take_news(&mut self) -> Option<Failure> {
        self.news.take()
    }

    /// Whether something is with the host, or on its way, of whose completion somebody must hear.
    pub fn is_outstanding(&self) -> bool {
        self.due || !self.asked.is_empty() || !self.out.is_empty()
    }

    /// Whether commands wait for room at the host, of which nobody hears.
    pub fn waits_for_room(&self) -> bool {
        !self.out.is_empty()
    }

    /// How long the host has got nowhere, though something is outstanding, if that is a multiple of `limit` that was not told
    /// yet.
    pub fn stalled(&mut self, now: Instant, limit: Duration) -> Option<Duration> {
        if !self.is_outstanding() {
            self.standing = None;
            return None;
        }
        let mark =
            self.asked.front().map_or(Mark::Taken(self.out.handed_over()), |(round, _)| Mark::Round(*round));
        let (_, since, told) = self.standing.filter(|(before, ..)| *before == mark).unwrap_or((mark, now, 0));
        let times = now.saturating_duration_since(since).as_nanos() / limit.as_nanos().max(1);
        self.standing = Some((mark, since, times));
        (times > told).then(|| now.saturating_duration_since(since))
    }

    /// Has the host queue wake somebody when a ticket is reached; whether it will.
    pub fn set_waker(&mut self, waker: &Waker) -> bool {
        self.host.set_waker(waker)
    }

    /// The round that failed, if one did. Every queue must hear of it in this sweep: afterwards it counts as over.
    pub fn failed(&self) -> Option<(u64, Failure)> {
        self.failed
    }

    /// Whether a round has completed, or failed.
    pub fn is_over(&self, round: u64) -> bool {
        round <= self.over
    }

    /// The round that covers what is taken now.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// A CMD_SYNC was met: the round that it belongs to.
    pub fn sync(&mut self) -> u64 {
        self.due = true;
        self.round
    }

    /// Hands the outbox over; when all of it is with the host, asks for the ticket that is due.
    #[inline]
    pub fn hand_over(&mut self) {
        if self.due || !self.out.is_empty() {
            self.hand_over_some();
        }
    }

    fn hand_over_some(&mut self) {
        if self.gone {
            self.out.clear();
            if std::mem::take(&mut self.due) {
                self.asked.push_back((self.round, Ticket(u64::MAX)));
                self.round += 1;
            }
        } else if !self.due || self.asked.len() >= self.tickets {
            self.out.flush(&mut self.host);
        } else if let Some(ticket) = self.out.flush_and_sync(&mut self.host) {
            self.asked.push_back((self.round, ticket));
            self.round += 1;
            self.due = false;
        }
    }

    /// A new sweep; `look` at what the host has completed, too. While a ticket is due that cannot be asked for, what it must cover
    /// gets out before more is taken: else a flood from one guest could put off another's CMD_SYNC for ever.
    pub fn begin(&mut self, look: bool) {
        if look {
            self.look();
        }
        self.hand_over();
        self.blocked = self.due;
    }

    /// Whether nothing more may be taken in this sweep.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The outbox, if more may be taken, and it has room for a batch; else [`Self::make_room`] may help, once the visit has ended.
    pub fn room(&mut self) -> Option<&mut Outbox> {
        if self.blocked || self.cramped {
            return None;
        }
        self.cramped = !self.out.has_room();
        (!self.cramped).then_some(&mut self.out)
    }

    /// Whether a visit has found too little room in the outbox.
    pub fn is_cramped(&self) -> bool {
        self.cramped
    }

    /// Hands the outbox over if a visit has found too little room in it. Says whether there is some now.
    pub fn make_room(&mut self) -> bool {
        if !std::mem::take(&mut self.cramped) {
            return false;
        }
        if self.gone {
            self.out.clear();
        } else {
            self.out.flush(&mut self.host);
        }
        // Nobody overtakes whoever found no room.
        self.blocked = !self.out.has_room();
        !self.blocked
    }
}
