//! Validation and rewriting: what a guest may send, and what the host gets for it.
//!
//! The [`table`] is compiled, for the features of one virtual SMMU and its VMID, into 256 flat rules. The hot
//! path is then a load by opcode, two masks and a merge; only ranges, streams and CMD_SYNC need more.
//!
//! Policy towards the guest: reserved bits raise CERROR_ILL; fields that the architecture calls ignored are
//! ignored (facts sheet, section 1.4). Policy towards the host: defined bits only, host identities only.

pub mod table;

use std::fmt;

use thiserror::Error;
use vm_memory::GuestAddress;

use crate::command::{Command, Opcode};
use crate::features::Features;
use crate::identity::{StreamId, StreamMap, Vmid};
use table::{Handling, Role, Spec};

/// Why a command is CERROR_ILL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Reason {
    /// The opcode is reserved, or the virtual SMMU lacks the feature that brings it.
    #[error("not a command of this SMMU")]
    Opcode,
    /// Bits are set that belong to no field.
    #[error("reserved bits {:#x} in word 0, {:#x} in word 1", .0[0], .0[1])]
    Reserved([u64; 2]),
    /// A field has a value that is not allowed, or not together with the others.
    #[error("{0}={1:#x}")]
    Field(&'static str, u64),
}

/// A command that raised CERROR_ILL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The command as the guest wrote it.
    pub command: Command,
    /// What is wrong with it.
    pub reason: Reason,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, high] = self.command.0;
        write!(f, "{}: {} ({low:#018x} {high:#018x})", self.command.opcode(), self.reason)
    }
}

/// How a CMD_SYNC tells that it is complete (facts sheet, section 1.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// By CONS alone.
    None,
    /// By CONS and an event; with no event to send this is as `None`.
    Sev,
    /// By an MSI, unless the address is 0.
    Irq {
        /// Where the MSI goes, as the guest wrote it.
        address: GuestAddress,
        /// What is written there.
        data: u32,
    },
}

/// Streams whose stream table entries the guest has changed: the VMM must read them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamConfig {
    /// CFGI_STE: one stream.
    One(StreamId),
    /// CFGI_STE_RANGE: the 2^`log2` streams from `first` on, `log2` from 1 to 31.
    Range {
        /// The first, aligned to the size of the range.
        first: StreamId,
        /// log2 of their number.
        log2: u32,
    },
    /// CFGI_ALL: every stream.
    All,
}

/// What stands at the end of the part of a batch that [`Rules::apply`] took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing special: the batch was used up.
    Batch,
    /// A CMD_SYNC, taken.
    Sync(Signal),
    /// A configuration command, taken.
    Config(StreamConfig),
    /// A command that is not allowed, not taken.
    Illegal(Rejected),
}

/// What [`Rules::apply`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Commands taken from the front of the batch.
    pub taken: usize,
    /// Canonical commands that now stand at the front of the batch.
    pub host: usize,
    /// Commands dropped because the guest owns no such stream or substream.
    pub dropped: usize,
    /// What ended it.
    pub end: End,
}

/// The compiled form of one opcode.
#[derive(Clone, Copy, Debug)]
struct Rule {
    /// Bits that the guest may set.
    allowed: [u64; 2],
    /// Bits that go to the host as they are.
    kept: [u64; 2],
    /// Bits that the host gets from us: opcode and VMID.
    set: [u64; 2],
    handling: Handling,
}

/// The rules of one virtual SMMU.
#[derive(Debug)]
pub struct Rules {
    table: Box<[Rule; 256]>,
    ssid_bits: u8,
}

const ILLEGAL: Rule = Rule { allowed: [u64::MAX; 2], kept: [0; 2], set: [0; 2], handling: Handling::Illegal };

impl Rule {
    fn compile(spec: &Spec, features: &Features, vmid: Vmid) -> Self {
        let mut rule = Self {
            allowed: [0xff, 0],
            kept: [0, 0],
            set: [u64::from(spec.host.0), 0],
            handling: spec.handling,
        };
        for field in spec.fields {
            let mask = field.mask_for(features);
            rule.allowed[field.word] |= mask;
            if field.role == Role::Kept {
                rule.kept[field.word] |= mask;
            }
        }
        let host_fields = table::find(spec.host).map_or(&[][..], |host| host.fields);
        if let Some(field) = host_fields.iter().find(|field| field.role == Role::Vmid) {
            rule.set[field.word] |= u64::from(vmid.0) << field.lsb;
        }
        if rule.handling == Handling::HostRange && !features.ril {
            rule.handling = Handling::Host;
        }
        rule
    }

    fn rewrite(&self, [low, high]: [u64; 2]) -> [u64; 2] {
        [low & self.kept[0] | self.set[0], high & self.kept[1] | self.set[1]]
    }
}

impl Rules {
    /// The rules of a virtual SMMU with these features whose commands the host executes under `vmid`.
    pub fn new(features: &Features, vmid: Vmid) -> Self {
        let mut table = Box::new([ILLEGAL; 256]);
        for spec in table::COMMANDS.iter().filter(|spec| spec.needs.holds(features)) {
            table[usize::from(spec.opcode.0)] = Rule::compile(spec, features, vmid);
        }
        Self { table, ssid_bits: features.ssid_bits }
    }

    /// Whether nothing behind this command may be looked at before it has completed.
    pub fn ends_batch(&self, command: Command) -> bool {
        matches!(self.rule(command).handling, Handling::Sync | Handling::StreamConfig)
    }

    /// Checks and rewrites commands, in place: what the host gets is left at the front of `batch`, in order.
    /// It ends behind the first command that [ends a batch](Self::ends_batch), or before one that is illegal.
    pub fn apply(&self, streams: &StreamMap, batch: &mut [Command]) -> Applied {
        let mut applied = Applied { taken: 0, host: 0, dropped: 0, end: End::Batch };
        for i in 0..batch.len() {
            let command = batch[i];
            match self.one(streams, command) {
                Ok(Verdict::Host(canonical)) => {
                    batch[applied.host] = canonical;
                    applied.host += 1;
                }
                Ok(Verdict::Dropped) => applied.dropped += 1,
                Ok(Verdict::Nowhere) => {}
                Ok(Verdict::Ends(end)) => {
                    applied.end = end;
                    applied.taken += 1;
                    break;
                }
                Err(reason) => {
                    applied.end = End::Illegal(Rejected { command, reason });
                    break;
                }
            }
            applied.taken += 1;
        }
        applied
    }

    fn rule(&self, command: Command) -> &Rule {
        &self.table[usize::from(command.opcode().0)]
    }

    #[inline]
    fn one(&self, streams: &StreamMap, command: Command) -> Result<Verdict, Reason> {
        let rule = self.rule(command);
        let reserved = [command.0[0] & !rule.allowed[0], command.0[1] & !rule.allowed[1]];
        if reserved != [0; 2] {
            return Err(Reason::Reserved(reserved));
        }
        let canonical = rule.rewrite(command.0);
        match rule.handling {
            Handling::Host => Ok(Verdict::Host(Command(canonical))),
            Handling::HostRange => range(command, canonical).map(Verdict::Host),
            Handling::HostStream => Ok(self.with_stream(streams, command, canonical)),
            Handling::HostAtc => Ok(self.with_stream(streams, command, self.atc(command, canonical)?)),
            Handling::Nowhere => Ok(Verdict::Nowhere),
            Handling::Sync => signal(command).map(|signal| Verdict::Ends(End::Sync(signal))),
            Handling::StreamConfig => Ok(Verdict::Ends(End::Config(stream_config(command)))),
            Handling::Illegal => Err(Reason::Opcode),
        }
    }

    /// Maps the StreamID. A stream or substream that does not exist makes the command one without effect
    /// (facts sheet, sections 1.4 and 1.6).
    fn with_stream(&self, streams: &StreamMap, command: Command, [low, high]: [u64; 2]) -> Verdict {
        let has_substream = command.opcode() != Opcode::CFGI_CD_ALL;
        let substream = (low >> 12) & 0xf_ffff;
        if has_substream && substream >> self.ssid_bits != 0 {
            return Verdict::Dropped;
        }
        match streams.get(StreamId(command.stream())) {
            Some(host) => Verdict::Host(Command([low | u64::from(host.0) << 32, high])),
            None => Verdict::Dropped,
        }
    }

    /// The checks of ATC_INV. SubstreamID and Global count only with SSV, and SSV only with SubstreamIDs.
    fn atc(&self, command: Command, [low, high]: [u64; 2]) -> Result<[u64; 2], Reason> {
        const SSV: u64 = 1 << 11;
        const SUBSTREAM_SSV_GLOBAL: u64 = 0xf_ffff << 12 | SSV | 1 << 9;
        let size = command.bits(1, 5, 0);
        if size > 52 {
            return Err(Reason::Field("Size", size));
        }
        let ignored = if low & SSV == 0 || self.ssid_bits == 0 { SUBSTREAM_SSV_GLOBAL } else { 0 };
        Ok([low & !ignored, high])
    }
}

enum Verdict {
    Host(Command),
    Dropped,
    Nowhere,
    Ends(End),
}

/// The checks of a TLBI by address on an SMMU with range invalidation (facts sheet, section 1.7).
fn range(command: Command, [low, high]: [u64; 2]) -> Result<Command, Reason> {
    const TTL: u64 = 0b11 << 8;
    let (num, scale) = (command.bits(0, 16, 12), command.bits(0, 25, 20));
    let (ttl, tg) = (command.bits(1, 9, 8), command.bits(1, 11, 10));
    if tg == 0 {
        return match (num, scale, ttl) {
            (0, 0, 0) => Ok(Command([low, high])),
            (0, 0, _) => Err(Reason::Field("TTL", ttl)),
            (0, ..) => Err(Reason::Field("SCALE", scale)),
            _ => Err(Reason::Field("NUM", num)),
        };
    }
    // 16K granules have no level 1 leaf without IDR5.DS: the hint counts as none.
    let no_level_1 = tg == 0b10 && ttl == 0b01;
    let high = if no_level_1 { high & !TTL } else { high };
    if num == 0 && scale == 0 && high & TTL == 0 {
        return Err(Reason::Field("TG", tg));
    }
    Ok(Command([low, high]))
}

/// The checks of CMD_SYNC. The MSI fields count only with CS=SIG_IRQ.
fn signal(command: Command) -> Result<Signal, Reason> {
    match command.bits(0, 13, 12) {
        0b00 => Ok(Signal::None),
        0b01 => Ok(Signal::Irq {
            address: GuestAddress(command.bits(1, 55, 2) << 2),
            data: command.bits(0, 63, 32) as u32,
        }),
        0b10 => Ok(Signal::Sev),
        cs => Err(Reason::Field("CS", cs)),
    }
}

fn stream_config(command: Command) -> StreamConfig {
    let stream = command.stream();
    match (command.opcode(), command.bits(1, 4, 0) as u32) {
        (Opcode::CFGI_STE, _) => StreamConfig::One(StreamId(stream)),
        (_, 31) => StreamConfig::All,
        (_, range) => {
            StreamConfig::Range { first: StreamId(stream & u32::MAX << (range + 1)), log2: range + 1 }
        }
    }
}
