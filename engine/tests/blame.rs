//! Which queue is told of a host's failure: one that sent what failed, at its next CMD_SYNC, and no other, ever.

mod common;

use common::reg::CR0;
use common::*;
use ecmdq_engine::host::Cause::{AtcTimeout, Illegal, Transient};
use ecmdq_engine::host::{NativeRing, RingConsumer};
use ecmdq_engine::{Command, CommandError, Opcode, Worker};

/// Two workers, with a guest each, whose producers share a native ring.
struct Pair {
    guests: Vec<Guest>,
    workers: Vec<Worker<NativeRing>>,
    smmu: RingConsumer,
}

impl Pair {
    fn new() -> Self {
        let (rings, smmu) = NativeRing::several_with_consumer(8, 2).unwrap();
        let (mut guests, mut workers) = (Vec::new(), Vec::new());
        for (vmid, ring) in (1..).zip(rings) {
            let (mut guest, smmu) = Guest::new(Rig::ats_setup(vmid));
            let mut worker = Worker::new(ring);
            worker.attach(smmu).unwrap();
            guest.start(8);
            guest.write(CR0, CMDQEN | SMMUEN);
            worker.poll();
            worker.poll();
            guests.push(guest);
            workers.push(worker);
        }
        Self { guests, workers, smmu }
    }

    fn poll(&mut self, worker: usize) {
        (0..2).for_each(|_| _ = self.workers[worker].poll());
    }

    /// The host's SMMU executes all there is; each CMD_SYNC behind an ATC_INV of this StreamID fails if `times_out`.
    fn execute(&mut self, times_out: Option<u64>) {
        let mut late = false;
        let of = |command: &Command| times_out == Some(command.0[0] >> 32);
        for _ in 0..4 {
            self.smmu.poll_with(|commands| {
                for (n, command) in commands.iter().enumerate() {
                    late |= command.opcode() == Opcode::ATC_INV && of(command);
                    if command.opcode() == Opcode::CMD_SYNC && std::mem::take(&mut late) {
                        return (n, Some(CommandError::AtcInvSync));
                    }
                }
                (commands.len(), None)
            });
        }
    }

    fn errors(&self) -> [Option<u32>; 2] {
        [self.guests[0].error(), self.guests[1].error()]
    }

    /// Guest 1 sends an ATC_INV that times out, and is told.
    fn guest_1_times_out(&mut self) {
        self.guests[1].send(&[atc_inv(STREAM), sync()]);
        self.poll(1);
        self.execute(Some(0x2_0000));
        self.poll(1);
        self.execute(None);
        self.poll(1);
        assert_eq!(self.guests[1].error(), Some(CERROR_ATC_INV_SYNC));
    }
}

#[test]
fn a_time_out_is_not_told_to_a_guest_of_a_worker_that_had_nothing_under_way() {
    let mut pair = Pair::new();
    pair.guest_1_times_out();
    pair.guests[0].send(&[atc_inv(STREAM), sync()]);
    pair.poll(0);
    pair.execute(None);
    pair.poll(0);
    assert_eq!((pair.guests[0].error(), pair.guests[0].cons()), (None, 2));
}

#[test]
fn a_time_out_between_two_tickets_of_another_worker_is_told_with_neither() {
    let mut pair = Pair::new();
    pair.guests[0].send(&[atc_inv(STREAM), sync()]);
    pair.poll(0);
    pair.guest_1_times_out();
    // The worker of guest 0 has a ticket outstanding, whose time-out this is not, when it asks for another.
    pair.guests[0].send(&[]);
    let mut ecmdq = pair.guests[0].ecmdq(0);
    ecmdq.start(4);
    pair.workers[0].poll();
    ecmdq.send(&[atc_inv(STREAM), sync()]);
    for _ in 0..4 {
        pair.poll(0);
        pair.execute(None);
    }
    assert_eq!((pair.guests[0].error(), ecmdq.error()), (None, None));
    assert_eq!((pair.guests[0].cons(), ecmdq.cons()), (2, 2));
}

#[test]
fn a_time_out_of_an_atc_inv_before_a_ticket_of_another_worker_is_told() {
    let mut pair = Pair::new();
    // Taken, and in the ring, before the other's CMD_SYNC, which fails for both.
    pair.guests[0].send(&[atc_inv(STREAM)]);
    pair.poll(0);
    pair.guests[1].send(&[atc_inv(STREAM), sync()]);
    pair.poll(1);
    pair.execute(Some(0x1_0000));
    pair.poll(1);
    pair.execute(None);
    pair.poll(1);
    pair.guests[0].send(&[sync()]);
    for _ in 0..3 {
        pair.poll(0);
        pair.execute(None);
    }
    assert_eq!(pair.errors(), [Some(CERROR_ATC_INV_SYNC); 2]);
}

#[test]
fn more_time_outs_of_others_than_a_producer_remembers_hide_none_of_its_own() {
    let mut pair = Pair::new();
    for _ in 0..100 {
        pair.guest_1_times_out();
        pair.guests[1].ack();
        pair.poll(1);
        pair.execute(None);
        pair.poll(1);
        assert_eq!(pair.guests[1].error(), None);
    }
    pair.guests[0].send(&[atc_inv(STREAM), sync()]);
    pair.poll(0);
    pair.execute(Some(0x1_0000));
    for _ in 0..3 {
        pair.poll(0);
        pair.execute(None);
    }
    assert_eq!(pair.errors(), [Some(CERROR_ATC_INV_SYNC), None]);
}

#[test]
fn an_illegal_command_of_one_guest_does_not_hide_the_time_out_of_another_in_the_same_round() {
    let (ring, mut smmu) = NativeRing::with_consumer(8).unwrap();
    let mut worker = Worker::new(ring);
    let mut guests = Vec::new();
    for vmid in 1..=2 {
        let (mut guest, smmu) = Guest::new(Rig::ats_setup(vmid));
        worker.attach(smmu).unwrap();
        guest.start(8);
        guest.write(CR0, CMDQEN | SMMUEN);
        guests.push(guest);
    }
    (0..3).for_each(|_| _ = worker.poll());
    guests[0].send(&[nh_asid(1), sync()]);
    guests[1].send(&[atc_inv(STREAM), sync()]);
    worker.poll();
    let mut late = false;
    for _ in 0..20 {
        smmu.poll_with(|commands| {
            for (n, command) in commands.iter().enumerate() {
                match command.opcode() {
                    Opcode::TLBI_NH_ASID => return (n, Some(CommandError::Ill)),
                    Opcode::ATC_INV => late = true,
                    Opcode::CMD_SYNC if std::mem::take(&mut late) => {
                        return (n, Some(CommandError::AtcInvSync));
                    }
                    _ => {}
                }
            }
            (commands.len(), None)
        });
        worker.poll();
    }
    assert_eq!([0, 1].map(|n| guests[n].error()), [Some(CERROR_ILL), Some(CERROR_ATC_INV_SYNC)]);
}

#[test]
fn a_queue_whose_commands_failed_twice_is_told_of_both_one_after_the_other() {
    let mut rig = Rig::with_ats(2);
    rig.guests[0].send(&[nh_asid(1), atc_inv(STREAM)]);
    // Its two commands are in the round of another guest.
    rig.guests[1].send(&[sync()]);
    rig.poll();
    rig.host.fail_for(1, Illegal, Some(host_asid(1, 1)));
    rig.poll_times(2);
    assert_eq!(rig.host.syncs(), 2, "asked for again");
    rig.host.fail(2, AtcTimeout);
    rig.poll_times(2);
    rig.guests[0].send(&[sync()]);
    let mut told = Vec::new();
    for _ in 0..10 {
        rig.poll();
        rig.host.finish_all();
        rig.poll();
        if let Some(error) = rig.guests[0].error() {
            told.push(error);
            rig.guests[0].ack();
        }
    }
    assert_eq!((told, rig.cons(0)), (vec![CERROR_ILL, CERROR_ATC_INV_SYNC], 3));
}

#[test]
fn a_queue_is_not_to_blame_for_a_round_between_two_of_its_own() {
    let mut rig = Rig::with_ats(2);
    let mut ecmdqs = [0, 1].map(|number| rig.guests[1].ecmdq(number));
    ecmdqs.iter_mut().for_each(|ecmdq| ecmdq.start(4));
    rig.poll_times(2);
    // Guest 0 has an ATC_INV in the first round and in the third; the second, which fails, is guest 1's alone.
    rig.guests[0].send(&[atc_inv(STREAM)]);
    rig.guests[1].send(&[sync()]);
    rig.poll();
    ecmdqs[0].send(&[atc_inv(STREAM), sync()]);
    rig.poll();
    // The host is asked for the second when it has completed the first; only what comes afterwards is in the third.
    rig.host.finish(1);
    rig.poll();
    rig.guests[0].send(&[atc_inv(STREAM)]);
    ecmdqs[1].send(&[sync()]);
    rig.poll();
    assert_eq!(rig.host.syncs(), 2);
    rig.host.fail(2, AtcTimeout);
    rig.poll_times(2);
    assert_eq!(rig.host.syncs(), 3);
    rig.guests[0].send(&[sync()]);
    rig.poll();
    rig.host.finish_all();
    rig.poll_times(2);
    assert_eq!((rig.guests[0].error(), rig.cons(0)), (None, 3));
    assert_eq!(ecmdqs[0].error(), Some(CERROR_ATC_INV_SYNC));
}

/// Guest 0 has an ATC_INV in the first round, of which the host says nothing. Then this round fails by a time-out: what
/// guest 0 is told.
fn after_a_transient_failure(times_out: usize) -> Option<u32> {
    let mut rig = Rig::with_ats(2);
    rig.guests[0].send(&[atc_inv(STREAM)]);
    rig.guests[1].send(&[nh_asid(1), sync()]);
    rig.poll();
    rig.host.fail(1, Transient);
    // Guest 1 asks again: that is the second round.
    rig.poll_times(2);
    if times_out == 3 {
        rig.host.finish(2);
        rig.guests[1].send(&[nh_asid(1), sync()]);
        rig.poll_times(2);
    }
    assert_eq!(rig.host.syncs(), times_out);
    rig.host.fail(times_out, AtcTimeout);
    rig.poll_times(2);
    rig.guests[0].send(&[sync()]);
    rig.poll();
    rig.host.finish_all();
    rig.poll_times(2);
    let error = rig.guests[0].error();
    assert_eq!(rig.cons(0), if error.is_some() { 1 } else { 2 }, "{error:?}");
    error
}

#[test]
fn what_a_transient_failure_left_open_is_covered_by_the_next_round_and_by_no_later_one() {
    assert_eq!([2, 3].map(after_a_transient_failure), [Some(CERROR_ATC_INV_SYNC), None]);
}
