//! Pausing, resetting, and a memory map that changes.

use thiserror::Error;

use super::VirtualSmmu;
use super::state::State;
use crate::command::Opcode;
use crate::host::HostQueue;
use crate::identity::HostStreamId;
use crate::outbox::FEW;
use crate::queue::has_atc_inv;
use crate::submission::Submission;

/// The virtual SMMU must be paused for this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the virtual SMMU is not paused")]
pub struct NotPaused;

impl VirtualSmmu {
    /// Stops serving the guest: when it returns, no command is being taken and none completes until [`Self::resume`]. What
    /// has been taken goes on to the host.
    ///
    /// Like every method of a virtual SMMU it may be called by any thread, under any lock, and from callbacks; it waits for the rest
    /// of one visit of the worker to the guest at the most.
    pub fn pause(&self) {
        self.0.control(|state| state.paused = true);
    }

    /// Goes on serving the guest; every queue is looked at, whether its doorbell rings or not.
    pub fn resume(&self) {
        self.0.control(|state| state.paused = false);
    }

    /// Puts the virtual SMMU into the state after power-on, at any time. Commands that were taken go on to the host; a
    /// CMD_SYNC that was waiting never completes; tokens of before have no effect.
    pub fn reset(&self) {
        let _no_writes = self.0.writing.lock();
        self.0.control(State::reset);
    }

    /// Follows the guest's memory map after the VMM has changed it. When it returns, memory that is no longer in the map
    /// is no longer used, and may be unmapped. A queue whose memory has gone gets CERROR_ABT at its next command.
    pub fn memory_changed(&self) {
        self.0.control(State::follow_memory);
    }
}

impl State {
    fn follow_memory(&mut self) {
        self.ram.refresh();
        for slot in &mut self.slots {
            let flags = slot.flags();
            if let Some(queue) = &mut slot.queue {
                queue.back(&slot.place, &*self.ram);
                // The new consumer's CONS word has no flags yet.
                queue.publish(flags, &slot.place);
            }
        }
    }

    /// Invalidates all that the guest may have cached on the host: its TLB entries, and the CDs and ATC entries of
    /// its streams. A part in each sweep; says whether there was room for it.
    pub(super) fn invalidate<H: HostQueue>(&mut self, to: &mut Submission<H>) -> bool {
        let round = to.round();
        let (Some(first), Some(out)) = (self.invalidating, to.room()) else { return false };
        let end = self.streams.slots().min(first + (FEW - 1) / 3);
        let streams = (first..end).filter_map(|slot| self.streams.at(slot));
        let of_streams = streams.flat_map(|(guest, host)| {
            let host = self.rules.name(guest, host);
            let all = |opcode| self.rules.host_all(opcode, host);
            [all(Opcode::CFGI_CD_ALL), all(Opcode::ATC_INV), self.rules.atc_inv_pasids(host)]
        });
        let everything = (first == 0).then(|| self.rules.host_all(Opcode::TLBI_NSNH_ALL, HostStreamId(0)));
        let mut n = 0;
        for (command, room) in everything.into_iter().chain(of_streams).flatten().zip(out.buffers().1) {
            *room = command;
            n += 1;
        }
        let atc_invs = has_atc_inv(&out.buffers().1[..n]);
        let queues = self.slots.iter_mut().filter_map(|slot| slot.queue.as_mut());
        queues.for_each(|queue| queue.made_good(round, atc_invs));
        out.keep(n);
        self.counters.forwarded.add(n);
        self.invalidating = (end < self.streams.slots()).then_some(end);
        true
    }
}
