//! Drivers without the engine, which send a host what stands in a guest's queues: some that are right, and some that are not.

use std::collections::VecDeque;

use ecmdq_engine::Command;
use ecmdq_engine::host::{HostQueue, Ticket};

use crate::common::Random;
use crate::host::{Host, rank};
use crate::run::{Driver, QUEUES};

/// Whether a command of one rank needs a synchronisation of the host in front of it, when one of another stands before a CMD_SYNC.
pub type Rule = fn(before: usize, behind: usize) -> bool;

/// Takes commands behind a CMD_SYNC before that is complete, with a synchronisation between where the rule says so.
pub struct Ahead {
    rule: Rule,
    host: Host,
    random: Random,
    queues: [Queue; QUEUES],
    /// Whether a CMD_SYNC is not covered by a ticket.
    due: bool,
}

#[derive(Default)]
struct Queue {
    ring: VecDeque<Command>,
    taken: u64,
    passed: u64,
    /// The ranks of what is not covered by a synchronisation; and of that, of what a CMD_SYNC stands behind.
    sent: [bool; 3],
    synced: [bool; 3],
    /// CMD_SYNCs that are not complete: the position behind, and the ticket.
    syncs: VecDeque<(u64, Option<Ticket>)>,
}

impl Ahead {
    pub fn new(host: Host, random: Random, rule: Rule) -> Self {
        Self { rule, host, random, queues: Default::default(), due: false }
    }

    fn take(&mut self, number: usize) {
        for _ in 0..self.random.of(&[1, 10, 256]) {
            let Some(command) = self.queues[number].ring.front().copied() else { return };
            let queue = &mut self.queues[number];
            match command.opcode().0 {
                0x01 => {}
                0x46 => {
                    queue.synced = queue.sent;
                    queue.syncs.push_back((queue.taken + 1, None));
                    self.due = true;
                }
                _ => {
                    let behind = rank(command);
                    if (0..3).any(|before| queue.synced[before] && (self.rule)(before, behind)) {
                        self.synchronise();
                    }
                    if self.host.submit(&[command]) == 0 {
                        return;
                    }
                    self.queues[number].sent[behind] = true;
                }
            }
            self.queues[number].ring.pop_front();
            self.queues[number].taken += 1;
        }
    }

    fn synchronise(&mut self) {
        let ticket = self.host.sync();
        for queue in &mut self.queues {
            (queue.sent, queue.synced) = Default::default();
            queue.syncs.iter_mut().for_each(|(_, of)| _ = of.get_or_insert(ticket));
        }
        self.due = false;
    }
}

impl Driver for Ahead {
    fn send(&mut self, queue: usize, commands: &[Command]) {
        self.queues[queue].ring.extend(commands);
    }

    fn poll(&mut self) {
        (0..QUEUES).for_each(|number| self.take(number));
        if self.due {
            self.synchronise();
        }
        let completed = self.host.completed();
        for queue in &mut self.queues {
            while let Some((position, ticket)) = queue.syncs.front()
                && ticket.is_some_and(|ticket| ticket <= completed)
            {
                queue.passed = *position;
                queue.syncs.pop_front();
            }
            if queue.syncs.is_empty() {
                queue.passed = queue.taken;
            }
        }
    }

    fn passed(&mut self, queue: usize) -> u64 {
        self.queues[queue].passed
    }
}

/// Waits at each CMD_SYNC of a queue until the host has done all before it.
pub struct Waiting {
    host: Host,
    queues: [Strict; QUEUES],
}

#[derive(Default)]
struct Strict {
    ring: VecDeque<Command>,
    passed: u64,
    waits: Option<Ticket>,
}

impl Waiting {
    pub fn new(host: Host) -> Self {
        Self { host, queues: Default::default() }
    }
}

impl Driver for Waiting {
    fn send(&mut self, queue: usize, commands: &[Command]) {
        self.queues[queue].ring.extend(commands);
    }

    fn poll(&mut self) {
        let completed = self.host.completed();
        for queue in &mut self.queues {
            if queue.waits.take_if(|ticket| *ticket <= completed).is_some() {
                queue.ring.pop_front();
                queue.passed += 1;
            }
            while queue.waits.is_none()
                && let Some(command) = queue.ring.front().copied()
            {
                match command.opcode().0 {
                    0x46 => {
                        queue.waits = Some(self.host.sync());
                        break;
                    }
                    0x01 => {}
                    _ if self.host.submit(&[command]) == 0 => break,
                    _ => {}
                }
                queue.ring.pop_front();
                queue.passed += 1;
            }
        }
    }

    fn passed(&mut self, queue: usize) -> u64 {
        self.queues[queue].passed
    }
}
