//! A host queue that uses every freedom that its contract gives it: what stands between two synchronisations is executed in any order,
//! a command at a time, and devices get in between wherever they can.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use ecmdq_engine::Command;
use ecmdq_engine::host::{HostQueue, Ticket};

use crate::caches::Caches;
use crate::common::Random;

/// A handle to the queue; clones share it.
#[derive(Clone)]
pub struct Host(Rc<RefCell<State>>);

struct State {
    caches: Rc<RefCell<Caches>>,
    items: VecDeque<Item>,
    /// How many of them are commands.
    commands: usize,
    asked: u64,
    /// Whether something was submitted since.
    submitted: bool,
    reached: u64,
    random: Random,
    mood: Mood,
}

/// How it works for a while.
#[derive(Clone, Copy)]
struct Mood {
    /// How many commands there may be.
    room: usize,
    /// How much it does at most when it is asked what has completed.
    steps: usize,
    /// It leaves a synchronisation out where that makes no difference.
    lenient: bool,
}

#[derive(Clone, Copy)]
enum Item {
    Command(Command),
    Sync(u64),
}

/// How far ahead it looks for something to execute.
const WINDOW: usize = 32;

/// What a command invalidates, as the contract ranks it: configuration, translations, ATCs.
pub fn rank(command: Command) -> usize {
    match command.opcode().0 {
        0x05 | 0x06 => 0,
        0x10..=0x30 => 1,
        0x40 => 2,
        _ => panic!("{command} has no rank"),
    }
}

impl Host {
    pub fn new(caches: Rc<RefCell<Caches>>, random: Random) -> Self {
        Self(Rc::new(RefCell::new(State {
            caches,
            items: VecDeque::new(),
            commands: 0,
            asked: 0,
            submitted: false,
            reached: 0,
            random,
            mood: Mood { room: usize::MAX, steps: usize::MAX, lenient: false },
        })))
    }

    /// From now on it works in another way.
    pub fn change_mood(&self) {
        let State { random, mood, .. } = &mut *self.0.borrow_mut();
        *mood = Mood {
            room: random.of(&[usize::MAX, 100, 20, 5]),
            steps: random.of(&[0, 2, 10, 200]),
            lenient: random.one_in(2),
        };
    }

    /// Executes at most so many commands and synchronisations.
    pub fn work(&self, most: usize) {
        let state = &mut *self.0.borrow_mut();
        for _ in 0..most {
            if !state.step() {
                return;
            }
        }
    }

    /// How many synchronisations were asked for.
    pub fn syncs(&self) -> u64 {
        self.0.borrow().asked
    }
}

impl HostQueue for Host {
    fn submit(&mut self, commands: &[Command]) -> usize {
        let state = &mut *self.0.borrow_mut();
        let n = commands.len().min(state.mood.room.saturating_sub(state.commands));
        state.items.extend(commands[..n].iter().map(|command| Item::Command(*command)));
        state.commands += n;
        state.submitted |= n > 0;
        n
    }

    fn sync(&mut self) -> Ticket {
        let state = &mut *self.0.borrow_mut();
        if std::mem::take(&mut state.submitted) {
            state.asked += 1;
            state.items.push_back(Item::Sync(state.asked));
        }
        Ticket(state.asked)
    }

    fn completed(&mut self) -> Ticket {
        let steps = {
            let State { random, mood, .. } = &mut *self.0.borrow_mut();
            random.below(mood.steps.saturating_add(1))
        };
        self.work(steps);
        Ticket(self.0.borrow().reached)
    }
}

impl State {
    /// A command or a synchronisation; says whether there was one.
    fn step(&mut self) -> bool {
        let Some(front) = self.items.front().copied() else { return false };
        let mut places = [0; WINDOW];
        let n = self.may_begin(&mut places);
        match front {
            Item::Sync(ticket) if n == 0 || self.random.one_in(2) => {
                self.items.pop_front();
                self.reached = ticket;
            }
            _ => {
                let place = places[self.random.below(n)];
                if let Some(Item::Command(command)) = self.items.remove(place) {
                    self.commands -= 1;
                    self.caches.borrow_mut().execute(command);
                }
            }
        }
        self.caches.borrow_mut().disturb();
        true
    }

    /// Finds the places of commands that may be executed next; says how many.
    fn may_begin(&self, places: &mut [usize; WINDOW]) -> usize {
        let (mut n, mut lowest, mut lowest_synced) = (0, None, None);
        for (place, item) in self.items.iter().take(WINDOW).enumerate() {
            match *item {
                Item::Sync(_) if !self.mood.lenient => break,
                Item::Sync(_) => lowest_synced = lowest,
                Item::Command(command) => {
                    let rank = rank(command);
                    if lowest_synced.is_none_or(|lowest| rank <= lowest) {
                        places[n] = place;
                        n += 1;
                    }
                    lowest = Some(lowest.map_or(rank, |lowest: usize| lowest.min(rank)));
                }
            }
        }
        n
    }
}
