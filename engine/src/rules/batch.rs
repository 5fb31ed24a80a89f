//! The hot path: a batch of commands from one buffer into another.
//!
//! A batch that is short and ends with a CMD_SYNC, which is what most guests send most of the time, has a way of its own. In
//! any other batch, a run of one opcode is decided as a whole (see [`runs`](super::runs)), and the rest one by one: a command
//! that is [plain](Rule::is_plain) goes through two masks, another by its kind.

use super::checks::{Expanded, signal};
use super::compile::{Kind, Rule};
use super::runs::{RUN, Whole, merge};
use super::{Applied, End, Reason, Rejected, Request, Rules, Signal};
use crate::command::table::{self, Role};
use crate::command::{Command, Opcode, cost};
use crate::identity::{StreamId, StreamMap};

/// Commands that all go to the host one for one, and the CMD_SYNC behind them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    /// Without the CMD_SYNC.
    pub commands: usize,
    pub cost: u64,
    pub signal: Signal,
}

/// Why nothing more was taken.
#[derive(Clone, Copy)]
enum Stop {
    /// There is no room for the next command.
    Room,
    /// A CMD_SYNC was taken.
    Sync,
    /// A command for the VMM was taken.
    Request,
    /// The next command is illegal.
    Illegal,
}

/// As [`Applied`], but so small that it stays in registers: what an [`End`] carries is worked out when one is met.
#[derive(Clone, Copy, Default)]
struct Passed {
    taken: usize,
    host: usize,
    cost: u64,
    dropped: usize,
    widened: usize,
    stop: Option<Stop>,
}

impl Rules {
    /// Whether nothing behind this command may be looked at before it has completed.
    #[inline]
    pub fn ends_batch(&self, command: Command) -> bool {
        matches!(self.rule(command).kind, Kind::Sync | Kind::Vmm)
    }

    /// Checks commands `from` the guest, and writes what the host gets for them to the front of `to`, in order.
    ///
    /// It ends behind the first command that [ends a batch](Self::ends_batch), before one that is illegal, or before one
    /// for which there is no room. One command needs [`MAX_EXPANSION`](super::MAX_EXPANSION) commands of room at most.
    #[inline]
    pub fn apply(&self, streams: &StreamMap, from: &[Command], to: &mut [Command]) -> Applied {
        match self.group(from, to) {
            Some(Group { commands, cost, signal }) => Applied {
                taken: commands + 1,
                host: commands,
                cost,
                dropped: 0,
                widened: 0,
                end: End::Sync(signal),
            },
            None => self.apply_to_any(streams, from, to),
        }
    }

    /// [`Self::apply`] where [`Self::group`] has found none.
    #[inline]
    pub(crate) fn apply_to_any(&self, streams: &StreamMap, from: &[Command], to: &mut [Command]) -> Applied {
        let Passed { taken, host, cost, dropped, widened, stop } = self.general(streams, from, to);
        let end = match stop {
            None | Some(Stop::Room) => End::Batch,
            // Not by a call: what the caller has no use for, the compiler leaves out.
            Some(Stop::Sync) => match from.get(taken.wrapping_sub(1)).map(|sync| signal(*sync)) {
                Some(Ok(signal)) => End::Sync(signal),
                _ => End::Batch,
            },
            Some(stop @ (Stop::Request | Stop::Illegal)) => self.end(stop, from, taken),
        };
        Applied { taken, host, cost, dropped, widened, end }
    }

    /// Few commands, all plain, and a CMD_SYNC: what most guests send most of the time. `None` if the front of the batch is anything else; then
    /// [`Self::apply`] says what it is.
    #[inline(always)]
    pub(crate) fn group(&self, from: &[Command], to: &mut [Command]) -> Option<Group> {
        let room = to.first_chunk_mut::<RUN>()?;
        // A run is looked at as a whole.
        if from.get(RUN - 1).is_some_and(|last| last.opcode() == from[0].opcode()) {
            return None;
        }
        let mut all = 0;
        for (n, &command) in from.iter().take(RUN).enumerate() {
            let rule = self.rule(command);
            if rule.is_plain(command.0) {
                room[n] = Command(rule.masked(command.0));
                all += cost(command);
            } else if command.opcode() == Opcode::CMD_SYNC && !rule.has_reserved(command.0) {
                return Some(Group { commands: n, cost: all, signal: signal(command).ok()? });
            } else {
                return None;
            }
        }
        None
    }

    /// Any batch. (Not inlined, as what is seldom: it would take registers from [`Self::group`].)
    #[inline(never)]
    fn general(&self, streams: &StreamMap, batch: &[Command], room: &mut [Command]) -> Passed {
        let most = room.len();
        let (mut from, mut to) = (batch, room);
        let (mut all, mut dropped, mut widened) = (0, 0, 0);
        // A run is looked for where this much is left: every few commands, so that it costs little if there is none.
        let mut look = from.len();
        let stop = loop {
            if from.len() <= look {
                while let Some(cost) = self.run(streams, &mut from, &mut to) {
                    all += cost;
                }
                look = from.len().saturating_sub(RUN);
            }
            let Some((&Command(words), rest)) = from.split_first() else { break None };
            let rule = self.rule(Command(words));
            let canonical = match rule.kind {
                _ if rule.is_plain(words) => Some(rule.masked(words)),
                _ if rule.has_reserved(words) => break Some(Stop::Illegal),
                Kind::Stream | Kind::Substream | Kind::AtcInv => match self.mapped(streams, rule, words) {
                    Ok(canonical) => canonical,
                    Err(_) => break Some(Stop::Illegal),
                },
                Kind::Nowhere => {
                    from = rest;
                    continue;
                }
                Kind::Sync if signal(Command(words)).is_ok() => {
                    from = rest;
                    break Some(Stop::Sync);
                }
                _ => {
                    let one = self.seldom(words, to);
                    let _taken = from.split_off(..one.taken);
                    let _written = to.split_off_mut(..one.host);
                    all += one.cost;
                    dropped += one.dropped;
                    widened += one.widened;
                    if one.stop.is_some() {
                        break one.stop;
                    }
                    continue;
                }
            };
            match canonical {
                Some(canonical) => {
                    let Some(room) = to.split_off_first_mut() else { break Some(Stop::Room) };
                    *room = Command(canonical);
                    all += cost(*room);
                }
                None => dropped += 1,
            }
            from = rest;
        };
        Passed { taken: batch.len() - from.len(), host: most - to.len(), cost: all, dropped, widened, stop }
    }

    #[inline]
    pub(super) fn rule(&self, command: Command) -> &Rule {
        &self.table[usize::from(command.opcode().0)]
    }

    /// Takes a run from the front for which one decision is enough; says what it costs if there was one.
    #[inline]
    fn run(&self, streams: &StreamMap, from: &mut &[Command], to: &mut &mut [Command]) -> Option<u64> {
        let (n, whole) = self.whole(streams, &from[..from.len().min(to.len())])?;
        let run = from.split_off(..n)?;
        let first = *run.first()?;
        match whole {
            Whole::Host(stream) => {
                merge(run, to.split_off_mut(..n)?, &self.rule(first).masks, stream);
                Some(n as u64 * cost(first))
            }
            Whole::Nowhere => Some(0),
        }
    }

    /// A command with a StreamID, as the host gets it; `None` if it is one without effect.
    #[inline]
    fn mapped(
        &self,
        streams: &StreamMap,
        rule: &Rule,
        [low, high]: [u64; 2],
    ) -> Result<Option<[u64; 2]>, Reason> {
        let (low, effective) = match rule.kind {
            Kind::Substream => (low, self.has_substream(low)),
            Kind::AtcInv => {
                let low = low & !self.atc_ignored(Command([low, high]))?;
                (low, self.smmu_enabled && self.has_substream(low))
            }
            _ => (low, true),
        };
        let host = self.host_stream(streams, StreamId((low >> 32) as u32)).filter(|_| effective);
        let masked = rule.masked([low, high]);
        Ok(host.map(|host| [masked[0] | u64::from(host.0) << 32, masked[1]]))
    }

    /// Commands that are no part of a fast path, one by one.
    #[inline(never)]
    fn seldom(&self, words: [u64; 2], to: &mut [Command]) -> Passed {
        let illegal = Passed { stop: Some(Stop::Illegal), ..Passed::default() };
        self.one(Command(words), to).unwrap_or(illegal)
    }

    fn one(&self, command: Command, to: &mut [Command]) -> Result<Passed, Reason> {
        let rule = self.rule(command);
        let taken = Passed { taken: 1, ..Passed::default() };
        Ok(match rule.kind {
            Kind::Range | Kind::Expand => {
                let checked = self.range(command.0)?;
                let expanded = match rule.kind {
                    Kind::Expand => Self::expand(checked, |words| rule.masked(words)),
                    _ => Expanded::Each { first: Command(rule.masked(checked)), step: 0, count: 1 },
                };
                let widened = usize::from(expanded == Expanded::All);
                match self.write(expanded, to) {
                    Some((host, cost)) => Passed { host, cost, widened, ..taken },
                    None => Passed { stop: Some(Stop::Room), ..Passed::default() },
                }
            }
            Kind::AtcIgnored => {
                self.atc_ignored(command)?;
                Passed { dropped: 1, ..taken }
            }
            Kind::Vmm => match self.request(command)? {
                Request::PageResponse(_) if !self.smmu_enabled => Passed { dropped: 1, ..taken },
                _ => Passed { stop: Some(Stop::Request), ..taken },
            },
            _ => return Err(Reason::Opcode),
        })
    }

    /// Writes what a range becomes, if there is room for all of it; says how many commands that is, and what they cost.
    fn write(&self, expanded: Expanded, to: &mut [Command]) -> Option<(usize, u64)> {
        let (first, step, count) = match expanded {
            Expanded::Each { first, step, count } => (first, step, count),
            Expanded::All => {
                (Command(self.rule(Command([u64::from(Opcode::TLBI_NH_ALL.0), 0])).masks.set), 0, 1)
            }
        };
        for (i, to) in to.get_mut(..count)?.iter_mut().enumerate() {
            *to = Command([first.0[0], first.0[1] + i as u64 * step]);
        }
        Some((count, count as u64 * cost(first)))
    }

    /// The end behind a command for the VMM, or before an illegal one.
    #[cold]
    #[inline(never)]
    fn end(&self, stop: Stop, from: &[Command], taken: usize) -> End {
        let at = if matches!(stop, Stop::Illegal) { taken } else { taken.wrapping_sub(1) };
        let Some(&command) = from.get(at) else { return End::Batch };
        match (stop, self.request(command)) {
            (Stop::Request, Ok(request)) => End::Request(request),
            _ => End::Illegal(Rejected { command, reason: self.reason(command) }),
        }
    }

    /// Why a command is illegal.
    fn reason(&self, command: Command) -> Reason {
        let rule = self.rule(command);
        let reserved = [command.0[0] & rule.reserved[0], command.0[1] & rule.reserved[1]];
        let checked = match rule.kind {
            _ if reserved != [0; 2] => Err(reserved_bits(command, reserved)),
            Kind::Range | Kind::Expand => self.range(command.0).map(drop),
            Kind::AtcInv | Kind::AtcIgnored => self.atc_ignored(command).map(drop),
            Kind::Vmm => self.request(command).map(drop),
            Kind::Sync => signal(command).map(drop),
            _ => Ok(()),
        };
        checked.err().unwrap_or(Reason::Opcode)
    }
}

/// What is wrong with reserved bits: a field that must be zero, by its name, or bits of no field.
#[cold]
fn reserved_bits(command: Command, bits: [u64; 2]) -> Reason {
    let fields = table::find(command.opcode()).map_or(&[][..], |spec| spec.fields);
    let zero = fields.iter().find(|field| field.role == Role::Zero && field.of(command) != 0);
    zero.map_or(Reason::Reserved(bits), |field| Reason::Field(field.name, field.of(command)))
}
