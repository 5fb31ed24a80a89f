//! Host queues that stall, fail or panic: guests that have one of their own go on.

use std::cell::Cell;
use std::rc::Rc;

use ecmdq_engine::host::{Cause, Failure, HostQueue, Ticket};
use ecmdq_engine::{Command, Event, EventKind, Worker};

use crate::common::*;
use crate::support::*;

/// What a host queue is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Submit,
    Sync,
    Completed,
}

/// A scripted host queue that panics when it is asked something, from when the test says so.
#[derive(Clone, Debug)]
struct Faulty {
    script: Script,
    panics_at: Rc<Cell<Option<Call>>>,
}

impl Faulty {
    fn new(script: Script) -> Self {
        Self { script, panics_at: Rc::default() }
    }

    fn called(&self, call: Call) {
        assert_ne!(self.panics_at.get(), Some(call), "on purpose");
    }
}

impl HostQueue for Faulty {
    fn submit(&mut self, commands: &[Command]) -> usize {
        self.called(Call::Submit);
        self.script.submit(commands)
    }

    fn sync(&mut self) -> Ticket {
        self.called(Call::Sync);
        self.script.sync()
    }

    fn completed(&mut self) -> Ticket {
        self.called(Call::Completed);
        self.script.completed()
    }

    fn failure(&mut self, ticket: Ticket) -> Option<Failure> {
        self.script.failure(ticket)
    }
}

/// Guests 0 and 1 in front of a host queue that misbehaves, guest 2 with one of its own.
struct Yard {
    worker: Worker<Faulty>,
    bad: Faulty,
    guests: Vec<Guest>,
}

impl Yard {
    fn new(script: Script) -> Self {
        let bad = Faulty::new(script);
        let mut yard = Self { worker: Worker::new(bad.clone()), bad, guests: Vec::new() };
        for vmid in 1..=3 {
            let (mut guest, smmu) = Guest::new(setup(vmid));
            match vmid {
                3 => yard.worker.attach_with(smmu, Faulty::new(Script::at_once())).unwrap(),
                _ => yard.worker.attach(smmu).unwrap(),
            }
            guest.start(13);
            yard.guests.push(guest);
        }
        yard.poll_times(2);
        yard
    }

    fn poll_times(&mut self, n: usize) {
        (0..n).for_each(|_| _ = self.worker.poll());
    }

    fn good_one_goes_on(&mut self) {
        goes_on(&mut self.guests[2], || _ = self.worker.poll());
    }

    fn cons(&self) -> [u32; 2] {
        [self.guests[0].cons(), self.guests[1].cons()]
    }

    fn errors(&self) -> [Option<u32>; 2] {
        [self.guests[0].error(), self.guests[1].error()]
    }

    fn told(&self) -> Vec<Event> {
        self.worker.events().waiting().collect()
    }
}

#[test]
fn a_host_queue_that_stalls_keeps_only_its_guests_waiting_and_they_go_on_when_it_does() {
    let mut yard = Yard::new(Script::default());
    yard.guests[0].send(&[nh_asid(1), sync()]);
    yard.guests[1].send(&[vec![nh_asid(1); 5000], vec![sync()]].concat());
    yard.bad.script.set_room(100);
    for _ in 0..200 {
        yard.good_one_goes_on();
    }
    // Guest 1's commands wait in its ring, but for what fits in between.
    let [first, second] = yard.cons();
    assert!(first <= 1 && second < 1500, "{first} {second}");
    assert_eq!((yard.errors(), yard.told()), ([None; 2], vec![]));
    yard.bad.script.set_room(usize::MAX);
    for _ in 0..200 {
        yard.bad.script.finish_all();
        yard.good_one_goes_on();
    }
    assert_eq!((yard.cons(), yard.errors()), ([2, 5001], [None; 2]));
    assert_eq!(yard.bad.script.received().len(), 5001);
}

#[test]
fn a_host_queue_that_fails_each_round_fails_its_own_guests_alone() {
    // The cause, and the error of each guest that waits. An acknowledged CMD_SYNC is fetched again.
    for (cause, error) in
        [(Cause::Transient, None), (Cause::Illegal, Some(CERROR_ILL)), (Cause::DeviceGone, Some(CERROR_ABT))]
    {
        let mut yard = Yard::new(Script::default());
        (0..2).for_each(|guest| yard.guests[guest].send(&[nh_asid(1), sync()]));
        yard.poll_times(2);
        for round in 1..=50 {
            assert_eq!(yard.bad.script.syncs(), round, "{cause:?}: one for both");
            yard.bad.script.fail(round, cause);
            yard.good_one_goes_on();
            assert_eq!((yard.cons(), yard.errors()), ([1, 1], [error; 2]), "{cause:?}");
            yard.guests[..2].iter().for_each(Guest::ack);
            yard.poll_times(2);
        }
        yard.bad.script.finish_all();
        yard.good_one_goes_on();
        assert_eq!((yard.cons(), yard.errors()), ([2, 2], [None; 2]), "{cause:?}");
        let failures = yard.told();
        assert!(!failures.is_empty(), "{cause:?}");
        for event in failures {
            let failed = matches!(event.kind, EventKind::HostFailed(failure) if failure.cause == cause);
            let stopped = matches!(event.kind, EventKind::QueueStopped { queue: 0, .. });
            let bad = event.guest.is_some_and(|vmid| vmid.0 < 3);
            assert!(failed && event.guest.is_none() || stopped && bad, "{cause:?}: {event:?}");
        }
    }
}

/// The host queue of guests 0 and 1 panics while guest 0 sends these.
fn panics(at: Call, commands: &[Command]) {
    quiet_panics();
    let mut yard = Yard::new(Script::at_once());
    yard.guests[0].send(&[nh_asid(1), sync()]);
    yard.good_one_goes_on();
    assert_eq!(yard.cons(), [2, 0]);
    yard.bad.panics_at.set(Some(at));
    yard.guests[0].send(commands);
    let at_sync = yard.guests[0].prod() - 1;
    (0..20).for_each(|_| yard.good_one_goes_on());
    assert_eq!((yard.errors(), yard.guests[0].cons()), ([Some(CERROR_ABT), None], at_sync), "{at:?}");
    // A guest that comes later gets the same.
    yard.guests[1].send(&[nh_asid(1), sync()]);
    (0..20).for_each(|_| yard.good_one_goes_on());
    assert_eq!((yard.errors(), yard.cons()), ([Some(CERROR_ABT); 2], [at_sync, 1]), "{at:?}");
    let told = yard.told();
    let quarantined: Vec<_> =
        told.iter().filter(|event| matches!(event.kind, EventKind::Quarantined { .. })).collect();
    let [Event { guest: None, kind: EventKind::Quarantined { queue: None, message }, left_out: 0 }] =
        quarantined[..]
    else {
        panic!("the host queue and nothing else is quarantined: {told:?}");
    };
    assert!(message.contains("on purpose"), "{message}");
}

#[test]
fn a_host_queue_that_panics_is_gone_for_its_guests_and_a_guest_with_one_of_its_own_goes_on() {
    for at in [Call::Submit, Call::Sync, Call::Completed] {
        panics(at, &[nh_asid(2), sync()]);
    }
}

#[test]
fn a_host_queue_that_panics_while_a_guest_is_served_is_not_that_guests_fault() {
    // So many that they are handed over before the sweep ends.
    panics(Call::Submit, &[vec![Command([0x13, 0x1701]); 2000], vec![sync()]].concat());
}
