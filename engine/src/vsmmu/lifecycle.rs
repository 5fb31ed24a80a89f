//! Pausing, resetting, and a memory map that changes.

use std::ops::Range;

use thiserror::Error;

use super::VirtualSmmu;
use super::state::State;
use crate::command::{Command, Opcode};
use crate::host::HostQueue;
use crate::identity::HostStreamId;
use crate::outbox::{MIN_BATCH, Outbox};
use crate::submission::Submission;

/// What is invalidated next of all that a guest may have cached on the host: each is filled from what is in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invalidation {
    /// The CDs of its streams, from this slot of the stream map on.
    Cds(usize),
    /// Its TLB entries.
    Translations,
    /// The ATC entries of its streams, from this slot on.
    Atcs(usize),
}

impl Invalidation {
    pub const FIRST: Self = Self::Cds(0);
}

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

    /// Invalidates all that the guest may have cached on the host, part after part, with a synchronisation between two kinds. Says whether there
    /// was room for a part of it.
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

    fn invalidate_part(&mut self, part: Invalidation, out: &mut Outbox) {
        if matches!(part, Invalidation::Translations | Invalidation::Atcs(0)) {
            out.barrier();
        }
        let Self { rules, streams, .. } = self;
        let slots = streams.slots();
        let hosts = |part: Range<usize>| {
            let owned = part.filter_map(|slot| streams.at(slot));
            owned.map(|(guest, host)| rules.name(guest, host))
        };
        let (mut n, room) = (0, out.room());
        let mut write = |command: Option<Command>| {
            if let (Some(command), Some(room)) = (command, room.get_mut(n)) {
                *room = command;
                n += 1;
            }
        };
        let next = match part {
            Invalidation::Cds(first) => {
                let end = slots.min(first + MIN_BATCH);
                hosts(first..end).for_each(|host| write(rules.host_all(Opcode::CFGI_CD_ALL, host)));
                Some(if end < slots { Invalidation::Cds(end) } else { Invalidation::Translations })
            }
            Invalidation::Translations => {
                write(rules.host_all(Opcode::TLBI_NSNH_ALL, HostStreamId(0)));
                (slots > 0).then_some(Invalidation::Atcs(0))
            }
            Invalidation::Atcs(first) => {
                // Two commands each.
                let end = slots.min(first + MIN_BATCH / 2);
                hosts(first..end).for_each(|host| {
                    write(rules.host_all(Opcode::ATC_INV, host));
                    write(rules.atc_inv_pasids(host));
                });
                (end < slots).then_some(Invalidation::Atcs(end))
            }
        };
        out.keep(n);
        let atc_invs = matches!(part, Invalidation::Atcs(_)) && n > 0;
        let rings = self.queues.iter_mut().filter_map(|queue| queue.ring.as_mut());
        rings.for_each(|ring| ring.history.sent(out.round(), atc_invs));
        self.counters.forwarded.add(n);
        self.invalidating = next;
    }
}
