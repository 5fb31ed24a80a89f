//! The register file against a model of it, written from the facts sheet (sections 2 to 4) without a look at the engine:
//! random accesses, commands, and VMMs that take their time.

use std::collections::BTreeMap;

use ecmdq_engine::memory::GuestRam;
use ecmdq_engine::rules::Request;
use ecmdq_engine::{Features, Token};
use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::{RAM, Trapped, seed};

const CR0: usize = 0x20;
const CR0ACK: usize = 0x24;
const GBPA: usize = 0x44;
const IRQ_CTRL: usize = 0x50;
const IRQ_CTRLACK: usize = 0x54;
const GERROR: usize = 0x60;
const GERRORN: usize = 0x64;
const SMMUEN: u32 = 1;
const CMDQEN: u32 = 1 << 3;
const UPDATE: u32 = 1 << 31;
const CMDQ_ERR: u32 = 1;
const MSI_GERROR_ABT_ERR: u32 = 1 << 7;
const SFM_ERR: u32 = 1 << 8;
const CMDQP_ERR: u32 = 1 << 9;
/// On a control page.
const EN: u32 = 1 << 31;
const ERR: u32 = 1 << 23;
const ILL: u32 = 1;
const ABT: u32 = 2;

/// BASE, PROD and CONS of the CMDQ and of two ECMDQs on one page.
const QUEUES: [[usize; 3]; 3] =
    [[0x90, 0x98, 0x9c], [0x2_0000, 0x2_0008, 0x2_000c], [0x2_8000, 0x2_8008, 0x2_800c]];

/// Everything that is compared.
const COMPARED: [usize; 25] = [
    CR0,
    CR0ACK,
    0x28,
    0x2c,
    GBPA,
    IRQ_CTRL,
    IRQ_CTRLACK,
    GERROR,
    GERRORN,
    0x68,
    0x70,
    0x80,
    0x88,
    0x90,
    0x94,
    0x98,
    0x9c,
    0x2_0000,
    0x2_0004,
    0x2_0008,
    0x2_000c,
    0x2_8000,
    0x2_8004,
    0x2_8008,
    0x2_800c,
];

/// What a slot of a ring holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Entry {
    Tlbi,
    Sync,
    Illegal,
}

impl Entry {
    fn word(self) -> u64 {
        match self {
            Self::Tlbi => 0x10,
            Self::Sync => 0x46,
            Self::Illegal => 0xff,
        }
    }
}

/// A queue that is enabled.
#[derive(Clone, Copy, Debug)]
struct Queue {
    base: u64,
    /// Slots.
    size: u32,
    /// Index of the next command, with its wrap bit.
    cons: u32,
}

#[derive(Debug)]
struct Model {
    words: BTreeMap<usize, u32>,
    /// Whether RAM is in the memory map.
    memory: bool,
    /// By slot number from the start of RAM.
    ram: BTreeMap<u64, Entry>,
    queues: [Option<Queue>; 3],
    /// Of an ECMDQ: an error that has not been acknowledged.
    stopped: [bool; 3],
    smmuen_wanted: Option<u32>,
    gbpa_wanted: Option<u32>,
    /// The last error of each queue.
    reasons: [u32; 3],
    /// GERRORN as last seen.
    gerrorn: u32,
}

impl Model {
    fn new() -> Self {
        let words = COMPARED.into_iter().map(|offset| (offset, 0)).collect();
        Self {
            words,
            memory: true,
            ram: BTreeMap::new(),
            queues: [None; 3],
            stopped: [false; 3],
            reasons: [0; 3],
            smmuen_wanted: None,
            gbpa_wanted: None,
            gerrorn: 0,
        }
    }

    fn word(&self, offset: usize) -> u32 {
        self.words[&offset]
    }

    fn set(&mut self, offset: usize, value: u32) {
        self.words.insert(offset, value);
    }

    fn write(&mut self, offset: usize, value: u32) {
        let old = self.word(offset);
        let off = |bit: u32| (self.word(CR0) | self.word(CR0ACK)) & bit == 0;
        let quiet = (self.word(IRQ_CTRL) | self.word(IRQ_CTRLACK)) & 1 == 0;
        let disabled = |[_, prod, cons]: [usize; 3]| (self.word(prod) | self.word(cons)) & EN == 0;
        let ecmdq = usize::from(offset >= 0x2_8000) + 1;
        let writable = match offset {
            CR0 => 0xd & !(old ^ self.word(CR0ACK)),
            IRQ_CTRL => 0x5 & !(old ^ self.word(IRQ_CTRLACK)),
            0x28 => {
                let queues = off(0xc) && disabled(QUEUES[1]) && disabled(QUEUES[2]);
                (if off(SMMUEN) { 0xfc0 } else { 0 }) | if queues { 0x3f } else { 0 }
            }
            0x2c if off(SMMUEN) => 0xa,
            GBPA if old & UPDATE == 0 && value & UPDATE != 0 => 0x801f_3f1f,
            GERRORN => 0x7fd,
            0x68 if quiet => 0xffff_fffc,
            0x70 if quiet => 0xffff_ffff,
            0x80 if off(SMMUEN) => 0xffff_ffc0,
            0x88 if off(SMMUEN) => 0x3_07ff,
            0x90 if off(CMDQEN) => 0xffff_ffff,
            0x94 if off(CMDQEN) => 0x40ff_ffff,
            0x98 => 0xf_ffff,
            0x9c if off(CMDQEN) => 0x7f0f_ffff,
            0x2_0000.. => {
                let [_, prod, cons] = QUEUES[ecmdq];
                match offset & 0xf {
                    0x0 if disabled(QUEUES[ecmdq]) => 0xffff_ffff,
                    0x4 if disabled(QUEUES[ecmdq]) => 0x40ff_ffff,
                    0x8 if (self.word(prod) ^ self.word(cons)) & EN == 0 => 0x808f_ffff,
                    0xc if disabled(QUEUES[ecmdq]) => 0x078f_ffff,
                    _ => 0,
                }
            }
            _ => 0,
        };
        self.set(offset, old & !writable | value & writable);
    }

    fn active(&self) -> u32 {
        self.word(GERROR) ^ self.gerrorn
    }

    fn raise(&mut self, bit: u32) {
        if self.active() & bit != 0 {
            return;
        }
        self.set(GERROR, self.word(GERROR) ^ bit);
        // The interrupt is an MSI if there is an address; its abort is an error without an interrupt.
        let address = u64::from(self.word(0x68));
        let in_ram = self.memory && (RAM..RAM + super::RAM_SIZE as u64).contains(&address);
        if self.word(IRQ_CTRLACK) & 1 != 0
            && address != 0
            && !in_ram
            && self.active() & MSI_GERROR_ABT_ERR == 0
        {
            self.set(GERROR, self.word(GERROR) ^ MSI_GERROR_ABT_ERR);
        }
    }

    /// All that the SMMU does until it has nothing left to do.
    fn settle(&mut self) {
        self.set(IRQ_CTRLACK, self.word(IRQ_CTRL));
        let before = self.active();
        self.gerrorn = self.word(GERRORN);
        self.follow_cr0();
        if before & CMDQ_ERR != 0 && self.active() & CMDQ_ERR == 0 {
            self.show_cons(0, 0);
        }
        if self.gbpa_wanted.is_none() && self.word(GBPA) & UPDATE != 0 {
            self.gbpa_wanted = Some(self.word(GBPA) & !UPDATE);
        }
        if self.smmuen_wanted.is_none() {
            (1..3).for_each(|number| self.follow_ecmdq(number));
            (0..3).for_each(|number| self.consume(number));
        }
    }

    fn follow_cr0(&mut self) {
        let (wanted, acked) = (self.word(CR0), self.word(CR0ACK));
        if (wanted ^ acked) & CMDQEN != 0 {
            if wanted & CMDQEN != 0 { self.enable(0) } else { self.queues[0] = None }
        }
        self.set(CR0ACK, wanted & !SMMUEN | acked & SMMUEN);
        if self.smmuen_wanted.is_none() && (wanted ^ acked) & SMMUEN != 0 {
            self.smmuen_wanted = Some(wanted & SMMUEN);
        }
    }

    fn enable(&mut self, number: usize) {
        let [base, _, cons] = QUEUES[number];
        let register = u64::from(self.word(base + 4)) << 32 | u64::from(self.word(base));
        let size = 1 << (register & 0x1f).min(7);
        // 44 bits of address, aligned to the size of the ring.
        let base = register & 0x0fff_ffff_ffe0 & !(16 * u64::from(size).max(2) - 1);
        self.queues[number] = Some(Queue { base, size, cons: self.word(cons) & (2 * size - 1) });
        if number == 0 {
            // An error that is active keeps its code; what software wrote there meanwhile is ignored, as it may be.
            let code = if self.active() & CMDQ_ERR != 0 { self.reasons[0] } else { 0 };
            self.show_cons(0, code);
        }
    }

    /// CMDQ_CONS, or ECMDQ_CONS with what it says besides.
    fn show_cons(&mut self, number: usize, code: u32) {
        let Some(queue) = self.queues[number] else { return };
        let cons = QUEUES[number][2];
        let flags = if number == 0 { code << 24 } else { self.word(cons) & (EN | ERR | 7 << 24) };
        self.set(cons, queue.cons | flags);
    }

    fn follow_ecmdq(&mut self, number: usize) {
        let [_, prod, cons] = QUEUES[number];
        let (asked, shown) = (self.word(prod), self.word(cons));
        let enabled = self.queues[number].is_some();
        if asked & EN != 0 && !enabled {
            self.enable(number);
            self.stopped[number] &= (asked ^ shown) & ERR != 0;
            // The reason is the SMMU's own; what software wrote there is not kept.
            let reason = self.reasons[number];
            let queue = self.queues[number].map_or(0, |queue| queue.cons);
            self.set(cons, EN | shown & ERR | reason << 24 | queue);
        } else if asked & EN == 0 && enabled {
            self.set(cons, shown & !EN);
            self.queues[number] = None;
        } else if enabled && self.stopped[number] && (asked ^ shown) & ERR == 0 {
            self.stopped[number] = false;
        }
    }

    fn consume(&mut self, number: usize) {
        let [_, prod, cons] = QUEUES[number];
        let stopped = if number == 0 { self.active() & CMDQ_ERR != 0 } else { self.stopped[number] };
        let Some(mut queue) = self.queues[number].filter(|_| !stopped) else { return };
        let mask = 2 * queue.size - 1;
        let used = self.word(prod).wrapping_sub(queue.cons) & mask;
        if used == 0 || used > queue.size {
            return;
        }
        let inside = self.memory
            && queue.base >= RAM
            && queue.base + 16 * u64::from(queue.size) <= RAM + super::RAM_SIZE as u64;
        let entry = |at: u32| {
            let slot = (queue.base - RAM) / 16 + u64::from(at & (queue.size - 1));
            self.ram.get(&slot).copied()
        };
        let mut error = (!inside).then_some(ABT);
        for _ in 0..used {
            if error.is_some() {
                break;
            }
            match entry(queue.cons) {
                Some(Entry::Tlbi | Entry::Sync) => queue.cons = (queue.cons + 1) & mask,
                // What was never written is opcode 0.
                Some(Entry::Illegal) | None => error = Some(ILL),
            }
        }
        self.queues[number] = Some(queue);
        self.reasons[number] = error.unwrap_or(self.reasons[number]);
        match error {
            None => self.show_cons(number, 0),
            Some(code) if number == 0 => {
                self.show_cons(0, code);
                self.raise(CMDQ_ERR);
            }
            Some(code) => {
                self.stopped[number] = true;
                let err = !self.word(prod) & ERR;
                self.set(cons, EN | err | code << 24 | queue.cons);
                self.raise(CMDQP_ERR);
            }
        }
    }

    /// What the VMM did with what it was asked for last by each register.
    fn answer(&mut self, smmuen: bool, fine: bool) {
        if smmuen {
            if let Some(value) = self.smmuen_wanted.take() {
                self.set(CR0ACK, self.word(CR0ACK) & !SMMUEN | value);
            }
        } else if let Some(value) = self.gbpa_wanted.take() {
            self.set(GBPA, value);
        }
        if !fine {
            self.raise(SFM_ERR);
        }
    }

    fn reset(&mut self) {
        let (memory, ram) = (self.memory, std::mem::take(&mut self.ram));
        *self = Self { memory, ram, ..Self::new() };
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, u32),
    Put(u64, Entry),
    /// To the oldest request: 0 and 1 complete it, 2 rejects it, 3 drops it.
    Answer(u8),
    /// RAM leaves the memory map, or comes back.
    Memory(bool),
    Reset,
}

/// Values that are likely to matter to a register, and any.
fn value(offset: usize) -> BoxedStrategy<u32> {
    let queue = offset & 0xf0 == 0x90 || offset >= 0x2_0000;
    let rings = [0, 1, 4, 15].map(|ring| RAM as u32 + 0x400 * ring);
    let likely = match offset {
        CR0 => prop::sample::select(vec![0, 1, 8, 9, 0xd]).boxed(),
        IRQ_CTRL => (0..8_u32).boxed(),
        // No address, one where there is nothing, and one that no ring has.
        0x68 => prop::sample::select(vec![0, 4, RAM as u32 + 0xf000]).boxed(),
        GBPA => prop::sample::select(vec![UPDATE, UPDATE | 1 << 20, 1 << 20]).boxed(),
        GERRORN => prop::sample::select(vec![0, 1, 0x100, 0x200, 0x301, 0x201, 0x101]).boxed(),
        _ if queue && offset & 0xf == 0 => {
            (prop::sample::select(rings.to_vec()), 0..4_u32).prop_map(|(ring, log2)| ring | log2).boxed()
        }
        _ if queue && offset & 0xf == 4 => Just(0).boxed(),
        _ if queue => {
            let flags = if offset >= 0x2_0000 { vec![0, EN, EN, EN | ERR, ERR] } else { vec![0] };
            (prop::sample::select(flags), 0..16_u32).prop_map(|(flags, index)| flags | index).boxed()
        }
        _ => any::<u32>().boxed(),
    };
    prop_oneof![9 => likely, 1 => any::<u32>()].boxed()
}

fn step() -> impl Strategy<Value = Step> {
    let entry = prop::sample::select(vec![Entry::Tlbi, Entry::Tlbi, Entry::Sync, Entry::Illegal]);
    let write = prop::sample::select(COMPARED.to_vec())
        .prop_flat_map(|offset| value(offset).prop_map(move |value| Step::Write(offset, value)));
    prop_oneof![
        24 => write,
        8 => (prop::sample::select(vec![0_u64, 64, 256, 960]), 0..8_u64, entry)
            .prop_map(|(ring, slot, entry)| Step::Put(ring + slot, entry)),
        4 => (0..4_u8).prop_map(Step::Answer),
        2 => any::<bool>().prop_map(Step::Memory),
        1 => Just(Step::Reset),
    ]
}

/// Does the same to both.
fn act(step: &Step, trapped: &mut Trapped, model: &mut Model) {
    match step {
        Step::Write(offset, value) => {
            trapped.write(*offset, *value);
            model.write(*offset, *value);
        }
        Step::Put(slot, entry) => {
            let region = trapped.ram.region(GuestAddress(RAM + 16 * slot), 16).unwrap();
            region.store_u64(0, entry.word(), std::sync::atomic::Ordering::Release);
            model.ram.insert(*slot, *entry);
        }
        Step::Answer(how) => {
            let asked: Option<(Request, Token)> = {
                let mut asked = trapped.asked.lock().unwrap();
                if asked.is_empty() { None } else { Some(asked.remove(0)) }
            };
            let Some((request, token)) = asked else { return };
            match how {
                0 | 1 => token.complete(),
                2 => token.reject(),
                _ => drop(token),
            }
            model.answer(!matches!(request, Request::Bypass(_)), *how < 2);
        }
        Step::Memory(there) => {
            trapped.set_memory(*there);
            model.memory = *there;
        }
        Step::Reset => {
            trapped.smmu.reset();
            trapped.asked.lock().unwrap().clear();
            model.reset();
        }
    }
}

#[test]
fn the_register_file_behaves_as_its_model() {
    let mut features = Features::linux().with_ecmdqs(0, 1);
    features.cmdqs = 7;
    proptest!(seed::config(400), |(steps in prop::collection::vec(step(), 1..80))| {
        let (mut trapped, mut model) = (Trapped::new(features), Model::new());
        for (number, step) in steps.iter().enumerate() {
            act(step, &mut trapped, &mut model);
            let compare = |trapped: &Trapped, model: &Model, when: &str| {
                for offset in COMPARED {
                    let (got, expected) = (trapped.read(offset), model.word(offset));
                    prop_assert!(
                        got == expected,
                        "{when} step {number} {step:x?}: {offset:#x} is {got:#x}, not {expected:#x}"
                    );
                }
                Ok(())
            };
            if let Step::Write(..) = step {
                compare(&trapped, &model, "right after")?;
            }
            trapped.settle();
            model.settle();
            compare(&trapped, &model, "some time after")?;
        }
    });
}
