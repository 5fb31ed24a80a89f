//! Pausing, resetting, and a memory map that changes.

use thiserror::Error;

use super::VirtualSmmu;
use super::state::State;
use crate::command::{Command, Opcode, Rank};
use crate::host::HostQueue;
use crate::identity::HostStreamId;
use crate::outbox::{MIN_BATCH, Outbox};
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
        self.0.control(|state| (state.paused, state.looks) = (false, true));
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
        self.queues.iter_mut().for_each(|queue| queue.find_memory(&*self.ram));
        self.looks = true;
    }

    /// Invalidates all that the guest may have cached on the host: the CDs of its streams, then its TLB entries, then the ATC entries of its
    /// streams, each behind a synchronisation, since each is filled from what is in front of it. Says whether there was room for a part of it.
    pub(super) fn invalidate<H: HostQueue>(&mut self, to: &mut Submission<H>) -> bool {
        let mut any = false;
        while let Some(part) = self.invalidating
            && let Some((_, out)) = to.room()
        {
            self.invalidate_part(part, out);
            any = true;
        }
        any
    }

    fn invalidate_part(&mut self, part: usize, out: &mut Outbox) {
        let slots = self.streams.slots();
        // The streams in parts, all TLB entries in one, and the streams once more.
        let (rank, first, most) = match part.checked_sub(slots) {
            None => (Rank::Configuration, part, MIN_BATCH),
            Some(0) => (Rank::Translation, 0, 1),
            Some(part) => (Rank::Atc, part - 1, MIN_BATCH / 2),
        };
        if rank != Rank::Configuration && first == 0 {
            out.barrier();
        }
        let all = |opcode, stream| self.rules.host_all(opcode, stream);
        let streams = (first..slots.min(first + most)).filter_map(|slot| self.streams.at(slot));
        let hosts = streams.map(|(guest, host)| self.rules.name(guest, host));
        let mut n = 0;
        let mut write = |command: Option<Command>| {
            if let (Some(command), Some(room)) = (command, out.room().get_mut(n)) {
                *room = command;
                n += 1;
            }
        };
        match rank {
            Rank::Translation => write(all(Opcode::TLBI_NSNH_ALL, HostStreamId(0))),
            Rank::Configuration | Rank::ConfigurationTable | Rank::TranslationTable => {
                hosts.for_each(|host| write(all(Opcode::CFGI_CD_ALL, host)));
            }
            Rank::Atc => hosts.for_each(|host| {
                write(all(Opcode::ATC_INV, host));
                write(self.rules.atc_inv_pasids(host));
            }),
        }
        out.keep(n);
        let rings = self.queues.iter_mut().filter_map(|queue| queue.ring.as_mut());
        rings.for_each(|ring| ring.history.sent(out.round(), rank == Rank::Atc && n > 0));
        self.counters.forwarded.add(n);
        let next = if rank == Rank::Translation { slots + 1 } else { part + most };
        let next = if rank == Rank::Configuration { next.min(slots) } else { next };
        self.invalidating = (next < 2 * slots + 1).then_some(next);
    }
}
