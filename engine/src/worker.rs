//! The polling loop: many virtual SMMUs, one host queue or several.
//!
//! One sweep: see what each host has completed; visit every guest, which completes what it waits for and hands over a batch
//! of each of its queues; hand all of it to the hosts; ask each for one synchronisation for all CMD_SYNCs that were met.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use crossbeam::utils::Backoff;

use crate::host::HostQueue;
use crate::submission::Submission;
use crate::vsmmu::{Held, VirtualSmmu};

/// Serves virtual SMMUs from one thread, or from a caller that polls.
#[derive(Debug)]
pub struct Worker<H> {
    hosts: Vec<Submission<H>>,
    guests: Vec<VirtualSmmu>,
    /// The host queue of each guest.
    host_of: Vec<usize>,
    /// The guest to be visited first: each in turn, so that none has the outbox to itself.
    next: usize,
    /// A guest was left out in the last sweep, because its VMM was busy with it.
    missed: bool,
}

impl<H: HostQueue> Worker<H> {
    /// A worker in front of a host queue, with no guests yet.
    pub fn new(host: H) -> Self {
        let hosts = vec![Submission::new(host)];
        Self { hosts, guests: Vec::new(), host_of: Vec::new(), next: 0, missed: false }
    }

    /// Adds a guest in front of the first host queue. A virtual SMMU must be served by one worker only.
    pub fn attach(&mut self, guest: VirtualSmmu) {
        self.push(guest, 0);
    }

    /// Adds a guest with a host queue of its own, as one behind iommufd has.
    pub fn attach_with(&mut self, guest: VirtualSmmu, host: H) {
        self.hosts.push(Submission::new(host));
        self.push(guest, self.hosts.len() - 1);
    }

    fn push(&mut self, guest: VirtualSmmu, host: usize) {
        guest.set_identities(self.hosts[host].identities());
        self.guests.push(guest);
        self.host_of.push(host);
    }

    /// How many synchronisations of its host queues have failed.
    pub fn host_failures(&self) -> u64 {
        self.hosts.iter().map(Submission::failures).sum()
    }

    /// The guests, in the order in which they were added.
    pub fn guests(&self) -> &[VirtualSmmu] {
        &self.guests
    }

    /// One sweep; never waits. Says whether there was anything to do.
    pub fn poll(&mut self) -> bool {
        self.sweep(None)
    }

    /// One sweep. What is locked stays in `held`, a place for each guest, so that the next sweep need not lock it again.
    fn sweep(&mut self, mut held: Option<&mut [Option<Held>]>) -> bool {
        // A failure stays until every guest has been told.
        if !self.missed {
            self.hosts.iter_mut().for_each(Submission::look);
        }
        self.hosts.iter_mut().for_each(Submission::begin);
        self.missed = false;
        let mut busy = false;
        for number in (self.next..self.guests.len()).chain(0..self.next) {
            let held = held.as_mut().and_then(|held| held.get_mut(number));
            match self.guests[number].serve(&mut self.hosts[self.host_of[number]], held) {
                Some(served) => busy |= served,
                None => self.missed = true,
            }
        }
        self.next = if self.next + 1 < self.guests.len() { self.next + 1 } else { 0 };
        self.hosts.iter_mut().for_each(Submission::hand_over);
        busy
    }

    /// Sweeps until `stop` is set: spins while there is something to do, and gives the processor away when there
    /// has been nothing for a while.
    pub fn run(&mut self, stop: &AtomicBool) {
        let backoff = Backoff::new();
        let mut held: Vec<_> = self.guests.iter().map(|_| None).collect();
        // Relaxed: `stop` carries nothing but itself.
        while !stop.load(Relaxed) {
            if self.sweep(Some(&mut held)) {
                backoff.reset();
            } else {
                backoff.snooze();
            }
        }
    }
}
