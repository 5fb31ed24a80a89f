//! The hot path: a batch of commands from one buffer into another.
//!
//! Commands come in runs of one opcode. A run is looked at as a whole: the bits that any of its commands has, and the bits
//! that all of them have. These tell whether the opcode is the same in all (the two agree in its bits), whether a reserved
//! bit is set in any, whether all name one stream, one granule, and so on: one decision for the run, two operations a
//! command. Whatever a run leaves open is decided one by one.

use super::checks::{ATC_SIZE_MAX, Expanded, NUM_SCALE, SSV_AND_WITH_IT, TG, TTL, TTL128, signal};
use super::compile::{Kind, Rule};
use super::{Applied, End, Reason, Rejected, Request, Rules};
use crate::command::table::{self, Role};
use crate::command::{Command, Opcode};
use crate::identity::{StreamId, StreamMap};

/// The fewest commands that are worth looking at together.
const RUN: usize = 8;

/// The bits that any of the commands has, and those that all of them have.
#[inline(never)]
fn summary(commands: &[Command]) -> ([u64; 2], [u64; 2]) {
    commands.iter().fold(([0; 2], [u64::MAX; 2]), |(any, all), Command([low, high])| {
        ([any[0] | low, any[1] | high], [all[0] & low, all[1] & high])
    })
}

/// What the host gets of the bits of a command, and what it gets from us.
struct Masks {
    kept: [u64; 2],
    set: [u64; 2],
}

/// Copies commands through masks. (Behind one reference: four values behind two would be passed in registers, and the
/// compiler would not use vectors.)
#[inline(never)]
fn merge(from: &[Command], to: &mut [Command], masks: &Masks) {
    let Masks { kept, set } = masks;
    for (to, Command([low, high])) in to.iter_mut().zip(from) {
        *to = Command([low & kept[0] | set[0], high & kept[1] | set[1]]);
    }
}

/// What one command became.
#[derive(Clone, Copy)]
enum One {
    Host([u64; 2]),
    Dropped,
    Nowhere,
    /// CMD_SYNC; see [`signal`].
    Sync,
    /// See [`Rules::reason`].
    Illegal,
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
        let end = 'batch: loop {
            if taken == from.len() {
                break End::Batch;
            }
            let run = self.run(streams, &from[taken..], &mut to[host..]);
            taken += run;
            host += run;
            for command in from[taken..].iter().take(RUN) {
                match self.one(streams, *command) {
                    One::Host(canonical) => {
                        let Some(room) = to.get_mut(host) else { break 'batch End::Batch };
                        *room = Command(canonical);
                        host += 1;
                    }
                    One::Dropped => dropped += 1,
                    One::Nowhere => {}
                    One::Sync => {
                        break 'batch match signal(*command) {
                            Ok(signal) => {
                                taken += 1;
                                End::Sync(signal)
                            }
                            Err(reason) => illegal(*command, reason),
                        };
                    }
                    One::Illegal => break 'batch illegal(*command, self.reason(*command)),
                    One::Seldom => match self.seldom(*command, &mut to[host..]) {
                        Ok(None) => break 'batch End::Batch,
                        Ok(Some(seldom)) => {
                            host += seldom.host;
                            dropped += seldom.dropped;
                            widened += seldom.widened;
                            if let Some(request) = seldom.request {
                                taken += 1;
                                break 'batch End::Request(request);
                            }
                        }
                        Err(reason) => break 'batch illegal(*command, reason),
                    },
                }
                taken += 1;
            }
        };
        Applied { taken, host, dropped, widened, end }
    }

    #[inline]
    fn rule(&self, command: Command) -> &Rule {
        &self.table[usize::from(command.opcode().0)]
    }

    /// A run of one opcode at the front for which one decision is enough; says how many commands that is. What stands
    /// behind it is not decided.
    #[inline]
    fn run(&self, streams: &StreamMap, from: &[Command], to: &mut [Command]) -> usize {
        let most = from.len().min(to.len());
        // Soon said where there is none.
        if most < RUN || from[0].opcode() != from[RUN - 1].opcode() {
            return 0;
        }
        // All of it; all but the CMD_SYNC at its end; a part.
        for n in [most, most - 1, RUN] {
            if n < RUN {
                continue;
            }
            let (any, all) = summary(&from[..n]);
            if let Some(masks) = self.decide(streams, any, all) {
                merge(&from[..n], &mut to[..n], &masks);
                return n;
            }
        }
        0
    }

    /// The decision on a run: `any` are the bits that any of its commands has, `all` those that all of them have. `None` if
    /// they are not so uniform, or not to be sent to the host one for one.
    #[inline]
    fn decide(&self, streams: &StreamMap, any: [u64; 2], all: [u64; 2]) -> Option<Masks> {
        let differ = [any[0] ^ all[0], any[1] ^ all[1]];
        let rule = self.rule(Command(any));
        if differ[0] & 0xff | any[0] & rule.reserved[0] | any[1] & rule.reserved[1] != 0 {
            return None;
        }
        match rule.kind {
            Kind::Masked => Some(Masks { kept: rule.kept, set: rule.set }),
            Kind::Range if self.uniform_ranges(any, all, differ) => {
                Some(Masks { kept: rule.kept, set: rule.set })
            }
            Kind::Stream | Kind::Substream | Kind::AtcInv if differ[0] >> 32 == 0 => {
                let plain = match rule.kind {
                    Kind::Substream => self.has_substream(any[0]),
                    Kind::AtcInv => {
                        self.smmu_enabled && any[0] & SSV_AND_WITH_IT == 0 && any[1] & 0x3f <= ATC_SIZE_MAX
                    }
                    _ => true,
                };
                let host = self.host_stream(streams, StreamId((any[0] >> 32) as u32)).filter(|_| plain)?;
                let set = [rule.set[0] | u64::from(host.0) << 32, rule.set[1]];
                Some(Masks { kept: rule.kept, set })
            }
            _ => None,
        }
    }

    /// Whether the range fields of a run are certainly legal, and go to the host as they are.
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
    fn one(&self, streams: &StreamMap, command: Command) -> One {
        let rule = self.rule(command);
        let [low, high] = command.0;
        if low & rule.reserved[0] | high & rule.reserved[1] != 0 {
            return One::Illegal;
        }
        match rule.kind {
            Kind::Masked => One::Host(rule.masked([low, high])),
            Kind::Range => {
                self.range([low, high]).map_or(One::Illegal, |checked| One::Host(rule.masked(checked)))
            }
            Kind::Stream => self.mapped(streams, command, rule.masked([low, high])),
            Kind::Substream if self.has_substream(low) => {
                self.mapped(streams, command, rule.masked([low, high]))
            }
            Kind::Substream => One::Dropped,
            Kind::AtcInv => match self.atc_ignored(command) {
                Ok(ignored) if self.smmu_enabled && self.has_substream(low & !ignored) => {
                    self.mapped(streams, command, rule.masked([low & !ignored, high]))
                }
                Ok(_) => One::Dropped,
                Err(_) => One::Illegal,
            },
            Kind::Nowhere => One::Nowhere,
            Kind::Sync => One::Sync,
            Kind::Illegal | Kind::Expand | Kind::AtcIgnored | Kind::Vmm => One::Seldom,
        }
    }

    /// Maps the StreamID of a canonical command. A stream that the guest does not own makes it one without effect.
    #[inline]
    fn mapped(&self, streams: &StreamMap, command: Command, [low, high]: [u64; 2]) -> One {
        match self.host_stream(streams, StreamId(command.stream())) {
            Some(host) => One::Host([low | u64::from(host.0) << 32, high]),
            None => One::Dropped,
        }
    }

    /// Why [`Self::one`] found a command illegal.
    #[cold]
    fn reason(&self, command: Command) -> Reason {
        let rule = self.rule(command);
        let reserved = [command.0[0] & rule.reserved[0], command.0[1] & rule.reserved[1]];
        let checked = match rule.kind {
            _ if reserved != [0; 2] => Err(reserved_bits(command, reserved)),
            Kind::Range => self.range(command.0).map(drop),
            Kind::AtcInv => self.atc_ignored(command).map(drop),
            _ => Ok(()),
        };
        checked.err().unwrap_or(Reason::Opcode)
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

#[cold]
fn illegal(command: Command, reason: Reason) -> End {
    End::Illegal(Rejected { command, reason })
}

/// What is wrong with reserved bits: a field that must be zero, by its name, or bits of no field.
#[cold]
fn reserved_bits(command: Command, bits: [u64; 2]) -> Reason {
    let fields = table::find(command.opcode()).map_or(&[][..], |spec| spec.fields);
    let zero = fields.iter().find(|field| field.role == Role::Zero && field.of(command) != 0);
    zero.map_or(Reason::Reserved(bits), |field| Reason::Field(field.name, field.of(command)))
}
