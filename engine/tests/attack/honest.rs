//! A vCPU whose queues keep to the architecture, and expect as much.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};
use std::thread;
use std::time::Duration;

use ecmdq_engine::{Command, Opcode};

use crate::guest::{Guest, MSIS, Machine, RAM, RING_SIZE};
use crate::judge::{Canaries, Tx};
use crate::random::Random;
use crate::world::{Actor, World, count};

pub const CR0: usize = 0x20;
const CR0ACK: usize = 0x24;
pub const GERROR: usize = 0x60;
pub const GERRORN: usize = 0x64;
const SMMUEN: u32 = 1 << 0;
const CMDQEN: u32 = 1 << 3;
const CMDQ_ERR: u32 = 1 << 0;
const CMDQP_ERR: u32 = 1 << 9;
pub const PROD: usize = 8;
pub const CONS: usize = 12;
pub const EN: u32 = 1 << 31;
pub const ERR: u32 = 1 << 23;
const INDEX: u32 = 0xf_ffff;

/// How far a queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its registers are to be written, once it is disabled.
    Off,
    Starting,
    On,
}

struct Queue {
    number: usize,
    stage: Stage,
    log2: u32,
    /// Positions: PROD and CONS with all bits that they would have in a ring without end.
    sent: u64,
    consumed: u64,
    errack: u32,
    next: u64,
    waiting: VecDeque<Tx>,
    /// Until when all that was widened has come to pass, as far as it knows.
    clean: Option<u64>,
    /// The commands that were sent, by slot.
    ring: Vec<Command>,
}

/// What is wrong.
type Verdict = Result<(), String>;

pub fn run(world: &Arc<World>, guest: &Arc<Guest>, actor: &Actor) {
    let mut random = actor.random();
    let mut queues: Vec<_> = guest.plan.honest.iter().map(|number| Queue::new(*number)).collect();
    let (mut canaries, mut resets) = (Canaries::new(guest), u64::MAX);
    while !world.is_over() {
        let machine = guest.machine.read();
        let now = guest.resets.load(SeqCst);
        if now != resets {
            // Whatever was there before the reset is of no more concern.
            queues.iter_mut().for_each(|queue| queue.forget(world, guest));
            resets = now;
        }
        if now.is_multiple_of(2) {
            let ready = registers(&machine, &queues);
            for queue in &mut queues {
                let verdict = queue.step(world, guest, &machine, &mut random, actor, ready);
                let canary = canaries.look(world, guest, queue.clean);
                let wrong = verdict.err().or(canary);
                // What was seen during a reset proves nothing.
                if let Some(wrong) = wrong.filter(|_| guest.resets.load(SeqCst) == resets) {
                    let n = (guest.number, queue.number);
                    world.found(format!("guest and queue {n:?}: {wrong}; {:?}", machine.smmu));
                }
            }
        }
        drop(machine);
        let waiting: usize = queues.iter().map(|queue| queue.waiting.len()).sum();
        guest.waiting.store(waiting as u64, SeqCst);
        actor.beat();
        match random.below(8) {
            0 => thread::sleep(Duration::from_micros(random.below(300) as u64)),
            _ => thread::yield_now(),
        }
    }
    guest.waiting.store(0, SeqCst);
}

/// Keeps CR0 and the errors that are nobody's own as they should be; whether the SMMU is enabled.
fn registers(machine: &Machine, queues: &[Queue]) -> bool {
    let cmdq = queues.iter().any(|queue| queue.number == 0 && queue.stage != Stage::Off);
    let wanted = SMMUEN | if cmdq { CMDQEN } else { 0 };
    if machine.load(CR0) != wanted {
        machine.store(CR0, wanted);
    }
    let (gerror, gerrorn) = (machine.load(GERROR), machine.load(GERRORN));
    if (gerror ^ gerrorn) & !CMDQ_ERR != 0 {
        machine.store(GERRORN, gerror & !CMDQ_ERR | gerrorn & CMDQ_ERR);
    }
    machine.load(CR0ACK) == wanted
}

impl Queue {
    fn new(number: usize) -> Self {
        Self {
            number,
            stage: Stage::Off,
            log2: 0,
            sent: 0,
            consumed: 0,
            errack: 0,
            next: 0,
            waiting: VecDeque::new(),
            clean: None,
            ring: Vec::new(),
        }
    }

    fn forget(&mut self, world: &World, guest: &Guest) {
        for tx in self.waiting.drain(..) {
            count(&world.counts.abandoned);
            tx.clean(world);
        }
        guest.since[self.number].store(0, SeqCst);
        self.stage = Stage::Off;
    }

    fn mask(&self) -> u32 {
        (2 << self.log2) - 1
    }

    fn ring_at(&self) -> u64 {
        self.number as u64 * RING_SIZE
    }

    fn step(
        &mut self,
        world: &World,
        guest: &Guest,
        machine: &Machine,
        random: &mut Random,
        actor: &Actor,
        ready: bool,
    ) -> Verdict {
        match self.stage {
            Stage::Off => self.describe(machine, random),
            Stage::Starting => {
                let started = match self.number {
                    0 => machine.load(CR0ACK) & CMDQEN != 0,
                    _ => machine.load(machine.at(self.number, CONS)) & EN != 0,
                };
                if started {
                    self.stage = Stage::On;
                }
            }
            Stage::On => {
                self.look(world, guest, machine, actor)?;
                if ready && world.is_attack() && self.waiting.len() < 3 && random.one_in(3) {
                    self.send(world, guest, machine, random);
                }
            }
        }
        let since = self.waiting.front().map_or(0, |tx| tx.since);
        guest.since[self.number].store(since, SeqCst);
        Ok(())
    }

    /// Describes a queue that is empty, and enables it, once it is disabled.
    fn describe(&mut self, machine: &Machine, random: &mut Random) {
        let (prod, cons) = (machine.at(self.number, PROD), machine.at(self.number, CONS));
        if self.number == 0 {
            if (machine.load(CR0) | machine.load(CR0ACK)) & CMDQEN != 0 {
                return;
            }
            let gerrorn = machine.load(GERRORN);
            if (machine.load(GERROR) ^ gerrorn) & CMDQ_ERR != 0 {
                machine.store(GERRORN, gerrorn ^ CMDQ_ERR);
                return;
            }
        } else {
            let (now, ack) = (machine.load(prod) & EN, machine.load(cons) & EN);
            if now != ack {
                return;
            }
            if now != 0 {
                machine.store(prod, machine.load(prod) & !EN);
                return;
            }
        }
        self.log2 = 3 + random.below(4) as u32;
        let start = random.next() as u32 & self.mask();
        (self.sent, self.consumed, self.errack) = (start.into(), start.into(), 0);
        self.ring = vec![Command::default(); 1 << self.log2];
        machine.store_u64(machine.at(self.number, 0), (RAM + self.ring_at()) | u64::from(self.log2));
        machine.store(cons, start);
        machine.store(prod, start | if self.number == 0 { 0 } else { EN });
        self.stage = Stage::Starting;
    }

    fn send(&mut self, world: &World, guest: &Guest, machine: &Machine, random: &mut Random) {
        let room = (1 << self.log2) - (self.sent - self.consumed);
        if room < 8 {
            return;
        }
        let mut tx = Tx::new(world, guest, (self.number, self.next), self.clean, random);
        self.next += 1;
        for command in &tx.commands {
            self.put(guest, self.sent, *command);
            self.sent += 1;
        }
        tx.end = self.sent;
        self.waiting.push_back(tx);
        self.ring_doorbell(machine);
    }

    fn slot(&self, position: u64) -> usize {
        position as usize & ((1 << self.log2) - 1)
    }

    fn put(&mut self, guest: &Guest, position: u64, command: Command) {
        let slot = self.slot(position);
        let at = self.ring_at() as usize + 16 * slot;
        guest.ram.store_u64(at, command.0[0], Release);
        guest.ram.store_u64(at + 8, command.0[1], Release);
        self.ring[slot] = command;
    }

    fn ring_doorbell(&self, machine: &Machine) {
        let flags = if self.number == 0 { 0 } else { EN | self.errack };
        machine.store(machine.at(self.number, PROD), self.sent as u32 & self.mask() | flags);
    }

    /// What has come to pass.
    fn look(&mut self, world: &World, guest: &Guest, machine: &Machine, actor: &Actor) -> Verdict {
        let msi = guest.ram.load_u32(MSIS as usize + 64 * self.number, Acquire);
        // GERROR before CONS, which is stored before it.
        let stopped = self.number == 0 && (machine.load(GERROR) ^ machine.load(GERRORN)) & CMDQ_ERR != 0;
        let cons = machine.load(machine.at(self.number, CONS));
        let stopped = stopped || self.number != 0 && (cons ^ self.errack) & ERR != 0;
        if cons & INDEX & !self.mask() != 0 {
            return Err(format!("CONS is {cons:#x} in a queue of 2^{}", self.log2));
        }
        let more = (cons & INDEX).wrapping_sub(self.consumed as u32) & self.mask();
        self.consumed += u64::from(more);
        if self.consumed > self.sent {
            return Err(format!("CONS is {cons:#x}, beyond what was sent, {:#x}", self.sent));
        }
        if let Some(tx) = self.waiting.front()
            && tx.msi == Some(msi)
            && self.consumed < tx.end
        {
            return Err(format!("the MSI {msi:#x} came before CONS, {cons:#x}"));
        }
        while let Some(tx) = self.waiting.pop_front_if(|tx| tx.end <= self.consumed) {
            if tx.msi.is_some_and(|data| data != msi) && tx.end == self.consumed {
                // It comes behind CONS.
                self.waiting.push_front(tx);
                break;
            }
            let wrong = tx.judge(world, guest, &mut self.clean);
            tx.clean(world);
            if let Some(wrong) = wrong {
                actor.note(format!("queue {}, {}: {:x?}", self.number, tx.number, tx.commands));
                return Err(wrong);
            }
        }
        if stopped { self.mend(world, guest, machine, actor, cons) } else { Ok(()) }
    }

    /// An error: it must have a reason. Acknowledges it.
    fn mend(&mut self, world: &World, guest: &Guest, machine: &Machine, actor: &Actor, cons: u32) -> Verdict {
        let code = cons >> 24 & if self.number == 0 { 0x7f } else { 7 };
        let command = self.ring[self.slot(self.consumed)];
        let at = |tx: &&mut Tx| self.consumed < tx.end;
        let Some(tx) = self.waiting.iter_mut().find(at) else {
            return Err(format!("error {code} at {cons:#x}, where nothing was sent"));
        };
        actor.note(format!("queue {}, {}: error {code} at {command}", self.number, tx.number));
        match command.opcode() {
            Opcode::CMD_SYNC => {
                let blame = tx.blame(world, guest, code);
                blame.map_err(|why| format!("{why}: {code} at the CMD_SYNC of {:x?}", tx.commands))?;
            }
            // The VMM has refused it, or forgotten.
            Opcode::CFGI_STE if code == 1 => {
                let position = self.consumed;
                self.put(guest, position, Command([0x46, 0]));
            }
            Opcode::CFGI_STE if code == 2 => {}
            _ => return Err(format!("error {code} at {command}, of {:x?}", tx.commands)),
        }
        if self.number == 0 {
            machine.store(GERRORN, machine.load(GERRORN) ^ CMDQ_ERR);
        } else {
            let gerrorn = machine.load(GERRORN);
            if (machine.load(GERROR) ^ gerrorn) & CMDQP_ERR != 0 {
                machine.store(GERRORN, gerrorn ^ CMDQP_ERR);
            }
            self.errack ^= ERR;
            self.ring_doorbell(machine);
        }
        Ok(())
    }
}
