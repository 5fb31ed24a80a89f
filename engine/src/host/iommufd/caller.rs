//! Calls of the kernel: for which commands, and what is done when one fails.

use std::io;

use rustix::io::Errno;

use super::{GROUP, Invalidate};
use crate::command::{Command, CommandError, Opcode, Rank, rank};

/// How often a call is made again when the hardware does not answer, which takes the kernel a second each time.
const TRIES: u32 = 8;

/// Makes the calls.
#[derive(Debug)]
pub(super) struct Caller<I> {
    invalidate: I,
    /// How often in a row the hardware did not answer in time, with nothing done in between.
    late: u32,
    /// The kernel wants the last call again.
    later: bool,
    /// An ATC_INV timed out: the next CMD_SYNC fails.
    atc_timeout: bool,
    /// How many entries are to be done ticket by ticket, since a call for all of them failed.
    apart: usize,
}

/// Why a call failed, as far as it matters what is done about it.
enum Trouble {
    /// It says nothing of the hardware, and passes: the same call is made again later, for as long as it takes. Nothing is lost by
    /// that but time, where giving up could not be undone; the VMM is told that the host queue stands still.
    Passes,
    /// The kernel looks at commands one by one, and does not like one.
    Refused,
    /// Something did not answer in time.
    Late,
    /// The device, the vIOMMU or the descriptor has gone, or never was what it should be.
    Gone,
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::NOMEM | Errno::INTR | Errno::AGAIN) => Self::Passes,
            Some(Errno::IO) => Self::Refused,
            Some(Errno::TIMEDOUT) => Self::Late,
            _ => Self::Gone,
        }
    }
}

/// Why not all of a group was executed.
enum Stop {
    /// Nothing of it is known to be done: it is tried again later.
    Later,
    /// All before this one is done, and the kernel refuses it.
    Refused(usize),
    /// The kernel will execute nothing any more.
    Gone,
}

impl<I: Invalidate> Caller<I> {
    pub fn new(invalidate: I) -> Self {
        Self { invalidate, late: 0, later: false, atc_timeout: false, apart: 0 }
    }

    /// Whether the last call was one that the kernel wants again.
    pub fn wants_again(&self) -> bool {
        self.later
    }

    /// How many entries from the front are done, and what is wrong with the next.
    pub fn execute(&mut self, entries: &[Command]) -> (usize, Option<CommandError>) {
        self.later = false;
        if let Some(done) = self.over_tickets(entries) {
            return (done, None);
        }
        let (done, error) = self.up_to_ticket(entries);
        self.apart = self.apart.saturating_sub(done);
        (done, error)
    }

    fn call(&mut self, commands: &[Command]) -> Result<(), Trouble> {
        let result = self.invalidate.invalidate(commands).map_err(Trouble::from);
        self.later = matches!(result, Err(Trouble::Passes));
        result
    }

    /// One call for the commands before several CMD_SYNCs, up to one that must wait for what is in front of such: how many entries
    /// that does. None if there are no several, or what went wrong must be told to the right one.
    fn over_tickets(&mut self, entries: &[Command]) -> Option<usize> {
        let first = entries.iter().position(|entry| is(entry, Opcode::CMD_SYNC))?;
        let is_last = entries[first..].iter().all(|entry| is(entry, Opcode::CMD_SYNC));
        if is_last || self.apart > 0 || self.atc_timeout {
            return None;
        }
        let mut group = [Command::default(); GROUP];
        let (mut n, mut lowest) = (0, Lowest::default());
        let mut take = |entry: &Command| {
            if lowest.forbids(*entry) {
                return false;
            }
            if !is(entry, Opcode::CMD_SYNC) {
                let Some(place) = group.get_mut(n) else { return false };
                *place = *entry;
                n += 1;
            }
            lowest.add(*entry);
            true
        };
        let done = entries.iter().take_while(|entry| take(entry)).count();
        match self.call(&group[..n]) {
            Ok(()) => {
                self.late = 0;
                Some(done)
            }
            Err(Trouble::Passes) => Some(0),
            Err(_) => {
                self.apart = done;
                None
            }
        }
    }

    /// The same for the commands up to the next CMD_SYNC, or for that.
    fn up_to_ticket(&mut self, entries: &[Command]) -> (usize, Option<CommandError>) {
        let group = entries.iter().take(GROUP).take_while(|command| !is(command, Opcode::CMD_SYNC)).count();
        if group == 0 {
            // A CMD_SYNC: the calls for all before it have returned.
            return if std::mem::take(&mut self.atc_timeout) {
                (0, Some(CommandError::AtcInvSync))
            } else {
                (1, None)
            };
        }
        let (done, error) = match self.group(&entries[..group]) {
            Ok(()) => (group, None),
            Err(Stop::Refused(at)) => (at, Some(CommandError::Ill)),
            Err(Stop::Later) => return (0, None),
            Err(Stop::Gone) => return (0, Some(CommandError::Abt)),
        };
        // Only here, not after each call: half of a group that is done over and over is no progress.
        self.late = 0;
        (done, error)
    }

    /// Executes a group; on an error in parts.
    fn group(&mut self, commands: &[Command]) -> Result<(), Stop> {
        match self.call(commands) {
            Ok(()) => Ok(()),
            Err(Trouble::Refused) => self.halves(commands),
            Err(Trouble::Late) if commands.iter().any(|command| is(command, Opcode::ATC_INV)) => {
                self.without_atc_inv(commands)
            }
            Err(Trouble::Late) if self.late < TRIES => {
                self.late += 1;
                Err(Stop::Later)
            }
            Err(Trouble::Passes) => Err(Stop::Later),
            // Or the SMMU is dead.
            Err(Trouble::Late | Trouble::Gone) => Err(Stop::Gone),
        }
    }

    /// Looks for the one command that the kernel refuses. What is not `Refused` makes the whole group be done again.
    fn halves(&mut self, commands: &[Command]) -> Result<(), Stop> {
        if commands.len() == 1 {
            return Err(Stop::Refused(0));
        }
        let (first, second) = commands.split_at(commands.len() / 2);
        self.group(first)?;
        self.group(second).map_err(|stop| match stop {
            Stop::Refused(at) => Stop::Refused(first.len() + at),
            other => other,
        })
    }

    /// Endpoints did not answer, or the SMMU did not, which only a call without ATC_INVs can tell.
    fn without_atc_inv(&mut self, commands: &[Command]) -> Result<(), Stop> {
        let mut rest = [Command::default(); GROUP];
        let mut places = [0; GROUP];
        let mut n = 0;
        for (place, command) in commands.iter().enumerate().filter(|(_, c)| !is(c, Opcode::ATC_INV)) {
            (rest[n], places[n]) = (*command, place);
            n += 1;
        }
        let result = if n == 0 { Ok(()) } else { self.group(&rest[..n]) };
        let result = result.map_err(|stop| match stop {
            Stop::Refused(at) => Stop::Refused(places[at]),
            other => other,
        });
        // Otherwise the ATC_INVs are sent once more, with all else.
        self.atc_timeout |= matches!(result, Ok(()) | Err(Stop::Refused(_)));
        result
    }
}

/// The lowest ranks in a call: within it nothing is waited for, as the kernel puts its CMD_SYNC behind all of it.
#[derive(Default)]
struct Lowest {
    /// In front of the last CMD_SYNC.
    synced: Option<Rank>,
    /// Of all.
    any: Option<Rank>,
}

impl Lowest {
    /// Whether a command may only begin when something in front of a CMD_SYNC has been executed.
    fn forbids(&self, command: Command) -> bool {
        self.synced.is_some_and(|lowest| rank(command).is_some_and(|rank| rank > lowest))
    }

    fn add(&mut self, command: Command) {
        if is(&command, Opcode::CMD_SYNC) {
            self.synced = self.any;
        }
        self.any = self.any.into_iter().chain(rank(command)).min();
    }
}

fn is(command: &Command, opcode: Opcode) -> bool {
    command.opcode() == opcode
}
