//! Between the guests and the host queue: sharing, back-pressure, order.

mod common;

use std::io::ErrorKind;

use common::*;
use ecmdq_engine::host::{HostQueue, NativeRing, Ticket};
use ecmdq_engine::{Command, Opcode, Worker};
use proptest::prelude::*;

#[test]
fn one_host_synchronisation_completes_the_syncs_of_all_guests() {
    let mut rig = Rig::new(8, 4, Script::default());
    rig.guests.iter_mut().for_each(|guest| guest.send(&[nh_asid(1), sync()]));
    rig.poll_times(5);
    assert_eq!((rig.host.syncs(), rig.host.received().len()), (1, 8));
    assert!((0..8).all(|guest| rig.cons(guest) == 1));
    rig.host.finish(1);
    rig.poll();
    assert!((0..8).all(|guest| rig.cons(guest) == 2));
}

#[test]
fn while_the_host_is_at_work_cmd_syncs_gather_and_share_the_next_ticket() {
    let mut rig = Rig::new(4, 4, Script::default());
    for guest in 0..4 {
        rig.guests[guest].send(&[nh_asid(1), sync()]);
        rig.poll();
    }
    assert_eq!(
        (rig.host.syncs(), rig.host.received().len()),
        (1, 4),
        "what is to be done goes to the host at once"
    );
    for (finished, syncs, cons) in [(1, 2, [2, 1, 1, 1]), (2, 2, [2; 4])] {
        rig.host.finish(finished);
        rig.poll_times(2);
        assert_eq!(([0, 1, 2, 3].map(|guest| rig.cons(guest)), rig.host.syncs()), (cons, syncs));
    }
}

/// A host that completes what it was asked for just after it was looked at.
struct JustLate(Script);

impl HostQueue for JustLate {
    fn submit(&mut self, commands: &[Command]) -> usize {
        self.0.submit(commands)
    }

    fn sync(&mut self) -> Ticket {
        self.0.sync()
    }

    fn completed(&mut self) -> Ticket {
        let before = self.0.completed();
        self.0.finish_all();
        before
    }
}

#[test]
fn a_host_that_has_completed_by_the_end_of_a_sweep_is_asked_again_in_it() {
    let host = Script::default();
    let mut worker = Worker::new(JustLate(host.clone()));
    let (mut guest, smmu) = Guest::new(Setup::default());
    worker.attach(smmu).unwrap();
    guest.start(8);
    worker.poll();
    for syncs in 1..10 {
        guest.send(&[nh_asid(1), sync()]);
        worker.poll();
        assert_eq!(host.syncs(), syncs);
    }
}

#[test]
fn a_later_sync_shares_the_ticket_of_an_earlier_one_when_nothing_came_between() {
    let mut rig = Rig::new(2, 4, Script::default());
    rig.guests[0].send(&[nh_asid(1)]);
    rig.guests[1].send(&[nh_asid(1), sync()]);
    rig.poll();
    rig.guests[0].send(&[sync()]);
    rig.poll_times(3);
    assert_eq!((rig.host.syncs(), rig.cons(0)), (1, 1), "it waits for it");
    rig.host.finish(1);
    rig.poll();
    assert_eq!((rig.host.syncs(), rig.cons(0), rig.cons(1)), (1, 2, 2));
}

#[test]
fn the_host_is_synchronised_only_when_it_has_taken_everything_before_the_sync() {
    let mut rig = Rig::new(1, 4, Script::at_once());
    rig.host.set_room(2);
    rig.guests[0].send(&[nh_asid(1), nh_asid(2), nh_asid(3), sync()]);
    rig.poll_times(5);
    assert_eq!((rig.host.syncs(), rig.host.received().len(), rig.cons(0)), (0, 2, 3));
    rig.host.set_room(1);
    rig.poll_times(2);
    assert_eq!((rig.host.syncs(), rig.host.received().len(), rig.cons(0)), (1, 3, 4));
}

#[test]
fn a_host_that_takes_nothing_stops_the_guests_and_loses_nothing() {
    let mut rig = Rig::new(2, 11, Script::at_once());
    rig.host.set_room(0);
    let commands: Vec<_> = (0..2048).map(nh_asid).collect();
    rig.guests.iter_mut().for_each(|guest| guest.send(&commands));
    rig.poll_times(100);
    assert!(rig.cons(0) + rig.cons(1) <= 512, "what the engine holds is bounded");
    rig.host.set_room(usize::MAX);
    rig.poll_times(100);
    for (guest, vmid) in [(0, 1), (1, 2)] {
        let of_guest = |command: &Command| command.0[0] >> 32 & 0xffff == vmid;
        let got: Vec<_> = rig.host.received().iter().copied().filter(of_guest).collect();
        let expected: Vec<_> = (0..2048).map(|asid| host_asid(vmid, asid)).collect();
        assert_eq!((got, rig.cons(guest)), (expected, 2048));
    }
}

#[test]
fn a_full_host_queue_does_not_hold_back_syncs_that_the_host_has_finished() {
    let mut rig = Rig::new(2, 8, Script::default());
    rig.guests[0].send(&[nh_asid(1), sync()]);
    rig.poll();
    rig.host.set_room(0);
    rig.guests[1].send(&(0..256).map(nh_asid).collect::<Vec<_>>());
    rig.poll_times(20);
    rig.host.finish(1);
    rig.poll();
    assert_eq!(rig.cons(0), 2);
}

#[test]
fn a_queue_that_finds_no_room_does_not_hold_back_the_cmd_sync_of_another_queue_of_its_guest() {
    let mut rig = Rig::new(0, 11, Script::default());
    rig.add(Rig::ats_setup(1), 11);
    let mut ecmdq = rig.guests[0].ecmdq(0);
    ecmdq.start(4);
    rig.poll_times(2);
    ecmdq.send(&[nh_asid(1), sync()]);
    rig.poll();
    rig.host.set_room(0);
    rig.guests[0].send(&(0..2048).map(nh_asid).collect::<Vec<_>>());
    rig.poll_times(20);
    rig.host.finish(1);
    rig.poll_times(3);
    assert_eq!(ecmdq.cons(), 2);
}

/// The bound of "a fault stays at home": a flood may use the host queue up, but not for itself alone.
#[test]
fn a_flood_from_one_guest_does_not_keep_anothers_sync_from_completing() {
    let mut rig = Rig::new(2, 8, Script::at_once());
    rig.host.take_at_most(16);
    let flood: Vec<_> = (0..256).map(nh_asid).collect();
    rig.guests[1].send(&flood);
    rig.poll();
    rig.guests[0].send(&[nh_asid(1), sync()]);
    let completed = (0..2000).any(|_| {
        let room = rig.guests[1].room() as usize;
        rig.guests[1].send(&flood[..room]);
        rig.poll();
        rig.cons(0) == 2
    });
    assert!(completed, "the CMD_SYNC of guest 0 waits as long as guest 1 floods");
}

#[test]
fn registers_are_answered_while_the_host_takes_nothing() {
    let mut rig = Rig::new(2, 11, Script::default());
    rig.host.set_room(0);
    rig.guests[1].send(&(0..2048).map(nh_asid).collect::<Vec<_>>());
    rig.poll_times(20);
    rig.guests[0].stop();
    rig.poll_times(2);
    assert!(!rig.guests[0].enabled());
}

#[test]
fn every_guest_gets_its_turn_when_the_host_is_slow() {
    let mut rig = Rig::new(20, 8, Script::at_once());
    rig.host.take_at_most(64);
    let flood: Vec<_> = (0..256).map(nh_asid).collect();
    for _ in 0..400 {
        for guest in &mut rig.guests {
            let room = guest.room() as usize;
            guest.send(&flood[..room]);
        }
        rig.poll();
    }
    let shares: Vec<_> = rig.guests.iter().map(|guest| guest.stats.read().forwarded).collect();
    let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
    // A turn: 512 units, of which a TLBI_NH_ASID takes 4.
    assert!(most - least <= 128, "{shares:?}");
}

#[test]
fn a_native_ring_has_between_4_and_2_to_the_19_entries() {
    for log2 in [0, 1, 20, u32::MAX] {
        assert_eq!(NativeRing::with_consumer(log2).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert!(NativeRing::with_consumer(2).is_ok());
    assert!(NativeRing::with_consumer(19).is_ok());
}

#[test]
fn a_native_ring_takes_what_fits_beside_a_sync_and_can_always_be_synchronised() {
    let (mut ring, mut host) = NativeRing::with_consumer(2).unwrap();
    assert_eq!(ring.submit(&[nh_asid(1); 9]), 3);
    assert_eq!(ring.submit(&[nh_asid(1)]), 0);
    assert_eq!(ring.sync(), Ticket(4));
    assert_eq!(ring.submit(&[nh_asid(1)]), 0, "full");
    assert_eq!(ring.sync(), Ticket(4), "nothing came since");
    assert_eq!(host.poll(|_| ()), 4);
    assert_eq!(ring.submit(&[nh_asid(2); 9]), 3);
}

#[test]
fn a_ticket_of_a_native_ring_is_reached_when_the_host_has_taken_its_sync() {
    let (mut ring, mut host) = NativeRing::with_consumer(4).unwrap();
    assert_eq!(ring.sync(), ring.completed(), "nothing to wait for");
    ring.submit(&[nh_asid(1), nh_asid(2)]);
    let first = ring.sync();
    assert!(ring.completed() < first);
    host.poll(|commands| assert_eq!(commands, [nh_asid(1), nh_asid(2), HOST_SYNC]));
    assert!(ring.completed() >= first);
    ring.submit(&[nh_asid(3)]);
    let second = ring.sync();
    assert!(second > first && ring.completed() >= first && ring.completed() < second);
}

#[test]
fn the_hosts_smmu_counts_by_opcode() {
    let mut machine = Machine::with_queue(4);
    machine.run(&[nh_asid(1), cfgi_cd(STREAM), nh_asid(2), sync(), nh_asid(3), sync()]);
    let counts: Vec<_> = machine.host.by_opcode().collect();
    assert_eq!(counts, [(Opcode::CFGI_CD, 1), (Opcode::TLBI_NH_ASID, 3), (Opcode::CMD_SYNC, 2)]);
    assert_eq!((machine.host.total(), machine.host.received(Opcode::TLBI_NH_ASID)), (6, 3));
}

/// What a guest has sent so far: its pages in order, and how many stood before each CMD_SYNC.
#[derive(Default)]
struct Sent {
    pages: u64,
    /// For each entry of the queue since the beginning: the number of pages before it, if it is a CMD_SYNC.
    entries: Vec<Option<u64>>,
    /// Entries that CONS has passed.
    passed: usize,
}

impl Sent {
    fn send(&mut self, guest: &mut Guest, n: u32, with_sync: bool) {
        let mut batch = Vec::new();
        for _ in 0..n.min(guest.room().saturating_sub(1)) {
            batch.push(nh_page(self.pages));
            self.entries.push(None);
            self.pages += 1;
        }
        if with_sync && guest.room() > 0 {
            batch.push(sync());
            self.entries.push(Some(self.pages));
        }
        guest.send(&batch);
    }

    /// Every CMD_SYNC that CONS has passed since the last look was covered by the host.
    fn check(&mut self, guest: &Guest, covered: u64) {
        let passed = self.entries.len() - (guest.prod().wrapping_sub(guest.cons()) & 0x1f) as usize;
        assert!(passed >= self.passed, "CONS went back");
        for pages in self.entries[self.passed..passed].iter().flatten() {
            assert!(*pages <= covered, "a CMD_SYNC after {pages} commands, of which {covered} are done");
        }
        self.passed = passed;
    }
}

/// The pages of a guest among what the host received, in order.
fn pages_of(vmid: u64, received: &[Command]) -> Vec<u64> {
    let of_guest = received.iter().filter(|command| command.0[0] == 0x13 | vmid << 32);
    of_guest.map(|command| command.0[1] >> 12).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Send { guest: usize, n: u32, with_sync: bool },
    TakeAtMost(usize),
    Finish(usize),
    Poll(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0usize..3, 0u32..16, any::<bool>())
            .prop_map(|(guest, n, with_sync)| Step::Send { guest, n, with_sync }),
        1 => (0usize..40).prop_map(Step::TakeAtMost),
        2 => (0usize..4).prop_map(Step::Finish),
        3 => (1usize..4).prop_map(Step::Poll),
    ]
}

fn check(rig: &Rig, sent: &mut [Sent]) {
    let received = rig.host.received();
    for (i, sent) in sent.iter_mut().enumerate() {
        let covered = pages_of(i as u64 + 1, &received[..rig.host.covered()]).len() as u64;
        sent.check(&rig.guests[i], covered);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Three guests and a host that is late, bursty and short of room in any pattern: CONS never passes a
    /// CMD_SYNC early, and in the end everything has arrived once and in each guest's order.
    #[test]
    fn cons_tells_the_truth_whatever_the_host_does(steps in proptest::collection::vec(step(), 1..80)) {
        let mut rig = Rig::new(3, 4, Script::default());
        let mut sent = [(); 3].map(|()| Sent::default());
        for step in steps {
            match step {
                Step::Send { guest, n, with_sync } => sent[guest].send(&mut rig.guests[guest], n, with_sync),
                Step::TakeAtMost(n) => rig.host.take_at_most(n),
                Step::Finish(n) => rig.host.finish((rig.host.finished() + n).min(rig.host.syncs())),
                Step::Poll(n) => for _ in 0..n {
                    rig.poll();
                    check(&rig, &mut sent);
                },
            }
        }
        rig.host.take_at_most(usize::MAX);
        for _ in 0..60 {
            rig.host.finish_all();
            rig.poll();
            check(&rig, &mut sent);
        }
        for (i, sent) in sent.iter().enumerate() {
            prop_assert_eq!(rig.cons(i), rig.guests[i].prod());
            let pages: Vec<_> = (0..sent.pages).collect();
            prop_assert_eq!(pages_of(i as u64 + 1, &rig.host.received()), pages);
        }
    }
}
