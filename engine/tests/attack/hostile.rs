//! Queues and guests that misbehave.

use std::sync::Arc;
use std::sync::atomic::Ordering::Release;
use std::thread;
use std::time::Duration;

use crate::guest::{FRAME, Guest, HOLE, Machine, RAM, READ_ONLY, RING_SIZE};
use crate::honest::{CONS, CR0, EN, ERR, GERROR, GERRORN, PROD};
use crate::random::Random;
use crate::world::{Actor, World};

/// First words that are legal with some second word, and a few that never are.
const LOW: [u64; 16] = [
    0x10,
    0x11,
    0x5b_0000_0011,
    0x12,
    0x7_0000_0013,
    0x13,
    0x30,
    0x1_0000_0005,
    0x1_0000_f005,
    0x1_0000_0006,
    0x1_0000_0040,
    0x43_0000_0005,
    0x1_0000_0003,
    0x46,
    0x50,
    0x5b_0100_0113,
];
const HIGH: [u64; 10] = [0, 0, 0, 0, 0, 0x1000, 0x1501, 0x34, 0x35, 0x80];

/// What harms nobody: names that no honest queue has, and what no SMMU takes.
pub const OWN: [[u64; 2]; 9] = [
    [0xf001 << 48 | 0x11, 0],
    [0xf002 << 48 | 0x12, 0xbad << 52 | 1],
    [0x13, 0xbad << 52 | 1],
    [1 << 32 | 0xe_0000 << 12 | 0x05, 1],
    [0x46, 0],
    [0x46, 0],
    [0x46 | 1 << 12, READ_ONLY],
    [0xff, 0],
    [0x13 | 1 << 11, 0],
];

pub fn run(world: &Arc<World>, guest: &Arc<Guest>, actor: &Actor) {
    let mut random = actor.random();
    let wholly = guest.plan.honest.is_empty();
    if wholly {
        // So that its memory is not all the same.
        actor.note("a guest without an honest queue".into());
    }
    while !world.is_over() {
        if world.is_attack() {
            let machine = guest.machine.read();
            for _ in 0..1 + random.below(16) {
                let queue = random.of(&guest.plan.hostile);
                if wholly && random.one_in(4) {
                    registers(&machine, &mut random);
                } else {
                    misbehave(guest, &machine, queue, &mut random);
                }
            }
        }
        actor.beat();
        thread::sleep(Duration::from_micros(random.below(500) as u64));
    }
}

/// Registers of pages 0 and 1: those that mean something, and any other.
fn registers(machine: &Machine, random: &mut Random) {
    match random.below(6) {
        0 => machine.store(GERRORN, machine.load(GERROR)),
        1 => machine.store(CR0, random.below(16) as u32),
        2 => machine.store(CR0, 1 | 1 << 3),
        // CR0ACK, GERROR, CMDQ_CONS, GBPA, IRQ_CTRL and GERROR_IRQ_CFG: outputs, some of them.
        3 => {
            let at = random.of(&[0x24, 0x60, 0x9c, 0x44, 0x50, 0x54, 0x70]);
            machine.store(at, random.next() as u32);
        }
        4 => {
            let at = random.of(&[0x68, 0x80, 0x90]);
            machine.store_u64(at, (RAM + random.below(0x4_0000) as u64) & !7);
        }
        _ => machine.store(4 * random.below(FRAME / 4), random.next() as u32),
    }
}

/// One thing that a queue should not do, or should.
fn misbehave(guest: &Guest, machine: &Machine, queue: usize, random: &mut Random) {
    let (base, prod, cons) = (machine.at(queue, 0), machine.at(queue, PROD), machine.at(queue, CONS));
    let now = machine.load(prod);
    let flags = if queue == 0 { 0 } else { now & (EN | ERR) };
    let ring = queue as u64 * RING_SIZE;
    match random.below(12) {
        // Entries, of which some have been taken and some are being taken.
        0..=3 => {
            for _ in 0..8 {
                let at = (ring + 16 * random.below(64) as u64) as usize;
                let [low, high] = if guest.plan.wild {
                    let bit = if random.one_in(8) { 1 << random.below(64) } else { 0 };
                    let anything = [random.of(&LOW) ^ bit, random.of(&HIGH)];
                    if random.one_in(4) { random.of(&OWN) } else { anything }
                } else {
                    random.of(&OWN)
                };
                guest.ram.store_u64(at, low, Release);
                guest.ram.store_u64(at + 8, high, Release);
            }
        }
        4..=6 => machine.store(prod, flags | now.wrapping_add(random.below(20) as u32) & 0x7f),
        // What contradicts CONS, or is beyond the size.
        7 => machine.store(prod, flags | random.next() as u32 & 0xf_ffff),
        8 if queue != 0 => machine.store(prod, now ^ random.of(&[EN, ERR])),
        8 => machine.store(GERRORN, machine.load(GERRORN) ^ 1),
        // Acknowledges, as it should.
        9 if queue != 0 => machine.store(prod, now & !ERR | machine.load(cons) & ERR),
        // An output while the queue is enabled.
        9 | 10 if queue != 0 && random.one_in(2) => machine.store(cons, random.next() as u32),
        _ => {
            // Inside RAM, at its end, beyond, or where memory comes and goes.
            let log2 = random.of(&[3, 5, 6, 9, 20, 31]);
            let places =
                [RAM + ring, RAM + ring, HOLE, HOLE, RAM + 0x4_0000 - 0x100, 0x10_0000, u64::MAX << 12];
            machine.store_u64(base, random.of(&places) & !0x1f | log2);
        }
    }
}
