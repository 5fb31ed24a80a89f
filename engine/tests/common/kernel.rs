//! Kernels as they answer `IOMMU_HWPT_INVALIDATE` (facts sheet, section 6), in front of an SMMU that keeps what it executes.
//! `engine/tests/iommufd/measured.rs` holds them against what real kernels answered.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use ecmdq_engine::Command;
use ecmdq_engine::host::iommufd::Invalidate;
use rustix::io::Errno;

/// What a kernel looks at, and how it counts (facts sheet, section 6.5).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Generation {
    /// Linux 7.2: looks at opcode and StreamID, and passes on all else. Commands are converted one by one, and issued 63 at
    /// a time: a bad one loses those of its group before it, and counts them as handled.
    Lenient,
    /// Linux 7.3: looks at every field; converts and counts as before.
    Strict,
    /// Queued for later: looks at every field of a whole group of 63 before anything of it is issued; counts whole groups.
    Grouped,
}

pub const GENERATIONS: [Generation; 3] = [Generation::Lenient, Generation::Strict, Generation::Grouped];

/// What the host's SMMU has.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    pub ats: bool,
    pub ril: bool,
    pub ssid_bits: u32,
}

/// An SMMU with all that the commands can use.
pub const FULL_HOST: Host = Host { ats: true, ril: true, ssid_bits: 4 };

/// What the kernel gave the guest: its VMID, and the StreamID for its vSID.
pub const VMID: u64 = 1;
pub const VSID: u64 = 0x42;
pub const SID: u64 = 0x100;

const GROUP: usize = 63;

#[derive(Debug)]
struct State {
    generation: Generation,
    host: Host,
    refused: Vec<Command>,
    /// What the next calls fail with, whatever they are for.
    faults: VecDeque<Errno>,
    /// Endpoints do not answer ATC_INV.
    silent: bool,
    gone: Option<Errno>,
    /// As they were sent.
    executed: Vec<Command>,
    /// The same, each group with the CMD_SYNC behind it.
    groups: Vec<Vec<Command>>,
    /// As they reached the SMMU.
    reached: Vec<Command>,
    calls: Vec<usize>,
}

/// A handle to a kernel; clones share it.
#[derive(Clone, Debug)]
pub struct Kernel(Rc<RefCell<State>>);

impl Kernel {
    pub fn new(generation: Generation) -> Self {
        Self::on(generation, FULL_HOST)
    }

    pub fn on(generation: Generation, host: Host) -> Self {
        Self(Rc::new(RefCell::new(State {
            generation,
            host,
            refused: Vec::new(),
            faults: VecDeque::new(),
            silent: false,
            gone: None,
            executed: Vec::new(),
            groups: Vec::new(),
            reached: Vec::new(),
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

    /// Endpoints answer ATC_INV from now on, or do not.
    pub fn set_silent(&self, silent: bool) {
        self.0.borrow_mut().silent = silent;
    }

    /// Every call fails from now on.
    pub fn go(&self, fault: Errno) {
        self.0.borrow_mut().gone = Some(fault);
    }

    /// What the SMMU has executed, as it was sent, without the kernel's own CMD_SYNCs.
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

    /// What the SMMU has executed, as it was sent, from one of the kernel's own CMD_SYNCs to the next.
    pub fn groups(&self) -> Vec<Vec<Command>> {
        self.0.borrow().groups.clone()
    }

    /// What has reached the SMMU, with the identities that the kernel gave it.
    pub fn reached(&self) -> Vec<Command> {
        self.0.borrow().reached.clone()
    }

    /// How many commands each call had.
    pub fn calls(&self) -> Vec<usize> {
        self.0.borrow().calls.clone()
    }

    /// One call, however long; what it answers, and how many commands it says to have handled.
    pub fn call(&self, commands: &[Command]) -> (Result<(), Errno>, usize) {
        let state = &mut *self.0.borrow_mut();
        if let Some(fault) = state.gone {
            return (Err(fault), 0);
        }
        match state.faults.front() {
            None | Some(&Errno::TIMEDOUT) => {}
            Some(&fault) => {
                state.faults.pop_front();
                // No memory for the commands: the count stays what it was.
                return (Err(fault), if fault == Errno::NOMEM { commands.len() } else { 0 });
            }
        }
        let mut handled = 0;
        for group in commands.chunks(GROUP) {
            for (at, command) in group.iter().enumerate() {
                if state.convert(*command).is_none() {
                    let counts_each = state.generation != Generation::Grouped;
                    return (Err(Errno::IO), handled + if counts_each { at } else { 0 });
                }
            }
            if let Err(error) = state.issue(group) {
                return (Err(error), handled + group.len() - 1);
            }
            handled += group.len();
        }
        (Ok(()), handled)
    }
}

impl Invalidate for Kernel {
    fn invalidate(&self, commands: &[Command]) -> io::Result<()> {
        self.0.borrow_mut().calls.push(commands.len());
        assert!((1..=GROUP).contains(&commands.len()), "a call for {} commands", commands.len());
        assert!(commands.iter().all(|command| command.opcode().0 != 0x46), "CMD_SYNC is the kernel's own");
        Ok(self.call(commands).0?)
    }
}

impl State {
    /// Hands a group to the SMMU, with a CMD_SYNC.
    fn issue(&mut self, group: &[Command]) -> Result<(), Errno> {
        let is_atc_inv = |command: &Command| command.opcode().0 == 0x40;
        let (executed, result): (Vec<_>, _) = if self.faults.pop_front().is_some() {
            // The SMMU is late: who knows what it has done.
            (
                group.iter().filter(|c| !is_atc_inv(c)).take(group.len() / 2).copied().collect(),
                Err(Errno::TIMEDOUT),
            )
        } else if self.silent && group.iter().any(is_atc_inv) {
            (group.iter().filter(|c| !is_atc_inv(c)).copied().collect(), Err(Errno::TIMEDOUT))
        } else {
            (group.to_vec(), Ok(()))
        };
        let reached: Vec<_> = executed.iter().filter_map(|command| self.convert(*command)).collect();
        self.reached.extend(reached);
        self.executed.extend_from_slice(&executed);
        self.groups.push(executed);
        result
    }

    /// What the SMMU gets for a command; none if the kernel does not like it.
    fn convert(&self, command: Command) -> Option<Command> {
        let Command([low, high]) = command;
        if self.refused.contains(&command) {
            return None;
        }
        if self.generation != Generation::Lenient && !self.host.fields_are_fine(low, high) {
            return None;
        }
        match low & 0xff {
            0x30 => Some(Command([0x10 | VMID << 32, 0])),
            0x10..=0x13 => Some(Command([low & !(0xffff << 32) | VMID << 32, high])),
            0x05 | 0x06 | 0x40 if low >> 32 == VSID => Some(Command([low & 0xffff_ffff | SID << 32, high])),
            _ => None,
        }
    }
}

impl Host {
    /// Whether Linux 7.3 finds nothing wrong with the fields of a command (facts sheet, section 6.5).
    fn fields_are_fine(self, low: u64, high: u64) -> bool {
        const SSV: u64 = 1 << 11;
        const GLOBAL: u64 = 1 << 9;
        const SSID: u64 = 0xffff_f000;
        const SID_FIELD: u64 = 0xffff_ffff << 32;
        const VMID_FIELD: u64 = 0xffff << 32;
        const ASID: u64 = 0xffff << 48;
        const NUM_SCALE: u64 = 0x01f1_f000;
        let (opcode, substreams) = (low & 0xff, self.ssid_bits > 0);
        let ssid = if substreams { SSID } else { 0 };
        let (fields, high_fields) = match opcode {
            0x05 => (SID_FIELD | ssid, 1),
            0x06 => (SID_FIELD, 0),
            0x10 => (VMID_FIELD, 0),
            0x11 => (VMID_FIELD | ASID, 0),
            0x12 => (VMID_FIELD | ASID | NUM_SCALE, !0xfe),
            0x13 => (VMID_FIELD | NUM_SCALE, !0xfe),
            0x40 => (SID_FIELD | ssid | if substreams { SSV | GLOBAL } else { 0 }, !0xfc0),
            _ => (0, 0),
        };
        let (tg, ttl) = (high >> 10 & 3, high >> 8 & 3);
        let is_range = low & NUM_SCALE != 0 || ttl != 0;
        let values = match opcode {
            0x12 | 0x13 if tg == 0 => !is_range,
            0x12 | 0x13 => self.ril && is_range && !(tg == 2 && ttl == 1),
            0x40 => self.ats && high & 0x3f <= 52,
            _ => true,
        };
        low & !(fields | 0xff) == 0 && high & !high_fields == 0 && values
    }
}
