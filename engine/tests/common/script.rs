//! A host queue that does what a test says.

use std::cell::{Ref, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use ecmdq_engine::Command;
use ecmdq_engine::host::{Cause, Failure, HostQueue, Ticket};

/// A handle to the host queue; clones share it. At first it takes everything and completes nothing.
#[derive(Clone, Debug, Default)]
pub struct Script(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    received: Vec<Command>,
    /// For each ticket, how many commands it covers.
    syncs: Vec<usize>,
    reached: u64,
    failed: BTreeMap<u64, Failure>,
    at_once: bool,
    per_submit: usize,
    room: usize,
}

impl Default for State {
    fn default() -> Self {
        let (per_submit, room) = (usize::MAX, usize::MAX);
        let (received, syncs, failed) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { received, syncs, reached: 0, failed, at_once: false, per_submit, room }
    }
}

impl Script {
    /// A host that has completed everything whenever it is asked.
    pub fn at_once() -> Self {
        let host = Self::default();
        host.0.borrow_mut().at_once = true;
        host
    }

    /// From now on takes at most `n` commands a time.
    pub fn take_at_most(&self, n: usize) {
        self.0.borrow_mut().per_submit = n;
    }

    /// From now on takes at most `n` commands in all.
    pub fn set_room(&self, n: usize) {
        self.0.borrow_mut().room = n;
    }

    /// Every ticket up to the `n`th has been reached.
    pub fn finish(&self, n: usize) {
        assert!(n <= self.syncs());
        self.0.borrow_mut().reached = n as u64;
    }

    pub fn finish_all(&self) {
        self.finish(self.syncs());
    }

    /// The `n`th ticket has failed, and every one before it has been reached.
    pub fn fail(&self, n: usize, cause: Cause) {
        self.fail_for(n, cause, None);
    }

    /// As [`Self::fail`], by a command that the host knows to be to blame.
    pub fn fail_for(&self, n: usize, cause: Cause, command: Option<Command>) {
        self.finish(n - 1);
        self.0.borrow_mut().failed.insert(n as u64, Failure { cause, command });
    }

    /// How many synchronisations were asked for.
    pub fn syncs(&self) -> usize {
        self.0.borrow().syncs.len()
    }

    /// How many synchronisations are finished.
    pub fn finished(&self) -> usize {
        self.0.borrow().reached as usize
    }

    /// How many of the commands received a finished synchronisation covers.
    pub fn covered(&self) -> usize {
        self.finished().checked_sub(1).map_or(0, |last| self.0.borrow().syncs[last])
    }

    /// How many commands each synchronisation that was asked for covers.
    pub fn covers(&self) -> Vec<usize> {
        self.0.borrow().syncs.clone()
    }

    pub fn received(&self) -> Ref<'_, [Command]> {
        Ref::map(self.0.borrow(), |state| &state.received[..])
    }
}

impl HostQueue for Script {
    fn submit(&mut self, commands: &[Command]) -> usize {
        let mut state = self.0.borrow_mut();
        let n = commands.len().min(state.per_submit).min(state.room);
        state.room -= n;
        state.received.extend_from_slice(&commands[..n]);
        n
    }

    fn sync(&mut self) -> Ticket {
        let mut state = self.0.borrow_mut();
        let covers = state.received.len();
        let last = state.syncs.len() as u64;
        if state.syncs.last().copied().unwrap_or(0) < covers || state.failed.contains_key(&last) {
            state.syncs.push(covers);
        }
        Ticket(state.syncs.len() as u64)
    }

    fn completed(&mut self) -> Ticket {
        let mut state = self.0.borrow_mut();
        if state.at_once {
            state.reached = state.syncs.len() as u64;
        }
        Ticket(state.reached)
    }

    fn failure(&mut self, ticket: Ticket) -> Option<Failure> {
        self.0.borrow().failed.get(&ticket.0).copied()
    }
}
