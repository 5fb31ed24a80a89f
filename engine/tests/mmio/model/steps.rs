//! What is done to engine and model: anything, and what drivers do often enough for things to happen.

use proptest::prelude::*;

use super::super::RAM;
use super::super::common::Act;
use super::Both;
use super::registers::*;

/// An MSI's address that is in RAM and in no ring; the GERROR MSI's; and one where there is nothing.
const WORD: u64 = RAM + 0xe004;
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
    /// Over its own slot, as Linux has it.
    MsiHere {
        data: u32,
    },
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
    /// The worker is polled until it rests.
    Settle,
    Answer(usize, Act),
    AtOnce(Option<Act>),
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
            Self::Settle => {
                both.engine.settle();
                both.model.settle();
            }
            Self::Answer(which, act) => both.answer(which, act),
            Self::AtOnce(act) => {
                both.engine.vmm.lock().unwrap().at_once = act;
                both.model.set_at_once(act);
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
        match self {
            Self::Tlbi => [0x10, 0],
            Self::Sync { sev } => [if sev { 0x2046 } else { 0x46 }, 0],
            Self::Msi { address, data } => [0x1046 | u64::from(data) << 32, address],
            Self::MsiHere { data } => [0x1046 | u64::from(data) << 32, at],
            Self::Stream(stream) => [0x03 | u64::from(stream) << 32, 1],
            Self::Illegal(words) => words,
        }
    }
}

fn any_put() -> impl Strategy<Value = Put> {
    let address = prop::sample::select(vec![0, WORD, WORD | ABOVE, HOLE, ABOVE]);
    // Unknown; CS=0b11; SSec; TG with NUM, SCALE and TTL zero.
    let illegal = vec![[0xff, 0], [0, 0], [0x3046, 0], [0x403 | 1 << 32, 1], [0x12, 0x400]];
    prop_oneof![
        4 => Just(Put::Tlbi),
        1 => any::<bool>().prop_map(|sev| Put::Sync { sev }),
        2 => (address, any::<u32>()).prop_map(|(address, data)| Put::Msi { address, data }),
        // What it leaves is no command.
        1 => prop::sample::select(vec![0, 0x99]).prop_map(|data| Put::MsiHere { data }),
        3 => (0..4_u32).prop_map(Put::Stream),
        2 => prop::sample::select(illegal).prop_map(Put::Illegal),
    ]
}

/// Values that are likely to matter to a register, and any.
fn value(offset: usize) -> BoxedStrategy<u32> {
    let number = QUEUES.into_iter().position(|queue| (queue[0]..=queue[2]).contains(&offset));
    let likely = match (offset, number) {
        (CR0, _) => prop::sample::select(vec![0, 1, 8, 9, 0xd, 0x1f]).boxed(),
        (IRQ_CTRL, _) => (0..8_u32).boxed(),
        (GERROR_IRQ_CFG0, _) => prop::sample::select(vec![0, 4, GERROR_WORD]).boxed(),
        (GBPA, _) => prop::sample::select(vec![UPDATE, UPDATE | 1 << 20, 1 << 20]).boxed(),
        (GERRORN, _) => prop::sample::select(vec![0, 1, 0x10, 0x100, 0x200, 0x301, 0x201, 0x101]).boxed(),
        (_, Some(number)) => match offset & 0xf {
            0x0 => (0..6_u32).prop_map(move |log2| ring(number) as u32 | log2).boxed(),
            0x4 => Just(0).boxed(),
            _ => {
                let flags = if number > 0 { vec![0, EN, EN, EN | ERR, ERR] } else { vec![0, 1 << 24] };
                (prop::sample::select(flags), 0..16_u32).prop_map(|(flags, index)| flags | index).boxed()
            }
        },
        _ => any::<u32>().boxed(),
    };
    // By chance no ring and no MSI is in RAM, and what would be a queue of two words of RAM is none.
    let elsewhere = any::<u32>().prop_map(|value| value | 1 << 31);
    prop_oneof![9 => likely, 1 => elsewhere].boxed()
}

fn any_write() -> impl Strategy<Value = Step> {
    let often = [CR0, GBPA, IRQ_CTRL, GERRORN].into_iter().chain(QUEUES.into_iter().flatten());
    let offset = prop_oneof![
        2 => prop::sample::select(often.collect::<Vec<_>>()),
        1 => prop::sample::select(offsets().collect::<Vec<_>>()),
    ];
    offset.prop_flat_map(|offset| value(offset).prop_map(move |value| Step::Write(offset, value)))
}

pub fn any_step() -> impl Strategy<Value = Step> {
    let number = || 0..3_usize;
    let wide = prop::sample::select(vec![0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0x4000, 0x2_0000, 0x2_8000]);
    let odd_size = prop::sample::select(vec![0_usize, 1, 2, 3, 5, 6, 7, 9, 12, 16]);
    let act = || prop::sample::select(vec![Act::Complete, Act::Complete, Act::Reject, Act::Drop]);
    prop_oneof![
        10 => any_write(),
        1 => (wide, any::<u64>()).prop_map(|(offset, value)| Step::WriteWide(offset, value | 1 << 31)),
        1 => (prop::sample::select(offsets().collect::<Vec<_>>()), odd_size, any::<u8>())
            .prop_map(|(offset, size, byte)| Step::Odd(offset, size, byte)),
        10 => (number(), 0..8_u64, any_put()).prop_map(|(number, slot, put)| Step::Put(number, slot, put)),
        3 => (number(), 0..4_u32, 0..16_u32, 0..9_u32)
            .prop_map(|(number, log2, index, ahead)| Step::Start { number, log2, index, ahead }),
        5 => (number(), 0..10_u32).prop_map(|(number, ahead)| Step::Ring(number, ahead)),
        4 => number().prop_map(Step::Acknowledge),
        10 => Just(Step::Settle),
        5 => (any::<usize>(), act()).prop_map(|(which, act)| Step::Answer(which, act)),
        1 => prop::option::of(act()).prop_map(Step::AtOnce),
        1 => Just(Step::Reset),
    ]
}
