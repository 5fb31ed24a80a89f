//! Kernels as they answer `IOMMU_HWPT_INVALIDATE` (facts sheet, section 6.5), in front of an SMMU that keeps what it executes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use ecmdq_engine::Command;
use ecmdq_engine::host::iommufd::Invalidate;
use rustix::io::Errno;

/// How a kernel converts and issues the commands of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Generation {
    /// One by one, issued in groups of 63: a bad command loses those before it in its group.
    Old,
    /// A group is looked at as a whole before anything of it is issued.
    New,
}

#[derive(Debug)]
struct State {
    generation: Generation,
    refused: Vec<Command>,
    /// What the next calls fail with, whatever they are for.
    faults: VecDeque<Errno>,
    gone: bool,
    executed: Vec<Command>,
    calls: Vec<usize>,
}

/// A handle to a kernel; clones share it.
#[derive(Clone, Debug)]
pub struct Kernel(Rc<RefCell<State>>);

impl Kernel {
    pub fn new(generation: Generation) -> Self {
        Self(Rc::new(RefCell::new(State {
            generation,
            refused: Vec::new(),
            faults: VecDeque::new(),
            gone: false,
            executed: Vec::new(),
            calls: Vec::new(),
        })))
    }

    /// Refuses a command whenever it comes.
    pub fn refuse(&self, command: Command) {
        self.0.borrow_mut().refused.push(command);
    }

    /// The next calls fail with these, one each.
    pub fn fail(&self, faults: impl IntoIterator<Item = Errno>) {
        self.0.borrow_mut().faults.extend(faults);
    }

    /// Every call fails from now on.
    pub fn go(&self) {
        self.0.borrow_mut().gone = true;
    }

    /// What the SMMU has executed, without the kernel's own CMD_SYNCs.
    pub fn executed(&self) -> Vec<Command> {
        self.0.borrow().executed.clone()
    }

    /// The same with each command where it came first.
    pub fn executed_once(&self) -> Vec<Command> {
        let mut once = Vec::new();
        for command in &self.0.borrow().executed {
            if !once.contains(command) {
                once.push(*command);
            }
        }
        once
    }

    /// How many commands each call had.
    pub fn calls(&self) -> Vec<usize> {
        self.0.borrow().calls.clone()
    }
}

impl Invalidate for Kernel {
    fn invalidate(&self, commands: &[Command]) -> Result<(), Errno> {
        let state = &mut *self.0.borrow_mut();
        state.calls.push(commands.len());
        assert!((1..=63).contains(&commands.len()), "a call for {} commands", commands.len());
        assert!(commands.iter().all(|command| command.opcode().0 != 0x46), "CMD_SYNC is the kernel's own");
        if state.gone {
            return Err(Errno::NODEV);
        }
        match state.faults.pop_front() {
            // The hardware was late: who knows what it has done.
            Some(Errno::TIMEDOUT) => {
                let late =
                    commands.iter().filter(|command| command.opcode().0 != 0x40).take(commands.len() / 2);
                state.executed.extend(late);
                return Err(Errno::TIMEDOUT);
            }
            Some(fault) => return Err(fault),
            None => {}
        }
        let bad = commands.iter().position(|command| state.refused.contains(command));
        match (bad, state.generation) {
            (None, _) => {
                state.executed.extend_from_slice(commands);
                Ok(())
            }
            // With at most 63 a call, those before the bad one have not been issued in either.
            (Some(_), Generation::Old | Generation::New) => Err(Errno::IO),
        }
    }
}
