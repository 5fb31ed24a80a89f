//! A vCPU that goes on by steps: many of them on one thread, in turn, come between each other's steps as if each had a processor.

use ecmdq_engine::Command;
use ecmdq_ring::Index;

use super::{Cmdlist, Owner};
use crate::driver::Sync;

/// A vCPU that shares a CMDQ, and never waits inside a call.
#[derive(Debug)]
pub struct Stepped {
    cmdlist: Cmdlist,
    commands: Vec<Command>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Nothing is under way.
    Idle,
    /// Slots are reserved from here on, and whether as the owner.
    Reserved(Index, bool),
    /// The commands are there; all up to some point are to be rung for.
    Ringing(Owner, Index),
    /// Until CONS has passed this.
    Waiting(Index),
}

impl Cmdlist {
    /// A vCPU that goes on by steps.
    pub fn stepped(&self) -> Stepped {
        Stepped { cmdlist: self.clone(), commands: Vec::new(), state: State::Idle }
    }
}

impl Stepped {
    /// Reserves slots for commands that end with a CMD_SYNC, which is waited for by CONS. `false` if there is no room yet, or the last
    /// ones are still under way.
    pub fn start(&mut self, commands: &[Command]) -> bool {
        if !matches!(self.state, State::Idle) {
            return false;
        }
        let Some(before) = self.cmdlist.reserve(commands.len() as u32) else { return false };
        self.commands.clear();
        self.commands.extend_from_slice(commands);
        self.state = State::Reserved(before.prod, !before.owned);
        true
    }

    /// The next step, if it need not wait for others. Says whether all is done.
    pub fn step(&mut self) -> bool {
        let Self { cmdlist, commands, state } = self;
        match state {
            State::Idle => return true,
            State::Reserved(first, owner) => {
                let (first, n) = (*first, commands.len() as u32);
                cmdlist.write(first, commands);
                cmdlist.begin_waiting();
                cmdlist.mark(first, n);
                let end = cmdlist.size.advance(first, n);
                *state = match owner {
                    true => State::Ringing(Owner { next: first, end: None }, end),
                    false => State::Waiting(end),
                };
            }
            State::Ringing(owner, end) => {
                if cmdlist.try_ring(owner) {
                    *state = State::Waiting(*end);
                }
            }
            State::Waiting(end) => {
                if cmdlist.is_over(Sync::Cons, *end, *end) {
                    cmdlist.end_waiting(*end);
                    *state = State::Idle;
                }
            }
        }
        matches!(state, State::Idle)
    }
}
