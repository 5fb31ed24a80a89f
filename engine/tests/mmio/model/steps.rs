//! What is done to engine and model: anything, and what drivers do often enough for things to happen.

use proptest::prelude::*;

use super::super::RAM;
use super::super::common::Act;
use super::Both;
use super::registers::*;

/// Where the MSIs of a queue go, as far as they go to RAM and not to their own slot: a word for each queue, since the order of
/// two queues is not defined. The GERROR MSI's word; and where there is nothing.
const WORDS: u64 = RAM + 0xe004;
const GERROR_WORD: u32 = RAM as u32 + 0xf000;
const HOLE: u64 = 1 << 43;
/// Beyond the 44 bits of addresses.
const ABOVE: u64 = 1 << 45;

/// What is put into a slot.
#[derive(Clone, Copy, Debug)]
pub enum Put {
    Tlbi,
    Sync {
        sev: bool,
    },
    Msi {
        address: u64,
        data: u32,
    },
    /// To the word of its queue.
    MsiToWord {
        above: u64,
        data: u32,
    },
    /// Over its own slot, as Linux has it.
    MsiHere {
        data: u32,
    },
    /// Of four streams that each queue has for itself: which of two queues asks first is not defined.
    Stream(u32),
    Illegal([u64; 2]),
}

#[derive(Clone, Copy, Debug)]
pub enum Step {
    Write(usize, u32),
    WriteWide(usize, u64),
    /// An access that no register answers: offset, size, byte.
    Odd(usize, usize, u8),
    /// Number of the queue, of its slot.
    Put(usize, u64, Put),
    /// A queue at its place, empty at this index, is described and enabled; PROD is this much ahead.
    Start {
        number: usize,
        log2: u32,
        index: u32,
        ahead: u32,
    },
    /// PROD of a queue so far ahead of CONS.
    Ring(usize, u32),
    /// Errors are acknowledged: of the CMDQ, or of an ECMDQ.
    Acknowledge(usize),
    /// The GERROR interrupt is enabled, with an MSI to this address.
    Interrupt(u32),
    /// The worker is polled until it rests.
    Settle,
    Answer(usize, Act),
    AtOnce(Option<Act>),
    /// RAM leaves the memory map, or comes back.
    Memory(bool),
    Reset,
}

/// Each queue has a place of its own.
fn ring(number: usize) -> u64 {
    RAM + 0x1000 * number as u64
}

impl Step {
    pub fn act(&self, both: &mut Both) {
        match *self {
            Self::Write(offset, value) => both.write(offset, value),
            Self::WriteWide(offset, value) => {
                both.engine.write_u64(offset, value);
                both.model.write(offset, value as u32);
                both.model.write(offset + 4, (value >> 32) as u32);
            }
            Self::Odd(offset, size, byte) => {
                both.engine.smmu.mmio_write(offset as u64, &[byte; 16][..size]);
            }
            Self::Put(number, slot, put) => {
                let at = ring(number) + 16 * slot;
                let [low, high] = put.words(at);
                both.store(at, low);
                both.store(at + 8, high);
            }
            Self::Start { number, log2, index, ahead } => start(both, number, [log2, index, ahead]),
            Self::Ring(number, ahead) => {
                let [_, prod, cons] = QUEUES[number];
                let index = both.model.get(cons).wrapping_add(ahead) & 0xf_ffff;
                both.write(prod, both.model.get(prod) & (EN | ERR) | index);
            }
            Self::Acknowledge(0) => both.write(GERRORN, both.model.get(GERROR)),
            Self::Acknowledge(number) => {
                let [_, prod, cons] = QUEUES[number];
                let prod_now = both.model.get(prod);
                both.write(prod, prod_now & !ERR | both.model.get(cons) & ERR);
            }
            Self::Interrupt(address) => {
                both.write(GERROR_IRQ_CFG0, address);
                both.write(IRQ_CTRL, both.model.get(IRQ_CTRL) | 1);
            }
            Self::Settle => {
                both.engine.settle();
                both.model.settle();
            }
            Self::Answer(which, act) => both.answer(which, act),
            Self::AtOnce(act) => {
                both.engine.vmm.lock().unwrap().at_once = act;
                both.model.set_at_once(act);
            }
            Self::Memory(in_map) => {
                both.engine.set_memory(in_map);
                both.model.set_in_map(in_map);
            }
            Self::Reset => {
                both.engine.smmu.reset();
                both.model.reset();
            }
        }
    }
}

/// As drivers do it, whether the queue is enabled or not: then it is one that is moved while it is enabled.
fn start(both: &mut Both, number: usize, [log2, index, ahead]: [u32; 3]) {
    let [base, prod, cons] = QUEUES[number];
    both.write(base, ring(number) as u32 | log2);
    both.write(base + 4, 0);
    both.write(cons, index);
    if number == 0 {
        both.write(prod, index + ahead);
        both.write(CR0, both.model.get(CR0) | CMDQEN);
    } else {
        both.write(prod, EN | (index + ahead));
    }
}

impl Put {
    fn words(self, at: u64) -> [u64; 2] {
        let queue = (at - RAM) / 0x1000;
        match self {
            Self::Tlbi => [0x10, 0],
            Self::Sync { sev } => [if sev { 0x2046 } else { 0x46 }, 0],
            Self::Msi { address, data } => [0x1046 | u64::from(data) << 32, address],
            Self::MsiToWord { above, data } => {
                let word = WORDS + queue * 8;
                [0x1046 | u64::from(data) << 32, above | word]
            }
            Self::MsiHere { data } => [0x1046 | u64::from(data) << 32, at],
            Self::Stream(stream) => [0x03 | (u64::from(stream) + 4 * queue) << 32, 1],
            Self::Illegal(words) => words,
        }
    }
}

pub fn any_put() -> impl Strategy<Value = Put> {
    let nowhere = prop::sample::select(vec![0, HOLE, ABOVE]);
    let above = prop::sample::select(vec![0, ABOVE]);
    // Unknown; CS=0b11; SSec; TG with NUM, SCALE and TTL zero.
    let illegal = vec![[0xff, 0], [0, 0], [0x3046, 0], [0x403 | 1 << 32, 1], [0x12, 0x400]];
    prop_oneof![
        8 => Just(Put::Tlbi),
        2 => any::<bool>().prop_map(|sev| Put::Sync { sev }),
        2 => (nowhere, any::<u32>()).prop_map(|(address, data)| Put::Msi { address, data }),
        2 => (above, any::<u32>()).prop_map(|(above, data)| Put::MsiToWord { above, data }),
        // What it leaves is no command.
        1 => prop::sample::select(vec![0, 0x99]).prop_map(|data| Put::MsiHere { data }),
        3 => (0..4_u32).prop_map(Put::Stream),
        2 => prop::sample::select(illegal).prop_map(Put::Illegal),
    ]
}

/// Of any value, one that is likely to matter to a register; sometimes the value itself.
fn value(offset: usize, any: u32) -> u32 {
    let (any, which) = (any >> 8, any as usize & 0xff);
    let one_of = |likely: &[u32]| likely[which % likely.len()];
    let number = QUEUES.into_iter().position(|queue| (queue[0]..=queue[2]).contains(&offset));
    match (offset, number) {
        // By chance no ring and no MSI is in RAM.
        _ if which < 24 => any << 8 | 1 << 31 | any & 0xff,
        (CR0, _) => one_of(&[0, 1, 8, 9, 0xd, 0x1f]),
        (IRQ_CTRL, _) => any & 7,
        (GERROR_IRQ_CFG0, _) => one_of(&[0, 4, GERROR_WORD]),
        (GBPA, _) => one_of(&[UPDATE, UPDATE | 1 << 20, 1 << 20]),
        (GERRORN, _) => one_of(&[0, 1, 0x10, 0x100, 0x200, 0x301, 0x201, 0x101]),
        (_, None) => any << 8,
        (_, Some(number)) => match offset & 0xf {
            0x0 => ring(number) as u32 | (any % 6),
            0x4 => 0,
            _ if number == 0 => one_of(&[0, 0, 1 << 24]) | any & 0xf,
            _ => one_of(&[0, EN, EN, EN | ERR, ERR]) | any & 0xf,
        },
    }
}

fn any_write() -> impl Strategy<Value = Step> {
    let often =
        [CR0, GBPA, IRQ_CTRL, GERRORN, GERROR_IRQ_CFG0].into_iter().chain(QUEUES.into_iter().flatten());
    let offsets: Vec<_> = often.clone().chain(often.clone()).chain(often).chain(offsets()).collect();
    (prop::sample::select(offsets), any::<u32>())
        .prop_map(|(offset, any)| Step::Write(offset, value(offset, any)))
}

pub fn any_step() -> impl Strategy<Value = Step> {
    let number = || 0..3_usize;
    let wide = prop::sample::select(vec![0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0x4000, 0x2_0000, 0x2_8000]);
    let odd_size = prop::sample::select(vec![0_usize, 1, 2, 3, 5, 6, 7, 9, 12, 16]);
    let act = || prop::sample::select(vec![Act::Complete, Act::Complete, Act::Reject, Act::Drop]);
    prop_oneof![
        30 => any_write(),
        3 => (wide, any::<u64>()).prop_map(|(offset, value)| Step::WriteWide(offset, value | 1 << 31)),
        3 => (prop::sample::select(offsets().collect::<Vec<_>>()), odd_size, any::<u8>())
            .prop_map(|(offset, size, byte)| Step::Odd(offset, size, byte)),
        30 => (number(), 0..8_u64, any_put()).prop_map(|(number, slot, put)| Step::Put(number, slot, put)),
        12 => (number(), 0..4_u32, 0..16_u32, 0..9_u32)
            .prop_map(|(number, log2, index, ahead)| Step::Start { number, log2, index, ahead }),
        25 => (number(), 0..10_u32).prop_map(|(number, ahead)| Step::Ring(number, ahead)),
        20 => number().prop_map(Step::Acknowledge),
        4 => prop::sample::select(vec![4, GERROR_WORD]).prop_map(Step::Interrupt),
        50 => Just(Step::Settle),
        25 => (any::<usize>(), act()).prop_map(|(which, act)| Step::Answer(which, act)),
        4 => prop::option::of(act()).prop_map(Step::AtOnce),
        2 => prop::sample::select(vec![true, true, false]).prop_map(Step::Memory),
        1 => Just(Step::Reset),
    ]
}
