//! Pages that trap once: armed before the worker sleeps, and never for nothing.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ecmdq_engine::host::{HostQueue, Ticket};
use ecmdq_engine::{Command, Doorbell, DoorbellTraps, Idle, SleeperKind, VirtualSmmu, Waker, Worker};

use crate::common::*;
use crate::support::*;

const ROUNDS: u64 = 300;
/// ECMDQ_PROD of the first ECMDQ, from page 0 on.
const PROD: u64 = 0x2_0008;

/// What KVM does with a read-only slot, in small: stores exit while it is armed. A store and the look whether it exits
/// are one step.
#[derive(Default)]
struct Slot {
    trapped: bool,
    arms: u64,
    exits: u64,
}

struct Traps(Arc<Mutex<Slot>>);

impl DoorbellTraps for Traps {
    fn arm(&mut self) -> io::Result<()> {
        let mut slot = self.0.lock().unwrap();
        assert!(!slot.trapped, "armed twice");
        (slot.trapped, slot.arms) = (true, slot.arms + 1);
        Ok(())
    }

    fn disarm(&mut self) -> io::Result<()> {
        let mut slot = self.0.lock().unwrap();
        assert!(slot.trapped, "disarmed twice");
        slot.trapped = false;
        Ok(())
    }
}

/// A vCPU's store.
fn store_to(slot: &Mutex<Slot>, smmu: &VirtualSmmu, queue: &Ecmdq, prod: u32) {
    {
        let mut slot = slot.lock().unwrap();
        if !slot.trapped {
            return queue.write_prod(prod);
        }
        slot.exits += 1;
    }
    smmu.mmio_write(PROD, &prod.to_le_bytes());
}

#[test]
fn a_page_that_traps_once_wakes() {
    on_each_sleeper(|kind| {
        let (guest, smmu) = Guest::new(with_ecmdq());
        let slot = Arc::new(Mutex::new(Slot::default()));
        smmu.set_doorbell(Doorbell::Traps(Box::new(Traps(slot.clone()))));
        let mut worker = Worker::new(AtOnce::default()).with_sleep(sleepy(kind)).unwrap();
        worker.attach(smmu.clone()).unwrap();
        let running = worker.spawn("worker", None).unwrap();
        let mut queue = guest.ecmdq(0);
        queue.describe(RING, 4, 0);
        let mut store: Store<'_> = Box::new(|queue, prod| store_to(&slot, &smmu, queue, prod));
        store(&queue, EN);
        wait_for("the queue is enabled", || queue.enabled());
        for asid in 0..ROUNDS {
            asleep(&running);
            invalidate_on(&mut queue, &mut store, asid);
        }
        running.stop().unwrap();
        let slot = slot.lock().unwrap();
        assert!(slot.exits > 0 && slot.exits <= slot.arms, "{} exits, armed {} times", slot.exits, slot.arms);
    });
}

#[test]
fn while_there_is_traffic_nothing_exits() {
    let (guest, smmu) = Guest::new(with_ecmdq());
    let slot = Arc::new(Mutex::new(Slot::default()));
    smmu.set_doorbell(Doorbell::Traps(Box::new(Traps(slot.clone()))));
    let mut worker = Worker::new(AtOnce::default()).with_sleep(Idle::always_spin()).unwrap();
    worker.attach(smmu.clone()).unwrap();
    let _running = worker.spawn("worker", None).unwrap();
    let mut queue = guest.ecmdq(0);
    queue.start(4);
    wait_for("the queue is enabled", || queue.enabled());
    let mut store: Store<'_> = Box::new(|queue, prod| store_to(&slot, &smmu, queue, prod));
    (0..ROUNDS).for_each(|asid| invalidate_on(&mut queue, &mut store, asid));
    assert_eq!(slot.lock().unwrap().exits, 0);
}

/// A guest with an enabled ECMDQ, its page, and a worker that is driven by the test.
fn driven() -> (VirtualSmmu, Ecmdq, Arc<Mutex<Slot>>, Worker<AtOnce>) {
    let (guest, smmu) = Guest::new(with_ecmdq());
    let slot = Arc::new(Mutex::new(Slot::default()));
    smmu.set_doorbell(Doorbell::Traps(Box::new(Traps(slot.clone()))));
    let mut worker = Worker::new(AtOnce::default()).with_sleep(sleepy(SleeperKind::Epoll)).unwrap();
    worker.attach(smmu.clone()).unwrap();
    let mut queue = guest.ecmdq(0);
    queue.start(4);
    while worker.poll() {}
    assert!(queue.enabled());
    (smmu, queue, slot, worker)
}

#[test]
fn a_page_is_armed_only_after_a_sweep_that_found_nothing() {
    let (smmu, mut queue, slot, mut worker) = driven();
    let arms = || slot.lock().unwrap().arms;
    for round in 1..=10 {
        queue.push(&[nh_asid(round), sync()]);
        store_to(&slot, &smmu, &queue, EN | queue.prod());
        assert!(worker.poll());
        assert_eq!((worker.prepare_to_sleep(), arms()), (None, round - 1), "the last sweep found something");
        while worker.poll() {}
        assert!(worker.prepare_to_sleep().is_some());
        assert_eq!(arms(), round);
    }
}

#[test]
fn a_sleep_that_is_called_off_is_not_prepared_again_before_a_sweep_that_found_nothing() {
    let (smmu, mut queue, slot, mut worker) = driven();
    // Seen by the sweep of `prepare_to_sleep` only.
    queue.push(&[nh_asid(1), sync()]);
    store_to(&slot, &smmu, &queue, EN | queue.prod());
    assert_eq!((worker.prepare_to_sleep(), slot.lock().unwrap().arms), (None, 1));
    queue.push(&[nh_asid(2), sync()]);
    store_to(&slot, &smmu, &queue, EN | queue.prod());
    assert_eq!(slot.lock().unwrap().exits, 1);
    assert_eq!((worker.prepare_to_sleep(), slot.lock().unwrap().arms), (None, 1));
}

/// A host that completes nothing, counts how often it is asked, and does something each time: in every sweep, while a
/// CMD_SYNC is outstanding.
struct EachSweep<F> {
    sweeps: Rc<Cell<u64>>,
    then: F,
}

impl<F: FnMut()> HostQueue for EachSweep<F> {
    fn submit(&mut self, commands: &[Command]) -> usize {
        commands.len()
    }

    fn sync(&mut self) -> Ticket {
        Ticket(1)
    }

    fn completed(&mut self) -> Ticket {
        self.sweeps.update(|sweeps| sweeps + 1);
        (self.then)();
        Ticket(0)
    }

    fn set_waker(&mut self, _: &Waker) -> bool {
        true
    }
}

/// The guest's store always meets the page between [`DoorbellTraps::arm`] and the sweep before the sleep: it exits, and the
/// worker does not sleep.
#[test]
fn after_a_sleep_that_was_called_off_the_back_off_begins_anew() {
    const ARMS: usize = 20;
    let (guest, smmu) = Guest::new(with_ecmdq());
    let slot = Arc::new(Mutex::new(Slot::default()));
    smmu.set_doorbell(Doorbell::Traps(Box::new(Traps(slot.clone()))));
    let (sweeps, armed_at) = (Rc::new(Cell::new(0)), RefCell::new(Vec::new()));
    let stop = AtomicBool::new(false);
    let mut queue = guest.ecmdq(0);
    queue.start(8);
    let then = || {
        if slot.lock().unwrap().trapped {
            armed_at.borrow_mut().push(sweeps.get());
            queue.push(&[nh_asid(1)]);
            store_to(&slot, &smmu, &queue, EN | queue.prod());
            stop.store(armed_at.borrow().len() == ARMS, Relaxed);
        }
    };
    // It looks by a timer as well: should it sleep after all, the test fails and does not hang.
    let millisecond = Duration::from_millis(1);
    let idle = Idle { back_off: millisecond, look_every: millisecond, ..sleepy(SleeperKind::Epoll) };
    let mut worker = Worker::new(EachSweep { sweeps: sweeps.clone(), then }).with_sleep(idle).unwrap();
    worker.attach(smmu.clone()).unwrap();
    let (mut waiting, waiting_smmu) = Guest::new(Setup { vmid: 8, ..with_ecmdq() });
    worker.attach(waiting_smmu).unwrap();
    waiting.start(4);
    waiting.send(&[sync()]);
    let handle = worker.handle();
    worker.run(&stop);
    assert_eq!(handle.sleeps(), 0);
    // The clock is read every 8 sweeps without work: when the back-off begins, and again until it is over. However slow
    // the sweeps are, that is twice; and there is the sweep before the sleep.
    let apart: Vec<_> = armed_at.borrow().windows(2).map(|arms| arms[1] - arms[0]).collect();
    assert!(apart.iter().all(|sweeps| *sweeps >= 17), "sweeps from arm to arm: {apart:?}");
}
