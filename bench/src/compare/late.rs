//! A host whose CMD_SYNCs take their time.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ecmdq_engine::Command;
use ecmdq_engine::host::{Failure, HostQueue, Ticket};

use super::host::{Counts, Inline};

/// An [`Inline`] host that tells of a ticket when its CMD_SYNC has taken its time, one after another, as an SMMU does: nothing
/// behind a CMD_SYNC begins before it has completed (IHI 0070 §4.7.3). Nobody works or waits for that: the clock is looked at
/// when the worker asks.
#[derive(Debug)]
pub struct Late {
    host: Inline,
    takes: Duration,
    /// Tickets, and when they are reached.
    due: VecDeque<(Ticket, Instant)>,
    /// The newest that was asked for, and the newest that has been reached.
    asked: Ticket,
    reached: Ticket,
}

impl Late {
    pub fn new(takes: Duration) -> io::Result<(Self, Arc<Counts>)> {
        let (mut host, counts) = Inline::new()?;
        let reached = host.completed();
        Ok((Self { host, takes, due: VecDeque::new(), asked: reached, reached }, counts))
    }

    fn note(&mut self, ticket: Ticket) {
        // One that is shared is no CMD_SYNC.
        if ticket != self.asked && !self.takes.is_zero() {
            let now = Instant::now();
            let begins = self.due.back().map_or(now, |(_, before)| now.max(*before));
            self.due.push_back((ticket, begins + self.takes));
        }
        self.asked = ticket;
    }
}

impl HostQueue for Late {
    fn submit(&mut self, commands: &[Command]) -> usize {
        self.host.submit(commands)
    }

    fn sync(&mut self) -> Ticket {
        let ticket = self.host.sync();
        self.note(ticket);
        ticket
    }

    fn submit_and_sync(&mut self, commands: &[Command]) -> (usize, Option<Ticket>) {
        let (taken, ticket) = self.host.submit_and_sync(commands);
        ticket.into_iter().for_each(|ticket| self.note(ticket));
        (taken, ticket)
    }

    fn completed(&mut self) -> Ticket {
        let completed = self.host.completed();
        if self.takes.is_zero() {
            return completed;
        }
        if !self.due.is_empty() {
            let now = Instant::now();
            while let Some((ticket, _)) = self.due.pop_front_if(|(_, at)| *at <= now) {
                self.reached = ticket;
            }
        }
        self.reached
    }

    fn failure(&mut self, ticket: Ticket) -> Option<Failure> {
        self.host.failure(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TLBI: Command = Command([0x0001_0000_0000_0012, 1]);

    #[test]
    fn cmd_syncs_complete_one_after_another() {
        const TAKES: Duration = Duration::from_millis(2);
        let (mut host, _) = Late::new(TAKES).expect("memory");
        let start = Instant::now();
        let (first, second) = (host.submit_and_sync(&[TLBI]).1, host.submit_and_sync(&[TLBI]).1);
        assert_eq!(Some(host.sync()), second, "with nothing new it is shared");
        let mut reached = |ticket: Option<Ticket>| {
            while Some(host.completed()) < ticket {
                std::thread::yield_now();
            }
            start.elapsed()
        };
        assert!(reached(first) >= TAKES);
        assert!(reached(second) >= 2 * TAKES);
        assert!(host.due.is_empty(), "two took their time, not three");
    }
}
