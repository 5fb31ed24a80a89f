//! Validation and rewriting: what a guest may send, and what the host gets for it.
//!
//! Two policies, both from the [table of commands](crate::command::table):
//!
//! * **Architectural**, towards the guest: what the features of its SMMU allow. A bit of no field, or of a field that
//!   those features do not bring, raises CERROR_ILL; so do the values that the architecture calls illegal. Fields that it
//!   calls ignored are ignored. The guest's VMID does not matter: a stage 1 guest has none (facts sheet, section 1.4).
//! * **Canonical**, towards the host: what every host accepts. Defined fields that count, and nothing else; our
//!   VMID; mapped StreamIDs; TLBI_NSNH_ALL as TLBI_NH_ALL; SubstreamID, SSV and Global only where SSV counts; no
//!   TTL128; ranges as the host knows them.
//!
//! The table is compiled, for one virtual SMMU, into 256 flat rules. A run of commands with one opcode is decided
//! as a whole; what is not so uniform goes one by one, and what most guests send most of the time in a way of its own.

mod batch;
mod checks;
mod compile;
mod request;
mod runs;

use std::fmt;

use thiserror::Error;
use vm_memory::GuestAddress;

use crate::command::{Command, Opcode};
use crate::features::{BeyondHost, Features};
use crate::host::Identities;
use crate::identity::{HostStreamId, StreamConfig, StreamId, StreamMap, Vmid};
use compile::{Kind, Rule};

pub use checks::MAX_EXPANSION;
pub use request::{PageResponse, Request, ResumeAction};

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

/// What stands at the end of the part of a batch that [`Rules::apply`] took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing special: the batch was used up, or the output is full.
    Batch,
    /// A CMD_SYNC, taken.
    Sync(Signal),
    /// A command for the VMM, taken.
    Request(Request),
    /// A command that is not allowed, not taken.
    Illegal(Rejected),
}

/// What [`Rules::apply`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Commands taken from the front of the batch.
    pub taken: usize,
    /// Canonical commands written to the front of the output.
    pub host: usize,
    /// What those cost the host, in units of a TLBI of one address: see [`Share`](crate::Share).
    pub cost: u64,
    /// Commands without effect: the guest owns no such stream or substream, its SMMU is disabled, or the host has no ATS.
    pub dropped: usize,
    /// Ranges that became an invalidation of all the guest's entries.
    pub widened: usize,
    /// What ended it.
    pub end: End,
}

/// A deviation from the architecture for guests that need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quirk {
    /// Linux before 6.x could send a range TLBI with NUM, SCALE and TTL all zero for one page that is not a leaf. The
    /// architecture reserves that combination; the quirk takes it as the one address it names.
    OnePageRange,
}

impl Quirk {
    /// All quirks: name, reason.
    pub const ALL: [(Self, &str, &str); 1] = [(
        Self::OnePageRange,
        "one-page-range",
        "older Linux sends TG with NUM=SCALE=TTL=0 for one page that is not a leaf",
    )];

    /// The quirk of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(quirk, ..)| *quirk)
    }
}

/// The rules of one virtual SMMU.
#[derive(Debug)]
pub struct Rules {
    table: Box<[Rule; 256]>,
    /// The host's VMID of the guest.
    vmid: Vmid,
    /// Commands name the guest's StreamIDs.
    guest_streams: bool,
    /// The guest's SSIDSIZE.
    ssid_bits: u8,
    /// The guest's IDR5.DS.
    ds: bool,
    one_page_range: bool,
    /// CR0.SMMUEN.
    smmu_enabled: bool,
}

impl Rules {
    /// The rules for a guest that is shown the features `guest`, on a host with the features `host`, which executes
    /// the guest's commands under `vmid`.
    ///
    /// Range invalidation and ATS may be shown without the host having them: ranges are then
    /// [expanded](MAX_EXPANSION), and ATC_INV has no effect.
    ///
    /// # Errors
    ///
    /// As [`Features::check_host`].
    pub fn new(guest: &Features, host: &Features, vmid: Vmid, quirks: &[Quirk]) -> Result<Self, BeyondHost> {
        guest.check_host(host)?;
        let mut rules = Self {
            table: compile::table(guest, host, vmid),
            vmid,
            guest_streams: false,
            ssid_bits: guest.ssid_bits,
            ds: guest.ds,
            one_page_range: quirks.contains(&Quirk::OnePageRange),
            smmu_enabled: true,
        };
        rules.find_plain();
        Ok(rules)
    }

    /// The rules for the same guest on another host. On an error nothing has changed.
    pub(crate) fn bind_host(&mut self, guest: &Features, host: &Features) -> Result<(), BeyondHost> {
        guest.check_host(host)?;
        self.table = compile::table(guest, host, self.host_vmid());
        self.find_plain();
        Ok(())
    }

    /// Follows CR0.SMMUEN: while it is 0, ATC_INV and PRI_RESP are checked and have no effect (facts sheet, section 1.5).
    pub fn set_smmu_enabled(&mut self, enabled: bool) {
        self.smmu_enabled = enabled;
    }

    /// The canonical command that invalidates all that an opcode can, for one stream if it names one; `None` if the guest
    /// or the host lacks it.
    pub(crate) fn host_all(&self, opcode: Opcode, stream: HostStreamId) -> Option<Command> {
        const ATC_ALL: u64 = 52;
        let Rule { masks, kind, .. } = self.table[usize::from(opcode.0)];
        let high = if kind == Kind::AtcInv { ATC_ALL } else { 0 };
        match kind {
            Kind::Illegal | Kind::AtcIgnored => None,
            _ => Some(Command([masks.set[0] | u64::from(stream.0) << 32, masks.set[1] | high])),
        }
    }

    /// The ATC_INV of all PASIDs of a stream; `None` if the guest has no SubstreamIDs, or no ATS. An endpoint that knows no PASIDs
    /// ignores it (IHI 0070 §4.5.1).
    pub(crate) fn atc_inv_pasids(&self, stream: HostStreamId) -> Option<Command> {
        const GLOBAL_SSV: u64 = 1 << 9 | 1 << 11;
        let Command([low, high]) = self.host_all(Opcode::ATC_INV, stream).filter(|_| self.ssid_bits > 0)?;
        Some(Command([low | GLOBAL_SSV, high]))
    }

    /// Commands name the identities that the host queue takes.
    pub(crate) fn set_identities(&mut self, identities: Identities) {
        self.guest_streams = identities == Identities::Guest;
        let vmid = self.host_vmid();
        compile::set_vmid(&mut self.table, vmid);
    }

    /// The VMID in commands to the host.
    fn host_vmid(&self) -> Vmid {
        if self.guest_streams { Vmid(0) } else { self.vmid }
    }

    /// What commands to the host call a guest's stream; `None` if the guest does not own it.
    #[inline]
    fn host_stream(&self, streams: &StreamMap, guest: StreamId) -> Option<HostStreamId> {
        streams.get(guest).map(|host| self.name(guest, host))
    }

    /// What commands to the host call a stream that has these two names.
    #[inline]
    pub(crate) fn name(&self, guest: StreamId, host: HostStreamId) -> HostStreamId {
        if self.guest_streams { HostStreamId(guest.0) } else { host }
    }

    /// Whether a canonical command is one of this guest's. It takes as long as the stream map is large.
    pub(crate) fn is_ours(&self, streams: &StreamMap, command: Command) -> bool {
        match command.opcode() {
            Opcode::CFGI_CD | Opcode::CFGI_CD_ALL | Opcode::ATC_INV => {
                let mut owned = streams.owned(StreamConfig::All);
                owned.any(|(guest, host)| self.name(guest, host).0 == command.stream())
            }
            _ => self.guest_streams || command.bits(0, 47, 32) == u64::from(self.vmid.0),
        }
    }

    /// Finds which commands are plain: what [`Self::range`] takes as it is, and all that has no such fields.
    fn find_plain(&mut self) {
        let unchanged = |words| self.range(words) == Ok(words);
        let plain = |num: u64| {
            let forms = (0..32).filter(|form| unchanged([num << 12, form << 7]));
            forms.fold(0, |all, form| all | 1 << form)
        };
        let ranges = [plain(0), plain(1)];
        for rule in self.table.iter_mut() {
            rule.plain = match rule.kind {
                Kind::Masked => [u32::MAX; 2],
                Kind::Range => ranges,
                _ => [0; 2],
            };
        }
    }
}
