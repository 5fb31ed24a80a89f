//! A model SMMU as a host queue: it knows what an invalidation means.
//!
//! For tests, and to watch a system live: fill its [`Caches`] with entries, let commands come, and see which entries are left.

mod caches;
mod entries;
mod store;

use std::collections::{BTreeMap, VecDeque};
use std::ops::DerefMut;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Cause, Failure, HostQueue, Ticket};
use crate::command::{Command, Opcode};
use crate::features::Features;

pub use caches::{Caches, Refused};
pub use entries::{AtcEntry, ConfigEntry, Entry, Granule, TlbEntry};

/// When a model works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// Whenever it is asked what has completed, on all there is.
    #[default]
    AtOnce,
    /// Whenever it is asked what has completed, on so many commands and CMD_SYNCs: it is late.
    PerLook(usize),
    /// When [`ModelSmmu::work`] says so.
    ByHand,
}

/// A queue of a model SMMU. Clones are handles to the same queue: one for the worker, others to look and to intervene. A
/// second worker takes [another queue](Self::another_queue).
///
/// It carries commands out in their order. Host identities; commands that a strict host would refuse fail with
/// [`Cause::Illegal`].
#[derive(Clone, Debug)]
pub struct ModelSmmu {
    caches: Arc<Mutex<Caches>>,
    queue: Arc<Mutex<Queue>>,
}

#[derive(Debug)]
struct Queue {
    items: VecDeque<Item>,
    /// How many of the items are commands.
    commands: usize,
    /// How many commands there may be.
    room: usize,
    pace: Pace,
    /// The newest ticket, and whether something was submitted since.
    asked: u64,
    submitted: bool,
    reached: u64,
    failures: BTreeMap<u64, Failure>,
    /// What will go wrong before the next CMD_SYNC completes, and what has gone wrong since the last.
    trouble: Option<Cause>,
    refused: Option<Failure>,
    /// What is refused always.
    dislikes: Option<Command>,
    /// Commands that a transient failure puts off.
    put_off: Vec<Command>,
    gone: bool,
}

#[derive(Clone, Copy, Debug)]
enum Item {
    Command(Command),
    Sync(u64),
}

/// Failures that are remembered: more than tickets can be outstanding.
const REMEMBERED: usize = 1024;

impl ModelSmmu {
    /// A model with empty caches, a queue without end, and [`Pace::AtOnce`].
    pub fn new(features: &Features) -> Self {
        Self::with_caches(Arc::new(Mutex::new(Caches::new(features))))
    }

    /// Another queue of the same SMMU: nothing orders what the two carry.
    pub fn another_queue(&self) -> Self {
        Self::with_caches(self.caches.clone())
    }

    fn with_caches(caches: Arc<Mutex<Caches>>) -> Self {
        let queue = Queue {
            items: VecDeque::new(),
            commands: 0,
            room: usize::MAX,
            pace: Pace::AtOnce,
            asked: 0,
            submitted: false,
            reached: 0,
            failures: BTreeMap::new(),
            trouble: None,
            refused: None,
            dislikes: None,
            put_off: Vec::new(),
            gone: false,
        };
        Self { caches, queue: Arc::new(Mutex::new(queue)) }
    }

    /// The caches, locked while the result is kept: no queue works meanwhile.
    pub fn caches(&self) -> impl DerefMut<Target = Caches> + '_ {
        self.caches.lock()
    }

    /// From now on it works at this pace.
    pub fn set_pace(&self, pace: Pace) {
        self.queue.lock().pace = pace;
    }

    /// From now on the queue holds at most so many commands.
    pub fn set_room(&self, commands: usize) {
        self.queue.lock().room = commands;
    }

    /// From now on this command is refused, with [`Cause::Illegal`].
    pub fn refuse(&self, command: Command) {
        self.queue.lock().dislikes = Some(command);
    }

    /// The next CMD_SYNC fails so, and what is carried out until then suffers as [`Cause`] says: it is put off, or with
    /// [`Cause::AtcTimeout`] ATC_INVs are lost, or with [`Cause::Illegal`] the next command is refused.
    /// Where something has gone wrong since the last CMD_SYNC, that is what the next one tells, and this changes nothing.
    pub fn fail_next(&self, cause: Cause) {
        let mut queue = self.queue.lock();
        if queue.refused.is_none() {
            queue.trouble.get_or_insert(cause);
        }
    }

    /// Carries out at most so many commands and CMD_SYNCs, and shows the commands to `sink` behind that; says how many.
    pub fn work(&self, most: usize, mut sink: impl FnMut(Command)) -> usize {
        let mut queue = self.queue.lock();
        let mut caches = self.caches.lock();
        (0..most).take_while(|_| queue.step(&mut caches, &mut sink)).count()
    }

    /// How many CMD_SYNCs were asked for, and how many are complete or have failed.
    pub fn syncs(&self) -> (u64, u64) {
        let queue = self.queue.lock();
        (queue.asked, queue.reached)
    }
}

impl HostQueue for ModelSmmu {
    fn submit(&mut self, commands: &[Command]) -> usize {
        let mut queue = self.queue.lock();
        // What will never be executed takes no room.
        let room = if queue.gone { usize::MAX } else { queue.room.saturating_sub(queue.commands) };
        let n = commands.len().min(room);
        if !queue.gone {
            queue.items.extend(commands[..n].iter().map(|command| Item::Command(*command)));
            queue.commands += n;
        }
        queue.submitted |= n > 0;
        n
    }

    fn sync(&mut self) -> Ticket {
        let mut queue = self.queue.lock();
        let queue = &mut *queue;
        if queue.submitted || queue.failures.contains_key(&queue.asked) {
            queue.asked += 1;
            queue.submitted = false;
            queue.items.push_back(Item::Sync(queue.asked));
        }
        Ticket(queue.asked)
    }

    fn completed(&mut self) -> Ticket {
        let pace = self.queue.lock().pace;
        match pace {
            Pace::AtOnce => self.work(usize::MAX, |_| ()),
            Pace::PerLook(most) => self.work(most, |_| ()),
            Pace::ByHand => 0,
        };
        Ticket(self.queue.lock().reached)
    }

    fn failure(&mut self, ticket: Ticket) -> Option<Failure> {
        self.queue.lock().failures.get(&ticket.0).copied()
    }
}

impl Queue {
    /// One command or CMD_SYNC; says whether there was one.
    fn step(&mut self, caches: &mut Caches, sink: &mut impl FnMut(Command)) -> bool {
        if self.trouble == Some(Cause::DeviceGone) {
            (self.gone, self.trouble) = (true, None);
        }
        match self.items.pop_front() {
            None => return false,
            Some(Item::Sync(ticket)) => self.finish(ticket, caches, sink),
            Some(Item::Command(command)) => {
                self.commands -= 1;
                match self.trouble {
                    _ if self.gone => {}
                    Some(Cause::Transient) => self.put_off.push(command),
                    trouble => {
                        self.catch_up(caches, sink);
                        match trouble {
                            Some(Cause::AtcTimeout) if command.opcode() == Opcode::ATC_INV => {}
                            Some(Cause::Illegal) => {
                                self.trouble = None;
                                self.refuse(command);
                            }
                            _ => self.carry_out(command, caches, sink),
                        }
                    }
                }
            }
        }
        true
    }

    /// Carries out what was put off: before anything that is behind it.
    fn catch_up(&mut self, caches: &mut Caches, sink: &mut impl FnMut(Command)) {
        for command in std::mem::take(&mut self.put_off) {
            if self.trouble != Some(Cause::AtcTimeout) || command.opcode() != Opcode::ATC_INV {
                self.carry_out(command, caches, sink);
            }
        }
    }

    fn carry_out(&mut self, command: Command, caches: &mut Caches, sink: &mut impl FnMut(Command)) {
        if self.dislikes == Some(command) || caches.execute(command).is_err() {
            self.refuse(command);
        } else {
            sink(command);
        }
    }

    /// One of several is not named: then it could be anybody's.
    fn refuse(&mut self, command: Command) {
        let command = if self.refused.is_none() { Some(command) } else { None };
        self.refused = Some(Failure { cause: Cause::Illegal, command });
    }

    fn finish(&mut self, ticket: u64, caches: &mut Caches, sink: &mut impl FnMut(Command)) {
        if !self.gone && self.trouble != Some(Cause::Transient) {
            self.catch_up(caches, sink);
        }
        let failure = |cause| Failure { cause, command: None };
        let gone = self.gone.then(|| failure(Cause::DeviceGone));
        let trouble = self.trouble.take_if(|cause| *cause != Cause::Illegal).map(failure);
        if let Some(failure) = gone.or(trouble).or_else(|| self.refused.take()) {
            self.failures.insert(ticket, failure);
            if self.failures.len() > REMEMBERED {
                self.failures.pop_first();
            }
        }
        self.reached = ticket;
    }
}
