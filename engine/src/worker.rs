//! The polling loop: many virtual SMMUs, one host queue.
//!
//! One sweep: see what the host has completed; visit every guest, which completes what it waits for and hands over a batch
//! of each of its queues; hand all of it to the host; ask for one synchronisation for all CMD_SYNCs that were met.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use crossbeam::utils::Backoff;

use crate::host::HostQueue;
use crate::submission::Submission;
use crate::vsmmu::VirtualSmmu;

/// Serves virtual SMMUs from one thread, or from a caller that polls.
#[derive(Debug)]
pub struct Worker<H> {
    submission: Submission<H>,
    guests: Vec<VirtualSmmu>,
    /// The guest to be visited first: each in turn, so that none has the outbox to itself.
    next: usize,
    /// A guest was left out in the last sweep, because its VMM was busy with it.
    missed: bool,
}

impl<H: HostQueue> Worker<H> {
    /// A worker in front of a host queue, with no guests yet.
    pub fn new(host: H) -> Self {
        Self { submission: Submission::new(host), guests: Vec::new(), next: 0, missed: false }
    }

    /// Adds a guest. A virtual SMMU must be served by one worker only.
    pub fn attach(&mut self, guest: VirtualSmmu) {
        self.guests.push(guest);
    }

    /// The guests, in the order in which they were added.
    pub fn guests(&self) -> &[VirtualSmmu] {
        &self.guests
    }

    /// One sweep; never waits. Says whether there was anything to do.
    pub fn poll(&mut self) -> bool {
        // A failure stays until every guest has been told.
        if !self.missed {
            self.submission.look();
        }
        self.submission.begin();
        self.missed = false;
        let mut busy = false;
        for number in 0..self.guests.len() {
            let guest = &self.guests[(self.next + number) % self.guests.len()];
            match guest.serve(&mut self.submission) {
                Some(served) => busy |= served,
                None => self.missed = true,
            }
        }
        self.next = if self.next + 1 < self.guests.len() { self.next + 1 } else { 0 };
        self.submission.hand_over();
        busy
    }

    /// Sweeps until `stop` is set: spins while there is something to do, and gives the processor away when there
    /// has been nothing for a while.
    pub fn run(&mut self, stop: &AtomicBool) {
        let backoff = Backoff::new();
        // Relaxed: `stop` carries nothing but itself.
        while !stop.load(Relaxed) {
            if self.poll() {
                backoff.reset();
            } else {
                backoff.snooze();
            }
        }
    }
}
