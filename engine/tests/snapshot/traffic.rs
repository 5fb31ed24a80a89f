//! A guest that sends numbered commands on all its queues, and a model of what must become of them.

use std::collections::HashSet;
use std::sync::atomic::Ordering::{Acquire, Release};

use ecmdq_engine::rules::Request;
use ecmdq_engine::{StreamConfig, StreamId};

use crate::common::{RAM, cfgi_ste, host_page, illegal, nh_page, sync, sync_msi};
use crate::vm::{EN, ERR, QUEUES, VMID, Vm};

/// Numbers without a pattern, the same ones at each run with the same seed.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 16) % n as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    /// TLBI_NH_VAA of the page that names queue and item.
    Page,
    /// CMD_SYNC, by CONS or by an MSI to a word of its own.
    Sync {
        msi: bool,
    },
    /// CFGI_STE of the stream that names queue and item: for the VMM.
    Ste,
    Illegal,
}

const LOG2: u32 = 4;
const INDEX: u32 = (2 << LOG2) - 1;
const PROD: usize = 8;
const CONS: usize = 12;
const MSI_WORDS: u64 = 32;

#[derive(Debug, Default)]
struct Queue {
    number: usize,
    /// All that was ever sent.
    items: Vec<Item>,
    /// How many of them were consumed, as far as the guest has looked.
    done: usize,
    /// The first that the host of now may see.
    start: usize,
    /// A page of the queue's own in RAM.
    ring: u64,
}

impl Queue {
    fn page(&self, item: usize) -> u64 {
        (self.number as u64) << 32 | item as u64
    }

    fn stream(&self, item: usize) -> StreamId {
        StreamId((self.number << 12 | item & 0xfff) as u32)
    }

    fn msi(&self, item: usize) -> u64 {
        RAM + 0x8000 + 4 * (MSI_WORDS * self.number as u64 + item as u64 % MSI_WORDS)
    }

    fn slot(&self, item: usize) -> u64 {
        self.ring + 16 * (item as u64 & u64::from(INDEX >> 1))
    }

    fn put(&self, vm: &Vm, item: usize) {
        let command = match self.items[item] {
            Item::Page => nh_page(self.page(item)),
            Item::Sync { msi: false } => sync(),
            Item::Sync { msi: true } => sync_msi(self.msi(item), 0x8000_0000 | item as u32),
            Item::Ste => cfgi_ste(self.stream(item).0.into()),
            Item::Illegal => illegal(),
        };
        vm.put(self.slot(item), command);
    }

    /// Whether EN and ENACK, or CMDQEN in CR0 and CR0ACK, are these.
    fn enable_is(&self, vm: &Vm, wanted: bool, acked: bool) -> bool {
        let (enable, ack) = match self.number {
            0 => (vm.read(CR0) & CMDQEN != 0, vm.read(CR0ACK) & CMDQEN != 0),
            n => (vm.queue_read(n, PROD) & EN != 0, vm.queue_read(n, CONS) & EN != 0),
        };
        (enable, ack) == (wanted, acked)
    }

    /// Writes PROD; EN and ERRACK stay as they are.
    fn ring(&self, vm: &Vm) {
        let flags = if self.number == 0 { 0 } else { vm.queue_read(self.number, PROD) & (EN | ERR) };
        vm.queue_write(self.number, PROD, flags | self.items.len() as u32 & INDEX);
    }

    /// The code of an error that is active, if it can be acknowledged now: PROD is read-only in transition.
    fn error(&self, vm: &Vm) -> Option<u32> {
        let cons = vm.queue_read(self.number, CONS);
        match self.number {
            0 => ((vm.read(GERROR) ^ vm.read(GERRORN)) & 1 != 0).then_some(cons >> 24 & 0x7f),
            n => {
                let stopped = (cons ^ vm.queue_read(n, PROD)) & ERR != 0;
                (stopped && self.enable_is(vm, true, true)).then_some(cons >> 24 & 7)
            }
        }
    }
}

pub const CR0: usize = 0x20;
pub const CR0ACK: usize = 0x24;
pub const GBPA: usize = 0x44;
pub const IRQ_CTRL: usize = 0x50;
pub const IRQ_CTRLACK: usize = 0x54;
pub const GERROR: usize = 0x60;
pub const GERRORN: usize = 0x64;
pub const SMMUEN: u32 = 1 << 0;
pub const EVENTQEN: u32 = 1 << 2;
pub const CMDQEN: u32 = 1 << 3;
pub const UPDATE: u32 = 1 << 31;

/// The guest, and what its VMM has done.
pub struct Guest {
    queues: Vec<Queue>,
    completed: HashSet<StreamId>,
    /// How many hosts it had before this one.
    moves: usize,
}

impl Guest {
    /// A guest that sets up all its queues.
    pub fn start(vm: &Vm) -> Self {
        let queue = |number| Queue { number, ring: RAM + 0x1000 * number as u64, ..Queue::default() };
        let guest = Self { queues: (0..QUEUES).map(queue).collect(), completed: HashSet::new(), moves: 0 };
        for queue in &guest.queues {
            vm.write_base(queue.number, queue.ring | u64::from(LOG2));
            vm.queue_write(queue.number, CONS, 0);
            vm.queue_write(queue.number, PROD, if queue.number == 0 { 0 } else { EN });
        }
        vm.write(CR0, CMDQEN | SMMUEN);
        guest
    }

    /// One random thing that guest, worker, host or VMM do.
    pub fn step(&mut self, vm: &mut Vm, random: &mut Random) {
        match random.below(64) {
            0..=20 => self.send(vm, random),
            21..=36 => vm.poll(1),
            37..=42 => vm.host.finish(vm.host.finished().max(random.below(vm.host.syncs() + 1))),
            43..=46 => vm.host.set_room(if random.one_in(2) { usize::MAX } else { random.below(40) }),
            47..=51 => self.settle_request(vm, !random.one_in(4)),
            52..=58 => (0..QUEUES).for_each(|queue| self.mend(vm, queue, random)),
            59 | 60 => self.toggle_queue(vm, random),
            61 => self.enable_all(vm),
            _ => Self::write_register(vm, random),
        }
        self.look(vm);
    }

    fn send(&mut self, vm: &Vm, random: &mut Random) {
        let queue = &mut self.queues[random.below(QUEUES)];
        let settled = queue.enable_is(vm, true, true) || queue.enable_is(vm, false, false);
        for _ in 0..1 + random.below(8) {
            if !settled || queue.items.len() - queue.done == 1 << LOG2 {
                break;
            }
            queue.items.push(match random.below(16) {
                0..=8 => Item::Page,
                9..=11 => Item::Sync { msi: true },
                12 | 13 => Item::Sync { msi: false },
                14 => Item::Ste,
                _ => Item::Illegal,
            });
            queue.put(vm, queue.items.len() - 1);
        }
        if settled {
            queue.ring(vm);
        }
    }

    /// The VMM acts upon a request, or forgets it.
    fn settle_request(&mut self, vm: &Vm, complete: bool) {
        let Some((request, token)) = vm.asked.lock().unwrap().pop_front() else { return };
        if let Request::Streams(StreamConfig::One(stream)) = request
            && complete
        {
            self.completed.insert(stream);
        }
        if complete || !matches!(request, Request::Streams(_)) {
            token.complete();
        }
    }

    /// Acknowledges an error; what the SMMU called illegal becomes a CMD_SYNC, as Linux does it.
    fn mend(&mut self, vm: &Vm, queue: usize, random: &mut Random) {
        let queue = &mut self.queues[queue];
        let (at, code) = (queue.done, queue.error(vm));
        match code {
            None => {}
            Some(1) => {
                assert_eq!(queue.items[at], Item::Illegal, "CERROR_ILL at a command that is not");
                queue.items[at] = Item::Sync { msi: false };
                queue.put(vm, at);
            }
            Some(2) => assert_eq!(queue.items[at], Item::Ste, "CERROR_ABT where no token was dropped"),
            Some(code) => panic!("queue {} has error {code}", queue.number),
        }
        if queue.number == 0 || random.one_in(2) {
            vm.write(GERRORN, vm.read(GERROR));
        }
        if code.is_some() && queue.number != 0 {
            vm.queue_write(queue.number, PROD, vm.queue_read(queue.number, PROD) ^ ERR);
        }
    }

    /// Disables a queue or enables it again; what has not been consumed stays in it.
    fn toggle_queue(&mut self, vm: &Vm, random: &mut Random) {
        match &self.queues[random.below(QUEUES)] {
            queue if queue.number == 0 => vm.write(CR0, vm.read(CR0) ^ CMDQEN),
            queue if queue.enable_is(vm, true, true) || queue.enable_is(vm, false, false) => {
                vm.queue_write(queue.number, PROD, vm.queue_read(queue.number, PROD) ^ EN);
            }
            _ => {}
        }
    }

    fn enable_all(&self, vm: &Vm) {
        vm.write(CR0, vm.read(CR0) | CMDQEN);
        for queue in self.queues[1..].iter().filter(|queue| queue.enable_is(vm, false, false)) {
            vm.queue_write(queue.number, PROD, vm.queue_read(queue.number, PROD) | EN);
        }
    }

    fn write_register(vm: &Vm, random: &mut Random) {
        match random.below(4) {
            0 => vm.write(CR0, vm.read(CR0) ^ SMMUEN),
            1 => vm.write(CR0, vm.read(CR0) ^ EVENTQEN),
            2 => vm.write(IRQ_CTRL, vm.read(IRQ_CTRL) ^ 0b101),
            _ => vm.write(GBPA, UPDATE | (random.below(2) as u32) << 20),
        }
    }

    /// Looks at CONS of every queue, and at what must be true of each command that it has passed.
    fn look(&mut self, vm: &Vm) {
        for number in 0..QUEUES {
            let queue = &self.queues[number];
            let cons = vm.queue_read(number, CONS) & 0xf_ffff;
            let passed = (cons.wrapping_sub(queue.done as u32) & INDEX) as usize;
            assert!(queue.done + passed <= queue.items.len(), "queue {number}: CONS has passed PROD");
            for item in queue.done..queue.done + passed {
                self.check_passed(vm, number, item);
            }
            self.queues[number].done += passed;
        }
    }

    fn check_passed(&self, vm: &Vm, number: usize, item: usize) {
        let queue = &self.queues[number];
        match queue.items[item] {
            Item::Page => {}
            Item::Illegal => panic!("queue {number} has passed illegal command {item}"),
            Item::Ste => assert!(self.completed.contains(&queue.stream(item)), "the VMM never acted"),
            Item::Sync { msi } => {
                let executed = self.received(vm, number, vm.host.covered());
                let before = queue.items[queue.start.min(item)..item].iter();
                let due = before.filter(|item| **item == Item::Page).count();
                assert!(executed.len() >= due, "queue {number}: CMD_SYNC {item} completed too early");
                if msi {
                    let at = (queue.msi(item) - RAM) as usize;
                    assert_eq!(vm.ram.load_u32(at, Acquire), 0x8000_0000 | item as u32, "no MSI");
                    vm.ram.store_u32(at, 0, Release);
                }
            }
        }
    }

    /// The pages of a queue among the first `n` commands that the host received, in the order in which they came first. The host must have been told to invalidate
    /// everything first if it is not the first one.
    fn received(&self, vm: &Vm, number: usize, n: usize) -> Vec<u64> {
        let received = &vm.host.received()[..n];
        let (first, rest) = received.split_at(if self.moves == 0 { 0 } else { n.min(5) });
        let full = Vm::full_invalidation();
        for (at, command) in first.iter().enumerate() {
            assert!(full.contains(command) && !first[..at].contains(command), "at first {first:?}");
        }
        let low = host_page(VMID, 0).0[0];
        assert!(rest.iter().all(|command| command.0[0] == low), "only what was sent");
        let mut pages: Vec<_> = rest.iter().map(|command| command.0[1] >> 12).collect();
        pages.retain(|page| page >> 32 == number as u64);
        // What stands behind a CMD_SYNC that was forgotten comes again.
        let mut seen = HashSet::new();
        pages.retain(|page| seen.insert(*page));
        pages
    }

    /// Every command that the host got was sent, in this order, and what has been consumed the host has got, or will; none that a host
    /// before had covered came again.
    pub fn check_host(&self, vm: &Vm) {
        for queue in &self.queues {
            let received = self.received(vm, queue.number, vm.host.received().len());
            let sent = (queue.start..queue.items.len()).filter(|item| queue.items[*item] == Item::Page);
            let sent: Vec<_> = sent.map(|item| queue.page(item)).collect();
            assert!(sent.starts_with(&received), "queue {}: {received:x?} of {sent:x?}", queue.number);
        }
    }

    /// The machine that it runs on has been replaced.
    pub fn moved(&mut self) {
        self.moves += 1;
        for queue in &mut self.queues {
            queue.start = queue.done;
        }
    }

    /// Everybody does his duty until there is nothing left to do: then every command has been consumed, every handshake
    /// has ended, and no MSI came twice.
    pub fn finish(&mut self, vm: &mut Vm, random: &mut Random) {
        vm.host.set_room(usize::MAX);
        for _ in 0..400 {
            vm.poll(1);
            vm.host.finish_all();
            self.look(vm);
            self.settle_request(vm, true);
            (0..QUEUES).for_each(|queue| self.mend(vm, queue, random));
            self.enable_all(vm);
            if self.is_done(vm) {
                break;
            }
        }
        assert!(self.is_done(vm), "it does not come to rest: {:?}", vm.smmu);
        vm.poll(2);
        vm.host.finish_all();
        self.look(vm);
        for at in (0x8000..0x8000 + 4 * MSI_WORDS as usize * QUEUES).step_by(4) {
            assert_eq!(vm.ram.load_u32(at, Acquire), 0, "an MSI that nobody waits for");
        }
        self.check_host(vm);
        let left = self.queues.iter().map(|queue| {
            let pages = (queue.start..queue.done).filter(|item| queue.items[*item] == Item::Page);
            pages.count() - self.received(vm, queue.number, vm.host.received().len()).len()
        });
        assert_eq!(left.sum::<usize>(), 0, "a command never reached the host");
    }

    /// Whether every command has been consumed, and every request answered.
    fn is_done(&self, vm: &Vm) -> bool {
        let idle = |queue: &Queue| queue.done == queue.items.len() && queue.enable_is(vm, true, true);
        let answered = vm.asked.lock().unwrap().is_empty() && vm.read(GBPA) & UPDATE == 0;
        let equal = |a, b| vm.read(a) == vm.read(b);
        self.queues.iter().all(idle)
            && answered
            && equal(CR0, CR0ACK)
            && equal(GERROR, GERRORN)
            && equal(IRQ_CTRL, IRQ_CTRLACK)
    }

    /// How many commands it has sent.
    pub fn sent(&self) -> usize {
        self.queues.iter().map(|queue| queue.items.len()).sum()
    }
}

/// The seed of a test: `ECMDQ_SEED`, or a fixed one. It is printed when the test fails.
pub fn seed() -> u64 {
    let seed: u64 =
        std::env::var("ECMDQ_SEED").map_or(0x5eed, |seed| seed.parse().expect("ECMDQ_SEED is a number"));
    println!("ECMDQ_SEED={seed}");
    // Numbers from a few bits set are alike at first.
    (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
