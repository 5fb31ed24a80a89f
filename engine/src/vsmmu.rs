//! What one guest sees of its SMMU: register pages in memory that the guest writes and a worker polls.
//!
//! Every register that the guest writes is an input, looked at once a poll; what the engine decides on lives in
//! [`VirtualSmmu`] itself. Registers that the engine writes are outputs and are never read back.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use ecmdq_ring::SharedRegion;
use thiserror::Error;
use vm_memory::GuestAddress;

use crate::features::{Features, FeaturesError};
use crate::host::Ticket;
use crate::identity::{StreamMap, Vmid};
use crate::memory::GuestRam;
use crate::outbox::Outbox;
use crate::queue::{CommandError, CommandQueue, Visit};
use crate::registers::*;
use crate::rules::{Applied, BeyondHost, End, Quirk, Rejected, Request, Rules, Signal};
use crate::stats::{Counters, Stats};

/// What a virtual SMMU is made of.
pub struct Config {
    /// What it shows in its ID registers.
    pub features: Features,
    /// What the host's SMMU can do.
    pub host_features: Features,
    /// Deviations that the guest needs.
    pub quirks: Vec<Quirk>,
    /// The host's VMID of the guest's translations.
    pub vmid: Vmid,
    /// The streams that the guest owns.
    pub streams: Arc<StreamMap>,
    /// The guest's memory.
    pub ram: Box<dyn GuestRam>,
    /// Register pages 0 and 1, [`FRAME_SIZE`] bytes, shared with the guest.
    pub registers: SharedRegion,
    /// Called by the worker with what the guest asks of the VMM, such as to read stream table entries again. The
    /// guest's queue goes on when it returns.
    pub on_request: Box<dyn FnMut(Request) + Send>,
}

/// Why a [`Config`] was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The features contradict the architecture.
    #[error(transparent)]
    Features(#[from] FeaturesError),
    /// The features are more than the host has.
    #[error(transparent)]
    BeyondHost(#[from] BeyondHost),
    /// The register pages are not as large as they must be.
    #[error("register pages of {0:#x} bytes, {FRAME_SIZE:#x} are needed")]
    Registers(usize),
}

/// A virtual SMMU whose registers are memory shared with the guest.
pub struct VirtualSmmu {
    registers: SharedRegion,
    ram: Box<dyn GuestRam>,
    streams: Arc<StreamMap>,
    on_request: Box<dyn FnMut(Request) + Send>,
    rules: Rules,
    features: Features,
    cr0_bits: u32,
    cr0: u32,
    irq_ctrl: u32,
    gerror: u32,
    gerrorn: u32,
    queue: Option<CommandQueue>,
    last_error: Option<CommandError>,
    last_rejected: Option<Rejected>,
    counters: Arc<Counters>,
}

/// Reads the statistics of a virtual SMMU while a worker runs it.
#[derive(Clone, Debug)]
pub struct StatsReader(Arc<Counters>);

impl StatsReader {
    /// The statistics now.
    pub fn read(&self) -> Stats {
        self.0.read()
    }
}

impl VirtualSmmu {
    /// A virtual SMMU after reset: all registers zero but for the ID registers.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a configuration that cannot be.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let Config { features, host_features, quirks, vmid, streams, ram, registers, on_request } = config;
        features.check()?;
        if registers.len() < FRAME_SIZE {
            return Err(ConfigError::Registers(registers.len()));
        }
        for offset in (0..FRAME_SIZE).step_by(8) {
            registers.store_u64(offset, 0, Relaxed);
        }
        for (n, value) in features.idrs().into_iter().enumerate() {
            // Release: a guest that is started later sees whole register pages.
            registers.store_u32(IDR0 + 4 * n, value, Release);
        }
        registers.store_u32(AIDR, AIDR_V3_2, Release);
        let atschk = if features.ats { CR0_ATSCHK } else { 0 };
        let mut rules = Rules::new(&features, &host_features, vmid, &quirks)?;
        rules.set_smmu_enabled(false);
        Ok(Self {
            registers,
            ram,
            streams,
            on_request,
            rules,
            features,
            cr0_bits: CR0_SMMUEN | CR0_EVENTQEN | CR0_CMDQEN | atschk,
            cr0: 0,
            irq_ctrl: 0,
            gerror: 0,
            gerrorn: 0,
            queue: None,
            last_error: None,
            last_rejected: None,
            counters: Arc::default(),
        })
    }

    /// The statistics so far.
    pub fn stats(&self) -> Stats {
        self.counters.read()
    }

    /// A handle to the statistics that any thread may keep.
    pub fn stats_reader(&self) -> StatsReader {
        StatsReader(self.counters.clone())
    }

    /// The last command that raised CERROR_ILL.
    pub fn last_rejected(&self) -> Option<Rejected> {
        self.last_rejected
    }

    /// Takes a batch of commands. Says whether there was anything.
    pub(crate) fn take(&mut self, out: &mut Outbox) -> bool {
        // A command error stops the queue until software acknowledges it, also across disabling and enabling.
        if self.active_errors() & GERROR_CMDQ_ERR != 0 {
            return false;
        }
        let Some(queue) = &mut self.queue else { return false };
        match queue.visit(out, &self.rules, &self.streams, &self.registers) {
            Visit::Idle => return false,
            Visit::Inconsistent => self.counters.inconsistent.add(1),
            Visit::Abort => {
                self.counters.aborts.add(1);
                self.command_error(CommandError::Abt);
            }
            Visit::Taken(applied) => self.account(applied),
        }
        true
    }

    /// Whether a CMD_SYNC needs a ticket, or waits for one.
    pub(crate) fn is_waiting(&self) -> bool {
        self.queue.as_ref().is_some_and(CommandQueue::is_waiting)
    }

    /// Everything that was taken is with the host, synchronised at `ticket`.
    pub(crate) fn wait_for(&mut self, ticket: Ticket) {
        if let Some(queue) = &mut self.queue {
            queue.wait_for(ticket);
        }
    }

    /// Completes the CMD_SYNC that waits, if its ticket has been reached; says whether it did.
    pub(crate) fn complete(&mut self, completed: Ticket) -> bool {
        let Some(queue) = &mut self.queue else { return false };
        let Some(signal) = queue.complete(completed) else { return false };
        self.counters.commands.add(1);
        self.counters.syncs.add(1);
        match signal {
            Signal::Irq { address, data } if self.features.msi && address.0 != 0 => self.msi(address, data),
            Signal::Irq { .. } | Signal::Sev | Signal::None => {}
        }
        true
    }

    fn account(&mut self, applied: Applied) {
        self.counters.batches.add(1);
        self.counters.forwarded.add(applied.host);
        self.counters.dropped.add(applied.dropped);
        self.counters.widened.add(applied.widened);
        let waiting = matches!(applied.end, End::Sync(_));
        self.counters.commands.add(applied.taken - usize::from(waiting));
        match applied.end {
            End::Batch | End::Sync(_) => {}
            End::Request(request) => {
                self.counters.requests.add(1);
                (self.on_request)(request);
            }
            End::Illegal(rejected) => {
                self.counters.rejected.add(1);
                self.last_rejected = Some(rejected);
                self.command_error(CommandError::Ill);
            }
        }
    }

    /// Writes the MSI of a CMD_SYNC; CONS has passed it already.
    fn msi(&mut self, address: GuestAddress, data: u32) {
        let address = GuestAddress(address.0 & self.features.address_mask());
        if self.queue.as_ref().is_some_and(|queue| queue.write_msi(address, data)) {
            self.counters.msis.add(1);
        } else if let Some(word) = self.ram.region(address, 4) {
            // Release: CONS was stored before, and must be seen to have passed the CMD_SYNC by whoever sees this.
            word.store_u32(0, data.to_le(), Release);
            self.counters.msis.add(1);
        } else {
            self.counters.msi_aborts.add(1);
            self.raise(GERROR_MSI_CMDQ_ABT_ERR);
        }
    }

    fn command_error(&mut self, error: CommandError) {
        self.last_error = Some(error);
        if let Some(queue) = &mut self.queue {
            queue.set_error(error as u32, &self.registers);
        }
        self.raise(GERROR_CMDQ_ERR);
    }

    /// The code of CONS.ERR: 0 when no command error is active.
    fn error_code(&self) -> u32 {
        let active = self.active_errors() & GERROR_CMDQ_ERR != 0;
        self.last_error.filter(|_| active).map_or(0, |error| error as u32)
    }

    fn active_errors(&self) -> u32 {
        self.gerror ^ self.gerrorn
    }

    /// Activates errors that are not active: a repeated one is not recorded (facts sheet, section 2.4).
    fn raise(&mut self, errors: u32) {
        self.gerror ^= errors & !self.active_errors();
        // Release: CONS.ERR was stored before, and must be seen by whoever sees the error.
        self.registers.store_u32(GERROR, self.gerror, Release);
    }

    /// Looks at the registers that the guest writes. Says whether anything had changed.
    pub(crate) fn poll_registers(&mut self) -> bool {
        // Acquire: pairs with the guest's barrier before each register write, so that what it wrote earlier
        // (BASE before CR0, a mended entry before GERRORN) is seen.
        let cr0 = self.registers.load_u32(CR0, Acquire) & self.cr0_bits;
        let irq_ctrl = self.registers.load_u32(IRQ_CTRL, Acquire) & IRQ_CTRL_BITS;
        let gerrorn = self.registers.load_u32(GERRORN, Acquire);
        let gbpa = self.registers.load_u32(GBPA, Acquire);
        let mut changed = false;
        if cr0 != self.cr0 {
            self.set_cr0(cr0);
            changed = true;
        }
        if irq_ctrl != self.irq_ctrl {
            self.irq_ctrl = irq_ctrl;
            self.registers.store_u32(IRQ_CTRLACK, irq_ctrl, Release);
            changed = true;
        }
        if gerrorn != self.gerrorn {
            self.set_gerrorn(gerrorn);
            changed = true;
        }
        if gbpa & GBPA_UPDATE != 0 {
            self.registers.store_u32(GBPA, gbpa & !GBPA_UPDATE, Release);
            changed = true;
        }
        changed
    }

    fn set_cr0(&mut self, cr0: u32) {
        let (enabled, enable) = (self.cr0 & CR0_CMDQEN != 0, cr0 & CR0_CMDQEN != 0);
        self.cr0 = cr0;
        self.rules.set_smmu_enabled(cr0 & CR0_SMMUEN != 0);
        if enable && !enabled {
            // BASE and CONS are inputs at this moment only. Relaxed: ordered by the acquire load of CR0.
            let base = self.registers.load_u64(CMDQ_BASE, Relaxed);
            let cons = self.registers.load_u32(CMDQ_CONS, Relaxed);
            let mut queue = CommandQueue::new(base, cons, &self.features);
            queue.back(&self.registers, &*self.ram);
            // The bits of CONS that the index does not have read as zero; an error that is active keeps its code.
            queue.set_error(self.error_code(), &self.registers);
            self.queue = Some(queue);
        } else if !enable {
            self.queue = None;
        }
        // Release: CONS is final before the guest sees the queue disabled.
        self.registers.store_u32(CR0ACK, cr0, Release);
    }

    fn set_gerrorn(&mut self, gerrorn: u32) {
        let stopped = self.active_errors() & GERROR_CMDQ_ERR != 0;
        self.gerrorn = gerrorn;
        let acknowledged = stopped && self.active_errors() & GERROR_CMDQ_ERR == 0;
        if acknowledged && let Some(queue) = &mut self.queue {
            queue.back(&self.registers, &*self.ram);
            queue.set_error(0, &self.registers);
        }
    }
}

impl fmt::Debug for VirtualSmmu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualSmmu")
            .field("features", &self.features)
            .field("cr0", &format_args!("{:#x}", self.cr0))
            .field("gerror", &format_args!("{:#x}", self.gerror))
            .field("gerrorn", &format_args!("{:#x}", self.gerrorn))
            .field("queue", &self.queue)
            .field("last_rejected", &self.last_rejected)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { features, host_features, quirks, vmid, streams, registers, ram: _, on_request: _ } = self;
        f.debug_struct("Config")
            .field("features", features)
            .field("host_features", host_features)
            .field("quirks", quirks)
            .field("vmid", vmid)
            .field("streams", streams)
            .field("registers", registers)
            .finish_non_exhaustive()
    }
}
