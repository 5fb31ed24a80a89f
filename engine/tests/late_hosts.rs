//! Hosts that come when the guest is there already, and go again.

mod common;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use common::*;
use ecmdq_engine::host::{Cause, Failure, HostQueue, Identities, NativeRing, NullQueue, Ticket};
use ecmdq_engine::{BindHostError, Command, Features, Share, VirtualSmmu, Waker, Worker};

type AnyQueue = Box<dyn HostQueue + Send>;

fn without_ranges() -> Features {
    features(|f| f.ril = false)
}

/// TLBI_NH_VA of two pages at 0x1000, ASID 5: TG=4K, NUM=1.
const TWO_PAGES: Command = Command([0x0005_0000_0000_1012, 0x1401]);

#[test]
fn a_host_that_is_bound_late_gets_what_it_knows() {
    let machine = Machine::new(Setup::default());
    let smmu = machine.worker.guests().next().unwrap().clone();
    assert_eq!(smmu.bind_host(without_ranges()), Ok(()));
    let mut machine = machine.enabled(4);
    machine.run(&[TWO_PAGES, sync()]);
    let pages = [Command([0x0005_0007_0000_0012, 0x1001]), Command([0x0005_0007_0000_0012, 0x2001])];
    assert_eq!(machine.take_received(), [&pages[..], &[HOST_SYNC]].concat());
    // And a range again, once a host with ranges is bound.
    machine.guest.stop();
    machine.settle();
    assert_eq!(smmu.bind_host(Features::linux()), Ok(()));
    machine.guest.start(4);
    machine.settle();
    machine.run(&[TWO_PAGES, sync()]);
    assert_eq!(machine.take_received(), [Command([0x0005_0007_0000_1012, 0x1401]), HOST_SYNC]);
}

#[test]
fn a_host_that_lacks_something_is_refused_and_changes_nothing() {
    let mut machine = Machine::new(Setup::default());
    let smmu = machine.worker.guests().next().unwrap().clone();
    let refused = smmu.bind_host(features(|f| (f.ril, f.asid16) = (false, false)));
    assert!(matches!(refused, Err(BindHostError::BeyondHost(_))), "{refused:?}");
    machine = machine.enabled(4);
    machine.run(&[TWO_PAGES, sync()]);
    assert_eq!(machine.take_received(), [Command([0x0005_0007_0000_1012, 0x1401]), HOST_SYNC]);
}

#[test]
fn no_host_is_bound_to_a_guest_that_has_enabled_anything() {
    let vmm = Vmm::default();
    let setup = Setup::with(|f| *f = f.with_ecmdqs(0, 1));
    let mut machine = Machine::new(Setup { on_request: vmm.on_request(), ..setup });
    let smmu = machine.worker.guests().next().unwrap().clone();
    let host = smmu.features();
    // A queue; SMMUEN, also before the VMM has followed it; an ECMDQ.
    for (cr0, waits) in [(CMDQEN, 0), (SMMUEN, 1), (EVENTQEN, 0)] {
        machine.guest.write(reg::CR0, cr0);
        machine.settle();
        assert_eq!(vmm.waiting(), waits);
        assert_eq!(smmu.bind_host(host), Err(BindHostError::Enabled), "{cr0:#x}");
        smmu.reset();
        assert_eq!(smmu.bind_host(host), Ok(()));
        (0..waits).for_each(|_| drop(vmm.take()));
    }
    let mut ecmdq = machine.guest.ecmdq(1);
    ecmdq.start(4);
    machine.settle();
    assert_eq!(smmu.bind_host(host), Err(BindHostError::Enabled));
    assert_eq!(
        BindHostError::Enabled.to_string(),
        "the guest has enabled its SMMU or a queue: bind the host before, or after a reset"
    );
}

#[test]
fn a_null_queue_completes_everything_at_once() {
    let mut queue = NullQueue::default();
    assert_eq!(queue.sync(), queue.completed(), "with nothing submitted, nothing is new");
    let before = queue.completed();
    assert_eq!(queue.submit(&[nh_asid(1); 3]), 3);
    let ticket = queue.sync();
    assert!(ticket > before);
    assert_eq!((queue.sync(), queue.completed(), queue.failure(ticket)), (ticket, ticket, None));
    let (taken, next) = queue.submit_and_sync(&[nh_asid(1); 1000]);
    assert!(taken == 1000 && next > Some(ticket));
}

/// Detaches a guest whose host queue completes at once.
fn leave(worker: &mut Worker<AnyQueue>, smmu: &VirtualSmmu) -> Option<AnyQueue> {
    let leaving = worker.detach(smmu);
    (0..10).for_each(|_| _ = worker.poll());
    assert!(leaving.has_left());
    leaving.wait()
}

#[test]
fn a_guest_gets_its_host_when_its_first_device_comes_and_loses_it_again() {
    let null = || Some(Box::new(NullQueue::default()) as AnyQueue);
    let mut worker: Worker<AnyQueue> = Worker::without_host();
    let (mut guest, smmu) = Guest::new(Setup::default());
    worker.attach_sharing(smmu.clone(), null(), Share::default()).unwrap();
    guest.start(4);
    let mut done = |worker: &mut Worker<AnyQueue>, work: &mut dyn FnMut()| {
        guest.send(&[nh_asid(5), sync()]);
        (0..4).for_each(|_| {
            worker.poll();
            work();
        });
        guest.cons() == guest.prod()
    };
    assert!(done(&mut worker, &mut || ()));

    // The first device.
    assert!(leave(&mut worker, &smmu).is_some(), "the queue comes back");
    let (ring, mut host) = NativeRing::with_consumer(4).unwrap();
    worker.attach_with(smmu.clone(), Box::new(ring)).unwrap();
    let mut received = Vec::new();
    let mut take = || {
        host.poll(|commands| received.extend_from_slice(commands));
    };
    assert!(done(&mut worker, &mut take));
    assert_eq!(received, [host_asid(7, 5), HOST_SYNC]);

    // The last one has gone.
    leave(&mut worker, &smmu);
    worker.attach_sharing(smmu, null(), Share::default()).unwrap();
    assert!(done(&mut worker, &mut || ()));
}

/// Answers each method with something that no default does, and notes which it was.
struct Probe(Rc<RefCell<Vec<&'static str>>>);

impl Probe {
    fn note(&self, name: &'static str) {
        self.0.borrow_mut().push(name);
    }
}

impl HostQueue for Probe {
    fn identities(&self) -> Identities {
        self.note("identities");
        Identities::Guest
    }

    fn submit(&mut self, _: &[Command]) -> usize {
        self.note("submit");
        1
    }

    fn sync(&mut self) -> Ticket {
        self.note("sync");
        Ticket(2)
    }

    fn submit_and_sync(&mut self, _: &[Command]) -> (usize, Option<Ticket>) {
        self.note("submit_and_sync");
        (3, None)
    }

    fn completed(&mut self) -> Ticket {
        self.note("completed");
        Ticket(4)
    }

    fn failure(&mut self, _: Ticket) -> Option<Failure> {
        self.note("failure");
        Some(Failure { cause: Cause::Transient, command: None })
    }

    fn set_waker(&mut self, _: &Waker) -> bool {
        self.note("set_waker");
        true
    }
}

#[test]
fn a_boxed_queue_is_the_queue_in_the_box() {
    let called = Rc::default();
    let mut queue: Box<dyn HostQueue> = Box::new(Probe(Rc::clone(&called)));
    let queue: &mut dyn HostQueue = &mut queue;
    assert_eq!(queue.identities(), Identities::Guest);
    assert_eq!((queue.submit(&[]), queue.sync()), (1, Ticket(2)));
    assert_eq!(queue.submit_and_sync(&[]), (3, None));
    assert_eq!((queue.completed(), queue.failure(Ticket(0)).is_some()), (Ticket(4), true));
    let (_queue, executor) = ecmdq_engine::host::iommufd::queue(Nobody, 4).unwrap();
    assert!(queue.set_waker(&executor.waker()));
    let all = ["identities", "submit", "sync", "submit_and_sync", "completed", "failure", "set_waker"];
    assert_eq!(*called.borrow(), all);
}

/// A kernel that is only there for its executor's waker.
struct Nobody;

impl ecmdq_engine::host::iommufd::Invalidate for Nobody {
    fn invalidate(&self, _: &[Command]) -> io::Result<()> {
        Ok(())
    }
}
