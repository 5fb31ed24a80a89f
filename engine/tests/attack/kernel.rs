//! A kernel that answers `IOMMU_HWPT_INVALIDATE` for one guest, and fails with each errno.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use ecmdq_engine::host::iommufd::Invalidate;
use ecmdq_engine::{Command, Opcode, StreamId};
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::guest::Guest;
use crate::hosts::Status;
use crate::random::Random;
use crate::world::World;

/// Calls that succeed between two troubles: the executor counts how often nothing gets done.
const PEACE: u32 = 8;

pub struct Kernel {
    world: Arc<World>,
    guest: Arc<Guest>,
    status: Arc<Status>,
    state: Mutex<State>,
}

struct State {
    random: Random,
    /// Refused until it is called for alone.
    bad: Option<Command>,
    /// What the next calls fail with.
    errors: Vec<Errno>,
    /// Calls until an ATC_INV that was lost has been told for certain.
    lost: u32,
    peace: u32,
}

impl Kernel {
    pub fn new(world: Arc<World>, guest: Arc<Guest>, status: Arc<Status>, seed: u64) -> Self {
        let random = Random::new(seed);
        let state = State { random, bad: None, errors: Vec::new(), lost: 0, peace: 0 };
        Self { world, guest, status, state: Mutex::new(state) }
    }

    /// Executes commands with the host's identities.
    fn execute(&self, commands: &[Command]) -> Result<(), Errno> {
        for command in commands {
            let vmid = u64::from(self.guest.vmid) << 32;
            let Command([low, high]) = *command;
            let command = match low & 0xff {
                0x30 => Command([0x10 | vmid, 0]),
                0x10..=0x13 => Command([low & !(0xffff << 32) | vmid, high]),
                0x05 | 0x06 | 0x40 => {
                    let host = self.guest.streams.get(StreamId((low >> 32) as u32)).ok_or(Errno::IO)?;
                    Command([low & 0xffff_ffff | u64::from(host.0) << 32, high])
                }
                _ => return Err(Errno::IO),
            };
            self.world.model.caches().execute(command).map_err(|_| Errno::IO)?;
        }
        Ok(())
    }

    /// Something goes wrong.
    fn trouble(&self, state: &mut State, commands: &[Command]) -> Result<(), Errno> {
        let (random, faults) = (&mut state.random, &self.guest.faults);
        state.peace = 0;
        let atc_invs = commands.iter().any(|command| command.opcode() == Opcode::ATC_INV);
        let n = 1 + random.below(3);
        match random.below(9) {
            0 | 1 => {
                faults.illegal.begin();
                state.bad = Some(random.of(commands));
            }
            2 | 3 if atc_invs => {
                state.lose(&self.guest);
                let others = commands.iter().filter(|command| command.opcode() != Opcode::ATC_INV);
                self.execute(&others.copied().collect::<Vec<_>>())?;
                return Err(Errno::TIMEDOUT);
            }
            2..=4 => state.errors = vec![random.of(&[Errno::AGAIN, Errno::NOMEM, Errno::INTR]); 4 * n],
            5 => {
                // Of a call with ATC_INVs it says that these are late.
                state.lose(&self.guest);
                state.errors = vec![Errno::TIMEDOUT; n];
            }
            6 if random.one_in(8) => {
                faults.gone.begin();
                self.status.gone.store(true, SeqCst);
            }
            _ => thread::sleep(Duration::from_millis(random.below(20) as u64)),
        }
        Ok(())
    }
}

impl State {
    /// An ATC_INV may be lost from now on.
    fn lose(&mut self, guest: &Guest) {
        if self.lost == 0 {
            guest.faults.atc.begin();
        }
        self.lost = 64;
    }
}

impl Invalidate for Kernel {
    fn invalidate(&self, commands: &[Command]) -> io::Result<()> {
        let state = &mut *self.state.lock();
        if self.world.is_attack()
            && state.bad.is_none()
            && state.errors.is_empty()
            && state.peace > PEACE
            && state.random.one_in(8)
        {
            self.trouble(state, commands)?;
        }
        if self.status.gone.load(SeqCst) {
            return Err(Errno::NODEV.into());
        }
        // Who knows what has been done.
        let some = &commands[..state.random.below(commands.len())];
        if let Some(error) = state.errors.pop() {
            self.execute(some)?;
            return Err(error.into());
        }
        if let Some(bad) = state.bad.filter(|bad| commands.contains(bad)) {
            if commands.len() > 1 {
                let good = some.iter().take_while(|command| **command != bad).count();
                self.execute(&some[..good])?;
            } else {
                state.bad = None;
                self.guest.faults.illegal.end();
            }
            return Err(Errno::IO.into());
        }
        state.peace += 1;
        if state.lost > 0 {
            state.lost -= 1;
            if state.lost == 0 {
                self.guest.faults.atc.end();
            }
        }
        Ok(self.execute(commands)?)
    }
}
