//! Compares what the host received with what the guests sent.
//!
//! What the host should get is worked out here from the facts sheet alone, bit by bit, with no rule or table of
//! the engine's, so that a mistake there shows.
//!
//! Order is kept on each queue; how the queues of a guest mix is free. So each queue's commands are compared with what that
//! queue sent, in order. Where a guest has several queues, a command [names](crate::Traffic::of_queue) the one that it is
//! from. TLBI_NH_ALL cannot: all of a guest's are equal. Whose one was is left open until a queue is known to have had its
//! own, because something behind it was received, or more is sent. Then the earliest one that came after what stands before
//! it is taken: the other queues' are known later, and one that came later fits those at least as well. So a mix is
//! right in this sense just if there is a way to have got it from the queues.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ecmdq_engine::{Command, StreamId};

use crate::machine::Machine;
use crate::traffic::queue_of;

/// What the host should receive of each guest, and has not received yet.
#[derive(Debug)]
pub struct Verifier {
    guests: Vec<Mutex<Guest>>,
    verdict: Mutex<Verdict>,
    /// What other guests sent is not compared.
    others: bool,
}

#[derive(Debug)]
struct Guest {
    number: u16,
    queues: Vec<Expected>,
    /// Commands received.
    received: u64,
    /// Which of them were TLBI_NH_ALL of some queue.
    open: VecDeque<u64>,
}

/// What a queue sent, in order.
#[derive(Debug, Default)]
struct Expected {
    commands: VecDeque<Command>,
    /// The command received that the one before them was.
    since: u64,
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
    /// The queue of that guest.
    pub queue: usize,
    /// What the host should have received next from that queue, if anything.
    pub expected: Option<Command>,
    /// What it received.
    pub received: Command,
}

impl Verdict {
    /// Whether nothing was lost, duplicated or wrong.
    pub fn is_clean(&self) -> bool {
        self.wrong == 0 && self.lost == 0
    }

    fn mismatch(&mut self, guest: usize, queue: usize, expected: Option<Command>, received: Command) {
        self.wrong += 1;
        self.first.get_or_insert(Mismatch { guest, queue, expected, received });
    }
}

impl Verifier {
    /// A verifier for guests numbered from 0 on, with so many queues each.
    pub fn new(guests: usize, queues: usize) -> Self {
        let guest = |number| {
            let queues = (0..queues).map(|_| Expected::default()).collect();
            Mutex::new(Guest { number, queues, received: 0, open: VecDeque::new() })
        };
        Self { guests: (0..guests as u16).map(guest).collect(), verdict: Mutex::default(), others: false }
    }

    /// The same beside others, with higher numbers, that are hostile: of those nothing is compared.
    pub fn beside_hostile(self) -> Self {
        Self { others: true, ..self }
    }

    /// A queue is about to be sent these commands, and has completed all before; `streams` are those that the guest owns.
    pub fn sending(&self, guest: u16, queue: usize, commands: &[Command], streams: &[StreamId]) {
        let Some(state) = self.guests.get(usize::from(guest)) else { return };
        let mut state = lock(state);
        let right = state.settle(queue);
        if let Some(expected) = state.queues.get_mut(queue) {
            let commands = commands.iter().filter_map(|command| host_command(guest, *command, streams));
            expected.commands.extend(commands);
        }
        drop(state);
        lock(&self.verdict).right += right;
    }

    /// The host received these commands.
    pub fn received(&self, commands: &[Command]) {
        let mut verdict = lock(&self.verdict);
        for run in commands.chunk_by(|a, b| owner(*a) == owner(*b)) {
            let Some(guest) = owner(run[0]) else { continue };
            match self.guests.get(guest).map(lock) {
                Some(mut state) => run.iter().for_each(|command| state.receive(*command, &mut verdict)),
                None if self.others => {}
                None => run.iter().for_each(|command| verdict.mismatch(guest, 0, None, *command)),
            }
        }
    }

    /// The outcome, once everybody is done.
    pub fn finish(&self) -> Verdict {
        let mut verdict = lock(&self.verdict);
        let mut lost = 0;
        for guest in &self.guests {
            let mut guest = lock(guest);
            for queue in 0..guest.queues.len() {
                verdict.right += guest.settle(queue);
            }
            lost += guest.queues.iter().map(|queue| queue.commands.len() as u64).sum::<u64>();
            for _ in std::mem::take(&mut guest.open) {
                verdict.mismatch(guest.number.into(), 0, None, nh_all(guest.number));
            }
        }
        Verdict { lost, ..verdict.clone() }
    }
}

impl Guest {
    fn receive(&mut self, command: Command, verdict: &mut Verdict) {
        let guest = usize::from(self.number);
        self.received += 1;
        let number = match queue_of(command) {
            _ if self.queues.len() == 1 => 0,
            Some(number) => number,
            None if command == nh_all(self.number) => return self.open.push_back(self.received),
            None => return verdict.mismatch(guest, 0, None, command),
        };
        verdict.right += self.settle(number);
        let Some(queue) = self.queues.get_mut(number) else {
            return verdict.mismatch(guest, number, None, command);
        };
        let next = queue.commands.pop_front();
        queue.since = self.received;
        match next {
            Some(expected) if expected == command => verdict.right += 1,
            expected => verdict.mismatch(guest, number, expected, command),
        }
    }

    /// The TLBI_NH_ALLs that a queue's next commands are have been received: finds and counts them.
    fn settle(&mut self, queue: usize) -> u64 {
        let Some(queue) = self.queues.get_mut(queue) else { return 0 };
        let mut settled = 0;
        while queue.commands.front() == Some(&nh_all(self.number)) {
            let first = self.open.partition_point(|at| *at <= queue.since);
            let Some(at) = self.open.remove(first) else { break };
            queue.commands.pop_front();
            queue.since = at;
            settled += 1;
        }
        settled
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
        0x30 => Some(nh_all(guest)),
        0x05 | 0x06 | 0x40 if !streams.contains(&stream) => None,
        // SubstreamID and Global count with SSV only.
        0x40 if low & 1 << 11 != 0 => Some(Command([low & 0xffff_ffff | host_stream, high])),
        0x40 => Some(Command([0x40 | host_stream, high])),
        0x05 | 0x06 => Some(Command([low & 0xffff_ffff | host_stream, high])),
        _ => None,
    }
}

/// TLBI_NH_ALL with a guest's VMID.
fn nh_all(guest: u16) -> Command {
    Command([0x10 | u64::from(Machine::vmid(guest).0) << 32, 0])
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
