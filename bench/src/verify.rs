//! Compares what the host received with what the guests sent.
//!
//! What the host should get is worked out here from the facts sheet alone, bit by bit, with no rule or table of
//! the engine's, so that a mistake there shows.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ecmdq_engine::{Command, StreamId};

use crate::machine::Machine;

/// What the host should receive of each guest, in order, and has not received yet.
#[derive(Debug)]
pub struct Verifier {
    expected: Vec<Mutex<VecDeque<Command>>>,
    verdict: Mutex<Verdict>,
}

/// The outcome so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Commands of the host queue that were compared and right.
    pub right: u64,
    /// Commands that were wrong, or that nobody sent.
    pub wrong: u64,
    /// Commands that never reached the host.
    pub lost: u64,
    /// The first that was wrong.
    pub first: Option<Mismatch>,
}

/// A command that the host should not have received like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The guest it seems to belong to.
    pub guest: usize,
    /// What the host should have received next from that guest, if anything.
    pub expected: Option<Command>,
    /// What it received.
    pub received: Command,
}

impl Verdict {
    /// Whether nothing was lost, duplicated or wrong.
    pub fn is_clean(&self) -> bool {
        self.wrong == 0 && self.lost == 0
    }
}

impl Verifier {
    /// A verifier for guests numbered from 0 on.
    pub fn new(guests: usize) -> Self {
        Self { expected: (0..guests).map(|_| Mutex::default()).collect(), verdict: Mutex::default() }
    }

    /// A guest is about to send these commands; `streams` are those it owns.
    pub fn sending(&self, guest: u16, commands: &[Command], streams: &[StreamId]) {
        let Some(expected) = self.expected.get(usize::from(guest)) else { return };
        lock(expected).extend(commands.iter().filter_map(|command| host_command(guest, *command, streams)));
    }

    /// The host received these commands.
    pub fn received(&self, commands: &[Command]) {
        let mut verdict = lock(&self.verdict);
        for run in commands.chunk_by(|a, b| owner(*a) == owner(*b)) {
            let Some(guest) = owner(run[0]) else { continue };
            let mut expected = self.expected.get(guest).map(lock);
            for received in run {
                let next = expected.as_mut().and_then(|queue| queue.pop_front());
                if next == Some(*received) {
                    verdict.right += 1;
                } else {
                    verdict.wrong += 1;
                    verdict.first.get_or_insert(Mismatch { guest, expected: next, received: *received });
                }
            }
        }
    }

    /// The outcome, once everybody is done.
    pub fn finish(&self) -> Verdict {
        let lost = self.expected.iter().map(|queue| lock(queue).len() as u64).sum();
        Verdict { lost, ..lock(&self.verdict).clone() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the host gets for a guest's legal command; nothing for those that do not go there.
fn host_command(guest: u16, Command([low, high]): Command, streams: &[StreamId]) -> Option<Command> {
    let vmid = u64::from(Machine::vmid(guest).0) << 32;
    let stream = StreamId((low >> 32) as u32);
    let host_stream = u64::from(Machine::host_stream(guest, stream).0) << 32;
    match low & 0xff {
        // TG 16K with TTL 1 is TTL 0 on an SMMU without 52-bit addresses.
        0x12 | 0x13 if high & 0xf00 == 0x900 => {
            Some(Command([low & !0x0000_ffff_0000_0000 | vmid, high & !0x300]))
        }
        0x10..=0x13 => Some(Command([low & !0x0000_ffff_0000_0000 | vmid, high])),
        0x30 => Some(Command([0x10 | vmid, 0])),
        0x05 | 0x06 | 0x40 if !streams.contains(&stream) => None,
        // The emulated guests have no substreams: SubstreamID, SSV and Global do not count in ATC_INV.
        0x40 => Some(Command([0x40 | host_stream, high])),
        0x05 | 0x06 => Some(Command([low & 0xffff_ffff | host_stream, high])),
        _ => None,
    }
}

/// The guest that a host command belongs to, by VMID or StreamID; `None` for the host's own CMD_SYNC.
fn owner(Command([low, _]): Command) -> Option<usize> {
    let vmid = match low & 0xff {
        0x46 => return None,
        0x05 | 0x06 | 0x40 => low >> 48,
        _ => low >> 32 & 0xffff,
    };
    Some((vmid as usize).wrapping_sub(1))
}
