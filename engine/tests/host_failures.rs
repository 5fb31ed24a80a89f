//! Synchronisations that a host fails to complete: each guest hears what concerns it, once, whatever its VMM does meanwhile
//! (facts sheet, section 3.4: CONS passes a CMD_SYNC only when everything before it is complete).

mod common;

use common::reg::CR0;
use common::*;
use ecmdq_engine::host::Cause::{AtcTimeout, DeviceGone, Illegal, Transient};
use ecmdq_engine::{Command, Worker};

/// A word of RAM that is in no queue.
const WORD: u64 = RAM + 0x804;

fn msi(data: u32) -> Command {
    sync_msi(WORD, data)
}

/// Failures of a host that is not an SMMU itself. Guest 0 waits in the round, guest 1 has sent a command in it and sends its
/// CMD_SYNC later, guest 2 has sent nothing.
#[test]
fn whose_cmd_sync_tells_of_a_failure_of_the_host() {
    let of_guest_1 = Some(host_asid(2, 1));
    let (ill, abt) = (Some(CERROR_ILL), Some(CERROR_ABT));
    // What the host says, the errors of guests 0 and 1.
    let cases = [
        (Illegal, of_guest_1, None, ill),
        (Illegal, Some(host_asid(1, 1)), ill, None),
        (Illegal, None, ill, ill),
        (DeviceGone, None, abt, abt),
        (Transient, of_guest_1, None, None),
        (AtcTimeout, None, None, None),
    ];
    for (cause, command, error0, error1) in cases {
        let mut rig = Rig::with_ats(3);
        rig.guests[0].send(&[nh_asid(1), sync()]);
        rig.guests[1].send(&[nh_asid(1)]);
        rig.poll();
        rig.host.fail_for(1, cause, command);
        rig.poll_times(2);
        assert_eq!((rig.guests[0].error(), rig.guests[1].error()), (error0, None), "{cause:?} {command:?}");
        rig.guests[1].send(&[sync()]);
        rig.guests[2].send(&[sync()]);
        rig.poll_times(2);
        rig.host.finish_all();
        rig.poll_times(2);
        assert_eq!((rig.guests[1].error(), rig.guests[2].error()), (error1, None), "{cause:?} {command:?}");
        assert_eq!(rig.cons(0), if error0.is_some() { 1 } else { 2 });
        rig.guests.iter().for_each(Guest::ack);
        rig.poll_times(2);
        rig.host.finish_all();
        rig.poll_times(2);
        assert_eq!([0, 1, 2].map(|guest| rig.cons(guest)), [2, 2, 1], "{cause:?}: acknowledged");
    }
}

#[test]
fn a_transient_failure_only_delays_whatever_was_sent() {
    let mut rig = Rig::with_ats(2);
    rig.guests[0].send(&[atc_inv(STREAM), msi(9)]);
    rig.guests[1].send(&[nh_asid(1), msi(9)]);
    rig.poll();
    for n in 1..=3 {
        rig.host.fail(n, Transient);
        rig.poll_times(2);
        assert_eq!(rig.host.syncs(), n + 1, "asked for again, once");
        assert_eq!((rig.cons(0), rig.cons(1)), (1, 1));
    }
    rig.host.finish(4);
    rig.poll();
    for (number, guest) in rig.guests.iter().enumerate() {
        assert_eq!((guest.cons(), guest.u32_at(WORD), guest.active()), (2, 9, 0), "guest {number}");
    }
}

#[test]
fn a_failure_while_the_guest_is_paused_is_not_forgotten() {
    for (cause, error) in [(AtcTimeout, Some(CERROR_ATC_INV_SYNC)), (Transient, None)] {
        let mut rig = Rig::with_ats(2);
        rig.guests[0].send(&[atc_inv(STREAM), msi(9)]);
        rig.poll();
        rig.handle(0).pause();
        rig.host.fail(1, cause);
        rig.poll_times(3);
        rig.guests[1].send(&[nh_asid(1), sync()]);
        rig.poll_times(3);
        assert_eq!((rig.cons(0), rig.guests[0].active()), (1, 0), "paused");
        rig.handle(0).resume();
        rig.poll_times(3);
        assert_eq!(
            (rig.cons(0), rig.guests[0].error(), rig.guests[0].u32_at(WORD)),
            (1, error, 0),
            "{cause:?}"
        );
        rig.guests[0].ack();
        rig.poll_times(3);
        rig.host.finish_all();
        rig.poll_times(3);
        assert_eq!((rig.cons(0), rig.cons(1), rig.guests[0].u32_at(WORD)), (2, 2, 9), "{cause:?}");
    }
}

/// Two guests; the VMM of the first can be busy with it.
fn rig_with_a_busy_vmm() -> (Rig, BusyVmm) {
    let (busy, slow, ram) = BusyVmm::new();
    let (mut guest, smmu) = Guest::new(Setup { ram: Some(slow), ..Rig::ats_setup(1) });
    guest.ram = ram;
    guest.write(CR0, SMMUEN);
    guest.start(4);
    let mut rig = Rig::new(0, 4, Script::default());
    rig.worker.attach(smmu).unwrap();
    rig.guests.push(guest);
    rig.add(Rig::ats_setup(2), 4);
    (rig, busy)
}

#[test]
fn a_guest_that_is_left_out_of_a_sweep_hears_of_the_failure_and_the_others_hear_once() {
    let (mut rig, mut busy) = rig_with_a_busy_vmm();
    rig.guests[0].send(&[atc_inv(STREAM), msi(9)]);
    rig.guests[1].send(&[nh_asid(1), sync()]);
    rig.poll();
    busy.begin(rig.handle(0));
    rig.host.fail(1, AtcTimeout);
    rig.poll_times(3);
    assert_eq!((rig.cons(1), rig.host.syncs()), (1, 2), "asked for again, once");
    assert_eq!((rig.cons(0), rig.guests[0].active()), (1, 0), "left out");
    rig.host.finish(2);
    busy.end();
    rig.poll_times(3);
    assert_eq!((rig.guests[0].error(), rig.cons(0)), (Some(CERROR_ATC_INV_SYNC), 1));
    assert_eq!((rig.cons(1), rig.guests[1].active(), rig.guests[0].u32_at(WORD)), (2, 0, 0));
    rig.guests[0].ack();
    rig.poll_times(2);
    rig.host.finish_all();
    rig.poll_times(2);
    assert_eq!((rig.cons(0), rig.guests[0].u32_at(WORD)), (2, 9));
}

#[test]
fn what_a_guests_own_host_failed_to_do_while_its_vmm_was_busy_is_told() {
    let (mut busy, slow, ram) = BusyVmm::new();
    let (mut guest, smmu) = Guest::new(Setup { ram: Some(slow), ..Rig::ats_setup(1) });
    guest.ram = ram;
    let host = Script::default();
    let mut worker = Worker::without_host();
    worker.attach_with(smmu.clone(), host.clone()).unwrap();
    guest.write(CR0, SMMUEN);
    guest.start(4);
    (0..3).for_each(|_| _ = worker.poll());
    guest.send(&[atc_inv(STREAM), sync()]);
    (0..2).for_each(|_| _ = worker.poll());
    busy.begin(smmu);
    host.fail(1, AtcTimeout);
    (0..4).for_each(|_| _ = worker.poll());
    assert_eq!((guest.cons(), guest.active()), (1, 0), "left out");
    busy.end();
    (0..3).for_each(|_| _ = worker.poll());
    assert_eq!((guest.error(), guest.cons()), (Some(CERROR_ATC_INV_SYNC), 1));
}

#[test]
fn a_guest_that_is_quiet_beside_a_busy_one_hears_of_a_failure() {
    let mut rig = Rig::with_ats(10);
    // A worker with nothing to do looks at everybody.
    rig.poll_times(3);
    // In the round of guest 0, which waits.
    rig.guests[1].send(&[atc_inv(STREAM)]);
    rig.guests[0].send(&[nh_asid(1), sync()]);
    rig.poll();
    // Only guests 0 and 2 have a turn in most sweeps then.
    for asid in 0..300 {
        rig.guests[2].send(&[nh_asid(asid)]);
        rig.poll();
    }
    rig.host.fail(1, AtcTimeout);
    rig.guests[2].send(&[nh_asid(300)]);
    rig.poll();
    rig.guests[1].send(&[sync()]);
    rig.poll_times(3);
    rig.host.finish_all();
    rig.poll_times(3);
    assert_eq!((rig.guests[1].error(), rig.cons(1)), (Some(CERROR_ATC_INV_SYNC), 1));
    assert_eq!((rig.guests[0].error(), rig.cons(0)), (None, 2));
}
