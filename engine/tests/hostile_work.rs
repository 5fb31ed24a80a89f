//! Work that invalidates nothing takes the guest's share of the worker like any other: errors, handshakes, fetches in vain.
//!
//! What is counted here is what the worker does in a sweep; how long that takes is measured by `cargo bench --bench path hostile`.

mod common;

use common::*;
use ecmdq_engine::{Command, RateLimit, Share, Worker};

/// Units of a guest in a sweep, and what an error and a handshake cost.
const QUANTUM: u64 = 512;
const ERROR: u64 = 64;
const HANDSHAKE: u64 = 16;

/// A guest with 256 ECMDQs, and a quiet neighbour, which has the CMDQ.
struct Yard {
    worker: Worker<Script>,
    bad: Guest,
    queues: Vec<Ecmdq>,
    neighbour: Guest,
}

impl Yard {
    fn new(share: Share) -> Self {
        let mut worker = Worker::new(Script::at_once());
        let setup = Setup { vmid: 1, ..Setup::with(|f| *f = f.with_ecmdqs(4, 4)) };
        let (bad, smmu) = Guest::new(setup);
        worker.attach_sharing(smmu, None, share).unwrap();
        let (mut neighbour, smmu) = Guest::new(Setup { vmid: 2, host_stream: 2, ..Setup::default() });
        worker.attach(smmu).unwrap();
        neighbour.start(4);
        let queues = (0..256).map(|number| bad.ecmdq(number)).collect();
        (0..100).for_each(|_| _ = worker.poll());
        Self { worker, bad, queues, neighbour }
    }

    fn start_all(&mut self) {
        self.queues.iter_mut().for_each(|queue| queue.start(4));
        (0..20).for_each(|_| _ = self.worker.poll());
        assert!(self.queues.iter().all(Ecmdq::enabled));
    }

    /// So often the guest does this between two sweeps: the most that was counted in a sweep.
    fn most(&mut self, act: impl Fn(&mut Ecmdq), count: impl Fn(&Self) -> u64) -> u64 {
        let mut most = 0;
        for _ in 0..200 {
            self.queues.iter_mut().for_each(&act);
            let before = count(self);
            self.worker.poll();
            most = most.max(count(self) - before);
        }
        most
    }

    /// How many sweeps a neighbour that was quiet waits for its TLBI and CMD_SYNC, while this goes on: the most of some.
    fn neighbour_waits(&mut self, act: impl Fn(&mut Ecmdq)) -> usize {
        let mut most = 0;
        for _ in 0..20 {
            // Long enough to be quiet.
            for _ in 0..100 {
                self.queues.iter_mut().for_each(&act);
                self.worker.poll();
            }
            self.neighbour.send(&[nh_asid(1), sync()]);
            let waits = (1..1000).find(|_| {
                self.queues.iter_mut().for_each(&act);
                self.worker.poll();
                self.neighbour.cons() == self.neighbour.prod()
            });
            most = most.max(waits.expect("it is served"));
        }
        most
    }
}

/// Illegal commands that fill a batch, again as soon as the error is told.
fn errs(queue: &mut Ecmdq) {
    if queue.error().is_some() {
        queue.ack();
    }
}

fn fill_with_illegal(queue: &mut Ecmdq) {
    queue.send(&[illegal(); 16]);
}

#[test]
fn errors_take_a_share_of_the_worker() {
    let mut yard = Yard::new(Share::default());
    yard.start_all();
    yard.queues.iter_mut().for_each(fill_with_illegal);
    let most = yard.most(errs, |yard| yard.bad.stats.read().rejected);
    // A poll is two sweeps at the most, and each may end with one more than there is credit for.
    assert!((1..=2 * (QUANTUM / ERROR + 1)).contains(&most), "{most} in a sweep");
    let waits = yard.neighbour_waits(errs);
    assert!(waits <= 4, "{waits} sweeps");
}

/// Enables and disables the queue as soon as it is told that it was.
fn toggles(queue: &mut Ecmdq) {
    match queue.enabled() {
        true => queue.disable(),
        false => queue.start(4),
    }
}

#[test]
fn handshakes_take_a_share_of_the_worker() {
    let mut yard = Yard::new(Share::default());
    let mut most = 0;
    for _ in 0..200 {
        yard.queues.iter_mut().for_each(toggles);
        let enabled = |yard: &Yard| yard.queues.iter().map(Ecmdq::enabled).collect::<Vec<_>>();
        let before = enabled(&yard);
        yard.worker.poll();
        let changed = enabled(&yard).into_iter().zip(before).filter(|(now, before)| now != before).count();
        most = most.max(changed as u64);
    }
    assert!((1..=2 * (QUANTUM / HANDSHAKE + 1)).contains(&most), "{most} in a sweep");
    let waits = yard.neighbour_waits(toggles);
    assert!(waits <= 4, "{waits} sweeps");
}

/// PROD contradicts CONS, and then no longer.
fn contradicts(queue: &mut Ecmdq) {
    let wrong = EN | queue.prod() ^ 0x18;
    queue.write_prod(if queue.prod_word() == wrong { EN | queue.prod() } else { wrong });
}

#[test]
fn contradictions_take_a_share_of_the_worker() {
    let mut yard = Yard::new(Share::default());
    yard.start_all();
    let most = yard.most(contradicts, |yard| yard.bad.stats.read().inconsistent);
    assert!((1..=2 * (QUANTUM / ERROR + 1)).contains(&most), "{most} in a sweep");
    let waits = yard.neighbour_waits(contradicts);
    assert!(waits <= 4, "{waits} sweeps");
}

/// CMD_PREFETCH_CFG, which goes nowhere.
fn prefetches(queue: &mut Ecmdq) {
    if queue.cons() == queue.prod() {
        queue.send(&[Command([0x01, 0]); 15]);
    }
}

#[test]
fn commands_that_go_nowhere_take_a_share_of_the_worker() {
    let mut yard = Yard::new(Share::default());
    yard.start_all();
    let most = yard.most(prefetches, |yard| yard.bad.stats.read().commands);
    // A batch that has begun is taken whole.
    assert!((1..=2 * (QUANTUM + 15)).contains(&most), "{most} in a sweep");
    let waits = yard.neighbour_waits(prefetches);
    assert!(waits <= 4, "{waits} sweeps");
}

#[test]
fn what_invalidates_nothing_counts_for_a_rate_limit() {
    let limit = Some(RateLimit { per_second: 1, burst: 0 });
    let mut yard = Yard::new(Share { limit, ..Share::default() });
    // The CMDQ has no handshake that would count.
    yard.bad.start(8);
    yard.worker.poll();
    yard.bad.send(&[illegal(); 200]);
    for _ in 0..10_000 {
        yard.worker.poll();
        yard.bad.ack();
    }
    let rejected = yard.bad.stats.read().rejected;
    assert!(rejected <= 1, "an error is a minute's worth: {rejected}");
    // 256 queues to be enabled are as much as four minutes allow.
    yard.queues.iter_mut().for_each(|queue| queue.start(4));
    (0..1000).for_each(|_| _ = yard.worker.poll());
    let enabled = yard.queues.iter().filter(|queue| queue.enabled()).count();
    assert!(enabled <= 1, "{enabled}");
}
