//! What the SMMU does: handshakes, errors, commands (facts sheet, sections 1.11, 2.2 to 2.5, 3 and 4).

use std::collections::BTreeMap;

use super::super::common::Act;
use super::super::{RAM, RAM_SIZE};
use super::registers::*;

const CMDQ_ERR: u32 = 1;
const MSI_CMDQ_ABT_ERR: u32 = 1 << 4;
const MSI_GERROR_ABT_ERR: u32 = 1 << 7;
const SFM_ERR: u32 = 1 << 8;
const CMDQP_ERR: u32 = 1 << 9;
const ILL: u32 = 1;
const ABT: u32 = 2;
/// Addresses have 44 bits.
const OAS: u64 = 0xfff_ffff_ffff;
/// log2 of the longest queue.
const CMDQS: u32 = 7;

/// What the VMM is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    Enable { base: u64, config: u32, cr1: u32 },
    Disable,
    Bypass(u32),
    Stream(u32),
}

/// What happened, to which queue, or by which bit: a random test that never gets there tests nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen(BTreeMap<(&'static str, usize), u32>);

impl Seen {
    fn note(&mut self, what: &'static str, number: usize) {
        *self.0.entry((what, number)).or_default() += 1;
    }

    pub fn add(&mut self, other: &Self) {
        for (event, n) in &other.0 {
            *self.0.entry(*event).or_default() += n;
        }
    }

    /// Whether everything that can happen did: these to each queue, and every bit of GERROR but those of other queues.
    pub fn everything(&self) -> bool {
        const EACH: [&str; 8] =
            ["enabled", "disabled", "consumed", "ill", "abt", "resumed", "inconsistent", "request passed"];
        let of_queues = EACH.into_iter().flat_map(|what| [0, 1, 2].map(|number| (what, number)));
        let raised = [0, 4, 7, 8, 9].map(|bit| ("raised", bit));
        let others = ["msi", "smmuen", "gbpa", "reset"].map(|what| (what, 0));
        of_queues.chain(raised).chain(others).all(|event| self.0.contains_key(&event))
    }
}

/// A queue that is enabled.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Queue {
    base: u64,
    /// Slots.
    size: u32,
    /// Index of the next command, with its wrap bit.
    cons: u32,
    /// The request that the command at CONS waits for.
    waiting: Option<usize>,
    inconsistent: bool,
}

/// What a slot of a ring holds.
enum Entry {
    Tlbi,
    Sync,
    SyncMsi { address: u64, data: u32 },
    Stream(u32),
    Illegal,
}

impl Entry {
    /// What the test puts there is one of a few; all else is what an MSI left of it.
    fn of([low, high]: [u64; 2]) -> Self {
        let upper = (low >> 32) as u32;
        match (low as u32, upper, high) {
            (0x10, 0, 0) => Self::Tlbi,
            (0x46 | 0x2046, 0, 0) => Self::Sync,
            (0x1046, data, address) => Self::SyncMsi { address, data },
            (0x03, stream, 1) => Self::Stream(stream),
            _ => Self::Illegal,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    registers: Registers,
    /// RAM is in the memory map.
    in_map: bool,
    /// By address, in words of 64 bits; zero where there is none.
    ram: BTreeMap<u64, u64>,
    queues: [Option<Queue>; 3],
    /// Of an ECMDQ: an error that has not been acknowledged; ERRACK as last seen; the last ERR_REASON.
    stopped: [bool; 3],
    errack: [u32; 3],
    reason: [u32; 3],
    /// CMDQ_CONS.ERR.
    code: u32,
    /// GERRORN as last seen.
    gerrorn: u32,
    /// What the VMM was asked, and what it said.
    requests: Vec<(What, Option<Act>)>,
    at_once: Option<Act>,
    /// Requests that are waited for.
    smmuen: Option<(usize, u32)>,
    gbpa: Option<(usize, u32)>,
    pub seen: Seen,
}

impl Model {
    pub fn new() -> Self {
        Self {
            registers: Registers::new(),
            in_map: true,
            ram: BTreeMap::new(),
            queues: [None; 3],
            stopped: [false; 3],
            errack: [0; 3],
            reason: [0; 3],
            code: 0,
            gerrorn: 0,
            requests: Vec::new(),
            at_once: None,
            smmuen: None,
            gbpa: None,
            seen: Seen::default(),
        }
    }

    pub fn registers(&self) -> impl Iterator<Item = (usize, u32)> {
        self.registers.all()
    }

    pub fn get(&self, offset: usize) -> u32 {
        self.registers.get(offset)
    }

    pub fn write(&mut self, offset: usize, value: u32) {
        self.registers.write(offset, value);
    }

    pub fn load(&self, at: u64) -> u64 {
        self.ram.get(&at).copied().unwrap_or(0)
    }

    pub fn store(&mut self, at: u64, value: u64) {
        self.ram.insert(at, value);
    }

    pub fn asked(&self) -> Vec<What> {
        self.requests.iter().map(|(what, _)| *what).collect()
    }

    pub fn set_in_map(&mut self, in_map: bool) {
        self.in_map = in_map;
    }

    /// The VMM does what is asked from now on in the callback, or later.
    pub fn set_at_once(&mut self, act: Option<Act>) {
        self.at_once = act;
    }

    /// The VMM answers the request behind `same_before` ones that said the same.
    pub fn answer(&mut self, what: What, same_before: usize, act: Act) {
        let mut same = self.requests.iter_mut().filter(|(asked, _)| *asked == what);
        same.nth(same_before).expect("it was asked").1 = Some(act);
    }

    /// All but memory and what the VMM knows; it has no say in what was asked before.
    pub fn reset(&mut self) {
        self.seen.note("reset", 0);
        let Self { in_map, ram, requests, at_once, seen, .. } = std::mem::replace(self, Self::new());
        *self = Self { in_map, ram, requests, at_once, seen, ..Self::new() };
    }

    /// All that the SMMU does until it has nothing left to do.
    pub fn settle(&mut self) {
        loop {
            let before = self.clone();
            self.sweep();
            if *self == before {
                return;
            }
        }
    }

    /// In the order in which the engine looks, where several registers were written since it last did.
    fn sweep(&mut self) {
        self.follow_cr0();
        self.registers.set(IRQ_CTRLACK, self.get(IRQ_CTRL));
        self.follow_gerrorn();
        self.follow_gbpa();
        for number in 0..3 {
            self.complete(number);
            // Until the VMM has followed SMMUEN, nothing is taken that depends on it.
            if self.smmuen.is_none() {
                self.follow_ecmdq(number);
                self.consume(number);
            }
        }
    }

    fn ask(&mut self, what: What) -> usize {
        self.requests.push((what, self.at_once));
        self.requests.len() - 1
    }

    /// What the VMM has been asked by a register it has done, if it has, when the registers are looked at again.
    fn follow_smmuen(&mut self) {
        if let Some((request, value)) = self.smmuen
            && let Some(act) = self.requests[request].1
        {
            self.smmuen = None;
            self.seen.note("smmuen", 0);
            self.check_followed(act);
            self.registers.set(CR0ACK, self.get(CR0ACK) & !SMMUEN | value);
        }
    }

    fn follow_cr0(&mut self) {
        self.follow_smmuen();
        let (wanted, acked) = (self.get(CR0), self.get(CR0ACK));
        if (wanted ^ acked) & CMDQEN != 0 {
            if wanted & CMDQEN != 0 { self.enable(0) } else { self.disable(0) }
        }
        self.registers.set(CR0ACK, wanted & !SMMUEN | acked & SMMUEN);
        if self.smmuen.is_none() && (wanted ^ acked) & SMMUEN != 0 {
            let what = if wanted & SMMUEN == 0 {
                What::Disable
            } else {
                let [config, cr1] = [STRTAB_BASE_CFG, CR1].map(|register| self.get(register));
                What::Enable { base: self.registers.get_u64(STRTAB_BASE), config, cr1 }
            };
            self.smmuen = Some((self.ask(what), wanted & SMMUEN));
        }
    }

    fn follow_gbpa(&mut self) {
        if let Some((request, value)) = self.gbpa
            && let Some(act) = self.requests[request].1
        {
            self.gbpa = None;
            self.seen.note("gbpa", 0);
            self.check_followed(act);
            self.registers.set(GBPA, value);
        }
        let gbpa = self.get(GBPA);
        if self.gbpa.is_none() && gbpa & UPDATE != 0 {
            self.gbpa = Some((self.ask(What::Bypass(gbpa & !UPDATE)), gbpa & !UPDATE));
        }
    }

    /// A handshake ends whatever the VMM says.
    fn check_followed(&mut self, act: Act) {
        if act != Act::Complete {
            self.raise(SFM_ERR);
        }
    }

    fn active(&self) -> u32 {
        self.get(GERROR) ^ self.gerrorn
    }

    fn follow_gerrorn(&mut self) {
        let before = self.active();
        self.gerrorn = self.get(GERRORN);
        if before & !self.active() & CMDQ_ERR != 0 {
            self.code = 0;
            self.seen.note("resumed", 0);
            self.show_cons(0);
        }
    }

    /// Section 2.4: what is active is not recorded again; any bit but MSI_GERROR_ABT_ERR interrupts.
    fn raise(&mut self, bit: u32) {
        if self.active() & bit != 0 {
            return;
        }
        self.seen.note("raised", bit.trailing_zeros() as usize);
        self.registers.set(GERROR, self.get(GERROR) ^ bit);
        let address = self.registers.get_u64(GERROR_IRQ_CFG0);
        if self.get(IRQ_CTRLACK) & 1 != 0 && bit != MSI_GERROR_ABT_ERR && address != 0 {
            self.send_msi(address, self.get(GERROR_IRQ_CFG1), MSI_GERROR_ABT_ERR);
        }
    }

    /// There is nothing behind RAM that takes MSIs.
    fn send_msi(&mut self, address: u64, data: u32, abort: u32) {
        let address = address & OAS;
        if !self.in_map || !(RAM..RAM + RAM_SIZE as u64).contains(&address) {
            return self.raise(abort);
        }
        self.seen.note("msi", 0);
        let shift = 8 * (address & 4);
        let word = self.load(address & !7) & !(0xffff_ffff << shift) | u64::from(data) << shift;
        self.store(address & !7, word);
    }

    fn enable(&mut self, number: usize) {
        let [base, _, cons] = QUEUES[number];
        let base = self.registers.get_u64(base);
        let size = 1 << (base as u32 & 0x1f).min(CMDQS);
        // Aligned down to the size of the ring.
        let base = base & OAS & !(16 * u64::from(size).max(2) - 1);
        let cons = self.get(cons) & (2 * size - 1);
        self.queues[number] = Some(Queue { base, size, cons, waiting: None, inconsistent: false });
        self.seen.note("enabled", number);
        self.show_cons(number);
    }

    /// What it waits for is forgotten.
    fn disable(&mut self, number: usize) {
        self.queues[number] = None;
        self.seen.note("disabled", number);
    }

    fn follow_ecmdq(&mut self, number: usize) {
        if number == 0 {
            return;
        }
        let [_, prod, cons] = QUEUES[number];
        let (asked, shown) = (self.get(prod), self.get(cons));
        let agreed = (asked ^ shown) & ERR == 0;
        self.errack[number] = asked & ERR;
        match (asked & EN != 0, self.queues[number].is_some()) {
            (true, false) => {
                self.stopped[number] &= !agreed;
                self.enable(number);
            }
            (false, true) => {
                self.disable(number);
                self.registers.set(cons, shown & !EN);
            }
            (true, true) if self.stopped[number] && agreed => {
                self.stopped[number] = false;
                self.seen.note("resumed", number);
            }
            _ => {}
        }
    }

    /// CONS, with what it says besides: an ECMDQ's ERR_REASON is the SMMU's own.
    fn show_cons(&mut self, number: usize) {
        let Some(queue) = self.queues[number] else { return };
        let cons = QUEUES[number][2];
        let flags =
            if number == 0 { self.code << 24 } else { EN | self.get(cons) & ERR | self.reason[number] << 24 };
        self.registers.set(cons, queue.cons | flags);
    }

    fn fail(&mut self, number: usize, code: u32) {
        self.seen.note(if code == ILL { "ill" } else { "abt" }, number);
        if number == 0 {
            self.code = code;
            self.show_cons(0);
            return self.raise(CMDQ_ERR);
        }
        let cons = QUEUES[number][2];
        (self.stopped[number], self.reason[number]) = (true, code);
        self.registers.set(cons, self.get(cons) & !ERR | ERR & !self.errack[number]);
        self.show_cons(number);
        self.raise(CMDQP_ERR);
    }

    fn is_stopped(&self, number: usize) -> bool {
        if number == 0 { self.active() & CMDQ_ERR != 0 } else { self.stopped[number] }
    }

    /// Passes `n` commands.
    fn pass(&mut self, number: usize, n: u32) {
        if let Some(queue) = &mut self.queues[number] {
            queue.cons = (queue.cons + n) & (2 * queue.size - 1);
        }
        self.show_cons(number);
    }

    /// What the VMM said of the command at CONS.
    fn complete(&mut self, number: usize) {
        let Some(queue) = &mut self.queues[number] else { return };
        let Some(act) = queue.waiting.and_then(|request| self.requests[request].1) else { return };
        queue.waiting = None;
        match act {
            Act::Complete => {
                self.seen.note("request passed", number);
                self.pass(number, 1);
            }
            Act::Reject => self.fail(number, ILL),
            Act::Drop => self.fail(number, ABT),
        }
    }

    fn consume(&mut self, number: usize) {
        let prod = self.get(QUEUES[number][1]);
        while let Some(queue) = self.queues[number]
            && queue.waiting.is_none()
            && !self.is_stopped(number)
        {
            let used = prod.wrapping_sub(queue.cons) & (2 * queue.size - 1);
            let inconsistent = used > queue.size;
            if inconsistent && !queue.inconsistent {
                self.seen.note("inconsistent", number);
            }
            self.queues[number] = Some(Queue { inconsistent, ..queue });
            if used == 0 || inconsistent {
                return;
            }
            self.execute(number, queue);
        }
    }

    fn execute(&mut self, number: usize, queue: Queue) {
        let bytes = 16 * u64::from(queue.size);
        if !self.in_map || queue.base < RAM || queue.base + bytes > RAM + RAM_SIZE as u64 {
            return self.fail(number, ABT);
        }
        let slot = queue.base + 16 * u64::from(queue.cons & (queue.size - 1));
        match Entry::of([self.load(slot), self.load(slot + 8)]) {
            Entry::Illegal => return self.fail(number, ILL),
            Entry::Stream(stream) => {
                let request = self.ask(What::Stream(stream));
                let waiting = Some(request);
                self.queues[number] = Some(Queue { waiting, ..queue });
                return self.complete(number);
            }
            Entry::SyncMsi { address, data } if address != 0 => {
                self.pass(number, 1);
                self.send_msi(address, data, MSI_CMDQ_ABT_ERR);
            }
            Entry::Tlbi | Entry::Sync | Entry::SyncMsi { .. } => self.pass(number, 1),
        }
        self.seen.note("consumed", number);
    }
}
