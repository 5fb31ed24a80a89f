//! A worker of the simulation: `engine/src/worker/mod.rs`, with costs for what it does.

use std::collections::VecDeque;
use std::mem;

use super::simulation::{Tickets, World};
use super::turns::Turns;

/// The engine's numbers: entries that are fetched at once at the most, and those that always may be, room for commands on their way to
/// the host, credit of a guest in a sweep, quiet guests and quiet queues that are looked at in turn.
const BATCH: i64 = 256;
const FEW: i64 = 64;
const OUTBOX: u64 = 512;
const QUANTUM: i64 = 512;
const GUESTS: usize = 1;
const QUEUES: usize = 16;
/// Entries in a cache line.
const ENTRIES: u32 = 4;

pub(super) struct Worker {
    pub clock: f64,
    /// What a cache line of its guests costs more than if there were one.
    further: f64,
    guests: Vec<Guest>,
    turns: Turns,
    /// The sweep has made its visits, and is to be ended.
    visited: bool,
    /// Something was done in the last sweep, and how much.
    busy: bool,
    work: u64,
    /// Commands that have not been handed over.
    out: u64,
    /// The round that a CMD_SYNC belongs to that is met now; whether there is one; whether it could not be asked for before this
    /// sweep, and whether nothing is taken because of that.
    round: u64,
    due: bool,
    waits: bool,
    blocked: bool,
    /// Rounds that the host has been asked for, and when it completes them.
    asked: VecDeque<(u64, f64)>,
    over: u64,
    /// When the sweep began.
    began: f64,
    /// Room for the order of guests, and of a guest's queues.
    order: [Vec<usize>; 2],
}

struct Guest {
    queues: Vec<Queue>,
    turns: Turns,
    credit: i64,
    /// What was taken in the last visit.
    spent: u64,
    /// There was something to take in the last visit, and it was not taken.
    denied: bool,
}

struct Queue {
    /// When the vCPU rings, or rang.
    doorbell: f64,
    /// Which of the groups this is, how many entries it has, and how many have not been taken.
    group: usize,
    entries: u32,
    left: u32,
    /// The round that its CMD_SYNC waits for.
    waits: Option<u64>,
    more: bool,
}

#[derive(PartialEq, Eq)]
enum Took {
    Nothing,
    Something,
    Denied,
}

impl Worker {
    pub fn new(guests: usize, queues: usize, unused: usize, world: &mut World) -> Self {
        let guests: Vec<_> = (0..guests).map(|number| Guest::new(number, queues, unused, world)).collect();
        Self {
            clock: 0.0,
            further: world.costs.doubling * (guests.len().max(1) as f64).log2(),
            turns: Turns::new(guests.len(), GUESTS),
            guests,
            visited: false,
            busy: false,
            work: 0,
            out: 0,
            round: 1,
            due: false,
            waits: false,
            blocked: false,
            asked: VecDeque::new(),
            over: 0,
            began: 0.0,
            order: [Vec::new(), Vec::new()],
        }
    }

    /// The visits of a sweep, or its end.
    pub fn step(&mut self, world: &mut World) {
        self.visited = !self.visited;
        if self.visited {
            return self.visit_all(world);
        }
        self.hand_over(world);
        if self.busy {
            world.busy += self.clock - self.began;
        }
    }

    fn visit_all(&mut self, world: &mut World) {
        world.counts.sweeps += 1;
        self.began = self.clock;
        self.look();
        self.hand_over(world);
        self.waits = self.due;
        self.blocked = self.due && world.tickets != Tickets::One;
        self.clock += world.costs.sweep;
        // While it waits for the host, a look at everybody costs nobody anything.
        let (all, mut held_up) = (!self.busy || self.waits, None);
        let [mut order, mut queues] = mem::take(&mut self.order);
        self.turns.begin(all, mem::take(&mut self.work), &mut order);
        self.busy = false;
        for &number in &order {
            let lively = self.visit(number, all, &mut queues, world);
            self.turns.note(number, lively);
            if self.guests[number].denied && self.waits {
                held_up.get_or_insert(number);
            }
        }
        self.turns.end(held_up);
        self.order = [order, queues];
    }

    /// One guest; says whether it is lively.
    fn visit(&mut self, number: usize, all: bool, order: &mut Vec<usize>, world: &mut World) -> bool {
        world.counts.guests += 1;
        self.clock += world.costs.guest + self.further;
        let guest = &mut self.guests[number];
        // Nobody puts off a ticket by more than a share.
        if !self.waits {
            guest.credit = (guest.credit + QUANTUM).min(QUANTUM);
        }
        guest.denied = false;
        let (mut busy, mut denied) = (false, None);
        guest.turns.begin(all, mem::take(&mut guest.spent), order);
        for &queue in &*order {
            world.counts.queues += 1;
            self.clock += world.costs.queue;
            let completed = self.complete(number, queue, world);
            let took = self.take(number, queue, &mut denied, world);
            let guest = &mut self.guests[number];
            let lively = completed || took != Took::Nothing || guest.queues[queue].waits.is_some();
            guest.turns.note(queue, lively);
            busy |= completed || took == Took::Something;
        }
        let mut again = true;
        while mem::take(&mut again) {
            for &queue in &*order {
                if mem::take(&mut self.guests[number].queues[queue].more) {
                    self.take(number, queue, &mut denied, world);
                    again |= self.guests[number].queues[queue].more;
                }
            }
        }
        let guest = &mut self.guests[number];
        guest.turns.end(denied);
        guest.denied = denied.is_some();
        self.work += guest.spent;
        // What was denied for want of credit gets some in the next sweep.
        busy |= guest.denied && !self.waits;
        self.busy |= busy;
        busy || !guest.turns.is_quiet()
    }

    /// Passes the CMD_SYNC that a queue waits for, if its round is over; the vCPU thinks, and rings again.
    fn complete(&mut self, guest: usize, queue: usize, world: &mut World) -> bool {
        let queue = &mut self.guests[guest].queues[queue];
        if queue.waits.is_none_or(|round| round > self.over) {
            return false;
        }
        queue.waits = None;
        world.counts.syncs += 1;
        self.clock += world.costs.sync;
        let seen = self.clock + world.costs.doorbell;
        world.round_trip.saturating_record((seen - queue.doorbell).round() as u64);
        queue.ring(seen, world);
        true
    }

    /// Takes a batch. `denied` is the first queue for which there was no credit, or no ticket to be had.
    fn take(&mut self, guest: usize, number: usize, denied: &mut Option<usize>, world: &mut World) -> Took {
        let guest = &mut self.guests[guest];
        let queue = &mut guest.queues[number];
        queue.more = false;
        // One that was rung at this very moment is seen next time.
        if queue.doorbell >= self.clock || queue.waits.is_some() {
            return Took::Nothing;
        }
        if self.blocked || guest.credit <= 0 {
            denied.get_or_insert(number);
            return Took::Denied;
        }
        if self.out + FEW as u64 > OUTBOX {
            self.clock += world.costs.hand_over;
            world.hand_over(self.clock, mem::take(&mut self.out), false);
        }
        let batch = queue.left.min(guest.credit.clamp(FEW, BATCH) as u32).min((OUTBOX - self.out) as u32);
        if queue.left == queue.entries {
            let lines = queue.entries.div_ceil(ENTRIES);
            world.counts.lines += u64::from(lines);
            self.clock += world.costs.doorbell + (world.costs.line + self.further) * f64::from(lines);
        }
        queue.left -= batch;
        guest.spent += u64::from(batch);
        guest.credit -= i64::from(batch);
        queue.more = queue.left > 0;
        // The last entry is the CMD_SYNC, which is not handed over.
        let commands = u64::from(batch) - u64::from(!queue.more);
        world.counts.commands += commands;
        self.clock += world.costs.command * commands as f64;
        self.out += commands;
        if !queue.more {
            queue.waits = Some(self.round);
            self.due = true;
        }
        Took::Something
    }

    /// Rounds that the host has completed are over.
    fn look(&mut self) {
        while let Some((round, _)) = self.asked.pop_front_if(|(_, done)| *done <= self.clock) {
            self.over = round;
        }
    }

    /// Whether a ticket may be asked for.
    fn may_ask(&mut self, tickets: Tickets) -> bool {
        match tickets {
            Tickets::One => {
                self.look();
                self.asked.is_empty()
            }
            Tickets::Fewer(most) => self.asked.len() < most,
        }
    }

    /// What has been taken goes to the host, with one CMD_SYNC for all that were met if a ticket can be had.
    fn hand_over(&mut self, world: &mut World) {
        let sync = self.due && self.may_ask(world.tickets);
        if !sync && self.out == 0 {
            return;
        }
        self.clock += world.costs.hand_over;
        let done = world.hand_over(self.clock, mem::take(&mut self.out), sync);
        if sync {
            self.asked.push_back((self.round, done));
            self.round += 1;
            self.due = false;
        }
    }
}

impl Guest {
    fn new(number: usize, queues: usize, unused: usize, world: &mut World) -> Self {
        let queues: Vec<_> = (0..queues + unused)
            .map(|queue| {
                let group = number + queue;
                let mut state =
                    Queue { doorbell: f64::INFINITY, group, entries: 0, left: 0, waits: None, more: false };
                if queue < queues {
                    state.ring(0.0, world);
                }
                state
            })
            .collect();
        Self { turns: Turns::new(queues.len(), QUEUES), queues, credit: 0, spent: 0, denied: false }
    }
}

impl Queue {
    /// The vCPU, which has seen at a time that it is its turn, thinks and rings for its next group.
    fn ring(&mut self, seen: f64, world: &mut World) {
        if world.groups.is_empty() {
            return;
        }
        self.doorbell = seen + world.think();
        self.entries = world.groups[self.group % world.groups.len()] + 1;
        self.left = self.entries;
        self.group += 1;
    }
}
