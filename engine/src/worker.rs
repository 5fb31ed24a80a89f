//! The polling loop: many virtual SMMUs, one host queue.
//!
//! One sweep: complete what the host has finished; look at every guest and take a batch from each; hand all of it
//! to the host; ask for one synchronisation for all CMD_SYNCs that were met.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use crossbeam::utils::Backoff;

use crate::host::HostQueue;
use crate::outbox::Outbox;
use crate::vsmmu::VirtualSmmu;

/// Serves virtual SMMUs from one thread, or from a caller that polls.
#[derive(Debug)]
pub struct Worker<H> {
    host: H,
    guests: Vec<VirtualSmmu>,
    /// The guest to be looked at next: where a full outbox ended the last sweep.
    next: usize,
    out: Outbox,
    /// A CMD_SYNC was met whose ticket could not be asked for yet, because the host queue was full.
    ticket_due: bool,
}

impl<H: HostQueue> Worker<H> {
    /// A worker in front of a host queue, with no guests yet.
    pub fn new(host: H) -> Self {
        Self { host, guests: Vec::new(), next: 0, out: Outbox::new(), ticket_due: false }
    }

    /// Adds a guest.
    pub fn attach(&mut self, guest: VirtualSmmu) {
        self.guests.push(guest);
    }

    /// The guests, in the order in which they were added.
    pub fn guests(&self) -> &[VirtualSmmu] {
        &self.guests
    }

    /// One sweep; never waits. Says whether there was anything to do.
    pub fn poll(&mut self) -> bool {
        let mut busy = self.complete();
        for guest in &mut self.guests {
            busy |= guest.poll_registers();
        }
        self.hand_over();
        // While a ticket is due, what it must cover gets out before more is taken: else a flood could put it off.
        if !self.ticket_due {
            busy |= self.take();
            self.hand_over();
        }
        busy
    }

    /// A batch from every guest, as long as there is room.
    fn take(&mut self) -> bool {
        let mut busy = false;
        for _ in 0..self.guests.len() {
            if !self.out.has_room() && !self.out.flush(&mut self.host) {
                break;
            }
            let guest = &mut self.guests[self.next];
            let was_waiting = guest.is_waiting();
            busy |= guest.take(&mut self.out);
            self.ticket_due |= guest.is_waiting() && !was_waiting;
            self.next = (self.next + 1) % self.guests.len();
        }
        busy
    }

    /// Hands the outbox over; when all of it is with the host, asks for the ticket that is due.
    fn hand_over(&mut self) {
        if self.out.flush(&mut self.host) && self.ticket_due {
            let ticket = self.host.sync();
            self.guests.iter_mut().for_each(|guest| guest.wait_for(ticket));
            self.ticket_due = false;
        }
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

    fn complete(&mut self) -> bool {
        if !self.guests.iter().any(VirtualSmmu::is_waiting) {
            return false;
        }
        let completed = self.host.completed();
        self.guests.iter_mut().fold(false, |any, guest| guest.complete(completed) | any)
    }
}
