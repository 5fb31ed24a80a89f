//! The hot path: a batch of commands from one buffer into another.
//!
//! Commands come in runs of one opcode. A group of eight is looked at as a whole: the bits that any of them has, and the
//! bits that all of them have. These tell whether the opcode is the same in all (the two agree in its bits), whether a
//! reserved bit is set in any, whether all name one stream, one granule, and so on: one decision for the group, two
//! operations a command. Whatever a group leaves open is decided one by one.

use super::checks::{ATC_SIZE_MAX, Expanded, NUM_SCALE, SSV_AND_WITH_IT, TG, TTL, TTL128, signal};
use super::compile::{Kind, Rule};
use super::{Applied, End, Reason, Rejected, Request, Rules, Signal};
use crate::command::table::{self, Role};
use crate::command::{Command, Opcode};
use crate::identity::{StreamId, StreamMap};

/// Commands looked at together.
const GROUP: usize = 8;

/// What one command became, where that is soon said.
enum Verdict {
    Host([u64; 2]),
    Dropped,
    Nowhere,
    Sync(Signal),
    Illegal(Reason),
    /// See [`Rules::seldom`].
    Seldom,
}

/// What became of a command that is seldom.
struct Seldom {
    host: usize,
    dropped: usize,
    widened: usize,
    request: Option<Request>,
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
    pub fn apply(&self, streams: &StreamMap, from: &[Command], to: &mut [Command]) -> Applied {
        let (mut taken, mut host, mut dropped, mut widened) = (0, 0, 0, 0);
        let mut end = End::Batch;
        'batch: for part in from.chunks(GROUP) {
            if let Some(group) = part.first_chunk()
                && let Some(room) = to[host..].first_chunk_mut()
                && self.group(streams, group, room)
            {
                taken += GROUP;
                host += GROUP;
                continue;
            }
            for command in part {
                match self.one(streams, *command) {
                    Verdict::Host(canonical) => {
                        let Some(room) = to.get_mut(host) else { break 'batch };
                        *room = Command(canonical);
                        host += 1;
                    }
                    Verdict::Dropped => dropped += 1,
                    Verdict::Nowhere => {}
                    Verdict::Sync(signal) => {
                        end = End::Sync(signal);
                        taken += 1;
                        break 'batch;
                    }
                    Verdict::Illegal(reason) => {
                        end = End::Illegal(Rejected { command: *command, reason });
                        break 'batch;
                    }
                    Verdict::Seldom => match self.seldom(*command, &mut to[host..]) {
                        Ok(Some(seldom)) => {
                            host += seldom.host;
                            dropped += seldom.dropped;
                            widened += seldom.widened;
                            if let Some(request) = seldom.request {
                                end = End::Request(request);
                                taken += 1;
                                break 'batch;
                            }
                        }
                        Ok(None) => break 'batch,
                        Err(reason) => {
                            end = End::Illegal(Rejected { command: *command, reason });
                            break 'batch;
                        }
                    },
                }
                taken += 1;
            }
        }
        Applied { taken, host, dropped, widened, end }
    }

    #[inline]
    fn rule(&self, command: Command) -> &Rule {
        &self.table[usize::from(command.opcode().0)]
    }

    /// A group of one opcode for which one decision is enough; false leaves it undecided, and writes nothing.
    #[inline]
    fn group(&self, streams: &StreamMap, group: &[Command; GROUP], to: &mut [Command; GROUP]) -> bool {
        let (mut any, mut all) = ([0; 2], [u64::MAX; 2]);
        for Command([low, high]) in group {
            any = [any[0] | low, any[1] | high];
            all = [all[0] & low, all[1] & high];
        }
        let differ = [any[0] ^ all[0], any[1] ^ all[1]];
        let rule = self.rule(group[0]);
        if differ[0] & 0xff | any[0] & rule.reserved[0] | any[1] & rule.reserved[1] != 0 {
            return false;
        }
        let (kept, mut set) = (rule.kept, rule.set);
        match rule.kind {
            Kind::Masked => {}
            Kind::Range if self.uniform_ranges(any, all, differ) => {}
            Kind::Stream | Kind::Substream | Kind::AtcInv if differ[0] >> 32 == 0 => {
                if rule.kind == Kind::Substream && !self.has_substream(any[0])
                    || rule.kind == Kind::AtcInv
                        && (any[0] & SSV_AND_WITH_IT != 0 || any[1] & 0x3f > ATC_SIZE_MAX)
                {
                    return false;
                }
                let Some(host) = streams.get(StreamId((any[0] >> 32) as u32)) else { return false };
                set[0] |= u64::from(host.0) << 32;
            }
            _ => return false,
        }
        for (to, Command([low, high])) in to.iter_mut().zip(group) {
            *to = Command([low & kept[0] | set[0], high & kept[1] | set[1]]);
        }
        true
    }

    /// Whether the range fields of a group are certainly legal, and go to the host as they are.
    #[inline]
    fn uniform_ranges(&self, any: [u64; 2], all: [u64; 2], differ: [u64; 2]) -> bool {
        if differ[1] & TG != 0 || any[1] & TTL128 != 0 {
            return false;
        }
        match any[1] & TG {
            0 => any[0] & NUM_SCALE | any[1] & TTL == 0,
            // With 16K granules, TTL=1 needs a closer look; 2 and 3 have the upper bit, in all of them here.
            0x800 if all[1] & 0x200 == 0 => false,
            _ => all[0] & NUM_SCALE | all[1] & TTL != 0,
        }
    }

    #[inline]
    fn one(&self, streams: &StreamMap, command: Command) -> Verdict {
        let rule = self.rule(command);
        let [low, high] = command.0;
        let reserved = [low & rule.reserved[0], high & rule.reserved[1]];
        if reserved[0] | reserved[1] != 0 {
            return Verdict::Illegal(reserved_bits(command, reserved));
        }
        match rule.kind {
            Kind::Masked => Verdict::Host(rule.masked([low, high])),
            Kind::Range => match self.range([low, high]) {
                Ok(checked) => Verdict::Host(rule.masked(checked)),
                Err(reason) => Verdict::Illegal(reason),
            },
            Kind::Stream => mapped(streams, command, rule.masked([low, high])),
            Kind::Substream if self.has_substream(low) => mapped(streams, command, rule.masked([low, high])),
            Kind::Substream => Verdict::Dropped,
            Kind::AtcInv => match self.atc_ignored(command) {
                Ok(ignored) if self.smmu_enabled && self.has_substream(low & !ignored) => {
                    mapped(streams, command, rule.masked([low & !ignored, high]))
                }
                Ok(_) => Verdict::Dropped,
                Err(reason) => Verdict::Illegal(reason),
            },
            Kind::Nowhere => Verdict::Nowhere,
            Kind::Sync => signal(command).map_or_else(Verdict::Illegal, Verdict::Sync),
            Kind::Illegal | Kind::Expand | Kind::AtcIgnored | Kind::Vmm => Verdict::Seldom,
        }
    }

    /// Commands that are no part of a fast path; `None` if there is no room for what they become.
    #[inline(never)]
    fn seldom(&self, command: Command, to: &mut [Command]) -> Result<Option<Seldom>, Reason> {
        let rule = self.rule(command);
        let nothing = Seldom { host: 0, dropped: 0, widened: 0, request: None };
        match rule.kind {
            Kind::Expand => {
                let expanded = Self::expand(self.range(command.0)?, |words| rule.masked(words));
                let widened = usize::from(expanded == Expanded::All);
                Ok(self.write(expanded, to).map(|host| Seldom { host, widened, ..nothing }))
            }
            Kind::AtcIgnored => {
                self.atc_ignored(command)?;
                Ok(Some(Seldom { dropped: 1, ..nothing }))
            }
            Kind::Vmm => {
                let request = self.request(command)?;
                let ignored = matches!(request, Request::PageResponse(_)) && !self.smmu_enabled;
                let (dropped, request) = if ignored { (1, None) } else { (0, Some(request)) };
                Ok(Some(Seldom { dropped, request, ..nothing }))
            }
            _ => Err(Reason::Opcode),
        }
    }

    /// Writes what a range becomes, if there is room for all of it; says how many commands that is.
    fn write(&self, expanded: Expanded, to: &mut [Command]) -> Option<usize> {
        let (first, step, count) = match expanded {
            Expanded::Each { first, step, count } => (first, step, count),
            Expanded::All => (Command(self.rule(Command([u64::from(Opcode::TLBI_NH_ALL.0), 0])).set), 0, 1),
        };
        for (i, to) in to.get_mut(..count)?.iter_mut().enumerate() {
            *to = Command([first.0[0], first.0[1] + i as u64 * step]);
        }
        Some(count)
    }
}

/// What is wrong with reserved bits: a field that must be zero, by its name, or bits of no field.
#[cold]
fn reserved_bits(command: Command, bits: [u64; 2]) -> Reason {
    let fields = table::find(command.opcode()).map_or(&[][..], |spec| spec.fields);
    let zero = fields.iter().find(|field| field.role == Role::Zero && field.of(command) != 0);
    zero.map_or(Reason::Reserved(bits), |field| Reason::Field(field.name, field.of(command)))
}

/// Maps the StreamID of a canonical command. A stream that the guest does not own makes it one without effect.
#[inline]
fn mapped(streams: &StreamMap, command: Command, [low, high]: [u64; 2]) -> Verdict {
    match streams.get(StreamId(command.stream())) {
        Some(host) => Verdict::Host([low | u64::from(host.0) << 32, high]),
        None => Verdict::Dropped,
    }
}
