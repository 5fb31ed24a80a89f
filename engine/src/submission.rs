//! The way to the host queue, and the way back: one hand-over for all guests, one ticket for all their CMD_SYNCs.

use std::any::Any;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::command::Command;
use crate::events::panic_message;
use crate::host::{Cause, Failure, HostQueue, Identities, Ticket};
use crate::outbox::{BARRIERS, BATCH, Outbox, Part};
use crate::sleep::Waker;

/// Tickets that may be outstanding at the most, which only synchronisations for the order of commands come to.
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
    /// Where commands are fetched to.
    fetched: Box<[Command; BATCH]>,
    /// How many commands the host has taken, and how many of them the newest ticket covers.
    handed_over: u64,
    synchronised: u64,
    /// Whether a ticket that is due could not be asked for by the start of this sweep, or there was no room for somebody in it.
    blocked: bool,
    /// Whether a ticket was due and not asked for at the start of this sweep.
    gathers: bool,
    /// A visit found too little room, and ended for that.
    cramped: bool,
    asked: VecDeque<(u64, Ticket)>,
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
        let asked = VecDeque::with_capacity(OUTSTANDING + BARRIERS + 1);
        Self {
            host,
            out: Outbox::new(),
            fetched: Box::new([Command::default(); BATCH]),
            handed_over: 0,
            synchronised: 0,
            blocked: false,
            gathers: false,
            cramped: false,
            asked,
            over: 0,
            failed: None,
            failures: 0,
            news: None,
            gone: false,
            panic: None,
            standing: None,
        }
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
        (self.gone, self.panic) = (true, Some(panic_message(panic)));
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
    #[inline]
    pub fn is_outstanding(&self) -> bool {
        !self.asked.is_empty() || self.out.is_due() || !self.out.is_empty()
    }

    /// Whether there is something to be seen, or to be handed over, at the beginning of a sweep.
    #[inline]
    pub fn wants_a_look(&self) -> bool {
        self.is_outstanding() || self.failed.is_some()
    }

    /// Whether commands wait for room at the host: no wake-up follows when there is some.
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
        let mark = self.asked.front().map_or(Mark::Taken(self.handed_over), |(round, _)| Mark::Round(*round));
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

    /// The newest round that has completed, or failed.
    #[inline]
    pub fn over(&self) -> u64 {
        self.over
    }

    /// Whether a round has completed, or failed.
    pub fn is_over(&self, round: u64) -> bool {
        round <= self.over
    }

    /// A CMD_SYNC was met: the round that it belongs to.
    pub fn sync(&mut self) -> u64 {
        self.out.sync()
    }

    /// Hands the outbox over; when all of a round is with the host, asks for its ticket, unless the host is still at work for the one before: until
    /// it has completed that, CMD_SYNCs gather, and share the next one.
    #[inline]
    pub fn hand_over(&mut self) {
        self.hand_over_if(Self::is_idle);
    }

    #[inline]
    fn hand_over_if(&mut self, is_idle: impl FnOnce(&mut Self) -> bool) {
        if self.out.is_due() || !self.out.is_empty() {
            // With nothing submitted since, the ticket before is shared.
            let shares = self.out.is_empty() && self.synchronised == self.handed_over;
            let ends = self.out.is_due() && (shares || is_idle(self));
            self.hand_over_parts(ends);
        }
    }

    /// Whether the host has completed all that it was asked for.
    fn is_idle(&mut self) -> bool {
        match self.asked.back() {
            Some((_, ticket)) => !self.gone && *ticket <= self.host.completed(),
            None => true,
        }
    }

    /// Whether CMD_SYNCs of earlier sweeps wait for a ticket that is not asked for yet.
    #[inline]
    pub fn gathers(&self) -> bool {
        self.gathers
    }

    /// `ends` says whether the round of what was added last may end.
    fn hand_over_parts(&mut self, ends: bool) {
        if self.gone {
            // One fails in each sweep.
            if self.asked.len() < OUTSTANDING {
                self.asked.extend(self.out.clear().map(|round| (round, Ticket(u64::MAX))));
            }
            return;
        }
        loop {
            let Part { commands, round } = self.out.part(ends);
            // A round that ends in the middle must have its ticket, however many are outstanding already.
            let round = round.filter(|_| self.asked.len() < OUTSTANDING);
            let (taken, ticket) = match round {
                Some(_) => self.host.submit_and_sync(commands),
                None if commands.is_empty() => break,
                None => (self.host.submit(commands), None),
            };
            let taken = taken.min(commands.len());
            self.handed_over += taken as u64;
            self.out.taken(taken, ticket.is_some());
            let Some(asked) = round.zip(ticket) else { break };
            self.asked.push_back(asked);
            self.synchronised = self.handed_over;
        }
        self.out.compact();
    }

    /// A new sweep; `look` at what the host has completed, too. While a ticket is due and the host queue is full, what it must cover
    /// gets out before more is taken: else a flood from one guest could put off another's CMD_SYNC for ever.
    pub fn begin(&mut self, look: bool) {
        if look {
            self.look();
        }
        // What the host has reached has been seen.
        self.hand_over_if(|to| to.asked.is_empty());
        self.gathers = self.out.is_due();
        self.blocked = self.gathers && !self.out.is_empty();
    }

    /// Whether nothing more may be taken in this sweep.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The buffer for what is fetched and the outbox, if more may be taken, and the outbox has room for a batch; else [`Self::make_room`] may
    /// help, once the visit has ended.
    #[inline]
    pub fn room(&mut self) -> Option<(&mut [Command; BATCH], &mut Outbox)> {
        if self.blocked || self.cramped {
            return None;
        }
        self.cramped = !self.out.has_room();
        (!self.cramped).then_some((&mut self.fetched, &mut self.out))
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
        self.hand_over_parts(false);
        // Nobody overtakes whoever found no room.
        self.blocked = !self.out.has_room();
        !self.blocked
    }
}
