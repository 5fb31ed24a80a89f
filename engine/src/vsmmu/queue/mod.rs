//! A guest's command queue: its registers, whether it is enabled, how far it has been taken, whether it is stopped.
//!
//! Entries between CONS and [`Ring::taken`] are on their way: with the host, or behind a CMD_SYNC that the host has not completed.
//! The guest leaves their slots alone, so that they can be taken again whenever what is on its way has to be forgotten.

mod blame;
mod order;

use std::sync::atomic::Ordering::{self, Acquire, Relaxed};

use ecmdq_ring::handshake::{Handshake, Step};
use ecmdq_ring::{Consumer, Entry, Inconsistent, Index, QueueSize, QueueWords, SharedQueue, SharedWord};
use vm_memory::GuestAddress;

use crate::command::CommandError;
use crate::features::Features;
use crate::memory::GuestRam;
use crate::registers::{BASE_ADDR, BASE_LOG2SIZE, CONS_ERR_SHIFT, GERROR_CMDQ_ERR, RegisterWords};
use blame::History;
use order::Order;

/// A bit that reads as zero in CMDQ_CONS and ECMDQ_CONS. Where CONS is read by traps only, it says, under the surface, that
/// the MSI of the CMD_SYNC that CONS has just passed is on its way: the trap waits until it has been written.
pub(super) const MSI_ON_ITS_WAY: u32 = 1 << 22;

/// Where the registers of a queue are.
#[derive(Clone, Debug)]
pub(super) struct QueueRegisters {
    pub words: RegisterWords,
    pub base: usize,
    pub prod: usize,
    pub cons: usize,
}

/// What enables, disables and stops a queue.
#[derive(Debug)]
pub(super) enum Control {
    /// CR0.CMDQEN, GERROR and GERRORN; the code of CONS.ERR, 0 while no command error is active.
    Cmdq { code: u32 },
    /// Its own PROD and CONS.
    Ecmdq(Handshake),
}

/// A command queue, enabled or not.
#[derive(Debug)]
pub(super) struct GuestQueue {
    pub registers: QueueRegisters,
    pub control: Control,
    /// `None` while it is disabled.
    pub ring: Option<Ring>,
    /// What the host may still be to synchronise of what was under way when the queue was disabled.
    pub(super) order: Order,
    /// It was being served when something panicked: nothing is taken from it until a reset.
    pub quarantined: bool,
}

/// The ring of an enabled queue.
#[derive(Debug)]
pub(super) struct Ring {
    base: GuestAddress,
    consumer: Consumer<RingWords>,
    /// CMD_SYNCs under way. CONS points at the oldest.
    pub syncs: u32,
    /// What comes next must wait until CONS has reached it: an error, or a command for the VMM.
    pub held: bool,
    /// The VMM acts upon the command at CONS.
    pub waits_for_vmm: bool,
    pub inconsistent: bool,
    pub order: Order,
    pub history: History,
}

/// Where a ring's words are; the slots may not be, or not wholly, guest memory.
#[derive(Debug)]
struct RingWords {
    slots: Option<SharedQueue>,
    registers: QueueRegisters,
}

impl QueueWords for RingWords {
    fn load_prod(&self, order: Ordering) -> u32 {
        self.registers.words.load_u32(self.registers.prod, order)
    }

    fn store_prod(&self, word: u32, order: Ordering) {
        self.registers.words.store_u32(self.registers.prod, word, order);
    }

    fn load_cons(&self, order: Ordering) -> u32 {
        self.registers.words.load_u32(self.registers.cons, order)
    }

    #[inline]
    fn store_cons(&self, word: u32, order: Ordering) {
        match &self.slots {
            Some(queue) => queue.store_cons(word, order),
            None => self.registers.words.store_u32(self.registers.cons, word, order),
        }
    }

    fn load_entry(&self, slot: u32) -> Entry {
        self.slots.as_ref().map_or([0; 2], |queue| queue.load_entry(slot))
    }

    fn store_entry(&self, slot: u32, entry: Entry) {
        if let Some(queue) = &self.slots {
            queue.store_entry(slot, entry);
        }
    }

    #[inline]
    fn load_entries(&self, slot: u32, to: &mut [Entry]) {
        if let Some(queue) = &self.slots {
            queue.load_entries(slot, to);
        }
    }
}

impl QueueRegisters {
    /// The PROD register, for a worker that looks at it often.
    pub fn doorbell(&self) -> Option<SharedWord> {
        SharedWord::new(self.words.memory().clone(), self.prod)
    }
}

impl GuestQueue {
    /// A queue whose registers are there, disabled.
    pub fn new(registers: QueueRegisters, control: Control) -> Self {
        Self { registers, control, ring: None, order: Order::default(), quarantined: false }
    }

    /// The bits of CONS above the index.
    pub fn flags(&self) -> u32 {
        match &self.control {
            Control::Cmdq { code } => code << CONS_ERR_SHIFT,
            Control::Ecmdq(handshake) => handshake.flags(),
        }
    }

    /// Whether an error keeps it from taking commands. `active` are the active bits of GERROR.
    pub fn is_stopped(&self, active: u32) -> bool {
        match &self.control {
            Control::Cmdq { .. } => active & GERROR_CMDQ_ERR != 0,
            Control::Ecmdq(handshake) => handshake.is_stopped(),
        }
    }

    /// Whether it is disabled, and its own registers cannot enable it.
    pub fn is_off(&self) -> bool {
        self.ring.is_none() && matches!(self.control, Control::Cmdq { .. })
    }

    /// The PROD register.
    #[inline]
    pub fn prod(&self) -> u32 {
        // Acquire: pairs with the guest's barrier before its doorbell, so that the entries below PROD, and BASE when the
        // doorbell sets EN, are seen.
        self.registers.words.load_u32(self.registers.prod, Acquire)
    }

    /// Enables the queue that BASE and CONS describe: they are inputs at this moment only.
    pub fn enable(&mut self, features: &Features, ram: &dyn GuestRam) {
        // Relaxed: ordered by the acquire load of what enabled it.
        let base = self.registers.words.load_u64(self.registers.base, Relaxed);
        let cons = self.registers.words.load_u32(self.registers.cons, Relaxed);
        if let Control::Ecmdq(handshake) = &mut self.control {
            handshake.enable(cons);
        }
        let mut ring = Ring::new(base, cons, features, self.registers.clone());
        ring.find_memory(ram);
        ring.order = std::mem::take(&mut self.order);
        self.ring = Some(ring);
        // The bits of CONS that the index does not have read as zero; an error that is active keeps its code.
        self.publish();
    }

    /// Disables the queue: nothing more is taken, and what is on its way is forgotten. CONS points at it still.
    pub fn disable(&mut self) {
        self.publish();
        self.order = self.ring.take().map(|ring| ring.order).unwrap_or_default();
    }

    /// What an ECMDQ's PROD asks for besides commands.
    #[inline]
    pub fn follow(&mut self, prod: u32) -> Step {
        match &mut self.control {
            Control::Cmdq { .. } => Step::Nothing,
            Control::Ecmdq(handshake) => handshake.follow(prod),
        }
    }

    /// Stops the queue at the command at CONS. ERR and RD are visible before whatever tells of them.
    pub fn stop(&mut self, error: CommandError) {
        match &mut self.control {
            Control::Cmdq { code } => *code = error as u32,
            Control::Ecmdq(handshake) => handshake.fail(error as u8),
        }
        self.publish();
    }

    /// An error was acknowledged: the memory, and the command at CONS, are looked at again.
    pub fn resume(&mut self, ram: &dyn GuestRam) {
        if let Control::Cmdq { code } = &mut self.control {
            *code = 0;
        }
        self.find_memory(ram);
    }

    /// Looks for the ring's memory in the memory map as it is now.
    pub fn find_memory(&mut self, ram: &dyn GuestRam) {
        if let Some(ring) = &mut self.ring {
            ring.find_memory(ram);
        }
        self.publish();
    }

    /// Publishes CONS if the queue is enabled.
    pub fn publish(&mut self) {
        self.publish_with(0);
    }

    /// The same with further flags.
    pub fn publish_with(&mut self, more: u32) {
        let flags = self.flags() | more;
        if let Some(ring) = &mut self.ring {
            ring.consumer.publish_flags(flags);
        }
    }

    /// What was taken and is not consumed will be taken again.
    pub fn forget(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.consumer.forget();
            ring.order = if ring.syncs > 0 { Order::UNKNOWN } else { Order::default() };
            (ring.syncs, ring.held) = (0, false);
        }
    }
}

impl Ring {
    /// The ring that the BASE and CONS registers describe. ADDR is aligned down to the size of the ring, and
    /// LOG2SIZE is capped (IHI 0070 §6.3.26).
    pub fn new(base: u64, cons: u32, features: &Features, registers: QueueRegisters) -> Self {
        let size = size(base, features);
        let words = RingWords { slots: None, registers };
        Self {
            base: address(base, size, features),
            consumer: Consumer::new(words, size, size.index(cons)),
            syncs: 0,
            held: false,
            waits_for_vmm: false,
            inconsistent: false,
            order: Order::default(),
            history: History::default(),
        }
    }

    fn find_memory(&mut self, ram: &dyn GuestRam) {
        let size = self.consumer.size();
        let registers = self.consumer.words().registers.clone();
        let slots = ram.region(self.base, size.bytes()).and_then(|ring| {
            let memory = registers.words.memory().clone();
            SharedQueue::new(ring, 0, size, memory, registers.prod, registers.cons)
        });
        self.consumer.replace_words(RingWords { slots, registers });
    }

    /// The BASE register that describes this ring, with what really counts of it.
    pub fn base(&self) -> u64 {
        self.base.0 | u64::from(self.consumer.size().log2())
    }

    /// The next command to be consumed.
    pub fn cons(&self) -> Index {
        self.consumer.cons()
    }

    /// The next command to be taken.
    #[inline]
    pub fn taken(&self) -> Index {
        self.consumer.taken()
    }

    /// The command that was taken last.
    #[inline]
    pub fn last_taken(&self) -> Index {
        self.consumer.size().advance(self.consumer.taken(), u32::MAX)
    }

    /// Whether its memory has been found.
    #[inline]
    pub fn is_backed(&self) -> bool {
        self.consumer.words().slots.is_some()
    }

    /// The number of commands between CONS and a PROD word, or `None` if the two contradict each other.
    pub fn used(&self, prod: u32) -> Option<u32> {
        let size = self.consumer.size();
        size.used(size.index(prod), self.cons()).ok()
    }

    /// How many commands there are to be taken up to a PROD word.
    ///
    /// # Errors
    ///
    /// [`Inconsistent`] if PROD contradicts CONS, or what has been taken.
    #[inline]
    pub fn available(&self, prod: u32) -> Result<u32, Inconsistent> {
        self.consumer.available(prod)
    }

    /// Copies the next commands; no more than there are.
    #[inline]
    pub fn fetch(&self, to: &mut [Entry]) {
        self.consumer.copy(to);
    }

    /// Passes commands that were fetched; CONS follows unless a CMD_SYNC is under way.
    #[inline]
    pub fn take(&mut self, n: usize) {
        self.consumer.take(n);
    }

    /// CONS moves to a command that was taken, or behind the last; says how many commands it passes.
    #[inline]
    pub fn consume_to(&mut self, next: Index) -> usize {
        let passed = self.consumer.size().distance(next, self.consumer.cons());
        if passed > 0 {
            self.consumer.consume_to(next);
        }
        passed as usize
    }

    /// The position behind a command.
    #[inline]
    pub fn behind(&self, at: Index) -> Index {
        self.consumer.size().advance(at, 1)
    }
}

fn size(base: u64, features: &Features) -> QueueSize {
    QueueSize::capped((base & BASE_LOG2SIZE) as u32, features.queue_cap())
}

fn address(base: u64, size: QueueSize, features: &Features) -> GuestAddress {
    let alignment = size.bytes().max(32) as u64;
    GuestAddress(base & BASE_ADDR & features.address_mask() & !(alignment - 1))
}

/// What really counts of a BASE register.
pub(super) fn effective_base(base: u64, features: &Features) -> u64 {
    let size = size(base, features);
    address(base, size, features).0 | u64::from(size.log2())
}

/// The CONS register of a queue that BASE describes, without the bits that its index does not have.
pub(super) fn effective_cons(base: u64, cons: u32, features: &Features) -> u32 {
    size(base, features).index(cons).raw()
}
