//! Completes what queues wait for: CMD_SYNCs that the host has completed, commands that the VMM has carried out.
//!
//! CONS passes a CMD_SYNC, and only then its MSI is written. CMD_SYNCs of one queue complete in their order.

use ecmdq_ring::Index;

use super::calls::Call;
use super::queue::MSI_ON_ITS_WAY;
use super::ready::Ready;
use super::state::State;
use crate::command::CommandError;
use crate::host::{Cause, Failure};
use crate::registers::GERROR_MSI_CMDQ_ABT_ERR;
use crate::rules::Signal;
use crate::token::Outcome;

/// CMD_SYNCs of a guest that may be under way. With more, its queues wait.
pub(super) const SYNCS: usize = 512;

/// A CMD_SYNC that was taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingSync {
    pub queue: u32,
    /// Where it stands in its ring.
    pub at: Index,
    pub signal: Signal,
    /// It is complete when this round is over.
    pub round: u64,
}

impl State {
    /// Completes the CMD_SYNCs of all rounds up to `over`. Says whether there were any.
    #[inline]
    pub(super) fn complete_syncs(&mut self, over: u64, ready: &mut Ready) -> bool {
        let mut any = false;
        while let Some(sync) = self.syncs.front().copied()
            && sync.round <= over
            && self.calls.has_room()
        {
            any = true;
            self.complete_first(sync, over, ready);
        }
        any
    }

    /// Completes the first CMD_SYNC, and with it those of the same queue that follow, as far as they are told by CONS alone: one store of CONS
    /// does for all.
    fn complete_first(&mut self, sync: PendingSync, over: u64, ready: &mut Ready) {
        let number = sync.queue as usize;
        self.serving = Some(number);
        let Some(ring) = self.queues[number].ring.as_mut() else {
            self.syncs.pop_front();
            return;
        };
        if let Some(error) = ring.history.take_error(sync.round) {
            self.counters.host_failures.add(1);
            self.counters.commands.add(ring.consume_to(sync.at));
            self.forget(number);
            return self.stop(number, error);
        }
        let is_irq = |sync: &PendingSync| matches!(sync.signal, Signal::Irq { .. });
        let (mut n, mut at) = (1, sync.at);
        if !is_irq(&sync) {
            let clean = !ring.history.has_blame();
            let more =
                self.syncs.iter().skip(1).take_while(|next| {
                    clean && next.queue == sync.queue && next.round <= over && !is_irq(next)
                });
            more.for_each(|next| (n, at) = (n + 1, next.at));
        }
        self.syncs.drain(..n);
        self.counters.syncs.add(n);
        ring.syncs -= n as u32;
        let next = if ring.syncs == 0 { ring.taken() } else { ring.behind(at) };
        // What waited for CONS goes on, and so may a PROD that was too far ahead of it.
        let goes_on = ring.syncs == 0 && std::mem::take(&mut ring.held) || ring.inconsistent;
        if is_irq(&sync) {
            self.pass_with_irq(number, next, sync.signal);
        } else {
            self.counters.commands.add(ring.consume_to(next));
        }
        if goes_on {
            ready.push(number);
        }
    }

    /// Passes a CMD_SYNC, and sends its MSI.
    fn pass_with_irq(&mut self, number: usize, next: Index, signal: Signal) {
        let traps = if number == 0 { self.pages.frame_traps } else { self.pages.control_traps };
        let queue = &mut self.queues[number];
        let msi = match signal {
            Signal::Irq { address, data } if self.features.msi && address.0 != 0 => Some((address, data)),
            _ => None,
        };
        if msi.is_some() && traps {
            queue.publish_with(MSI_ON_ITS_WAY);
        }
        if let Some(ring) = &mut queue.ring {
            self.counters.commands.add(ring.consume_to(next));
        }
        if let Some((address, data)) = msi {
            // The store is a release: CONS was stored before, and must be seen to have passed the CMD_SYNC by whoever
            // sees the MSI.
            self.send_msi(address, data, GERROR_MSI_CMDQ_ABT_ERR);
            if traps {
                self.queues[number].publish();
            }
        }
        self.call(Call::CmdSync);
    }

    /// Tells every queue that a synchronisation failed, once, also while the guest is paused. CMD_SYNCs of rounds before it are completed
    /// first.
    pub fn on_sync_failed(&mut self, round: u64, Failure { cause, command }: Failure, ready: &mut Ready) {
        if self.is_served() {
            self.complete_syncs(round - 1, ready);
            self.serving = None;
        }
        let ours = command.is_none_or(|command| self.rules.is_ours(&self.streams, command));
        for number in 0..self.queues.len() {
            let Some(ring) = &mut self.queues[number].ring else { continue };
            let waiting = |sync: &PendingSync| sync.queue as usize == number && sync.round == round;
            let waits = ring.syncs > 0 && self.syncs.iter().any(waiting);
            if !ring.history.on_sync_failed(round, cause, ours, waits) && waits {
                // Somebody else's fault, or one that may be over: once more. What was sent behind the CMD_SYNC is sent again, since
                // the host may execute only now what must come before it.
                self.forget(number);
                ready.push(number);
            }
        }
        // A guest that leaves waits for the next one, which says what else there is to be said of what came before.
        self.leaving = self.leaving.filter(|leaving| *leaving != round || cause == Cause::DeviceGone);
    }

    /// What was taken of a queue beyond CONS will be taken again.
    pub(super) fn forget(&mut self, number: usize) {
        self.queues[number].forget();
        self.syncs.retain(|sync| sync.queue as usize != number);
    }

    /// Completes the commands that the VMM has carried out. Says whether there were any.
    pub(super) fn complete_requests(&mut self, ready: &mut Ready) -> bool {
        let mut any = false;
        let mut next = self.requests.next(0);
        while let Some(number) = next
            && self.calls.has_room()
        {
            self.serving = Some(number);
            if let Some(outcome) = self.tokens.outcome(number) {
                self.requests.remove(number);
                any |= self.complete_request(number, outcome);
                ready.push(number);
            }
            next = self.requests.next(number + 1);
        }
        any
    }

    fn complete_request(&mut self, number: usize, outcome: Outcome) -> bool {
        let Some(ring) = self.queues[number].ring.as_mut().filter(|ring| ring.waits_for_vmm) else {
            return false;
        };
        ring.waits_for_vmm = false;
        match outcome {
            Outcome::Completed => {
                let next = ring.behind(ring.cons());
                ring.take(1);
                self.counters.commands.add(ring.consume_to(next));
            }
            Outcome::Rejected => self.fail_request(number, CommandError::Ill),
            // When the guest acknowledges, the command is fetched again, and the VMM asked again.
            Outcome::Dropped => self.fail_request(number, CommandError::Abt),
        }
        true
    }

    fn fail_request(&mut self, number: usize, error: CommandError) {
        self.counters.requests_failed.add(1);
        self.stop(number, error);
    }
}
