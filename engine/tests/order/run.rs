//! A guest whose CPUs change tables and invalidate, devices that access whenever they can, and a look at what is left.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use ecmdq_engine::Command;

use crate::caches::Caches;
use crate::claims::Claim;
use crate::common::Random;
use crate::cpu::Cpu;
use crate::host::Host;
use crate::tables::CPUS;

/// A CMDQ and two ECMDQs, each with two CPUs.
pub const QUEUES: usize = 3;
/// Their entries.
pub const ROOM: usize = 256;

/// What carries commands from the guest's queues to the host.
pub trait Driver {
    /// The guest adds commands to a queue that has room, and rings once.
    fn send(&mut self, queue: usize, commands: &[Command]);
    fn poll(&mut self);
    /// How many commands of a queue CONS has passed since the beginning.
    fn passed(&mut self, queue: usize) -> u64;
}

/// What came of it.
pub struct Outcome {
    /// The first entry that should not have been there, and after how many commands.
    pub stale: Option<(String, u64)>,
    pub claims: u64,
    pub filled: u64,
}

struct Run<D> {
    driver: D,
    caches: Rc<RefCell<Caches>>,
    host: Host,
    cpus: Vec<Cpu>,
    queues: [Sent; QUEUES],
    random: Random,
}

#[derive(Default)]
struct Sent {
    sent: u64,
    passed: u64,
    /// The last CMD_SYNCs of sequences: the position behind, and what is true when CONS is there.
    promises: VecDeque<(u64, Vec<Claim>)>,
}

/// Has a guest send so many commands, unless something stale is found before.
pub fn run<D: Driver>(
    what: &str,
    seed: u64,
    commands: u64,
    driver: impl FnOnce(Host, Random) -> D,
) -> Outcome {
    let mut random = Random::new(seed);
    let caches = Rc::new(RefCell::new(Caches::new(random.fork())));
    let host = Host::new(caches.clone(), random.fork());
    let cpus = (0..CPUS).map(|number| Cpu::new(number, random.fork())).collect();
    let driver = driver(host.clone(), random.fork());
    let mut run = Run { driver, caches, host, cpus, queues: Default::default(), random };
    let start = Instant::now();
    let stale = run.until(commands);
    let seconds = start.elapsed().as_secs_f64();
    let (passed, (filled, claims)) = (run.passed(), run.caches.borrow().counts());
    println!(
        "{what}: {passed} commands, {} of them a second; {} synchronisations of the host, {filled} entries filled, {claims} claims; {}",
        (passed as f64 / seconds) as u64,
        run.host.syncs(),
        stale.as_deref().unwrap_or("nothing stale"),
    );
    Outcome { stale: stale.map(|stale| (stale, passed)), claims, filled }
}

impl<D: Driver> Run<D> {
    fn passed(&self) -> u64 {
        self.queues.iter().map(|queue| queue.passed).sum()
    }

    /// Returns what is stale.
    fn until(&mut self, commands: u64) -> Option<String> {
        let (mut standing, mut last) = (0, 0);
        while last < commands {
            match self.random.below(16) {
                0 | 1 => self.send(),
                2..=7 => self.driver.poll(),
                8..=13 => self.host.work(self.random.below(12)),
                14 => self.caches.borrow_mut().disturb(),
                _ if self.random.one_in(20) => self.host.change_mood(),
                _ => {}
            }
            self.look();
            if let Some(stale) = self.caches.borrow().stale() {
                return Some(stale.into());
            }
            let passed = self.passed();
            standing = if passed > last { 0 } else { standing + 1 };
            assert!(standing < 1_000_000, "it does not get on");
            last = passed;
        }
        None
    }

    /// The CPUs of a queue change something, and add what follows from that, and from changes before, in any mixture.
    fn send(&mut self) {
        let number = self.random.below(QUEUES);
        let mut room = ROOM - (self.queues[number].sent - self.queues[number].passed) as usize;
        room = room.min(self.random.of(&[4, 30, ROOM]));
        let mut commands = Vec::new();
        while commands.len() < room {
            let cpu = &mut self.cpus[number + QUEUES * self.random.below(CPUS / QUEUES)];
            if cpu.backlog.is_empty() {
                cpu.write(&mut self.caches.borrow_mut().tables);
            }
            for _ in 0..self.random.of(&[1, 3, 100]).min(room - commands.len()) {
                let Some((command, claims)) = cpu.backlog.pop_front() else { break };
                commands.push(command);
                if !claims.is_empty() {
                    let queue = &mut self.queues[number];
                    queue.promises.push_back((queue.sent + commands.len() as u64, claims));
                }
            }
        }
        if !commands.is_empty() {
            self.queues[number].sent += commands.len() as u64;
            self.driver.send(number, &commands);
        }
    }

    /// The guest looks at CONS: what it finds complete is a promise.
    fn look(&mut self) {
        for (number, queue) in self.queues.iter_mut().enumerate() {
            queue.passed = self.driver.passed(number);
            while let Some((position, claims)) = queue.promises.front()
                && *position <= queue.passed
            {
                claims.iter().for_each(|claim| self.caches.borrow_mut().promise(*claim));
                queue.promises.pop_front();
            }
        }
    }
}
